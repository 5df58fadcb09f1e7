"""Properties of sparse tensors that hold for any set of voxels.

Down and up again restores voxels and features; tables made from a coarser level equal tables made by
search; a convolution does not depend on the order of the rows, nor on where the voxels lie.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.kernels.neighbor_map import kernel_offsets, neighbor_map
from trellis_core.kernels.sparse_conv import sparse_conv
from trellis_core.sparse.ops import concat_samples, select_samples
from trellis_core.sparse.plan import SparsePlan
from trellis_core.sparse.spatial import channel_to_space, pool_mean, repeat_parents, space_to_channel
from trellis_core.sparse.tensor import SparseTensor

fast = settings(max_examples=40, deadline=None)


@st.composite
def sparse_tensors(draw, channels: int = 3) -> SparseTensor:
    batch = draw(st.integers(1, 3))
    side = draw(st.sampled_from([2, 5, 1536]))
    rows = []
    for sample in range(batch):
        xyz = st.tuples(*[st.integers(0, side - 1)] * 3)
        rows += [(sample, *p) for p in draw(st.lists(xyz, max_size=12, unique=True))]
    coords = torch.tensor(rows, dtype=torch.int32).reshape(-1, 4)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    return SparseTensor(torch.randn(len(coords), channels, generator=generator), coords, batch)


@fast
@given(sparse_tensors())
def test_space_to_channel_and_back_is_the_identity(x):
    back = channel_to_space(space_to_channel(x))
    assert back.plan is x.plan
    assert torch.equal(back.feats, x.feats)


@fast
@given(sparse_tensors())
def test_pooling_repeated_features_gives_them_back(x):
    coarse = pool_mean(x)
    assert torch.allclose(pool_mean(repeat_parents(coarse)).feats, coarse.feats, atol=1e-6)


@fast
@given(sparse_tensors())
def test_parents_are_the_halved_coordinates_once_each_and_sorted(x):
    halved = x.coords.clone()
    halved[:, 1:] //= 2
    want = sorted(set(map(tuple, halved.tolist())))
    assert list(map(tuple, x.plan.coarsen().coords.tolist())) == want


@fast
@given(sparse_tensors())
def test_expanding_the_recorded_mask_gives_the_same_set_of_voxels(x):
    coarse = x.plan.coarsen()
    links = SparsePlan(coarse.coords, x.batch_size).expand(coarse.recorded.mask)
    assert sorted(links.fine.coords.tolist()) == sorted(x.coords.tolist())
    assert torch.equal(links.mask, coarse.recorded.mask)


@fast
@given(sparse_tensors(), st.integers(0, 100))
def test_tables_from_the_coarser_level_equal_tables_by_search(x, seed):
    mask = torch.rand(len(x), 8, generator=torch.Generator().manual_seed(seed)) < 0.5
    known, unknown = SparsePlan(x.coords, x.batch_size), SparsePlan(x.coords, x.batch_size)
    known.neighbors(neighbor_map)
    refined = known.expand(mask).fine.neighbors(neighbor_map)
    assert torch.equal(refined, unknown.expand(mask).fine.neighbors(neighbor_map))


@fast
@given(sparse_tensors(), st.sampled_from([1, 2]))
def test_neighbourhood_is_mutual(x, dilation):
    found = neighbor_map(x.coords, kernel_offsets(3, dilation))
    rows, taps = (found >= 0).nonzero().unbind(1)
    assert torch.equal(found[found[rows, taps].long(), 26 - taps].long(), rows)


@fast
@given(sparse_tensors(), st.randoms(use_true_random=False))
def test_convolution_does_not_depend_on_the_order_of_rows(x, random):
    weight = torch.randn(2, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    order = list(range(len(x)))
    random.shuffle(order)
    order = torch.tensor(order, dtype=torch.int64)
    whole = sparse_conv(x.feats, neighbor_map(x.coords, kernel_offsets(3)), weight, None)
    mixed = sparse_conv(x.feats[order], neighbor_map(x.coords[order], kernel_offsets(3)), weight, None)
    assert torch.allclose(whole[order], mixed, atol=1e-5)


@fast
@given(sparse_tensors())
def test_samples_taken_apart_and_put_together_are_the_same(x):
    again = concat_samples([select_samples(x, i) for i in range(x.batch_size)])
    assert torch.equal(again.coords, x.coords)
    assert torch.equal(again.feats, x.feats)
    assert again.seqlens == x.seqlens
