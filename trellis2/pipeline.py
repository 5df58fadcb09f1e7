"""One TRELLIS.2 run, top to bottom.

    condition -> tokens -> structure -> shape latent -> texture latent -> voxels, mesh -> asset
    \\_________________________ sample() -> Bundle ________________/ \\_ decode() _/ \\ export()

A condition is a picture, several pictures of one object, or a prompt (`condition.py`).

Stages are in `stages.py`; this file decides their order and what is drawn when. Random numbers come
from one CPU generator seeded after preprocessing, in the released order: structure, shape (each
pass), texture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis2 import stages
from trellis2.condition import Prompt, prepare_pictures, read_prompt, unlike_training
from trellis2.dual_grid import normalize_mesh
from trellis2.settings import (
    MAX_TOKENS,
    PipelineSettings,
    PipelineType,
    ShapePass,
    TextSettings,
    override,
)
from trellis2.texturing import encode_shape, mesh_voxels, own_uvs
from trellis_core import __version__
from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_asset, texture_mesh
from trellis_core.geometry.types import Asset, Mesh, PBRVoxels, VoxelMesh
from trellis_core.io import WRITERS
from trellis_core.memory.residency import memory_errors
from trellis_core.models.familiarity import familiarity
from trellis_core.models.networks import Networks
from trellis_core.runtime import Progress, Runtime, cancellable
from trellis_core.sampling.condition import Condition, Picture
from trellis_core.sampling.multi_image import STOCHASTIC, pictures_used
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.bundle import Bundle

Overrides = Mapping[str, Any] | None  # entries of SamplerSettings; None keeps the model's value

THUMBNAIL_SIDE = 128


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights made a result."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the stages of one run share."""

    kind: PipelineType
    structure: SamplerSettings
    shape: SamplerSettings
    texture: SamplerSettings
    num_samples: int  # B
    max_tokens: int
    generator: torch.Generator
    runtime: Runtime
    mode: str = STOCHASTIC  # how several pictures are combined
    # picture side -> tokens [B, M, C] of every picture, or of the prompt
    conds: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def draw(self, *shape: int) -> Tensor:
        """The next standard normal numbers of the run, the same on every device."""
        return torch.randn(*shape, generator=self.generator).to(self.runtime.device)


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

    @property
    def has_text(self) -> bool:
        """Whether it takes prompts."""
        return self.settings.text is not None

    def run(
        self,
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        seed: int = 42,
        export: ExportSettings | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Asset:
        """Picture, several pictures or prompt to finished asset; `sampling` goes to `sample`."""
        start: dict[str, Any] = {"prompt": prompt, "pictures": pictures}
        bundle = self.sample(picture, **start, seed=seed, on_progress=on_progress, cancel=cancel, **sampling)
        shape = self.decode(bundle, on_progress=on_progress, cancel=cancel)[0]
        return self.export(shape, export, extras=provenance(bundle), on_progress=on_progress, cancel=cancel)

    def sample(
        self,
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        mode: str = STOCHASTIC,
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

        A run starts from one of three: `picture`, a path or a PIL image; several `pictures` of one object,
        combined by `mode` ("stochastic": each step sees the next picture; "multidiffusion": every step
        sees all, and takes as much longer); or a `prompt`, when the model has a text encoder.
        `num_samples` different objects share one bundle.
        Raises `InputError` for pictures without an object and prompts without one that the model knows,
        `UsageError` for unknown settings, `OutOfMemory`, and `Cancelled` when `cancel()` returns true
        between two steps.
        """
        condition = Condition.of(picture, pictures, prompt, mode, background)
        if prompt is not None:
            self._require_text()
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(pipeline_type)
        run = Sampling(
            kind=kind,
            structure=override(self.settings.structure_sampler, structure),
            shape=override(self.settings.shape_sampler, shape),
            texture=override(self.settings.texture_sampler, texture),
            num_samples=num_samples,
            max_tokens=max_tokens,
            generator=torch.Generator().manual_seed(seed),
            runtime=runtime,
            mode=mode,
        )
        images = prepare_pictures(condition, runtime)
        with torch.inference_mode(), memory_errors("sampling"):
            encoded, known = None, list[float]()
            if condition.prompt is not None:
                encoded = self._encode_prompt(condition.prompt, run, kind.image_sizes)
            else:
                known = self._encode_pictures(images, run, kind.image_sizes)
            coords = self._sample_structure(run)
            latent, resolution = self._sample_shape(coords, run)
            color = self._sample_texture(latent, run)
        return Bundle(
            tensors={
                "coords": latent.coords.cpu(),
                "shape_latent": latent.feats.float().cpu(),
                "texture_latent": color.feats.float().cpu(),
                "structure_coords": coords.cpu(),
                **({"thumbnail": thumbnail(images[0])} if images else {}),
            },
            info={
                "model": asdict(self.identity),
                "condition": condition.facts(encoded.text if encoded else None, known),
                "pipeline_type": kind.name,
                "resolution": resolution,
                "num_samples": num_samples,
                "seed": seed,
                "samplers": {name: asdict(getattr(run, name)) for name in ("structure", "shape", "texture")},
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
                shape,
                settings or self.export_settings(),
                runtime=runtime,
                extras=extras or {},
                writers=WRITERS,
            )

    def export_settings(self, **changes: Any) -> ExportSettings:
        """Export settings that suit this model's shapes, with `changes`."""
        return ExportSettings(**{**self.settings.export, **changes})

    def texture(
        self,
        mesh: Mesh,
        picture: Picture,
        *,
        seed: int = 42,
        pipeline_type: str | None = None,
        texture: Overrides = None,
        background: str = "auto",
        keep_uv: bool = False,
        export: ExportSettings | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Asset:
        """Paint a mesh (z up, any size) after a picture.

        It is unwrapped anew; with `keep_uv` its own texture coordinates are used (see `own_uvs`). The result
        lies in the unit cube. Raises what `sample` raises, `InputError` for coordinates that cannot be used,
        and `ModelError` when the model has no shape encoder.
        """
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(pipeline_type)
        run = Sampling(
            kind=kind,
            structure=self.settings.structure_sampler,
            shape=self.settings.shape_sampler,
            texture=override(self.settings.texture_sampler, texture),
            num_samples=1,
            max_tokens=MAX_TOKENS,
            generator=torch.Generator().manual_seed(seed),
            runtime=runtime,
        )
        mesh = Mesh(normalize_mesh(mesh.vertices), mesh.faces, mesh.uvs if keep_uv else None)
        if keep_uv:
            mesh, note = own_uvs(mesh, export or ExportSettings(), runtime.kernels)
            runtime.report("picture", 0, 1, note)
        images = prepare_pictures(Condition(pictures=(picture,), background=background), runtime)
        with torch.inference_mode(), memory_errors("texturing"):
            runtime.report("voxelize", 0, 1)
            grid = mesh_voxels(mesh, kind.resolution)
            runtime.report("voxelize", 1, 1)
            self._encode_pictures(images, run, {kind.texture_image_size})
            with self.networks.use("shape_slat_encoder", runtime) as encoder:
                coords, vertices, crossings = (
                    t.to(runtime.device) for t in (grid.coords, grid.dual_vertices, grid.crossings)
                )
                latent = encode_shape(encoder, coords, vertices, crossings)
            color = self._sample_texture(latent, run)
            with self.networks.use("tex_slat_decoder", runtime) as decoder:
                runtime.report("decode", 0, 1)
                attrs = stages.decode_texture(decoder, color)
                runtime.report("decode", 1, 1)
            voxels = PBRVoxels(attrs.coords[:, 1:], attrs.feats.float(), kind.resolution)
            facts = {
                "generator": "trellis",
                "model": asdict(self.identity),
                "pipeline_type": kind.name,
                "seed": seed,
                "resolution": kind.resolution,
                "samplers": {"texture": asdict(run.texture)},
                "version": __version__,
            }
            return texture_mesh(
                mesh, voxels, export or ExportSettings(), runtime=runtime, extras=facts, writers=WRITERS
            )

    def _encode_pictures(
        self, images: Sequence[Image.Image], run: Sampling, sizes: set[int]
    ) -> list[float]:  # how familiar each picture is; empty when the model does not say
        """Fill `run.conds` for every picture size the run needs; warns of pictures unlike any it knows."""
        steps = len(sizes) * len(images)
        run.runtime.report("condition", 0, steps, unused_pictures(run, len(images)))
        with self.networks.use("image_encoder", run.runtime) as encoder:
            for size in sorted(sizes):
                run.conds[size] = ()
                for image in images:
                    tokens = stages.encode_picture(encoder, [image], size, run.runtime)
                    run.conds[size] += (tokens.expand(run.num_samples, -1, -1),)
                    run.runtime.report("condition", sum(map(len, run.conds.values())), steps)
        facts = self.settings.familiarity
        if facts is None:
            return []
        known = [familiarity(tokens[:1], facts) for tokens in run.conds[min(sizes)]]
        if warning := unlike_training(known, self.settings.text):
            run.runtime.report("condition", steps, steps, warning=warning)
        return known

    def _encode_prompt(self, text: str, run: Sampling, sizes: set[int]) -> Prompt:
        """Fill `run.conds` with the same tokens for every size."""
        run.runtime.report("condition", 0, 1)
        with self.networks.use("text_encoder", run.runtime) as encoder:
            prompt = read_prompt(text, encoder.tokenizer, self._require_text())
            tokens = stages.encode_prompt(encoder, prompt.ids, run.runtime)
        run.conds.update(dict.fromkeys(sizes, (tokens.expand(run.num_samples, -1, -1),)))
        run.runtime.report("condition", 1, 1, prompt.note)
        return prompt

    def _require_text(self) -> TextSettings:
        if self.settings.text is None:
            raise UsageError(
                f"the model `{self.identity.name}` takes pictures only: it has no text encoder",
                hint="choose a model whose `pipeline.json` has a `text_cond_model`, or give a picture",
            )
        return self.settings.text

    def _sample_structure(self, run: Sampling) -> Tensor:
        """Token coordinates int32 [N, 4] of the first shape pass."""
        with (
            self.networks.use("sparse_structure_flow_model", run.runtime) as flow,
            self.networks.use("sparse_structure_decoder", run.runtime) as decoder,
        ):
            noise = run.draw(run.num_samples, flow.in_channels, *[flow.resolution] * 3)
            cond = run.conds[run.kind.structure_image_size]
            grid = run.kind.structure_resolution
            return stages.sample_structure(
                flow, decoder, cond, noise, run.structure, grid, run.runtime, run.mode
            )

    def _sample_shape(self, coords: Tensor, run: Sampling) -> tuple[SparseTensor, int]:
        """Raw shape latent, and the voxel grid it decodes to."""
        draft, *detail = run.kind.shape_passes
        latent, resolution = self._shape_pass(coords, draft, run), draft.resolution
        for part in detail:
            with self.networks.use("shape_slat_decoder", run.runtime) as decoder:
                voxels = decoder.upsample(latent, decoder.levels)
                tokens = stages.cascade_tokens(
                    voxels, resolution, part.resolution, run.max_tokens, decoder.factor
                )
            if tokens.resolution != part.resolution:
                run.runtime.report("shape", 0, run.shape.steps, lowered(part, tokens.resolution, run))
            latent, resolution = self._shape_pass(tokens.coords, part, run), tokens.resolution
        return latent, resolution

    def _shape_pass(self, coords: Tensor, part: ShapePass, run: Sampling) -> SparseTensor:
        with self.networks.use(part.model, run.runtime) as flow:
            noise = SparseTensor(run.draw(len(coords), flow.in_channels), coords, batch_size=run.num_samples)
            cond = run.conds[part.image_size]
            latent = stages.sample_flow(flow, noise, cond, run.shape, run.runtime, "shape", mode=run.mode)
        return stages.denormalize(latent, self.settings.shape_normalization)

    def _sample_texture(self, latent: SparseTensor, run: Sampling) -> SparseTensor:
        """Raw texture latent on the tokens of the raw shape latent."""
        shape = stages.normalize(latent, self.settings.shape_normalization)
        with self.networks.use(run.kind.texture_model, run.runtime) as flow:
            noise = shape.replace(run.draw(len(shape), flow.in_channels - shape.feats.shape[1]))
            cond = run.conds[run.kind.texture_image_size]
            color = stages.sample_flow(
                flow, noise, cond, run.texture, run.runtime, "texture", mode=run.mode, concat_cond=shape
            )
        return stages.denormalize(color, self.settings.texture_normalization)

    def _decode(
        self, latent: SparseTensor, color: SparseTensor, resolution: int, runtime: Runtime
    ) -> list[VoxelMesh]:
        with (
            self.networks.use("shape_slat_decoder", runtime) as shape_decoder,
            self.networks.use("tex_slat_decoder", runtime) as texture_decoder,
        ):
            decoded = stages.decode_latents(shape_decoder, texture_decoder, latent, color, runtime)
            return stages.voxel_meshes(decoded, shape_decoder, resolution)


def unused_pictures(run: Sampling, count: int) -> str:
    """What to say when a stage has fewer steps than there are pictures."""
    stages_of = {"structure": run.structure, "shape": run.shape, "texture": run.texture}
    short = [
        f"{pictures_used(run.mode, count, sampler.steps)} in the {name} stage"
        for name, sampler in stages_of.items()
        if pictures_used(run.mode, count, sampler.steps) < count
    ]
    if not short:
        return ""
    return f"of the {count} pictures only {', '.join(short)} are used; give more steps or fewer pictures"


def lowered(part: ShapePass, resolution: int, run: Sampling) -> str:
    return (
        f"resolution lowered from {part.resolution} to {resolution}: "
        f"the object needs {run.max_tokens:,} tokens or more"
    )


def thumbnail(image: Image.Image) -> Tensor:
    """uint8 [h, w, 3], longest side at most THUMBNAIL_SIDE."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return torch.from_numpy(np.array(small.convert("RGB")))


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What the finished file says about its origin."""
    keep = ("model", "condition", "pipeline_type", "resolution", "seed", "samplers", "version")
    return {"generator": "trellis", **{name: bundle.info[name] for name in keep if name in bundle.info}}
