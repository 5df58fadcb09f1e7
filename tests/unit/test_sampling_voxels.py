"""Sampling sparse voxels: renormalised trilinear weights, support, nearest voxels, borders.

R is the grid resolution. The dense reference is torch's grid_sample on a filled grid.
"""

import pytest
import torch

from trellis_core.geometry.sample import sample_voxels
from trellis_core.kernels import voxel_sampler


def full_grid(size):
    return torch.cartesian_prod(*(torch.arange(n) for n in size)).int()


def random_points(count, size, seed=0):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(size)


def test_a_voxel_centre_gets_the_value_of_its_voxel():
    coords = full_grid((5, 5, 5))[::3]
    attrs = torch.randn(len(coords), 4, generator=torch.Generator().manual_seed(1))
    for mode in ("trilinear", "nearest"):
        values, support = sample_voxels(coords + 0.5, coords, attrs, 5, mode)
        assert torch.allclose(values, attrs) and torch.equal(support, torch.ones(len(coords)))


def test_a_full_grid_is_sampled_like_a_dense_volume():
    size = (4, 5, 6)
    coords = full_grid(size)
    attrs = torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(2))
    points = random_points(200, size) * 0.7 + 0.6
    values, support = sample_voxels(points, coords, attrs, size)
    volume = attrs.reshape(*size, 3).permute(3, 2, 1, 0)[None]  # C, z, y, x
    where = (points / torch.tensor(size) * 2 - 1)[None, None, None]
    dense = torch.nn.functional.grid_sample(volume, where, align_corners=False)[0, :, 0, 0].T
    assert torch.allclose(values, dense, atol=1e-5)
    assert torch.allclose(support, torch.ones(200), atol=1e-6)


def test_a_constant_stays_constant_wherever_there_is_support():
    coords = full_grid((8, 8, 8))
    shell = coords[(coords.float() - 3.5).norm(dim=1).sub(3).abs() < 0.9]
    values, support = sample_voxels(
        random_points(2000, (8, 8, 8)), shell, torch.full((len(shell), 1), 0.25), 8
    )
    assert torch.allclose(values[support > 1e-6], torch.tensor(0.25))
    assert (values[support == 0] == 0).all() and (support == 0).any() and support.amax() <= 1 + 1e-6


def test_support_is_the_weight_of_the_voxels_that_exist():
    one = torch.tensor([[1, 1, 1]], dtype=torch.int32)
    points = torch.tensor([[1.5, 1.5, 1.5], [2.0, 1.5, 1.5], [2.0, 2.0, 2.0], [2.5, 1.5, 1.5]])
    values, support = sample_voxels(points, one, torch.tensor([[8.0]]), 4)
    assert support.tolist() == [1.0, 0.5, 0.125, 0.0]
    assert values.flatten().tolist() == [8.0, 8.0, 8.0, 0.0]


def test_points_outside_the_grid_never_meet_voxels_of_the_opposite_side():
    coords = full_grid((4, 4, 4))
    outside = torch.tensor(
        [[-0.6, 2, 2], [2, -0.6, 2], [2, 2, -0.6], [4.6, 2, 2], [2, 4.6, 2], [2, 2, 4.6], [-9, 99, 2]]
    )
    for mode in ("trilinear", "nearest"):
        far = outside * 2 if mode == "nearest" else outside
        values, support = sample_voxels(far, coords, torch.ones(64, 2), 4, mode)
        assert (support == 0).all() and (values == 0).all()


def test_voxels_outside_the_grid_are_ignored():
    coords = torch.tensor([[0, 0, 4], [0, 1, 0]], dtype=torch.int32)  # (0, 0, 4) has the key of (0, 1, 0)
    values, _ = sample_voxels(torch.tensor([[0.5, 1.5, 0.5]]), coords, torch.tensor([[1.0], [2.0]]), 4)
    assert values.item() == 2


def test_nan_in_one_voxel_stays_in_its_neighbourhood():
    coords = torch.tensor([[0, 0, 0], [5, 5, 5]], dtype=torch.int32)
    attrs = torch.tensor([[float("nan")], [1.0]])
    values, _ = sample_voxels(torch.tensor([[5.4, 5.9, 5.1], [3.0, 3.0, 3.0]]), coords, attrs, 8)
    assert values.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("mode", ["trilinear", "nearest"])
def test_neither_chunks_nor_the_order_of_voxels_change_a_sample(monkeypatch, mode):
    coords = full_grid((6, 6, 6))[::2]
    attrs = torch.randn(len(coords), 6, generator=torch.Generator().manual_seed(3))
    points = random_points(500, (6, 6, 6))
    values, support = sample_voxels(points, coords, attrs, 6, mode)
    shuffle = torch.randperm(len(coords), generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(voxel_sampler, "CHUNK", 64)
    again, support_again = sample_voxels(points, coords[shuffle], attrs[shuffle], 6, mode)
    assert torch.equal(support, support_again) and torch.allclose(values, again, atol=1e-6)


def test_a_grid_of_2048_needs_64_bit_keys():
    coords = torch.tensor([[2047, 2047, 2046], [2047, 2047, 2047], [0, 0, 0]], dtype=torch.int32)
    values, support = sample_voxels(
        torch.tensor([[2047.5, 2047.5, 2047.0]]), coords, torch.tensor([[1.0], [3.0], [9.0]]), 2048
    )
    assert values.item() == 2 and support.item() == 1


def test_an_empty_grid_gives_zeros_without_support():
    values, support = sample_voxels(
        torch.rand(5, 3), torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 6), 8
    )
    assert values.shape == (5, 6) and (support == 0).all()
