"""Voxel orders: linear keys, lookups on sorted keys, Morton and Hilbert codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trellis_core.sparse.order import (
    batch_codes,
    find_sorted,
    hilbert_decode,
    hilbert_encode,
    inside,
    key_coords,
    linear_keys,
    morton_decode,
    morton_encode,
    sort_keys,
)

CURVES = {
    "morton": (morton_encode, lambda codes, bits: morton_decode(codes)),
    "hilbert": (hilbert_encode, hilbert_decode),
}


def cube(bits):
    side = torch.arange(1 << bits)
    return torch.cartesian_prod(side, side, side).int()


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096), st.data())
def test_linear_keys_round_trip_on_any_grid(gx, gy, gz, data):
    coords = torch.tensor(
        [[data.draw(st.integers(0, g - 1)) for g in (gx, gy, gz)] for _ in range(5)], dtype=torch.int32
    )
    keys = linear_keys(coords, (gx, gy, gz))
    assert keys.dtype == torch.int64 and (keys >= 0).all() and (keys < gx * gy * gz).all()
    assert torch.equal(key_coords(keys, (gx, gy, gz)), coords)


def test_keys_are_distinct_at_the_end_of_a_grid_of_2048():
    corners = torch.cartesian_prod(*[torch.tensor([0, 1, 2046, 2047])] * 3).int()
    assert len(linear_keys(corners, (2048,) * 3).unique()) == 64


def test_inside_rejects_both_sides_of_every_axis():
    coords = torch.tensor([[0, 0, 0], [3, 4, 5], [-1, 0, 0], [4, 0, 0], [0, 5, 0], [0, 0, 6], [0, 0, -1]])
    assert inside(coords, (4, 5, 6)).tolist() == [True, True, False, False, False, False, False]


@given(st.lists(st.integers(0, 50), unique=True), st.lists(st.integers(0, 60)))
def test_a_lookup_finds_exactly_the_keys_that_are_there(keys, queries):
    ordered, rows = sort_keys(torch.tensor(keys, dtype=torch.int64))
    found = find_sorted(ordered, torch.tensor(queries, dtype=torch.int64))
    assert [keys[rows[p]] if p >= 0 else None for p in found.tolist()] == [
        q if q in keys else None for q in queries
    ]


@pytest.mark.parametrize("curve", sorted(CURVES))
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_curve_visits_every_cell_of_a_cube_once(curve, bits):
    encode, decode = CURVES[curve]
    codes = encode(cube(bits), bits)
    assert torch.equal(codes.sort().values, torch.arange(8**bits))
    assert torch.equal(decode(codes, bits), cube(bits))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_neighbours_on_the_hilbert_curve_are_neighbours_in_space(bits):
    path = hilbert_decode(torch.arange(8**bits), bits)
    assert ((path[1:] - path[:-1]).abs().sum(1) == 1).all()


def test_x_is_the_most_significant_bit_of_a_morton_triple():
    assert morton_encode(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0]])).tolist() == [4, 2, 1, 32]


@given(st.integers(1, 20), st.data())
def test_codes_round_trip_at_every_depth(bits, data):
    number = st.integers(0, (1 << bits) - 1)
    coords = torch.tensor([[data.draw(number) for _ in range(3)] for _ in range(4)], dtype=torch.int32)
    for encode, decode in CURVES.values():
        assert torch.equal(decode(encode(coords, bits), bits), coords)


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_the_batch_index_stays_above_the_code_at_14_bits(curve):
    coords = torch.tensor([[3, 16383, 16383, 16383], [0, 5, 6, 7]], dtype=torch.int32)
    codes = batch_codes(coords, 14, curve)
    assert (codes >> 42).tolist() == [3, 0] and codes[0] < 1 << 44


def test_coordinates_that_do_not_fit_are_refused():
    for coords in ([[1024, 0, 0]], [[0, -1, 0]]):
        with pytest.raises(ValueError, match="10 bits"):
            morton_encode(torch.tensor(coords), 10)
    with pytest.raises(ValueError, match="bits"):
        hilbert_encode(torch.zeros(1, 3, dtype=torch.int32), 21)
