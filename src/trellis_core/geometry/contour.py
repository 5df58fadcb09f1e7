"""A closed surface between the inside and the outside points of a lattice.

One vertex per cell, where the planes at the cell's crossings meet best: dual contouring of Hermite data (Ju
et al., 2002). It is manifold because inside points that only touch at an edge or a corner are joined first
(Latecki, "3D well-composed pictures", 1997). Vertices stay in their cells, so that sheets next to each other
stay apart. Lattice units throughout. Letters: X, Y, Z lattice size, N crossings, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

from trellis_core.geometry.cluster import multiply, solve
from trellis_core.geometry.triangles import unit
from trellis_core.geometry.types import Mesh

ROOM = 0.45  # of a cell: how far its vertex may be from its centre
UPPER = torch.triu_indices(3, 3)
# the four cells around a lattice edge along each axis, counter-clockwise seen from its positive end
AROUND = torch.tensor(
    [
        [[0, -1, -1], [0, 0, -1], [0, 0, 0], [0, -1, 0]],
        [[-1, 0, -1], [-1, 0, 0], [0, 0, 0], [0, 0, -1]],
        [[-1, -1, 0], [0, -1, 0], [0, 0, 0], [-1, 0, 0]],
    ]
)


@dataclass(frozen=True, slots=True)
class Crossings:
    """Lattice edges with one end outside and one inside."""

    start: Tensor  # int64 [N, 3]  the end with the smaller coordinate
    axis: Tensor  # int64 [N]
    outside: Tensor  # int64 [N, 3]  the end that is outside
    inside: Tensor  # int64 [N, 3]


def join_touching(
    inside: Tensor,  # bool [X, Y, Z]  changed in place
    value: Tensor,  # float32 [X, Y, Z]  smaller: rather inside
) -> None:
    """Turn outside points to inside until inside and outside are both well-composed.

    That is: no square of the lattice has its two inside points across from each other, and no cube has just
    two points, across from each other, that differ from the rest.
    """
    while True:
        changed = False
        for one, other in combinations(range(3), 2):
            changed |= join_squares(inside, value, one, other)
        changed |= join_cubes(inside, value)
        if not changed:
            return


def join_squares(inside: Tensor, value: Tensor, one: int, other: int) -> bool:
    corner = {(i, j): shifted(shifted(inside, one, i), other, j) for i, j in product((0, 1), repeat=2)}
    same = corner[0, 0] == corner[1, 1]
    crossed = torch.nonzero(same & (corner[0, 1] == corner[1, 0]) & (corner[0, 0] != corner[0, 1]))
    return fill_cheapest(inside, value, crossed, [step_of(one, i) + step_of(other, j) for i, j in corner])


def join_cubes(inside: Tensor, value: Tensor) -> bool:
    steps = list(product((0, 1), repeat=3))
    corner = [shifted(shifted(shifted(inside, 0, i), 1, j), 2, k) for i, j, k in steps]
    count = torch.zeros(corner[0].shape, dtype=torch.int8)
    for part in corner:
        count += part
    base = torch.nonzero((count == 2) | (count == 6))
    at = tuple(base.unbind(1))
    differs = torch.stack([part[at] for part in corner], 1) == (count[at] == 2)[:, None]
    crossed = (differs & differs.flip(1)).any(1)  # corners 0 and 7, 1 and 6, ... are across from each other
    return fill_cheapest(inside, value, base[crossed], [torch.tensor(step) for step in steps])


def fill_cheapest(inside: Tensor, value: Tensor, base: Tensor, steps: list[Tensor]) -> bool:
    """Turn the outside point with the smallest value of each square or cube at `base` [N, 3] to inside."""
    if not len(base):
        return False
    corner = base[:, None] + torch.stack(steps)
    index = tuple(corner.unbind(2))
    price = torch.where(inside[index], torch.inf, value[index])
    cheapest = price.argmin(1)
    inside[tuple(corner[torch.arange(len(base)), cheapest].unbind(1))] = True
    return True


def step_of(axis: int, length: int) -> Tensor:
    step = torch.zeros(3, dtype=torch.int64)
    step[axis] = length
    return step


def shifted(grid: Tensor, axis: int, start: int) -> Tensor:
    """The grid without its last (start 0) or first (start 1) layer along an axis."""
    return grid.narrow(axis, start, grid.shape[axis] - 1)


def find_crossings(inside: Tensor) -> Crossings:
    """All lattice edges whose ends differ; `inside` bool [X, Y, Z] with an outside border."""
    starts, ends, axes = [], [], []
    for axis in range(3):
        start = torch.nonzero(shifted(inside, axis, 0) != shifted(inside, axis, 1))
        starts.append(start)
        ends.append(start + step_of(axis, 1))
        axes.append(torch.full((len(start),), axis))
    start, end = torch.cat(starts), torch.cat(ends)
    outside = torch.where(inside[tuple(start.unbind(1))][:, None], end, start)
    return Crossings(start, torch.cat(axes), outside, start + end - outside)


def contour(
    crossings: Crossings,
    point: Tensor,  # float32 [N, 3]  where the surface crosses the edge
    normal: Tensor,  # float32 [N, 3]  unit, to the outside; zero where nothing is known
    size: tuple[int, int, int],
) -> Mesh:
    """Closed, outward-oriented and manifold when the inside is well-composed (`join_touching`)."""
    cell = crossings.start[:, None] + AROUND[crossings.axis]  # [N, 4, 3]
    key = (cell[..., 0] * size[1] + cell[..., 1]) * size[2] + cell[..., 2]
    unique, quads = torch.unique(key, return_inverse=True)
    base = torch.stack([unique // (size[1] * size[2]), unique // size[2] % size[1], unique % size[2]], 1)
    center = base.double() + 0.5
    vertices = center + place_in_cells(quads, point, normal, center)
    rising = (crossings.outside != crossings.start).any(1)  # the outside lies at the greater coordinate
    quads = torch.where(rising[:, None], quads, quads.flip(1))
    return Mesh(vertices.float(), split_quads(vertices, quads, normal.double()).to(torch.int32))


def place_in_cells(quads: Tensor, point: Tensor, normal: Tensor, center: Tensor) -> Tensor:
    """Offset of each cell's vertex from its centre, float64 [C, 3]."""
    count = torch.bincount(quads.reshape(-1), minlength=len(center)).double()
    matrix, vector = center.new_zeros(len(center), 6), torch.zeros_like(center)
    mean = torch.zeros_like(center)
    normal = normal.double()
    plane = normal[:, UPPER[0]] * normal[:, UPPER[1]]
    for cell in quads.unbind(1):
        offset = point.double() - center[cell]
        mean.index_add_(0, cell, offset)
        matrix.index_add_(0, cell, plane)
        vector.index_add_(0, cell, normal * (normal * offset).sum(1, keepdim=True))
    mean = mean / count[:, None]
    best = mean + solve(matrix, count, vector - multiply(matrix, mean))
    return best.clamp(-ROOM, ROOM)


def split_quads(vertices: Tensor, quads: Tensor, normal: Tensor) -> Tensor:
    """Two triangles per quad, [2N, 3], along the diagonal whose triangles lie better in the surface."""
    ways = (((0, 1, 2), (0, 2, 3)), ((0, 1, 3), (1, 2, 3)))
    fits = []
    for way in ways:
        normals = torch.stack([cross_of(vertices, quads[:, corners]) for corners in way], 1)
        fits.append((unit(normals) * normal[:, None]).sum(2).amin(1))
    a, b, c, d = vertices[quads].unbind(1)
    shorter = (a - c).norm(dim=1) <= (b - d).norm(dim=1)
    first = torch.where((fits[0] - fits[1]).abs() < 0.1, shorter, fits[0] > fits[1])[:, None, None]
    one, other = (torch.stack([quads[:, corners] for corners in way], 1) for way in ways)
    return torch.where(first, one, other).reshape(-1, 3)


def cross_of(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)
