"""One TRELLIS v1 run, top to bottom.

    condition -> tokens -> structure -> latents -> mesh, Gaussians, radiance field -> asset
    \\____________ sample() -> Bundle _________/ \\__________ decode() __________/ \\ export()

A condition is a picture, several pictures of one object, or a prompt (`condition.py`); `variant()` takes the
structure from a mesh or another run instead of sampling it, `edit()` samples a region of a bundle anew.

Stages are in `stages.py`; this file decides their order and what is drawn when. Random numbers come from one
CPU generator seeded after preprocessing, in the released order: structure, latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

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
    STRUCTURE_ENCODER,
    STRUCTURE_FLOW,
    TEXT_ENCODER,
    PipelineSettings,
)
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_assets
from trellis_core.geometry.occupancy import normalized, occupied_by
from trellis_core.geometry.region import Region, cells_inside
from trellis_core.geometry.types import Asset, Mesh
from trellis_core.io import WRITERS
from trellis_core.memory.residency import memory_errors
from trellis_core.models.networks import Networks
from trellis_core.models.structure_vae import encode_cells, occupied_cells
from trellis_core.render.bake_views import STANDARD, ViewBakeSettings, build_viewed_assets
from trellis_core.runtime import Progress, Runtime, cancellable
from trellis_core.sampling.condition import Condition, Picture
from trellis_core.sampling.edit import (
    REPEATS,
    Edit,
    Extent,
    Layer,
    TakenOver,
    buried,
    layers_of,
    overlay,
    said,
)
from trellis_core.sampling.multi_image import STOCHASTIC, unused_pictures
from trellis_core.sampling.repaint import Known
from trellis_core.sampling.run import Run, edited
from trellis_core.sampling.schedule import Overrides, override
from trellis_core.sparse.ops import first_sample, repeated
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.bundle import Bundle, ModelIdentity, provenance

STRUCTURE_LATENT = "structure_latent"  # names of tensors in a bundle
LATENT = "latent"
LATENTS = ("coords", LATENT)


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
        run = self._start(condition, {"structure": structure, "latents": latents}, seed, num_samples, runtime)
        images, facts = self._condition(condition, run)
        with torch.inference_mode(), memory_errors("sampling"):
            z, coords = self._sample_structure(run)
            latent = self._sample_latents(coords, run)
        return self._bundle(run, {STRUCTURE_LATENT: z, **tensors_of(latent)}, images, facts, seed)

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
        run = self._start(condition, {"latents": latents}, seed, num_samples, runtime)
        images, facts = self._condition(condition, run)
        with torch.inference_mode(), memory_errors("sampling"):
            with self.networks.use(LATENT_FLOW, runtime) as flow:
                voxels = voxels_of(source, flow.resolution, runtime)
            latent = self._sample_latents(repeated(voxels, num_samples), run)
        tensors = tensors_of(latent)
        if isinstance(source, Bundle) and STRUCTURE_LATENT in source.tensors:
            tensors[STRUCTURE_LATENT] = source.tensors[STRUCTURE_LATENT][:1].repeat(num_samples, 1, 1, 1, 1)
        return self._bundle(run, tensors, images, facts, seed)

    def edit(
        self,
        bundle: Bundle,
        regions: Sequence[Region],
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        mode: str = STOCHASTIC,
        seed: int = 42,
        preserve_texture: bool = False,
        structure: Overrides = None,
        latents: Overrides = None,
        repeats: int = REPEATS,
        freedom: float = 0.0,
        background: str = "auto",
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Sample regions of an object anew, after a picture or a prompt of what it shall look like.

        Voxels belong to a region when their centres do. Outside, structure and latents stay what they are,
        bit for bit; inside, both are sampled so that they fit (RePaint: `repeats` above 1 goes back and does
        each step again). With `preserve_texture` voxels inside that were there before keep their latents, and
        with them color and fine shape, for one latent holds both: only what is new is generated.
        A part that belongs to something larger takes its color from there: a corner of a blue back stays
        blue, whatever the prompt says. `freedom` above 0 lets the latents follow the prompt or picture
        alone for that share of the way, at 1 all of it.
        All samples of a bundle are edited alike. The result is a bundle; what changed is told in
        `info["edit"]`: "voxels" (of the structure, inside and outside, as sampled and in the result),
        "tokens" (kept and made), "drift" (how far from what is kept the model's own result would have been
        there; 1 is the spread of the latents).
        Raises `InputError` for a bundle of another model and for a region that holds no voxel, and what
        `sample` raises.
        """
        bundle.require_model(self.identity)
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        changes = {"structure": structure, "latents": latents}
        run = self._start(condition, changes, seed, bundle.info["num_samples"], runtime)
        inside = cells_inside(regions, bundle.info["resolution"]).to(runtime.device)
        edit = Edit(inside, run.draw, repeats, freedom)
        old = {name: tensor.to(runtime.device) for name, tensor in bundle.tensors.items()}
        images, facts = self._condition(condition, run)
        with torch.inference_mode(), memory_errors("sampling"):
            z, raw = self._sample_structure(run, old, edit)
            coords = edit.merge(old["coords"], raw, run.num_samples)
            voxels = edit.changes(old["coords"], raw, coords)
            steps = run.samplers["structure"].steps
            runtime.report("structure", steps, steps, said(voxels))
            kept = edit.taken_over(coords, old["coords"], old[LATENT], survivors=preserve_texture)
            latent = self._sample_latents(coords, run, kept, edit.freedom)
        record = {
            "regions": [region.facts() for region in regions],
            "condition": facts,
            "seed": seed,
            "samplers": {name: asdict(sampler) for name, sampler in run.samplers.items()},
            "repeats": repeats,
            "freedom": freedom,
            "preserve_texture": preserve_texture,
            "voxels": voxels,
            "tokens": kept.counts(),
            "drift": dict(run.drift),
        }
        tensors = {**tensors_of(latent), **buried(bundle.tensors, LATENTS, Extent.whole(inside))}
        return edited(bundle, {STRUCTURE_LATENT: z, **tensors}, record, images)

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
        bundle.require_model(self.identity)
        wanted = self.formats if formats is None else tuple(formats)
        for name in wanted:
            self._require_format(name)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        layers = layers_of(bundle.tensors, LATENTS)
        parts: dict[str, list[Any]] = {}
        with torch.inference_mode(), memory_errors("decoding"):
            runtime.report("decode", 0, len(wanted))
            for number, name in enumerate(wanted, start=1):
                with self.networks.use(DECODERS[name], runtime) as decoder:
                    decoded = self._decode(decoder, layers, bundle.info["num_samples"], runtime)
                    parts[name] = stages.READ[name](decoder, decoded)
                runtime.report("decode", number, len(wanted))
        return [
            Decoded(**{name: values[sample] for name, values in parts.items()})
            for sample in range(bundle.info["num_samples"])
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
        made = self.export_all(
            decoded,
            [settings or ExportSettings()],
            color=color,
            views=views,
            extras=extras,
            on_progress=on_progress,
            cancel=cancel,
        )
        return next(asset for _, asset in made)

    @torch.inference_mode()  # as a decorator it is off while the caller works
    def export_all(
        self,
        decoded: Decoded,
        wanted: Sequence[ExportSettings],
        *,
        color: str = "auto",
        views: ViewBakeSettings = STANDARD,
        extras: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Asset]]:
        """Several assets of one mesh that share what work they can, each with its number in `wanted`.

        Those with the most faces come first; otherwise as `export`.
        """
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        common: dict[str, Any] = {"runtime": runtime, "extras": extras or {}, "writers": WRITERS}
        appearance = decoded.appearance(color)
        with memory_errors("export"):
            if appearance is None:
                yield from build_assets(decoded.voxel_mesh(), wanted, **common)
                return
            mesh, colors = decoded.surface()
            assert decoded.mesh is not None
            common |= {"resolution": decoded.mesh.resolution, "colors": colors, "views": views}
            yield from build_viewed_assets(mesh, appearance, wanted, **common)

    # --- what a run is made of ---

    def _start(
        self,
        condition: Condition,
        changes: Mapping[str, Overrides],  # of the stages that the run has
        seed: int,
        num_samples: int,
        runtime: Runtime,
    ) -> Run:
        """Check what was asked for, before anything is read."""
        self._require_encoder(condition)
        released = {"structure": self.settings.structure_sampler, "latents": self.settings.latent_sampler}
        return Run(
            samplers={stage: override(released[stage], change) for stage, change in changes.items()},
            num_samples=num_samples,
            generator=torch.Generator().manual_seed(seed),
            runtime=runtime,
            mode=condition.mode,
        )

    def _condition(self, condition: Condition, run: Run) -> tuple[list[Image.Image], dict[str, Any]]:
        """Fill `run.conds`; the prepared pictures, and the facts that are kept about the condition."""
        size = self.settings.image_size
        images = prepare_pictures(condition, size, run.runtime)
        with torch.inference_mode(), memory_errors("encoding"):
            if condition.prompt is not None:
                run.conds[size], uncond = self._encode_prompt(condition.prompt, run.runtime)
                if uncond is not None:
                    run.unconds[size] = uncond
            else:
                note = unused_pictures(condition.mode, len(images), run.samplers)
                run.conds[size] = self._encode_pictures(images, note, run.runtime)
        return images, condition.facts()

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

    def _sample_structure(
        self,
        run: Run,
        old: Mapping[str, Tensor] | None = None,  # tensors of a bundle, to sample within the region of
        edit: Edit | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The structure latent and the voxels int32 [N, 4] it decodes to."""
        with self.networks.use(STRUCTURE_FLOW, run.runtime) as flow:
            known = None
            if edit is not None and old is not None:
                latent = self._structure_latent(old, len(edit.inside), flow.resolution, run)
                known = edit.structure(latent, run.samplers["structure"].sigma_min)
            noise = run.draw(run.num_samples, flow.in_channels, *[flow.resolution] * 3)
            z = self._integrate(flow, noise, "structure", run, known)
        with self.networks.use(STRUCTURE_DECODER, run.runtime) as decoder:
            logits = decoder(z)
            if edit is not None:
                return z, occupied_cells(logits, len(edit.inside))
            return z, stages.occupied_voxels(logits)

    def _structure_latent(
        self, old: Mapping[str, Tensor], grid: int, latent_resolution: int, run: Run
    ) -> Tensor:
        """That of a saved run: kept in the bundle, or encoded."""
        if STRUCTURE_LATENT in old:
            return old[STRUCTURE_LATENT]
        if STRUCTURE_ENCODER not in self.networks:
            raise ModelError(
                f"the bundle holds no structure latent, and the model `{self.identity.name}` has no "
                f"`{STRUCTURE_ENCODER}` to make one",
                hint="edit a bundle that was sampled from a picture or a prompt, or a variant of one",
            )
        with self.networks.use(STRUCTURE_ENCODER, run.runtime) as encoder:
            return encode_cells(encoder, old["coords"], run.num_samples, grid, latent_resolution)

    def _sample_latents(
        self, coords: Tensor, run: Run, kept: TakenOver | None = None, freedom: float = 0.0
    ) -> SparseTensor:
        """Raw latents on these voxels; what is kept of old ones comes back bit for bit."""
        if kept is not None and kept.whole:
            return SparseTensor(kept.latents, coords, run.num_samples)
        normalization = self.settings.normalization
        sigma_min = run.samplers["latents"].sigma_min
        known = None if kept is None else kept.known(normalization, sigma_min, freedom)
        with self.networks.use(LATENT_FLOW, run.runtime) as flow:
            noise = SparseTensor(run.draw(len(coords), flow.in_channels), coords, run.num_samples)
            latent = self._integrate(flow, noise, "latents", run, known)
        latent = stages.denormalize(latent, normalization)
        return latent if kept is None else kept.put_back(latent)

    def _integrate(self, flow: Any, noise: Any, stage: str, run: Run, known: Known | None) -> Any:
        size = self.settings.image_size
        conds, settings, uncond = run.conds[size], run.samplers[stage], run.unconds.get(size)
        x = stages.sample_flow(
            flow, noise, conds, settings, run.runtime, stage, uncond=uncond, mode=run.mode, known=known
        )
        if known is None:
            return x
        run.drift[stage] = known.drift(x)
        return known.put_back(x)

    def _decode(self, decoder: Any, layers: Sequence[Layer], samples: int, runtime: Runtime) -> SparseTensor:
        """What a decoder makes of an object: outside of an edit what it was, to the last bit."""
        decoded: SparseTensor | None = None
        for layer in layers:
            coords, feats = (layer.tensors[name].to(runtime.device) for name in LATENTS)
            made: SparseTensor = decoder(SparseTensor(feats, coords, samples))
            if decoded is None or layer.extent is None:
                decoded = made
            else:
                decoded = overlay(decoded, made, layer.extent, stages.cells_per_voxel(decoder))
        assert decoded is not None  # there is always one layer
        return decoded

    def _bundle(
        self,
        run: Run,
        tensors: Mapping[str, Tensor],
        images: Sequence[Image.Image],
        condition: Mapping[str, Any],
        seed: int,
    ) -> Bundle:
        with self.networks.use(LATENT_FLOW, run.runtime) as flow:
            resolution = flow.resolution
        return run.bundle(
            tensors, images, model=self.identity, seed=seed, condition=condition, resolution=resolution
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
        voxels = first_sample(source.tensors["coords"])
    else:
        voxels = occupied_by(Mesh(normalized(source.vertices), source.faces), resolution)
    runtime.report("voxelize", 1, 1)
    return voxels.to(runtime.device)


def tensors_of(latent: SparseTensor) -> dict[str, Tensor]:
    """As a bundle keeps them."""
    return {"coords": latent.coords, LATENT: latent.feats.float()}
