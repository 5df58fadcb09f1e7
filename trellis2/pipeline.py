"""One TRELLIS.2 run, top to bottom.

    condition -> tokens -> structure -> shape latent -> texture latent -> voxels, mesh -> asset
    \\_________________________ sample() -> Bundle ________________/ \\_ decode() _/ \\ export()

A condition is a picture, several pictures of one object, or a prompt (`condition.py`). `variant()` takes the
structure from a mesh or another run instead of sampling it, `edit()` samples a region of a bundle anew.

Stages are in `stages.py`; this file decides their order and what is drawn when. Random numbers come
from one CPU generator seeded after preprocessing, in the released order: structure, shape (each
pass), texture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trellis2 import stages
from trellis2.condition import Prompt, prepare_pictures, read_prompt, unlike_training
from trellis2.dual_grid import normalize_mesh
from trellis2.settings import MAX_TOKENS, PipelineSettings, PipelineType, ShapePass, TextSettings
from trellis2.texturing import encode_shape, mesh_voxels, own_uvs
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_assets, texture_mesh
from trellis_core.geometry.occupancy import normalized, occupied_by
from trellis_core.geometry.region import Region, cells_inside, cut_cells
from trellis_core.geometry.types import Asset, Mesh, PBRVoxels, VoxelMesh
from trellis_core.io import WRITERS
from trellis_core.memory.residency import memory_errors
from trellis_core.models.familiarity import familiarity
from trellis_core.models.networks import Networks
from trellis_core.models.structure_vae import encode_cells, occupied_cells
from trellis_core.runtime import Progress, Runtime, cancellable
from trellis_core.sampling.condition import Condition, Picture
from trellis_core.sampling.edit import REPEATS, Edit, Extent, TakenOver, buried, layers_of, said
from trellis_core.sampling.multi_image import STOCHASTIC, unused_pictures
from trellis_core.sampling.normalization import Normalization
from trellis_core.sampling.repaint import Known
from trellis_core.sampling.run import Run, edited
from trellis_core.sampling.schedule import Overrides, override
from trellis_core.sparse.ops import first_sample, repeated
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.bundle import Bundle, ModelIdentity, provenance

STRUCTURE_ENCODER = "sparse_structure_encoder"
STRUCTURE_LATENT = "structure_latent"  # names of tensors in a bundle
STRUCTURE = "structure_coords"
DRAFT = "draft_latent"
SHAPE = "shape_latent"
TEXTURE = "texture_latent"
LATENTS = ("coords", SHAPE, TEXTURE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(Run):
    """What the stages of one run share."""

    kind: PipelineType
    max_tokens: int = MAX_TOKENS


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
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(pipeline_type)
        changes = {"structure": structure, "shape": shape, "texture": texture}
        run = self._start(condition, kind, changes, seed, num_samples, runtime, max_tokens)
        images, facts = self._condition(condition, run, kind.image_sizes)
        with torch.inference_mode(), memory_errors("sampling"):
            z, coords = self._sample_structure(run)
            latents, resolution = self._sample_shape(coords, run)
            color = self._sample_texture(latents[-1], run)
        tensors = {STRUCTURE_LATENT: z, STRUCTURE: coords, **self._latents(latents, color)}
        return self._bundle(run, tensors, images, facts, seed, resolution)

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
        pipeline_type: str | None = None,
        shape: Overrides = None,
        texture: Overrides = None,
        background: str = "auto",
        max_tokens: int = MAX_TOKENS,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Keep a coarse shape and sample new detail and material for it.

        The shape is that of a mesh (z up, any size and place), cut into the cells of the shape latent by an
        exact test of boxes against triangles, or of the first sample of a bundle, which also decides the
        `pipeline_type` unless one is given. Everything else is as in `sample`.
        Raises `InputError` for a mesh without faces and for a bundle on another grid.
        """
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        if pipeline_type is None and isinstance(source, Bundle):
            pipeline_type = source.info.get("pipeline_type")
        kind = self.settings.pipeline_type(pipeline_type)
        changes = {"shape": shape, "texture": texture}
        run = self._start(condition, kind, changes, seed, num_samples, runtime, max_tokens)
        last = kind.shape_passes[-1]
        cells, resolution, structure = coarse_shape(source, run)
        images, facts = self._condition(condition, run, {last.image_size, kind.texture_image_size})
        with torch.inference_mode(), memory_errors("sampling"):
            latent = self._shape_pass(repeated(cells, num_samples), last, run)
            color = self._sample_texture(latent, run)
        tensors = {STRUCTURE: repeated(structure, num_samples), **self._latents((latent,), color)}
        if isinstance(source, Bundle) and STRUCTURE_LATENT in source.tensors:
            tensors[STRUCTURE_LATENT] = source.tensors[STRUCTURE_LATENT][:1].repeat(num_samples, 1, 1, 1, 1)
        return self._bundle(run, tensors, images, facts, seed, resolution)

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
        shape: Overrides = None,
        texture: Overrides = None,
        repeats: int = REPEATS,
        freedom: float = 0.0,
        background: str = "auto",
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Bundle:
        """Sample regions of an object anew, after a picture or a prompt of what it shall look like.

        Cells of the latents belong to a region when their centres do. Outside, structure and latents stay
        what they are, bit for bit; inside, both are sampled so that they fit (RePaint: `repeats` above 1 goes
        back and does each step again). Voxels that they decode to are taken from the edited object only where
        their own centres lie in the region. With `preserve_texture` cells inside that were there before keep
        their texture latents: the shape changes, and the old surface keeps its colors where it still is;
        only where something new grows it gets colors of its own.
        A part that belongs to something larger takes its color from there: a corner of a blue back stays
        blue, whatever the prompt says. `freedom` above 0 lets the colors follow the prompt or picture
        alone for that share of the way, at 1 all of it.
        All samples of a bundle are edited alike. The result is a bundle; what changed is told in
        `info["edit"]`: "voxels" (of the structure, inside and outside, as sampled and in the result),
        "tokens" (kept and made), "drift" (how far from what is kept the model's own result would have been
        there; 1 is the spread of the latents).
        Raises `InputError` for a bundle of another model and for a region that holds no cell, and what
        `sample` raises.
        """
        bundle.require_model(self.identity)
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(bundle.info["pipeline_type"])
        changes = {"structure": structure, "shape": shape, "texture": texture}
        run = self._start(condition, kind, changes, seed, bundle.info["num_samples"], runtime)
        grids = kind.structure_resolution, bundle.info["resolution"] // kind.factor
        coarse, fine = (
            Edit(cells_inside(regions, n).to(runtime.device), run.draw, repeats, freedom) for n in grids
        )
        old = {name: tensor.to(runtime.device) for name, tensor in bundle.tensors.items()}
        images, facts = self._condition(condition, run, kind.image_sizes)
        with torch.inference_mode(), memory_errors("sampling"):
            z, raw = self._sample_structure(run, old, coarse)
            coords = coarse.merge(old[STRUCTURE], raw, run.num_samples)
            voxels = coarse.changes(old[STRUCTURE], raw, coords)
            steps = run.samplers["structure"].steps
            runtime.report("structure", steps, steps, said(voxels))
            latents = self._edit_shape(coords, old, coarse, fine, bundle.info["resolution"], run)
            tokens = latents[-1].coords
            kept = fine.taken_over(tokens, old["coords"], old[TEXTURE], survivors=preserve_texture)
            color = self._sample_texture(latents[-1], run, kept, fine.freedom)
        tensors = {STRUCTURE_LATENT: z, STRUCTURE: coords, **self._latents(latents, color)}
        occupied = torch.cat([tokens, old["coords"]])[:, 1:].unique(dim=0)
        extent = Extent(fine.inside, *cut_cells(regions, fine.inside, occupied, kind.factor))
        tensors |= buried(bundle.tensors, LATENTS, extent)
        record = {
            "regions": [region.facts() for region in regions],
            "condition": facts,
            "seed": seed,
            "samplers": {name: asdict(sampler) for name, sampler in run.samplers.items()},
            "repeats": repeats,
            "freedom": freedom,
            "preserve_texture": preserve_texture,
            "voxels": voxels,
            "tokens": fine.taken_over(tokens, old["coords"], old[SHAPE]).counts(),
            "drift": dict(run.drift),
        }
        return edited(bundle, tensors, record, images)

    def decode(
        self,
        bundle: Bundle,
        *,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[VoxelMesh]:
        """Latents to raw meshes with material voxels, one per sample.

        An edited object is decoded once for each edit and once for what it was before: outside of a region
        its voxels are what they were, to the last bit.
        Raises `InputError` when the bundle was made by another model.
        """
        bundle.require_model(self.identity)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        resolution = bundle.info["resolution"]
        with (
            torch.inference_mode(),
            memory_errors("decoding"),
            self.networks.use("shape_slat_decoder", runtime) as shape_decoder,
            self.networks.use("tex_slat_decoder", runtime) as texture_decoder,
        ):
            decoded = None
            for layer in layers_of(bundle.tensors, LATENTS):
                coords, shape, texture = (layer.tensors[name].to(runtime.device) for name in LATENTS)
                latent = SparseTensor(shape, coords, bundle.info["num_samples"])
                color = latent.replace(texture)
                made = stages.decode_latents(shape_decoder, texture_decoder, latent, color, runtime)
                decoded = made if decoded is None else stages.overlaid(decoded, made, layer, runtime)
            assert decoded is not None  # there is always one layer
            return stages.voxel_meshes(decoded, shape_decoder, resolution)

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
        wanted = [settings or self.export_settings()]
        made = self.export_all(shape, wanted, extras=extras, on_progress=on_progress, cancel=cancel)
        return next(asset for _, asset in made)

    @torch.inference_mode()  # as a decorator it is off while the caller works
    def export_all(
        self,
        shape: VoxelMesh,
        wanted: Sequence[ExportSettings],
        *,
        extras: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Asset]]:
        """Several assets of one shape that share what work they can, each with its number in `wanted`.

        Those with the most faces come first.
        """
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        with memory_errors("export"):
            yield from build_assets(shape, wanted, runtime=runtime, extras=extras or {}, writers=WRITERS)

    def export_settings(self, **changes: Any) -> ExportSettings:
        """Export settings that suit this model's shapes, with `changes`."""
        return ExportSettings(**{**self.settings.export, **changes})

    def texture(
        self,
        mesh: Mesh,
        picture: Picture | None = None,
        *,
        prompt: str | None = None,
        pictures: Sequence[Picture] = (),
        mode: str = STOCHASTIC,
        seed: int = 42,
        pipeline_type: str | None = None,
        texture: Overrides = None,
        background: str = "auto",
        keep_uv: bool = False,
        export: ExportSettings | None = None,
        on_progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Asset:
        """Paint a mesh (z up, any size) after a picture, several, or a prompt.

        It is unwrapped anew; with `keep_uv` its own texture coordinates are used (see `own_uvs`). The result
        lies in the unit cube. Raises what `sample` raises, `InputError` for coordinates that cannot be used,
        and `ModelError` when the model has no shape encoder.
        """
        condition = Condition.of(picture, pictures, prompt, mode, background)
        runtime = self.runtime.reporting(cancellable(on_progress, cancel))
        kind = self.settings.pipeline_type(pipeline_type)
        run = self._start(condition, kind, {"texture": texture}, seed, 1, runtime)
        mesh, note = Mesh(normalize_mesh(mesh.vertices), mesh.faces, mesh.uvs if keep_uv else None), ""
        if keep_uv:
            mesh, note = own_uvs(mesh, export or ExportSettings(), runtime.kernels)
        runtime.report("voxelize", 0, 1, note)
        grid = mesh_voxels(mesh, kind.resolution)
        runtime.report("voxelize", 1, 1)
        _, facts = self._condition(condition, run, {kind.texture_image_size})
        with torch.inference_mode(), memory_errors("texturing"):
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
            extras = provenance(self._bundle(run, {}, (), facts, seed, kind.resolution))
            return texture_mesh(
                mesh, voxels, export or ExportSettings(), runtime=runtime, extras=extras, writers=WRITERS
            )

    # --- what a run is made of ---

    def _start(
        self,
        condition: Condition,
        kind: PipelineType,
        changes: Mapping[str, Overrides],  # of the stages that the run has
        seed: int,
        num_samples: int,
        runtime: Runtime,
        max_tokens: int = MAX_TOKENS,
    ) -> Sampling:
        """Check what was asked for, before anything is read."""
        if condition.prompt is not None:
            self._require_text()
        released = {
            "structure": self.settings.structure_sampler,
            "shape": self.settings.shape_sampler,
            "texture": self.settings.texture_sampler,
        }
        return Sampling(
            kind=kind,
            samplers={stage: override(released[stage], change) for stage, change in changes.items()},
            num_samples=num_samples,
            max_tokens=max_tokens,
            generator=torch.Generator().manual_seed(seed),
            runtime=runtime,
            mode=condition.mode,
        )

    def _require_text(self) -> TextSettings:
        if self.settings.text is None:
            raise UsageError(
                f"the model `{self.identity.name}` takes pictures only: it has no text encoder",
                hint="choose a model whose `pipeline.json` has a `text_cond_model`, or give a picture",
            )
        return self.settings.text

    def _condition(
        self, condition: Condition, run: Sampling, sizes: Collection[int]
    ) -> tuple[list[Image.Image], dict[str, Any]]:
        """Fill `run.conds`; the prepared pictures, and the facts that are kept about the condition."""
        images = prepare_pictures(condition, run.runtime)
        with torch.inference_mode(), memory_errors("encoding"):
            if condition.prompt is not None:
                return images, condition.facts(self._encode_prompt(condition.prompt, run, sizes).text)
            return images, condition.facts(None, self._encode_pictures(images, run, sizes))

    def _encode_pictures(
        self, images: Sequence[Image.Image], run: Sampling, sizes: Collection[int]
    ) -> list[float]:  # how familiar each picture is; empty when the model does not say
        """Fill `run.conds` for every picture size the run needs; warns of pictures unlike any it knows."""
        steps = len(sizes) * len(images)
        run.runtime.report("condition", 0, steps, unused_pictures(run.mode, len(images), run.samplers))
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

    def _encode_prompt(self, text: str, run: Sampling, sizes: Collection[int]) -> Prompt:
        """Fill `run.conds` with the same tokens for every size."""
        run.runtime.report("condition", 0, 1)
        with self.networks.use("text_encoder", run.runtime) as encoder:
            prompt = read_prompt(text, encoder.tokenizer, self._require_text())
            tokens = stages.encode_prompt(encoder, prompt.ids, run.runtime)
        run.conds.update(dict.fromkeys(sizes, (tokens.expand(run.num_samples, -1, -1),)))
        run.runtime.report("condition", 1, 1, prompt.note)
        return prompt

    def _sample_structure(
        self,
        run: Sampling,
        old: Mapping[str, Tensor] | None = None,  # tensors of a bundle, to sample within the region of
        edit: Edit | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The structure latent, and token coordinates int32 [N, 4] of the first shape pass."""
        grid = run.kind.structure_resolution
        with self.networks.use("sparse_structure_flow_model", run.runtime) as flow:
            known = None
            if edit is not None and old is not None:
                latent = self._structure_latent(old, grid, flow.resolution, run)
                known = edit.structure(latent, run.samplers["structure"].sigma_min)
            noise = run.draw(run.num_samples, flow.in_channels, *[flow.resolution] * 3)
            z = self._integrate(flow, noise, "structure", run.kind.structure_image_size, run, known)
        with self.networks.use("sparse_structure_decoder", run.runtime) as decoder:
            cells = occupied_cells if edit is not None else stages.occupied_cells
            return z, cells(decoder(z), grid)

    def _structure_latent(
        self, old: Mapping[str, Tensor], grid: int, latent_resolution: int, run: Sampling
    ) -> Tensor:
        """That of a saved run: kept in the bundle, or encoded."""
        if STRUCTURE_LATENT in old:
            return old[STRUCTURE_LATENT]
        if STRUCTURE_ENCODER not in self.networks:
            raise ModelError(
                f"the bundle holds no structure latent, and the model `{self.identity.name}` has no "
                f"`{STRUCTURE_ENCODER}` to make one",
                hint="edit a bundle that this version of `trellis` sampled from a picture or a prompt",
            )
        with self.networks.use(STRUCTURE_ENCODER, run.runtime) as encoder:
            return encode_cells(encoder, old[STRUCTURE], run.num_samples, grid, latent_resolution)

    def _sample_shape(self, coords: Tensor, run: Sampling) -> tuple[tuple[SparseTensor, ...], int]:
        """Raw shape latents, one per pass, and the voxel grid that the last one decodes to."""
        draft, *detail = run.kind.shape_passes
        latents: tuple[SparseTensor, ...] = (self._shape_pass(coords, draft, run),)
        resolution = draft.resolution
        for part in detail:
            tokens = self._finer_tokens(latents[-1], resolution, part.resolution, run.max_tokens, run)
            if tokens.resolution != part.resolution:
                note = lowered(part, tokens.resolution, run)
                run.runtime.report("shape", 0, run.samplers["shape"].steps, note)
            latents += (self._shape_pass(tokens.coords, part, run),)
            resolution = tokens.resolution
        return latents, resolution

    def _edit_shape(
        self,
        coords: Tensor,  # int32 [N, 4]  of the edited structure
        old: Mapping[str, Tensor],
        coarse: Edit,
        fine: Edit,
        resolution: int,
        run: Sampling,
    ) -> tuple[SparseTensor, ...]:
        """Raw shape latents, one per pass, around those outside of the region."""
        draft, *detail = run.kind.shape_passes
        latents: tuple[SparseTensor, ...] = ()
        if detail:
            kept = coarse.taken_over(coords, old[STRUCTURE], old[DRAFT]) if DRAFT in old else None
            latents = (self._shape_pass(coords, draft, run, kept),)
            tokens = self._finer_tokens(latents[0], draft.resolution, resolution, None, run)
            coords = fine.merge(old["coords"], tokens.coords, run.num_samples)
        kept = fine.taken_over(coords, old["coords"], old[SHAPE])
        return (*latents, self._shape_pass(coords, run.kind.shape_passes[-1], run, kept))

    def _finer_tokens(
        self, latent: SparseTensor, draft: int, resolution: int, max_tokens: int | None, run: Sampling
    ) -> stages.CascadeTokens:
        with self.networks.use("shape_slat_decoder", run.runtime) as decoder:
            voxels = decoder.upsample(latent, decoder.levels)
            return stages.cascade_tokens(voxels, draft, resolution, max_tokens, decoder.factor)

    def _shape_pass(
        self, coords: Tensor, part: ShapePass, run: Sampling, kept: TakenOver | None = None
    ) -> SparseTensor:
        """Raw shape latent on these tokens."""
        with self.networks.use(part.model, run.runtime) as flow:
            noise = SparseTensor(run.draw(len(coords), flow.in_channels), coords, batch_size=run.num_samples)
            return self._sample_latent(
                flow, noise, "shape", part.image_size, self.settings.shape_normalization, run, kept
            )

    def _sample_texture(
        self, latent: SparseTensor, run: Sampling, kept: TakenOver | None = None, freedom: float = 0.0
    ) -> SparseTensor:
        """Raw texture latent on the tokens of the raw shape latent."""
        shape = stages.normalize(latent, self.settings.shape_normalization)
        with self.networks.use(run.kind.texture_model, run.runtime) as flow:
            noise = shape.replace(run.draw(len(shape), flow.in_channels - shape.feats.shape[1]))
            return self._sample_latent(
                flow,
                noise,
                "texture",
                run.kind.texture_image_size,
                self.settings.texture_normalization,
                run,
                kept,
                freedom,
                concat_cond=shape,
            )

    def _sample_latent(
        self,
        flow: Any,
        noise: SparseTensor,
        stage: str,
        image_size: int,
        normalization: Normalization,
        run: Sampling,
        kept: TakenOver | None,
        freedom: float = 0.0,
        **inputs: SparseTensor,
    ) -> SparseTensor:
        """Raw latent; what is kept of an old one comes back bit for bit."""
        if kept is not None and kept.whole:
            return noise.replace(kept.latents)
        known = None
        if kept is not None:
            known = kept.known(normalization, run.samplers[stage].sigma_min, freedom)
        latent = self._integrate(flow, noise, stage, image_size, run, known, **inputs)
        latent = stages.denormalize(latent, normalization)
        return latent if kept is None else kept.put_back(latent)

    def _integrate(
        self,
        flow: Any,
        noise: Any,
        stage: str,
        image_size: int,
        run: Sampling,
        known: Known | None,
        **inputs: Any,
    ) -> Any:
        x = stages.sample_flow(
            flow,
            noise,
            run.conds[image_size],
            run.samplers[stage],
            run.runtime,
            stage,
            mode=run.mode,
            known=known,
            **inputs,
        )
        if known is None:
            return x
        run.drift[stage] = known.drift(x)
        return known.put_back(x)

    def _latents(self, shapes: Sequence[SparseTensor], color: SparseTensor) -> dict[str, Tensor]:
        """Tensors of a bundle."""
        latent = shapes[-1]
        found = {"coords": latent.coords, SHAPE: latent.feats.float(), TEXTURE: color.feats.float()}
        return found if len(shapes) == 1 else {**found, DRAFT: shapes[0].feats.float()}

    def _bundle(
        self,
        run: Sampling,
        tensors: Mapping[str, Tensor],
        images: Sequence[Image.Image],
        condition: Mapping[str, Any],
        seed: int,
        resolution: int,
    ) -> Bundle:
        facts = {"pipeline_type": run.kind.name, "resolution": resolution}
        return run.bundle(tensors, images, model=self.identity, seed=seed, condition=condition, **facts)


def coarse_shape(source: Mesh | Bundle, run: Sampling) -> tuple[Tensor, int, Tensor]:
    """Cells int32 [N, 3] of the shape latent, the voxel grid, and cells int32 [S, 3] of the structure."""
    run.runtime.report("voxelize", 0, 1)
    kind = run.kind
    if isinstance(source, Bundle):
        if source.info.get("pipeline_type") != kind.name or SHAPE not in source.tensors:
            raise InputError(
                f"the bundle has no cells of the pipeline type `{kind.name}`",
                hint="give a bundle of a TRELLIS.2 model and leave the pipeline type out, or give a mesh",
            )
        resolution = source.info["resolution"]
        cells, structure = (first_sample(source.tensors[name]) for name in ("coords", STRUCTURE))
    else:
        mesh = Mesh(normalized(source.vertices), source.faces)
        draft, *detail = kind.shape_passes
        grids: Sequence[int] = (kind.resolution,)
        if detail:
            grids = stages.cascade_resolutions(draft.resolution, kind.resolution)
        for resolution in grids:
            cells = occupied_by(mesh, resolution // kind.factor)
            if len(cells) < run.max_tokens:
                break
        if resolution != kind.resolution:
            run.runtime.report("voxelize", 0, 1, lowered(kind.shape_passes[-1], resolution, run))
        structure = occupied_by(mesh, kind.structure_resolution)
    run.runtime.report("voxelize", 1, 1)
    return cells.to(run.runtime.device), resolution, structure


def lowered(part: ShapePass, resolution: int, run: Sampling) -> str:
    return (
        f"resolution lowered from {part.resolution} to {resolution}: "
        f"the object needs {run.max_tokens:,} tokens or more"
    )
