"""What each stage of TRELLIS v1 learns from data in the released layout: items of a micro-batch to losses.

The frozen encoder of pictures or prompts runs on the fly. Losses of the latent autoencoder are those of
`objectives.py`. Letters: B batch, M condition tokens, T packed voxels, C channels, S side of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trellis.data import (
    read_captions,
    read_condition,
    read_features,
    read_latent,
    read_occupancy,
    read_structure,
    read_surface,
    read_view,
)
from trellis.ingest import LATENT_ENCODER, encoder_stem
from trellis.loading import load_network
from trellis.models.latent_vae import SLatMeshDecoder
from trellis.objectives import LOSSES, Seen
from trellis.settings import (
    IMAGE_ENCODER,
    STRUCTURE_DECODER,
    STRUCTURE_ENCODER,
    TEXT_ENCODER,
    Normalization,
    PipelineSettings,
)
from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh
from trellis_core.models.image_encoder import prepare_images
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.data import Catalog, Entry
from trellis_core.training.image_losses import Perceptual
from trellis_core.training.losses import STRUCTURE_TERMS, flow_losses, structure_vae_losses
from trellis_core.training.objectives import (
    dropped,
    kl_divergence,
    reparameterized,
    without_condition,
)
from trellis_core.training.recipes import Recipe
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

Losses = Mapping[str, Tensor]


def objective(
    tuning: Tuning,
    source: Source,
    settings: PipelineSettings | None,
    data: Path,
    perceptual: Perceptual | None,
) -> LossesOf:
    """Indices of a micro-batch to losses, as the stage of the recipe asks."""
    if tuning.recipe.stage == "structure_vae":
        return lambda indices: structure_objective(tuning, indices)
    if tuning.recipe.stage == "latent_vae":
        return lambda indices: latent_objective(tuning, perceptual, indices)
    assert tuning.recipe.condition is not None
    text = tuning.recipe.condition.kind == "text"
    name = TEXT_ENCODER if text else IMAGE_ENCODER
    encoder = load_network(name, encoder_stem(name, source.stems), Runtime(kernels=tuning.kernels))
    facts = FlowFacts(
        encoder.to(tuning.device),
        normalization_of(tuning.recipe, settings, tuning.catalog),
        read_captions(data) if text else {},
    )
    return lambda indices: flow_objective(tuning, facts, indices)


# --- autoencoders ------------------------------------------------------------------------------------


def structure_objective(tuning: Tuning, indices: Sequence[int]) -> Losses:
    """One term between true and decoded occupancy, as the recipe weighs it, and KL."""
    weights, resolution = tuning.recipe.losses, tuning.recipe.data.resolution
    term = next(name for name in STRUCTURE_TERMS if weights.get(name))
    grids = read_all(tuning, indices, lambda entry: read_occupancy(entry, resolution))
    occupancy = torch.stack(grids).to(tuning.device)
    latent = tuning.recipe.trains[STRUCTURE_ENCODER].config["args"]
    side = resolution // 2 ** (len(latent["channels"]) - 1)
    shape = (len(occupancy), latent["latent_channels"], side, side, side)
    noise = torch.randn(shape, generator=tuning.noise, device=tuning.device)
    return structure_vae_losses(
        tuning.networks[STRUCTURE_ENCODER],
        tuning.networks[STRUCTURE_DECODER],
        occupancy,
        noise,
        term=term,  # type: ignore[arg-type]
        kl_weight=weights.get("kl", 0.0) / weights[term],
    )


@dataclass(frozen=True, slots=True)
class SeenItem:
    """One object, from one side."""

    coords: Tensor  # int32 [N, 3]
    feats: Tensor  # float32 [N, C]  picture features where an encoder learns, else the stored latent
    picture: Tensor  # float32 [3, S, S]
    alpha: Tensor  # float32 [1, S, S]
    camera: Camera
    surface: Mesh | None  # for the mesh decoder


def latent_objective(tuning: Tuning, perceptual: Perceptual | None, indices: Sequence[int]) -> Losses:
    """What a decoder makes of latents, before a black or a white background; with an encoder also KL.

    Random numbers in this order: views, backgrounds, the posterior's noise, where rays are looked at.
    """
    recipe, networks, device = tuning.recipe, dict(tuning.networks.items()), tuning.device
    encoder = networks.pop(LATENT_ENCODER, None)
    (decoder,) = networks.values()
    meshes = isinstance(decoder, SLatMeshDecoder)
    items = read_all(tuning, indices, lambda entry: read_seen(tuning, entry, surface=meshes))
    white = torch.randint(2, (len(items), 1), generator=tuning.choice).float()
    seen = Seen(
        pictures=torch.stack([item.picture for item in items]).to(device),
        alpha=torch.stack([item.alpha for item in items]).to(device),
        cameras=[item.camera for item in items],
        backgrounds=white.expand(-1, 3).to(device),
        generator=tuning.noise,
        truth=[item.surface.to(device) for item in items if item.surface is not None],
        runtime=Runtime(device=device, kernels=tuning.kernels),
        perceptual=perceptual,
    )
    x = packed([item.coords for item in items], [item.feats for item in items]).to(device)
    if encoder is None:
        return LOSSES[type(decoder)](decoder, x, seen, recipe.losses)
    mean, logvar = encoder(x)
    noise = torch.randn(mean.feats.shape, generator=tuning.noise, device=device)
    latent = mean.replace(reparameterized(mean.feats, logvar.feats, noise))
    losses = LOSSES[type(decoder)](decoder, latent, seen, recipe.losses)
    kl = kl_divergence(mean.feats, logvar.feats)
    return {**losses, "loss": losses["loss"] + recipe.losses.get("kl", 0.0) * kl, "kl": kl}


def read_seen(tuning: Tuning, entry: Entry, *, surface: bool) -> SeenItem:
    data, networks = tuning.recipe.data, tuning.networks
    features = LATENT_ENCODER in networks
    coords, feats = read_features(entry, data.resolution) if features else read_latent(entry)
    view = float(torch.rand((), generator=tuning.choice))
    picture, alpha, camera = read_view(entry, data.view_size, view)
    return SeenItem(coords, feats, picture, alpha, camera, read_surface(entry) if surface else None)


# --- flows -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What a flow learns with, besides its data."""

    encoder: Any  # of pictures or prompts; frozen
    normalization: Normalization | None  # of a latent flow's latents
    captions: Mapping[str, Sequence[str]]


