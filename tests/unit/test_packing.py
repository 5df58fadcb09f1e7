"""Packing: charts keep their distance, holes and nooks are used, and nothing depends on the device."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.charts import cut_sprawling, make_charts, merge_tiny
from trellis_core.geometry.connectivity import edges_of, partner_sides
from trellis_core.geometry.flatten import FlatCharts, flatten_charts, part_vertices, surface_of
from trellis_core.geometry.masks import chart_runs
from trellis_core.geometry.pack import pack, padding_of
from trellis_core.geometry.quality import uv_metrics
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.unwrap import lay_in_rows, unwrap
from trellis_core.kernels.place import place
from trellis_core.kernels.place_warp import place_warp
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp", "place": "warp"})


def sheet(cells: set[tuple[int, int]], size: float = 0.05) -> Mesh:
    """A flat sheet of squares in the plane z = 0, seen from above."""
    corners = sorted({(x + dx, y + dy) for x, y in cells for dx in (0, 1) for dy in (0, 1)})
    number = {corner: i for i, corner in enumerate(corners)}
    faces = []
    for x, y in sorted(cells):
        a, b, c, d = (number[x + dx, y + dy] for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1)))
        faces += [[a, b, c], [a, c, d]]
    points = torch.tensor([[size * x, size * y, 0.0] for x, y in corners])
    return Mesh(points, torch.tensor(faces, dtype=torch.int32))


def ring(side: int, hole: int) -> set[tuple[int, int]]:
    low = (side - hole) // 2
    inside = range(low, low + hole)
    return {(x, y) for x in range(side) for y in range(side) if x not in inside or y not in inside}


def sheets(*shapes: set[tuple[int, int]]) -> Mesh:
    """Several sheets above each other, each a chart of its own."""
    parts = [sheet(shape) for shape in shapes]
    points = [part.vertices + torch.tensor([0, 0, 0.1 * i]) for i, part in enumerate(parts)]
    first = [0, *torch.tensor([len(p) for p in points]).cumsum(0).tolist()]
    faces = [part.faces + start for part, start in zip(parts, first, strict=False)]
    return Mesh(torch.cat(points), torch.cat(faces))


def lattice(cells: int = 3) -> Mesh:
    """Square struts along three axes that meet in cubes: every second cube of a grid has neighbours only."""
    full = {
        (x, y, z)
        for x in range(2 * cells + 1)
        for y in range(2 * cells + 1)
        for z in range(2 * cells + 1)
        if x % 2 + y % 2 + z % 2 <= 1
    }
    number: dict[tuple[float, float, float], int] = {}
    faces = []
    for cell in sorted(full):
        for axis in range(3):
            for end in (0, 1):
                beyond = list(cell)
                beyond[axis] += 2 * end - 1
                if tuple(beyond) in full:
                    continue
                quad = []
                for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)) if end else ((0, 0), (0, 1), (1, 1), (1, 0)):
                    corner = [3.0 * (c // 2) + c % 2 for c in cell]
                    wide = [2.0 if c % 2 else 1.0 for c in cell]
                    corner[axis] += end * wide[axis]
                    corner[(axis + 1) % 3] += u * wide[(axis + 1) % 3]
                    corner[(axis + 2) % 3] += v * wide[(axis + 2) % 3]
                    quad.append(number.setdefault((corner[0], corner[1], corner[2]), len(number)))
                faces += [[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]]
    points = torch.tensor(list(number)) / (3 * cells + 1) - 0.5
    return Mesh(points, torch.tensor(faces, dtype=torch.int32))


def flat_of(mesh: Mesh, rim: float = 0.01) -> FlatCharts:
    surface = surface_of(mesh, partner_sides(edges_of(mesh.faces)))
    return flatten_charts(surface, make_charts(surface, rim))


def owners(uvs: Tensor, flat: FlatCharts, size: int) -> Tensor:
    """Chart of every texel, int64 [S, S], -1 where there is none."""
    pixel = torch.cat([uvs * size, torch.zeros(len(uvs), 1)], 1)
    face, _ = KERNELS["rasterize"](pixel, flat.faces.int(), size, size)
    return torch.where(face >= 0, flat.chart[flat.faces[face.clamp_min(0).long(), 0]], -1)


def nearest_other(owner: Tensor, reach: int) -> int:
    """Texels between charts along rows or columns, `reach` when there are at least so many."""
    size = len(owner)
    for distance in range(1, reach + 1):
        for dy in range(-distance, distance + 1):
            for dx in range(-distance, distance + 1):
                here = owner[max(0, -dy) : size - max(0, dy), max(0, -dx) : size - max(0, dx)]
                there = owner[max(0, dy) : size + min(0, dy), max(0, dx) : size + min(0, dx)]
                if bool(((here >= 0) & (there >= 0) & (here != there)).any()):
                    return distance - 1
    return reach


def box_sheet(width: int, height: int) -> set[tuple[int, int]]:
    return {(x, y) for x in range(width) for y in range(height)}


@pytest.mark.parametrize("texture_size", [64, 256, 2048])
def test_charts_keep_the_padding_as_their_distance(texture_size):
    flat = flat_of(lattice())
    uvs = pack(flat, texture_size, KERNELS)
    padding = padding_of(texture_size)
    assert padding >= 2
    assert nearest_other(owners(uvs, flat, texture_size), padding) >= padding


def test_a_lattice_fills_more_than_half_of_its_texture():
    report = uv_metrics(unwrap(lattice(), 512, layer_gap=0.01, kernels=KERNELS), KERNELS, 512)
    assert report["uv_coverage"] > 0.6
    assert report["uv_overlap"] == report["uv_flips"] == report["uv_outside"] == 0


def test_a_small_chart_goes_into_the_hole_of_a_large_one():
    flat = flat_of(sheets(ring(24, 16), box_sheet(12, 12)))
    uvs = pack(flat, 512, KERNELS)
    (low, high) = (uvs[flat.chart == 0].amin(0), uvs[flat.chart == 0].amax(0))
    small = uvs[flat.chart == 1]
    assert len(flat.size) == 2
    assert bool(((small > low) & (small < high)).all())


def test_all_charts_have_the_same_texels_per_unit():
    flat = flat_of(sheets(box_sheet(10, 3), box_sheet(2, 9), ring(9, 3)))
    uvs = pack(flat, 256, KERNELS)
    ends = flat.faces[:, :2]
    before = (flat.points[ends[:, 0]] - flat.points[ends[:, 1]]).norm(dim=1)
    after = (uvs[ends[:, 0]] - uvs[ends[:, 1]]).norm(dim=1)
    assert (after / before).std() < 1e-4 * (after / before).mean()


def test_no_chart_is_mirrored_by_its_turn():
    flat = flat_of(sheets(*[box_sheet(3 + i % 5, 9 - i % 4) for i in range(12)]))
    uvs = pack(flat, 256, KERNELS)

    def signs(points: Tensor) -> Tensor:
        a, b, c = points[flat.faces].unbind(1)
        return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sign()

    assert torch.equal(signs(uvs), signs(flat.points))


def test_a_crescent_is_turned_to_lie_in_its_smallest_box():
    flat = sheet(box_sheet(20, 4))
    angle = math.radians(30)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    size = flat_of(Mesh(flat.vertices @ turn.T.float(), flat.faces)).size[0]
    assert size[0] == pytest.approx(1.0, abs=0.01)
    assert size[1] == pytest.approx(0.2, abs=0.01)


def test_a_chart_that_leaves_its_box_empty_is_cut_where_it_is_narrow():
    arms = {(x, y) for x in range(30) for y in range(30) if x < 3 or y < 3}
    surface = surface_of(sheet(arms), partner_sides(edges_of(sheet(arms).faces)))
    chart = cut_sprawling(surface, torch.zeros(len(surface.areas), dtype=torch.int64), 0.01)
    size = flatten_charts(surface, chart).size
    assert len(size) == 2
    assert float(size.prod(1).sum()) < 1.15 * float(surface.areas.sum())


def test_a_chart_that_fills_its_box_is_left_whole():
    surface = surface_of(sheet(box_sheet(30, 10)), partner_sides(edges_of(sheet(box_sheet(30, 10)).faces)))
    whole = torch.zeros(len(surface.areas), dtype=torch.int64)
    assert torch.equal(cut_sprawling(surface, whole, 0.01), whole)


def test_a_tiny_chart_joins_the_neighbour_it_shares_most_border_with():
    cells = box_sheet(40, 20)
    mesh = sheet(cells)
    surface = surface_of(mesh, partner_sides(edges_of(mesh.faces)))
    x, y = torch.tensor(sorted(cells)).repeat_interleave(2, 0).unbind(1)
    chart = (x >= 20).long()
    chart[(x == 19) & (y == 5)] = 2  # three sides on chart 0, one on chart 1
    assert torch.equal(merge_tiny(surface, chart), (x >= 20).long())


@given(st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_charts_share_no_vertices_and_keep_their_corners(labels, seed):
    generator = torch.Generator().manual_seed(seed)
    faces = torch.randint(0, 12, (len(labels), 3), generator=generator)
    chart = torch.tensor(labels)
    owner, vertex, parted = part_vertices(faces, chart, 15)
    assert torch.equal(vertex[parted], faces)
    assert torch.equal(owner[parted], chart[:, None].expand(-1, 3))
    assert len(torch.unique(owner * 15 + vertex)) == len(owner)
    assert len(torch.unique(parted)) == len(owner)


@given(st.integers(0, 2**31), st.floats(0, 2), st.floats(1, 30))
@settings(max_examples=40, deadline=None)
def test_every_cell_near_a_chart_is_in_its_mask(seed, margin, scale):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(5, 3, 2, generator=generator, dtype=torch.float64) * scale
    turn = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    left = turn[0][:, 0] * turn[1][:, 1] < turn[0][:, 1] * turn[1][:, 0]
    corners[left] = corners[left].flip(1)
    points = (corners - corners.amin(1, keepdim=True)).reshape(-1, 2)
    chart = torch.arange(5).repeat_interleave(3)
    border = torch.arange(15).reshape(5, 3)
    border = torch.stack([border, border.roll(-1, 1)], 2).reshape(-1, 2)
    size = corners.amax(1) - corners.amin(1)
    found = chart_runs(points, chart, border, size, margin)
    weight = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    weight = weight / weight.sum(1, keepdim=True)
    off = (torch.rand(200, 2, generator=generator, dtype=torch.float64) * 2 - 1) * margin
    for k in range(5):
        cells = painted(found, k, 0)
        inside = weight @ points.reshape(5, 3, 2)[k] + off + margin
        column, row = inside.clamp_min(0).floor().long().unbind(1)
        assert bool(cells[row, column].all())
        for turns in (1, 2, 3):
            assert torch.equal(painted(found, k, turns), torch.rot90(cells, -turns))


def painted(found, chart: int, turn: int) -> Tensor:
    width, height = found.extents[chart, turn].tolist()
    cells = torch.zeros(height, width, dtype=torch.bool)
    for row, begin, end in found.runs[
        found.first[4 * chart + turn] : found.first[4 * chart + turn + 1]
    ].tolist():
        assert not cells[row, begin:end].any()
        cells[row, begin:end] = True
    return cells


def random_shapes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    extents, runs, first = [], [], [0]
    for _ in range(count):
        width, height = torch.randint(1, 9, (2,), generator=generator).tolist()
        cells = torch.rand(height, width, generator=generator) < 0.7
        cells[0, 0] = True
        for turn in range(4):
            turned = torch.rot90(cells, -turn)
            runs += [[y, x, x + 1] for y, x in torch.nonzero(turned).tolist()]
            first.append(len(runs))
        extents.append([[width, height], [height, width]] * 2)
    kinds = torch.randint(0, 3, (count,), generator=generator)
    return torch.tensor(extents).int(), torch.tensor(first).int(), torch.tensor(runs).int(), kinds.int()


@given(st.integers(1, 25), st.integers(0, 2**31), st.integers(9, 40), st.integers(9, 40))
@settings(max_examples=30, deadline=None)
def test_both_backends_place_alike_and_use_no_cell_twice(count, seed, width, height):
    shapes = random_shapes(count, seed)
    placed = place(*shapes, width, height)
    assert torch.equal(place_warp(*shapes, width, height), placed)
    extents, first, runs, _ = shapes
    taken = torch.zeros(height, width, dtype=torch.int32)
    for shape, (column, row, turn) in enumerate(placed.tolist()):
        if turn < 0:
            assert bool((placed[shape:] == -1).all())
            break
        for line, begin, end in runs[first[4 * shape + turn] : first[4 * shape + turn + 1]].tolist():
            taken[row + line, column + begin : column + end] += 1
        assert column + int(extents[shape, turn, 0]) <= width
    assert int(taken.max()) <= 1


@given(st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_boxes_in_rows_do_not_overlap(sizes):
    size = torch.tensor(sizes)
    scale, corner, height, width = lay_in_rows(size)
    low, high = corner, corner + size * scale
    assert bool((low >= 0).all())
    assert bool((high <= torch.tensor([width, height])).all())
    apart = ((low[:, None] >= high[None]) | (high[:, None] <= low[None])).any(2)
    assert bool((apart | torch.eye(len(size), dtype=torch.bool)).all())


def test_unwrapping_twice_gives_the_same_and_names_every_device():
    mesh = lattice(2)
    one = unwrap(mesh, 256, layer_gap=0.01, kernels=KERNELS)
    with torch.device("meta"):  # whatever is made without a device is of no use here
        other = unwrap(mesh, 256, layer_gap=0.01, kernels=KERNELS)
    assert torch.equal(one.uvs, other.uvs)
    assert torch.equal(one.faces, other.faces)


def test_a_texture_without_room_for_the_charts_is_an_error():
    with pytest.raises(UsageError, match="200 charts"):
        pack(flat_of(sheets(*[box_sheet(1, 1)] * 200)), 16, KERNELS)


@pytest.mark.parametrize(
    "end", [[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1e-7, 0.0]], ids=["plain", "flat", "needle"]
)
def test_a_single_triangle_fills_the_texture_from_side_to_side(end):
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], end])
    uvs = unwrap(Mesh(corners, torch.tensor([[0, 1, 2]]).int()), 64, layer_gap=0.01, kernels=KERNELS).uvs
    assert float((uvs.amax(0) - uvs.amin(0)).max()) > 0.9
