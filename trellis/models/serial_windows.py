"""Attention in windows along a space-filling curve, which some training configurations ask for.

Voxels are sorted along the curve and cut into windows of equal length that overlap; a voxel gets its result
from the one window in which it is not overlap. No released checkpoint uses it.
Letters: T voxels, n voxels of one sample, W window length, k windows of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.nn.attention import Packing, SelfAttention
from trellis_core.sparse.order import hilbert_encode, morton_encode
from trellis_core.sparse.plan import SparsePlan


def transposed(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The curve with x and y exchanged."""
    return lambda coords: encode(coords[..., [1, 0, 2]])


CURVES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Z_ORDER": morton_encode,
    "Z_ORDER_TRANSPOSED": transposed(morton_encode),
    "HILBERT": hilbert_encode,
    "HILBERT_TRANSPOSED": transposed(hilbert_encode),
}


@dataclass(frozen=True, slots=True, eq=False)
class SerialWindows:
    """Which rows each window sees, and where each row finds its result."""

    gather: Tensor  # int64 [S]  rows, window after window; a row occurs in every window that sees it
    packing: Packing  # of the S gathered rows
    scatter: Tensor  # int64 [T]  place of each row's result among the S
    sample_of_window: tuple[int, ...]


def serial_windows(
    plan: SparsePlan,
    size: int,  # W
    *,
    shift_sequence: int = 0,  # windows start so many places later
    shift_window: tuple[int, int, int] = (0, 0, 0),  # added to the coordinates before they are sorted
    curve: str = "Z_ORDER",
) -> SerialWindows:
    """Cut the voxels of every sample into windows; computed once per plan."""
    key = ("serial", size, shift_sequence, shift_window, curve)
    return plan.remember(key, lambda: _cut(plan, size, shift_sequence, shift_window, curve))


def _cut(
    plan: SparsePlan, size: int, shift_sequence: int, shift_window: tuple[int, int, int], curve: str
) -> SerialWindows:
    offset = torch.tensor(shift_window, dtype=torch.int32, device=plan.coords.device)
    codes = CURVES[curve](plan.coords[:, 1:] + offset)
    gather: list[Tensor] = []
    lengths: list[int] = []
    samples: list[int] = []
    scatter = torch.empty(len(codes), dtype=torch.int64)
    for sample in range(plan.batch_size):
        start, stop = plan.layout.starts[sample : sample + 2]
        count = stop - start
        if count == 0:
            continue
        order = (codes[start:stop].argsort() + start).cpu()
        windows = math.ceil(count / size)
        own = count / windows  # places of the sequence that belong to one window
        for number in range(windows):
            if windows == 1:
                seen = own_places = torch.arange(count)
            else:
                first = math.floor((number + 0.5) * own + shift_sequence - size / 2)
                seen = torch.arange(first, first + size)
                own_places = torch.arange(
                    math.floor(number * own + shift_sequence), math.floor((number + 1) * own + shift_sequence)
                )
            scatter[order[own_places % count]] = sum(lengths) + own_places - seen[0]
            gather.append(order[seen % count])
            lengths.append(len(seen))
            samples.append(sample)
    device = plan.coords.device
    rows = torch.cat(gather).to(device) if gather else torch.empty(0, dtype=torch.int64, device=device)
    return SerialWindows(rows, Packing.of(lengths, device), scatter.to(device), tuple(samples))


class SerialWindowAttention(SelfAttention):
    """Self-attention [T, C] within serial windows."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        phases: Tensor | None = None,
        packing: SerialWindows | None = None,
    ) -> Tensor:
        assert packing is not None, "serial windows say what attends to what"
        return super().forward(x[packing.gather], phases, packing.packing)[packing.scatter]
