"""Mesh work runs where the mesh is: nothing is made on a device that nobody named.

Inside `torch.device("meta")` a tensor made without naming a device has no values, and mixing it with the
mesh's raises. So a machine without a GPU finds what would fail on one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.benchmarks.objects import SHAPES, voxel_object
from trellis_core.geometry.asset import ExportSettings, build_asset, clean, keep_finite, reduce_faces
from trellis_core.geometry.cleanup import (
    remove_flaps,
    remove_repeated_faces,
    remove_small_components,
    smooth,
    split_non_manifold,
    straighten_slivers,
    weld_vertices,
)
from trellis_core.geometry.cluster import cluster_vertices
from trellis_core.geometry.connectivity import edges_of, sum_by
from trellis_core.geometry.examine import border_metrics, winding_metrics
from trellis_core.geometry.flips import flip_edges
from trellis_core.geometry.holes import fill_holes
from trellis_core.geometry.normals import crease_normals
from trellis_core.geometry.quality import check_mesh
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.types import Mesh, VoxelMesh
from trellis_core.runtime import Runtime

GRID = 48


@pytest.fixture(scope="module")
def shape() -> VoxelMesh:
    """An open plant with wrong quads: borders, holes, edges of three faces, crumbs."""
    return voxel_object(SHAPES["plant"](), GRID, noise=0.02)


STEPS: dict[str, Callable[[Mesh], object]] = {
    "keep finite": keep_finite,
    "cluster": lambda mesh: cluster_vertices(mesh, 1 / GRID, 2),
    "weld": lambda mesh: weld_vertices(mesh, 0.2 / GRID),
    "flaps": lambda mesh: remove_flaps(mesh, 4 / GRID**2),
    "crumbs": lambda mesh: remove_small_components(mesh, 1e-2, 4 / GRID),
    "holes": lambda mesh: fill_holes(mesh, 12 / GRID, 36 / GRID, 0.5 / GRID),
    "split": split_non_manifold,
    "repeated": lambda mesh: remove_repeated_faces(split_non_manifold(mesh)),
    "slivers": lambda mesh: straighten_slivers(mesh, 2.0),
    "smooth": lambda mesh: smooth(mesh, 3),
    "simplify": lambda mesh: simplify(split_non_manifold(mesh), 500),
    "flip": lambda mesh: flip_edges(mesh, 0.1 / GRID),
    "normals": lambda mesh: crease_normals(mesh, 60),
    "check": check_mesh,
    "winding": lambda mesh: winding_metrics(mesh.faces.long(), edges_of(mesh.faces)),
    "borders": lambda mesh: border_metrics(mesh, mesh.faces.long(), edges_of(mesh.faces)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_works_where_the_mesh_is(name, shape):
    with torch.device("meta"):
        STEPS[name](shape.mesh)


def test_cleaning_and_simplifying_work_where_the_mesh_is(shape):
    runtime = Runtime(device=torch.device("cpu"))
    settings = ExportSettings(faces=1000)
    with torch.device("meta"):
        mesh = clean(shape.mesh, shape.voxels, settings, runtime).mesh
        mesh = reduce_faces(mesh, settings.faces, 1 / GRID)
    assert 500 < len(mesh.faces) <= 1000


def test_a_whole_asset_is_made_where_the_mesh_is(shape):
    runtime = Runtime(device=torch.device("cpu"))
    with torch.device("meta"):
        asset = build_asset(shape, ExportSettings(faces=1000, texture_size=128), runtime=runtime)
    assert asset.mesh.vertices.device.type == "cpu"
    assert asset.quality.metrics["faces"] == len(asset.mesh.faces) > 500


def test_sums_by_owner_are_sums():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(100, 3, generator=generator)
    owner = torch.randint(0, 7, (100,), generator=generator)
    sums = sum_by(values, owner, 8)
    for number in range(8):
        torch.testing.assert_close(sums[number], values[owner == number].sum(0))
