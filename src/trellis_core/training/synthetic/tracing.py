"""Sphere tracing of solids, for rays that come in bundles.

A bundle keeps the parts whose box it may meet, and starts at the nearest box (Hart, "Sphere tracing", 1996,
with bounding volumes). Rays that have ended are dropped as tracing goes on. Knows nothing about cameras.

Letters: B solids, G bundles, Q rays in a bundle, K pairs of a part and a bundle (later: a ray), N rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.training.synthetic.primitives import DISTANCES
from trellis_core.training.synthetic.shapes import (
    CARVE,
    Solids,
    deciding_part,
    join,
    kind_slices,
    nearest_by_operation,
    part_distances,
    ragged,
)

STEPS = 40
STRIDE = 0.95  # share of the distance that a step goes
TOUCH = 1.0e-3  # a ray this near has hit, in units of the cube
SKIN = 2.0e-3  # how far boxes are widened, and how far above a surface its shadow rays start
TETRAHEDRON = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))


@dataclass(frozen=True, slots=True)
class Bundles:
    """Rays from common origins. Distances along a ray are in units of its direction's length."""

    owner: Tensor  # int64 [G]           ascending: the solid that the rays may hit
    origin: Tensor  # float32 [3, G]
    center: Tensor  # float32 [3, G]      direction in the middle of the bundle
    direction: Tensor  # float32 [3, G, Q]
    spread: Tensor  # float32 [G]         how far rays stray from the middle, inside the unit cube


@dataclass(frozen=True, slots=True)
class Hits:
    """Where rays end. `ray` counts row by row through the bundles' [G, Q]."""

    ray: Tensor  # int64 [N]
    part: Tensor  # int64 [N]       in the order given to `pack_solids`
    point: Tensor  # float32 [3, N]
    normal: Tensor  # float32 [3, N]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Parts in their own frame, seen from a ray; sorted by part."""

    line: Tensor  # float32 [10, K]  origin, direction, size
    part: Tensor  # int64 [K]
    ray: Tensor  # int64 [K]

    def of_rays(self, chosen: Tensor) -> _Pairs:
        """The pairs of the rays where `chosen` (bool [N]) is true; those rays are counted anew."""
        rows, ray = _rows_of_rays(self.ray, chosen)
        return _Pairs(self.line.index_select(1, rows), self.part.index_select(0, rows), ray)


def trace(solids: Solids, bundles: Bundles) -> Hits:
    """The first hits of all rays."""
    width = bundles.direction.shape[2]
    group, part, near, far = _candidates(solids, bundles)
    met = far > 0
    pairs = _pair_up(solids, bundles, group, part, met)
    ray = (met.nonzero() * width + torch.arange(width, device=met.device)).flatten()
    t, far = near[met].repeat_interleave(width), far[met].repeat_interleave(width)
    speed = STRIDE / bundles.direction[:, met].flatten(1).square().sum(dim=0).sqrt()
    slices = list(kind_slices(solids, pairs.part))
    ended = []  # (ray, part, distance along the ray)
    for touch in [TOUCH] * (STEPS - 1) + [4 * TOUCH]:
        found = _distances(pairs, t, slices)
        nearest = nearest_by_operation(solids, found, pairs.ray, pairs.part, len(t))
        distance = join(nearest)[:, 0]
        hit = distance < touch
        t = torch.where(hit, t, t + distance * speed)
        alive = ~hit & (t <= far)
        count = int(alive.sum())
        if touch == TOUCH and count > 0.75 * len(t):
            continue
        rows, end = _rows_of_rays(pairs.ray, hit)
        decider = deciding_part(solids, found[rows], nearest[:, hit], end, pairs.part[rows])
        ended.append((ray[hit], decider[:, 0], t[hit]))
        if count == 0:
            break
        pairs = pairs.of_rays(alive)
        ray, t, far, speed = ray[alive], t[alive], far[alive], speed[alive]
        slices = list(kind_slices(solids, pairs.part))
    ray, part, t = (torch.cat(column) for column in zip(*ended, strict=True))
    ray, order = ray.sort()
    return _hits(solids, bundles, ray, part[order], t[order])


