"""Plans: everything that depends on the coordinates of a sparse tensor only, computed once and shared.

A plan belongs to one set of voxels. Tensors on the same voxels share the plan object, so the layers of a
level, and two decoders that expand alike, build each table once. A plan keeps the finer level it was
recorded from; a level that a mask made lives as long as its own tensors. Knows nothing about features or
models.
Resampling by 2: child number k = dx + 2 dy + 4 dz, d = coordinate mod 2.

Letters: B samples, T rows (voxels), P parent voxels, K kernel taps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from trellis_core.kernels.neighbor_map import kernel_offsets, refine_neighbor_map, voxel_keys

Made = TypeVar("Made")
NeighborMap = Callable[[Tensor, Tensor], Tensor]  # the `neighbor_map` operation of the kernel table

CHILD_OFFSETS = tuple((k & 1, k >> 1 & 1, k >> 2 & 1) for k in range(8))


@dataclass(frozen=True)
class RowLayout:
    """One contiguous range of rows per sample."""

    seqlens: tuple[int, ...]  # rows of each sample; may be 0
    device: torch.device

    @classmethod
    def of_batch_column(cls, batch: Tensor, batch_size: int) -> RowLayout:
        """From the sample index of every row. Raises ValueError when rows are not grouped by sample."""
        if batch.numel():
            if bool((batch[1:] < batch[:-1]).any()):
                raise ValueError("rows of one sample must be contiguous, samples in rising order")
            if int(batch[0]) < 0 or int(batch[-1]) >= batch_size:
                raise ValueError(
                    f"batch column holds {int(batch[0])}..{int(batch[-1])}, batch size is {batch_size}"
                )
        counts = torch.bincount(batch.long(), minlength=batch_size)
        return cls(tuple(counts.tolist()), batch.device)

    @property
    def batch_size(self) -> int:
        return len(self.seqlens)

    @property
    def max_seqlen(self) -> int:
        return max(self.seqlens, default=0)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each sample, and the number of rows."""
        starts = [0]
        for length in self.seqlens:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 [B + 1]: `starts` on the device."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.device)

    @cached_property
    def sample_of_row(self) -> Tensor:
        """int64 [T]"""
        lengths = torch.tensor(self.seqlens, dtype=torch.int64, device=self.device)
        samples = torch.arange(self.batch_size, device=self.device)
        return torch.repeat_interleave(samples, lengths, output_size=self.starts[-1])

    def rows(self, sample: int) -> slice:
        return slice(self.starts[sample], self.starts[sample + 1])


@dataclass(frozen=True, eq=False)
class Links:
    """Which child of which parent each voxel of a finer level is."""

    fine: SparsePlan
    slots: Tensor  # int32 [T]   8 * parent row + child number, all different
    parents: int  # P

    @cached_property
    def mask(self) -> Tensor:
        """bool [P, 8]: which children exist."""
        mask = torch.zeros(self.parents * 8, dtype=torch.bool, device=self.slots.device)
        mask[self.slots.long()] = True
        return mask.view(self.parents, 8)

    @property
    def parent_rows(self) -> Tensor:
        """int32 [T]"""
        return self.slots >> 3


