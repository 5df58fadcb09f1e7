"""What a sparse voxel grid holds at continuous points: interpolated, or of the nearest voxel.

Grid coordinates: voxel c spans [c, c + 1), its centre is c + 0.5. Knows nothing about meshes or textures.
Letters: Q points, N voxels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.types import PBRVoxels
from trellis_core.kernels.table import Kernels
from trellis_core.kernels.voxel_sampler import index_voxels
from trellis_core.sparse.order import find_sorted, inside, key_coords, linear_keys

NEAR = 3  # voxels to look around for the nearest one
CHUNK = 1 << 18
REFERENCE = Kernels()


def sample_voxels(
    points: Tensor,  # float32 [Q, 3]   grid coordinates
    coords: Tensor,  # int32 [N, 3]     voxels outside the grid are ignored
    attrs: Tensor,  # float32 [N, C]
    resolution: int | Sequence[int],
    mode: str = "trilinear",  # or nearest
    kernels: Kernels = REFERENCE,  # the torch reference is differentiable in `attrs`
) -> tuple[Tensor, Tensor]:  # float32 [Q, C], float32 [Q]
    """Values at `points`, and how much of each sample rests on existing voxels, in [0, 1].

    See `kernels.voxel_sampler`, which also samples several times with one index.
    """
    size = (resolution,) * 3 if isinstance(resolution, int) else tuple(resolution)
    voxel_sampler: Any = kernels["voxel_sampler"]
    values, support = voxel_sampler(coords, attrs, size, mode)(points)
    return values, support


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
