"""Losses of TRELLIS v1's latent autoencoder: what its decoders make of latents, as one camera sees it.

TRELLIS (Xiang et al., 2024), section 3.2. Each function takes a decoder, a batch of latents and
one picture of every object, and returns its losses by name; `loss` is what training differentiates. `weights`
are those of a recipe. LPIPS and the normal map are reported as nan where they are off.
Letters: B batch, T packed voxels, C channels, S side of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis.flexicubes import CubeMesh, CubeTraining, cube_meshes
from trellis.models.latent_vae import SLatGaussianDecoder, SLatMeshDecoder, SLatRadianceFieldDecoder
from trellis.stages import decode_fields, decode_gaussians
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh
from trellis_core.render.field_image import FieldImage
from trellis_core.render.gaussian import render_gaussians
from trellis_core.render.radiance import render_radiance
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.image_losses import ImageWeights, Perceptual, image_loss
from trellis_core.training.regularizers import gaussian_size, transparency, truncated_distance_loss
from trellis_core.training.surface import Rasterize, SurfaceImages, View, draw_surfaces

Losses = dict[str, Tensor]
Weights = Mapping[str, float]
BAND = 3  # cubes on each side of the surface in which distances are compared
COLORS = slice(0, 3)  # of the attributes of a decoded mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One camera's picture of every object of a batch, and what drawing the decoded ones needs."""

    pictures: Tensor  # float32 [B, 3, S, S]  in [0, 1], straight
    alpha: Tensor  # float32 [B, 1, S, S]
    cameras: Sequence[Camera]
    backgrounds: Tensor  # float32 [B, 3]  behind Gaussians and fields
    generator: torch.Generator | None = None  # where along their rays a field is looked at; None: midway
    truth: Sequence[Mesh] = ()  # the objects' surfaces, which the mesh decoder is held against
    runtime: Runtime
    perceptual: Perceptual | None = None  # LPIPS; None: off

    @property
    def size(self) -> int:
        return self.pictures.shape[3]

    @property
    def composed(self) -> Tensor:  # float32 [B, 3, S, S]  before the backgrounds
        return self.pictures * self.alpha + (1 - self.alpha) * self.backgrounds[..., None, None]


def gaussian_losses(
    decoder: SLatGaussianDecoder, latent: SparseTensor, seen: Seen, weights: Weights
) -> Losses:
    """Pictures of the Gaussians; small and opaque ones are preferred."""
    clouds = decode_gaussians(decoder, latent)
    images = [render_gaussians(c, v, seen.size, seen.runtime) for c, v in with_cameras(clouds, seen)]
    total, terms = picture_terms(images, seen, weights)
    terms["volume"] = gaussian_size([cloud.scales for cloud in clouds])
    terms["opacity"] = transparency([cloud.opacities for cloud in clouds])
    return {"loss": total + weighted(terms, weights, "volume", "opacity"), **terms}


def field_losses(
    decoder: SLatRadianceFieldDecoder, latent: SparseTensor, seen: Seen, weights: Weights
) -> Losses:
    """Pictures of the radiance fields."""
    fields = decode_fields(decoder, latent)
    images = [
        render_radiance(f, v, seen.size, seen.runtime, supersampling=1, generator=seen.generator)
        for f, v in with_cameras(fields, seen)
    ]
    total, terms = picture_terms(images, seen, weights)
    return {"loss": total, **terms}


