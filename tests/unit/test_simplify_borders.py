"""Edge collapse leaves sheets open, cuts closed, and makes no needles."""

from __future__ import annotations

import pytest
import torch

from tests.shapes import box, dual_grid, hollow, sphere, torus
from trellis_core.geometry.cleanup import split_non_manifold
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.triangles import aspect_ratios, face_areas, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.closest_point import closest_point

R = 32


def surface(shape) -> Mesh:
    raw = dual_grid(shape, R)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, R)
    return orient_outward(raw.mesh, around)[0]


def bowl() -> Mesh:
    mesh = surface(sphere())
    return Mesh(mesh.vertices, mesh.faces[(mesh.vertices[mesh.faces.long()][..., 2] < 0.1).all(1)])


def sheet(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A flat square of unit size around the origin, `side` vertices long: vertices and faces."""
    axis = (torch.arange(side) - (side - 1) / 2) / (side - 1)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    number = torch.arange(side * side).reshape(side, side)
    a, b = number[:-1, :-1].reshape(-1), number[1:, :-1].reshape(-1)
    c, d = number[1:, 1:].reshape(-1), number[:-1, 1:].reshape(-1)
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    return torch.stack([x, y, torch.zeros_like(x)], 2).reshape(-1, 3), faces


def border_points(mesh: Mesh) -> torch.Tensor:
    ends = mesh.faces.long()[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
    edge, count = ends.unique(dim=0, return_counts=True)
    return mesh.vertices[edge[count == 1].unique()]


def test_an_open_bowl_stays_open_and_one_sheet():
    mesh = bowl()
    simple = simplify(mesh, len(mesh.faces) // 8)
    before, after = topology_metrics(mesh), topology_metrics(simple)
    assert after["boundary_edges"] > 0
    for fact in ("components", "euler_characteristic", "non_manifold_edges"):
        assert after[fact] == before[fact]
    area = [float(face_areas(m.vertices, m.faces).sum()) for m in (mesh, simple)]
    assert area[1] == pytest.approx(area[0], rel=0.02)


def test_the_border_of_a_sheet_does_not_shrink():
    vertices, faces = sheet(33)
    simple = simplify(Mesh(vertices, faces.int()), 60)
    assert len(simple.faces) <= 60
    assert float(face_areas(simple.vertices, simple.faces).sum()) == pytest.approx(1, rel=1e-3)
    on_edge = (border_points(simple)[:, :2].abs().amax(1) - 0.5).abs()
    assert on_edge.max() < 1e-4


@pytest.mark.parametrize("shape", [torus(), box(), sphere()], ids=["torus", "box", "sphere"])
def test_no_needles_are_made_and_no_face_turns_over(shape):
    mesh = surface(shape)
    simple = simplify(mesh, len(mesh.faces) // 10)
    assert (aspect_ratios(simple.vertices, simple.faces) <= 10).all()
    middle = simple.vertices[simple.faces.long()].mean(1)
    _, face, _ = closest_point(middle, mesh.vertices, mesh.faces, 1.0)
    near = face_normals(mesh.vertices, mesh.faces)[face.long()]
    assert ((near * face_normals(simple.vertices, simple.faces)).sum(1) > 0).all()


def test_every_closed_piece_survives_even_an_impossible_target():
    mesh = surface(hollow(sphere(0.4), 0.15))
    simple = simplify(mesh, 4)
    facts = topology_metrics(simple)
    assert facts["components"] == 2
    assert facts["watertight"]
    assert len(simple.faces) < 200


def test_where_a_surface_was_cut_no_gap_opens():
    """A plate stands on another one: where they meet, both keep all their vertices."""
    plate, foot = sheet(21), sheet(21)
    upright = torch.stack([0 * foot[0][:, 0], foot[0][:, 1], foot[0][:, 0] + 0.5], 1)
    index = {tuple(p): i for i, p in enumerate(plate[0].tolist())}
    shared = torch.tensor([index.get(tuple(p), len(plate[0]) + i) for i, p in enumerate(upright.tolist())])
    both = Mesh(torch.cat([plate[0], upright]), torch.cat([plate[1], shared[foot[1]]]).int())
    simple = simplify(split_non_manifold(both), 300)
    assert len(simple.faces) <= 300
    seam = simple.vertices[(simple.vertices[:, [0, 2]] == 0).all(1)]
    places, count = seam.unique(dim=0, return_counts=True)
    assert len(places) == 21
    assert (count == 2).all()


def test_sheets_that_only_touch_do_not_keep_each_other_from_being_simplified():
    """Two tents stand ridge on ridge, the upper one on its head."""
    points, faces = sheet(21)
    lower = torch.cat([points[:, :2], -points[:, :1].abs()], 1)
    upper = torch.cat([points[:, :2], points[:, :1].abs()], 1)
    both = Mesh(torch.cat([lower, upper]), torch.cat([faces, faces.flip(1) + len(points)]).int())
    assert len(both.vertices.unique(dim=0)) == len(both.vertices) - 21
    assert len(simplify(both, 60).faces) <= 60


def test_simplifying_is_repeatable():
    mesh = bowl()
    one, two = (simplify(mesh, 500) for _ in range(2))
    assert torch.equal(one.vertices, two.vertices)
    assert torch.equal(one.faces, two.faces)
