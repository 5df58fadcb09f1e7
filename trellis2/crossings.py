"""Where triangles cross the edges of a grid: scan conversion along the three axes.

A grid edge runs along axis k between two voxel corners; on it meet four voxels. A line counts when
`low < line <= high` (upper side inclusive), so closed surfaces cross every line an even number of times,
whatever happens at their vertices. All positions are relative to the grid's minimum corner. Decisions fall in
float64 and depend on the written order of operations where a surface lies exactly on a grid plane.
Letters: F triangles, K crossings, N voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from trellis_core.sparse.order import find_sorted

DENSE_CELLS = 1 << 24  # grids up to 256^3 are looked up in a table, larger ones by binary search
WORK = 1 << 21  # grid lines considered at a time


@dataclass(frozen=True, slots=True)
class Crossings:
    """Points where a triangle meets a grid edge."""

    triangle: Tensor  # int64 [K]
    axis: Tensor  # int64 [K]       direction of the edge
    key: Tensor  # int64 [K]       linear key of the lowest of the four voxels around the edge
    point: Tensor  # float32 [K, 3]  relative to the grid's minimum corner


def find_crossings(
    triangles: Tensor,  # float32 [F, 3, 3]
    voxel_size: Tensor,  # float32 [3]
    size: Sequence[int],  # (Gx, Gy, Gz)
) -> Crossings:
    """All crossings of all triangles with the interior edges of the grid, ordered by triangle group."""
    extent = (triangles.amax(1) - triangles.amin(1)) / voxel_size + 1
    lines = (extent * extent.roll(-1, 1)).sum(1)
    groups = [scan(triangles, part, voxel_size, size) for part in bounded_parts(lines, WORK)]
    if not groups:
        groups = [scan(triangles, slice(0, 0), voxel_size, size)]
    return Crossings(*(torch.cat([getattr(g, f.name) for g in groups]) for f in fields(Crossings)))


def scan(triangles: Tensor, part: slice, voxel_size: Tensor, size: Sequence[int]) -> Crossings:
    """Scan conversion of one group: triangles -> rows (lines of equal b) -> columns (points of equal a).

    For an edge along k the other axes are a = k + 1 and b = k + 2, cyclically; corners are (a, b, k).
    """
    device = triangles.device
    axes = torch.tensor([[1, 2, 0], [2, 0, 1], [0, 1, 2]], device=device)  # row k: (a, b, k)
    steps = voxel_size.double()[axes]
    counts = torch.tensor(tuple(size), device=device)[axes]
    strides = torch.tensor((size[1] * size[2], size[2], 1), device=device)[axes]

    corners = triangles[part].double()[:, None, :, :].expand(-1, 3, -1, -1)
    corners = corners.gather(3, axes[None, :, None, :].expand(len(corners), -1, 3, -1)).reshape(-1, 3, 3)
    owner = torch.arange(part.start, part.stop, device=device).repeat_interleave(3)
    axis = torch.arange(3, device=device).repeat(part.stop - part.start)
    order = corners[:, :, 1].argsort(dim=1, stable=True)
    corners = corners.gather(1, order[:, :, None].expand(-1, -1, 3))

    row = line_below(corners[:, :, 1], steps[axis, 1:2], counts[axis, 1:2])
    item, j = expand_ranges(row[:, 0], row[:, 2])
    end = torch.where(j < row[item, 1], 0, 2)  # below the middle corner both edges start at the lowest one
    y = (j + 1) * steps[axis[item], 1]
    left = at_height(corners[item, end], corners[item, 1], y)
    right = at_height(corners[item, end], corners[item, 2 - end], y)
    swap = left[:, :1] > right[:, :1]
    left, right = torch.where(swap, right, left), torch.where(swap, left, right)

    k = axis[item]
    columns = line_below(torch.stack([left[:, 0], right[:, 0]], 1), steps[k, 0:1], counts[k, 0:1])
    span, i = expand_ranges(columns[:, 0], columns[:, 1])
    k, item, j, y = k[span], item[span], j[span], y[span]
    x = (i + 1) * steps[k, 0]
    z = between(left[span], right[span], x)
    depth = (z / steps[k, 2]).trunc().long()
    kept = ((depth >= 0) & (depth < counts[k, 2])).nonzero().squeeze(1)
    k, item, i, j, depth = k[kept], item[kept], i[kept], j[kept], depth[kept]
    key = i * strides[k, 0] + j * strides[k, 1] + depth * strides[k, 2]
    point = torch.empty(len(kept), 3, device=device)
    point.scatter_(1, axes[k], torch.stack([x[kept], y[kept], z[kept]], 1).float())
    return Crossings(owner[item], k, key, point)


def line_below(position: Tensor, step: Tensor, count: Tensor) -> Tensor:
    """Number of interior grid lines at or below a position; line n lies at (n + 1) steps."""
    return torch.minimum((position / step).trunc().long().clamp_min(0), count - 1)


def at_height(start: Tensor, end: Tensor, height: Tensor) -> Tensor:
    """(a, k) on the segment between two corners (a, b, k) where b = height; the start if b is constant."""
    rise = end[:, 1] - start[:, 1]
    t = torch.where(rise == 0, 0.0, (height - start[:, 1]) / rise)[:, None]
    return (1 - t) * start[:, ::2] + t * end[:, ::2]


def between(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """k where a = x on the segment between two points (a, k)."""
    width = right[:, 0] - left[:, 0]
    t = torch.where(width == 0, 0.0, (x - left[:, 0]) / width)
    return (1 - t) * left[:, 1] + t * right[:, 1]


def touched_voxels(
    crossings: Crossings,
    size: Sequence[int],
) -> Tensor:  # int64 [K, 4]   keys
    """The four voxels around the edge of each crossing; the first one carries the edge's flag."""
    strides = torch.tensor((size[1] * size[2], size[2], 1), device=crossings.key.device)
    a, b = strides[(crossings.axis + 1) % 3], strides[(crossings.axis + 2) % 3]
    return crossings.key[:, None] + torch.stack([torch.zeros_like(a), a, b, a + b], 1)


