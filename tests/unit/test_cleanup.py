"""Mesh repair: welding, flaps, holes, orientation, enclosed shells, slivers, smoothing, remeshing.

Shapes are dual grids as the decoder makes them, with quads lost and added at random. Not tested: speed.
"""

from __future__ import annotations

import pytest
import torch

from tests.shapes import box, dual_grid, sphere, torus, union
from trellis_core.geometry.cleanup import (
    remove_broken_faces,
    remove_flaps,
    remove_repeated_faces,
    remove_small_components,
    smooth,
    split_non_manifold,
    straighten_slivers,
    weld_vertices,
)
from trellis_core.geometry.connectivity import boundary_loops, connected_components, edges_of, partner_sides
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.holes import fill_holes
from trellis_core.geometry.orientation import (
    flood_surroundings,
    orient_outward,
    outside_votes,
)
from trellis_core.geometry.remesh import remesh_watertight
from trellis_core.geometry.triangles import aspect_ratios, face_areas, face_normals
from trellis_core.geometry.types import Mesh, VoxelMesh
from trellis_core.geometry.winding import unify_orientations
from trellis_core.kernels.table import Kernels

WARP = Kernels({"closest_point": "warp"})


def mesh_of(vertices: list[list[float]], faces: list[list[int]]) -> Mesh:
    return Mesh(torch.tensor(vertices, dtype=torch.float32), torch.tensor(faces, dtype=torch.int32))


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.double()[mesh.faces.long()].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def oriented(shape: VoxelMesh) -> Mesh:
    around = flood_surroundings(shape.mesh, shape.voxels.coords, shape.voxels.resolution)
    return orient_outward(shape.mesh, around)[0]


def test_components_are_named_after_their_smallest_member():
    pairs = torch.tensor([[5, 4], [4, 2], [0, 6]])
    assert connected_components(pairs, 7).tolist() == [0, 1, 2, 3, 2, 2, 0]


def test_a_long_chain_is_one_component():
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([order[:-1], order[1:]], 1)
    assert connected_components(pairs, 500).eq(0).all()


def test_welding_joins_what_is_closer_than_the_tolerance_and_nothing_else():
    mesh = mesh_of(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1e-6, 0], [0, 1, 1e-6], [1, 1, 0]], [[0, 1, 2], [3, 5, 4]]
    )
    welded = weld_vertices(mesh, 1e-4)
    assert len(welded.vertices) == 4
    assert int((edges_of(welded.faces).face_count == 2).sum()) == 1
    assert len(weld_vertices(mesh, 1e-8).vertices) == 6


def test_broken_faces_are_removed():
    nan = float("nan")
    mesh = mesh_of(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [nan, 0, 0]],
        [[0, 1, 2], [2, 0, 1], [2, 1, 0], [0, 1, 3], [0, 0, 2], [0, 2, 4]],
    )
    assert remove_broken_faces(mesh).faces.tolist() == [[0, 1, 2]]


def test_small_pieces_go_only_when_they_are_small_both_ways():
    shape = union(sphere(0.3), sphere(0.04, (0.44, 0, 0)))
    mesh = oriented(dual_grid(shape, 32))
    assert topology_metrics(mesh)["components"] == 2
    assert topology_metrics(remove_small_components(mesh, 0.1, 4 / 32))["components"] == 1
    assert topology_metrics(remove_small_components(mesh, 1e-9, 4 / 32))["components"] == 2
    assert topology_metrics(remove_small_components(mesh, 0.1, 0.001))["components"] == 2


@pytest.mark.parametrize("shape", [sphere(), box(), torus(), box((0.4, 0.3, 0.01))])
def test_all_faces_of_a_closed_shape_look_outward(shape):
    raw = dual_grid(shape, 32)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, 32)
    mesh, unclear = orient_outward(raw.mesh, around)
    assert unclear == 0
    assert volume(mesh) > 0.0005
    assert outside_votes(mesh.vertices[mesh.faces.long()], around).min() >= 0


def test_winding_of_a_moebius_strip_has_one_seam_and_no_more():
    steps = 24
    angle = torch.arange(steps) * (2 * torch.pi / steps)
    ring = []
    for side in (-0.1, 0.1):
        r = 0.4 + side * torch.cos(angle / 2)
        ring.append(torch.stack([r * torch.cos(angle), r * torch.sin(angle), side * torch.sin(angle / 2)], 1))
    faces = []
    for i in range(steps):
        j = (i + 1) % steps
        a, b, c, d = i, j, steps + j, steps + i
        if j == 0:
            b, c = c, b
        faces += [[a, b, c], [a, c, d]]
    faces = torch.tensor(faces, dtype=torch.int32)
    turned = faces.clone()
    turned[::3] = turned[::3][:, [0, 2, 1]]
    unified = unify_orientations(turned)
    partner = partner_sides(edges_of(unified)).reshape(-1)
    start = unified.long().reshape(-1)
    side = torch.nonzero(partner >= 0).reshape(-1)
    disagree = start[side] == start[partner[side]]
    assert int(disagree.sum()) == 2  # one edge, seen from both of its sides


