"""One solid around whatever the input is, with walls that are thick enough: for printing.

The outside is flooded on a lattice, so that inner shells, debris and crossing parts vanish in the solid. What
is thinner than the wall, an open sheet above all, is replaced by everything within half a wall of its middle.
The surface runs exactly through the original where that is thick enough, with its sharp edges (`contour.py`).
Works in lattice units: a voxel is 1. Letters: F faces, N lattice points, X, Y, Z lattice size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.contour import contour, find_crossings, join_touching
from trellis_core.geometry.orientation import flood
from trellis_core.geometry.triangles import cross, unit
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime

LARGEST_LATTICE = 1 << 26  # points: about half a gigabyte
BAND = 2.0  # voxels around the surface in which distances are known
BLOCKED = 0.5  # voxels: of two neighbours on either side of a surface one is not farther from it
CREEP = 2  # steps that the outside makes among the blocked points
SHIFT = 0.37  # of a voxel: keeps flat faces of the input off the lattice planes
PROBE = 0.75  # voxels from the surface, to see which side is inside
EXIT = 0.5  # voxels outside, to tell leaving a part from running along one of its edges
STRIDE = 0.5
SLACK = 0.1  # voxels by which a wall may be thinner without being thickened
CORE = 0.94  # of the way to the middle: the core of a round wire keeps some area
INSET = 0.1  # of the way from a corner to the middle of its face, where thickness is measured
LONGEST = 2.0  # voxels: longer sides are halved before thickness is measured
BLOCK = 4  # lattice points per side of the blocks that are searched for points near the surface
CHUNK = 1 << 21


@dataclass(frozen=True, slots=True)
class Field:
    """Signed distance to the surface: negative in the solid, limited to the band."""

    value: Tensor  # float32 [X, Y, Z]

    def at(self, points: Tensor) -> Tensor:
        """Trilinear, float32 [N]."""
        size = torch.tensor(self.value.shape, dtype=torch.float32)
        place = (points.float() / (size - 1) * 2 - 1).flip(1)[None, :, None, None]
        sampled = F.grid_sample(self.value[None, None], place, padding_mode="border", align_corners=True)
        return sampled.reshape(-1)


def wrap_solid(
    mesh: Mesh,  # any triangles
    voxel: float,  # side of a lattice cell, in units of the mesh
    wall: float,  # least thickness, in units of the mesh; at least two voxels
    runtime: Runtime,
) -> Mesh:
    """Closed, manifold, outward-facing solids that contain the input.

    Gaps narrower than a voxel are closed, and so is everything that the outside cannot reach. Runs on the
    CPU. Raises `InputError` when the input has no faces or its lattice does not fit into memory.
    """
    triangles = mesh.vertices.double().cpu()[mesh.faces.long().cpu()]
    triangles = triangles[torch.isfinite(triangles).all(2).all(1)]
    triangles = triangles[cross(triangles).norm(dim=1) > 1e-9 * voxel**2]
    if not len(triangles):
        raise InputError("the mesh has no faces to print", hint="give a mesh with at least one triangle")
    reach = 0.5 * wall / voxel
    low, high = triangles.amin((0, 1)), triangles.amax((0, 1))
    origin = low - (margin_of(voxel, wall) + SHIFT) * voxel
    size = lattice_size((high - low).tolist(), voxel, wall)
    if math.prod(size) > LARGEST_LATTICE:
        raise InputError(
            f"a lattice of {size[0]} x {size[1]} x {size[2]} points does not fit into memory",
            hint="use larger voxels",
        )
    soup = ((triangles - origin) / voxel).float()

    runtime.report("wrap", 0, 4)
    pieces = halve_long_sides(soup)
    field = signed_field(soup, pieces, size, runtime)
    runtime.report("wrap", 1, 4)
    core = thin_cores(pieces, field, 2 * reach)
    around, distance = distances_near(
        core, core, reach + 1.5, size, runtime, lambda: runtime.report("wrap", 1, 4)
    )
    thick = torch.full(size, BAND)  # signed distance to the thickened cores
    thick[tuple(around.unbind(1))] = (distance - reach).clamp_max(BAND)
    runtime.report("wrap", 2, 4)

    value = torch.minimum(field.value, thick)
    inside = ~flood(value >= 0)  # and what the thickened walls enclose
    join_touching(inside, value)
    runtime.report("wrap", 3, 4)
    crossings = find_crossings(inside)
    if not len(crossings.start):
        raise InputError("nothing solid is left of the mesh", hint="use a thicker wall or smaller voxels")
    point, normal = surface_points(crossings.outside, crossings.inside, soup, field, core, thick, runtime)
    solid = contour(crossings, point, normal, size)
    runtime.report("wrap", 4, 4)
    return Mesh((solid.vertices.double() * voxel + origin).float(), solid.faces)


def margin_of(voxel: float, wall: float) -> int:
    """Voxels of free lattice around the input."""
    return int(0.5 * wall / voxel) + 3


def lattice_size(extent: Sequence[float], voxel: float, wall: float) -> tuple[int, int, int]:
    """Lattice points along each axis that a mesh of this extent [3] needs."""
    x, y, z = (math.ceil(side / voxel + SHIFT) + 2 * margin_of(voxel, wall) + 1 for side in extent)
    return x, y, z


def lattice_points(extent: Sequence[float], voxel: float, wall: float) -> int:
    return math.prod(lattice_size(extent, voxel, wall))


def halve_long_sides(triangles: Tensor) -> Tensor:
    """The same surface in triangles without a side longer than `LONGEST`, float32 [F, 3, 3]."""
    done = []
    while len(triangles):
        sides = (triangles.roll(-1, dims=1) - triangles).norm(dim=2)
        length, side = sides.max(1)
        long = length > LONGEST
        done.append(triangles[~long])
        triangles, side = triangles[long], side[long]
        # the longest side runs from corner a to corner b
        corner = (side[:, None] + torch.arange(3)) % 3
        a, b, c = triangles.gather(1, corner[:, :, None].expand(-1, -1, 3)).unbind(1)
        middle = (a + b) / 2
        triangles = torch.cat([torch.stack([a, middle, c], 1), torch.stack([middle, b, c], 1)])
    return torch.cat(done)


def signed_field(soup: Tensor, pieces: Tensor, size: tuple[int, int, int], runtime: Runtime) -> Field:
    """Distance to the surface, positive where the outside comes.

    The outside spreads freely more than half a voxel away from the surface, where it cannot slip through
    gaps below a voxel, and then a few steps closer along lattice edges that do not cross the surface.
    """
    near, distance = distances_near(pieces, soup, BAND, size, runtime, lambda: runtime.report("wrap", 0, 4))
    value = torch.full(size, BAND)
    value[tuple(near.unbind(1))] = distance
    outside = flood(value > BLOCKED)
    blocked = near[distance <= BLOCKED]
    for _ in range(CREEP):
        blocked = blocked[~outside[tuple(blocked.unbind(1))]]
        reached = [
            step_freely(blocked, sign * torch.eye(3, dtype=torch.int64)[axis], outside, soup, runtime)
            for axis in range(3)
            for sign in (1, -1)
        ]
        outside[tuple(torch.cat(reached).unbind(1))] = True
    return Field(torch.where(outside, value, -value))


def step_freely(
    blocked: Tensor, step: Tensor, outside: Tensor, soup: Tensor, runtime: Runtime
) -> Tensor:  # int64 [N, 3]
    """Those of the blocked points whose neighbour is outside, with no surface between the two."""
    beside = blocked[outside[tuple((blocked + step).unbind(1))]]
    distance, _ = first_hit(beside.float(), step.float().expand(len(beside), 3), soup, runtime)
    return beside[torch.isinf(distance)]


def first_hit(
    origins: Tensor, directions: Tensor, soup: Tensor, runtime: Runtime
) -> tuple[Tensor, Tensor]:  # float32 [N], float32 [N, 3]
    """Distance to the surface, within one voxel, and its normal there, turned against the ray."""
    ray_cast: Any = runtime.kernels["ray_cast"]
    vertices, faces = as_mesh(soup)
    distance, face, _ = ray_cast(origins.contiguous(), directions.contiguous(), vertices, faces, 1.0)
    normal = unit(cross(soup[face.clamp_min(0).long()].double())).float()
    return distance, torch.where((normal * directions).sum(1, keepdim=True) > 0, -normal, normal)


def as_mesh(triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices and faces of separate triangles [F, 3, 3]."""
    faces = torch.arange(3 * len(triangles), dtype=torch.int32).reshape(-1, 3)
    return triangles.reshape(-1, 3).contiguous(), faces


