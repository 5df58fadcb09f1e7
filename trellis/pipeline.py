"""One TRELLIS v1 run, top to bottom.

    condition -> tokens -> structure -> latents -> mesh, Gaussians, radiance field -> asset
    \\____________ sample() -> Bundle _________/ \\__________ decode() __________/ \\ export()

A condition is a picture, several pictures of one object, or a prompt (`condition.py`); `variant()` takes the
structure from a mesh or another run instead of sampling it.

Stages are in `stages.py`; this file decides their order and what is drawn when. Random numbers come from one
CPU generator seeded after preprocessing, in the released order: structure, latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis import stages
from trellis.condition import prepare_pictures, read_prompt
from trellis.results import Decoded
from trellis.settings import (
    DECODERS,
    IMAGE_ENCODER,
    LATENT_FLOW,
    STRUCTURE_DECODER,
    STRUCTURE_FLOW,
    TEXT_ENCODER,
    PipelineSettings,
    override,
)
from trellis.voxelize import normalized, occupied_by
from trellis_core import __version__
from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.types import Asset, Mesh
from trellis_core.io import WRITERS
from trellis_core.memory.residency import memory_errors
from trellis_core.models.networks import Networks
from trellis_core.render.bake_views import STANDARD, ViewBakeSettings, build_viewed_asset
from trellis_core.runtime import Progress, Runtime, cancellable
from trellis_core.sampling.condition import Condition, Picture
from trellis_core.sampling.multi_image import STOCHASTIC, pictures_used
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.bundle import Bundle

Overrides = Mapping[str, Any] | None  # entries of SamplerSettings; None keeps the model's value

THUMBNAIL_SIDE = 128
STRUCTURE_LATENT = "structure_latent"  # names of tensors in a bundle
LATENT = "latent"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights made a result."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the stages of one run share."""

    structure: SamplerSettings
    latents: SamplerSettings
    num_samples: int  # B
    generator: torch.Generator
    runtime: Runtime
    mode: str  # how several pictures are combined
    conds: tuple[Tensor, ...]  # tokens [1, M, C] of every picture, or of the prompt
    uncond: Tensor | None  # tokens [1, M, C] of the empty prompt; None: zeros

    def draw(self, *shape: int) -> Tensor:
        """The next standard normal numbers of the run, the same on every device."""
        return torch.randn(*shape, generator=self.generator).to(self.runtime.device)


