"""Sample-wise operations on sparse and ragged tensors: reductions, selection, concatenation, padding, chunks.

Letters: B samples, T rows, L rows of the longest sample, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trellis_core.sparse.plan import RowLayout
from trellis_core.sparse.tensor import SparseTensor, VarLen

CHUNK_ELEMENTS = 1 << 24  # of the features that `map_rows` works on at a time

Ragged = SparseTensor | VarLen
Kind = TypeVar("Kind", SparseTensor, VarLen)


def sum_per_sample(x: Ragged) -> Tensor:
    """[B]: sum over the rows and channels of each sample."""
    return _sum_rows(x, _flat(x).sum(1))


def mean_per_sample(x: Ragged) -> Tensor:
    """[B]: mean over the rows and channels of each sample; 0 without rows."""
    return _mean_rows(x, _flat(x).mean(1))


def std_per_sample(x: Ragged) -> Tensor:
    """[B]: population standard deviation, sqrt(E[x^2] - E[x]^2), over rows and channels."""
    flat = _flat(x)
    mean = _mean_rows(x, flat.mean(1))
    return (_mean_rows(x, flat.square().mean(1)) - mean.square()).clamp_min(0).sqrt()


def select_samples(x: Kind, index: int | slice | Sequence[int] | Tensor) -> Kind:
    """Copy samples, renumbered from 0 in the order asked for. `index` may be a bool or integer tensor."""
    chosen = _sample_numbers(index, x.batch_size)
    device = x.feats.device
    ranges = [torch.arange(*x.layout.starts[i : i + 2], device=device) for i in chosen]
    rows = torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64, device=device)
    layout = RowLayout(tuple(x.seqlens[i] for i in chosen), device)
    feats = x.feats.index_select(0, rows)
    if isinstance(x, VarLen):
        return VarLen(feats, layout)
    return SparseTensor(feats, _renumbered(x.coords.index_select(0, rows), layout), len(chosen))


def concat_samples(tensors: Sequence[Kind]) -> Kind:
    """Put the samples of several tensors one after the other."""
    feats = torch.cat([x.feats for x in tensors])
    layout = RowLayout(tuple(n for x in tensors for n in x.seqlens), feats.device)
    first = tensors[0]
    if isinstance(first, VarLen):
        return VarLen(feats, layout)
    coords = torch.cat([x.coords for x in tensors])  # type: ignore[union-attr]
    return SparseTensor(feats, _renumbered(coords, layout), layout.batch_size)


def concat_channels(tensors: Sequence[Kind]) -> Kind:
    """Join the last axis of tensors on the same rows; coordinates and plan are the first one's."""
    first = tensors[0]
    for other in tensors[1:]:
        if other.seqlens != first.seqlens:
            raise ValueError(f"rows per sample differ: {first.seqlens} and {other.seqlens}")
    return first.replace(torch.cat([x.feats for x in tensors], dim=-1))


def pad_samples(x: Ragged) -> tuple[Tensor, Tensor]:
    """Dense `[B, L, ...]`, zero behind the end of a sample, and bool `[B, L]`, true where there are rows."""
    layout = x.layout
    length = layout.max_seqlen
    starts = layout.cu_seqlens.long()
    column = torch.arange(len(x.feats), device=x.feats.device) - starts[layout.sample_of_row]
    mask = torch.zeros(layout.batch_size, length, dtype=torch.bool, device=x.feats.device)
    mask[layout.sample_of_row, column] = True
    dense = x.feats.new_zeros(layout.batch_size, length, *x.feats.shape[1:])
    return dense.index_put((layout.sample_of_row, column), x.feats), mask


def repeated(
    voxels: Tensor,  # int32 [N, 3]
    samples: int,  # B
) -> Tensor:  # int32 [B * N, 4]
    """The same voxels for every sample."""
    batch = torch.arange(samples, dtype=torch.int32, device=voxels.device)
    return torch.cat([batch.repeat_interleave(len(voxels))[:, None], voxels.repeat(samples, 1)], dim=1)


def first_sample(
    coords: Tensor,  # int32 [N, 4]
) -> Tensor:  # int32 [M, 3]
    """The voxels of sample 0."""
    return coords[coords[:, 0] == 0, 1:]


def map_rows(
    function: Callable[[Tensor], Tensor],
    feats: Tensor,  # [T, C]
    overwrite: bool = False,
) -> Tensor:  # [T, ...]
    """Apply a row-wise function; without gradients chunk by chunk, to keep its intermediate values small.

    With `overwrite` the result takes the place of `feats` (same shape and dtype), unless gradients need it.
    """
    rows = max(1, CHUNK_ELEMENTS // max(1, feats.shape[1]))
    if torch.is_grad_enabled() or (len(feats) <= rows and not overwrite):
        return function(feats)
    first = function(feats[:rows])
    out = feats if overwrite else first.new_empty(len(feats), *first.shape[1:])
    out[:rows] = first
    for start in range(rows, len(feats), rows):
        out[start : start + rows] = function(feats[start : start + rows])
    return out


def _flat(x: Ragged) -> Tensor:
    return x.feats.flatten(1)


def _sum_rows(x: Ragged, values: Tensor) -> Tensor:
    return values.new_zeros(x.batch_size).index_add(0, x.layout.sample_of_row, values)


def _mean_rows(x: Ragged, values: Tensor) -> Tensor:
    counts = torch.tensor(x.seqlens, dtype=values.dtype, device=values.device)
    return _sum_rows(x, values) / counts.clamp_min(1)


def _renumbered(coords: Tensor, layout: RowLayout) -> Tensor:
    return torch.cat([layout.sample_of_row.int()[:, None], coords[:, 1:]], dim=1)


def _sample_numbers(index: int | slice | Sequence[int] | Tensor, batch_size: int) -> list[int]:
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        if index.shape != (batch_size,):
            raise IndexError(f"a mask of samples must be [{batch_size}], got {list(index.shape)}")
        return index.nonzero().squeeze(1).tolist()  # type: ignore[no-any-return]
    if isinstance(index, slice):
        return list(range(batch_size))[index]
    numbers = [index] if isinstance(index, int) else torch.as_tensor(index).tolist()
    for number in numbers:
        if not -batch_size <= number < batch_size:
            raise IndexError(f"sample {number} of a batch of {batch_size}")
    return [number % batch_size for number in numbers]
