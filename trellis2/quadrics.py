"""Where the surface vertex of a voxel belongs: quadratic error functions and their minimum inside the voxel.

E(x) = x^T A x - 2 b^T x + c, with x relative to the voxel's centre: far from the origin of the grid, float32
would lose the surface. Quadric error metrics: Garland & Heckbert (1997); dual contouring: Ju et al. (2002).
Letters: F triangles, K crossings, N voxels, P (voxel, triangle) pairs, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis2.crossings import Crossings, VoxelTable, bounded_parts, expand_ranges, touched_voxels
from trellis_core.sparse.order import inside, key_coords, linear_keys

WORK = 1 << 20  # pairs at a time
SHORTEST_SEGMENT = 1e-6  # boundary edges below this length have no direction
SYMMETRIC = ((0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2))  # xx yy zz xy xz yz
FULL = (0, 3, 4, 3, 1, 5, 4, 5, 2)  # and back to 3 x 3


@dataclass(frozen=True, slots=True)
class Quadrics:
    """Accumulated error functions of the voxels of a table, without the regulariser."""

    terms: Tensor  # float32 [N, 10]  A (xx yy zz xy xz yz), b (x y z), c
    count: Tensor  # float32 [N]      crossing records
    mean: Tensor  # float32 [N, 3]   mean crossing point relative to the voxel's centre


@dataclass(frozen=True, slots=True)
class Frame:
    """The voxels that receive quadrics, and where their centres are."""

    table: VoxelTable
    size: Sequence[int]
    voxel_size: Tensor  # float32 [3]
    centers: Tensor  # float32 [N, 3]  relative to the grid's minimum corner

    @classmethod
    def of(cls, table: VoxelTable, size: Sequence[int], voxel_size: Tensor) -> Frame:
        return cls(table, size, voxel_size, (key_coords(table.keys, size) + 0.5) * voxel_size)


def unit_normals(
    triangles: Tensor,  # float32 [F, 3, 3]
) -> Tensor:  # float32 [F, 3]   zero where the triangle has no area
    a, b, c = triangles.unbind(1)
    return F.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-30)


def add_crossings(frame: Frame, triangles: Tensor, normals: Tensor, crossings: Crossings) -> Quadrics:
    """One plane quadric, point and count per crossing, for each of the four voxels around its edge."""
    device = triangles.device
    terms = torch.zeros(len(frame.table), 10, device=device)
    points = torch.zeros(len(frame.table), 4, device=device)
    for start in range(0, len(crossings.key), WORK // 4):
        part = slice(start, start + WORK // 4)
        piece = Crossings(*(getattr(crossings, f)[part] for f in ("triangle", "axis", "key", "point")))
        rows = frame.table.rows(touched_voxels(piece, frame.size)).reshape(-1)
        add_planes(terms, frame, rows, triangles, normals, piece.triangle.repeat_interleave(4))
        offset = piece.point.repeat_interleave(4, 0) - frame.centers[rows]
        add_rows(points, rows, F.pad(offset, (0, 1), value=1.0))
    return Quadrics(terms, points[:, 3], points[:, :3] / points[:, 3:].clamp_min(1))


def add_faces(
    terms: Tensor,  # float32 [N, 10]   changed in place
    frame: Frame,
    triangles: Tensor,  # float32 [F, 3, 3]
    normals: Tensor,  # float32 [F, 3]
) -> None:
    """One plane quadric for each voxel of the table that a triangle overlaps."""
    solid = normals.any(1).nonzero().squeeze(1)
    triangles, normals = triangles[solid], normals[solid]
    size = torch.tensor(tuple(frame.size), device=triangles.device)
    low = (triangles.amin(1) / frame.voxel_size).trunc().long().clamp_min(0)
    high = torch.minimum((triangles.amax(1) / frame.voxel_size + 1).trunc().long(), size)
    main = normals.abs().argmax(1, keepdim=True)  # columns along the main axis are short
    columns = (high - low).clamp_min(1).scatter(1, main, 1).prod(1)
    for part in bounded_parts(columns, WORK // 4):
        triangle, cells = columns_of(triangles, normals, frame, part, (low, high, main))
        rows = frame.table.rows(linear_keys(cells, frame.size))
        kept = rows >= 0
        rows, triangle, cells = rows[kept], triangle[kept], cells[kept]
        low_corner = cells * frame.voxel_size
        kept = overlaps(triangles[triangle], normals[triangle], low_corner, frame.voxel_size)
        add_planes(terms, frame, rows[kept], triangles, normals, triangle[kept])


def columns_of(
    triangles: Tensor, normals: Tensor, frame: Frame, part: slice, box: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(triangle [P], cell [P, 3]) for the cells near the plane of each triangle inside its bounding box."""
    low, high, main = (x[part] for x in box)
    triangles, normals = triangles[part], normals[part]
    axes = (main + torch.arange(1, 4, device=main.device)) % 3  # two side axes, then the main axis
    low, high, normal = (x.gather(1, axes) for x in (low, high, normals))
    step = frame.voxel_size.expand(len(low), -1).gather(1, axes)
    corner = triangles[:, 0].gather(1, axes)

    strip, a = expand_ranges(low[:, 0], high[:, 0])
    column, b = expand_ranges(low[strip, 1], high[strip, 1])
    item, a = strip[column], a[column]
    slope = -normal[:, :2] * step[:, :2] / (normal[:, 2:] * step[:, 2:])  # in cells per cell
    start = corner / step
    height = start[:, 2] - ((start[:, :2] - 0.5) * slope).sum(1)  # over the centre of column (0, 0)
    reach = slope.abs().sum(1) / 2 + 1e-3  # the test decides, this is a superset
    middle = height[item] + a * slope[item, 0] + b * slope[item, 1]
    bottom = torch.maximum((middle - reach[item]).floor().long(), low[item, 2])
    top = torch.minimum((middle + reach[item]).floor().long() + 1, high[item, 2])
    cell, depth = expand_ranges(bottom, top)
    item = item[cell]
    cells = torch.empty(len(cell), 3, dtype=torch.int64, device=main.device)
    cells.scatter_(1, axes[item], torch.stack([a[cell], b[cell], depth], 1))
    return item + part.start, cells


