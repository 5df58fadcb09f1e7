"""Dual grids: quads from crossing flags, diagonals, and the way back from a mesh.

Voxel keys are 64-bit: grids of 1536 and 2048 are part of the specification.
"""

import pytest
import torch
import trimesh

from trellis2 import crossings
from trellis2.dual_grid import extract_mesh, mesh_to_dual_grid, normalize_mesh


def block(resolution=4, low=0, high=2):
    """All voxels in [low, high)^3 with their dual vertices in the middle."""
    side = torch.arange(low, high)
    coords = torch.cartesian_prod(side, side, side).int()
    return coords, torch.full((len(coords), 3), 0.5), torch.zeros(len(coords), 3, dtype=torch.bool)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crossing_makes_two_triangles_that_face_the_negative_axis(axis):
    coords, local, flags = block()
    flags[0, axis] = True
    mesh = extract_mesh(coords, local, flags, torch.ones(len(coords)), 4)
    a, b, c = mesh.vertices[mesh.faces.long()].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    assert mesh.faces.dtype == torch.int32 and len(mesh.faces) == 2
    assert torch.equal(normals.sign().abs(), torch.eye(3)[axis].expand(2, 3)) and (normals.sum(1) < 0).all()
    assert normals.norm(dim=1).sum().item() / 2 == pytest.approx(1 / 16)


def test_a_quad_needs_all_four_voxels():
    coords, local, flags = block()
    flags[:, :] = True
    without_one = coords.ne(torch.tensor([0, 1, 1])).any(1)
    full = extract_mesh(coords, local, flags, None, 4)
    holed = extract_mesh(coords[without_one], local[without_one], flags[without_one], None, 4)
    assert len(full.faces) == 2 * 6  # 2 per axis: the neighbours of the far side are missing
    assert len(holed.faces) == 2 * 3


@pytest.mark.parametrize("resolution", [4, 1536, 2048])
def test_a_voxel_at_the_end_of_the_grid_never_wraps_around(resolution):
    end = resolution - 1
    coords = torch.tensor([[0, 0, end], [0, 1, 0], [1, 0, end], [1, 1, 0]], dtype=torch.int32)
    flags = torch.ones(4, 3, dtype=torch.bool)
    assert len(extract_mesh(coords, torch.zeros(4, 3), flags, None, resolution).faces) == 0


@pytest.mark.parametrize(
    ("weights", "diagonal"), [((2, 1, 2, 1), {0, 2}), ((1, 2, 1, 2), {1, 3}), ((1, 1, 1, 1), {1, 3})]
)
def test_the_heavier_diagonal_splits_the_quad_and_a_tie_takes_the_second(weights, diagonal):
    coords = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.int32)
    flags = torch.zeros(4, 3, dtype=torch.bool)
    flags[0, 2] = True
    mesh = extract_mesh(coords, torch.full((4, 3), 0.5), flags, torch.tensor(weights).float(), 2)
    first, second = (set(f) for f in mesh.faces.tolist())
    assert first & second == diagonal


def test_without_weights_a_folded_quad_is_split_along_its_fold():
    coords = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.int32)
    flags = torch.zeros(4, 3, dtype=torch.bool)
    flags[0, 2] = True
    for lifted, fold in ((0, {1, 3}), (2, {1, 3}), (1, {0, 2}), (3, {0, 2})):
        local = torch.full((4, 3), 0.5)
        local[lifted, 2] = 1.4
        first, second = (set(f) for f in extract_mesh(coords, local, flags, None, 2).faces.tolist())
        assert first & second == fold


def test_training_surfaces_are_differentiable_in_positions_and_weights():
    coords, local, flags = block()
    flags[0] = True
    local = local.clone().requires_grad_()
    weights = torch.linspace(0.5, 2, len(coords)).requires_grad_()
    noise = torch.rand(len(coords), 3, generator=torch.Generator().manual_seed(0)) * 0.3
    mesh = extract_mesh(coords, local + noise, flags, weights, 4, training=True)
    assert len(mesh.vertices) == len(coords) + 3 and len(mesh.faces) == 12
    mesh.vertices[len(coords) :].square().sum().backward()
    assert (weights.grad != 0).any() and (local.grad != 0).any()


def test_an_empty_grid_makes_an_empty_mesh():
    nothing = torch.zeros(0, 3)
    for training in (False, True):
        mesh = extract_mesh(nothing.int(), nothing, nothing.bool(), torch.zeros(0), 8, training=training)
        assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)


def test_arrays_of_different_length_are_refused():
    coords, local, flags = block()
    with pytest.raises(ValueError, match="dual_vertices"):
        extract_mesh(coords, local[1:], flags, None, 4)


def test_a_normalised_mesh_is_centred_and_strictly_inside_the_cube():
    vertices = normalize_mesh(torch.tensor([[3.0, 5.0, -1.0], [7.0, 6.0, 0.0], [4.0, 5.5, 1.0]]))
    assert vertices.abs().amax() < 0.5
    assert (vertices.amax(0) - vertices.amin(0)).amax().item() == pytest.approx(0.99999)
    assert torch.allclose(vertices.amax(0) + vertices.amin(0), torch.zeros(3), atol=1e-6)


