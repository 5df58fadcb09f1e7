"""Measures of foreign meshes: shapes with known answers, and each kind of damage found for what it is.

Every number is counted by hand from the shape. Not tested: how the numbers are put into words (tests/cli).
"""

from __future__ import annotations

import pytest
import torch

from tests import shapes
from tests.solids import cube, inside_out, mesh, moebius, scaled, sphere, together
from trellis_core.geometry.examine import examine, projections, unit_box, view_count
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp", "closest_point": "warp"})

WARP = Kernels({"rasterize": "warp", "closest_point": "warp", "open_sky": "warp"})


def facts(shape: Mesh) -> dict:
    return examine(shape, KERNELS, side=128)


def test_a_sound_cube_has_no_borders_and_its_volume():
    found = facts(cube())
    assert found["borders"] == 0
    assert found["mixed_edges"] == 0
    assert found["volume"] == pytest.approx(1.0)
    assert found["handles"] == 0
    assert found["back_face_share"] == 0
    assert found["hidden_pieces"] == 0


@pytest.mark.parametrize(("sides", "borders", "length"), [([0, 1, 2, 3, 4], 1, 4.0), ([0, 1, 2, 3], 2, 8.0)])
def test_sides_that_are_missing_are_borders_of_known_length(sides, borders, length):
    found = facts(cube(sides))
    assert found["borders"] == borders
    assert found["border_length"] == pytest.approx(length)
    assert found["longest_border"] == pytest.approx(4.0)
    assert "volume" not in found
    assert found["back_face_share"] > 0.02


def test_vertices_at_one_place_count_as_one():
    soup = cube()
    soup = Mesh(
        soup.vertices[soup.faces.long()].reshape(-1, 3), torch.arange(36, dtype=torch.int32).view(12, 3)
    )
    assert facts(soup)["borders"] == 0


def test_a_face_that_is_turned_over_is_counted_once():
    shape = cube()
    shape.faces[3] = shape.faces[3].flip(0)
    found = facts(shape)
    assert found["mixed_edges"] == 3
    assert found["turned_faces"] == 1
    assert found["orientable"] is True


def test_a_mesh_inside_out_shows_nothing_but_backs():
    found = facts(inside_out(sphere()))
    assert found["volume"] < 0
    assert found["back_face_share"] == 1.0
    assert found["mixed_edges"] == 0


def test_a_moebius_strip_cannot_be_wound_consistently():
    found = facts(moebius())
    assert found["mixed_edges"] > 0
    assert found["orientable"] is False
    assert found["borders"] == 1


def test_a_ring_has_one_handle():
    angles = torch.arange(12) * (2 * torch.pi / 12)
    points, faces = [], []
    for a in angles.tolist():
        for b in angles[::2].tolist():
            reach = 0.35 + 0.12 * torch.tensor(b).cos()
            a_ = torch.tensor(a)
            points.append(
                [float(reach * a_.cos()), float(reach * a_.sin()), float(0.12 * torch.tensor(b).sin())]
            )
    for i in range(12):
        for j in range(6):
            a, b = i * 6 + j, i * 6 + (j + 1) % 6
            c, d = (a + 6) % 72, (b + 6) % 72
            faces += [[a, c, d], [a, d, b]]
    assert facts(mesh(points, faces))["handles"] == 1


def test_a_second_shell_just_under_the_surface_is_a_double_shell():
    found = facts(together(sphere(), scaled(sphere(), 0.97)))
    assert found["hidden_pieces"] == 1
    assert found["double_shells"] == 1
    assert found["hidden_area_share"] == pytest.approx(0.97**2 / (1 + 0.97**2), abs=1e-3)


def test_a_core_far_inside_is_hidden_but_no_double_shell():
    found = facts(together(sphere(), scaled(inside_out(sphere()), 0.4)))
    assert found["hidden_pieces"] == 1
    assert found["double_shells"] == 0


def test_pieces_beside_each_other_are_not_hidden():
    found = facts(together(scaled(sphere(), 0.4, (-0.3, 0, 0)), scaled(sphere(), 0.4, (0.3, 0, 0))))
    assert found["hidden_pieces"] == 0


def test_an_open_box_shows_what_lies_in_it():
    found = facts(together(cube([0, 1, 2, 3, 4]), scaled(sphere(), 0.5)))
    assert found["hidden_pieces"] == 0


@pytest.mark.parametrize("count", [6, 14, 26])
def test_views_look_from_all_sides_and_have_everything_in_the_picture(count):
    shape = cube()
    seen = list(projections(shape.vertices, count, 64, 2.1 * 3**0.5 / 2 / 64))
    total = torch.stack([direction for direction, _ in seen]).sum(0)
    assert len(seen) == count
    assert total.abs().max() < 1e-9
    for direction, points in seen:
        assert direction.norm() == pytest.approx(1)
        assert points[:, :2].min() >= 0 and points[:, :2].max() <= 64


def test_large_meshes_are_looked_at_from_fewer_sides():
    assert [view_count(n) for n in (10, 500_000, 5_000_000)] == [26, 14, 6]


@pytest.mark.parametrize("factor", [1e-3, 1.0, 250.0])
def test_facts_do_not_depend_on_the_unit(factor):
    shape, placement = unit_box(scaled(sphere(rings=8), factor, (3 * factor, 0, 0)))
    assert placement.longest == pytest.approx(factor, rel=1e-5)
    assert placement.low[0] == pytest.approx(2.5 * factor, rel=1e-4)
    assert facts(shape)["volume"] == pytest.approx(facts(sphere(rings=8))["volume"], rel=1e-4)


def test_corners_that_no_face_uses_do_not_count():
    shape = cube()
    stray = Mesh(torch.cat([shape.vertices, torch.tensor([[90.0, 0, 0]])]), shape.faces)
    assert unit_box(stray)[1].longest == pytest.approx(1.0)


def test_a_mesh_in_one_point_stays_where_it_is():
    shape, placement = unit_box(Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]], dtype=torch.int32)))
    assert placement.longest == 0
    assert torch.equal(shape.vertices, torch.ones(3, 3))


def test_an_inner_wall_behind_a_pinhole_is_dark_though_no_piece_is_hidden():
    """Both walls of a hollow ball have a hole of three cells above one another; the inner wall has 36%."""
    shell = shapes.dual_grid(shapes.hollow(shapes.sphere(0.4), 0.1), 48).mesh
    center = shell.vertices[shell.faces.long()].mean(1)
    shaft = (center[:, :2].norm(dim=1) < 1.5 / 48) & (center[:, 2] > 0)
    found = examine(Mesh(shell.vertices, shell.faces[~shaft]), WARP, side=128)
    assert 0.25 < found["dark_area_share"] < 0.45
    assert examine(shapes.dual_grid(shapes.sphere(0.4), 48).mesh, WARP, side=128)["dark_area_share"] == 0
