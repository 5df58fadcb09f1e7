"""Losses of the released TRELLIS.2 trainers, held against recorded ones.

Each function takes networks and a batch, with the random numbers already drawn, and returns its losses by
name; `loss` is what training differentiates. Rendering terms compare surfaces as random cameras see them
(`trellis_core.training.surface`); without a renderer they are left out.
SC-VAE: Xiang et al., "Native and Compact Structured Latents for 3D Generation" (2025).

Letters: B batch, T packed tokens or voxels, N tokens of the latent, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis2.dual_grid import extract_mesh
from trellis2.models.sparse_vae import DualGrid
from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.types import BASE_COLOR, Mesh
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.image_losses import ImageWeights, Perceptual, image_loss
from trellis_core.training.objectives import (
    binary_cross_entropy,
    kl_divergence,
    reparameterized,
)
from trellis_core.training.surface import SurfaceImages, View, draw_surfaces, random_view

Losses = dict[str, Tensor]
SurfacePairs = Callable[[Sequence[Mesh]], tuple[SurfaceImages, SurfaceImages]]
"""Predicted meshes, one per sample -> what the same cameras see of them and of the true ones."""
MaterialPairs = Callable[[SparseTensor], Sequence[tuple[Tensor, Tensor]]]
"""Predicted materials -> (predicted, true) pictures, each float32 [B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeVaeWeights:
    """Weights of the shape autoencoder's terms; the released ones."""

    crossing: float = 0.1
    position: float = 0.01
    subdivision: float = 0.1
    mask: float = 1.0
    depth: float = 10.0
    normal: float = 1.0
    normal_terms: ImageWeights = field(default_factory=ImageWeights)
    kl: float = 1e-6


def shape_vae_losses(
    encoder: nn.Module,  # FlexiDualGridVaeEncoder
    decoder: nn.Module,  # FlexiDualGridVaeDecoder
    position: SparseTensor,  # float32 [T, 3]  dual vertices in [0, 1]
    flags: Tensor,  # bool [T, 3]  crossed edges
    noise: Tensor,  # float32 [N, C]  of the posterior
    *,
    weights: ShapeVaeWeights = ShapeVaeWeights(),
    render: SurfacePairs | None = None,
    perceptual: Perceptual | None = None,
) -> Losses:
    """Cross-entropy of crossings and of every level's subdivision, squared error of positions, KL; with
    `render` also mask, depth and normal of the surface, predicted with the true crossings."""
    mean, logvar = encoder(position, flags)
    latent = mean.replace(reparameterized(mean.feats, logvar.feats, noise))
    output, subdivisions = decoder(latent)
    grid: DualGrid = decoder.dual_grid(output.feats)  # type: ignore[operator]
    losses = {
        "crossing": binary_cross_entropy(grid.crossing_logits, flags),
        "position": F.mse_loss(grid.dual_vertices, position.feats),
        "kl": kl_divergence(mean.feats, logvar.feats),
    }
    total = (
        weights.crossing * losses["crossing"]
        + weights.position * losses["position"]
        + weights.kl * losses["kl"]
    )
    for level, logits in enumerate(subdivisions):
        split = binary_cross_entropy(logits.feats, logits.plan.expand().mask)
        losses[f"subdivision_{level}"] = split
        total = total + weights.subdivision * split
    if render is not None:
        meshes = training_meshes(output, grid, flags, decoder.resolution)  # type: ignore[arg-type]
        surface, terms = surface_losses(*render(meshes), weights, perceptual)
        losses |= terms
        total = total + surface
    return {"loss": total, **losses}


def training_meshes(voxels: SparseTensor, grid: DualGrid, flags: Tensor, resolution: int) -> list[Mesh]:
    """One mesh per sample from predicted positions and split weights and the true crossings, with a centre
    vertex in every quad: differentiable in both predictions."""
    starts = voxels.layout.starts
    spans = [slice(starts[i], starts[i + 1]) for i in range(voxels.batch_size)]
    return [
        extract_mesh(
            voxels.coords[rows, 1:],
            grid.dual_vertices[rows],
            flags[rows],
            grid.split_weight[rows],
            resolution,
            training=True,
        )
        for rows in spans
    ]


def surface_losses(
    predicted: SurfaceImages,
    target: SurfaceImages,
    weights: ShapeVaeWeights,
    perceptual: Perceptual | None,
) -> tuple[Tensor, Losses]:
    """The weighted sum of the rendering terms, and the terms."""
    normal, normal_terms = image_loss(predicted.normal, target.normal, weights.normal_terms, perceptual)
    terms = {
        "mask": (predicted.mask - target.mask).abs().mean(),
        "depth": (predicted.depth - target.depth).abs().mean(),
        **{f"normal_{name}": term for name, term in normal_terms.items()},
    }
    total = weights.mask * terms["mask"] + weights.depth * terms["depth"] + weights.normal * normal
    return total, terms


def surfaces_against(
    truth: Sequence[Mesh],  # one per sample
    generator: torch.Generator,
    size: int = 1024,  # pixels
) -> SurfacePairs:
    """A renderer that draws predicted and true meshes from one new random camera per sample."""

    def render(meshes: Sequence[Mesh]) -> tuple[SurfaceImages, SurfaceImages]:
        views = [random_view(generator) for _ in truth]
        with torch.no_grad():
            target = draw_surfaces(truth, views, size)
        return draw_surfaces(meshes, views, size), target

    return render


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureVaeWeights:
    """Weights of the texture autoencoder's terms; the released ones. Pictures count without L1."""

    render: float = 1.0
    render_terms: ImageWeights = field(default_factory=lambda: ImageWeights(l1=0.0))
    kl: float = 1e-6


def texture_vae_losses(
    encoder: nn.Module,
    decoder: nn.Module,
    attrs: SparseTensor,  # float32 [T, 6] in [-1, 1]
    noise: Tensor,  # float32 [N, C]  of the posterior
    *,
    term: Literal["l1", "l2"] = "l1",
    weights: TextureVaeWeights = TextureVaeWeights(),
    render: MaterialPairs | None = None,
    perceptual: Perceptual | None = None,
) -> Losses:
    """L1 or squared error of the materials on known voxels, KL, and with `render` what cameras see."""
    mean, logvar = encoder(attrs)
    latent = mean.replace(reparameterized(mean.feats, logvar.feats, noise))
    predicted = decoder(latent)[0]
    error = predicted.feats - attrs.feats
    losses = {
        term: error.abs().mean() if term == "l1" else error.square().mean(),
        "kl": kl_divergence(mean.feats, logvar.feats),
    }
    total = losses[term] + weights.kl * losses["kl"]
    if render is not None:
        for name, pair in zip(("color", "material"), render(predicted), strict=True):
            seen, terms = image_loss(*pair, weights.render_terms, perceptual)
            losses |= {f"{name}_{key}": value for key, value in terms.items()}
            total = total + weights.render * seen
    return {"loss": total, **losses}


def materials_against(
    truth: Sequence[Mesh],  # one per sample
    attrs: SparseTensor,  # float32 [T, 6] in [-1, 1]  true materials
    resolution: int,
    generator: torch.Generator,
    size: int = 512,  # pixels
) -> MaterialPairs:
    """A renderer that looks at the true surfaces in predicted and true materials, one random camera per
    sample: first base colours, then metallic, roughness and alpha."""

    def render(predicted: SparseTensor) -> Sequence[tuple[Tensor, Tensor]]:
        views: list[View] = [random_view(generator) for _ in truth]
        with torch.no_grad():
            surface = draw_surfaces(truth, views, size)
        seen, target = (material_pictures(surface, x, resolution) for x in (predicted, attrs))
        rest = slice(BASE_COLOR.stop, None)
        return [(seen[:, part], target[:, part]) for part in (BASE_COLOR, rest)]

    return render


def material_pictures(
    surface: SurfaceImages,
    attrs: SparseTensor,  # float32 [T, C] in [-1, 1]
    resolution: int,
) -> Tensor:  # float32 [B, C, H, W] in [0, 1]
    """The materials where cameras see a surface, zero elsewhere; differentiable in the materials."""
    assert surface.position is not None, "positions are needed to look up materials"
    covered = surface.depth[:, 0] > 0
    starts = attrs.layout.starts
    pictures = []
    for sample, mask in enumerate(covered):
        rows = slice(starts[sample], starts[sample + 1])
        points = (surface.position[sample].permute(1, 2, 0)[mask] + 0.5) * resolution
        values, _ = sample_voxels(points, attrs.coords[rows, 1:], attrs.feats[rows], resolution)
        picture = values.new_zeros(*mask.shape, attrs.feats.shape[1])
        pictures.append(picture.masked_scatter(mask[..., None], (values + 1) / 2).permute(2, 0, 1))
    return torch.stack(pictures)
