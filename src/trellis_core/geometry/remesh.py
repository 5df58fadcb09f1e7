"""A closed surface around whatever the input is: for printing and for solid modelling.

The level set of the unsigned distance at a small offset is cut out of a narrow band of cells. Only the sheet
that faces the flooded outside is kept, one vertex per patch of a cell, and moved back onto the input.
Dual contouring: Ju et al. (2002); one vertex per patch: Nielson, "Dual marching cubes" (2004).
Letters: N cells, V vertices, Q quads, G grid side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.cleanup import remove_broken_faces, split_non_manifold, straighten_slivers
from trellis_core.geometry.orientation import flood
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

LARGEST_GRID = 256  # cells per side
BASE_GRID = 32
HALF_DIAGONAL = 0.87  # of a cell: it may contain a surface whose distance from its centre is less
BAND = 0.75  # offset of the level set, in cells
DOOR = 2  # corners from its middle to its sides: narrower ways in are holes of a wall, not openings
THIN_OFFSET = 0.4  # share of the offset that sheets keep, so that their two sides stay apart

CORNERS = tuple(product((0, 1), repeat=3))
# the four cells around a grid edge along each axis, counter-clockwise seen from its positive end
AROUND = {
    0: ((0, -1, -1), (0, 0, -1), (0, 0, 0), (0, -1, 0)),
    1: ((-1, 0, -1), (-1, 0, 0), (0, 0, 0), (0, 0, -1)),
    2: ((-1, -1, 0), (0, -1, 0), (0, 0, 0), (-1, 0, 0)),
}


@dataclass(frozen=True, slots=True)
class Lattice:
    """A cubic grid of `cells` per side over the cube of side `scale` around the origin."""

    cells: int
    scale: float

    @property
    def step(self) -> float:
        return self.scale / self.cells

    def place(self, index: Tensor) -> Tensor:
        """World position of (fractional) corner indices [N, 3]."""
        return index * self.step - 0.5 * self.scale


def remesh_watertight(mesh: Mesh, resolution: int, kernels: Kernels) -> Mesh:
    """One closed, manifold, outward-facing surface within about a cell of `mesh`; sheets become solid.

    Cells are 1 / `resolution` of the unit cube, but not more than 256 per side.
    """
    cells = min(resolution, LARGEST_GRID)
    lattice = Lattice(cells, (cells + 4) / cells)
    offset = BAND * lattice.step
    active = band_cells(mesh, lattice, offset, kernels)
    corner = torch.unique((active[:, None] + torch.tensor(CORNERS)).reshape(-1, 3), dim=0)
    distance = distance_to(mesh, lattice.place(corner.float()), 2 * lattice.step, kernels) - offset
    value = torch.full((cells + 1,) * 3, lattice.step)
    value[tuple(corner.unbind(1))] = distance
    outside, rooms = leave_rooms(value > 0)
    value = torch.where(rooms, -value, value)
    shell = contour(value, outside, lattice)
    shell = pull_back(shell, mesh, solid=~outside & ((value > 0) | rooms), lattice=lattice, kernels=kernels)
    return straighten_slivers(split_non_manifold(remove_broken_faces(shell)))


def leave_rooms(free: Tensor) -> tuple[Tensor, Tensor]:
    """What the outside reaches of the free corners [G, G, G], and what it reaches through holes only; bool.

    A room has a place with more space around it than its doors have. Narrow gaps are no rooms: they have no
    such place. Without this a pinhole would give the object a second surface inside.
    """
    outside = flood(free)
    roomy = free & ~near(~free, DOOR)
    middles = roomy & outside & ~flood(roomy)
    if not bool(middles.any()):
        return outside, middles
    beyond = flood(free & ~near(middles, DOOR))
    return beyond, outside & ~beyond


def near(marked: Tensor, reach: int) -> Tensor:
    """Corners within `reach` of marked ones along every axis, bool [G, G, G]."""
    values = marked.to(torch.float16 if marked.is_cuda else torch.float32)[None, None]
    return torch.nn.functional.max_pool3d(values, 2 * reach + 1, 1, reach)[0, 0] > 0


def distance_to(mesh: Mesh, points: Tensor, limit: float, kernels: Kernels) -> Tensor:
    """Unsigned distance [N], at most `limit`."""
    closest_point: Any = kernels["closest_point"]
    distance, _, _ = closest_point(points.contiguous(), mesh.vertices, mesh.faces, limit)
    return distance.clamp_max(limit)


def band_cells(mesh: Mesh, lattice: Lattice, offset: float, kernels: Kernels) -> Tensor:
    """Cells that the surface `distance = offset` may cross, int64 [N, 3], found by refining a coarse grid."""
    side = lattice.cells
    while side > BASE_GRID and side % 2 == 0:
        side //= 2
    axis = torch.arange(side)
    cells = torch.cartesian_prod(axis, axis, axis)
    while True:
        level = Lattice(side, lattice.scale)
        reach = HALF_DIAGONAL * level.step
        distance = distance_to(mesh, level.place(cells + 0.5), offset + 2 * reach, kernels)
        cells = cells[(distance - offset).abs() < reach]
        if side == lattice.cells:
            return cells
        side *= 2
        cells = (2 * cells[:, None] + torch.tensor(CORNERS)).reshape(-1, 3)


def contour(value: Tensor, outside: Tensor, lattice: Lattice) -> Mesh:
    """Dual surface between outside corners and the others; `value`, `outside` [G+1, G+1, G+1].

    The vertex of a patch is the mean of its edge crossings.
    """
    side = lattice.cells
    starts, ends, fractions, axes = [], [], [], []
    for axis in range(3):
        step = torch.eye(3, dtype=torch.int64)[axis]
        near, far = outside.narrow(axis, 0, side), outside.narrow(axis, 1, side)
        start = torch.nonzero(near != far)
        a, b = value[tuple(start.unbind(1))], value[tuple((start + step).unbind(1))]
        starts.append(start)
        ends.append(outside[tuple((start + step).unbind(1))])
        fractions.append((a / (a - b)).clamp(0, 1))
        axes.append(torch.full((len(start),), axis))
    start, rising, fraction, axis_of = (torch.cat(part) for part in (starts, ends, fractions, axes))

    offsets = torch.tensor([AROUND[axis] for axis in range(3)])
    cell = start[:, None] + offsets[axis_of]  # [Q, 4, 3]; the border is all outside
    key = (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2]
    unique, inverse = torch.unique(key, return_inverse=True)
    base = torch.stack([unique // side**2, unique // side % side, unique % side], dim=1)
    case = torch.zeros_like(unique)
    for bit, corner in enumerate(CORNERS):
        case |= (~outside[tuple((base + torch.tensor(corner)).unbind(1))]).long() << bit
    patch = patch_table()[case[inverse], local_edges()[axis_of]]  # [Q, 4]
    vertex, quads = torch.unique(inverse * 4 + patch, return_inverse=True)
    crossing = start + fraction[:, None] * torch.eye(3)[axis_of]
    total = torch.zeros(len(vertex), 3).index_add_(0, quads.reshape(-1), crossing.repeat_interleave(4, 0))
    count = torch.bincount(quads.reshape(-1), minlength=len(vertex))
    # counter-clockwise seen from the outside corner
    quads = torch.where(rising[:, None], quads, quads.flip(1))
    vertices = lattice.place(total / count[:, None])
    return Mesh(vertices, split_quads(vertices, quads).to(torch.int32))


def split_quads(vertices: Tensor, quads: Tensor) -> Tensor:
    """Two triangles per quad, along the shorter diagonal, [2Q, 3]."""
    a, b, c, d = vertices[quads].unbind(1)
    short = ((a - c).norm(dim=1) <= (b - d).norm(dim=1))[:, None, None]
    first = torch.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], dim=1)
    second = torch.stack([quads[:, [0, 1, 3]], quads[:, [1, 2, 3]]], dim=1)
    return torch.where(short, first, second).reshape(-1, 3)


def pull_back(shell: Mesh, mesh: Mesh, solid: Tensor, lattice: Lattice, kernels: Kernels) -> Mesh:
    """Move the shell's vertices to the closest point of the input, by one cell at most.

    Where nothing solid lies behind the surface it is a sheet: there a part of the offset stays.
    """
    closest_point: Any = kernels["closest_point"]
    points = shell.vertices
    _, face, weight = closest_point(points, mesh.vertices, mesh.faces, 2 * lattice.step)
    target = (mesh.vertices[mesh.faces[face.clamp_min(0).long()].long()] * weight[:, :, None]).sum(1)
    move = torch.where((face >= 0)[:, None], target - points, 0.0)
    length = move.norm(dim=1, keepdim=True)
    inward = move / length.clamp_min(1e-12)
    thick = torch.zeros(len(points), dtype=torch.bool)
    for depth in (1.0, 1.5, 2.0):
        probe = target + depth * lattice.step * inward
        corner = ((probe + 0.5 * lattice.scale) / lattice.step).round().long().clamp(0, lattice.cells)
        thick |= solid[tuple(corner.unbind(1))]
    share = torch.where(thick[:, None], 1.0, 1 - THIN_OFFSET)
    return Mesh(points + share * inward * length.clamp_max(lattice.step), shell.faces)


@cache
def cell_edges() -> list[tuple[int, int]]:
    """The twelve edges of a cell as corner numbers; corner (x, y, z) has the number 4 x + 2 y + z."""
    return [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]


@cache
def local_edges() -> Tensor:
    """Number of the grid edge within each of the four cells around it, int64 [3, 4]."""
    table = torch.zeros(3, 4, dtype=torch.int64)
    for axis, cells in AROUND.items():
        for place, cell in enumerate(cells):
            low = [-x for x in cell]
            high = [x + (k == axis) for k, x in enumerate(low)]
            ends = tuple(4 * x + 2 * y + z for x, y, z in (low, high))
            table[axis, place] = cell_edges().index((ends[0], ends[1]))
    return table


@cache
def patch_table() -> Tensor:
    """Patch number of every crossed edge in every sign case, int64 [256, 12].

    Bit k of the case says that corner k is inside. On a face with four crossed edges the two that meet at an
    inside corner belong together; both cells at a face decide alike, so the pieces fit.
    """
    edges = cell_edges()
    faces = [[c for c in range(8) if c >> bit & 1 == side] for bit in range(3) for side in (0, 1)]
    table = torch.zeros(256, 12, dtype=torch.int64)
    for case in range(256):
        crossed = [e for e, (a, b) in enumerate(edges) if (case >> a & 1) != (case >> b & 1)]
        group = {e: e for e in crossed}

        def find(e: int, group: dict[int, int] = group) -> int:
            while group[e] != e:
                e = group[e]
            return e

        for face in faces:
            on_face = [e for e in crossed if edges[e][0] in face and edges[e][1] in face]
            for first, second in [(p, q) for p in on_face for q in on_face if p < q]:
                shared = set(edges[first]) & set(edges[second])
                if len(on_face) == 2 or (shared and case >> next(iter(shared)) & 1):
                    group[find(first)] = find(second)
        roots = sorted({find(e) for e in crossed})
        for e in crossed:
            table[case, e] = roots.index(find(e))
    return table
