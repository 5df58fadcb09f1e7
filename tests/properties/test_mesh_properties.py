"""Properties of mesh operations on arbitrary triangle soups and shapes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.geometry.cleanup import (
    drop_unused_vertices,
    not_duplicate,
    remove_broken_faces,
    split_non_manifold,
    split_vertices,
    weld_vertices,
)
from trellis_core.geometry.connectivity import (
    boundary_loops,
    connected_components,
    edges_of,
    first_of_each,
    partner_sides,
    row_keys,
    simple_loops,
)
from trellis_core.geometry.holes import triangulate_loops
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.orientation import flood
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.winding import unify_orientations
from trellis_core.io.gltf import from_y_up, to_y_up

faces_strategy = st.lists(
    st.lists(st.integers(0, 11), min_size=3, max_size=3, unique=True), min_size=1, max_size=40
)
seeds = st.integers(0, 2**31)


def soup(faces: list[list[int]], seed: int = 0) -> Mesh:
    points = torch.rand(12, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    return Mesh(points, torch.tensor(faces, dtype=torch.int32))


@given(faces_strategy)
def test_every_side_lies_on_the_edge_that_names_its_ends(faces):
    mesh = soup(faces)
    edges = edges_of(mesh.faces)
    start = mesh.faces.long()
    ends = torch.stack([start, start.roll(-1, 1)], 2).sort(2).values
    assert torch.equal(edges.vertices[edges.of_side], ends)
    assert int(edges.face_count.sum()) == 3 * len(faces)
    assert torch.equal(torch.unique(edges.vertices, dim=0), edges.vertices)


@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, -1, 7, 2**31, -(2**40), 2**50]), min_size=3, max_size=3), max_size=30
    )
)
def test_two_rows_have_the_same_key_exactly_when_they_are_equal(rows):
    keys = row_keys(torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)).tolist()
    assert all((keys[i] == keys[j]) == (rows[i] == rows[j]) for i in range(len(rows)) for j in range(i))
    first = first_of_each(torch.tensor(keys, dtype=torch.int64)).tolist()
    assert first == [row not in rows[:i] for i, row in enumerate(rows)]


@given(faces_strategy)
def test_partners_are_mutual_and_share_their_edge(faces):
    edges = edges_of(soup(faces).faces)
    partner = partner_sides(edges).reshape(-1)
    side = torch.nonzero(partner >= 0).reshape(-1)
    assert torch.equal(partner[partner[side]], side)
    assert torch.equal(edges.of_side.reshape(-1)[side], edges.of_side.reshape(-1)[partner[side]])
    assert len(side) == 2 * int((edges.face_count == 2).sum())


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_components_are_those_of_a_plain_search(count, pairs):
    pairs = [(a % count, b % count) for a, b in pairs]
    labels = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            labels[a] = labels[b] = min(labels[a], labels[b])
    tensor = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    assert connected_components(tensor, count).tolist() == labels


@given(faces_strategy)
def test_splitting_makes_every_mesh_manifold_and_moves_nothing(faces):
    mesh = soup(faces)
    mesh = Mesh(mesh.vertices, mesh.faces[not_duplicate(mesh.faces)])
    for cut in (split_non_manifold(mesh), split_vertices(mesh, partner_sides(edges_of(mesh.faces)))):
        assert int(edges_of(cut.faces).face_count.max()) <= 2
        assert torch.equal(cut.vertices[cut.faces.long()], mesh.vertices[mesh.faces.long()])


@given(faces_strategy)
def test_unifying_twice_changes_nothing_more(faces):
    once = unify_orientations(soup(faces).faces)
    assert torch.equal(unify_orientations(once), once)
    assert torch.equal(once.sort(1).values, soup(faces).faces.sort(1).values)


@given(faces_strategy, seeds)
def test_welding_and_cleaning_are_idempotent(faces, seed):
    once = remove_broken_faces(weld_vertices(soup(faces, seed), 0.05))
    twice = remove_broken_faces(weld_vertices(once, 1e-6))
    assert torch.equal(once.faces, twice.faces)
    assert len(drop_unused_vertices(once).vertices) == len(once.vertices)


@given(faces_strategy)
def test_boundary_loops_visit_each_vertex_once_along_boundary_edges(faces):
    mesh = soup(faces)
    edges = edges_of(mesh.faces)
    known = set(map(tuple, edges.vertices.tolist()))
    for loop in boundary_loops(mesh.faces, partner_sides(edges)):
        assert len(loop) == len(set(loop)) >= 3
        for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
            assert (min(a, b), max(a, b)) in known


@given(st.lists(st.integers(0, 6), max_size=20))
def test_a_chain_is_cut_into_simple_loops(chain):
    for loop in simple_loops(chain):
        assert len(loop) == len(set(loop))


@given(st.integers(3, 12), seeds)
def test_a_loop_is_closed_with_two_triangles_less_than_it_has_sides(count, seed):
    points = np.random.default_rng(seed).random((1, count, 3))
    triangles, area = triangulate_loops(points, np.arange(count)[None], np.array([10**9]), count)
    assert triangles.shape == (1, count - 2, 3)
    edges = edges_of(torch.from_numpy(triangles[0]))
    border = {tuple(e) for e in edges.vertices[edges.face_count == 1].tolist()}
    assert border == {(min(i, (i + 1) % count), max(i, (i + 1) % count)) for i in range(count)}
    a, b, c = points[0][triangles[0]].transpose(1, 0, 2)
    assert np.isclose(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum(), area[0])


@given(seeds, st.floats(0.3, 0.9))
@settings(max_examples=20)
def test_a_flood_is_the_set_of_cells_connected_to_the_border(seed, share):
    free = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(seed)) < share
    reached = flood(free)
    cells = torch.nonzero(free)
    number = {tuple(c): i for i, c in enumerate(cells.tolist())}
    pairs = [
        (i, number[n])
        for c, i in number.items()
        for k in range(3)
        if (n := tuple(x + (axis == k) for axis, x in enumerate(c))) in number
    ]
    labels = connected_components(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), len(cells))
    border = {int(labels[i]) for c, i in number.items() if any(x in (0, 4) for x in c)}
    for cell, index in number.items():
        assert bool(reached[cell]) == (int(labels[index]) in border)
    assert not reached[~free].any()


@given(seeds, st.integers(1, 200))
@settings(max_examples=20)
def test_painting_keeps_the_given_texels_and_stays_within_their_range(seed, count):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(20 * 20, generator=generator)[:count]
    values = torch.randint(40, 200, (len(index), 2), dtype=torch.uint8, generator=generator)
    image = paint_texture(values, index, 20).reshape(-1, 2)
    assert torch.equal(image[index], values)
    assert int(image.min()) >= int(values.min()) - 1
    assert int(image.max()) <= int(values.max()) + 1


@given(seeds)
def test_changing_axes_is_a_rotation(seed):
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(from_y_up(to_y_up(points)), points)
    a, b, c = to_y_up(torch.eye(3)).double()
    assert float(torch.dot(torch.linalg.cross(a, b), c)) == 1
