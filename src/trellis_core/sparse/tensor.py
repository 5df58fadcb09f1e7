"""Sparse tensors: features at integer voxel coordinates, and ragged tensors: features without coordinates.

Samples are stacked without padding. Knows nothing about attention, convolution or any model.
Structured latents: Xiang et al., "Structured 3D Latents for Scalable and Versatile 3D Generation" (2024).

Letters: B samples, T rows of all samples, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from trellis_core.sparse.plan import RowLayout, SparsePlan

Rows = TypeVar("Rows", bound="RowArithmetic")


class RowArithmetic:
    """`+ - * /` row by row with numbers and with tensors on the same rows.

    A plain tensor is refused because its rows could mean voxels, samples or channels: use
    `x.replace(x.feats * per_row)` or `x.replace(x.feats * x.broadcast(per_sample))`.
    """

    __slots__ = ()

    def _combine(self: Rows, other: object, operation: Callable[[Tensor, object], Tensor]) -> Rows:
        if isinstance(other, RowArithmetic):
            if other.layout.seqlens != self.layout.seqlens:  # type: ignore[attr-defined]
                raise ValueError(
                    f"rows per sample differ: {self.layout.seqlens} and {other.layout.seqlens}"  # type: ignore[attr-defined]
                )
            other = other.feats  # type: ignore[attr-defined]
        elif isinstance(other, Tensor) and other.ndim > 0:
            raise TypeError("combine `feats` or `broadcast(...)` with a plain tensor, not the whole")
        return self.replace(operation(self.feats, other))  # type: ignore[attr-defined, no-any-return]

    def __add__(self: Rows, other: object) -> Rows:
        return self._combine(other, lambda a, b: a + b)  # type: ignore[operator]

    def __sub__(self: Rows, other: object) -> Rows:
        return self._combine(other, lambda a, b: a - b)  # type: ignore[operator]

    def __rsub__(self: Rows, other: object) -> Rows:
        return self._combine(other, lambda a, b: b - a)  # type: ignore[operator]

    def __mul__(self: Rows, other: object) -> Rows:
        return self._combine(other, lambda a, b: a * b)  # type: ignore[operator]

    def __truediv__(self: Rows, other: object) -> Rows:
        return self._combine(other, lambda a, b: a / b)  # type: ignore[operator]

    def __neg__(self: Rows) -> Rows:
        return self.replace(-self.feats)  # type: ignore[attr-defined, no-any-return]

    __radd__ = __add__
    __rmul__ = __mul__

    def broadcast(
        self,
        values: Tensor,  # [B, ...] or [1, ...]
    ) -> Tensor:  # [T, ...]
        """Give every row the value of its sample."""
        layout: RowLayout = self.layout  # type: ignore[attr-defined]
        if values.shape[0] == 1:
            return values.expand(layout.starts[-1], *values.shape[1:])
        if values.shape[0] != layout.batch_size:
            raise ValueError(f"expected one value per sample ({layout.batch_size}), got {values.shape[0]}")
        return values.index_select(0, layout.sample_of_row)


@dataclass(frozen=True, slots=True, eq=False)
class VarLen(RowArithmetic):
    """Rows of several samples, one after the other (context tokens of different lengths)."""

    feats: Tensor  # [T, ...]
    layout: RowLayout

    def __post_init__(self) -> None:
        if len(self.feats) != self.layout.starts[-1]:
            raise ValueError(f"{len(self.feats)} rows, but the samples have {self.layout.starts[-1]}")

    @classmethod
    def of(cls, samples: list[Tensor]) -> VarLen:
        """Stack one tensor `[L_i, ...]` per sample."""
        feats = torch.cat(samples)
        return cls(feats, RowLayout(tuple(len(s) for s in samples), feats.device))

    @property
    def batch_size(self) -> int:
        return self.layout.batch_size

    @property
    def seqlens(self) -> tuple[int, ...]:
        return self.layout.seqlens

    @property
    def cu_seqlens(self) -> Tensor:
        return self.layout.cu_seqlens

    def replace(self, feats: Tensor) -> VarLen:
        return replace(self, feats=feats)


@dataclass(frozen=True, slots=True, eq=False)
class SparseTensor(RowArithmetic):
    """Features at voxels. Tensors made by `replace` share coordinates and plan."""

    feats: Tensor  # [T, ...]
    coords: Tensor  # int32 [T, 4]   sample, x, y, z; rows of one sample contiguous, no row twice
    batch_size: int  # B; samples without voxels count
    plan: SparsePlan = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.plan is None:
            object.__setattr__(self, "plan", SparsePlan(self.coords, self.batch_size))
        if len(self.feats) != len(self.plan.coords) or len(self.coords) != len(self.plan.coords):
            raise ValueError(
                f"{len(self.feats)} feature rows and {len(self.coords)} coordinates "
                f"do not fit a plan of {len(self.plan.coords)} voxels"
            )

    @classmethod
    def on(cls, plan: SparsePlan, feats: Tensor) -> SparseTensor:
        """Features on the voxels of an existing plan."""
        return cls(feats, plan.coords, plan.batch_size, plan)

    @property
    def layout(self) -> RowLayout:
        return self.plan.layout

    @property
    def seqlens(self) -> tuple[int, ...]:
        """Rows of each sample."""
        return self.layout.seqlens

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [B + 1]: first row of each sample, and T."""
        return self.layout.cu_seqlens

    @property
    def device(self) -> torch.device:
        return self.feats.device

    @property
    def dtype(self) -> torch.dtype:
        return self.feats.dtype

    def replace(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features; coordinates and plan are shared."""
        return SparseTensor(feats, self.coords, self.batch_size, self.plan)

    def to(self, target: torch.device | torch.dtype | str) -> SparseTensor:
        """Cast the features, or move everything; a moved tensor gets a plan of its own."""
        feats = self.feats.to(target)
        if feats.device == self.feats.device:
            return self.replace(feats)
        return SparseTensor.on(self.plan.to(feats.device), feats)

    def without_topology(self) -> SparseTensor:
        """The same voxels as if they had not come from a downsampling: masks decide how they expand."""
        return SparseTensor(self.feats, self.coords, self.batch_size)

    def __len__(self) -> int:
        return len(self.feats)
