"""Simplification reaches its target and stays on the surface."""

from __future__ import annotations

import pytest
import torch

from tests.shapes import box, dual_grid, sphere, torus
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.flips import flip_edges
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.triangles import aspect_ratios, face_areas, face_normals
from trellis_core.geometry.types import Mesh


def surface(shape, resolution: int = 32) -> Mesh:
    raw = dual_grid(shape, resolution)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, resolution)
    return orient_outward(raw.mesh, around)[0]


@pytest.mark.parametrize("target", [2000, 500, 60])
def test_the_target_is_reached_and_not_overshot(target):
    simple = simplify(surface(torus()), target)
    assert 0.9 * target <= len(simple.faces) <= target
    assert topology_metrics(simple)["euler_characteristic"] == 0


def test_a_mesh_below_the_target_is_returned_as_it_is():
    mesh = surface(sphere(), 16)
    simple = simplify(mesh, 10**6)
    assert torch.equal(simple.faces, mesh.faces)
    assert torch.allclose(simple.vertices, mesh.vertices)


def test_the_surface_of_a_sphere_is_kept():
    mesh = surface(sphere())
    simple = simplify(mesh, len(mesh.faces) // 10)
    assert (simple.vertices.norm(dim=1) - 0.35).abs().max() < 0.5 / 32
    area = [float(face_areas(m.vertices, m.faces).sum()) for m in (mesh, simple)]
    assert area[1] == pytest.approx(area[0], rel=0.02)


def test_the_flat_sides_of_a_box_stay_flat_and_face_outward():
    simple = simplify(surface(box()), 200)
    normals = face_normals(simple.vertices, simple.faces)
    flat = normals.abs().amax(1) > 0.99
    areas = face_areas(simple.vertices, simple.faces)
    assert areas[flat].sum() > 0.75 * areas.sum()  # the rest is the chamfer that the grid makes
    center = simple.vertices[simple.faces.long()].mean(1)
    assert ((normals * center).sum(1) > 0).all()


def test_flipping_gives_better_triangles_on_the_same_surface():
    simple = simplify(surface(box(), 64), 3000)
    better = flip_edges(simple, 1e-4)

    def slivers(mesh: Mesh) -> int:
        return int((aspect_ratios(mesh.vertices, mesh.faces) > 6).sum())

    assert slivers(better) < 0.8 * slivers(simple)
    assert torch.equal(better.vertices, simple.vertices)
    assert topology_metrics(better)["watertight"]
    area = [float(face_areas(m.vertices, m.faces).sum()) for m in (simple, better)]
    assert area[1] == pytest.approx(area[0], rel=1e-3)


def test_an_edge_across_a_fold_is_not_flipped():
    roof = Mesh(
        torch.tensor([[0.0, 0, 0.3], [1, 0, 0.3], [0.5, 0.05, 0], [0.5, -0.05, 0]]),
        torch.tensor([[0, 1, 2], [1, 0, 3]], dtype=torch.int32),
    )
    assert torch.equal(flip_edges(roof, 1.0).faces, roof.faces)
