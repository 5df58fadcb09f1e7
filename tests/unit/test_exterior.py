"""The exterior filter takes away what nobody outside can see, and nothing else.

Objects are dual-contoured on grids of 64 cells. A hole counts as small up to a perimeter of twelve cells, a
flat one up to three times that. Not tested: speed, and CUDA but for the rule that tensors name their device.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from tests.shapes import Distance, box, dual_grid, hollow, sphere, torus, union
from trellis_core.geometry.asset import ExportSettings, clean
from trellis_core.geometry.cleanup import remove_broken_faces
from trellis_core.geometry.exterior import HoleLimits, remove_hidden, see_through_faces
from trellis_core.geometry.holes import fill_holes
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.quality import topology_metrics
from trellis_core.geometry.triangles import face_areas, face_centers
from trellis_core.geometry.types import ALPHA, Mesh, PBRVoxels, VoxelMesh
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

SIDE = 64
HOLES = HoleLimits(12 / SIDE, 36 / SIDE, 0.5 / SIDE)
WARP = Kernels({"open_sky": "warp"})


def without(solid: Distance, *holes: Distance) -> Distance:
    return lambda p: np.maximum.reduce([solid(p), *(-hole(p) for hole in holes)])


def drill(radius: float, direction: tuple[float, float, float] = (0, 0, 1)) -> Distance:
    """A round hole from the middle outwards; the radius is in cells."""
    way = np.array(direction) / np.linalg.norm(direction)

    def distance(p: np.ndarray) -> np.ndarray:
        along = p @ way
        return np.maximum(np.linalg.norm(p - along[..., None] * way, axis=-1) - radius / SIDE, -along)

    return distance


def cylinder(radius: float, low: float, high: float) -> Distance:
    return lambda p: np.maximum(
        np.hypot(p[..., 0], p[..., 1]) - radius, np.abs(p[..., 2] - (low + high) / 2) - (high - low) / 2
    )


SHELL = hollow(sphere(0.4), 5 / SIDE)
SIX_WAYS = [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)]
MUG = without(cylinder(0.3, -0.4, 0.4), cylinder(0.24, -0.34, 0.6))
JAR = without(
    union(sphere(0.33, (0, 0, -0.1)), cylinder(0.1, 0, 0.42)), sphere(0.27, (0, 0, -0.1)), drill(4.3)
)
HOUSE = without(
    box((0.4, 0.35, 0.35)), box((0.34, 0.29, 0.29)), box((0.6, 0.08, 0.08)), box((0.08, 0.6, 0.08))
)


@lru_cache
def closed(distance: Distance, lost: float = 0.0) -> tuple[VoxelMesh, Mesh]:
    """The raw object, and its mesh oriented and without small holes, as the filter gets it."""
    raw = dual_grid(distance, SIDE, lost_quads=lost)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, SIDE)
    mesh, _ = orient_outward(remove_broken_faces(raw.mesh), around)
    return raw, remove_broken_faces(fill_holes(mesh, HOLES.perimeter, HOLES.planar_perimeter, HOLES.flatness))


def filtered(distance: Distance, lost: float = 0.0) -> tuple[Mesh, Mesh]:
    raw, mesh = closed(distance, lost)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, SIDE)
    return mesh, remove_hidden(mesh, around, WARP, HOLES)


def area(mesh: Mesh, within: float = 1.0) -> float:
    """In cells, of the faces closer than `within` to the middle."""
    near = face_centers(mesh.vertices, mesh.faces).norm(dim=1) < within
    return float(face_areas(mesh.vertices, mesh.faces)[near].sum()) * SIDE**2


def longest_border(mesh: Mesh) -> float:
    closing = fill_holes(mesh, HOLES.perimeter, HOLES.planar_perimeter, HOLES.flatness)
    return float(topology_metrics(closing)["boundary_edges"])


@pytest.mark.parametrize(
    ("name", "ways", "lost"),
    [
        ("closed", [], 0.0),
        ("one hole", SIX_WAYS[:1], 0.0),
        ("six holes", SIX_WAYS, 0.0),
        ("one hole, many quads lost", SIX_WAYS[:1], 0.02),
    ],
)
def test_the_inner_wall_of_a_double_shell_goes_whatever_joins_it_to_the_outer_one(name, ways, lost):
    shell = without(SHELL, *(drill(1.4, way) for way in ways))
    mesh, left = filtered(shell, lost)
    inside = 0.4 - 3.5 / SIDE
    assert area(mesh, inside) > 4000
    assert area(left, inside) < 5
    assert area(left) > 0.99 * (area(mesh) - area(mesh, 0.4 - 1.5 / SIDE))
    assert longest_border(left) == 0  # what it opened can be closed
    assert topology_metrics(left)["components"] == 1


def test_a_copy_that_touches_the_wall_from_inside_goes():
    # Dual vertices of cells that both surfaces pass through are shared: edges with four faces join the two.
    raw_outer, raw_inner = (dual_grid(sphere(r, (0, 0, z)), SIDE) for r, z in ((0.4, 0.0), (0.36, 0.0302)))
    outer, inner = raw_outer.mesh, raw_inner.mesh
    own = {tuple(c): i for i, c in enumerate(raw_outer.voxels.coords.tolist())}
    number = torch.tensor(
        [own.get(tuple(c), len(own) + i) for i, c in enumerate(raw_inner.voxels.coords.tolist())]
    )
    shared = int((number < len(own)).sum())
    both = Mesh(
        torch.cat([outer.vertices, inner.vertices]),
        torch.cat([outer.faces, number[inner.faces.long()].to(torch.int32)]),
    )
    both = remove_broken_faces(both)
    around = flood_surroundings(both, raw_outer.voxels.coords, SIDE)
    left = remove_hidden(both, around, WARP, HOLES)
    assert shared > 10
    assert topology_metrics(both)["components"] == 1
    assert area(both) > 1.7 * area(outer)
    assert area(left) == pytest.approx(area(outer), rel=0.03)


@pytest.mark.parametrize(
    "distance",
    [MUG, JAR, HOUSE, without(SHELL, drill(4.3)), without(SHELL, *(drill(3.3, way) for way in SIX_WAYS))],
)
def test_what_is_seen_through_an_opening_stays_whole(distance):
    mesh, left = filtered(distance)
    assert left is mesh


@pytest.mark.parametrize("distance", [torus(), sphere(0.4), union(sphere(0.2), box((0.4, 0.05, 0.05)))])
def test_a_mesh_without_hidden_parts_comes_back_as_it_is(distance):
    mesh, left = filtered(distance)
    assert left is mesh


def test_a_small_opening_keeps_its_inside_when_no_hole_may_be_closed():
    raw, mesh = closed(without(SHELL, drill(1.4)))
    around = flood_surroundings(raw.mesh, raw.voxels.coords, SIDE)
    assert remove_hidden(mesh, around, WARP, HoleLimits(0, 0, 0)) is mesh


def test_a_ball_in_a_jar_stays_and_one_behind_a_pinhole_goes():
    ball = sphere(0.1, (0, 0, -0.1))
    outside, inside = union(sphere(0.33, (0, 0, -0.1)), cylinder(0.2, 0, 0.42)), sphere(0.27, (0, 0, -0.1))
    jar = without(outside, inside, drill(8.3))
    mesh, left = filtered(union(jar, ball))
    assert left is mesh
    mesh, left = filtered(union(without(SHELL, drill(1.4)), ball))
    assert topology_metrics(mesh)["components"] == 2
    assert area(left, 0.3) < 5


def test_what_is_behind_glass_stays_and_the_same_behind_a_wall_goes():
    raw, mesh = closed(union(SHELL, sphere(0.2)))
    alpha = torch.where(raw.voxels.coords[:, 2] > 40, 0.1, 1.0)  # a dome of glass
    around = flood_surroundings(raw.mesh, raw.voxels.coords[alpha > 0.5], SIDE)
    glass = see_through_faces(mesh, raw.voxels.coords, alpha > 0.5, SIDE)
    assert glass is not None and 0.1 < float(glass.float().mean()) < 0.5
    assert area(remove_hidden(mesh, around, WARP, HOLES, glass), 0.25) == area(mesh, 0.25) > 1000
    assert area(remove_hidden(mesh, around, WARP, HOLES), 0.25) == 0
    assert see_through_faces(mesh, raw.voxels.coords, alpha > 0, SIDE) is None


def test_the_plain_torch_rays_tell_the_same_as_the_fast_ones():
    side = 20
    raw = dual_grid(without(hollow(sphere(0.4), 4 / side), drill(3.2)), side)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, side)
    mesh, _ = orient_outward(remove_broken_faces(raw.mesh), around)
    holes = HoleLimits(12 / side, 36 / side, 0.5 / side)
    fast, plain = (remove_hidden(mesh, around, kernels, holes) for kernels in (WARP, Kernels()))
    assert len(plain.faces) < 0.8 * len(mesh.faces)
    assert torch.equal(fast.faces, plain.faces)


def test_nothing_is_left_of_nothing_and_something_of_everything():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    raw, mesh = closed(SHELL)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, SIDE)
    assert len(remove_hidden(empty, around, WARP, HOLES).faces) == 0
    inner = Mesh(mesh.vertices, mesh.faces[face_centers(mesh.vertices, mesh.faces).norm(dim=1) < 0.35])
    assert remove_hidden(inner, around, WARP, HOLES) is inner


def test_every_tensor_names_its_device():
    raw, mesh = closed(without(SHELL, drill(1.4)))
    alpha = torch.where(raw.voxels.coords[:, 2] > 60, 0.1, 1.0)
    with torch.device("meta"):
        around = flood_surroundings(raw.mesh, raw.voxels.coords, SIDE)
        glass = see_through_faces(mesh, raw.voxels.coords, alpha > 0.5, SIDE)
        left = remove_hidden(mesh, around, WARP, HOLES, glass)
        left, _ = orient_outward(left, around)
    assert left.faces.device.type == "cpu" and 0 < len(left.faces) < len(mesh.faces)


def test_export_takes_the_hidden_wall_away_unless_told_not_to():
    raw = dual_grid(without(SHELL, drill(1.4)), SIDE)
    voxels = PBRVoxels(raw.voxels.coords, raw.voxels.attrs, SIDE)
    assert float(voxels.attrs[:, ALPHA].min()) == 1.0
    runtime = Runtime(kernels=WARP)
    with_inside, without_inside = (
        clean(raw.mesh, voxels, ExportSettings(keep_interior=keep), runtime).mesh for keep in (True, False)
    )
    assert area(with_inside, 0.34) > 4000
    assert area(without_inside, 0.34) < 5
    assert topology_metrics(without_inside)["watertight"]
