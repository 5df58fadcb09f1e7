"""Cameras: frames, projections and rigs. Golden numbers are checked by the parity harness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trellis_core.geometry.camera import (
    FRONT,
    hammersley_view,
    look_at,
    orbit_camera,
    perspective_intrinsics,
    projection_matrix,
    radical_inverse,
    snapshot_views,
    turntable_views,
)

yaws = st.floats(-10, 10)
pitches = st.floats(-math.pi / 2, math.pi / 2)


@given(yaws, pitches, st.floats(0.5, 20))
def test_an_orbit_camera_looks_at_the_origin_from_its_radius(yaw, pitch, radius):
    camera = orbit_camera(yaw, pitch, radius=radius)
    assert torch.allclose(
        camera.extrinsics[:3, 3], torch.tensor([0, 0, radius], dtype=torch.float64), atol=1e-9
    )
    assert camera.eye.norm().item() == pytest.approx(radius)
    rotation = camera.extrinsics[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.linalg.det(rotation).item() == pytest.approx(1)


@given(yaws, st.floats(-1.5, 1.5))
def test_up_in_the_world_is_up_in_the_picture(yaw, pitch):
    rotation = orbit_camera(yaw, pitch).extrinsics[:3, :3]
    assert rotation[0, 2].abs() < 1e-9  # the horizon is level
    assert rotation[1, 2] < 0  # y points down


def test_the_front_is_seen_from_minus_y_with_x_to_the_right():
    camera = orbit_camera(FRONT, 0.0)
    assert torch.allclose(camera.eye, torch.tensor([0, -2.0, 0], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(camera.extrinsics[0, :3], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("height", [-2.0, 2.0])
def test_looking_straight_up_or_down_gives_a_proper_frame(height):
    eye = torch.tensor([0, 0, height], dtype=torch.float64)
    extrinsics = look_at(eye, torch.zeros(3, dtype=torch.float64))
    assert torch.isfinite(extrinsics).all()
    assert torch.linalg.det(extrinsics[:3, :3]).item() == pytest.approx(1)


@given(st.floats(0.05, 3.0))
def test_the_opening_angle_reaches_the_picture_border(fov):
    seen = perspective_intrinsics(fov) @ torch.tensor([math.tan(fov / 2), 0, 1], dtype=torch.float64)
    assert seen[0].item() == pytest.approx(1)


@pytest.mark.parametrize(("depth_from_zero", "nearest"), [(True, 0.0), (False, -1.0)])
def test_projected_depth_runs_from_near_to_far(depth_from_zero, nearest):
    matrix = projection_matrix(perspective_intrinsics(0.7), 0.5, 8.0, depth_from_zero=depth_from_zero)
    for z, expected in ((0.5, nearest), (8.0, 1.0)):
        clip = matrix @ torch.tensor([0, 0, z, 1], dtype=torch.float64)
        assert (clip[2] / clip[3]).item() == pytest.approx(expected)


@given(st.integers(0, 2**20))
def test_the_radical_inverse_mirrors_the_binary_digits(number):
    digits = f"{number:b}"[::-1]
    assert radical_inverse(number) == sum(int(d) / 2 ** (i + 1) for i, d in enumerate(digits))


@pytest.mark.parametrize("remap", [False, True])
def test_hammersley_views_are_distinct_and_on_the_sphere(remap):
    views = [hammersley_view(i, 50, (0.5, 0.1), remap) for i in range(50)]
    assert len(set(views)) == 50
    assert all(abs(pitch) <= math.pi / 2 for _, pitch in views)


def test_hammersley_views_cover_both_halves_of_the_sphere_evenly():
    up = sum(pitch > 0 for _, pitch in (hammersley_view(i, 100, (0.5, 0.0)) for i in range(100)))
    assert up == 50


def test_a_turntable_ends_where_it_began():
    views = turntable_views(9)
    assert views[0] == (FRONT, 0.25)
    assert views[-1][0] == pytest.approx(FRONT - 2 * math.pi)
    assert views[-1][1] == pytest.approx(0.25)


def test_snapshots_go_around_in_equal_steps():
    views = snapshot_views(4, 0.1, 0.3)
    assert [yaw for yaw, _ in views] == pytest.approx([0.1 + i * math.pi / 2 for i in range(4)])
    assert {pitch for _, pitch in views} == {0.3}
