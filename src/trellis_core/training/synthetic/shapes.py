# mypy: ignore-errors
"""Solids as unions of analytic parts: signed distance, material and bounds.

A solid is a list of parts; each part is a primitive with a pose, a material and an operation that joins it
to the parts before it. Distances follow the usual closed forms (the ellipsoid's is a first-order bound).
World space is the unit cube, z up. Knows nothing about object categories, voxels or cameras.

Letters: P parts, N points, B solids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, radians, sin

import numpy as np
import warp as wp

from trellis_core.kernels.warp_start import start_warp

start_warp()

BOX, CONE, ELLIPSOID, DOME, TORUS, CAPSULE, PRISM = range(7)
UNION, CARVE, ADD = range(3)  # CARVE subtracts, and paints the wall it leaves; ADD joins after all carving
ROW = 20  # floats per packed part: kind, operation, size 4, position 3, rotation 9, spare 2

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Material:
    color: Vector  # sRGB-coded, [0, 1]
    metallic: float
    roughness: float


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive. `size` by kind:

    BOX half extents x, y, z, rounding; CONE half height, bottom radius, top radius (axis z); ELLIPSOID
    radii; DOME radii of the ellipsoid whose lower half is cut off; TORUS ring radius, tube radius (axis z);
    CAPSULE half length, radius (axis z); PRISM half width x, half depth y, half height z (ridge along y, on
    top).
    """

    kind: int
    size: tuple[float, ...]
    position: Vector
    material: Material
    turn: Vector = (0.0, 0.0, 0.0)  # degrees about x, then y, then z
    operation: int = UNION
    role: str = "body"  # which part of the object this is, for captions and evaluation

    def extents(self) -> np.ndarray:  # float64 [3]  half extents of the box around the unturned primitive
        s = self.size
        if self.kind == CONE:
            r = max(s[1], s[2])
            return np.array([r, r, s[0]])
        if self.kind == TORUS:
            return np.array([s[0] + s[1], s[0] + s[1], s[1]])
        if self.kind == CAPSULE:
            return np.array([s[1], s[1], s[0] + s[1]])
        return np.array(s[:3])


@dataclass(frozen=True, slots=True)
class Solids:
    """Several solids, packed: the parts of solid i are rows starts[i]:starts[i + 1]."""

    rows: np.ndarray  # float32 [P, ROW]
    starts: np.ndarray  # int32 [B + 1]
    materials: np.ndarray  # float32 [P, 5]  color 0:3, metallic, roughness


