"""Sparse and ragged tensors, and the plans they share.

Properties: what depends on coordinates is made once and follows `replace`; a sample may be empty; nothing
guesses what a plain tensor's rows mean; coarser levels remember the finer one and never the other way
round. B samples, T rows.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from trellis_core.kernels.neighbor_map import neighbor_map
from trellis_core.sparse.ops import (
    concat_channels,
    concat_samples,
    map_rows,
    mean_per_sample,
    pad_samples,
    select_samples,
    std_per_sample,
    sum_per_sample,
)
from trellis_core.sparse.spatial import channel_to_space, pool_mean, repeat_parents, space_to_channel
from trellis_core.sparse.tensor import SparseTensor, VarLen

COORDS = torch.tensor(
    [[0, 1, 1, 1], [0, 0, 0, 0], [0, 2, 0, 1], [2, 3, 3, 3], [2, 3, 3, 2]], dtype=torch.int32
)


def sparse(channels: int = 2) -> SparseTensor:
    """Three samples of 3, 0 and 2 voxels."""
    return SparseTensor(torch.arange(5.0 * channels).view(5, channels), COORDS, batch_size=3)


def test_an_empty_sample_counts():
    x = sparse()
    assert x.seqlens == (3, 0, 2)
    assert x.cu_seqlens.tolist() == [0, 3, 3, 5]
    assert x.cu_seqlens.dtype == torch.int32
    assert x.layout.sample_of_row.tolist() == [0, 0, 0, 2, 2]


def test_a_tensor_without_voxels_has_samples():
    x = SparseTensor(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int32), batch_size=2)
    assert x.seqlens == (0, 0)
    assert x.plan.extent == (0, 0, 0)
    assert mean_per_sample(x).tolist() == [0, 0]
    dense, mask = pad_samples(x)
    assert dense.shape == (2, 0, 4)
    assert mask.shape == (2, 0)


def test_replaced_features_share_the_plan_and_its_tables():
    x = sparse()
    y = x.replace(x.feats.half())
    assert y.plan is x.plan
    assert y.plan.neighbors(neighbor_map) is x.plan.neighbors(neighbor_map)
    assert y.to(torch.float32).plan is x.plan


def test_a_plan_remembers_what_others_make_on_it_until_it_forgets():
    plan, calls = sparse().plan, []
    for _ in range(2):
        assert plan.remember(("windows", 8), lambda: calls.append(1) or "made") == "made"
    assert len(calls) == 1
    plan.forget()
    plan.remember(("windows", 8), lambda: calls.append(1))
    assert len(calls) == 2


def test_forgetting_reaches_the_recorded_finer_levels():
    coarse = space_to_channel(sparse())
    table = coarse.plan.recorded.fine.neighbors(neighbor_map)
    coarse.plan.forget()
    assert coarse.plan.recorded.fine.neighbors(neighbor_map) is not table


def test_moving_to_another_device_leaves_no_table_behind():
    x = space_to_channel(sparse())
    x.plan.neighbors(neighbor_map)
    moved = x.to("meta")
    assert moved.device.type == moved.coords.device.type == "meta"
    assert moved.plan is not x.plan
    assert moved.plan.recorded.slots.device.type == "meta"
    assert moved.plan.recorded.fine.coords.device.type == "meta"


def test_rows_out_of_sample_order_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        _ = SparseTensor(torch.zeros(5, 1), COORDS.flip(0), batch_size=3).seqlens


def test_a_batch_size_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="batch size is 2"):
        _ = SparseTensor(torch.zeros(5, 1), COORDS, batch_size=2).seqlens


@pytest.mark.parametrize("coords", [COORDS.long(), COORDS[:, :3], COORDS[:4]])
def test_coordinates_of_the_wrong_kind_are_refused(coords):
    with pytest.raises(ValueError, match=r"int32|coordinates"):
        SparseTensor(torch.zeros(5, 1), coords, batch_size=3)


def test_arithmetic_joins_rows_and_numbers():
    x = sparse()
    y = x.replace(torch.ones_like(x.feats))
    assert torch.equal((x + y).feats, x.feats + 1)
    assert torch.equal((1 - x * 2 / 4).feats, 1 - x.feats / 2)
    assert torch.equal((-x - y).feats, -x.feats - 1)
    assert (2 + x).plan is x.plan


def test_arithmetic_refuses_a_plain_tensor_because_its_rows_are_ambiguous():
    with pytest.raises(TypeError, match="broadcast"):
        _ = sparse() * torch.ones(3, 2)
    with pytest.raises(ValueError, match="rows per sample differ"):
        _ = sparse() + select_samples(sparse(), [2, 0, 1])


def test_broadcast_gives_every_row_the_value_of_its_sample():
    x = sparse()
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert x.broadcast(values)[:, 0].tolist() == [1, 1, 1, 3, 3]
    assert x.broadcast(values[:1])[:, 0].tolist() == [1] * 5
    with pytest.raises(ValueError, match="one value per sample"):
        x.broadcast(torch.ones(5, 1))


def test_reductions_go_over_rows_and_channels_of_each_sample():
    x = sparse()
    first, last = x.feats[:3], x.feats[3:]
    assert torch.allclose(sum_per_sample(x), torch.stack([first.sum(), torch.tensor(0.0), last.sum()]))
    assert torch.allclose(mean_per_sample(x)[[0, 2]], torch.stack([first.mean(), last.mean()]))
    deviations = torch.stack([first.std(correction=0), last.std(correction=0)])
    assert torch.allclose(std_per_sample(x)[[0, 2]], deviations, atol=1e-5)


def test_padding_is_zero_and_masked():
    dense, mask = pad_samples(sparse())
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert dense[~mask].abs().sum() == 0
    assert torch.equal(dense[mask], sparse().feats)


@pytest.mark.parametrize(
    "index",
    [[2, 0], torch.tensor([2, 0]), slice(None, None, -2), [-1, -3]],
    ids=["list", "tensor", "slice", "end"],
)
def test_selected_samples_are_renumbered_in_the_order_asked_for(index):
    y = select_samples(sparse(), index)
    assert y.batch_size == 2
    assert y.coords[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(y.feats, sparse().feats[[3, 4, 0, 1, 2]])


def test_samples_are_selected_by_a_number_or_a_mask():
    assert select_samples(sparse(), 2).seqlens == (2,)
    assert select_samples(sparse(), torch.tensor([True, True, False])).seqlens == (3, 0)
    with pytest.raises(IndexError, match="sample 3 of a batch of 3"):
        select_samples(sparse(), 3)


def test_concatenated_samples_keep_their_voxels():
    y = concat_samples([sparse(), sparse()])
    assert y.seqlens == (3, 0, 2, 3, 0, 2)
    assert torch.equal(select_samples(y, slice(3, 6)).coords, COORDS)


def test_concatenated_channels_keep_the_first_plan():
    x, y = sparse(2), sparse(3)
    joined = concat_channels([x, y])
    assert joined.plan is x.plan
    assert torch.equal(joined.feats, torch.cat([x.feats, y.feats], dim=1))


def test_ragged_tensors_do_the_same_without_coordinates():
    x = VarLen.of([torch.ones(2, 3), torch.zeros(0, 3), 2 * torch.ones(4, 3)])
    assert x.seqlens == (2, 0, 4)
    assert mean_per_sample(x).tolist() == [1, 0, 2]
    assert select_samples(x, [2]).seqlens == (4,)
    assert concat_samples([x, x]).batch_size == 6
    assert concat_channels([x, x + 1]).feats.shape == (6, 6)
    with pytest.raises(ValueError, match="5 rows"):
        x.replace(torch.ones(5, 3))


def test_parents_are_sorted_and_their_children_keep_their_order():
    coarse = sparse().plan.coarsen()
    assert coarse.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [2, 1, 1, 1]]
    links = coarse.recorded
    assert links.parent_rows.tolist() == [0, 0, 1, 2, 2]
    assert (links.slots & 7).tolist() == [7, 0, 4, 7, 3]
    assert links.mask.sum(1).tolist() == [2, 1, 2]
    assert links.fine.coords is COORDS


def test_both_branches_of_a_block_get_the_same_coarse_plan():
    plan = sparse().plan
    coarse = plan.coarsen()
    assert plan.coarsen() is coarse


def test_recorded_topology_overrules_a_mask():
    coarse = space_to_channel(sparse())
    nothing = torch.zeros(3, 8, dtype=torch.bool)
    assert torch.equal(channel_to_space(coarse, nothing).feats, sparse().feats)
    assert channel_to_space(coarse.without_topology(), nothing).seqlens == (0, 0, 0)


def test_children_come_parent_by_parent_by_rising_number_and_carry_no_topology():
    coarse = SparseTensor(torch.arange(16.0).view(2, 8), COORDS[[2, 4]], batch_size=3)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, [1, 4]] = True
    mask[1, 2] = True
    fine = channel_to_space(coarse, mask)
    assert fine.coords.tolist() == [[0, 5, 0, 2], [0, 4, 0, 3], [2, 6, 7, 4]]
    assert fine.feats[:, 0].tolist() == [1, 4, 10]
    assert fine.plan.recorded is None
    assert repeat_parents(coarse, mask).plan is fine.plan


def test_upsampling_without_mask_or_topology_is_refused():
    with pytest.raises(ValueError, match="needs a mask"):
        sparse().plan.expand()
    with pytest.raises(ValueError, match=r"mask must be \[5, 8\]"):
        sparse().plan.expand(torch.ones(4, 8, dtype=torch.bool))


def test_the_same_mask_gives_the_same_level_and_another_mask_another():
    plan, mask = sparse().plan, torch.eye(8, dtype=torch.bool)[:5]
    fine = plan.expand(mask).fine
    assert plan.expand(mask.clone()).fine is fine
    assert plan.expand(~mask).fine is not fine


def test_mean_pooling_counts_children_that_exist():
    assert torch.equal(
        pool_mean(sparse()).feats,
        torch.stack([sparse().feats[:2].mean(0), sparse().feats[2], sparse().feats[3:].mean(0)]),
    )


def test_a_level_is_freed_with_its_last_tensor_without_the_garbage_collector():
    gc.disable()
    try:
        x = sparse()
        coarse = space_to_channel(x)
        plans = [weakref.ref(x.plan), weakref.ref(coarse.plan)]
        del x
        assert plans[0]() is not None  # recorded by the coarse level
        del coarse
        assert plans[0]() is None
        assert plans[1]() is None
    finally:
        gc.enable()


def test_rows_in_chunks_give_what_rows_at_once_give(monkeypatch):
    monkeypatch.setattr("trellis_core.sparse.ops.CHUNK_ELEMENTS", 66)
    feats, sizes = torch.randn(100, 6), []
    with torch.no_grad():
        half = map_rows(lambda rows: sizes.append(len(rows)) or rows[:, :3] * 2, feats)
        assert torch.equal(half, feats[:, :3] * 2)
        assert sizes == [11] * 9 + [1]
        doubled = feats * 2
        assert map_rows(lambda rows: rows * 2, feats, overwrite=True) is feats
        assert torch.equal(feats, doubled)
    trained = feats.clone().requires_grad_()
    assert map_rows(lambda rows: rows * 2, trained, overwrite=True) is not trained