def sphere(radius=0.4, subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces).int()


def facts(mesh):
    """(edges used by two triangles only, distances of the used vertices from the origin)."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    _, counts = edges.unique(dim=0, return_counts=True)
    used = mesh.faces.unique().long()
    return bool((counts == 2).all()), mesh.vertices[used].norm(dim=1)


@pytest.mark.parametrize("resolution", [16, 33])
def test_a_sphere_survives_the_round_trip_closed_and_round(resolution):
    vertices, faces = sphere()
    dual = mesh_to_dual_grid(vertices, faces, resolution)
    closed, radius = facts(extract_mesh(dual.coords, dual.dual_vertices, dual.crossings, None, resolution))
    assert closed and (radius - 0.4).abs().amax() < 0.01
    assert dual.coords.dtype == torch.int32 and dual.crossings.dtype == torch.bool
    assert (dual.dual_vertices >= 0).all() and (dual.dual_vertices <= 1).all()


def test_a_cube_keeps_its_corners_and_edges():
    turn = trimesh.transformations.rotation_matrix(0.4, (1, 2, 3))
    box = trimesh.creation.box((0.5, 0.4, 0.6)).apply_transform(turn)
    vertices, faces = torch.tensor(box.vertices).float(), torch.tensor(box.faces).int()
    dual = mesh_to_dual_grid(vertices, faces, 32, regularization_weight=1e-4)
    surface = extract_mesh(dual.coords, dual.dual_vertices, dual.crossings, None, 32)
    nearest = torch.cdist(vertices, surface.vertices).amin(1)
    assert (nearest < 0.25 / 32).all()


def test_the_flags_are_the_edges_that_the_surface_crosses():
    low, high = 0.21, 0.69  # in voxels of a 4^3 grid over [0, 4]: a small tilted triangle around one edge
    triangle = torch.tensor([[1.5, 1.5, low + 1], [3.0, 1.5, low + 1], [1.8, 3.0, high + 1]])
    dual = mesh_to_dual_grid(triangle, torch.tensor([[0, 1, 2]]), 4, aabb=[[0, 0, 0], [4, 4, 4]])
    owner = dual.crossings[:, 2].nonzero().squeeze(1)
    assert dual.coords[owner].tolist() == [[1, 1, 1]]
    assert dual.coords[:, 2].eq(1).all() and len(dual.coords) == 4


def test_a_triangle_between_grid_edges_makes_no_voxel():
    inside = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.1, 0.15], [0.1, 0.2, 0.12]])
    assert len(mesh_to_dual_grid(inside, torch.tensor([[0, 1, 2]]), 2).coords) == 0


def test_open_edges_pull_their_vertices_onto_the_border():
    half = 0.4
    sheet = torch.tensor([[-half, -half, 0.01], [half, -half, 0.01], [half, half, 0.01], [-half, half, 0.01]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    reach = {}
    for weight in (0.0, 0.2):
        dual = mesh_to_dual_grid(sheet, faces, 16, boundary_weight=weight)
        surface = extract_mesh(dual.coords, dual.dual_vertices, dual.crossings, None, 16)
        reach[weight] = surface.vertices[surface.faces.unique().long()][:, 0].amax().item()
    tenth = 0.1 / 16
    assert abs(reach[0.2] - half) < tenth < abs(reach[0.0] - half)


def test_a_grid_may_have_any_box_and_any_sides():
    vertices, faces = sphere(radius=0.3)
    box = [[-0.35, -0.4, -0.45], [0.5, 0.4, 0.35]]
    dual = mesh_to_dual_grid(vertices, faces, (20, 16, 24), aabb=box)
    closed, radius = facts(
        extract_mesh(dual.coords, dual.dual_vertices, dual.crossings, None, (20, 16, 24), aabb=box)
    )
    assert closed and (radius - 0.3).abs().amax() < 0.01


def test_lookups_in_a_table_and_by_search_agree(monkeypatch):
    vertices, faces = sphere()
    by_table = mesh_to_dual_grid(vertices, faces, 20)
    monkeypatch.setattr(crossings, "DENSE_CELLS", 0)
    monkeypatch.setattr(crossings, "WORK", 50)
    by_search = mesh_to_dual_grid(vertices, faces, 20)
    assert torch.equal(by_table.coords, by_search.coords) and torch.equal(
        by_table.crossings, by_search.crossings
    )
    assert torch.allclose(by_table.dual_vertices, by_search.dual_vertices, atol=1e-4)


def test_a_mesh_without_faces_makes_no_voxels():
    dual = mesh_to_dual_grid(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int32), 16)
    assert dual.coords.shape == (0, 3) and dual.crossings.shape == (0, 3)


def test_vertices_that_are_not_finite_are_refused():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, float("nan")], [0, 1, 0]])
    with pytest.raises(ValueError, match="finite"):
        mesh_to_dual_grid(vertices, torch.tensor([[0, 1, 2]]), 8)