def overlaps(
    triangles: Tensor,  # float32 [P, 3, 3]
    normals: Tensor,  # float32 [P, 3]
    low: Tensor,  # float32 [P, 3]   minimum corner of the box
    step: Tensor,  # float32 [3]
) -> Tensor:  # bool [P]
    """Whether a triangle and a box touch: the plane, then the edges in the three axis-aligned projections.

    Triangle-box overlap: Schwarz & Seidel, "Fast Parallel Surface and Solid Voxelization on GPUs" (2010).
    Written with the corner that is farthest inside, because on grid planes the order of operations decides.
    """
    high = low + step
    ahead, corner = normals > 0, triangles[:, 0]
    touch = (normals * (torch.where(ahead, high, low) - corner)).sum(1) >= 0
    touch &= (normals * (torch.where(ahead, low, high) - corner)).sum(1) <= 0
    edges = triangles.roll(-1, 1) - triangles
    for x, y, z in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        facing = torch.where(normals[:, z] < 0, -1.0, 1.0)[:, None]
        nx, ny = -edges[..., y] * facing, edges[..., x] * facing  # pointing into the triangle: [P, 3]
        offset = -(nx * triangles[..., x] + ny * triangles[..., y])
        inner_x = torch.where(nx > 0, high[:, None, x], low[:, None, x])
        inner_y = torch.where(ny > 0, high[:, None, y], low[:, None, y])
        touch &= (nx * inner_x + ny * inner_y + offset >= 0).all(1)
    return touch


def add_boundary(
    terms: Tensor,  # float32 [N, 10]   changed in place
    frame: Frame,
    segments: Tensor,  # float32 [S, 2, 3] relative to the grid's minimum corner
    weight: float,
) -> None:
    """Squared distance to the boundary line, for each voxel of the table that the segment visits."""
    direction = segments[:, 1] - segments[:, 0]
    length = direction.norm(dim=1)
    long_enough = length >= SHORTEST_SEGMENT
    start, direction = segments[long_enough, 0], direction[long_enough]
    length = length[long_enough]
    direction = direction / length[:, None]
    segment, cells = cells_along(start, direction, length, frame.voxel_size)
    within = inside(cells, frame.size)
    segment = segment[within]
    rows = frame.table.rows(linear_keys(cells[within], frame.size))
    segment, rows = segment[rows >= 0], rows[rows >= 0]
    d = direction[segment]
    across = torch.eye(3, device=d.device) - d[:, :, None] * d[:, None, :]
    to_line = (across @ (start[segment] - frame.centers[rows])[:, :, None]).squeeze(2)
    values = torch.cat(
        [across[:, SYMMETRIC[0], SYMMETRIC[1]], to_line, to_line.square().sum(1, keepdim=True)], 1
    )
    add_rows(terms, rows, values * weight)


