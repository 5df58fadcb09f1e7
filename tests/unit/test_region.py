"""Regions: which points and which cells they hold.

Properties: a closed mesh encloses what its shape encloses, also with a hole; regions of one call are united;
a mask holds all that lies behind it; what cannot be a region is refused in words.
Points are in world space, the unit cube around the origin, z up.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.errors import InputError
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.geometry.region import Box, Painted, Solid, Sphere, cells_inside, cut_cells
from trellis_core.geometry.types import Mesh

QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = torch.tensor([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))], dtype=torch.int32)
WHOLE = Box((-1, -1, -1), (1, 1, 1))


def box_mesh(low: tuple[float, ...], high: tuple[float, ...]) -> Mesh:
    corners = [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    return Mesh(torch.tensor(corners, dtype=torch.float32), TRIANGLES)


def ball_mesh(radius: float, rings: int = 24) -> Mesh:
    """A ball of latitudes and longitudes, with triangles of no area at its poles."""
    vertices = [
        [
            radius * math.sin(a) * math.cos(b),
            radius * math.sin(a) * math.sin(b),
            radius * math.cos(a),
        ]
        for a in (math.pi * i / rings for i in range(rings + 1))
        for b in (2 * math.pi * j / rings for j in range(rings))
    ]
    faces = []
    for i in range(rings):
        for j in range(rings):
            a, b = i * rings + j, i * rings + (j + 1) % rings
            faces += [[a, a + rings, b], [b, a + rings, b + rings]]
    return Mesh(torch.tensor(vertices), torch.tensor(faces, dtype=torch.int32))


edge = st.integers(-8, 8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(edge, edge).filter(lambda e: e[0] != e[1]), min_size=3, max_size=3))
def test_a_mesh_of_a_box_holds_the_cells_of_the_box(spans):
    low, high = (tuple(end(span) / 16 for span in spans) for end in (min, max))
    assert torch.equal(cells_inside([Solid(box_mesh(low, high))], 16), cells_inside([Box(low, high)], 16))


@pytest.mark.parametrize("resolution", [16, 33])
def test_a_mesh_of_a_ball_holds_the_cells_of_the_ball(resolution):
    mesh, ball = (
        cells_inside([region], resolution) for region in (Solid(ball_mesh(0.4)), Sphere((0, 0, 0), 0.4))
    )
    assert not (mesh & ~ball).any()  # a polyhedron lies inside of its ball
    assert (ball & ~mesh).sum() < 0.05 * ball.sum()


def test_a_mesh_with_a_hole_holds_about_the_same():
    whole = ball_mesh(0.4)
    holed = Mesh(whole.vertices, whole.faces[40:])
    cells, expected = (cells_inside([Solid(mesh)], 16) for mesh in (holed, whole))
    assert (cells != expected).sum() < 0.02 * expected.sum()


def test_a_mask_holds_all_that_lies_behind_it():
    """Seen from the front, from -y, the right of the picture is where x is above 0."""
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[:20, 30:] = True  # top right
    cells = cells_inside([Painted(mask, orbit_camera(FRONT, 0.0))], 8)
    assert cells[4:, :, 4:].all()
    assert cells.sum() == 4 * 8 * 4


def test_a_mask_holds_nothing_behind_the_camera():
    everything = Painted(torch.ones(8, 8, dtype=torch.bool), orbit_camera(FRONT, 0.0, radius=0.1))
    assert everything.contains(torch.tensor([[0.0, -0.4, 0.0], [0.0, 0.4, 0.0]])).tolist() == [False, True]


def test_regions_of_one_call_are_united():
    left, right = Box((-0.5, -0.5, -0.5), (-0.3, 0.5, 0.5)), Sphere((0.3, 0, 0), 0.1)
    both = cells_inside([left, right], 16)
    assert torch.equal(both, cells_inside([left], 16) | cells_inside([right], 16))


def test_a_cell_belongs_to_the_region_that_holds_its_centre():
    assert cells_inside([Box((-0.5, -0.5, -0.5), (0.5, 0.5, -0.5 + 1.5 / 4))], 4)[0, 0].tolist() == [
        True,
        True,
        False,
        False,
    ]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(-0.3, 0.3)] * 3), st.floats(0.15, 0.6), st.sampled_from([2, 4]))
def test_whole_and_cut_cells_together_know_every_voxel_inside(center, radius, factor):
    """Of the cells whose centres are inside: all voxels, but for those that the border cuts off."""
    ball = Sphere(center, radius)
    inside = cells_inside([ball], 8)
    cells, voxels = cut_cells([ball], inside, inside.nonzero().int(), factor)
    found = inside
    for axis in range(3):
        found = found.repeat_interleave(factor, axis)
    grown = found.clone()
    for cell, mask in zip(cells.tolist(), voxels, strict=True):
        x, y, z = (slice(i * factor, (i + 1) * factor) for i in cell)
        found[x, y, z] = mask
    assert torch.equal(found, cells_inside([ball], 8 * factor) & grown)


@pytest.mark.parametrize(
    "region", [Box((0.6, 0, 0), (0.9, 1, 1)), Sphere((0, 0, 0), 0.01), Solid(box_mesh((2, 2, 2), (3, 3, 3)))]
)
def test_a_region_that_holds_no_cell_is_refused_and_named(region):
    with pytest.raises(InputError, match=r"the region \(.*\) holds no cell of the 16\^3 grid") as error:
        cells_inside([region], 16)
    assert "0.062" in error.value.hint
    with pytest.raises(InputError, match="region 2"):
        cells_inside([WHOLE, region], 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Box((0, 0, 0), (1, 0, 1)),
        lambda: Box((0, float("nan"), 0), (1, 1, 1)),
        lambda: Sphere((0, 0, 0), 0),
        lambda: Sphere((0, 0, 0), float("inf")),
        lambda: Solid(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int32))),
        lambda: Painted(torch.zeros(4, 4, dtype=torch.bool), orbit_camera(0, 0)),
        lambda: cells_inside([], 8),
    ],
)
def test_what_can_be_no_region_is_refused(make):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.hint


def test_facts_of_regions_are_json():
    import json

    mask = torch.ones(4, 4, dtype=torch.bool)
    regions = [WHOLE, Sphere((0, 0, 0), 1), Solid(ball_mesh(0.4)), Painted(mask, orbit_camera(0, 0))]
    kinds = [json.loads(json.dumps(region.facts()))["kind"] for region in regions]
    assert kinds == ["box", "sphere", "mesh", "painted"]
