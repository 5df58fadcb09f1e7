"""Solids as unions of analytic parts: signed distance, material and bounds.

A solid is a list of parts; each part is a primitive with a pose, a material and an operation. Its surface is
min(max(min of UNION parts, -min of CARVE parts), min of ADD parts). World space is the unit cube, z up. Knows
nothing about object categories, voxels or cameras.

Letters: P parts, B solids, N points, K pairs of a part and a group of points, G groups, Q points in a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import cos, radians, sin

import numpy as np
import torch
from torch import Tensor

from trellis_core.training.synthetic.primitives import (
    ARC,
    BOX,
    CAPSULE,
    CONE,
    DISTANCES,
    DOME,
    ELLIPSOID,
    PRISM,
    TORUS,
    primitive_bounds,
)

__all__ = [
    "ADD",
    "ARC",
    "BOX",
    "CAPSULE",
    "CARVE",
    "CONE",
    "DOME",
    "ELLIPSOID",
    "PRISM",
    "TORUS",
    "UNION",
    "Material",
    "Part",
    "Solids",
    "Vector",
    "fit_unit_cube",
    "pack_solids",
    "rotation",
    "signed_distance",
]

UNION, CARVE, ADD = range(3)  # CARVE subtracts, and paints the wall it leaves; ADD joins after all carving
FAR = 1.0e3  # the distance to nothing
CHUNK = {"cpu": 1 << 15, "cuda": 1 << 24}  # distances that are worked on at a time: cache, or memory

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Material:
    color: Vector  # sRGB-coded, [0, 1]
    metallic: float
    roughness: float


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive; `size` is explained in `primitives`."""

    kind: int
    size: tuple[float, ...]
    position: Vector
    material: Material
    turn: Vector = (0.0, 0.0, 0.0)  # degrees about x, then y, then z
    operation: int = UNION
    role: str = "body"  # which part of the object this is, for captions and evaluation


@dataclass(frozen=True, eq=False)
class Solids:
    """Several solids, packed for evaluation on one device.

    `parts`, `operation`, `owner`, `frame`, `size`, `low` and `high` are sorted by kind, so that each formula
    is evaluated once for all parts of its kind; `materials` and `roles` are in the order given.
    """

    parts: Tensor  # int64 [P]           where each part stands in the order given
    operation: Tensor  # int64 [P]
    owner: Tensor  # int64 [P]           the solid of each part
    frame: Tensor  # float32 [12, P]     world to local: rotation by rows, then translation
    size: Tensor  # float32 [4, P]
    low: Tensor  # float32 [3, P]        the box around the part, in its own frame
    high: Tensor  # float32 [3, P]
    kinds: Tensor  # int64 [kinds + 1]   first part of each kind
    materials: Tensor  # float32 [P, 5]  color 0:3, metallic, roughness
    roles: Tensor  # uint8 [P]           index into the roles that `pack_solids` was given
    count: int  # B

    def __len__(self) -> int:
        return self.count

    @property
    def device(self) -> torch.device:
        return self.frame.device

    def to(self, device: torch.device | str) -> Solids:
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "count"}
        return Solids(**tensors, count=self.count)


