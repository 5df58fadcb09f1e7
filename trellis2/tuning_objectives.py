"""What each stage of TRELLIS.2 learns from data in the released layout: items of a micro-batch to losses.

Losses are those of `objectives.py`; pictures condition the flows.
Letters: B batch, T packed tokens or voxels, N tokens of a sample, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trellis2.dual_grid import extract_mesh
from trellis2.loading import IMAGE_ENCODER
from trellis2.objectives import materials_against, shape_vae_losses, surfaces_against, texture_vae_losses
from trellis2.settings import Normalization, PipelineSettings
from trellis2.weights import IMAGE_ENCODER as PUBLISHED_ENCODER
from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels
from trellis_core.models.image_encoder import prepare_images
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.data import (
    Catalog,
    Entry,
    read_condition,
    read_dual_grid,
    read_latent,
    read_materials,
    read_structure,
)
from trellis_core.training.image_losses import Perceptual
from trellis_core.training.losses import flow_losses
from trellis_core.training.recipes import Recipe, Stage
from trellis_core.training.released import LossesOf
from trellis_core.training.tuning import (
    STATISTICS_OF,
    Source,
    Tuning,
    draw_times,
    latent_statistics,
    packed,
    read_all,
)
from trellis_core.weights import hub
from trellis_core.weights.load import load_model

DRAWN: Mapping[Stage, str] = {"shape_vae": "mask", "texture_vae": "render"}  # losses that ask for pictures
CONDITIONED: Mapping[Stage, tuple[str, ...]] = {  # normalised latents that a flow reads
    "shape_flow": ("shape_latent",),
    "texture_flow": ("shape_latent", "pbr_latent"),
}

Normalizations = Mapping[str, Normalization]  # by role


def objective(
    tuning: Tuning, source: Source, settings: PipelineSettings | None, perceptual: Perceptual | None
) -> LossesOf:
    """Indices of a micro-batch to losses, as the stage of the recipe asks."""
    if not tuning.recipe.is_flow:
        return lambda indices: vae_objective(tuning, perceptual, indices)
    encoder = image_encoder(source, tuning.kernels).to(tuning.device).requires_grad_(False)
    vectors = normalizations_of(tuning.recipe, settings, tuning.catalog)
    return lambda indices: flow_objective(tuning, encoder, vectors, indices)


def image_encoder(source: Source, kernels: Kernels) -> nn.Module:
    stem = source.stems.get(IMAGE_ENCODER) or hub.find_checkpoint(PUBLISHED_ENCODER, Path())
    config = source.config_of(IMAGE_ENCODER, stem)
    return load_model(stem, source.classes, dtype=torch.float32, kernels=kernels, config=config)


# --- flows -------------------------------------------------------------------------------------------


def flow_objective(
    tuning: Tuning, encoder: nn.Module, vectors: Normalizations, indices: Sequence[int]
) -> Mapping[str, Tensor]:
    recipe, choice, device = tuning.recipe, tuning.choice, tuning.device
    assert recipe.condition is not None and recipe.times is not None
    size = recipe.condition.image_size

    def read(entry: Entry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        view = float(torch.rand((), generator=choice))
        return (*read_target(recipe.stage, entry, vectors), read_condition(entry, size, view))

    coords, x, extra, pictures = zip(*read_all(tuning, indices, read), strict=True)
    with torch.no_grad():
        tokens = encoder(prepare_images(torch.stack(pictures).to(device), size))
    kept = torch.rand(len(indices), generator=choice) >= recipe.condition.drop
    cond = tokens * kept.to(tokens)[:, None, None]
    t = draw_times(recipe.times, len(indices), choice).to(device)
    if recipe.stage == "structure_flow":
        dense = torch.stack(x).to(device)
        noise = torch.randn(dense.shape, generator=tuning.noise, device=device)
        return flow_losses(tuning.flow, dense, noise, t, cond)
    sparse = packed(coords, x).to(device)
    noise = torch.randn(sparse.feats.shape, generator=tuning.noise, device=device)
    if recipe.stage == "shape_flow":
        return flow_losses(tuning.flow, sparse, noise, t, cond)
    shape = sparse.replace(torch.cat(extra).to(device))
    return flow_losses(tuning.flow, sparse, noise, t, cond, concat_cond=shape)


def read_target(stage: Stage, entry: Entry, vectors: Normalizations) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, normalised latent, and the normalised shape latent that texture is given."""
    none = torch.zeros(0)
    if stage == "structure_flow":
        return none, read_structure(entry), none
    role = "shape_latent" if stage == "shape_flow" else "pbr_latent"
    coords, feats = read_latent(entry, role)
    feats = normalized(feats, vectors[role])
    if role == "shape_latent":
        return coords, feats, none
    other, shape = read_latent(entry, "shape_latent")
    if not torch.equal(other, coords):
        raise InputError("the shape and the texture latent lie on other tokens", hint="ingest the mesh again")
    return coords, feats, normalized(shape, vectors["shape_latent"])


