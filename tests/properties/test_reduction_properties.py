"""Clustering and edge collapse keep the topology of any surface, however torn.

Inputs are random quads of a small dual grid: open, crossing, with many faces at an edge, in many pieces.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis2.dual_grid import extract_mesh
from trellis_core.geometry.cleanup import remove_broken_faces, split_non_manifold
from trellis_core.geometry.cluster import cluster_vertices
from trellis_core.geometry.connectivity import connected_components, edges_of
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.types import Mesh

SIDE = 8


@st.composite
def torn_surfaces(draw: st.DrawFn) -> Mesh:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.2, 0.5, 0.9]))
    axis = torch.arange(SIDE)
    coords = torch.cartesian_prod(axis, axis, axis[: draw(st.integers(1, 4))]).int()
    local = 0.2 + 0.6 * torch.rand(len(coords), 3, generator=generator)
    flags = torch.rand(len(coords), 3, generator=generator) < share * torch.tensor([0.2, 0.2, 1.0])
    return remove_broken_faces(extract_mesh(coords, local, flags, None, SIDE))


def pieces(mesh: Mesh) -> int:
    edges = edges_of(mesh.faces).vertices
    return len(connected_components(edges, len(mesh.vertices)).unique())


def odd_edges(mesh: Mesh) -> int:
    return int((edges_of(mesh.faces).face_count % 2).sum())


def crowded_edges(mesh: Mesh) -> int:
    return int((edges_of(mesh.faces).face_count > 2).sum())


@settings(deadline=None, max_examples=30)
@given(torn_surfaces(), st.integers(1, 3), st.sampled_from([0.05, 0.5, 5.0]))
def test_clustering_keeps_borders_junctions_and_pieces(mesh, levels, tolerance):
    if len(mesh.faces) == 0:
        return
    small = cluster_vertices(mesh, 1 / SIDE, levels, tolerance)
    before, after = topology_metrics(mesh), topology_metrics(small)
    for fact in ("boundary_edges", "non_manifold_edges", "euler_characteristic"):
        assert after[fact] == before[fact]
    assert pieces(small) == pieces(mesh)
    assert len(small.faces) <= len(mesh.faces)
    assert int(small.faces.max()) < len(small.vertices)


@settings(deadline=None, max_examples=20)
@given(torn_surfaces(), st.sampled_from([4, 20, 100]))
def test_collapsing_keeps_pieces_and_makes_no_crowded_edge(mesh, target):
    mesh = split_non_manifold(mesh)
    if len(mesh.faces) == 0:
        return
    small = simplify(mesh, target)
    assert pieces(small) == pieces(mesh)
    assert crowded_edges(small) <= crowded_edges(mesh)
    assert odd_edges(small) <= odd_edges(mesh)
    assert (odd_edges(small) > 0) == (odd_edges(mesh) > 0)