def mesh_losses(decoder: SLatMeshDecoder, latent: SparseTensor, seen: Seen, weights: Weights) -> Losses:
    """Distances at the corners of the cubes, and pictures of the surfaces that exist."""
    meshes = cube_meshes(decoder(latent), decoder.layout, decoder.mesh_resolution, training=True)
    rasterizer = cast(Rasterize, seen.runtime.kernels["rasterize"])
    views = [View(camera) for camera in seen.cameras]
    with torch.no_grad():
        target = draw_surfaces(seen.truth, views, seen.size, rasterizer)
    band = BAND / decoder.mesh_resolution
    extras = [cast(CubeTraining, mesh.training) for mesh in meshes]
    distances = [
        truncated_distance_loss(x.corner_positions, x.corner_sdf, target.depth[i], seen.cameras[i], band)
        for i, x in enumerate(extras)
    ]
    terms = {
        "regularization": torch.stack([extra.regularizer for extra in extras]).mean(),
        "tsdf": torch.stack(distances).mean(),
    }
    total = weighted(terms, weights, "regularization", "tsdf")
    there = [i for i, mesh in enumerate(meshes) if len(mesh.faces)]
    if there:
        surface, more = surface_terms(
            [meshes[i] for i in there],
            [views[i] for i in there],
            SurfaceImages(*(part[there] for part in (target.mask, target.depth, target.normal))),
            seen.pictures[there] * seen.alpha[there],
            weights,
            rasterizer,
            seen.perceptual,
        )
        total, terms = total + surface, {**terms, **more}
    return {"loss": total, **terms, "normal_map": torch.full_like(total.detach(), torch.nan)}


LOSSES: Mapping[type, Callable[[Any, SparseTensor, Seen, Weights], Losses]] = {
    SLatGaussianDecoder: gaussian_losses,
    SLatRadianceFieldDecoder: field_losses,
    SLatMeshDecoder: mesh_losses,
}


def surface_terms(
    meshes: Sequence[CubeMesh],
    views: Sequence[View],
    target: SurfaceImages,
    pictures: Tensor,  # float32 [B, 3, S, S]  on black
    weights: Weights,
    rasterizer: Rasterize,
    perceptual: Perceptual | None,
) -> tuple[Tensor, Losses]:
    """Mask, depth, normals and colors; the true mask says where depth and normals are compared.

    Predicted normals are those of the faces, whichever side is seen: a surface inside out is wrong.
    """
    colored = all(mesh.attributes is not None for mesh in meshes)
    predicted = draw_surfaces(
        [Mesh(mesh.vertices, mesh.faces) for mesh in meshes],
        views,
        pictures.shape[3],
        rasterizer,
        attributes=[cast(Tensor, mesh.attributes)[:, COLORS] for mesh in meshes] if colored else None,
        two_sided=False,
    )
    triple = triple_weights(weights)
    mask, beta = target.mask, 1 / (2 * meshes[0].resolution)
    normal, normal_terms = image_loss(predicted.normal * mask, target.normal * mask, triple, perceptual)
    terms = {
        "mask": (predicted.mask - mask).abs().mean(),
        "depth": F.smooth_l1_loss(predicted.depth * mask, target.depth * mask, beta=beta),
        **{f"normal_{name}": term for name, term in normal_terms.items()},
    }
    total = weighted(terms, weights, "mask", "depth") + weights.get("normal", 0.0) * normal
    if predicted.attributes is not None:
        color, color_terms = image_loss(predicted.attributes, pictures, triple, perceptual)
        terms |= {f"color_{name}": term for name, term in color_terms.items()}
        total = total + weights.get("color", 0.0) * color
    return total, terms


def picture_terms(images: Sequence[FieldImage], seen: Seen, weights: Weights) -> tuple[Tensor, Losses]:
    """How far drawn pictures are from the true ones, before the same backgrounds."""
    backgrounds = seen.backgrounds.tolist()
    drawn = [image.over(color).permute(2, 0, 1) for image, color in zip(images, backgrounds, strict=True)]
    return image_loss(torch.stack(drawn), seen.composed, triple_weights(weights), seen.perceptual)


def triple_weights(weights: Weights) -> ImageWeights:
    """Of L1, structural similarity and LPIPS, wherever two pictures are compared."""
    return ImageWeights(
        l1=weights.get("l1", 1.0), ssim=weights.get("ssim", 0.0), lpips=weights.get("lpips", 0.0)
    )


def weighted(terms: Losses, weights: Weights, *names: str) -> Tensor:
    return torch.stack([weights.get(name, 0.0) * terms[name] for name in names]).sum()


def with_cameras(decoded: Sequence[Any], seen: Seen) -> list[tuple[Any, Camera]]:
    return list(zip(decoded, seen.cameras, strict=True))