class VoxelTable:
    """The rows of a set of voxels: sorted unique keys and the way from a key to its row."""

    def __init__(self, keys: Tensor, size: Sequence[int]) -> None:
        cells = size[0] * size[1] * size[2]
        self.table: Tensor | None = None
        if cells <= DENSE_CELLS:
            occupied = torch.zeros(cells, dtype=torch.bool, device=keys.device)
            occupied[keys.reshape(-1)] = True
            self.keys = occupied.nonzero().squeeze(1)
            self.table = torch.full((cells,), -1, dtype=torch.int32, device=keys.device)
            self.table[self.keys] = torch.arange(len(self.keys), dtype=torch.int32, device=keys.device)
        else:
            self.keys = keys.unique()

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, keys: Tensor) -> Tensor:
        """int64, -1 for voxels that are not in the set."""
        return find_sorted(self.keys, keys) if self.table is None else self.table[keys].long()


def expand_ranges(
    start: Tensor,  # int64 [N]
    stop: Tensor,  # int64 [N]
) -> tuple[Tensor, Tensor]:
    """All integers of the ranges [start, stop), as (number of the range, integer)."""
    lengths = (stop - start).clamp_min(0)
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    first = lengths.cumsum(0) - lengths
    return owner, torch.arange(len(owner), device=owner.device) - (first - start)[owner]


def bounded_parts(work: Tensor, limit: int) -> Iterator[slice]:
    """Consecutive slices of about `limit` units of work each, at least one item per slice."""
    if not len(work):
        return
    total = work.double().cumsum(0)
    group = (total / limit).long()
    starts = [0, *((group[1:] != group[:-1]).nonzero().squeeze(1) + 1).tolist(), len(work)]
    for start, stop in pairwise(starts):
        yield slice(start, stop)
