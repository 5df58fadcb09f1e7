"""The `voxel_sampler` operation.

Properties: every backend gives the reference's values and support, within rounding, for any grid, points
inside, on the border and far outside, voxels outside the grid, equal voxels, values that are not finite, and
no voxels at all; the same points give the same bits however they are cut; the index is made once.
N voxels, Q points, C channels. What sampling means is in tests/unit/test_sampling_voxels.py. Not tested here:
speed.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.errors import BackendUnavailable
from trellis_core.kernels import voxel_sampler_warp as bricks
from trellis_core.kernels.ops import OPS
from trellis_core.kernels.voxel_sampler import voxel_sampler
from trellis_core.memory.devices import DeviceInfo

BACKENDS = [backend for backend in OPS["voxel_sampler"] if backend.probe(DeviceInfo(kind="cpu")) is None]
every_backend = pytest.mark.parametrize("make", [b.load() for b in BACKENDS], ids=[b.name for b in BACKENDS])
both_modes = pytest.mark.parametrize("mode", ["trilinear", "nearest"])


def scattered(seed: int, count: int, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Voxels in and around the grid, some of them twice, and their values."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(size)
    coords = (torch.rand(count, 3, generator=generator) * (extent + 6)).long() - 3
    coords = torch.cat([coords, coords[: count // 10]]).int()
    return coords, torch.randn(len(coords), 1 + seed % 7, generator=generator)


def points_among(coords: Tensor, seed: int, count: int = 300) -> Tensor:
    """Points near voxels, at voxel centres, on voxel faces, and off the grid."""
    generator = torch.Generator().manual_seed(seed + 1)
    pick = torch.randint(0, len(coords), (count,), generator=generator)
    near = coords[pick] + torch.rand(count, 3, generator=generator) * 3 - 1
    special = coords[pick[:40]].float()
    off = torch.tensor([[-0.6, 2, 2], [2, -9, 2], [1e9, 0, 0], [3e38, 1, 1], [2, 2, 1e6]])
    return torch.cat([near, special, special + 0.5, off])


@every_backend
@both_modes
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 400),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
)
def test_every_backend_samples_like_the_reference(make, mode, seed, count, size):
    coords, attrs = scattered(seed, count, size)
    points = points_among(coords, seed)
    values, support = make(coords, attrs, size, mode)(points)
    expected_values, expected_support = voxel_sampler(coords, attrs, size, mode)(points)
    assert torch.allclose(support, expected_support, atol=1e-6)
    assert torch.equal(support > 0, expected_support > 0)
    assert torch.allclose(values, expected_values, atol=1e-5, rtol=1e-5)


@every_backend
@pytest.mark.parametrize("resolution", [16, 100, 512, 1000, 1024, 1536, 2048])
def test_grids_of_any_side_are_sampled_up_to_their_last_voxel(make, resolution):
    corner = torch.cartesian_prod(*[torch.tensor([0, 1, resolution - 2, resolution - 1])] * 3).int()
    attrs = torch.randn(len(corner), 6, generator=torch.Generator().manual_seed(resolution))
    points = torch.cat([corner + 0.5, corner.float(), corner + 1.0, corner + 0.3])
    size = (resolution,) * 3
    values, support = make(corner, attrs, size)(points)
    expected_values, expected_support = voxel_sampler(corner, attrs, size)(points)
    assert torch.allclose(values[: len(corner)], attrs, atol=1e-5)
    assert torch.allclose(values, expected_values, atol=1e-5)
    assert torch.allclose(support, expected_support, atol=1e-6)


@every_backend
@both_modes
def test_without_voxels_or_points_there_is_nothing(make, mode):
    none = torch.zeros(0, 3, dtype=torch.int32)
    outside = torch.tensor([[9, 0, 0], [0, -1, 0]], dtype=torch.int32)
    for coords in (none, outside):
        values, support = make(coords, torch.ones(len(coords), 4), (8, 8, 8), mode)(torch.rand(5, 3) * 8)
        assert values.shape == (5, 4) and not values.any() and not support.any()
    one = torch.tensor([[1, 1, 1]], dtype=torch.int32)
    values, support = make(one, torch.ones(1, 4), (8, 8, 8), mode)(torch.zeros(0, 3))
    assert values.shape == (0, 4) and support.shape == (0,)


@every_backend
@both_modes
def test_points_that_are_no_numbers_have_no_support(make, mode):
    one = torch.tensor([[0, 0, 0]], dtype=torch.int32)
    strange = torch.tensor([[float("nan")] * 3, [float("inf"), 0.5, 0.5], [0.5, 0.5, float("-inf")]])
    values, support = make(one, torch.ones(1, 2), (4, 4, 4), mode)(strange)
    assert not support.any() and not values.any()


@every_backend
@both_modes
def test_of_voxels_in_the_same_cell_the_first_counts(make, mode):
    coords = torch.tensor([[3, 3, 3], [1, 2, 3], [3, 3, 3]], dtype=torch.int32)
    values, _ = make(coords, torch.tensor([[1.0], [5.0], [2.0]]), (8, 8, 8), mode)(torch.full((1, 3), 3.5))
    assert values.item() == 1


@every_backend
def test_a_value_that_is_no_number_stays_among_its_neighbours(make):
    coords = torch.tensor([[0, 0, 0], [5, 5, 5]], dtype=torch.int32)
    attrs = torch.tensor([[float("nan")], [1.0]])
    values, _ = make(coords, attrs, (8, 8, 8))(torch.tensor([[5.4, 5.9, 5.1], [3.0, 3.0, 3.0]]))
    assert values.flatten().tolist() == [1.0, 0.0]


@every_backend
def test_one_index_serves_many_calls_and_cuts_change_no_bit(make, monkeypatch):
    coords, attrs = scattered(5, 300, (20, 20, 20))
    points = points_among(coords, 5)
    sample = make(coords, attrs, (20, 20, 20))
    values, support = sample(points)
    monkeypatch.setattr(bricks, "CHUNK", 50)
    for part in torch.arange(len(points)).split(77):
        piece, piece_support = sample(points[part])
        assert torch.equal(piece, values[part]) and torch.equal(piece_support, support[part])
    again, _ = make(coords, attrs, (20, 20, 20))(points)
    assert torch.equal(again, values)


@every_backend
def test_another_mode_is_refused(make):
    with pytest.raises(ValueError, match="cubic"):
        make(torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 1), (4, 4, 4), "cubic")


def test_a_grid_too_large_for_the_table_is_refused_with_a_way_out():
    with pytest.raises(BackendUnavailable, match="too large") as error:
        bricks.voxel_sampler_warp(torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 1), (10_000,) * 3)
    assert "voxel_sampler=torch" in error.value.hint
    sample = voxel_sampler(torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 1), (10_000,) * 3)
    assert sample(torch.full((1, 3), 0.5))[0].item() == 1
