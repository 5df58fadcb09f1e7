"""Changes of resolution by 2: between a level and its 2x2x2 parents, along the links of a plan.

Child number k = dx + 2 dy + 4 dz, d = coordinate mod 2; channel c of child k is channel k * C + c of the
parent (unlike the pixel shuffle of dense grids, where x is most significant).

Letters: T fine voxels, P parents, C channels.
"""

from __future__ import annotations

from torch import Tensor

from trellis_core.sparse.plan import Links, SparsePlan
from trellis_core.sparse.tensor import SparseTensor


def space_to_channel(x: SparseTensor) -> SparseTensor:
    """`[T, C]` -> `[P, 8 C]` on the parents; missing children are zeros."""
    coarse, links = _coarser(x)
    channels = x.feats.shape[1]
    stacked = x.feats.new_zeros(links.parents * 8, channels)
    stacked = stacked.index_copy(0, links.slots.long(), x.feats)
    return SparseTensor.on(coarse, stacked.view(links.parents, 8 * channels))


def channel_to_space(x: SparseTensor, mask: Tensor | None = None) -> SparseTensor:
    """`[P, 8 C]` -> `[T, C]` on the children in `mask` (bool [P, 8]), or on the recorded finer voxels."""
    links = x.plan.expand(mask)
    return SparseTensor.on(links.fine, take_children(x.feats, links))


def take_children(feats: Tensor, links: Links) -> Tensor:
    """`[P, 8 C]` -> `[T, C]`: each child's slice of its parent."""
    return feats.reshape(links.parents * 8, feats.shape[1] // 8).index_select(0, links.slots)


def pool_mean(x: SparseTensor) -> SparseTensor:
    """`[T, C]` -> `[P, C]`: mean over the children that exist."""
    coarse, links = _coarser(x)
    total = x.feats.new_zeros(links.parents, x.feats.shape[1]).index_add(0, links.parent_rows, x.feats)
    return SparseTensor.on(coarse, total / links.mask.sum(1, keepdim=True).to(total.dtype))


def repeat_parents(x: SparseTensor, mask: Tensor | None = None) -> SparseTensor:
    """`[P, C]` -> `[T, C]`: every child gets its parent's features (nearest-neighbour upsampling)."""
    links = x.plan.expand(mask)
    return SparseTensor.on(links.fine, x.feats.index_select(0, links.parent_rows))


def _coarser(x: SparseTensor) -> tuple[SparsePlan, Links]:
    coarse = x.plan.coarsen()
    links = coarse.recorded
    assert links is not None, "a plan made by coarsening records where it came from"
    return coarse, links
