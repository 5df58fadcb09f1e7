"""Clustering takes most faces away and leaves the surface where and as it is.

R is the grid's side. Not tested here: what the pipeline makes of a clustered mesh (test_asset.py).
"""

from __future__ import annotations

import pytest
import torch

from tests.shapes import box, dual_grid, hollow, sphere, torus, union
from trellis_core.geometry import cluster
from trellis_core.geometry.cluster import cluster_vertices
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.closest_point import closest_point

R = 48
SHAPES = {
    "sphere": sphere(),
    "box": box(),
    "torus": torus(),
    "hollow sphere": hollow(sphere(0.4), 0.05),
    "thin plate": box((0.4, 0.3, 0.012)),
    "two parts": union(torus(), box((0.1, 0.1, 0.4))),
}
SAME = ("components", "boundary_edges", "non_manifold_edges", "duplicate_faces", "euler_characteristic")


def surface(name: str, **defects: float) -> Mesh:
    return dual_grid(SHAPES[name], R, **defects).mesh


def used(mesh: Mesh) -> torch.Tensor:
    return mesh.vertices[mesh.faces.long().unique()]


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_the_topology_stays_what_it_was(name, levels):
    mesh = surface(name)
    before, after = topology_metrics(mesh), topology_metrics(cluster_vertices(mesh, 1 / R, levels))
    assert {key: after[key] for key in SAME} == {key: before[key] for key in SAME}


def test_holes_and_stray_faces_are_left_to_the_repair():
    mesh = surface("torus", lost_quads=0.02, stray_quads=0.01)
    before, after = topology_metrics(mesh), topology_metrics(cluster_vertices(mesh, 1 / R, 2))
    assert {key: after[key] for key in SAME} == {key: before[key] for key in SAME}


def test_a_smooth_surface_loses_most_of_its_faces():
    mesh = surface("torus")
    one, three = (len(cluster_vertices(mesh, 1 / R, levels, tolerance=0.2).faces) for levels in (1, 3))
    assert one < 0.35 * len(mesh.faces)
    assert three < 0.5 * one


@pytest.mark.parametrize("name", ["sphere", "box", "torus"])
def test_the_surface_moves_by_a_fraction_of_a_voxel(name):
    mesh = surface(name)
    small = cluster_vertices(mesh, 1 / R, 3, tolerance=0.05)
    there, _, _ = closest_point(used(small), mesh.vertices, mesh.faces, 1.0)
    back, _, _ = closest_point(used(mesh), small.vertices, small.faces, 1.0)
    assert there.max() * R < 0.25
    assert back.mean() * R < 0.05
    assert back.max() * R < 0.5


def test_a_smaller_tolerance_keeps_more_faces():
    mesh = surface("torus")
    counts = [len(cluster_vertices(mesh, 1 / R, 2, tolerance=t).faces) for t in (0.2, 0.05, 0.005)]
    assert counts[0] < counts[1] < counts[2]


def test_the_sheets_of_a_thin_wall_stay_apart():
    def flat_area(mesh: Mesh) -> float:
        flat = face_normals(mesh.vertices, mesh.faces)[:, 2].abs() > 0.99
        return float(face_areas(mesh.vertices, mesh.faces)[flat].sum())

    mesh = surface("thin plate")
    assert flat_area(cluster_vertices(mesh, 1 / R, 3)) == pytest.approx(flat_area(mesh), rel=0.02)


def test_an_open_border_does_not_move():
    mesh = surface("sphere")
    half = Mesh(mesh.vertices, mesh.faces[(mesh.vertices[mesh.faces.long()][..., 2] < 0.05).all(1)])
    small = cluster_vertices(half, 1 / R, 3)

    def border(of: Mesh) -> set[tuple[float, ...]]:
        ends = of.faces.long()[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(1).values
        edge, count = ends.unique(dim=0, return_counts=True)
        return {tuple(of.vertices[v].tolist()) for v in edge[count == 1].reshape(-1)}

    assert len(small.faces) < 0.4 * len(half.faces)
    assert border(small) == border(half)


def test_slabs_change_nothing_but_the_order(monkeypatch):
    mesh = surface("two parts")
    whole = cluster_vertices(mesh, 1 / R, 2)
    monkeypatch.setattr(cluster, "SLAB_VERTICES", 1000)
    steps = []
    parts = cluster_vertices(mesh, 1 / R, 2, on_step=lambda step, count: steps.append((step, count)))
    assert len(steps) > 5
    assert steps[-1][0] == steps[-1][1]
    assert topology_metrics(parts)["euler_characteristic"] == topology_metrics(whole)["euler_characteristic"]
    assert len(parts.faces) == pytest.approx(len(whole.faces), rel=0.02)
    area = [float(face_areas(m.vertices.double(), m.faces).sum()) for m in (whole, parts)]
    assert area[1] == pytest.approx(area[0], rel=1e-3)


def test_a_crumb_in_one_cell_does_not_vanish():
    corners = torch.tensor(
        [[0.01, 0, 0], [-0.01, 0, 0], [0, 0.01, 0], [0, -0.01, 0], [0, 0, 0.01], [0, 0, -0.01]]
    )
    sides = [[x, y, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    crumb = Mesh(corners / R + 0.5 / R, torch.tensor(sides, dtype=torch.int32))
    assert topology_metrics(cluster_vertices(crumb, 1 / R, 3, tolerance=10.0))["watertight"]


def test_clustering_is_repeatable():
    mesh = surface("two parts", lost_quads=0.01)
    one, two = (cluster_vertices(mesh, 1 / R, 3) for _ in range(2))
    assert torch.equal(one.vertices, two.vertices)
    assert torch.equal(one.faces, two.faces)


def test_a_mesh_without_faces_stays_empty():
    none = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    assert len(cluster_vertices(none, 1 / R, 3).faces) == 0
