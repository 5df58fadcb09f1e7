"""Analytic primitives: signed distance and bounds, in their own frame.

Distances follow the usual closed forms (Hart, "Sphere tracing", 1996; Quilez, "Distance functions"). Outside
a primitive they never exceed the true distance. Knows nothing about poses, materials or solids.

`size` by kind:

BOX half extents x, y, z, rounding; CONE half height, bottom radius, top radius (axis z); ELLIPSOID radii;
DOME radii of the ellipsoid whose lower half is cut off; TORUS ring radius, tube radius (axis z); CAPSULE half
length, radius (axis z); PRISM half width x, half depth y, half height z (ridge along y, on top); ARC ring
radius, tube radius, lowest x: the part of a torus whose centre line has x at least that, with round ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

BOX, CONE, ELLIPSOID, DOME, TORUS, CAPSULE, PRISM, ARC = range(8)

Distance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def primitive_bounds(
    kind: int, size: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:  # float64 [3] each: lowest and highest corner
    """The box around a primitive."""
    high = np.array(_reach(kind, size))
    low = -high
    if kind == DOME:
        low[2] = 0.0
    if kind == ARC:
        low[0] = size[2] - size[1]
    return low, high


def _reach(kind: int, size: Sequence[float]) -> Sequence[float]:
    if kind == CONE:
        radius = max(size[1], size[2])
        return radius, radius, size[0]
    if kind == TORUS:
        return size[0] + size[1], size[0] + size[1], size[1]
    if kind == CAPSULE:
        return size[1], size[1], size[0] + size[1]
    if kind == ARC:
        half_chord = size[0] if size[2] <= 0 else sqrt(size[0] ** 2 - size[2] ** 2)
        return size[0] + size[1], half_chord + size[1], size[1]
    return tuple(size[:3])


def _box(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    r = size[3]
    qx, qy, qz = (p.abs().sub_(half - r) for p, half in zip((x, y, z), size[:3], strict=True))
    inside = torch.maximum(torch.maximum(qx, qy), qz).clamp_max_(0)
    return _length(qx.clamp_min_(0), qy.clamp_min_(0), qz.clamp_min_(0)).add_(inside).sub_(r)


def _cone(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    """Distance to a trapezoid turned about z: the nearer of the caps and the slanted side."""
    h, r1, r2 = size[:3]
    rho = _length(x, y)
    ax = (rho - torch.where(z < 0, r1, r2)).clamp_min_(0)
    ay = z.abs().sub_(h)
    kx, ky = r2 - r1, 2 * h
    scale = 1 / (kx * kx + ky * ky)
    along = ((r2 - rho) * (kx * scale)).add_((h - z).mul_(ky * scale)).clamp_(0, 1)
    bx = (rho - r2).add_(along * kx)
    by = (z - h).add_(along.mul_(ky))
    inside = (bx < 0) & (ay < 0)
    d = torch.minimum(_square(ax, ay), _square(bx, by)).sqrt_()
    return torch.where(inside, -d, d)


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    """The first-order distance k0 (k0 - 1) / k1. Outside it is a lower bound, since k0 is convex; inside it
    can exceed the true distance, so its magnitude is capped by r sqrt(1 - k0^2), an upper bound of the way
    out along the shortest radius r."""
    inverse = 1 / size[:3]
    px, py, pz = x * inverse[0], y * inverse[1], z * inverse[2]
    k0 = _length(px, py, pz).clamp_min_(1e-6)  # the middle is 0 / 0
    k1 = _length(px.mul_(inverse[0]), py.mul_(inverse[1]), pz.mul_(inverse[2])).clamp_min_(1e-6)
    shortest = torch.minimum(torch.minimum(size[0], size[1]), size[2])
    cap = (1 - k0 * k0).clamp_min_(0).sqrt_().mul_(-shortest)
    return torch.maximum((k0 - 1).mul_(k0).div_(k1), cap)


def _dome(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    return torch.maximum(_ellipsoid(x, y, z, size), -z)


def _torus(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    return _length(_length(x, y).sub_(size[0]), z).sub_(size[1])


def _capsule(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    return _length(x, y, z.abs().sub_(size[0]).clamp_min_(0)).sub_(size[1])


def _prism(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    a, b, c = size[:3]
    norm = 1 / (4 * c * c + a * a).sqrt()
    slope = (x.abs() * (2 * c * norm)).add_((z - c).mul_(a * norm))
    return torch.maximum(torch.maximum(slope, -z - c), y.abs().sub_(b))


def _arc(x: Tensor, y: Tensor, z: Tensor, size: Tensor) -> Tensor:
    """Where the nearest point of the full ring is cut away, the nearest point is the end of the arc."""
    ring, tube, cut = size[:3]
    rho = _length(x, y)
    on_ring = _square(rho - ring, z)
    end = (ring * ring - cut * cut).clamp_min(0).sqrt()
    at_end = _square(x - cut, y.abs() - end, z)
    return torch.where(x * ring >= cut * rho, on_ring, at_end).sqrt_().sub_(tube)


def _square(*components: Tensor) -> Tensor:
    total = components[0] * components[0]
    for c in components[1:]:
        total.addcmul_(c, c)
    return total


def _length(*components: Tensor) -> Tensor:
    return _square(*components).sqrt_()


DISTANCES: Mapping[int, Distance] = {  # (x, y, z broadcastable, size [4, ...]) -> distance, negative inside
    BOX: _box,
    CONE: _cone,
    ELLIPSOID: _ellipsoid,
    DOME: _dome,
    TORUS: _torus,
    CAPSULE: _capsule,
    PRISM: _prism,
    ARC: _arc,
}