class SparsePlan:
    """Coordinates and the tables derived from them.

    `recorded` is the topology of a downsampling that made this plan: upsampling restores exactly
    those voxels, in their original row order.
    """

    def __init__(
        self,
        coords: Tensor,  # int32 [T, 4]   sample, x, y, z; rows of one sample contiguous, no row twice
        batch_size: int,
        recorded: Links | None = None,
    ) -> None:
        if coords.dtype != torch.int32 or coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords must be int32 [T, 4], got {coords.dtype} {list(coords.shape)}")
        self.coords = coords
        self.batch_size = batch_size
        self.recorded = recorded
        self._made: dict[Hashable, Any] = {}
        self._coarse: weakref.ref[SparsePlan] | None = None
        self._expansion: tuple[Tensor, weakref.ref[SparsePlan]] | None = None  # mask, finer level
        self._slots: Tensor | None = None  # when a mask made this level: places among the parents' children
        self._parent_neighbors: Tensor | None = None  # until this level's own map is made from it

    def remember(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value made for `key` the first time it was asked for (windows, rotary phases, ...)."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Free the derived tables, also of recorded finer levels; they are made again when asked for."""
        self._made.clear()
        self._parent_neighbors = None
        if self.recorded is not None:
            self.recorded.fine.forget()

    @property
    def layout(self) -> RowLayout:
        return self.remember("layout", lambda: RowLayout.of_batch_column(self.coords[:, 0], self.batch_size))

    @property
    def extent(self) -> tuple[int, int, int]:
        """Per axis, the largest coordinate plus one; zeros without voxels."""

        def measure() -> tuple[int, int, int]:
            if len(self.coords) == 0:
                return (0, 0, 0)
            x, y, z = (self.coords[:, 1:].amax(0) + 1).tolist()
            return (x, y, z)

        return self.remember("extent", measure)

    def neighbors(self, find: NeighborMap, kernel_size: int = 3, dilation: int = 1) -> Tensor:
        """int32 [T, kernel_size ** 3]: row at every tap, x slowest; -1 where there is no voxel."""

        def make() -> Tensor:
            if self._parent_neighbors is not None and (kernel_size, dilation) == (3, 1):
                parent_neighbors, self._parent_neighbors = self._parent_neighbors, None
                assert self._slots is not None
                return refine_neighbor_map(parent_neighbors, self._slots)
            return find(self.coords, kernel_offsets(kernel_size, dilation).to(self.coords.device))

        return self.remember(("neighbors", kernel_size, dilation), make)

    def coarsen(self) -> SparsePlan:
        """The occupied 2x2x2 cells, sorted by (sample, x, y, z); its `recorded` links lead back here."""
        coarse = self._coarse() if self._coarse is not None else None
        if coarse is None:
            sample, x, y, z = self.coords.unbind(1)
            cells = torch.stack([sample, x >> 1, y >> 1, z >> 1], dim=1)
            size = tuple((n + 1) // 2 for n in self.extent)
            keys, parent = torch.unique(voxel_keys(cells, size, self.batch_size), return_inverse=True)
            number = (x & 1) + 2 * (y & 1) + 4 * (z & 1)
            coords = torch.empty(len(keys), 4, dtype=torch.int32, device=keys.device)
            coords[parent] = cells
            links = Links(self, (parent * 8 + number).int(), len(keys))
            coarse = SparsePlan(coords, self.batch_size, links)
            self._coarse = weakref.ref(coarse)
        return coarse

    def expand(
        self,
        mask: Tensor | None = None,  # bool [T, 8]   children that shall exist
    ) -> Links:
        """The finer level: the recorded one if there is one, else the children in `mask`.

        Masked children come parent by parent, by rising child number; a parent without children
        disappears. The same mask gives the same plan again, tables included, while that is in use.
        """
        if self.recorded is not None:
            return self.recorded
        if mask is None:
            raise ValueError("upsampling needs a mask: these voxels do not come from a downsampling")
        if mask.shape != (len(self.coords), 8):
            raise ValueError(f"mask must be [{len(self.coords)}, 8], got {list(mask.shape)}")
        fine = self._expansion[1]() if self._expansion is not None else None
        if fine is None or not torch.equal(self._expansion[0], mask):  # type: ignore[index]
            fine = self._expand(mask)
            self._expansion = (mask, weakref.ref(fine))
        assert fine._slots is not None
        return Links(fine, fine._slots, len(self.coords))

    def _expand(self, mask: Tensor) -> SparsePlan:
        slots = mask.reshape(-1).nonzero().squeeze(1).int()
        offsets = torch.tensor(CHILD_OFFSETS, dtype=torch.int32, device=slots.device)
        coords = self.coords.index_select(0, slots >> 3)
        coords[:, 1:] = 2 * coords[:, 1:] + offsets.index_select(0, slots & 7)
        fine = SparsePlan(coords, self.batch_size)
        fine._slots = slots
        fine._parent_neighbors = self._made.get(("neighbors", 3, 1))
        return fine

    def to(self, device: torch.device | str) -> SparsePlan:
        """The same voxels and recorded topology on another device; tables are made there anew."""
        if self.coords.device == torch.device(device):
            return self
        links = self.recorded
        if links is not None:
            links = Links(links.fine.to(device), links.slots.to(device), links.parents)
        return SparsePlan(self.coords.to(device), self.batch_size, links)
