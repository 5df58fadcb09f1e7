"""Parts of space: where an edit may change an object.

A region answers one question, which points lie in it. Points are float [N, 3] in world space: the unit cube
[-0.5, 0.5]^3, z up. A cell of a voxel grid belongs to a region when its centre does. Knows nothing about
models. Letters: N points, F faces, P pairs of a point and a face, R grid resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh

CHUNK = 1 << 20  # pairs at a time
BINS = 256  # at most, per axis, for looking up triangles
OFF_GRID = (1.3e-7, 2.9e-7)  # rays pass beside edges that lie on round numbers


class Region(Protocol):
    """A part of space."""

    def contains(self, points: Tensor) -> Tensor:
        """float [N, 3] -> bool [N]"""

    def facts(self) -> Mapping[str, Any]:
        """JSON-able; kept in the bundles that an edit makes."""


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box, its faces included. Raises `InputError` for a box without room."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if not low < high:  # also where one is not a number
                raise InputError(
                    f"the box has no room along {axis}: it goes from {low:g} to {high:g}",
                    hint="give the lower corner first, for example -0.5,-0.5,0 and 0.5,0.5,0.5",
                )

    def contains(self, points: Tensor) -> Tensor:
        return ((points >= points.new_tensor(self.low)) & (points <= points.new_tensor(self.high))).all(1)

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "box", "low": list(self.low), "high": list(self.high)}


@dataclass(frozen=True, slots=True)
class Sphere:
    """A ball. Raises `InputError` for one without room."""

    center: tuple[float, float, float]
    radius: float

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise InputError(
                f"the radius of a sphere must be above 0, got {self.radius:g}",
                hint="lengths are fractions of the unit cube, for example 0.2",
            )

    def contains(self, points: Tensor) -> Tensor:
        return (points - points.new_tensor(self.center)).square().sum(1) <= self.radius**2

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "sphere", "center": list(self.center), "radius": self.radius}


@dataclass(frozen=True, slots=True)
class Solid:
    """What a closed mesh encloses. Raises `InputError` for a mesh without faces.

    A ray from an inner point crosses the surface an odd number of times. Rays along the three axes vote, so
    that small holes in the mesh do little harm.
    """

    mesh: Mesh  # in world space

    def __post_init__(self) -> None:
        if not len(self.mesh.faces):
            raise InputError("the region's mesh has no faces", hint="give a closed mesh")

    def contains(self, points: Tensor) -> Tensor:
        points = points.double()
        corners = self.mesh.vertices.double().to(points.device)[self.mesh.faces.long().to(points.device)]
        low, high = corners.amin((0, 1)), corners.amax((0, 1))
        near = ((points >= low) & (points <= high)).all(1).nonzero()[:, 0]
        votes = torch.zeros(len(near), dtype=torch.int32, device=points.device)
        for axis in range(3):
            order = [(axis + 1) % 3, (axis + 2) % 3, axis]  # the ray runs along the last
            votes += odd_crossings(points[near][:, order], corners[..., order])
        found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        found[near] = votes >= 2
        return found

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "mesh", "faces": len(self.mesh.faces)}


@dataclass(frozen=True, slots=True, eq=False)
class Painted:
    """All that a camera sees behind painted pixels, near and far. Raises `InputError` for an empty mask."""

    mask: Tensor  # bool [H, W]  row 0 is the top
    camera: Camera

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or not bool(self.mask.any()):
            raise InputError("nothing is painted in the mask", hint="paint what may change in white on black")

    def contains(self, points: Tensor) -> Tensor:
        points = points.double()
        extrinsics, intrinsics = (
            m.double().to(points.device) for m in (self.camera.extrinsics, self.camera.intrinsics)
        )
        seen = points @ extrinsics[:3, :3].T + extrinsics[:3, 3]
        depth = seen[:, 2:]
        place = (seen @ intrinsics.T)[:, :2] / depth.clamp_min(1e-9)  # fractions of the image's sides
        height, width = self.mask.shape
        pixel = (place * place.new_tensor([width, height])).floor()
        valid = (depth[:, 0] > 0) & (pixel >= 0).all(1) & (pixel < pixel.new_tensor([width, height])).all(1)
        column, row = torch.where(valid[:, None], pixel, 0).long().unbind(1)
        return valid & self.mask.bool().to(points.device)[row, column]

    def facts(self) -> Mapping[str, Any]:
        return {"kind": "painted", "pixels": int(self.mask.sum()), "size": list(self.mask.shape)}


def cells_inside(
    regions: Sequence[Region],
    resolution: int,  # R
) -> Tensor:  # bool [R, R, R]
    """The cells of a grid over the unit cube whose centres lie in any of the regions.

    Raises `InputError` without regions and for a region that holds no cell.
    """
    if not regions:
        raise InputError("an edit needs a region", hint="say what may change, for example a box")
    axis = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution - 0.5
    centers = torch.cartesian_prod(axis, axis, axis)
    found = torch.zeros(len(centers), dtype=torch.bool)
    for number, region in enumerate(regions, start=1):
        mine = region.contains(centers)
        if not bool(mine.any()):
            which = f"region {number}" if len(regions) > 1 else "the region"
            raise InputError(
                f"{which} ({region.facts()['kind']}) holds no cell of the {resolution}^3 grid",
                hint=f"it must reach into the cube from -0.5 to 0.5 and be wider than a cell, "
                f"{1 / resolution:.3f}",
            )
        found |= mine
    return found.view(resolution, resolution, resolution)


def cut_cells(
    regions: Sequence[Region],
    inside: Tensor,  # bool [R, R, R]  of `cells_inside`
    cells: Tensor,  # int32 [K, 3]  that matter
    factor: int,  # f, voxels per cell along an axis
) -> tuple[Tensor, Tensor]:  # int32 [M, 3], bool [M, f, f, f]
    """Cells inside that the border of the regions cuts, and which of their voxels have their centres inside.

    Only cells with a neighbour outside are looked at: gaps in a region that are narrower than a cell and lie
    between the centres of cells are not seen.
    """
    outside = F.pad((~inside)[None, None].float(), (1,) * 6, value=1.0)
    beside = F.max_pool3d(outside, 3, stride=1)[0, 0] > 0
    x, y, z = cells.long().unbind(1)
    cells = cells[(inside & beside)[x, y, z]]
    steps = torch.arange(factor, device=cells.device)
    offsets = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    found = torch.zeros(len(cells), len(offsets), dtype=torch.bool, device=cells.device)
    rows = max(1, CHUNK // len(offsets))
    for first in range(0, len(cells), rows):
        voxels = cells[first : first + rows, None] * factor + offsets
        points = (voxels.view(-1, 3).double() + 0.5) / (len(inside) * factor) - 0.5
        for region in regions:
            found[first : first + rows] |= region.contains(points).view(-1, len(offsets))
    cut = ~found.all(1)
    return cells[cut], found[cut].view(-1, factor, factor, factor)


def odd_crossings(
    points: Tensor,  # float64 [N, 3]
    corners: Tensor,  # float64 [F, 3, 3]  triangles
) -> Tensor:  # bool [N]
    """Whether the ray from each point along +z crosses an odd number of triangles."""
    origin = points[:, :2] + points.new_tensor(OFF_GRID)
    odd = torch.zeros(len(points), dtype=torch.int32, device=points.device)
    for point, face in candidates(origin, corners[..., :2]):
        a, b, c = corners[face].unbind(1)
        p = origin[point]
        weights = torch.stack([_area(b, c, p), _area(c, a, p), _area(a, b, p)], dim=1)
        total = weights.sum(1)
        hit = ((weights > 0).all(1) | (weights < 0).all(1)) & (total != 0)
        z = (weights / torch.where(total == 0, 1, total)[:, None] * corners[face][..., 2]).sum(1)
        above = hit & (z > points[point, 2])
        odd.index_add_(0, point, above.int())
    return odd % 2 == 1


def _area(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """Twice the signed area of the flat triangle a, b, p."""
    return (b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0])


def candidates(origin: Tensor, corners: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (point, face) int64 [P] of flat points [N, 2] and triangles [F, 3, 2] that share a square bin."""
    bins = max(1, min(BINS, int(len(corners) ** 0.5)))
    low, high = corners.amin((0, 1)), corners.amax((0, 1))
    scale = bins / (high - low).clamp_min(1e-12)
    first = ((corners.amin(1) - low) * scale).floor().long().clamp(0, bins - 1)
    last = ((corners.amax(1) - low) * scale).floor().long().clamp(0, bins - 1)
    size = last - first + 1
    face, number = ranges(size.prod(1))
    cell = first[face] + torch.stack([number // size[face, 1], number % size[face, 1]], dim=1)
    order = torch.argsort(cell[:, 0] * bins + cell[:, 1], stable=True)
    face = face[order]
    count = torch.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins * bins)
    start = count.cumsum(0) - count
    place = ((origin - low) * scale).floor().long().clamp(0, bins - 1)
    mine = place[:, 0] * bins + place[:, 1]
    step = max(1, CHUNK // max(1, int(count.amax())))
    for begin in range(0, len(origin), step):
        bin_of = mine[begin : begin + step]
        row, number = ranges(count[bin_of])
        yield begin + row, face[start[bin_of][row] + number]


def ranges(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Row i `counts[i]` times, and the numbers 0, 1, ... of its repetitions."""
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    starts = counts.cumsum(0) - counts
    return row, torch.arange(len(row), device=counts.device) - starts[row]
