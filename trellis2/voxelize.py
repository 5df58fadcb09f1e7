"""Material voxels of a textured mesh: every voxel averages the triangles that cross its edges.

The voxels are those of `dual_grid.mesh_to_dual_grid`. Image coordinates start at the bottom left: v = 0 is
the last row. Knows nothing about files or networks.
Letters: F triangles, N voxels, P (triangle, voxel) pairs, H, W texels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trellis2.crossings import VoxelTable, find_crossings, touched_voxels
from trellis2.dual_grid import UNIT_CUBE, Box, Grid
from trellis2.quadrics import add_rows, unit_normals
from trellis_core.geometry.types import PBRVoxels
from trellis_core.kernels.closest_point import closest_on_triangles
from trellis_core.sparse.order import key_coords
from trellis_core.training.ingest.surfaces import (
    Lookup,
    TexturedMesh,
    shade,
    tangent_frames,
    texel_scales,
    textures_of,
    to_linear,
    to_srgb,
)
from trellis_core.training.ingest.textures import build_pyramid

Average = Literal["released", "surface"]

WORK = 1 << 20  # pairs at a time


@dataclass(frozen=True, slots=True)
class SurfaceVoxels:
    """Averages per voxel, not clamped and not quantised."""

    coords: Tensor  # int32 [N, 3]     in key order
    base_color: Tensor  # float32 [N, 3]
    metallic: Tensor  # float32 [N]
    roughness: Tensor  # float32 [N]
    alpha: Tensor  # float32 [N]
    normal: Tensor  # float32 [N, 3]   mean, not unit


def voxelize_material(
    mesh: TexturedMesh,
    resolution: int,
    *,
    aabb: Box = UNIT_CUBE,
    average: Average = "released",
) -> PBRVoxels:
    """Material voxels of a textured mesh. See `voxelize_surface` for `average`."""
    grid = Grid.of(resolution, aabb)
    device = mesh.triangles.device
    moved = replace(mesh, triangles=mesh.triangles.float() - grid.origin(device))
    voxels = voxelize_surface(moved, grid.voxel_size(device), grid.size, average=average)
    scalars = torch.stack([voxels.metallic, voxels.roughness, voxels.alpha], 1)
    return PBRVoxels(voxels.coords, torch.cat([voxels.base_color, scalars], 1).clamp(0, 1), resolution)


@torch.no_grad()
def voxelize_surface(
    mesh: TexturedMesh,  # positions relative to the grid's minimum corner
    voxel_size: Tensor,  # float32 [3]
    size: Sequence[int],  # (Gx, Gy, Gz)
    *,
    average: Average = "released",
    mip_level_offset: float = 0.0,
) -> SurfaceVoxels:
    """Average what the triangles show at each voxel.

    `released`, what the released encoders were trained on: look up the foot of the perpendicular from the
    voxel's centre, even outside the triangle, with weight 1 - signed distance. `surface`: look up the closest
    point of the triangle, weighted by its area and its distance to the centre, and average the base color in
    linear light.
    """
    if average not in ("released", "surface"):
        raise ValueError(f"average must be `released` or `surface`, got `{average}`")
    triangles, step, device = mesh.triangles.float(), voxel_size, mesh.triangles.device
    table, triangle, keys = pairs_of(triangles, step, size)
    scales = texel_scales(triangles, mesh.uvs, step)
    frames = tangent_frames(triangles, mesh.uvs, turn_mirrored=average == "released")
    own_normals = unit_normals(triangles)
    pyramids = [{name: build_pyramid(t) for name, t in textures_of(m).items()} for m in mesh.materials]
    total = torch.zeros(len(table), 10, device=device)  # weighted 3 + 1 + 1 + 1 + 3, then the weight
    for start in range(0, len(keys), WORK):
        which, key = triangle[start : start + WORK], keys[start : start + WORK]
        centers = (key_coords(key, size) + 0.5) * step
        find = closest_sample if average == "surface" else perpendicular_sample
        bary, weight = find(triangles[which], centers, step)
        uv = (mesh.uvs[which] * bary[..., None]).sum(1)
        corners = own_normals[which, None] if mesh.normals is None else mesh.normals[which]
        normal = (corners * bary[..., None]).sum(1)
        values = torch.zeros(len(which), 9, device=device)
        for number, material in enumerate(mesh.materials):
            mine = (mesh.material_ids[which] == number).nonzero().squeeze(1)
            look = Lookup(material, pyramids[number], uv[mine], scales[which[mine]], mip_level_offset)
            values[mine] = shade(look, frames[which[mine]], normal[mine])
        if average == "surface":
            values[:, :3] = to_linear(values[:, :3])
        add_rows(
            total, table.rows(key), torch.cat([values, torch.ones_like(weight)[:, None]], 1) * weight[:, None]
        )
    mean = total[:, :9] / total[:, 9:]
    if average == "surface":
        mean[:, :3] = to_srgb(mean[:, :3])
    metallic, roughness, alpha = mean[:, 3:6].unbind(1)
    return SurfaceVoxels(key_coords(table.keys, size), mean[:, :3], metallic, roughness, alpha, mean[:, 6:])


def pairs_of(triangles: Tensor, step: Tensor, size: Sequence[int]) -> tuple[VoxelTable, Tensor, Tensor]:
    """All voxels, and each (triangle int64 [P], voxel key int64 [P]) that touches, once."""
    crossings = find_crossings(triangles, step, size)
    keys = touched_voxels(crossings, size)
    table = VoxelTable(keys, size)
    pairs = crossings.triangle[:, None] * max(len(table), 1) + table.rows(keys)
    pairs = pairs.unique()
    return table, pairs // max(len(table), 1), table.keys[pairs % max(len(table), 1)]


# --- where in the triangle -------------------------------------------------------------------------


def perpendicular_sample(triangles: Tensor, centers: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates of the foot of the perpendicular, not clamped, and 1 - signed distance."""
    a, b, c = triangles.unbind(1)
    ab, ac, v = b - a, c - a, centers - a
    bb, bc, cc = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    vb, vc = (v * ab).sum(1), (v * ac).sum(1)
    area = bb * cc - bc * bc
    beta, gamma = (cc * vb - bc * vc) / area, (bb * vc - bc * vb) / area
    distance = (unit_normals(triangles) * v).sum(1)
    bary = torch.stack([1 - beta - gamma, beta, gamma], 1)
    flat = ~bary.isfinite().all(1, keepdim=True)
    return torch.where(flat, 1 / 3, bary), 1 - distance


def closest_sample(triangles: Tensor, centers: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates of the closest point, and a weight that falls with its distance."""
    bary, squared = closest_on_triangles(centers, triangles)
    a, b, c = triangles.unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
    inside_voxel = torch.minimum(area, step.square().amax()) / step.square().amax()
    near = (1 - squared.sqrt() / step.amax()).clamp_min(1e-3)  # never 0: a voxel needs a value
    return bary, near * inside_voxel.clamp_min(1e-6)
