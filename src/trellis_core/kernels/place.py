"""Placing shapes made of grid cells beside each other, bottom-left, each in the best of four turns.

The shapes are placed in the given order, each where it ends lowest; ties go to the first turn, then to the
leftmost column. Holes of earlier shapes are used. Plain torch, on the CPU. Packing into rows of a growing
strip, bottom-left: Baker, Coffman & Rivest, "Orthogonal Packings in Two Dimensions" (1980).
Letters: K shapes, M runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 32


def place(
    extents: Tensor,  # int32 [K, 4, 2]    width and height of each shape after 0 .. 3 quarter turns
    first: Tensor,  # int32 [4 K + 1]  where the runs of each shape and turn start; the last is M
    runs: Tensor,  # int32 [M, 3]     row, first column, end column (exclusive) of the cells of a shape
    kinds: Tensor,  # int32 [K]        shapes that are alike: none is looked for below the last of its kind
    width: int,
    height: int,
) -> (
    Tensor
):  # int32 [K, 3]  column, row and turn of each shape; -1 for the first without room and those after it
    """Find a place for every shape on a grid of `width` x `height` cells; no cell is used twice."""
    before = torch.zeros(
        height, width + 1, dtype=torch.int32, device="cpu"
    )  # taken cells left of each column
    taken = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    starts, sizes, cells = first.tolist(), extents.tolist(), runs.tolist()
    lowest: dict[tuple[int, int], int] = {}
    placed = torch.full((len(sizes), 3), -1, dtype=torch.int32, device="cpu")
    for shape, (kind, turns) in enumerate(zip(kinds.tolist(), sizes, strict=True)):
        best, top = None, height + 1
        for turn, (wide, high) in enumerate(turns):
            own = cells[starts[4 * shape + turn] : starts[4 * shape + turn + 1]]
            rows = range(lowest.get((kind, turn), 0), top - high)
            found = lowest_place(before, own, wide, rows)
            if found is not None:
                best, top = (*found, turn), found[1] + high
        if best is None:
            return placed
        for turn, (_, high) in enumerate(turns):
            lowest[kind, turn] = max(lowest.get((kind, turn), 0), top - high)
        column, row, turn = best
        for line, start, end in cells[starts[4 * shape + turn] : starts[4 * shape + turn + 1]]:
            taken[row + line, column + start : column + end] = True
        touched = slice(row, top)
        before[touched, 1:] = torch.cumsum(taken[touched], 1, dtype=torch.int32)
        placed[shape] = torch.tensor(best, device="cpu")
    return placed


def lowest_place(before: Tensor, own: list[list[int]], wide: int, rows: range) -> tuple[int, int] | None:
    """Column and row of the lowest free place that starts in one of the rows, and of those the leftmost."""
    columns = before.shape[1] - wide
    if columns < 1:
        return None
    for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows.stop - start)
        blocked = torch.zeros(count, columns, dtype=torch.bool, device="cpu")
        for line, left, right in own:
            window = before[start + line : start + line + count]
            blocked |= window[:, right : right + columns] != window[:, left : left + columns]
        free = torch.nonzero(~blocked)
        if len(free):
            return int(free[0, 1]), start + int(free[0, 0])
    return None
