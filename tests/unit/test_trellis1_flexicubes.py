"""FlexiCubes on the cubes that have a surface.

Properties: a case and its inverse agree; closed shapes give closed, oriented meshes on the shape, also where
a value is exactly zero; what lies beyond the decoded cubes is outside; nothing depends on the order of the
cubes; gradients reach everything that is learned.
Not tested here: numbers against the released code, which `tests/parity` does.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.flexicubes import CORNERS, EDGES, case_table, cube_mesh, cube_meshes
from trellis.representations import CubeLayout
from trellis_core.sparse.tensor import SparseTensor

PLAIN, COLORED = CubeLayout(), CubeLayout(use_color=True)


def edges_of(faces: torch.Tensor) -> Counter:
    sides = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return Counter(map(tuple, sides.tolist()))


def ball(resolution: int, radius: float, layout: CubeLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """All cubes in or near a ball, with its signed distance at their corners."""
    axis = torch.arange(resolution)
    cubes = torch.cartesian_prod(axis, axis, axis)
    corners = (cubes[:, None] + torch.tensor(CORNERS)) / resolution - 0.5
    distance = corners.norm(dim=2) - radius
    near = distance.amin(1) < 2 / resolution
    feats = torch.zeros(int(near.sum()), layout.channels)
    feats[:, :8] = distance[near] + 1 / resolution
    return cubes[near].int(), feats


def test_a_case_and_its_inverse_cross_the_same_edges():
    table = case_table()
    crossed = table.patch_of_edge >= 0
    assert torch.equal(crossed, crossed.flip(0))
    assert int(table.unclear.sum()) == 36
    assert table.patches.max() == 4
    assert not table.patches[[0, 255]].any()


@pytest.mark.parametrize("case", range(256))
def test_a_patch_has_a_vertex_for_every_group_of_at_least_three_edges(case):
    table = case_table()
    inside = [case >> j & 1 for j in range(8)]
    crossed = [e for e, (a, b) in enumerate(EDGES) if inside[a] != inside[b]]
    patches = table.patch_of_edge[case]
    assert [e for e in range(12) if patches[e] >= 0] == crossed
    sizes = Counter(patches[crossed].tolist())
    assert sorted(sizes) == list(range(int(table.patches[case])))
    assert all(size >= 3 for size in sizes.values())


@pytest.mark.parametrize("resolution", [8, 20])
def test_a_ball_becomes_a_closed_sphere_that_looks_outwards(resolution):
    cubes, feats = ball(resolution, 0.3, PLAIN)
    mesh = cube_mesh(cubes, feats, PLAIN, resolution)
    assert mesh.faces.dtype == torch.int32
    sides = edges_of(mesh.faces)
    assert all(count == 1 and sides[b, a] == 1 for (a, b), count in sides.items())
    assert (mesh.vertices.norm(dim=1) - 0.3).abs().max() < 0.5 / resolution
    corners = mesh.vertices[mesh.faces.long()]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(1)).sum(1) > 0).all()
    euler = len(mesh.vertices) - len(sides) // 2 + len(mesh.faces)
    assert euler == 2
    assert mesh.attributes is None


def test_a_surface_closes_one_cube_beyond_the_decoded_ones():
    """A single cube that is all inside: its corners are inside, everything else is outside."""
    cubes, feats = torch.tensor([[3, 3, 3]], dtype=torch.int32), torch.zeros(1, PLAIN.channels)
    feats[:, :8] = -1.0
    mesh = cube_mesh(cubes, feats, PLAIN, 8)
    sides = edges_of(mesh.faces)
    assert all(sides[b, a] == 1 for a, b in sides)
    assert len(mesh.faces) == 48  # 6 sides of 2 x 2 quads


def test_a_surface_at_the_border_of_the_domain_stays_open():
    cubes, feats = torch.tensor([[0, 3, 3]], dtype=torch.int32), torch.zeros(1, PLAIN.channels)
    feats[:, :8] = -1.0
    mesh = cube_mesh(cubes, feats, PLAIN, 8)
    sides = edges_of(mesh.faces)
    assert any((b, a) not in sides for a, b in sides)
    assert mesh.vertices[:, 0].min() >= -0.5 - 1 / 16


def test_no_sign_change_is_no_surface():
    mesh = cube_mesh(torch.tensor([[1, 1, 1]]).int(), torch.ones(1, COLORED.channels), COLORED, 8)
    assert mesh.vertices.shape == (0, 3)
    assert mesh.faces.shape == (0, 3)
    assert mesh.attributes is not None and mesh.attributes.shape == (0, 6)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_order_of_the_cubes_does_not_matter(seed, count):
    generator = torch.Generator().manual_seed(seed)
    cubes = torch.unique(torch.randint(0, 5, (count, 3), generator=generator), dim=0).int()
    feats = torch.randn(len(cubes), COLORED.channels, generator=generator)
    order = torch.randperm(len(cubes), generator=generator)
    mesh, shuffled = (cube_mesh(cubes[o], feats[o], COLORED, 5) for o in (torch.arange(len(cubes)), order))
    assert torch.equal(mesh.vertices, shuffled.vertices)
    assert torch.equal(mesh.faces, shuffled.faces)
    assert torch.equal(mesh.attributes, shuffled.attributes)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_noise_gives_valid_meshes(seed):
    generator = torch.Generator().manual_seed(seed)
    cubes = torch.unique(torch.randint(1, 6, (60, 3), generator=generator), dim=0).int()
    feats = torch.randn(len(cubes), COLORED.channels, generator=generator)
    mesh = cube_mesh(cubes, feats, COLORED, 7)
    assert mesh.vertices.isfinite().all()
    assert mesh.vertices.abs().max() <= 0.5 + 0.5 / 7
    assert not len(mesh.faces) or int(mesh.faces.max()) < len(mesh.vertices)
    assert ((mesh.attributes >= 0) & (mesh.attributes <= 1)).all()


def test_every_sample_is_a_mesh_of_its_own():
    cubes, feats = ball(8, 0.3, PLAIN)
    both = torch.cat([torch.nn.functional.pad(cubes, (1, 0), value=i) for i in range(2)]).int()
    meshes = cube_meshes(SparseTensor(feats.repeat(2, 1), both, 2), PLAIN, 8)
    assert len(meshes) == 2
    assert torch.equal(meshes[0].vertices, meshes[1].vertices)
    assert torch.equal(meshes[0].faces, meshes[1].faces)


def test_training_cuts_quads_in_four_and_reaches_every_weight():
    cubes, feats = ball(8, 0.3, COLORED)
    feats = (
        feats + 0.01 * torch.randn(feats.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    plain = cube_mesh(cubes, feats.detach(), COLORED, 8)
    mesh = cube_mesh(cubes, feats, COLORED, 8, training=True)
    assert len(mesh.faces) == 2 * len(plain.faces)
    assert mesh.training is not None
    loss = mesh.vertices.square().sum() + mesh.attributes.sum() + mesh.training.regularizer
    loss.backward()
    reached = feats.grad.abs().amax(0) > 0
    assert reached.all()
