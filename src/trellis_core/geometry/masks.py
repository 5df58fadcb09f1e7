"""Cells of a grid that flat charts touch, with a margin, as runs along rows, in four quarter turns.

Only borders are looked at: cells near a border are marked, cells within are those that the border winds
around. Knows nothing about placing. Letters: K charts, W flat vertices, S border sides, P pieces of them,
M runs, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 0.9  # cells; borders are marked in pieces of this length, so that each crosses one row at most


@dataclass(frozen=True, slots=True)
class ChartRuns:
    """Cells of each chart after 0 .. 3 quarter turns; see `kernels.place`."""

    extents: Tensor  # int32 [K, 4, 2] width and height
    first: Tensor  # int32 [4 K + 1]
    runs: Tensor  # int32 [M, 3]    row, first and end column; the longest of a chart and turn come first


@dataclass(frozen=True, slots=True)
class Pieces:
    """Borders in short straight pieces, in the order of the border."""

    chart: Tensor  # int64 [P]
    start: Tensor  # float64 [P, 2]
    end: Tensor  # float64 [P, 2]

    def mirrored(self) -> Pieces:
        return Pieces(self.chart, self.start.flip(1), self.end.flip(1))


def chart_runs(
    points: Tensor,  # float64 [W, 2]  in cells, from 0 upwards in each chart
    chart: Tensor,  # int64 [W]
    border: Tensor,  # int64 [S, 2]    sides on chart borders, directed as their faces are
    size: Tensor,  # float64 [K, 2]  extent of each chart in cells
    margin: float,  # cells
) -> ChartRuns:
    """Every cell that comes within `margin` of a chart along rows and columns.

    Charts lie in their box with their corner at (margin, margin).
    """
    extent = (size + 2 * margin).floor().long() + 1
    width, height = extent.unbind(1)
    pieces = cut_in_pieces(points + margin, chart, border)
    chart, line, begin, end = marked_runs(pieces, width, height, margin)
    turns = [(4 * chart, line, begin, end)]
    turns += [(4 * chart + 2, height[chart] - 1 - line, width[chart] - end, width[chart] - begin)]
    chart, line, begin, end = marked_runs(pieces.mirrored(), height, width, margin)
    turns += [(4 * chart + 1, line, height[chart] - end, height[chart] - begin)]
    turns += [(4 * chart + 3, width[chart] - 1 - line, begin, end)]
    number, *run = (torch.cat(parts) for parts in zip(*turns, strict=True))
    runs = torch.stack(run, dim=1)
    order = torch.argsort(runs[:, 1] - runs[:, 2], stable=True)
    order = order[torch.argsort(number[order], stable=True)]
    first = torch.zeros(4 * len(extent) + 1, dtype=torch.int64, device=runs.device)
    first[1:] = torch.bincount(number, minlength=4 * len(extent)).cumsum(0)
    lying = extent.flip(1)
    return ChartRuns(torch.stack([extent, lying, extent, lying], 1).int(), first.int(), runs[order].int())


def cut_in_pieces(points: Tensor, chart: Tensor, border: Tensor) -> Pieces:
    begin, end = points[border[:, 0]], points[border[:, 1]]
    count = ((end - begin).abs().amax(1) / PIECE).ceil().long().clamp_min(1)
    side = torch.repeat_interleave(torch.arange(len(border), device=points.device), count)
    step = torch.arange(len(side), device=points.device) - (torch.cumsum(count, 0) - count)[side]
    begin, end, count = begin[side], end[side], count[side]

    def at(step: Tensor) -> Tensor:
        # Neighbouring pieces share their ends to the last bit, or rows would not close.
        inner = begin + (step / count)[:, None] * (end - begin)
        return torch.where((step == count)[:, None], end, inner)

    return Pieces(chart[border[:, 0]][side], at(step), at(step + 1))


def marked_runs(
    pieces: Pieces, width: Tensor, height: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs of cells near or within the border: chart, row, first and end column; sorted."""
    pitch = width + 1  # an empty column parts rows
    origin = torch.cumsum(pitch * height, 0) - pitch * height
    total = int((pitch * height).sum())
    near, within = (torch.zeros(total, dtype=torch.int32, device=origin.device) for _ in range(2))

    corner, pitch_here = origin[pieces.chart], pitch[pieces.chart]
    low = (torch.minimum(pieces.start, pieces.end) - margin).floor().long().clamp_min(0)
    high = (torch.maximum(pieces.start, pieces.end) + margin).floor().long()
    left, right = low[:, 0], torch.minimum(high[:, 0], width[pieces.chart] - 1) + 1
    top, bottom = low[:, 1], torch.minimum(high[:, 1], height[pieces.chart] - 1)
    one = torch.ones_like(top, dtype=torch.int32)
    for step in range(int((bottom - top).max()) + 1):
        row = corner + torch.minimum(top + step, bottom) * pitch_here
        near.index_add_(0, row + left, one).index_add_(0, row + right, -one)

    sign, row, column = crossings(pieces)
    within.index_add_(0, corner + row * pitch_here + column, sign)
    cells = torch.cumsum(near, 0, dtype=torch.int32) > 0
    cells |= torch.cumsum(within, 0, dtype=torch.int32) != 0
    before = torch.zeros_like(cells)
    before[1:] = cells[:-1]
    begin = torch.nonzero(cells & ~before).squeeze(1)
    end = torch.nonzero(before & ~cells).squeeze(1)
    owner = torch.searchsorted(origin, begin, right=True) - 1
    row = (begin - origin[owner]) // pitch[owner]
    start = origin[owner] + row * pitch[owner]
    return owner, row, begin - start, end - start


def crossings(pieces: Pieces) -> tuple[Tensor, Tensor, Tensor]:
    """Where pieces cross the middle of a row: +1 down or -1 up, the row, the first column past it.

    From that column on, cells are within once more, or once less. The sign is 0 where none is crossed.
    """
    here, there = pieces.start, pieces.end
    row = (torch.minimum(here[:, 1], there[:, 1]) - 0.5).ceil()
    drop = there[:, 1] - here[:, 1]
    crossed = row + 0.5 < torch.maximum(here[:, 1], there[:, 1])
    share = torch.where(crossed, (row + 0.5 - here[:, 1]) / torch.where(crossed, drop, 1.0), 0.0)
    column = (here[:, 0] + share * (there[:, 0] - here[:, 0]) - 0.5).ceil().clamp_min(0).long()
    return torch.where(crossed, drop.sign(), 0.0).int(), torch.where(crossed, row, 0.0).long(), column
