"""The `rasterize` operation.

Properties: every backend gives the reference's faces and barycentric coordinates, to the last bit; a pixel
shows the nearest face and, at equal depth, the lowest one; neighbouring faces leave no gap; barycentric
coordinates reproduce the pixel centre; nothing undrawable is drawn. V points, F faces.
Not tested here: speed.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.kernels.ops import OPS
from trellis_core.kernels.rasterize import pack_key, rasterize
from trellis_core.memory.devices import DeviceInfo

BACKENDS = [backend for backend in OPS["rasterize"] if backend.probe(DeviceInfo(kind="cpu")) is None]
every_backend = pytest.mark.parametrize("draw", [b.load() for b in BACKENDS], ids=[b.name for b in BACKENDS])


def triangle_soup(seed: int, points: int, faces: int, spread: float = 40.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(points, 2, generator=generator) * spread - 0.15 * spread
    depth = torch.rand(points, 1, generator=generator) - 0.5
    return torch.cat([xy, depth], 1), torch.randint(
        0, points, (faces, 3), generator=generator, dtype=torch.int32
    )


@every_backend
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(3, 40), st.integers(0, 60)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_every_backend_equals_the_reference_to_the_last_bit(draw, seed, counts, size):
    points, faces = triangle_soup(seed, *counts)
    face, bary = draw(points, faces, *size)
    expected_face, expected_bary = rasterize(points, faces, *size)
    assert torch.equal(face, expected_face)
    assert torch.equal(bary, expected_bary)


@every_backend
def test_a_face_larger_than_one_tile_is_drawn_whole(draw):
    points = torch.tensor([[-10.0, -10, 0], [500, -10, 0], [-10, 500, 0]])
    face, _ = draw(points, torch.tensor([[0, 1, 2]], dtype=torch.int32), 150, 170)
    assert (face == 0).all()


@every_backend
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_nearest_face_wins(draw, seed):
    points, _ = triangle_soup(seed, 24, 8)
    faces = torch.arange(24, dtype=torch.int32).view(8, 3)
    points[:, 2] = torch.arange(8.0).flip(0).repeat_interleave(3) - 3  # one depth per face
    face, _ = draw(points, faces, 32, 32)
    alone = torch.stack([draw(points, faces[i : i + 1], 32, 32)[0] >= 0 for i in range(8)])
    nearest = torch.where(alone, torch.arange(8)[:, None, None], -1).amax(0)  # depth falls with the number
    assert torch.equal(face.long(), nearest)


@every_backend
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), flat=st.booleans())
def test_peeling_shows_every_covering_face_once_from_near_to_far(draw, seed, flat):
    points, faces = triangle_soup(seed, 20, 6)
    if flat:
        points[:, 2] = 0.25
    covering = sum((draw(points, faces[i : i + 1], 24, 24)[0] >= 0).int() for i in range(6))
    layers = [draw(points, faces, 24, 24)]
    while (layers[-1][0] >= 0).any():
        assert len(layers) <= 6
        layers.append(draw(points, faces, 24, 24, layers[-1][0]))
    seen = torch.stack([face for face, _ in layers])
    assert torch.equal((seen >= 0).sum(0).int(), covering)
    for (front, bary), (back, other) in pairwise(layers):
        both = back >= 0
        assert (front[both] != back[both]).all()
        depth, further = (
            (w[both] * points[faces[f[both].long()].long()][..., 2]).sum(1)
            for f, w in ((front, bary), (back, other))
        )
        assert (further >= depth - 1e-5).all()


@every_backend
def test_at_equal_depth_the_lowest_face_wins(draw):
    points = torch.tensor([[0.0, 0, 0.3], [16, 0, 0.3], [0, 16, 0.3], [16, 16, 0.3]])
    faces = torch.tensor([[1, 3, 2], [0, 1, 2], [2, 1, 0], [0, 1, 3]], dtype=torch.int32)
    face, _ = draw(points, faces, 16, 16)
    assert set(face.unique().tolist()) == {0, 1}
    assert (face == 0).sum() == 16 * 17 // 2  # the shared diagonal goes through pixel centres


@every_backend
def test_a_fan_of_slivers_covers_its_disc_without_holes(draw):
    angles = torch.linspace(0, 2 * torch.pi, 400)[:-1]
    rim = torch.stack([angles.cos() * 30 + 32.2, angles.sin() * 30 + 31.7, torch.zeros(399)], 1)
    points = torch.cat([torch.tensor([[32.2, 31.7, 0.0]]), rim])
    number = torch.arange(399, dtype=torch.int32)
    faces = torch.stack([torch.zeros_like(number), number + 1, (number + 1) % 399 + 1], 1)
    face, _ = draw(points, faces, 64, 64)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    inside = (x - 32.2) ** 2 + (y - 31.7) ** 2 < 29.9**2
    assert (face[inside] >= 0).all()


@every_backend
def test_barycentric_coordinates_reproduce_the_pixel_centre(draw):
    points, faces = triangle_soup(3, 30, 40)
    face, bary = draw(points, faces, 32, 32)
    y, x = torch.nonzero(face >= 0, as_tuple=True)
    corners = points[faces[face[y, x].long()].long()][..., :2]
    found = (bary[y, x][..., None] * corners).sum(1)
    assert torch.allclose(found, torch.stack([x, y], 1) + 0.5, atol=2e-3)
    assert torch.allclose(bary[y, x].sum(1), torch.ones(len(x)), atol=1e-6)
    assert (bary >= 0).all()
    assert (bary[face < 0] == 0).all()


@every_backend
def test_faces_that_cannot_be_drawn_are_left_out(draw):
    points = torch.tensor(
        [
            [0.0, 0, 0],
            [20, 0, 0],
            [0, 20, 0],
            [float("nan"), 0, 0],
            [1e9, 0, 0],
            [0, 0, float("inf")],
            [10, 0, 0],
        ]
    )
    faces = torch.tensor([[0, 1, 3], [0, 4, 2], [5, 1, 2], [0, 6, 1], [1, 1, 2]], dtype=torch.int32)
    assert (draw(points, faces, 16, 16)[0] == -1).all()


@every_backend
def test_no_faces_and_no_pixels_are_fine(draw):
    face, bary = draw(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32), 4, 5)
    assert face.shape == (4, 5)
    assert bary.shape == (4, 5, 3)
    assert (face == -1).all()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_keys_sort_like_depth(depths):
    depth = torch.tensor(depths)
    keys = pack_key(depth, torch.zeros(len(depth), dtype=torch.int64))
    assert torch.equal(depth[keys.argsort(stable=True)], depth.sort().values)