def _candidates(solids: Solids, bundles: Bundles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # int64 [K] bundle, [K] row of the part; float32 [G] near, [G] far
    """The parts whose widened boxes the bundles' middles meet, and the stretch that holds the boxes of all
    parts that have a surface of their own; far is negative where there are none."""
    count = torch.bincount(bundles.owner, minlength=len(solids))
    part, group = ragged((count.cumsum(0) - count)[solids.owner], count[solids.owner])
    part, group = _meet_balls(solids, bundles, part, group)
    frame = solids.frame.index_select(1, part)
    origin = _turned(frame, bundles.origin.index_select(1, group)) + frame[9:]
    direction = _turned(frame, bundles.center.index_select(1, group))
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    widen = bundles.spread.index_select(0, group) + SKIN
    one = (solids.low.index_select(1, part) - widen - origin).mul_(inverse)
    two = (solids.high.index_select(1, part) + widen - origin).mul_(inverse)
    enter = torch.minimum(one, two).amax(dim=0).clamp_min_(0)
    leave = torch.maximum(one, two).amin(dim=0)
    met = (enter < leave).nonzero()[:, 0]
    group, part, enter, leave = (x.index_select(0, met) for x in (group, part, enter, leave))
    carves = solids.operation[part] == CARVE
    near = enter.new_full((len(bundles.owner),), torch.inf)
    far = torch.full_like(near, -1)
    near.scatter_reduce_(0, group, torch.where(carves, torch.inf, enter), "amin")
    far.scatter_reduce_(0, group, torch.where(carves, -1, leave), "amax")
    return group, part, near, far


def _meet_balls(solids: Solids, bundles: Bundles, part: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs whose bundle's middle meets the widened ball around the part's box: cheaper than boxes."""
    middle = (solids.low + solids.high) / 2 - solids.frame[9:]
    center = (solids.frame[:9].view(3, 3, -1) * middle[:, None]).sum(dim=0)  # local to world
    reach = ((solids.high - solids.low) / 2).square().sum(dim=0).sqrt()
    origin = bundles.origin.index_select(1, group)
    direction = (bundles.center / bundles.center.square().sum(dim=0).sqrt()).index_select(1, group)
    x, y, z = center.index_select(1, part).sub_(origin)
    u, v, w = direction
    along = (x * u).addcmul_(y, v).addcmul_(z, w)
    apart = (x * x).addcmul_(y, y).addcmul_(z, z).addcmul_(along, along, value=-1)
    widened = reach.index_select(0, part) + bundles.spread.index_select(0, group) + SKIN
    met = (apart <= widened.square_()).nonzero()[:, 0]
    return part.index_select(0, met), group.index_select(0, met)


def _rows_of_rays(ray: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `ray` that name a chosen ray, and the new numbers of the rays they name."""
    rows = chosen.index_select(0, ray).nonzero()[:, 0]
    return rows, (chosen.cumsum(0) - 1).index_select(0, ray.index_select(0, rows))


def _pair_up(solids: Solids, bundles: Bundles, group: Tensor, part: Tensor, met: Tensor) -> _Pairs:
    """Pairs of parts and single rays from pairs of parts and bundles; only the bundles that have met
    something are counted."""
    width = bundles.direction.shape[2]
    own = met[group].nonzero()[:, 0]
    group, part = group[own], part[own]
    frame = solids.frame.index_select(1, part)
    origin = _turned(frame, bundles.origin.index_select(1, group)) + frame[9:]
    direction = _turned(frame[:, :, None], bundles.direction.index_select(1, group))
    line = direction.new_empty(10, len(part), width)
    line[:3], line[3:6], line[6:] = origin[:, :, None], direction, solids.size[:, part, None]
    number = (met.cumsum(0) - 1)[group]
    rays = number[:, None] * width + torch.arange(width, device=part.device)
    return _Pairs(line.view(10, -1), part.repeat_interleave(width), rays.flatten())


def _turned(frame: Tensor, vector: Tensor) -> Tensor:
    """Vectors [3, ...] in the parts' frames [12, ...]."""
    x, y, z = vector
    return torch.stack([(x * frame[i]).add_(y * frame[i + 1]).add_(z * frame[i + 2]) for i in (0, 3, 6)])


def _distances(pairs: _Pairs, t: Tensor, slices: list[tuple[int, slice]]) -> Tensor:  # float32 [K, 1]
    """Of each pair's part, where its ray is at `t`."""
    out = torch.empty_like(pairs.line[0])
    for kind, rows in slices:
        line, along = pairs.line[:, rows], t.index_select(0, pairs.ray[rows])
        x, y, z = (torch.addcmul(line[i], along, line[i + 3]) for i in range(3))
        out[rows] = DISTANCES[kind](x, y, z, line[6:])
    return out[:, None]


def _hits(solids: Solids, bundles: Bundles, ray: Tensor, part: Tensor, t: Tensor) -> Hits:
    """Points and normals: the normal is the gradient of the deciding part, turned over where it carves."""
    width = bundles.direction.shape[2]
    point = torch.addcmul(bundles.origin[:, ray // width], t, bundles.direction.flatten(1)[:, ray])
    row, order = torch.argsort(solids.parts)[part].sort()
    corners = point.new_tensor(TETRAHEDRON)
    around = point[:, order, None] + 5e-4 * corners.T[:, None]
    gradient = (part_distances(solids, around, torch.arange(len(row), device=row.device), row) @ corners).T
    normal = torch.empty_like(point)
    normal[:, order] = torch.where(solids.operation[row] == CARVE, -1, 1) * gradient
    return Hits(ray, part, point, normal / normal.square().sum(dim=0).sqrt().clamp_min(1e-12))