def flow_objective(tuning: Tuning, facts: FlowFacts, indices: Sequence[int]) -> Losses:
    """Flow matching; random numbers in the released order: noise, times, dropped conditions."""
    recipe, device = tuning.recipe, tuning.device
    assert recipe.condition is not None
    assert recipe.times is not None
    items = read_all(tuning, indices, lambda entry: read_item(tuning, facts, entry))
    targets, starts = zip(*items, strict=True)
    x: Tensor | SparseTensor
    if recipe.stage == "structure_flow":
        x = torch.stack([target[1] for target in targets]).to(device)
        noise = torch.randn(x.shape, generator=tuning.noise, device=device)
    else:
        x = packed(*zip(*targets, strict=True)).to(device)
        noise = torch.randn(x.feats.shape, generator=tuning.noise, device=device)
    t = draw_times(recipe.times, len(indices), tuning.choice).to(device)
    drop = dropped(len(indices), recipe.condition.drop, tuning.choice)
    with torch.no_grad():
        cond, uncond = encoded(recipe, facts.encoder, starts, device)
    return flow_losses(tuning.flow, x, noise, t, without_condition(cond, drop, uncond))


def read_item(tuning: Tuning, facts: FlowFacts, entry: Entry) -> tuple[tuple[Tensor, Tensor], Any]:
    """Coordinates (none for a structure) and the latent that a flow learns, and a picture or a caption."""
    condition = tuning.recipe.condition
    assert condition is not None
    if tuning.recipe.stage == "structure_flow":
        target = torch.zeros(0), read_structure(entry)
    else:
        coords, feats = read_latent(entry)
        assert facts.normalization is not None
        target = coords, normalized(feats, facts.normalization)
    pick = float(torch.rand((), generator=tuning.choice))
    if condition.kind == "image":
        return target, read_condition(entry, condition.image_size, pick)
    captions = facts.captions.get(entry.sha256, ())
    if not captions:
        raise InputError("an item has no caption", hint="caption that asset, or leave it out")
    return target, captions[int(pick * len(captions))]


def encoded(
    recipe: Recipe, encoder: Any, starts: Sequence[Any], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Condition tokens [B, M, C], and those of the empty prompt [1, M, C]; None are zeros."""
    condition = recipe.condition
    assert condition is not None
    if condition.kind == "image":
        return encoder(prepare_images(torch.stack(list(starts)).to(device), condition.image_size)), None
    length = encoder.max_position_embeddings
    ids = [encoder.tokenizer.encode(text, length).ids for text in ("", *starts)]
    empty, tokens = encoder(torch.tensor(ids, device=device)).split([1, len(starts)])
    return tokens, empty


def normalized(feats: Tensor, vectors: Normalization) -> Tensor:
    return (feats - feats.new_tensor(vectors.mean)) / feats.new_tensor(vectors.std)


def normalization_of(
    recipe: Recipe, settings: PipelineSettings | None, catalog: Catalog
) -> Normalization | None:
    """The model's vectors, or without a model the statistics of the data; None where latents stay raw."""
    if recipe.stage != "latent_flow":
        return None
    if settings is not None:
        return settings.normalization
    entries = catalog.entries[:STATISTICS_OF]
    return Normalization(*latent_statistics(read_latent(entry)[1] for entry in entries))
