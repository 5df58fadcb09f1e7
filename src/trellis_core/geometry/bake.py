"""Baking: the material of a voxel grid onto the texture of a mesh.

Each texel is a point of the surface. Most points lie among the voxels and are sampled where they are; the
others are first moved to the closest point of the original surface. Letters: S texture side, Q texels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.sample import index_voxels, sample_voxels
from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import ALPHA, BASE_COLOR, METALLIC, ROUGHNESS, Mesh, PBRVoxels
from trellis_core.kernels.table import Kernels
from trellis_core.sparse.order import find_sorted, inside, key_coords, linear_keys

BakeMode = Literal["auto", "direct", "projected"]

ENOUGH_SUPPORT = 0.25  # sum of trilinear weights below which a sample is not trusted
NEAR = 3  # voxels to look around for the nearest one
FAR = 0.3  # mean distance from the original, in voxels, above which `auto` projects everywhere
REACH = 8.0  # voxels that a texel may be away from the original surface
COARSE_TEXEL = 1.5  # voxels; larger texels are averaged from four samples
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
    texel: Tensor  # int64 [Q]          row * S + column of the texels that were sampled
    attrs: Tensor  # float32 [Q, 6]     their values in [0, 1]
    unsupported: float  # share of the mesh's texels without a voxel nearby


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
    size = texture_size
    texels = cover_texels(mesh, size, kernels)
    on_step(1, 4)
    oversample = 2 if texel_side(mesh, len(texels.index)) * voxels.resolution > COARSE_TEXEL else 1
    if oversample > 1:
        texels = cover_texels(mesh, size * oversample, kernels)
    project = original is not None and (
        mode == "projected" or (mode == "auto" and is_far(texels, original, voxels.resolution, kernels))
    )
    attrs, found = sample_texels(
        texels, mesh, voxels, original if mode != "direct" else None, project, kernels
    )
    on_step(2, 4)
    share = 1 - float(found.float().mean()) if len(found) else 1.0
    texel, attrs = average_texels(texels.index[found], attrs[found], size, oversample)
    on_step(3, 4)
    image = paint_texture(to_bytes(attrs), texel, size)
    on_step(4, 4)
    return Baked(image, texel, attrs, share)


def average_texels(index: Tensor, attrs: Tensor, size: int, oversample: int) -> tuple[Tensor, Tensor]:
    """Mean of the samples inside each texel of an image of `size`; `index` counts in the finer image."""
    if oversample == 1:
        return index, attrs
    fine = size * oversample
    coarse = index // fine // oversample * size + index % fine // oversample
    texel, inverse, count = torch.unique(coarse, return_inverse=True, return_counts=True)
    total = torch.zeros(len(texel), attrs.shape[1], device=attrs.device).index_add_(0, inverse, attrs)
    return texel, total / count[:, None]


def cover_texels(mesh: Mesh, size: int, kernels: Kernels) -> Texels:
    """Which texel centres lie inside which triangle, and where on the surface."""
    assert mesh.uvs is not None
    rasterize: Any = kernels["rasterize"]
    pixel = torch.cat([mesh.uvs * size, torch.zeros_like(mesh.uvs[:, :1])], dim=1)
    face, weight = rasterize(pixel, mesh.faces, size, size)
    index = torch.nonzero(face.reshape(-1) >= 0).reshape(-1)
    face, weight = face.reshape(-1)[index].long(), weight.reshape(-1, 3)[index]
    parts = [points_on(mesh, f, w) for f, w in zip(face.split(CHUNK), weight.split(CHUNK), strict=True)]
    return Texels(index, face, torch.cat(parts))


def points_on(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:
    """Points on faces, [Q, 3]."""
    return (mesh.vertices[mesh.faces[face].long()] * barycentric[:, :, None]).sum(1)


def texel_side(mesh: Mesh, count: int) -> float:
    """Side of an average texel on the surface, in world units."""
    a, b, c = mesh.vertices[mesh.faces.long()].unbind(1)
    area = 0.5 * float(torch.linalg.cross(b - a, c - a).norm(dim=1).sum())
    return (area / max(count, 1)) ** 0.5


def is_far(texels: Texels, original: Mesh, resolution: int, kernels: Kernels) -> bool:
    """Whether the mesh is so coarse that its points lie off the original surface, by 2,000 of them."""
    some = texels.position[:: max(1, len(texels.position) // 2000)]
    reach = REACH / resolution
    closest_point: Any = kernels["closest_point"]
    distance, _, _ = closest_point(some, original.vertices, original.faces, reach)
    return float(distance.clamp_max(reach).mean()) * resolution > FAR


def sample_texels(
    texels: Texels,
    mesh: Mesh,
    voxels: PBRVoxels,
    original: Mesh | None,
    project: bool,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:  # float32 [Q, 6] in [0, 1], bool [Q] found
    """Material at each texel: where it is, else on the original surface, else of the nearest voxel."""
    scale = voxels.resolution

    def sample(points: Tensor) -> tuple[Tensor, Tensor]:
        return sample_voxels((points + 0.5) * scale, voxels.coords, voxels.attrs, scale)

    position = texels.position
    if project and original is not None:
        position, _ = move_to_surface(position, texels.face, mesh, original, scale, kernels)
    attrs, support = sample(position)
    weak = torch.nonzero(support < ENOUGH_SUPPORT).reshape(-1)
    if original is not None and not project and len(weak):
        moved, hit = move_to_surface(position[weak], texels.face[weak], mesh, original, scale, kernels)
        better, better_support = sample(moved)
        hit &= better_support >= ENOUGH_SUPPORT
        attrs[weak[hit]], support[weak[hit]] = better[hit], better_support[hit]
        weak = weak[~hit]
    found = torch.ones_like(support, dtype=torch.bool)
    if len(weak):
        nearest = nearest_voxels((position[weak] + 0.5) * scale, voxels)
        attrs[weak] = voxels.attrs[nearest.clamp_min(0)]
        found[weak] = nearest >= 0
    return attrs.clamp(0, 1), found & torch.isfinite(attrs).all(1)


def move_to_surface(
    points: Tensor,  # float32 [Q, 3]
    face: Tensor,  # int64 [Q]   face of `mesh` that each point lies on
    mesh: Mesh,
    original: Mesh,
    resolution: int,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    """Closest points on the original where it faces the same way, and whether there are any, bool [Q]."""
    closest_point: Any = kernels["closest_point"]
    normals = face_normals(mesh.vertices, mesh.faces)
    target_normals = face_normals(original.vertices, original.faces)
    moved, hit = points.clone(), torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        query = points[part].contiguous()
        _, found, weight = closest_point(query, original.vertices, original.faces, REACH / resolution)
        found = found.long()
        same_side = (normals[face[part]] * target_normals[found.clamp_min(0)]).sum(1) > 0
        hit[part] = (found >= 0) & same_side
        moved[part] = torch.where(
            hit[part, None], points_on(original, found.clamp_min(0), weight), points[part]
        )
    return moved, hit


def nearest_voxels(points: Tensor, voxels: PBRVoxels) -> Tensor:
    """Row of the voxel whose centre is nearest to each grid point, int64 [Q]; -1 when none is near.

    Columns of voxels are tried from near to far, and only for points that could still find a nearer voxel.
    """
    side = voxels.resolution
    keys, rows = index_voxels(voxels.coords, (side,) * 3)
    axis = torch.arange(-NEAR, NEAR + 1, device=points.device)
    columns = torch.cartesian_prod(axis, axis)
    bounds, order = torch.sort((columns.abs() - 0.5).clamp_min(0).square().sum(1), stable=True)
    best = torch.full((len(points),), -1, device=points.device)
    for part in torch.nonzero(has_voxels_around(points, voxels)).reshape(-1).split(CHUNK):
        found = torch.full((len(part),), -1, device=points.device)
        distance = torch.full((len(part),), torch.inf, device=points.device)
        for column, bound in zip(columns[order], bounds.tolist(), strict=True):
            undecided = torch.nonzero(distance > bound).reshape(-1)
            point = points[part[undecided]]
            cell = point.floor().long()
            xy = cell[:, :2] + column
            height = cell[:, 2].clamp(0, side - 1)
            above = torch.searchsorted(keys, (xy[:, 0] * side + xy[:, 1]) * side + height)
            for place in (above, above - 1):
                position = place.clamp(0, len(keys) - 1)
                center = key_coords(keys[position], (side,) * 3)
                offset = center[:, 2] - cell[:, 2]
                square = (center + 0.5 - point).square().sum(1)
                near = (center[:, :2] == xy).all(1) & (offset.abs() <= NEAR) & (square < distance[undecided])
                hit = undecided[near]
                found[hit], distance[hit] = rows[position[near]], square[near]
        best[part] = found
    return best


def has_voxels_around(points: Tensor, voxels: PBRVoxels) -> Tensor:
    """Whether a voxel may be within `NEAR` voxels of each grid point, bool [Q]; most far ones have none."""
    block = NEAR + 1
    blocks = (-(-voxels.resolution // block) + 2,) * 3  # and one around
    valid = voxels.coords[inside(voxels.coords, (voxels.resolution,) * 3)]
    filled = torch.unique(linear_keys(valid // block + 1, blocks))
    axis = torch.arange(-1, 2, device=points.device)
    steps = linear_keys(torch.cartesian_prod(axis, axis, axis), blocks)
    near = torch.unique((filled[:, None] + steps).reshape(-1))
    cell = (points / block).floor().long() + 1
    return inside(cell, blocks) & (find_sorted(near, linear_keys(cell, blocks)) >= 0)


def to_images(baked: Tensor) -> tuple[Tensor, Tensor]:
    """Split uint8 [S, S, 6] into base color + alpha [S, S, 4] and (0, roughness, metallic) [S, S, 3]."""
    color = torch.cat([baked[..., BASE_COLOR], baked[..., ALPHA]], dim=-1)
    rough, metal = baked[..., ROUGHNESS], baked[..., METALLIC]
    return color, torch.cat([torch.zeros_like(rough), rough, metal], dim=-1)


def to_bytes(values: Tensor) -> Tensor:
    """Round values in [0, 1] to uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)