def test_an_open_bowl_is_wound_consistently():
    raw = dual_grid(sphere(0.4), 32)
    center = raw.mesh.vertices[raw.mesh.faces.long()].mean(1)
    mesh = Mesh(raw.mesh.vertices, raw.mesh.faces[center[:, 2] < 0])
    around = flood_surroundings(mesh, raw.voxels.coords[raw.voxels.coords[:, 2] < 16], 32)
    mesh, _ = orient_outward(mesh, around)
    center = mesh.vertices[mesh.faces.long()].mean(1)
    away = (face_normals(mesh.vertices, mesh.faces) * center).sum(1).sign()
    assert away.abs().sum() == away.sum().abs()


@pytest.mark.parametrize(("lost", "stray"), [(0.02, 0.0), (0.06, 0.02)])
def test_lost_and_stray_quads_are_repaired(lost, stray):
    raw = dual_grid(torus(), 48, lost_quads=lost, stray_quads=stray)
    whole = dual_grid(torus(), 48)
    assert topology_metrics(raw.mesh)["boundary_edges"] > 100
    mesh = remove_flaps(remove_broken_faces(raw.mesh), 4 / 48**2)
    around = flood_surroundings(mesh, raw.voxels.coords, 48)
    mesh, _ = orient_outward(mesh, around)
    mesh = fill_holes(mesh, 12 / 48)
    after = topology_metrics(mesh)
    assert after["boundary_edges"] == 0
    assert after["non_manifold_edges"] <= 2
    assert volume(mesh) == pytest.approx(volume(oriented(whole)), rel=1e-3)
    assert outside_votes(mesh.vertices[mesh.faces.long()], around).min() >= 0  # filled like their neighbours


def test_a_hole_larger_than_the_limit_stays():
    raw = oriented(dual_grid(sphere(), 32))
    center = raw.vertices[raw.faces.long()].mean(1)
    mesh = Mesh(raw.vertices, raw.faces[center[:, 2] < 0.3])
    loops = boundary_loops(mesh.faces, partner_sides(edges_of(mesh.faces)))
    assert len(loops) == 1
    assert len(fill_holes(mesh, 0.5).faces) == len(mesh.faces)
    filled = fill_holes(mesh, 10.0)
    assert topology_metrics(filled)["watertight"]
    assert len(filled.faces) == len(mesh.faces) + len(loops[0]) - 2
    assert len(filled.vertices) == len(mesh.vertices)


def test_a_flat_hole_may_be_larger():
    raw = oriented(dual_grid(box(), 32))
    center = raw.vertices[raw.faces.long()].mean(1)
    mesh = Mesh(raw.vertices, raw.faces[~((center[:, 2] > 0.19) & (center[:, :2].abs() < 0.1).all(1))])
    assert len(fill_holes(mesh, 0.2).faces) == len(mesh.faces)
    assert topology_metrics(fill_holes(mesh, 0.2, 2.0, 0.01))["watertight"]


def test_a_lone_flake_is_not_closed_into_a_pillow():
    flake = mesh_of([[0, 0, 0], [0.1, 0, 0], [0.1, 0.1, 0], [0, 0.1, 0]], [[0, 1, 2], [0, 2, 3]])
    assert len(fill_holes(flake, 10).faces) == 2


def test_two_holes_that_touch_are_closed_one_by_one():
    raw = oriented(dual_grid(box((0.3, 0.3, 0.3)), 16))
    top = raw.vertices[:, 2].max()
    on_top = torch.nonzero(
        (raw.vertices[:, 2] > top - 1e-4) & (raw.vertices[:, :2].abs() < 0.15).all(1)
    ).reshape(-1)
    center = raw.vertices[on_top[0]]
    faces = raw.vertices[raw.faces.long()].mean(1) - center
    hole = (faces.abs() < 1 / 16).all(1) & (faces[:, 0] * faces[:, 1] > 0)  # two quads across a vertex
    mesh = Mesh(raw.vertices, raw.faces[~hole])
    assert int(hole.sum()) == 4
    assert topology_metrics(fill_holes(mesh, 1.0))["watertight"]


def test_two_cubes_that_share_an_edge_are_cut_apart_without_a_gap():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    cube = torch.tensor(
        [
            [0, 1, 3],
            [0, 3, 2],
            [4, 6, 7],
            [4, 7, 5],
            [0, 4, 5],
            [0, 5, 1],
            [2, 3, 7],
            [2, 7, 6],
            [0, 2, 6],
            [0, 6, 4],
            [1, 5, 7],
            [1, 7, 3],
        ]
    )
    other = corners + torch.tensor([1.0, 1.0, 0.0])
    both = weld_vertices(Mesh(torch.cat([corners, other]), torch.cat([cube, cube + 8]).int()), 1e-3)
    assert topology_metrics(both)["non_manifold_edges"] == 1
    cut = split_non_manifold(both)
    assert edges_of(cut.faces).face_count.eq(2).all()
    assert len(cut.vertices) == 16
    assert volume(cut) == pytest.approx(2)