def cells_along(start: Tensor, direction: Tensor, length: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Grid traversal (Amanatides & Woo, 1987), all segments at once: (segment [P], cell int64 [P, 3]).

    Every plane that a segment reaches adds one move; its moves sorted by distance give its cells.
    Simultaneous moves go along z, then y, then x.
    """
    first = (start / step).floor().long()
    last = ((start + direction * length[:, None]) / step).floor().long()
    moves = (last - first).abs() + 1  # one more, in case rounding hides a plane
    sign = direction.sign().long()
    moves = torch.where(sign == 0, 0, moves).flip(1)  # z, y, x
    lane, n = expand_ranges(torch.zeros_like(moves).reshape(-1), moves.reshape(-1))
    segment, axis = lane // 3, 2 - lane % 3
    plane = first[segment, axis] + torch.where(sign[segment, axis] > 0, n + 1, -n)
    distance = (plane * step[axis] - start[segment, axis]) / direction[segment, axis]
    reached = distance <= length[segment]
    segment, axis, distance = segment[reached], axis[reached], distance[reached]
    order = distance.argsort(stable=True)
    order = order[segment[order].argsort(stable=True)]
    segment, axis = segment[order], axis[order]

    move = F.one_hot(axis, 3) * sign[segment]
    total = torch.cat([move.new_zeros(1, 3), move.cumsum(0)])
    before = torch.searchsorted(segment, torch.arange(len(start), device=start.device))
    visited = first[segment] + total[1:] - total[before[segment]]
    everyone = torch.arange(len(start), device=start.device)
    return torch.cat([everyone, segment]), torch.cat([first, visited])


def add_planes(
    terms: Tensor, frame: Frame, rows: Tensor, triangles: Tensor, normals: Tensor, which: Tensor
) -> None:
    """Add the squared distance to the plane of triangle `which` [P] to voxel `rows` [P]."""
    n = normals[which]
    distance = (n * (triangles[which, 0] - frame.centers[rows])).sum(1, keepdim=True)
    left, right = (n[:, list(index)] for index in SYMMETRIC)
    add_rows(terms, rows, torch.cat([left * right, n * distance, distance.square()], 1))


def add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[rows] += values, in an order that does not depend on the device's scheduling."""
    if not total.is_cuda:
        total.index_add_(0, rows, values)
        return
    order = rows.argsort(stable=True)
    lengths = torch.bincount(rows, minlength=len(total))
    total += torch.segment_reduce(values[order], "sum", lengths=lengths, axis=0, initial=0.0)


def minimize(
    quadrics: Quadrics,
    regularization_weight: float,
    half: Tensor,  # float32 [3]   half a voxel
) -> Tensor:  # float32 [N, 3] relative to the voxel's centre, inside the closed voxel
    """The point of least error in each voxel; every crossing pulls it to the mean crossing point."""
    pull = (regularization_weight * quadrics.count)[:, None].double()
    a = quadrics.terms[:, :6].double()
    a = torch.cat([a[:, :3] + pull, a[:, 3:]], 1)[:, list(FULL)].reshape(-1, 3, 3)
    b = quadrics.terms[:, 6:9].double() + pull * quadrics.mean
    x = solve(a, b)
    outside = (~((x.abs() <= half).all(1))).nonzero().squeeze(1)  # a singular system is outside too
    for part in outside.split(WORK // 128):
        x[part] = minimize_on_faces(a[part], b[part], half.double())
    return x.float()


def minimize_on_faces(a: Tensor, b: Tensor, half: Tensor) -> Tensor:
    """The best of the minima on the 6 faces, 12 edges and 8 corners of the box: float64 [N, 3].

    The error is convex and its minimum lies outside the box, so the minimum over the box is one of them.
    """
    sides = torch.tensor([s for s in product((0, -1, 1), repeat=3) if any(s)], device=a.device, dtype=a.dtype)
    free = sides == 0
    fixed = sides * half  # [26, 3]
    both = free[:, :, None] & free[:, None, :]
    system = torch.where(both, a[:, None], torch.eye(3, device=a.device, dtype=a.dtype))
    target = torch.where(free, b[:, None] - torch.einsum("nij,sj->nsi", a, fixed), fixed)
    x = torch.where(free, solve(system, target), fixed)
    energy = (x * (torch.einsum("nij,nsj->nsi", a, x) - 2 * b[:, None])).sum(2)
    feasible = (x.abs() <= half * (1 + 1e-12)).all(2)
    best = torch.where(feasible, energy, float("inf")).argmin(1)
    return x[torch.arange(len(x), device=x.device), best]


def solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve symmetric 3 x 3 systems [..., 3, 3], [..., 3] by cofactors; not finite where singular."""
    cofactors = torch.linalg.cross(a.roll(-1, -2), a.roll(-2, -2))
    determinant = (a[..., 0, :] * cofactors[..., 0, :]).sum(-1, keepdim=True)
    return (cofactors * b[..., :, None]).sum(-2) / determinant
