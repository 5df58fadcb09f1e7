"""Solids for a 3D printer.

Properties: whatever goes in, closed, outward-facing, manifold solids of the asked height come out, standing
on z = 0; thick parts keep their shape and edges, thin ones get walls of the asked thickness; nothing inside
survives; an independent library agrees. Lengths are millimetres.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shapes import dual_grid, sphere, torus
from trellis_core.errors import Cancelled, InputError, UsageError
from trellis_core.geometry.connectivity import corner_classes, edges_of, partner_sides
from trellis_core.geometry.contour import contour, find_crossings, join_touching
from trellis_core.geometry.intersections import self_intersections
from trellis_core.geometry.print import is_closed, judge_solid, pieces_of, print_solid, solid_facts, volume_of
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
CORNERS = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
SIDES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def box(size, center=(0.0, 0.0, 0.0)) -> Mesh:
    faces = [[q[0], q[i], q[i + 1]] for q in SIDES for i in (1, 2)]
    return Mesh(CORNERS * torch.tensor(size) + torch.tensor(center), torch.tensor(faces, dtype=torch.int32))


def joined(*meshes: Mesh) -> Mesh:
    start, faces = 0, []
    for mesh in meshes:
        faces.append(mesh.faces + start)
        start += len(mesh.vertices)
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def ball(radius=0.4, resolution=32) -> Mesh:
    return dual_grid(sphere(radius), resolution).mesh


def warnings_of(made: list):
    return [step.warning for step in made if step.warning]


def printed(mesh, height=20.0, wall=2.0, **options) -> Mesh:
    solid = print_solid(mesh, height, wall, RUNTIME, voxel_mm=options.pop("voxel_mm", 0.5), **options)
    assert is_closed(solid.faces)
    assert volume_of(solid) > 0
    low, high = solid.vertices.amin(0), solid.vertices.amax(0)
    assert high[2] == pytest.approx(height, rel=1e-5)
    assert low[2] == pytest.approx(0, abs=1e-5)
    assert (low + high)[:2].abs().max() < 1e-4
    return solid


def thickness(solid: Mesh) -> torch.Tensor:
    """How far a ray from each face goes through the solid."""
    a, b, c = solid.vertices[solid.faces.long()].unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    start = (a + b + c) / 3 - 1e-3 * normal
    distance, _, _ = RUNTIME.kernels["ray_cast"](start, -normal, solid.vertices, solid.faces, 1e3)
    return distance


def test_a_thick_box_keeps_its_faces_and_sharp_edges():
    solid = printed(box((1.0, 0.6, 1.0)))
    assert volume_of(solid) == pytest.approx(20 * 12 * 20, rel=2e-3)
    corner = torch.tensor([10.0, 6.0, 20.0])
    assert (solid.vertices - corner).norm(dim=1).min() < 0.1


def test_faces_may_be_wound_any_way():
    mesh = ball()
    flip = torch.arange(len(mesh.faces)) % 3 == 0
    mixed = torch.where(flip[:, None], mesh.faces.flip(1), mesh.faces)
    torch.testing.assert_close(printed(mesh).vertices, printed(replace(mesh, faces=mixed)).vertices)


def test_an_open_sheet_becomes_a_solid_of_the_wall_thickness():
    mesh = ball()
    bowl = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces.long()][:, :, 2].amax(1) < 0.1])
    solid = printed(bowl, height=20, wall=2)
    outer = float(solid.vertices[:, 0].max())
    area = 2 * math.pi * (outer - 1) * (20 - 2)  # of the middle of the wall, without the rims
    assert volume_of(solid) == pytest.approx(2 * area, rel=0.05)
    assert thickness(solid).quantile(0.02) > 1.9


def test_a_thin_plate_is_thickened_and_what_stands_on_it_is_not():
    plate, block = box((1.0, 1.0, 0.02)), box((0.3, 0.3, 0.98), (0, 0, 0.5))
    solid = printed(joined(plate, block), height=20, wall=2)
    on_top = solid.vertices[solid.vertices[:, 2] > 10]
    assert on_top[:, :2].abs().max() == pytest.approx(3.0, abs=0.15)
    beside = solid.vertices[solid.vertices[:, :2].abs().amax(1) > 6]
    beside = beside[beside[:, :2].abs().amax(1) < 9]
    assert beside[:, 2].max() - beside[:, 2].min() == pytest.approx(2.0, abs=0.5)
    assert thickness(solid).quantile(0.01) > 1.8


def test_what_is_inside_vanishes():
    solid = printed(joined(ball(0.4), ball(0.2), box((0.1, 0.1, 0.1))))
    assert pieces_of(solid)[1] == 1
    assert volume_of(solid) == pytest.approx(4 / 3 * math.pi * 10**3, rel=0.02)


def test_parts_that_pass_through_each_other_become_one():
    solid = printed(joined(box((1.0, 0.3, 0.3)), box((0.3, 0.3, 1.0))))
    assert pieces_of(solid)[1] == 1
    assert not len(self_intersections(solid))


def test_handles_stay():
    solid = printed(dual_grid(torus(), 24).mesh, height=8, wall=1.5)
    edges = len(solid.faces) * 3 // 2
    assert len(solid.vertices) - edges + len(solid.faces) == 0


def test_separate_pieces_stay_and_crumbs_go_aloud():
    seen: list = []
    crumb = box((0.01, 0.01, 0.01), (0.45, 0, 0))
    mesh = joined(box((0.3, 0.3, 1.0)), box((0.3, 0.3, 0.6), (-0.6, 0, 0)), crumb)
    solid = print_solid(mesh, 20, 2, RUNTIME.reporting(seen.append), voxel_mm=0.5)
    assert pieces_of(solid)[1] == 2
    assert any("1 floating crumb" in text for text in warnings_of(seen))
    assert any("2 pieces" in text for text in warnings_of(seen))


def test_a_solid_keeps_its_promises_with_few_faces():
    mesh = dual_grid(torus(), 24).mesh
    solid = printed(mesh, height=8, wall=1.5, faces=1500)
    assert len(solid.faces) <= 1500
    facts = solid_facts(solid)
    assert facts["watertight"] and facts["watertight_when_welded"]
    assert facts["self_intersections"] == 0


@pytest.mark.parametrize("name", ["bowl", "torus", "soup"])
def test_manifold3d_agrees(name):
    pytest.importorskip("manifold3d", reason="the extra `print` is not installed")
    mesh = ball()
    meshes = {
        "bowl": Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces.long()][:, :, 2].amax(1) < 0]),
        "torus": dual_grid(torus(), 24).mesh,
        "soup": soup(60, 0),
    }
    assert judge_solid(printed(meshes[name], height=8, wall=1.5)) == "NoError"


def soup(count: int, seed: int) -> Mesh:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 1, 3, generator=generator)
    corners = middle + 0.4 * (torch.rand(count, 3, 3, generator=generator) - 0.5)
    return Mesh(corners.reshape(-1, 3), torch.arange(3 * count, dtype=torch.int32).reshape(-1, 3))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_any_triangles_become_closed_solids_that_do_not_pass_through_themselves(count, seed):
    solid = print_solid(soup(count, seed), 20, 2, RUNTIME, faces=20_000, voxel_mm=1.0)
    assert is_closed(solid.faces)
    assert volume_of(solid) > 0
    assert not len(self_intersections(solid))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.6))
def test_joined_points_bound_a_manifold(seed, share):
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(9, 8, 7, generator=generator)
    inside = torch.zeros(9, 8, 7, dtype=torch.bool)
    inside[2:-2, 2:-2, 2:-2] = value[2:-2, 2:-2, 2:-2] < share
    before = inside.clone()
    join_touching(inside, value)
    assert bool((inside | ~before).all())
    crossings = find_crossings(inside)
    if len(crossings.start):
        middle = (crossings.outside + crossings.inside).float() / 2
        surface = contour(crossings, middle, (crossings.outside - crossings.inside).float(), (9, 8, 7))
        assert is_closed(surface.faces)
        assert volume_of(surface) > 0
        assert fans_are_whole(surface.faces)


def fans_are_whole(faces) -> bool:
    """Whether the faces around every vertex hang together."""
    classes = corner_classes(faces, partner_sides(edges_of(faces)))
    return int(classes.max()) == int(faces.max())


def test_pairs_of_triangles_that_pass_through_each_other_are_found():
    crossed = joined(box((1.0, 1.0, 1.0)), box((0.2, 0.2, 2.0)))
    assert len(self_intersections(crossed)) >= 8
    apart = joined(box((1.0, 1.0, 1.0)), box((0.2, 0.2, 2.0), (2.0, 0, 0)))
    assert not len(self_intersections(apart))


def test_the_same_mesh_gives_the_same_solid():
    one, other = (printed(soup(20, 3), voxel_mm=1.0) for _ in range(2))
    assert torch.equal(one.vertices, other.vertices)
    assert torch.equal(one.faces, other.faces)


@pytest.mark.parametrize(
    ("height", "wall", "options", "says"),
    [
        (0.0, 1.0, {}, "height of 0 mm"),
        (float("nan"), 1.0, {}, "height of nan mm"),
        (20.0, -1.0, {}, "wall of -1 mm"),
        (20.0, 15.0, {}, "too thick"),
        (20.0, 1.0, {"voxel_mm": 2.0}, "do not fit walls"),
        (20.0, 1.0, {"faces": 2}, "2 faces"),
        (2000.0, 0.1, {}, "too thin"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(height, wall, options, says):
    with pytest.raises(UsageError, match=says) as error:
        print_solid(box((1.0, 1.0, 1.0)), height, wall, RUNTIME, **options)
    assert error.value.hint


def test_a_mesh_that_cannot_be_printed_is_refused():
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    flat = Mesh(torch.eye(3) * torch.tensor([1.0, 1, 0]), torch.tensor([[0, 1, 2]], dtype=torch.int32))
    broken = Mesh(torch.full((3, 3), torch.nan), torch.tensor([[0, 1, 2]], dtype=torch.int32))
    for mesh in (nothing, broken):
        with pytest.raises(InputError, match="no faces"):
            print_solid(mesh, 20, 2, RUNTIME)
    with pytest.raises(InputError, match="flat"):
        print_solid(flat, 20, 2, RUNTIME)


def test_printing_can_be_cancelled():
    def stop(step):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        print_solid(ball(), 20, 2, RUNTIME.reporting(stop))