def test_a_needle_is_collapsed_and_a_cap_is_flipped():
    needle = mesh_of(
        [[0, 0, 0], [1, 0, 0], [1, 1e-3, 0], [0.5, 1, 0], [0.5, -1, 0], [2, 0, 0]],
        [[0, 1, 2], [0, 2, 3], [0, 4, 1], [1, 5, 2], [2, 5, 3], [4, 5, 1]],
    )
    straight = straighten_slivers(needle)
    assert aspect_ratios(straight.vertices, straight.faces).max() < 100
    cap = mesh_of([[0, 0, 0], [1, 0, 0], [0.5, 1e-3, 0], [0.5, -0.5, 0]], [[0, 1, 2], [1, 0, 3]])
    straight = straighten_slivers(cap)
    assert len(straight.faces) == 2
    assert aspect_ratios(straight.vertices, straight.faces).max() < 3
    assert float(face_areas(straight.vertices, straight.faces).sum()) == pytest.approx(0.2505, abs=2e-3)


def test_smoothing_removes_noise_and_keeps_the_volume():
    mesh = oriented(dual_grid(sphere(), 32))
    noise = torch.randn(mesh.vertices.shape, generator=torch.Generator().manual_seed(0)) * 0.004
    rough = Mesh(mesh.vertices + noise, mesh.faces)
    calm = smooth(rough, 5)

    def roughness(of: Mesh) -> float:
        return float((of.vertices.norm(dim=1) - 0.35).std())

    assert roughness(calm) < 0.5 * roughness(rough)
    assert volume(calm) == pytest.approx(volume(mesh), rel=0.02)
    assert torch.equal(smooth(rough, 0).vertices, rough.vertices)


@pytest.mark.parametrize("shape", ["solid", "sheet", "holes"])
def test_remeshing_gives_one_closed_outward_shell(shape):
    raw = dual_grid(sphere(), 32, lost_quads=0.1 if shape == "holes" else 0)
    mesh = oriented(raw)
    if shape == "sheet":
        mesh = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces.long()].mean(1)[:, 2] < 0])
    closed = remesh_watertight(mesh, 32, WARP)
    report = topology_metrics(closed)
    assert report["watertight"]
    assert report["components"] == 1
    assert report["euler_characteristic"] == 2
    if shape == "sheet":
        assert 0 < volume(closed) < 0.5 * volume(oriented(dual_grid(sphere(), 32)))
    else:
        assert volume(closed) == pytest.approx(4 / 3 * torch.pi * 0.35**3, rel=0.02)


@pytest.mark.parametrize(("radius", "filled"), [(2.0, True), (8.0, False)])
def test_remeshing_closes_holes_of_a_wall_and_leaves_openings(radius, filled):
    """Through a hole the outside would get in and make a second surface; R = 48, radius in voxels."""
    mesh = oriented(dual_grid(sphere(), 48))
    whole = volume(mesh)
    center = mesh.vertices[mesh.faces.long()].mean(1)
    hole = (center[:, :2].norm(dim=1) < radius / 48) & (center[:, 2] > 0)
    closed = remesh_watertight(Mesh(mesh.vertices, mesh.faces[~hole]), 48, WARP)
    report = topology_metrics(closed)
    assert report["watertight"]
    assert report["euler_characteristic"] == 2
    assert (volume(closed) > 0.97 * whole) == filled
    assert filled or volume(closed) < 0.4 * whole


def test_a_hole_between_patches_of_opposite_winding_is_found():
    mesh = oriented(dual_grid(sphere(), 16))
    center = mesh.vertices[mesh.faces.long()].mean(1)
    around_hole = center[:, 2] > 0.34
    turned = torch.where((center[:, 0] > 0)[:, None], mesh.faces[:, [0, 2, 1]], mesh.faces)
    opened = Mesh(mesh.vertices, turned[~around_hole])
    assert int(around_hole.sum()) > 4
    assert len(boundary_loops(opened.faces, partner_sides(edges_of(opened.faces)))) == 1
    assert topology_metrics(fill_holes(opened, 2.0))["boundary_edges"] == 0


def test_faces_that_lie_on_one_another_are_removed_even_with_vertices_of_their_own():
    points = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert len(remove_repeated_faces(mesh_of(points * 2, [[0, 1, 2], [3, 5, 4]])).faces) == 1
    assert len(remove_repeated_faces(mesh_of([*points, [0, 0, 1]], [[0, 1, 2], [0, 1, 3]])).faces) == 2
