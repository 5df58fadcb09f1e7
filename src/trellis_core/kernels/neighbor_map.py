"""Neighbour maps of sparse voxels: which row holds the voxel at an offset, -1 where there is none.

Letters: N voxels, K offsets, P parent voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_KEY = 2**63 - 1


def kernel_offsets(kernel_size: int, dilation: int = 1) -> Tensor:
    """int32 [kernel_size ** 3, 3], x slowest, centred; offset k is the opposite of offset K - 1 - k."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel size must be odd, got {kernel_size}")
    steps = torch.arange(kernel_size, dtype=torch.int32) - kernel_size // 2
    return torch.cartesian_prod(steps, steps, steps).view(-1, 3) * dilation


def voxel_keys(
    coords: Tensor,  # int32 [N, 4]   sample, x, y, z; inside the grid
    grid: Sequence[int],  # (Gx, Gy, Gz)
    batch_size: int,
) -> Tensor:  # int64 [N]
    """Rank of every voxel among all cells of all samples; z fastest. Raises ValueError beyond 63 bits."""
    if batch_size * grid[0] * grid[1] * grid[2] > LARGEST_KEY:
        raise ValueError(f"{batch_size} grids of {tuple(grid)} have more cells than 63 bits can count")
    sample, x, y, z = coords.long().unbind(1)
    return ((sample * grid[0] + x) * grid[1] + y) * grid[2] + z


def neighbor_map(
    coords: Tensor,  # int32 [N, 4]   sample, x, y, z; no row twice, any order
    offsets: Tensor,  # int32 [K, 3]   offset k is the opposite of offset K - 1 - k
) -> Tensor:  # int32 [N, K]
    """Binary search of sorted keys: one search per line of offsets along z, for half of the lines.

    A neighbour found at offset k of voxel i makes i the neighbour at the opposite offset, and the
    offsets of one line are adjacent in key order, so 3x3x3 offsets cost 4 searches.
    """
    if not torch.equal(offsets, -offsets.flip(0)):
        raise ValueError("offsets must come in opposite pairs: offset k = -offset[K - 1 - k]")
    count, taps = len(coords), len(offsets)
    found = torch.full((count, taps), -1, dtype=torch.int32, device=coords.device)
    if count == 0:
        return found
    lines: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for k, (dx, dy, dz) in enumerate(offsets.tolist()):
        if (dx, dy, dz) >= (0, 0, 0):
            lines.setdefault((dx, dy), []).append((dz, k))
    keys, strides = _padded_keys(coords, offsets)
    keys, rows = _sorted(keys)
    rows = rows.int()
    for (dx, dy), line in lines.items():
        step = dx * strides[0] + dy * strides[1]
        position, previous = None, 0
        for dz, k in sorted(line):
            if (dx, dy, dz) == (0, 0, 0):
                found[rows.long(), k] = rows
                position = torch.arange(1, count + 1, device=keys.device).clamp_(max=count - 1)
                continue
            query = keys + (step + dz)
            if position is None or dz != previous + 1:
                position = torch.searchsorted(keys, query).clamp_(max=count - 1)
            here = keys[position] == query
            ours = here.nonzero().squeeze(1)
            theirs = position[ours]
            found[rows[ours].long(), k] = rows[theirs]
            found[rows[theirs].long(), taps - 1 - k] = rows[ours]
            position = (position + here).clamp_(max=count - 1)  # first key that is not below the next query
            previous = dz
    return found


def refine_neighbor_map(
    coarse: Tensor,  # int32 [P, 27]   3x3x3 neighbour map of the parents
    slots: Tensor,  # int32 [N]       8 * parent row + child number (dx + 2 dy + 4 dz), all different
) -> Tensor:  # int32 [N, 27]
    """3x3x3 neighbour map of child voxels from their parents' map: gathers only, no search."""
    count, parents = len(slots), len(coarse)
    row_of_slot = torch.full((parents * 8 + 1,), -1, dtype=torch.int32, device=slots.device)
    row_of_slot[slots.long()] = torch.arange(count, dtype=torch.int32, device=slots.device)
    parent, number = (slots >> 3).long() * 27, (slots & 7).long()
    found = torch.empty(count, 27, dtype=torch.int32, device=slots.device)
    coarse = coarse.reshape(-1)
    for k, (taps, numbers) in enumerate(zip(*_child_steps(), strict=True)):
        tap = torch.tensor(taps, device=slots.device)[number]
        neighbor = coarse[parent + tap].long()
        slot = neighbor * 8 + torch.tensor(numbers, device=slots.device)[number]
        found[:, k] = row_of_slot[torch.where(neighbor < 0, parents * 8, slot)]
    return found


def _child_steps() -> tuple[list[list[int]], list[list[int]]]:
    """For each of 27 offsets and 8 child numbers: the parent's offset and the neighbour's child number."""
    taps, numbers = [], []
    for offset in kernel_offsets(3).tolist():
        ends = [[(n >> axis & 1) + offset[axis] for axis in range(3)] for n in range(8)]
        taps.append([9 * (x // 2 + 1) + 3 * (y // 2 + 1) + (z // 2 + 1) for x, y, z in ends])
        numbers.append([(x & 1) + 2 * (y & 1) + 4 * (z & 1) for x, y, z in ends])
    return taps, numbers


def _padded_keys(coords: Tensor, offsets: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Keys in a grid with a margin as wide as the offsets reach, so that no step leaves its line."""
    reach = int(offsets.abs().max())
    low, high = coords.amin(0).tolist(), coords.amax(0).tolist()
    size = [high[a] - low[a] + 1 + 2 * reach for a in (1, 2, 3)]
    base = torch.tensor(
        [low[0], *(low[a] - reach for a in (1, 2, 3))], dtype=torch.int32, device=coords.device
    )
    return voxel_keys(coords - base, size, high[0] - low[0] + 1), (size[1] * size[2], size[2])


def _sorted(keys: Tensor) -> tuple[Tensor, Tensor]:
    if bool((keys[1:] > keys[:-1]).all()):
        return keys, torch.arange(len(keys), device=keys.device)
    return torch.sort(keys)  # type: ignore[return-value]
