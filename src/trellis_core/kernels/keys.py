"""Linear keys of voxels, and lookups on sorted ones.

Coordinates outside the grid must be filtered out before a key is computed: they would alias other voxels.
Letters: N voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_keys(
    coords: Tensor,  # int32 or int64 [..., 3]   inside the grid
    grid: Sequence[int],  # (Gx, Gy, Gz)
) -> Tensor:  # int64 [...]               x slowest, z fastest
    """Flat index of every voxel; 64 bits because 1536^3 cells do not fit into 31."""
    x, y, z = coords.long().unbind(-1)
    return (x * grid[1] + y) * grid[2] + z


def key_coords(
    keys: Tensor,  # int64 [...]
    grid: Sequence[int],
) -> Tensor:  # int32 [..., 3]
    """Inverse of `linear_keys`."""
    xy = keys // grid[2]
    return torch.stack([xy // grid[1], xy % grid[1], keys % grid[2]], dim=-1).int()


def inside(
    coords: Tensor,  # integer [..., 3]
    grid: Sequence[int],
) -> Tensor:  # bool [...]
    """Which coordinates lie inside the grid."""
    upper = torch.tensor(tuple(grid), device=coords.device, dtype=coords.dtype)
    return ((coords >= 0) & (coords < upper)).all(-1)


def sort_keys(
    keys: Tensor,  # int64 [N]
) -> tuple[Tensor, Tensor]:
    """Sorted keys and the row each came from; costs one pass when the keys are sorted already."""
    if keys.numel() < 2 or bool((keys[1:] > keys[:-1]).all()):
        return keys, torch.arange(keys.numel(), device=keys.device)
    return torch.sort(keys, stable=True)  # type: ignore[return-value]


def find_sorted(
    sorted_keys: Tensor,  # int64 [N]   ascending
    queries: Tensor,  # int64 [...]
) -> Tensor:  # int64 [...] position of the first equal key, -1 where absent
    """Binary search of many keys at once."""
    if sorted_keys.numel() == 0:
        return torch.full_like(queries, -1)
    position = torch.searchsorted(sorted_keys, queries).clamp_(max=sorted_keys.numel() - 1)
    return torch.where(sorted_keys[position] == queries, position, -1)
