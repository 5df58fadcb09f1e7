"""One TRELLIS.2 run, top to bottom.

    picture -> condition -> structure -> shape latent -> texture latent -> voxels, mesh -> asset
    \\_________________________ sample() -> Bundle ________________/ \\_ decode() _/ \\ export()

Stages are in `stages.py`; this file decides their order and what is drawn when. Random numbers come
from one CPU generator seeded after preprocessing, in the released order: structure, shape (each
pass), texture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis2 import stages
from trellis2.networks import Networks
from trellis2.settings import MAX_TOKENS, PipelineSettings, PipelineType, override
from trellis_core import __version__
from trellis_core.errors import InputError
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.types import Asset, VoxelMesh
from trellis_core.image.background import choose_background_remover
from trellis_core.image.preprocess import has_transparency, preprocess_picture
from trellis_core.io import WRITERS
from trellis_core.io.images import read_picture
from trellis_core.memory.residency import memory_errors
from trellis_core.runtime import Progress, Runtime, cancellable
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.bundle import Bundle

Picture = Image.Image | str | Path
Overrides = Mapping[str, Any] | None    # entries of SamplerSettings; None keeps the model's value

THUMBNAIL_SIDE = 128


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights made a result."""

    name: str
    fingerprint: str


class Pipeline:
    """A loaded TRELLIS.2 model. Networks are read from disk when a stage first needs them."""

    def __init__(
        self, settings: PipelineSettings, networks: Networks, identity: ModelIdentity, runtime: Runtime
    ) -> None:
        self.settings = settings
        self.networks = networks
        self.identity = identity
        self.runtime = runtime

    @property
    def pipeline_types(self) -> Sequence[str]:
        return tuple(self.settings.pipeline_types)

    def run(
        self,
        picture: Picture,
        *,
        seed: int = 42,
        export: ExportSettings | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Asset:
        """Picture to finished asset; `sampling` goes to `sample`."""
        bundle = self.sample(picture, seed=seed, on_progress=on_progress, cancel=cancel, **sampling)
        shape = self.decode(bundle, on_progress=on_progress, cancel=cancel)[0]
        return self.export(
            shape, export, extras=provenance(bundle), on_progress=on_progress, cancel=cancel
        )

    def sample(
        self,
        picture: Picture,
        *,
        seed: int = 42,
        num_samples: int = 1,
        pipeline_type: str | None = None,
        structure: Overrides = None,
        shape: Overrides = None,
        texture: Overrides = None,
        background: str = "auto",
        max_tokens: int = MAX_TOKENS,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Sample everything that is random; the result can be saved, decoded and exported later.

        `picture` is a path or a PIL image. `num_samples` different objects share one bundle.
        Raises `InputError` for pictures without an object, `UsageError` for unknown settings,
        `OutOfMemory`, and `Cancelled` when `cancel()` returns true between two steps.
        """
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(pipeline_type)
        samplers = {
            "structure": override(self.settings.structure_sampler, structure),
            "shape": override(self.settings.shape_sampler, shape),
            "texture": override(self.settings.texture_sampler, texture),
        }
        image = prepare_picture(picture, background, runtime)
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(runtime.device)

        with torch.inference_mode(), memory_errors("sampling"):
            conds = self._encode(image, kind, num_samples, runtime)
            coords = self._sample_structure(conds, kind, num_samples, samplers, draw, runtime)
            latent, resolution = self._sample_shape(coords, conds, kind, num_samples, samplers, draw,
                                                    max_tokens, runtime)
            color = self._sample_texture(latent, conds[kind.texture_image_size], kind.texture_model,
                                         samplers, draw, runtime)
        return Bundle(
            tensors={
                "coords": latent.coords.cpu(),
                "shape_latent": latent.feats.float().cpu(),
                "texture_latent": color.feats.float().cpu(),
                "structure_coords": coords.cpu(),
                "thumbnail": thumbnail(image),
            },
            info={
                "model": asdict(self.identity),
                "pipeline_type": kind.name,
                "resolution": resolution,
                "num_samples": num_samples,
                "seed": seed,
                "samplers": {name: asdict(settings) for name, settings in samplers.items()},
                "version": __version__,
            },
        )

    def decode(
        self,
        bundle: Bundle,
        *,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[VoxelMesh]:
        """Latents to raw meshes with material voxels, one per sample.

        Raises `InputError` when the bundle was made by another model.
        """
        made_by = bundle.info.get("model", {})
        if made_by.get("fingerprint") != self.identity.fingerprint:
            raise InputError(
                f"the bundle was made by the model `{made_by.get('name', 'unknown')}`, "
                f"not by `{self.identity.name}`",
                hint=f"pass `--model {made_by.get('name', 'NAME')}`",
            )
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        latent = SparseTensor(
            bundle.tensors["shape_latent"].to(runtime.device),
            bundle.tensors["coords"].to(runtime.device),
            batch_size=bundle.info["num_samples"],
        )
        color = latent.replace(bundle.tensors["texture_latent"].to(runtime.device))
        with torch.inference_mode(), memory_errors("decoding"):
            return self._decode(latent, color, bundle.info["resolution"], runtime)

    def export(
        self,
        shape: VoxelMesh,
        settings: ExportSettings | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Asset:
        """Raw mesh and voxels to a clean, textured asset."""
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        with torch.inference_mode(), memory_errors("export"):
            return build_asset(
                shape, settings or ExportSettings(), runtime=runtime, extras=extras or {}, writers=WRITERS
            )

    def _encode(
        self, image: Image.Image, kind: PipelineType, num_samples: int, runtime: Runtime
    ) -> dict[int, Tensor]:
        """Picture tokens for every picture size the run needs: side -> [B, M, C]."""
        sizes = {kind.structure_image_size, kind.texture_image_size}
        sizes.update(p.image_size for p in kind.shape_passes)
        runtime.report("condition", 0, len(sizes))
        conds = {}
        with self.networks.use("image_encoder", runtime) as encoder:
            for done, size in enumerate(sorted(sizes), start=1):
                tokens = stages.encode_picture(encoder, [image], size, runtime)
                conds[size] = tokens.expand(num_samples, -1, -1)
                runtime.report("condition", done, len(sizes))
        return conds

    def _sample_structure(self, conds, kind, num_samples, samplers, draw, runtime) -> Tensor:
        with (
            self.networks.use("sparse_structure_flow_model", runtime) as flow,
            self.networks.use("sparse_structure_decoder", runtime) as decoder,
        ):
            side = flow.resolution
            noise = draw(num_samples, flow.in_channels, side, side, side)
            return stages.sample_structure(
                flow, decoder, conds[kind.structure_image_size], noise, samplers["structure"],
                kind.structure_resolution, runtime,
            )

    def _sample_shape(
        self, coords, conds, kind, num_samples, samplers, draw, max_tokens, runtime
    ) -> tuple[SparseTensor, int]:
        """Raw shape latent and the voxel grid it decodes to."""
        draft, resolution = None, kind.resolution
        for index, part in enumerate(kind.shape_passes):
            if draft is not None:
                with self.networks.use("shape_slat_decoder", runtime) as decoder:
                    voxels = decoder.upsample(draft, decoder.levels)
                    tokens = stages.cascade_tokens(
                        voxels, kind.shape_passes[index - 1].resolution, part.resolution, max_tokens,
                        decoder.factor,
                    )
                coords, resolution = tokens.coords, tokens.resolution
                if resolution != part.resolution:
                    runtime.report(
                        "shape", 0, samplers["shape"].steps,
                        f"resolution lowered from {part.resolution} to {resolution}: "
                        f"the object needs more than {max_tokens:,} tokens",
                    )
            with self.networks.use(part.model, runtime) as flow:
                noise = SparseTensor(draw(len(coords), flow.in_channels), coords, batch_size=num_samples)
                draft = stages.sample_flow(
                    flow, noise, conds[part.image_size], samplers["shape"], runtime, "shape"
                )
                draft = stages.denormalize(draft, self.settings.shape_normalization)
        return draft, resolution

    def _sample_texture(self, latent, cond, model, samplers, draw, runtime) -> SparseTensor:
        """Raw texture latent on the tokens of the shape latent."""
        concat = stages.normalize(latent, self.settings.shape_normalization)
        with self.networks.use(model, runtime) as flow:
            channels = flow.in_channels - concat.feats.shape[1]
            noise = latent.replace(draw(len(latent.coords), channels))
            color = stages.sample_flow(flow, noise, cond, samplers["texture"], runtime, "texture",
                                       concat_cond=concat)
        return stages.denormalize(color, self.settings.texture_normalization)

    def _decode(self, latent, color, resolution, runtime) -> list[VoxelMesh]:
        with (
            self.networks.use("shape_slat_decoder", runtime) as shape_decoder,
            self.networks.use("tex_slat_decoder", runtime) as texture_decoder,
        ):
            decoded = stages.decode_latents(shape_decoder, texture_decoder, latent, color, runtime)
            return stages.voxel_meshes(decoded, shape_decoder, resolution)


def prepare_picture(picture: Picture, background: str, runtime: Runtime) -> Image.Image:
    """Read, cut out and crop a picture: square RGB, object on black."""
    runtime.report("picture", 0, 1)
    image = picture if isinstance(picture, Image.Image) else read_picture(Path(picture))
    remover, notice = choose_background_remover(background)
    notices = [image.info.get("notice", ""), "" if has_transparency(image) else notice]
    prepared = preprocess_picture(image, remover)
    runtime.report("picture", 1, 1, "; ".join(filter(None, notices)))
    return prepared


def thumbnail(image: Image.Image) -> Tensor:
    """uint8 [h, w, 3], longest side at most THUMBNAIL_SIDE."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return torch.from_numpy(np.array(small.convert("RGB")))


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What the finished file says about its origin."""
    keep = ("model", "pipeline_type", "resolution", "seed", "samplers", "version")
    return {"generator": "trellis", **{name: bundle.info[name] for name in keep}}
