"""Laws of the dual grid, its solver, material voxels and voxel sampling, on random surfaces.

The surfaces are random closed meshes: a sphere or a box, stretched, turned and moved.
"""

import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis2.crossings import find_crossings
from trellis2.dual_grid import extract_mesh, mesh_to_dual_grid, normalize_mesh
from trellis2.quadrics import Quadrics, minimize
from trellis2.voxelize import voxelize_material
from trellis_core.geometry.sample import sample_voxels
from trellis_core.kernels.closest_point import closest_point
from trellis_core.sparse.order import find_sorted, linear_keys
from trellis_core.training.ingest.surfaces import SurfaceMaterial, TexturedMesh

RESOLUTION = 14
few = settings(max_examples=12, deadline=None)


@st.composite
def closed_surfaces(draw):
    """(vertices float32 [V, 3] inside the unit cube, faces int32 [F, 3])."""
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    solid = (
        trimesh.creation.icosphere(subdivisions=draw(st.integers(0, 2)))
        if draw(st.booleans())
        else trimesh.creation.box()
    )
    vertices = torch.tensor(solid.vertices, dtype=torch.float32)
    stretch = torch.rand(3, generator=generator) + 0.4
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    moved = normalize_mesh(vertices * stretch @ turn) * draw(st.floats(0.4, 0.9))
    offset = (torch.rand(3, generator=generator) - 0.5) * 0.1
    return moved + offset, torch.tensor(solid.faces).int()


