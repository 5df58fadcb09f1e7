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


@dataclass(frozen=True, slots=True)
class Cells:
    """Boxes of cells, one for each chart, in one row of memory; an empty column parts rows."""

    pitch: Tensor  # int64 [K]  width and one
    height: Tensor  # int64 [K]
    origin: Tensor  # int64 [K]  first cell

    def count(self) -> int:
        return int((self.pitch * self.height).sum())


def cells_of(width: Tensor, height: Tensor) -> Cells:
    count = (width + 1) * height
    return Cells(width + 1, height, torch.cumsum(count, 0) - count)


def wound_twice(points: Tensor, chart: Tensor, border: Tensor, size: Tensor) -> Tensor:
    """Charts whose border winds around a cell more than once, bool [K]: all that can lie over themselves."""
    extent = size.floor().long() + 1
    cells = cells_of(extent[:, 0], extent[:, 1])
    winding = winding_numbers(cut_in_pieces(points, chart, border), cells)
    place = torch.nonzero(winding.abs() > 1).squeeze(1)
    found = torch.zeros(len(size), dtype=torch.bool, device=points.device)
    found[torch.searchsorted(cells.origin, place, right=True) - 1] = True
    return found


def winding_numbers(pieces: Pieces, cells: Cells) -> Tensor:
    """How often the border winds around the middle of each cell, int32 [C]."""
    sign, row, column = crossings(pieces)
    place = cells.origin[pieces.chart] + row * cells.pitch[pieces.chart] + column
    change = torch.zeros(cells.count(), dtype=torch.int32, device=sign.device).index_add_(0, place, sign)
    return torch.cumsum(change, 0, dtype=torch.int32)


def marked_runs(
    pieces: Pieces, width: Tensor, height: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs of cells near or within the border: chart, row, first and end column; sorted."""
    cells = cells_of(width, height)
    low = (torch.minimum(pieces.start, pieces.end) - margin).floor().long().clamp_min(0)
    high = (torch.maximum(pieces.start, pieces.end) + margin).floor().long()
    left, right = low[:, 0], torch.minimum(high[:, 0] + 1, width[pieces.chart])
    top, bottom = low[:, 1], torch.minimum(high[:, 1], height[pieces.chart] - 1)
    near = torch.zeros(cells.count(), dtype=torch.int32, device=width.device)
    one = torch.ones_like(top, dtype=torch.int32)
    for step in range(int((bottom - top).max()) + 1):
        row = cells.origin[pieces.chart] + torch.minimum(top + step, bottom) * cells.pitch[pieces.chart]
        near.index_add_(0, row + left, one).index_add_(0, row + right, -one)
    marked = torch.cumsum(near, 0, dtype=torch.int32) > 0
    marked |= winding_numbers(pieces, cells) != 0
    before = torch.zeros_like(marked)
    before[1:] = marked[:-1]
    begin = torch.nonzero(marked & ~before).squeeze(1)
    end = torch.nonzero(before & ~marked).squeeze(1)
    owner = torch.searchsorted(cells.origin, begin, right=True) - 1
    row = (begin - cells.origin[owner]) // cells.pitch[owner]
    start = cells.origin[owner] + row * cells.pitch[owner]
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