class Pipeline:
    """A loaded TRELLIS v1 model. Networks are read from disk when a stage first needs them."""

    def __init__(
        self, settings: PipelineSettings, networks: Networks, identity: ModelIdentity, runtime: Runtime
    ) -> None:
        self.settings = settings
        self.networks = networks
        self.identity = identity
        self.runtime = runtime

    @property
    def has_text(self) -> bool:
        """Whether it takes prompts."""
        return self.settings.text_encoder is not None

    @property
    def has_pictures(self) -> bool:
        """Whether it takes pictures."""
        return self.settings.image_encoder is not None

    @property
    def formats(self) -> tuple[str, ...]:
        """What it can decode: of "mesh", "gaussians" and "radiance_field", those whose networks are here."""
        return tuple(name for name, network in DECODERS.items() if network in self.networks)

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
        formats = [name for name in ("mesh", "gaussians") if name in self.formats]
        decoded = self.decode(bundle, formats=formats, on_progress=on_progress, cancel=cancel)[0]
        extras = provenance(bundle)
        return self.export(decoded, export, extras=extras, on_progress=on_progress, cancel=cancel)

    def sample(
        self,
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        mode: str = STOCHASTIC,
        seed: int = 42,
        num_samples: int = 1,
        structure: Overrides = None,
        latents: Overrides = None,
        background: str = "auto",
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Sample everything that is random; the result can be saved, decoded and exported later.

        A run starts from one of three: `picture`, a path or a PIL image; several `pictures` of one object,
        combined by `mode` ("stochastic": each step sees the next picture; "multidiffusion": every step sees
        all, and takes as much longer); or a `prompt`. Which of them a model takes is its nature.
        `num_samples` different objects share one bundle.
        Raises `InputError` for pictures without an object and prompts without a word, `UsageError` for
        unknown settings and for what the model does not take, `OutOfMemory`, and `Cancelled` when `cancel()`
        returns true between two steps.
        """
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        changes = {"structure": structure, "latents": latents}
        run, images = self._start(condition, seed, num_samples, changes, runtime)
        with torch.inference_mode(), memory_errors("sampling"):
            z, coords = self._sample_structure(run)
            with self.networks.use(LATENT_FLOW, runtime) as flow:
                latent = self._sample_latents(flow, coords, run)
                resolution = flow.resolution
        samplers = {"structure": asdict(run.structure), "latents": asdict(run.latents)}
        bundle = self._bundle(latent, resolution, condition, samplers, seed, images)
        return Bundle({**bundle.tensors, STRUCTURE_LATENT: z.cpu()}, bundle.info)

    def variant(
        self,
        source: Mesh | Bundle,
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        mode: str = STOCHASTIC,
        seed: int = 42,
        num_samples: int = 1,
        latents: Overrides = None,
        background: str = "auto",
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Keep a coarse shape and sample new detail for it.

        The shape is that of a mesh (z up, any size and place), or of the first sample of a bundle on the
        same grid. Everything else is as in `sample`.
        """
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        run, images = self._start(condition, seed, num_samples, {"latents": latents}, runtime)
        with (
            torch.inference_mode(),
            memory_errors("sampling"),
            self.networks.use(LATENT_FLOW, runtime) as flow,
        ):
            resolution = flow.resolution
            voxels = voxels_of(source, resolution, runtime)
            latent = self._sample_latents(flow, stages.repeated(voxels, num_samples), run)
        return self._bundle(latent, resolution, condition, {"latents": asdict(run.latents)}, seed, images)

    def decode(
        self,
        bundle: Bundle,
        *,
        formats: Sequence[str] | None = None,  # of `self.formats`; None: all
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[Decoded]:
        """Latents to what represents the objects, one value per sample.

        Raises `InputError` when the bundle was made by another model, `UsageError` for an unknown format.
        """
        made_by = bundle.info.get("model", {})
        if made_by.get("fingerprint") != self.identity.fingerprint:
            raise InputError(
                f"the bundle was made by the model `{made_by.get('name', 'unknown')}`, "
                f"not by `{self.identity.name}`",
                hint=f"pass `--model {made_by.get('name', 'NAME')}`",
            )
        wanted = self.formats if formats is None else tuple(formats)
        for name in wanted:
            self._require_format(name)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        latent = SparseTensor(
            bundle.tensors[LATENT].to(runtime.device),
            bundle.tensors["coords"].to(runtime.device),
            batch_size=bundle.info["num_samples"],
        )
        parts: dict[str, list[Any]] = {}
        with torch.inference_mode(), memory_errors("decoding"):
            runtime.report("decode", 0, len(wanted))
            for number, name in enumerate(wanted, start=1):
                with self.networks.use(DECODERS[name], runtime) as decoder:
                    parts[name] = stages.DECODE[name](decoder, latent)
                runtime.report("decode", number, len(wanted))
        return [
            Decoded(**{name: values[sample] for name, values in parts.items()})
            for sample in range(latent.batch_size)
        ]

    def export(
        self,
        decoded: Decoded,
        settings: ExportSettings | None = None,
        *,
        color: str = "auto",
        views: ViewBakeSettings = STANDARD,
        extras: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Asset:
        """The decoded mesh as a clean asset.

        `color` says what its texture is painted after: "gaussians" or "radiance_field" as `views` see
        them, "vertices", or "auto": the first of these that was decoded.
        """
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        common: dict[str, Any] = {"runtime": runtime, "extras": extras or {}, "writers": WRITERS}
        settings = settings or ExportSettings()
        appearance = decoded.appearance(color)
        with torch.inference_mode(), memory_errors("export"):
            if appearance is None:
                return build_asset(decoded.voxel_mesh(), settings, **common)
            mesh, colors = decoded.surface()
            assert decoded.mesh is not None
            resolution = decoded.mesh.resolution
            return build_viewed_asset(
                mesh,
                appearance,
                settings,
                resolution=resolution,
                colors=colors,
                views=views,
                **common,
            )

    def _start(
        self,
        condition: Condition,
        seed: int,
        num_samples: int,
        changes: Mapping[str, Overrides],
        runtime: Runtime,
    ) -> tuple[Sampling, list[Image.Image]]:
        """Prepare and encode what the run starts from."""
        self._require_encoder(condition)
        structure = override(self.settings.structure_sampler, changes.get("structure"))
        latents = override(self.settings.latent_sampler, changes.get("latents"))
        images = prepare_pictures(condition, self.settings.image_size, runtime)
        with torch.inference_mode(), memory_errors("encoding"):
            if condition.prompt is not None:
                conds, uncond = self._encode_prompt(condition.prompt, runtime)
            else:
                samplers = {"latents": latents}
                if "structure" in changes:
                    samplers["structure"] = structure
                note = unused_pictures(condition.mode, len(images), samplers)
                conds, uncond = self._encode_pictures(images, note, runtime), None
        run = Sampling(
            structure=structure,
            latents=latents,
            num_samples=num_samples,
            generator=torch.Generator().manual_seed(seed),
            runtime=runtime,
            mode=condition.mode,
            conds=conds,
            uncond=uncond,
        )
        return run, images

    def _encode_pictures(
        self, images: Sequence[Image.Image], note: str, runtime: Runtime
    ) -> tuple[Tensor, ...]:
        runtime.report("condition", 0, len(images), note)
        conds: tuple[Tensor, ...] = ()
        with self.networks.use(IMAGE_ENCODER, runtime) as encoder:
            for image in images:
                conds += (stages.encode_picture(encoder, [image], self.settings.image_size, runtime),)
                runtime.report("condition", len(conds), len(images))
        return conds

    def _encode_prompt(self, prompt: str, runtime: Runtime) -> tuple[tuple[Tensor, ...], Tensor]:
        """Tokens of the prompt, and of the empty one."""
        runtime.report("condition", 0, 1)
        with self.networks.use(TEXT_ENCODER, runtime) as encoder:
            length = encoder.max_position_embeddings
            ids, note = read_prompt(prompt, encoder.tokenizer, length)
            cond = stages.encode_prompt(encoder, ids, runtime)
            uncond = stages.encode_prompt(encoder, encoder.tokenizer.encode("", length).ids, runtime)
        runtime.report("condition", 1, 1, note)
        return (cond,), uncond

    def _sample_structure(self, run: Sampling) -> tuple[Tensor, Tensor]:
        """The structure latent float32 [B, C, r, r, r], and its voxels int32 [N, 4]."""
        with self.networks.use(STRUCTURE_FLOW, run.runtime) as flow:
            noise = run.draw(run.num_samples, flow.latent_channels, *[flow.resolution] * 3)
            z = self._integrate(flow, noise, run.structure, run, "structure")
        with self.networks.use(STRUCTURE_DECODER, run.runtime) as decoder:
            return z, stages.occupied_voxels(decoder(z))

    def _sample_latents(self, flow: Any, coords: Tensor, run: Sampling) -> SparseTensor:
        """Raw latents on these voxels."""
        noise = SparseTensor(run.draw(len(coords), flow.in_channels), coords, run.num_samples)
        latent = self._integrate(flow, noise, run.latents, run, "latents")
        return stages.denormalize(latent, self.settings.normalization)

    def _integrate(self, flow: Any, noise: Any, settings: SamplerSettings, run: Sampling, stage: str) -> Any:
        return stages.sample_flow(
            flow, noise, run.conds, settings, run.runtime, stage, uncond=run.uncond, mode=run.mode
        )

    def _bundle(
        self,
        latent: SparseTensor,
        resolution: int,
        condition: Condition,
        samplers: Mapping[str, Any],
        seed: int,
        images: Sequence[Image.Image],
    ) -> Bundle:
        return Bundle(
            tensors={
                "coords": latent.coords.cpu(),
                LATENT: latent.feats.float().cpu(),
                **({"thumbnail": thumbnail(images[0])} if images else {}),
            },
            info={
                "model": asdict(self.identity),
                "condition": condition.facts(),
                "resolution": resolution,
                "num_samples": latent.batch_size,
                "seed": seed,
                "samplers": samplers,
                "version": __version__,
            },
        )

    def _require_encoder(self, condition: Condition) -> None:
        if condition.prompt is not None and not self.has_text:
            raise UsageError(
                f"the model `{self.identity.name}` takes pictures only: it has no text encoder",
                hint="choose `text-base`, `text-large` or `text-xlarge`, or give a picture",
            )
        if condition.pictures and not self.has_pictures:
            raise UsageError(
                f"the model `{self.identity.name}` takes prompts only: it has no picture encoder",
                hint="choose `image-large`, or give a prompt",
            )

    def _require_format(self, name: str) -> None:
        if name not in DECODERS:
            raise UsageError(f"unknown format `{name}`", hint=f"choose from: {', '.join(DECODERS)}")
        if name not in self.formats:
            raise UsageError(
                f"the model `{self.identity.name}` cannot decode `{name}`: `{DECODERS[name]}` is not here",
                hint=f"run `trellis models pull {self.identity.name}`, or choose from: "
                f"{', '.join(self.formats)}",
            )


def voxels_of(source: Mesh | Bundle, resolution: int, runtime: Runtime) -> Tensor:
    """Voxels int32 [N, 3] of a mesh, or of the first sample of a bundle."""
    runtime.report("voxelize", 0, 1)
    if isinstance(source, Bundle):
        if source.info.get("resolution") != resolution or LATENT not in source.tensors:
            raise InputError(
                f"the bundle has no voxels of a grid of {resolution}",
                hint="give a bundle of a TRELLIS v1 model, or a mesh",
            )
        coords = source.tensors["coords"]
        voxels = coords[coords[:, 0] == 0, 1:]
    else:
        voxels = occupied_by(Mesh(normalized(source.vertices), source.faces), resolution)
    runtime.report("voxelize", 1, 1)
    return voxels.to(runtime.device)


def unused_pictures(mode: str, count: int, samplers: Mapping[str, SamplerSettings]) -> str:
    """What to say when a stage has fewer steps than there are pictures."""
    short = [
        f"{pictures_used(mode, count, sampler.steps)} in the {name} stage"
        for name, sampler in samplers.items()
        if pictures_used(mode, count, sampler.steps) < count
    ]
    if not short:
        return ""
    return f"of the {count} pictures only {', '.join(short)} are used; give more steps or fewer pictures"


def thumbnail(image: Image.Image) -> Tensor:
    """uint8 [h, w, 3], longest side at most THUMBNAIL_SIDE."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return torch.from_numpy(np.array(small.convert("RGB")))


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What the finished file says about its origin."""
    keep = ("model", "condition", "resolution", "seed", "samplers", "version")
    return {"generator": "trellis", **{name: bundle.info[name] for name in keep if name in bundle.info}}