def rotation(turn: Vector) -> np.ndarray:
    """The matrix (local to world) of turns about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = ([f(radians(a)) for a in turn] for f in (cos, sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def fit_unit_cube(parts: Sequence[Part], longest: float = 0.94) -> list[Part]:
    """Centre the box around all parts at the origin and scale its longest side to `longest`."""
    boxes = [
        (np.array(p.position), np.abs(rotation(p.turn)) @ p.extents()) for p in parts if p.operation == UNION
    ]
    low = np.min([c - e for c, e in boxes], axis=0)
    high = np.max([c + e for c, e in boxes], axis=0)
    scale, center = longest / (high - low).max(), (low + high) / 2
    return [
        replace(
            p,
            size=tuple(float(s * scale) for s in p.size),
            position=tuple(float(x) for x in (np.array(p.position) - center) * scale),
        )
        for p in parts
    ]


def pack_solids(solids: Sequence[Sequence[Part]]) -> Solids:
    """Lay the parts of several solids out as arrays for the kernels."""
    parts = [p for solid in solids for p in solid]
    rows = np.zeros((len(parts), ROW), np.float32)
    for row, p in zip(rows, parts, strict=True):
        row[0], row[1] = p.kind, p.operation
        row[2 : 2 + len(p.size)] = p.size
        row[6:9] = p.position
        row[9:18] = rotation(p.turn).T.reshape(-1)  # world to local
    starts = np.cumsum([0, *(len(s) for s in solids)]).astype(np.int32)
    materials = np.array(
        [(*p.material.color, p.material.metallic, p.material.roughness) for p in parts], np.float32
    )
    return Solids(rows, starts, materials)


def signed_distance(
    solids: Solids,
    points: np.ndarray,  # float32 [N, 3]
    owner: np.ndarray,  # int32 [N]     which solid each point belongs to
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:  # float32 [N] negative inside; int32 [N] the part that made the distance
    """Distance from each point to the surface of its solid, and the part whose material applies there."""
    distance = wp.empty(len(points), dtype=float, device=device)
    part = wp.empty(len(points), dtype=int, device=device)
    inputs = [
        wp.array(solids.rows, dtype=float, device=device),
        wp.array(solids.starts, dtype=int, device=device),
        wp.array(np.ascontiguousarray(points, np.float32), dtype=wp.vec3, device=device),
        wp.array(np.ascontiguousarray(owner, np.int32), dtype=int, device=device),
    ]
    wp.launch(_distance_kernel, dim=len(points), inputs=inputs, outputs=[distance, part], device=device)
    return distance.numpy(), part.numpy()


@wp.func
def _box(p: wp.vec3, x: float, y: float, z: float, r: float) -> float:
    qx, qy, qz = wp.abs(p[0]) - x + r, wp.abs(p[1]) - y + r, wp.abs(p[2]) - z + r
    outside = wp.length(wp.vec3(wp.max(qx, 0.0), wp.max(qy, 0.0), wp.max(qz, 0.0)))
    return outside + wp.min(wp.max(qx, wp.max(qy, qz)), 0.0) - r


@wp.func
def _cone(p: wp.vec3, h: float, r1: float, r2: float) -> float:
    """Distance to a trapezoid turned about z: the nearer of the caps and the slanted side."""
    rho = wp.sqrt(p[0] * p[0] + p[1] * p[1])
    cap_r = r2
    if p[2] < 0.0:
        cap_r = r1
    ax = rho - wp.min(rho, cap_r)
    ay = wp.abs(p[2]) - h
    kx, ky = r2 - r1, 2.0 * h
    f = wp.clamp(((r2 - rho) * kx + (h - p[2]) * ky) / (kx * kx + ky * ky), 0.0, 1.0)
    bx, by = rho - r2 + kx * f, p[2] - h + ky * f
    d = wp.sqrt(wp.min(ax * ax + ay * ay, bx * bx + by * by))
    if bx < 0.0 and ay < 0.0:
        d = -d
    return d


@wp.func
def _ellipsoid(p: wp.vec3, x: float, y: float, z: float) -> float:
    k0 = wp.length(wp.vec3(p[0] / x, p[1] / y, p[2] / z))
    k1 = wp.length(wp.vec3(p[0] / (x * x), p[1] / (y * y), p[2] / (z * z)))
    if k1 < 1.0e-6:
        return -wp.min(x, wp.min(y, z))
    return k0 * (k0 - 1.0) / k1


@wp.func
def _primitive(kind: int, p: wp.vec3, a: float, b: float, c: float, r: float) -> float:
    if kind == 0:
        return _box(p, a, b, c, r)
    if kind == 1:
        return _cone(p, a, b, c)
    if kind == 2:
        return _ellipsoid(p, a, b, c)
    if kind == 3:
        return wp.max(_ellipsoid(p, a, b, c), -p[2])
    if kind == 4:
        ring = wp.sqrt(p[0] * p[0] + p[1] * p[1]) - a
        return wp.sqrt(ring * ring + p[2] * p[2]) - b
    if kind == 5:
        z = p[2] - wp.clamp(p[2], -a, a)
        return wp.sqrt(p[0] * p[0] + p[1] * p[1] + z * z) - b
    slope = (wp.abs(p[0]) * 2.0 * c + (p[2] - c) * a) / wp.sqrt(4.0 * c * c + a * a)
    return wp.max(wp.max(slope, -p[2] - c), wp.abs(p[1]) - b)


@wp.func
def solid_distance(rows: wp.array2d(dtype=float), first: int, last: int, point: wp.vec3) -> wp.vec2:
    """Signed distance of the solid made of rows first:last, and the index of the part that decides it."""
    d = wp.float32(1.0e3)  # a mutable value; a bare number is a constant in Warp
    part = float(first)
    for i in range(first, last):
        q = point - wp.vec3(rows[i, 6], rows[i, 7], rows[i, 8])
        local = wp.vec3(
            rows[i, 9] * q[0] + rows[i, 10] * q[1] + rows[i, 11] * q[2],
            rows[i, 12] * q[0] + rows[i, 13] * q[1] + rows[i, 14] * q[2],
            rows[i, 15] * q[0] + rows[i, 16] * q[1] + rows[i, 17] * q[2],
        )
        e = _primitive(int(rows[i, 0]), local, rows[i, 2], rows[i, 3], rows[i, 4], rows[i, 5])
        if rows[i, 1] != 1.0:
            if e < d:
                d = e
                part = float(i)
        elif -e > d:
            d = -e
            part = float(i)
    return wp.vec2(d, part)


@wp.kernel(enable_backward=False)
def _distance_kernel(
    rows: wp.array2d(dtype=float),
    starts: wp.array(dtype=int),
    points: wp.array(dtype=wp.vec3),
    owner: wp.array(dtype=int),
    distance: wp.array(dtype=float),
    part: wp.array(dtype=int),
) -> None:
    i = wp.tid()
    s = owner[i]
    found = solid_distance(rows, starts[s], starts[s + 1], points[i])
    distance[i] = found[0]
    part[i] = int(found[1])
