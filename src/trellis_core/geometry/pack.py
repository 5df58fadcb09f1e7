"""Placing flat charts in a square: the cells of a grid that they touch, placed bottom-left, in four turns.

Charts keep their size relative to each other. Only their borders are looked at. Everything but the placing
itself runs where the charts are. Letters: K charts, W flat vertices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.connectivity import number_labels
from trellis_core.geometry.flatten import FlatCharts
from trellis_core.geometry.masks import ChartRuns, chart_runs
from trellis_core.kernels.table import Kernels

GRID = 1024  # cells along a side, at most one for each texel
FINENESS = (1, 4, 16)  # times as many where there is no room otherwise
FINEST = 4096  # cells along a side
EXPECTED_COVERAGE = 0.65
ROUNDS = 7  # scales that are tried; as many again when none of them fits
GOOD_FIT = 0.992  # of the smallest scale known to be too large
KINDS = 16  # sizes in an octave; boxes of one size are looked for a place from where the last one found it
FEW = 1500  # charts; of more, sizes are told apart a quarter as finely, for speed


def pack(flat: FlatCharts, texture_size: int, kernels: Kernels) -> Tensor:
    """Place the charts in the unit square with at least two texels between them; uvs float32 [W, 2].

    Many small charts fit on finer cells only, where a texel that two charts touch may be their distance.
    Raises `UsageError` where there is no room for that, either.
    """
    coarse = min(texture_size, GRID)
    for grid in (coarse * fineness for fineness in FINENESS if coarse * fineness <= FINEST):
        uvs = find_scale(flat, texture_size, grid, kernels)
        if uvs is not None:
            return uvs
    raise UsageError(
        f"a texture of {texture_size} x {texture_size} texels has no room for {len(flat.size)} charts",
        hint="use a larger texture, or smooth the surface",
    )


def find_scale(flat: FlatCharts, texture_size: int, grid: int, kernels: Kernels) -> Tensor | None:
    """Place the charts as large as they fit on a grid, or None.

    Tries scales: the height of a packing says how much larger or smaller the charts should have been.
    """
    margin = 0.5 * padding_of(texture_size) * grid / texture_size
    longest = max(float(flat.size.max()), 1e-30)
    scale = min(math.sqrt(EXPECTED_COVERAGE / max(flat_area(flat), 1e-60)), 1 / longest) * grid
    fits, too_large, best = 0.0, math.inf, None
    for step in range(2 * ROUNDS):
        packing = place_charts(flat, scale, margin, grid, kernels)
        if packing.height <= grid:
            fits, best = scale, packing
        else:
            too_large = scale
        if packing.height == grid or fits > GOOD_FIT * too_large or (best is not None and step >= ROUNDS - 1):
            break
        scale *= math.sqrt(grid / packing.height)
        if best is None:  # what stays empty between charts does not shrink with them
            scale *= GOOD_FIT ** max(step - 2, 0)
        elif not fits < scale < too_large:
            scale = math.sqrt(fits * too_large) if too_large < math.inf else fits / GOOD_FIT
    return None if best is None else (best.points / grid).clamp(0, 1).float()


def padding_of(texture_size: int) -> int:
    """Texels that stay empty between charts."""
    return max(2, texture_size // 512)


def rim_of(texture_size: int, area: float) -> float:
    """How wide a strip along the two sides of a cut stays empty, in units of a surface of some area."""
    texel = math.sqrt(area / EXPECTED_COVERAGE) / texture_size
    return 1.5 * padding_of(texture_size) * texel


def flat_area(flat: FlatCharts) -> float:
    a, b, c = flat.points.double()[flat.faces].unbind(1)
    return 0.5 * float(((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs().sum())


@dataclass(frozen=True, slots=True)
class Packing:
    points: Tensor  # float64 [W, 2] in cells
    height: int  # cells; the width is that of the grid


def place_charts(flat: FlatCharts, scale: float, margin: float, grid: int, kernels: Kernels) -> Packing:
    """Pack at one scale (cells per unit), charts with the longest boxes first.

    Charts without room on a grid of twice the height count as twice as high.
    """
    points, size = flat.points.double() * scale, flat.size.double() * scale
    found = chart_runs(points, flat.chart, flat.border, size, margin)
    shapes = ChartRuns(found.extents.cpu(), found.first.cpu(), found.runs.cpu())
    order = torch.argsort(-shapes.extents[:, 0].sum(1), stable=True)
    height, placed = place_in_order(shapes, order, grid, kernels)
    column, row, turn = placed.to(flat.chart.device)[flat.chart].unbind(1)
    x, y = (points + margin).unbind(1)
    width, tall = found.extents[flat.chart, 0].double().unbind(1)
    x, y = turned(x, y, width, tall, turn)
    return Packing(torch.stack([x + column, y + row], dim=1), height)


def turned(x: Tensor, y: Tensor, width: Tensor, height: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Points of a box after 0 .. 3 quarter turns of it."""
    across = torch.where(
        turn == 0, x, torch.where(turn == 1, height - y, torch.where(turn == 2, width - x, y))
    )
    down = torch.where(turn == 0, y, torch.where(turn == 1, x, torch.where(turn == 2, height - y, width - x)))
    return across, down


def place_in_order(shapes: ChartRuns, order: Tensor, grid: int, kernels: Kernels) -> tuple[int, Tensor]:
    """Height in cells, and column, row and turn of each chart, int32 [K, 3], placed in an order."""
    first = shapes.first.long()
    count = (first[1:] - first[:-1]).reshape(-1, 4)[order].reshape(-1)
    start = first[:-1].reshape(-1, 4)[order].reshape(-1)
    ordered = torch.zeros(len(count) + 1, dtype=torch.int64, device="cpu")
    ordered[1:] = torch.cumsum(count, 0)
    source = torch.repeat_interleave(start - ordered[:-1], count)
    source += torch.arange(len(source), device="cpu")
    extents = shapes.extents[order]
    fineness = KINDS if len(extents) <= FEW else KINDS // 4
    octave = (extents[:, 0].double().log2() * fineness).round().long()
    kinds, _ = number_labels(octave[:, 0] * 1024 + octave[:, 1])
    place: Any = kernels["place"]
    found = place(extents, ordered.int(), shapes.runs[source], kinds.int(), grid, 2 * grid)
    if bool((found < 0).any()):
        return 2 * grid, found
    top = found[:, 1] + extents[torch.arange(len(extents), device="cpu"), found[:, 2].long(), 1]
    placed = torch.empty_like(found)
    placed[order] = found
    return int(top.max()), placed