def normalized(feats: Tensor, vectors: Normalization) -> Tensor:
    return (feats - torch.tensor(vectors.mean)) / torch.tensor(vectors.std)


def normalizations_of(recipe: Recipe, settings: PipelineSettings | None, catalog: Catalog) -> Normalizations:
    """The model's vectors, or without a model the statistics of the data, by role."""
    wanted = CONDITIONED.get(recipe.stage, ())
    if settings is not None:
        known = {"shape_latent": settings.shape_normalization, "pbr_latent": settings.texture_normalization}
        return {role: known[role] for role in wanted}
    entries = catalog.entries[:STATISTICS_OF]
    return {
        role: Normalization(*latent_statistics(read_latent(entry, role)[1] for entry in entries))
        for role in wanted
    }


# --- autoencoders ------------------------------------------------------------------------------------


def vae_objective(
    tuning: Tuning, perceptual: Perceptual | None, indices: Sequence[int]
) -> Mapping[str, Tensor]:
    if tuning.recipe.stage == "texture_vae":
        return texture_objective(tuning, perceptual, indices)
    encoder, decoder = tuning.networks.values()
    resolution = tuning.recipe.data.resolution
    coords, position, flags = zip(*read_all(tuning, indices, read_dual_grid), strict=True)
    voxels = packed(coords, position).to(tuning.device)
    surfaces = None
    if is_drawn(tuning.recipe):
        grids = zip(coords, position, flags, strict=True)
        truth = [true_surface(*grid, resolution).to(tuning.device) for grid in grids]
        surfaces = surfaces_against(truth, tuning.choice)
        decoder.resolution = resolution  # type: ignore[assignment]  # of the meshes that it is compared with
    flags_here, noise = torch.cat(flags).to(tuning.device), posterior_noise(tuning, encoder, voxels)
    return shape_vae_losses(
        encoder, decoder, voxels, flags_here, noise, render=surfaces, perceptual=perceptual
    )


def texture_objective(
    tuning: Tuning, perceptual: Perceptual | None, indices: Sequence[int]
) -> Mapping[str, Tensor]:
    encoder, decoder = tuning.networks.values()
    drawn, resolution = is_drawn(tuning.recipe), tuning.recipe.data.resolution
    parts = read_all(tuning, indices, read_worn if drawn else read_materials)
    attrs = packed([p[0] for p in parts], [p[1] for p in parts]).to(tuning.device)
    render = None
    if drawn:
        truth = [true_surface(p[0], p[2], p[3], resolution).to(tuning.device) for p in parts]
        render = materials_against(truth, attrs, resolution, tuning.choice)
    noise = posterior_noise(tuning, encoder, attrs)
    return texture_vae_losses(encoder, decoder, attrs, noise, render=render, perceptual=perceptual)


def is_drawn(recipe: Recipe) -> bool:
    return DRAWN[recipe.stage] in recipe.losses


def posterior_noise(tuning: Tuning, encoder: nn.Module, x: SparseTensor) -> Tensor:  # float32 [T, C]
    """For every token that the encoder will make of voxels."""
    step = torch.tensor([1, *[encoder.factor] * 3], device=x.device)
    tokens = len(torch.unique(x.coords // step, dim=0))
    channels = int(encoder.to_latent.out_features) // 2  # type: ignore[union-attr, arg-type]
    return torch.randn(tokens, channels, generator=tuning.noise, device=x.device)


def read_worn(entry: Entry) -> tuple[Tensor, ...]:
    """Materials and the surface that wears them: coordinates, attributes, dual vertices, crossings."""
    coords, attrs = read_materials(entry)
    other, vertices, crossings = read_dual_grid(entry)
    if not torch.equal(coords, other):
        raise InputError("materials and surface lie on other voxels", hint="ingest the mesh again")
    return coords, attrs, vertices, crossings


def true_surface(coords: Tensor, vertices: Tensor, crossings: Tensor, resolution: int) -> Mesh:
    return extract_mesh(coords, vertices, crossings, None, resolution)
