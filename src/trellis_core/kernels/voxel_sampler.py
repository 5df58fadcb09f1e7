"""Sampling a sparse voxel grid at continuous points, with the support of every sample. Plain torch.

Grid coordinates: voxel c spans [c, c + 1), its centre is c + 0.5. Knows nothing about meshes or textures.
Letters: Q points, N voxels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.kernels.keys import find_sorted, inside, linear_keys, sort_keys

Sampler = Callable[[Tensor], tuple[Tensor, Tensor]]  # float32 [Q, 3] -> float32 [Q, C], float32 [Q]

CHUNK = 1 << 17  # points at a time: about 50 MB of temporaries
MODES = ("trilinear", "nearest")


def voxel_sampler(
    coords: Tensor,  # int32 [N, 3]     voxels outside the grid are ignored; of equal ones the first counts
    attrs: Tensor,  # float32 [N, C]
    size: Sequence[int],  # cells along x, y, z
    mode: str = "trilinear",  # or nearest
) -> Sampler:
    """Index voxels once, to sample them at points: values, and how much of each rests on existing voxels.

    Trilinear: the eight nearest voxels, weights renormalised over those that exist, so that a surface keeps
    its value although it always borders empty cells; the support is the weight sum before renormalisation,
    in [0, 1]. Nearest: the voxel at trunc(point); the support is 1 or 0. A point without support gets zeros.
    Binary search of sorted keys. Raises `ValueError` for another mode.
    """
    check_mode(mode)
    keys, rows = index_voxels(coords, size)
    attrs = attrs.float()

    def sample(points: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.zeros(len(points), attrs.shape[1], device=points.device)
        support = torch.zeros(len(points), device=points.device)
        if keys.numel() == 0:
            return values, support
        for start in range(0, len(points), CHUNK):
            part = slice(start, start + CHUNK)
            if mode == "nearest":
                found = find_voxels(points[part].trunc().long(), keys, rows, size)
                values[part] = torch.where(found[:, None] >= 0, attrs[found.clamp_min(0)], 0.0)
                support[part] = (found >= 0).float()
            else:
                found, weights = trilinear_corners(points[part].float(), keys, rows, size)
                values[part], support[part] = blend(attrs, found, weights)
        return values, support

    return sample


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be `trilinear` or `nearest`, got `{mode}`")


def index_voxels(
    coords: Tensor,  # int32 [N, 3]
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Sorted keys of the voxels inside the grid, each once, and the first row of each in `coords`."""
    valid = inside(coords, size)
    kept = None if bool(valid.all()) else valid.nonzero().squeeze(1)
    keys, rows = sort_keys(linear_keys(coords if kept is None else coords[kept], size))
    repeated = keys[1:] == keys[:-1]
    if bool(repeated.any()):
        first = torch.cat([repeated.new_ones(1), ~repeated])
        keys, rows = keys[first], rows[first]
    return keys, rows if kept is None else kept[rows]


def find_voxels(
    cells: Tensor,  # int64 [Q, 3]
    keys: Tensor,  # int64 [N]   from index_voxels
    rows: Tensor,  # int64 [N]
    size: Sequence[int],
) -> Tensor:  # int64 [Q]   -1 where there is no voxel
    position = find_sorted(keys, linear_keys(cells, size))
    return torch.where((position >= 0) & inside(cells, size), rows[position], -1)


def trilinear_corners(
    points: Tensor,  # float32 [Q, 3]
    keys: Tensor,  # int64 [N]
    rows: Tensor,  # int64 [N]
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:  # int64 [Q, 8], float32 [Q, 8]
    """Row (-1 = none) and plain trilinear weight (0 where none) of the eight voxels around each point.

    Bit 0 of the corner number adds 1 to x, bit 1 to y, bit 2 to z. One search per (x, y) pair: the voxel
    above in z has the next key.
    """
    base = (points - 0.5).floor()
    near = 1 - (points - base - 0.5).abs()  # weight of the lower and the upper voxel on each axis
    far = 1 - (points - (base + 1) - 0.5).abs()
    wx, wy, wz = (torch.stack([near[:, k], far[:, k]], 1) for k in range(3))
    weights = (wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]).reshape(-1, 8)

    x, y, z = base.long().unbind(1)
    pairs = torch.stack([torch.stack([x, x + 1, x, x + 1], 1), torch.stack([y, y, y + 1, y + 1], 1)], 2)
    lower = linear_keys(torch.cat([pairs, z[:, None, None].expand(-1, 4, 1)], 2), size)
    position = torch.searchsorted(keys, lower)
    last = len(keys) - 1
    found_low = keys[position.clamp_max(last)] == lower
    above = position + found_low
    found_high = keys[above.clamp_(max=last)] == lower + 1
    in_columns = inside(pairs, size[:2])
    found_low &= in_columns & ((z >= 0) & (z < size[2]))[:, None]
    found_high &= in_columns & ((z >= -1) & (z < size[2] - 1))[:, None]

    positions = torch.cat([position.clamp_(max=last), above], 1)
    found = torch.where(torch.cat([found_low, found_high], 1), rows[positions], -1)
    return found, torch.where(found >= 0, weights, 0.0)


def blend(
    attrs: Tensor,  # float32 [N, C]
    found: Tensor,  # int64 [Q, 8]
    weights: Tensor,  # float32 [Q, 8]
) -> tuple[Tensor, Tensor]:
    """Weighted means over the existing corners, and the weight sums."""
    support = weights.sum(1)
    shares = weights / support.clamp_min(1e-12)[:, None]
    # a missing corner repeats an existing one with weight 0, so that no unrelated row is ever touched
    safe = torch.where(found >= 0, found, found.amax(1, keepdim=True)).clamp_min_(0)
    values = F.embedding_bag(safe, attrs, per_sample_weights=shares, mode="sum")
    return torch.where((found >= 0).any(1, keepdim=True), values, 0.0), support