@few
@given(closed_surfaces())
def test_grid_edges_crossed_an_odd_number_of_times_make_a_closed_surface(surface):
    """Flags have no parity: where two walls cross one grid edge, the extracted surface may be open."""
    vertices, faces = surface
    dual = mesh_to_dual_grid(vertices, faces, RESOLUTION)
    table = linear_keys(dual.coords, (RESOLUTION,) * 3)
    step = torch.full((3,), 1 / RESOLUTION)
    crossings = find_crossings((vertices + 0.5)[faces.long()], step, (RESOLUTION,) * 3)
    edges, counts = (crossings.key * 3 + crossings.axis).unique(return_counts=True)
    flags = torch.zeros_like(dual.crossings)
    flags[find_sorted(table, edges // 3), edges % 3] = counts % 2 == 1
    assert (dual.crossings | ~flags).all()
    mesh = extract_mesh(dual.coords, dual.dual_vertices, flags, None, RESOLUTION)
    sides = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    assert (sides.unique(dim=0, return_counts=True)[1] % 2 == 0).all()


@few
@given(closed_surfaces())
def test_surface_vertices_stay_in_their_voxels_near_the_surface(surface):
    vertices, faces = surface
    dual = mesh_to_dual_grid(vertices, faces, RESOLUTION)
    mesh = extract_mesh(dual.coords, dual.dual_vertices, dual.crossings, None, RESOLUTION)
    distance, face, _ = closest_point(mesh.vertices, vertices, faces, 1.0)
    assert (face >= 0).all() and (distance < 3**0.5 / RESOLUTION).all()
    assert (dual.dual_vertices >= 0).all() and (dual.dual_vertices <= 1).all()


@few
@given(closed_surfaces(), st.integers(0, 100))
def test_neither_winding_nor_the_order_of_faces_matters(surface, seed):
    vertices, faces = surface
    shuffle = torch.randperm(len(faces), generator=torch.Generator().manual_seed(seed))
    one = mesh_to_dual_grid(vertices, faces, RESOLUTION)
    other = mesh_to_dual_grid(vertices, faces[shuffle].flip(1), RESOLUTION)
    assert torch.equal(one.coords, other.coords) and torch.equal(one.crossings, other.crossings)
    assert torch.allclose(one.dual_vertices, other.dual_vertices, atol=1e-2)


@few
@given(closed_surfaces())
def test_renaming_the_axes_renames_the_result(surface):
    vertices, faces = surface
    one = mesh_to_dual_grid(vertices, faces, RESOLUTION)
    other = mesh_to_dual_grid(vertices[:, [1, 2, 0]], faces, RESOLUTION)
    back = other.coords[:, [2, 0, 1]]
    key = (back.long() * torch.tensor([RESOLUTION**2, RESOLUTION, 1])).sum(1).argsort()
    assert torch.equal(back[key], one.coords)
    assert torch.equal(other.crossings[key][:, [2, 0, 1]], one.crossings)
    assert torch.allclose(other.dual_vertices[key][:, [2, 0, 1]], one.dual_vertices, atol=1e-2)


@few
@given(closed_surfaces(), st.tuples(*[st.integers(-1, 1)] * 3))
def test_moving_by_whole_voxels_moves_the_coordinates(surface, steps):
    vertices, faces = surface
    vertices = (vertices * 0.75 * 2**18).round() / 2**18  # the move is exact in float32
    size = 16
    one = mesh_to_dual_grid(vertices, faces, size)
    other = mesh_to_dual_grid(vertices + torch.tensor(steps) / size, faces, size)
    assert torch.equal(one.coords + torch.tensor(steps, dtype=torch.int32), other.coords)
    assert torch.equal(one.crossings, other.crossings)


@few
@given(st.integers(0, 10_000))
def test_no_point_of_the_voxel_has_less_error_than_the_solution(seed):
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(20, 4, 3, generator=generator)  # four random planes per voxel
    distances = torch.randn(20, 4, generator=generator) * 0.5
    a = torch.einsum("npi,npj->nij", planes, planes)
    terms = torch.cat(
        [
            a[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]],
            torch.einsum("npi,np->ni", planes, distances),
            distances.square().sum(1, keepdim=True),
        ],
        1,
    )
    mean = torch.rand(20, 3, generator=generator) - 0.5
    x = minimize(Quadrics(terms, torch.full((20,), 3.0), mean), 0.01, torch.full((3,), 0.5))

    def error(p):
        planes_error = (torch.einsum("npi,nqi->nqp", planes, p) - distances[:, None]).square().sum(2)
        return planes_error + 0.03 * (p - mean[:, None]).square().sum(2)

    others = torch.rand(20, 500, 3, generator=generator) - 0.5
    assert (x.abs() <= 0.5).all()
    assert (error(x[:, None]) <= error(others).amin(1, keepdim=True) + 1e-4).all()


@few
@given(closed_surfaces())
def test_material_voxels_lie_on_the_voxels_of_the_shape(surface):
    vertices, faces = surface
    triangles = vertices[faces.long()]
    mesh = TexturedMesh(
        triangles=triangles,
        uvs=torch.rand(len(faces), 3, 2, generator=torch.Generator().manual_seed(0)),
        material_ids=torch.zeros(len(faces), dtype=torch.int64),
        materials=[SurfaceMaterial(metallic_factor=0.7)],
    )
    voxels = voxelize_material(mesh, RESOLUTION)
    assert torch.equal(voxels.coords, mesh_to_dual_grid(vertices, faces, RESOLUTION).coords)
    assert torch.allclose(voxels.attrs[:, 3], torch.tensor(0.7), atol=1e-4)


@few
@given(closed_surfaces(), st.integers(0, 100))
def test_samples_stay_within_the_range_of_the_voxels(surface, seed):
    vertices, faces = surface
    dual = mesh_to_dual_grid(vertices, faces, RESOLUTION)
    generator = torch.Generator().manual_seed(seed)
    attrs = torch.rand(len(dual.coords), 4, generator=generator)
    points = torch.rand(300, 3, generator=generator) * (RESOLUTION + 4) - 2
    values, support = sample_voxels(points, dual.coords, attrs, RESOLUTION)
    low, high = attrs.amin(0) - 1e-5, attrs.amax(0) + 1e-5
    assert ((values >= low) & (values <= high))[support > 0].all()
    assert (values[support == 0] == 0).all() and (support <= 1 + 1e-5).all()