def distances_near(
    pieces: Tensor,  # float32 [F, 3, 3]  small triangles, to find lattice points
    soup: Tensor,  # float32 [F, 3, 3]  the same surface, to measure distances
    limit: float,
    size: tuple[int, int, int],
    runtime: Runtime,
    on_step: Callable[[], None],  # may raise
) -> tuple[Tensor, Tensor]:  # int64 [N, 3], float32 [N]
    """All lattice points within `limit` of a surface, and their distances."""
    closest_point: Any = runtime.kernels["closest_point"]
    vertices, faces = as_mesh(soup)
    cells = torch.cartesian_prod(*[torch.arange(BLOCK)] * 3)
    points, distances = [torch.zeros(0, 3, dtype=torch.int64)], [torch.zeros(0)]
    for blocks in blocks_near(pieces, limit, size).split(CHUNK // BLOCK**3):
        on_step()
        point = (blocks[:, None] * BLOCK + cells).reshape(-1, 3)
        point = point[(point < torch.tensor(size)).all(1)]
        distance, _, _ = closest_point(point.float(), vertices, faces, limit)
        near = torch.isfinite(distance)
        points.append(point[near])
        distances.append(distance[near])
    return torch.cat(points), torch.cat(distances)


def blocks_near(pieces: Tensor, limit: float, size: tuple[int, int, int]) -> Tensor:
    """Blocks of lattice points that the surface may come close to, int64 [N, 3]."""
    shape = torch.tensor([-(-side // BLOCK) for side in size])
    low = ((pieces.amin(1) - limit) / BLOCK).floor().long().clamp_min(0)
    high = torch.minimum(((pieces.amax(1) + limit) / BLOCK).floor().long(), shape - 1)
    marked = torch.zeros(shape.tolist(), dtype=torch.bool)
    span = (high - low).amax(0).tolist() if len(pieces) else [-1] * 3
    for step in product(*(range(side + 1) for side in span)):
        block = low + torch.tensor(step)
        block = block[(block <= high).all(1)]
        marked[tuple(block.unbind(1))] = True
    return torch.nonzero(marked)


def thin_cores(pieces: Tensor, field: Field, wall: float) -> Tensor:
    """Middle surfaces of all parts thinner than `wall`, as triangles [F, 3, 3]; sheets are their own.

    Corners of thicker neighbours lie half a wall below the surface, where thickening them changes nothing.
    """
    normal = unit(cross(pieces.double())).float()
    middle = pieces.mean(1)
    front, back = field.at(middle + PROBE * normal), field.at(middle - PROBE * normal)
    inward = torch.where((front < back)[:, None], normal, -normal)
    visible = torch.maximum(front, back) > 0
    pieces, inward, middle = pieces[visible], inward[visible], middle[visible]
    inset = pieces + INSET * (middle[:, None] - pieces)
    thickness = walk_through(inset.reshape(-1, 3), inward.repeat_interleave(3, 0), field, wall).reshape(-1, 3)
    thin = (thickness < wall - SLACK).any(1)
    depth = 0.5 * CORE * thickness[thin].clamp_max(wall)
    return pieces[thin] + depth[:, :, None] * inward[thin, None]


def walk_through(points: Tensor, inward: Tensor, field: Field, wall: float) -> Tensor:
    """Thickness of the solid below each surface point, at most `wall` and a stride; float32 [N].

    A step is as long as the surface is far, so it never goes through it unseen.
    """
    thickness = torch.full((len(points),), wall)
    walking = torch.arange(len(points))
    depth = torch.full((len(points),), PROBE)
    while len(walking):
        value = field.at(points[walking] + depth[:, None] * inward[walking])
        left = value > EXIT
        thickness[walking[left]] = (depth - value)[left].clamp(0, wall)
        depth = depth + (-value).clamp_min(STRIDE)
        on = ~left & (depth < wall + EXIT + STRIDE)
        walking, depth = walking[on], depth[on]
    return thickness


def surface_points(
    outside: Tensor,  # int64 [N, 3]
    inside: Tensor,  # int64 [N, 3]
    soup: Tensor,
    field: Field,
    core: Tensor,
    thick: Tensor,
    runtime: Runtime,
) -> tuple[Tensor, Tensor]:  # float32 [N, 3], float32 [N, 3]
    """Where the surface crosses lattice edges, and its normals: the input's, or those of a thickened core."""
    start, step = outside.float(), (inside - outside).float()
    there = tuple(inside.unbind(1))
    here = tuple(outside.unbind(1))
    share, normal = first_hit(start, step, soup, runtime)
    solid = field.value[there] < 0
    between = field.value[here] / (field.value[here] - field.value[there]).clamp_min(1e-6)
    missed = torch.isinf(share)
    normal = torch.where((missed | ~solid)[:, None], 0.0, normal)
    share = torch.where(solid, torch.where(missed, between.clamp(0, 1), share), torch.inf)

    swollen = torch.nonzero(thick[there] < 0).reshape(-1)
    if len(swollen):
        near, far = thick[here][swollen], thick[there][swollen]
        along = near / (near - far).clamp_min(1e-6)
        first = along < share[swollen]
        swollen, along = swollen[first], along[first]
        share[swollen] = along
        normal[swollen] = away_from(core, start[swollen] + along[:, None] * step[swollen], runtime)
    # points that were joined lie outside: the surface passes close to them
    unknown = torch.isinf(share)
    share = torch.where(unknown, 0.95, share)
    return start + share[:, None] * step, normal


def away_from(core: Tensor, points: Tensor, runtime: Runtime) -> Tensor:
    """Unit directions from the closest points of the core, float32 [N, 3]."""
    closest_point: Any = runtime.kernels["closest_point"]
    vertices, faces = as_mesh(core)
    _, face, weight = closest_point(points.contiguous(), vertices, faces, float("inf"))
    nearest = (core[face.clamp_min(0).long()] * weight[:, :, None]).sum(1)
    return unit(points - nearest)