def rotation(turn: Vector) -> np.ndarray:
    """The matrix (local to world) of turns about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = ([f(radians(a)) for a in turn] for f in (cos, sin))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


def fit_unit_cube(parts: Sequence[Part], longest: float = 0.94) -> list[Part]:
    """Centre the box around all parts at the origin and scale its longest side to `longest`."""
    lows, highs = [], []
    for p in parts:
        if p.operation == CARVE:
            continue
        low, high = primitive_bounds(p.kind, p.size)
        turn = rotation(p.turn)
        middle = turn @ (low + high) / 2 + p.position
        half = np.abs(turn) @ (high - low) / 2
        lows.append(middle - half)
        highs.append(middle + half)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    scale, center = longest / (high - low).max(), (low + high) / 2
    return [
        replace(
            p,
            size=tuple(float(s * scale) for s in p.size),
            position=_vector((np.array(p.position) - center) * scale),
        )
        for p in parts
    ]


def _vector(values: np.ndarray) -> Vector:
    x, y, z = values.tolist()
    return x, y, z


def pack_solids(solids: Sequence[Sequence[Part]], roles: Sequence[str] = ()) -> Solids:
    """Lay the parts of several solids out as tensors on the CPU. Every part's role must be one of `roles`;
    without `roles`, all are 0."""
    parts = [p for solid in solids for p in solid]
    turns = [rotation(p.turn).T for p in parts]
    frame = np.array([[*r.reshape(-1), *(-r @ p.position)] for r, p in zip(turns, parts, strict=True)])
    size = np.array([(*p.size, 0.0, 0.0)[:4] for p in parts])
    bounds = np.array([primitive_bounds(p.kind, p.size) for p in parts])  # [P, 2, 3]
    kind = np.array([p.kind for p in parts])
    order = np.argsort(kind, kind="stable")
    owner = np.repeat(np.arange(len(solids)), [len(s) for s in solids])
    index = {role: i for i, role in enumerate(roles)}
    materials = [(*p.material.color, p.material.metallic, p.material.roughness) for p in parts]

    def floats(rows: np.ndarray) -> Tensor:
        return torch.tensor(rows[order].T, dtype=torch.float32).contiguous()

    return Solids(
        parts=torch.from_numpy(order),
        operation=torch.tensor([p.operation for p in parts])[order],
        owner=torch.from_numpy(owner[order]),
        frame=floats(frame),
        size=floats(size),
        low=floats(bounds[:, 0]),
        high=floats(bounds[:, 1]),
        kinds=torch.from_numpy(np.searchsorted(kind[order], range(len(DISTANCES) + 1))),
        materials=torch.tensor(materials),
        roles=torch.tensor([index[p.role] for p in parts] if roles else [0] * len(parts), dtype=torch.uint8),
        count=len(solids),
    )


def signed_distance(
    solids: Solids,
    points: Tensor,  # float32 [N, 3]
    owner: Tensor,  # int64 [N]     which solid each point belongs to
) -> tuple[Tensor, Tensor]:  # float32 [N] negative inside; int64 [N] the part that made the distance
    """Distance from each point to the surface of its solid, and the part (in the order given to
    `pack_solids`) whose material applies there. Every part is evaluated at every point of its solid."""
    order = torch.argsort(owner, stable=True)
    distance = torch.empty_like(points[:, 0])
    part = torch.empty_like(owner)
    for rows in order.split(CHUNK[points.device.type]):
        count = torch.bincount(owner[rows], minlength=len(solids))
        pair, point = ragged((count.cumsum(0) - count)[solids.owner], count[solids.owner])
        found = part_distances(solids, points[rows].T[:, :, None], point, pair)
        nearest = nearest_by_operation(solids, found, point, pair, len(rows))
        distance[rows] = join(nearest)[:, 0]
        part[rows] = deciding_part(solids, found, nearest, point, pair)[:, 0]
    return distance, part


def part_distances(
    solids: Solids,
    points: Tensor,  # float32 [3, G, Q]
    group: Tensor,  # int64 [K]
    part: Tensor,  # int64 [K]  ascending: row of `solids`, sorted by kind
) -> Tensor:  # float32 [K, Q]
    """Distance of each pair's part at the points of the pair's group."""
    points = points.contiguous()
    out = points.new_empty(len(part), points.shape[2])
    for kind, rows in kind_slices(solids, part, points.shape[2]):
        x, y, z = points.index_select(1, group[rows])
        f = solids.frame.index_select(1, part[rows])[:, :, None]
        local = [
            (x * f[3 * i]).add_(y * f[3 * i + 1]).add_(z * f[3 * i + 2]).add_(f[9 + i]) for i in range(3)
        ]
        out[rows] = DISTANCES[kind](
            local[0], local[1], local[2], solids.size.index_select(1, part[rows])[:, :, None]
        )
    return out


def kind_slices(solids: Solids, part: Tensor, width: int = 1) -> Iterator[tuple[int, slice]]:
    """Rows of the ascending `part` that share a kind, in runs of a size that suits the device."""
    step = max(CHUNK[part.device.type] // width, 1)
    bounds = torch.searchsorted(part, solids.kinds).tolist()
    for kind in range(len(DISTANCES)):
        for first in range(bounds[kind], bounds[kind + 1], step):
            yield kind, slice(first, min(first + step, bounds[kind + 1]))


def nearest_by_operation(
    solids: Solids, distance: Tensor, group: Tensor, part: Tensor, groups: int
) -> Tensor:  # float32 [3, G, Q]
    """The smallest of the pairs' distances for each operation; FAR where a group has no such part."""
    width = distance.shape[1]
    out = distance.new_full((3 * groups, width), FAR)
    row = solids.operation[part] * groups + group
    if width == 1:  # the same, and faster with one dimension
        out[:, 0].scatter_reduce_(0, row, distance[:, 0], "amin")
    else:
        out.scatter_reduce_(0, row[:, None].expand_as(distance), distance, "amin")
    return out.view(3, groups, width)


def join(nearest: Tensor) -> Tensor:
    """The distance to the solid from the nearest part of each operation: [3, ...] -> [...]."""
    return torch.minimum(torch.maximum(nearest[UNION], -nearest[CARVE]), nearest[ADD])


def deciding_part(
    solids: Solids, distance: Tensor, nearest: Tensor, group: Tensor, part: Tensor
) -> Tensor:  # int64 [G, Q]
    """The part (in the order given) whose distance is that of the solid; the first of equals."""
    carved = -nearest[CARVE] > nearest[UNION]
    added = nearest[ADD] < torch.maximum(nearest[UNION], -nearest[CARVE])
    operation = torch.where(added, ADD, torch.where(carved, CARVE, UNION))
    own = solids.operation[part]
    decides = (operation[group] == own[:, None]) & (nearest[own, group] == distance)
    named = torch.where(decides, solids.parts[part][:, None], len(solids.parts) - 1)
    out = torch.full_like(operation, len(solids.parts) - 1)
    return out.scatter_reduce_(0, group[:, None].expand_as(named), named, "amin")


def ragged(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:  # int64 [total] each
    """Row i repeated count[i] times, and beside it first[i], first[i] + 1, ..."""
    row = torch.repeat_interleave(count)
    step = torch.arange(len(row), device=row.device)
    return row, step + (first - count.cumsum(0) + count)[row]
