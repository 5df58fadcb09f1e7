# mypy: ignore-errors
"""Placing shapes made of grid cells, in Warp on the CPU. The twin of `place.py`, equal to the last bit.

A shape moves right until none of its runs meets a taken cell; a run that does moves it past that obstacle at
once. One thread, as every place depends on those before.
"""

from __future__ import annotations

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.warp_start import start_warp

start_warp()
wp.set_module_options({"enable_backward": False})


def place_warp(
    extents: Tensor, first: Tensor, runs: Tensor, kinds: Tensor, width: int, height: int
) -> Tensor:
    """See `place.place`."""
    placed = torch.full((len(extents), 3), -1, dtype=torch.int32, device="cpu")
    longest = torch.full(
        (height,), width, dtype=torch.int32, device="cpu"
    )  # free cells in a row, for each row
    lowest = torch.zeros(
        int(kinds.max()) + 1, 4, dtype=torch.int32, device="cpu"
    )  # row where a kind and turn is looked for
    # For a free cell the next taken column of its row, for a taken one minus the next free column.
    ahead = torch.full((height, width + 1), width + 1, dtype=torch.int32, device="cpu")
    wp.launch(
        place_all,
        dim=1,
        inputs=[
            wp.from_torch(extents.reshape(-1, 2).contiguous(), dtype=wp.vec2i),
            wp.from_torch(first.contiguous()),
            wp.from_torch(runs.contiguous(), dtype=wp.vec3i),
            wp.from_torch(kinds.contiguous()),
            width,
            height,
            wp.from_torch(ahead),
            wp.from_torch(longest),
            wp.from_torch(lowest),
        ],
        outputs=[wp.from_torch(placed, dtype=wp.vec3i)],
        device="cpu",
    )
    return placed


@wp.func
def free_column(
    ahead: wp.array2d(dtype=wp.int32),
    runs: wp.array(dtype=wp.vec3i),
    start: wp.int32,
    end: wp.int32,
    row: wp.int32,
    last: wp.int32,
) -> wp.int32:
    """Leftmost column at which no run meets a taken cell; more than `last` when there is none."""
    column = wp.int32(0)
    run = wp.int32(start)
    passed = wp.int32(0)  # runs in a row that met nothing
    while passed < end - start and column <= last:
        cells = runs[run]
        line = row + cells[0]
        left = column + cells[1]
        next_taken = ahead[line, left]
        if next_taken > 0 and next_taken < column + cells[2]:
            next_taken = ahead[line, next_taken]
        if next_taken < 0:
            column = -next_taken - cells[1]
            passed = wp.int32(0)
        else:
            passed += 1
        run += 1
        if run == end:
            run = wp.int32(start)
    return column


@wp.func
def take(ahead: wp.array2d(dtype=wp.int32), row: wp.int32, left: wp.int32, right: wp.int32, width: wp.int32):
    """Mark the cells from `left` to `right` (exclusive) of a row as taken."""
    end = wp.int32(right)
    if right < width and ahead[row, right] < 0:
        end = -ahead[row, right]
    for column in range(left, right):
        ahead[row, column] = -end
    column = wp.int32(left - 1)
    while column >= 0 and ahead[row, column] < 0:
        ahead[row, column] = -end
        column -= 1
    first_taken = column + 1
    while column >= 0 and ahead[row, column] > 0:
        ahead[row, column] = first_taken
        column -= 1


@wp.func
def longest_gap(ahead: wp.array2d(dtype=wp.int32), row: wp.int32, width: wp.int32) -> wp.int32:
    gap = wp.int32(0)
    column = wp.int32(0)
    while column < width:
        next_column = ahead[row, column]
        if next_column < 0:
            column = -next_column
        else:
            gap = wp.max(gap, wp.min(next_column, width) - column)
            column = next_column
    return gap


@wp.kernel
def place_all(
    extents: wp.array(dtype=wp.vec2i),
    first: wp.array(dtype=wp.int32),
    runs: wp.array(dtype=wp.vec3i),
    kinds: wp.array(dtype=wp.int32),
    width: wp.int32,
    height: wp.int32,
    ahead: wp.array2d(dtype=wp.int32),
    longest: wp.array(dtype=wp.int32),
    lowest: wp.array2d(dtype=wp.int32),
    placed: wp.array(dtype=wp.vec3i),
):
    for shape in range(placed.shape[0]):
        best = wp.vec3i(-1, -1, -1)
        top = wp.int32(height + 1)
        for turn in range(4):
            number = 4 * shape + turn
            extent = extents[number]
            last = width - extent[0]
            widest = runs[first[number]]
            row = wp.int32(lowest[kinds[shape], turn])
            while row + extent[1] < top:
                if longest[row + widest[0]] >= widest[2] - widest[1]:
                    column = free_column(ahead, runs, first[number], first[number + 1], row, last)
                    if column <= last:
                        best = wp.vec3i(column, row, turn)
                        top = row + extent[1]
                row += 1
        if best[0] < 0:
            return
        for turn in range(4):
            row = top - extents[4 * shape + turn][1]
            lowest[kinds[shape], turn] = wp.max(lowest[kinds[shape], turn], row)
        number = 4 * shape + best[2]
        for run in range(first[number], first[number + 1]):
            cells = runs[run]
            row = best[1] + cells[0]
            take(ahead, row, best[0] + cells[1], best[0] + cells[2], width)
            longest[row] = longest_gap(ahead, row, width)
        placed[shape] = best
