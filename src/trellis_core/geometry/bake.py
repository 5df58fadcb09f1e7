"""Baking: the material of a voxel grid onto the texture of a mesh.

Each texel is a point of the surface. Most points lie among the voxels and are sampled where they are; the
others are first moved to the closest point of the original surface. The texture is made in bands of rows, so
that memory stays small. Letters: S texture side, Q texels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import sum_by
from trellis_core.geometry.infill import fill_texture
from trellis_core.geometry.sample import nearest_voxels
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import ALPHA, BASE_COLOR, METALLIC, ROUGHNESS, Mesh, PBRVoxels
from trellis_core.geometry.walls import steps_aside
from trellis_core.kernels.rasterize import ONE
from trellis_core.kernels.table import Kernels

BakeMode = Literal["auto", "direct", "projected"]

ENOUGH_SUPPORT = 0.25  # sum of trilinear weights below which a sample is not trusted
FAR = 0.3  # mean distance from the original, in voxels, above which `auto` projects everywhere
REACH = 8.0  # voxels that a texel may be away from the original surface
COARSE_TEXEL = 1.5  # voxels; larger texels are averaged from four samples
PROBES = 2000  # points that tell how far a mesh is from the original
BAND = 1 << 21  # pixels at a time: about 150 MB of temporaries
CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Texels:
    """The texels that a mesh covers in its texture."""

    index: Tensor  # int64 [Q]       row * S + column
    face: Tensor  # int64 [Q]
    position: Tensor  # float32 [Q, 3]  world


@dataclass(frozen=True, slots=True)
class Baked:
    """A finished texture, and what it was made from."""

    image: Tensor  # uint8 [S, S, 6]    channels as PBRVoxels.attrs; filled everywhere
    covered: Tensor  # bool [S, S]        texels that were sampled
    unsupported: float  # share of the mesh's texels without a voxel nearby

    @property
    def alpha(self) -> Tensor:  # float32 [Q]  in [0, 1]
        """Opacity of the texels that were sampled."""
        return self.image[..., ALPHA][..., 0][self.covered].float() / 255


def bake_texture(
    mesh: Mesh,  # with uvs
    voxels: PBRVoxels,
    texture_size: int,
    *,
    original: Mesh | None,  # surface before simplification, oriented; None: never project
    mode: BakeMode = "auto",
    kernels: Kernels,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Baked:
    """Sample the voxel material at every texel of a mesh, and fill the texels between the charts."""
    size, device = texture_size, mesh.vertices.device
    fine = 2 if texel_side(mesh, size) * voxels.resolution > COARSE_TEXEL else 1
    bands = bands_of(size * fine)
    on_step(0, len(bands) + 1)
    project = original is not None and (
        mode == "projected" or (mode == "auto" and is_far(mesh, original, voxels.resolution, kernels))
    )
    surface = original if mode != "direct" else None
    aside = steps_aside(mesh, 1 / voxels.resolution, kernels)
    sample = texel_sampler(mesh, voxels, surface, project, kernels, aside)
    image = torch.zeros(size * size, voxels.attrs.shape[1], dtype=torch.uint8, device=device)
    covered = torch.zeros(size * size, dtype=torch.bool, device=device)
    sampled, supported = 0, 0
    for step, rows in enumerate(bands):
        texels = cover_rows(mesh, size * fine, rows, kernels)
        attrs, found = sample(texels)
        sampled, supported = sampled + len(found), supported + int(found.sum())
        texel, attrs = average_texels(texels.index[found], attrs[found], size, fine)
        image[texel], covered[texel] = to_bytes(attrs), True
        on_step(step + 1, len(bands) + 1)
    covered = covered.view(size, size)
    image = fill_texture(image.view(size, size, -1), covered)
    on_step(len(bands) + 1, len(bands) + 1)
    return Baked(image, covered, 1 - supported / sampled if sampled else 1.0)


def average_texels(index: Tensor, attrs: Tensor, size: int, fine: int) -> tuple[Tensor, Tensor]:
    """Mean of the samples in each texel of an image of `size`; `index` counts in one `fine` times finer."""
    if fine == 1:
        return index, attrs
    side = size * fine
    coarse = index // side // fine * size + index % side // fine
    texel, inverse, count = torch.unique(coarse, return_inverse=True, return_counts=True)
    return texel, sum_by(attrs, inverse, len(texel)) / count[:, None]


# --- texels ---


def cover_texels(mesh: Mesh, size: int, kernels: Kernels) -> Texels:
    """Which texel centres lie inside which triangle, and where on the surface."""
    parts = [cover_rows(mesh, size, rows, kernels) for rows in bands_of(size)]
    return Texels(*(torch.cat([getattr(p, name) for p in parts]) for name in ("index", "face", "position")))


def bands_of(size: int) -> list[range]:
    """Rows of an image in pieces, each of an even number of rows but for the last."""
    height = max(2, BAND // size // 2 * 2)
    return [range(top, min(top + height, size)) for top in range(0, size, height)]


def cover_rows(mesh: Mesh, size: int, rows: range, kernels: Kernels) -> Texels:
    """The texels of some rows; `index` counts in the whole image. All bands together are the whole."""
    assert mesh.uvs is not None
    rasterize: Any = kernels["rasterize"]
    pixel = (mesh.uvs * (size * ONE)).round() / ONE  # as the rasteriser snaps: no band sees another corner
    pixel = torch.cat([pixel[:, :1], pixel[:, 1:] - rows.start, torch.zeros_like(pixel[:, :1])], dim=1)
    low, high = torch.aminmax(pixel[:, 1][mesh.faces.long()], dim=1)
    near = torch.nonzero((low <= len(rows)) & (high >= 0)).reshape(-1)
    face, weight = rasterize(pixel, mesh.faces[near], len(rows), size)
    index = torch.nonzero(face.reshape(-1) >= 0).reshape(-1)
    face, weight = near[face.reshape(-1)[index].long()], weight.reshape(-1, 3)[index]
    pairs = zip(face.split(CHUNK), weight.split(CHUNK), strict=True)
    position = torch.cat([points_on(mesh, f, w) for f, w in pairs])
    return Texels(index + rows.start * size, face, position)


def points_on(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:
    """Points on faces, [Q, 3]."""
    return (mesh.vertices[mesh.faces[face].long()] * barycentric[:, :, None]).sum(1)


def texel_side(mesh: Mesh, size: int) -> float:
    """Side of an average texel on the surface, in world units."""
    assert mesh.uvs is not None
    area = float(face_areas(mesh.vertices, mesh.faces).sum(dtype=torch.float64))
    flat = torch.nn.functional.pad(mesh.uvs, (0, 1))
    covered = min(float(face_areas(flat, mesh.faces).sum(dtype=torch.float64)), 1.0) * size**2
    return float((area / max(covered, 1.0)) ** 0.5)


def is_far(mesh: Mesh, original: Mesh, resolution: int, kernels: Kernels) -> bool:
    """Whether the mesh is so coarse that its points lie off the original surface, by some of them."""
    if not len(mesh.faces):
        return False
    number = torch.arange(min(PROBES, 4 * len(mesh.faces)), device=mesh.vertices.device)
    face = number * len(mesh.faces) // len(number)
    u, v = ((number.double() * step + 0.5) % 1 for step in R2)
    fold = u + v > 1
    u, v = torch.where(fold, 1 - u, u), torch.where(fold, 1 - v, v)
    points = points_on(mesh, face, torch.stack([1 - u - v, u, v], 1).float())
    closest_point: Any = kernels["closest_point"]
    reach = REACH / resolution
    distance, _, _ = closest_point(points, original.vertices, original.faces, reach)
    area = face_areas(mesh.vertices, mesh.faces[face]).double()
    mean = float((distance.clamp_max(reach) * area).sum() / area.sum().clamp_min(1e-30))
    return mean * resolution > FAR


R2 = (0.7548776662466927, 0.5698402909980532)  # Roberts, "The unreasonable effectiveness of quasirandom ..."


# --- material of texels ---


def sample_texels(
    texels: Texels,
    mesh: Mesh,
    voxels: PBRVoxels,
    original: Mesh | None,
    project: bool,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:  # float32 [Q, 6] in [0, 1], bool [Q] found
    """Material at each texel: where it is, else on the original surface, else of the nearest voxel."""
    return texel_sampler(mesh, voxels, original, project, kernels)(texels)


def texel_sampler(
    mesh: Mesh,
    voxels: PBRVoxels,
    original: Mesh | None,
    project: bool,
    kernels: Kernels,
    aside: Tensor | None = None,  # float32 [F, 3]  how far from each face to look first
) -> Callable[[Texels], tuple[Tensor, Tensor]]:
    """`sample_texels` for many parts of a texture: what they share is prepared once."""
    scale = voxels.resolution
    voxel_sampler: Any = kernels["voxel_sampler"]
    look_up = voxel_sampler(voxels.coords, voxels.attrs, (scale,) * 3)

    @cache
    def normals() -> tuple[Tensor, Tensor]:
        assert original is not None
        return face_normals(mesh.vertices, mesh.faces), face_normals(original.vertices, original.faces)

    def move(points: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
        assert original is not None
        own, target = normals()
        return closest_on(points, own[face], original, target, REACH / scale, kernels)

    def sample(texels: Texels) -> tuple[Tensor, Tensor]:
        position = texels.position
        if project and original is not None:
            position, _ = move(position, texels.face)
        start = position if aside is None else position + aside[texels.face]
        attrs, support = look_up((start + 0.5) * scale)
        weak = torch.nonzero(support < ENOUGH_SUPPORT).reshape(-1)
        if original is not None and not project and len(weak):
            moved, hit = move(position[weak], texels.face[weak])
            better, better_support = look_up((moved + 0.5) * scale)
            hit &= better_support >= ENOUGH_SUPPORT
            attrs[weak[hit]], support[weak[hit]] = better[hit], better_support[hit]
            weak = weak[~hit]
        found = torch.ones_like(support, dtype=torch.bool)
        if len(weak):
            nearest = nearest_voxels((position[weak] + 0.5) * scale, voxels)
            attrs[weak] = voxels.attrs[nearest.clamp_min(0)]
            found[weak] = nearest >= 0
        return attrs.clamp_(0, 1), found & torch.isfinite(attrs).all(1)

    return sample


def move_to_surface(
    points: Tensor,  # float32 [Q, 3]
    face: Tensor,  # int64 [Q]   face of `mesh` that each point lies on
    mesh: Mesh,
    original: Mesh,
    resolution: int,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    """Closest points on the original where it faces the same way, and whether there are any, bool [Q]."""
    own = face_normals(mesh.vertices, mesh.faces)[face]
    target = face_normals(original.vertices, original.faces)
    return closest_on(points, own, original, target, REACH / resolution, kernels)


def closest_on(
    points: Tensor,  # float32 [Q, 3]
    normals: Tensor,  # float32 [Q, 3]
    original: Mesh,
    original_normals: Tensor,  # float32 [F, 3]
    reach: float,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    closest_point: Any = kernels["closest_point"]
    _, found, weight = closest_point(points.contiguous(), original.vertices, original.faces, reach)
    face = found.long().clamp_min(0)
    hit = (found >= 0) & ((normals * original_normals[face]).sum(1) > 0)
    return torch.where(hit[:, None], points_on(original, face, weight), points), hit


# --- images ---


def to_images(baked: Tensor) -> tuple[Tensor, Tensor]:
    """Split uint8 [S, S, 6] into base color + alpha [S, S, 4] and (0, roughness, metallic) [S, S, 3]."""
    color = torch.cat([baked[..., BASE_COLOR], baked[..., ALPHA]], dim=-1)
    rough, metal = baked[..., ROUGHNESS], baked[..., METALLIC]
    return color, torch.cat([torch.zeros_like(rough), rough, metal], dim=-1)


def to_bytes(values: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)
