"""Sixteen categories of parametric objects. One seed, one object.

Every maker draws from the generator it is given and returns parts in raw units, z up, front towards -y,
width along x; `make_object` puts them into the unit cube. Knows nothing about voxels or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, hypot, pi, sin

import numpy as np

from trellis_core.training.synthetic.shapes import (
    BOX,
    CARVE,
    CONE,
    DOME,
    ELLIPSOID,
    PRISM,
    TORUS,
    Material,
    Part,
    Vector,
    fit_unit_cube,
)

Rng = np.random.Generator
HELD_OUT = 900_000  # seeds from here on are never trained on

PALETTE: Mapping[str, Vector] = {
    "red": (0.80, 0.12, 0.10),
    "orange": (0.93, 0.49, 0.11),
    "yellow": (0.95, 0.80, 0.18),
    "green": (0.18, 0.58, 0.22),
    "blue": (0.14, 0.28, 0.74),
    "purple": (0.47, 0.19, 0.62),
    "pink": (0.93, 0.52, 0.68),
    "brown": (0.43, 0.26, 0.13),
    "white": (0.92, 0.92, 0.90),
    "gray": (0.52, 0.53, 0.55),
    "black": (0.15, 0.15, 0.16),
    "cyan": (0.16, 0.68, 0.74),
    "beige": (0.86, 0.76, 0.58),
}
FINISHES: Mapping[str, tuple[float, tuple[float, float]]] = {  # metallic, range of roughness
    "plastic": (0.0, (0.25, 0.45)),
    "wood": (0.0, (0.6, 0.8)),
    "metal": (1.0, (0.2, 0.45)),
    "matte": (0.0, (0.8, 1.0)),
}


@dataclass(frozen=True, slots=True)
class SyntheticObject:
    category: str
    parts: list[Part]  # inside the unit cube


def make_object(seed: int) -> SyntheticObject:
    """The object of a seed: its category and every parameter follow from `seed` alone."""
    rng = np.random.default_rng(seed)
    category = list(CATEGORIES)[rng.integers(len(CATEGORIES))]
    return SyntheticObject(category, fit_unit_cube(CATEGORIES[category](rng)))


def paint(rng: Rng, *names: str, finish: str | None = None) -> Material:
    """A material of one of the named colors (any color when none is named), with a little jitter."""
    name = names[rng.integers(len(names))] if names else list(PALETTE)[rng.integers(len(PALETTE))]
    metallic, (low, high) = FINISHES[finish or list(FINISHES)[rng.integers(len(FINISHES))]]
    color = np.array(PALETTE[name]) * rng.uniform(0.85, 1.1) + rng.normal(0, 0.02, 3)
    red, green, blue = (float(c) for c in color.clip(0.03, 0.97))
    return Material((red, green, blue), metallic, float(rng.uniform(low, high)))


def chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


def box(
    position: Vector,
    half: Vector,
    material: Material,
    turn: Vector = (0, 0, 0),
    edge: float = 0.01,
    **kw: int,
) -> Part:
    return Part(BOX, (*half, min(edge, *(0.5 * h for h in half))), position, material, turn, **kw)


def cone(
    position: Vector,
    half: float,
    low: float,
    high: float,
    material: Material,
    turn: Vector = (0, 0, 0),
    **kw: int,
) -> Part:
    return Part(CONE, (half, low, high), position, material, turn, **kw)


def ball(position: Vector, radii: Vector, material: Material, turn: Vector = (0, 0, 0)) -> Part:
    return Part(ELLIPSOID, radii, position, material, turn)


def leg(
    x: float, y: float, top: float, radius: float, material: Material, round_: bool, splay: float = 0.0
) -> Part:
    """A leg standing at (x, y) below height `top`; `splay` degrees lean its foot outwards."""
    reach = hypot(x, y) or 1.0
    turn = (splay * y / reach, -splay * x / reach, 0.0)
    if round_:
        return cone((x, y, top / 2), top / 2, radius * 0.8, radius, material, turn)
    return box((x, y, top / 2), (radius, radius, top / 2), material, turn)


def chair(rng: Rng) -> list[Part]:
    w, d, h = rng.uniform(0.38, 0.55), rng.uniform(0.38, 0.52), rng.uniform(0.6, 1.0)
    t, r, back = rng.uniform(0.05, 0.08), rng.uniform(0.05, 0.08), rng.uniform(0.35, 0.65)
    seat, legs, round_ = paint(rng), paint(rng), chance(rng, 0.5)
    if chance(rng, 0.5):
        legs = seat
    parts = [box((0, 0, h), (w, d, t), seat, edge=0.03)]
    parts += [leg(sx * (w - r), sy * (d - r), h, r, legs, round_) for sx in (-1, 1) for sy in (-1, 1)]
    y, z = d - t, h + back
    style = rng.integers(3)
    if style == 0:
        parts.append(box((0, y, z), (w, t, back), seat, edge=0.03))
    else:
        parts += [box((s * (w - r), y, z), (r, t, back), legs) for s in (-1, 1)]
        parts.append(box((0, y, z + back - 0.08), (w, t, 0.09), seat, edge=0.02))
        if style == 1:
            parts += [box((x * w * 0.5, y, z), (0.05, t * 0.8, back), legs) for x in (-1, 0, 1)]
        else:
            parts += [box((0, y, h + back * f), (w, t * 0.8, 0.07), seat) for f in (0.55, 1.2)]
    if chance(rng, 0.3):
        arm = rng.uniform(0.22, 0.32)
        for s in (-1, 1):
            parts.append(box((s * (w - r), 0, h + arm), (r, d, t * 0.8), legs))
            parts.append(box((s * (w - r), -d + r, h + arm / 2), (r * 0.9, r * 0.9, arm / 2), legs))
    return parts


def stool(rng: Rng) -> list[Part]:
    r, h, t = rng.uniform(0.35, 0.5), rng.uniform(0.6, 1.2), rng.uniform(0.05, 0.1)
    seat, legs, count = paint(rng), paint(rng), int(rng.integers(3, 5))
    top = cone((0, 0, h), t, r, r, seat) if chance(rng, 0.5) else box((0, 0, h), (r, r, t), seat, edge=0.04)
    if chance(rng, 0.4):
        legs = seat
    round_, turn = chance(rng, 0.6), pi / 4 if count == 4 else pi / 2
    angles = [turn + 2 * pi * i / count for i in range(count)]
    width = rng.uniform(0.05, 0.075)
    parts = [top, *(leg(0.75 * r * cos(a), 0.75 * r * sin(a), h, width, legs, round_, 8) for a in angles)]
    if chance(rng, 0.3):
        parts.append(Part(TORUS, (0.8 * r, 0.04), (0, 0, h * 0.4), legs))
    return parts


def table(rng: Rng) -> list[Part]:
    w, d, h, t = (
        rng.uniform(0.55, 1.0),
        rng.uniform(0.45, 0.6),
        rng.uniform(0.5, 0.95),
        rng.uniform(0.045, 0.08),
    )
    top, legs = paint(rng), paint(rng)
    if chance(rng, 0.5):
        legs = top
    if chance(rng, 0.45):
        r = rng.uniform(0.55, 0.8)
        return [
            cone((0, 0, h), t, r, r, top),
            cone((0, 0, h / 2), h / 2, rng.uniform(0.08, 0.14), rng.uniform(0.06, 0.1), legs),
            cone((0, 0, 0.05), 0.05, r * 0.6, r * 0.45, legs),
        ]
    r, round_ = rng.uniform(0.05, 0.08), chance(rng, 0.4)
    parts = [box((0, 0, h), (w, d, t), top, edge=0.02)]
    parts += [
        leg(sx * (w - 1.4 * r), sy * (d - 1.4 * r), h, r, legs, round_) for sx in (-1, 1) for sy in (-1, 1)
    ]
    if chance(rng, 0.25):
        parts.append(box((0, 0, h * 0.35), (w - r, d - r, 0.04), top))
    return parts


def lamp(rng: Rng) -> list[Part]:
    h, base, pole = rng.uniform(0.9, 1.9), rng.uniform(0.25, 0.4), rng.uniform(0.05, 0.075)
    metal, shade, r = paint(rng), paint(rng), rng.uniform(0.35, 0.5)
    high = rng.uniform(0.2, 0.32)
    parts = [
        cone((0, 0, 0.05), 0.05, base, base * 0.85, metal),
        cone((0, 0, h / 2), h / 2, pole, pole, metal),
    ]
    style = rng.integers(3)
    if style == 0:
        parts.append(cone((0, 0, h), high, r, r * 0.45, shade))
    elif style == 1:
        parts.append(ball((0, 0, h), (r * 0.85,) * 3, shade))
    else:
        parts.append(cone((0, 0, h), high, r * 0.85, r * 0.85, shade))
    return parts


def mug(rng: Rng) -> list[Part]:
    r, h, wall = rng.uniform(0.4, 0.55), rng.uniform(0.38, 0.7), rng.uniform(0.07, 0.1)
    outside, inside, low = paint(rng), paint(rng), 1.0
    if chance(rng, 0.5):
        low = rng.uniform(0.75, 0.9)
    handle = outside if chance(rng, 0.5) else paint(rng)
    ring = h * rng.uniform(0.45, 0.6)
    parts = [Part(TORUS, (ring, rng.uniform(0.06, 0.085)), (r * (1 + low) / 2, 0, 0), handle, (90, 0, 0))]
    parts.append(cone((0, 0, 0), h, r * low, r, outside))
    if chance(rng, 0.4):
        z = rng.uniform(-0.3, 0.3) * h
        at = r * (low + (1 - low) * (z / h + 1) / 2) + 0.02
        parts.append(cone((0, 0, z), 0.09, at, at, paint(rng)))
    parts.append(cone((0, 0, wall), h, r * low - wall, r - wall, inside, operation=CARVE))
    return parts


def bottle(rng: Rng) -> list[Part]:
    r, h, shoulder, neck = (
        rng.uniform(0.28, 0.42),
        rng.uniform(0.35, 0.7),
        rng.uniform(0.1, 0.3),
        rng.uniform(0.1, 0.15),
    )
    glass, cap, length = paint(rng), paint(rng), rng.uniform(0.08, 0.22)
    parts = [
        cone((0, 0, 0), h, r, r, glass),
        cone((0, 0, h + shoulder / 2), shoulder / 2, r, neck, glass),
        cone((0, 0, h + shoulder + length), length, neck, neck, glass),
        cone((0, 0, h + shoulder + 2 * length), 0.09, neck * 1.25, neck * 1.2, cap),
    ]
    if chance(rng, 0.5):
        parts.append(
            cone(
                (0, 0, rng.uniform(-0.2, 0.1) * h), h * rng.uniform(0.3, 0.5), r + 0.02, r + 0.02, paint(rng)
            )
        )
    return parts


def house(rng: Rng) -> list[Part]:
    w, d, h, rise = (
        rng.uniform(0.5, 0.85),
        rng.uniform(0.45, 0.65),
        rng.uniform(0.3, 0.6),
        rng.uniform(0.2, 0.35),
    )
    wall, roof, glass = (
        paint(rng, finish="matte"),
        paint(rng, finish="matte"),
        paint(rng, "cyan", "white", "yellow", "black"),
    )
    over = 0.09
    if chance(rng, 0.5):
        cover = Part(PRISM, (w + over, d + over, rise), (0, 0, h + rise), roof)
    else:
        cover = Part(PRISM, (d + over, w + over, rise), (0, 0, h + rise), roof, (0, 0, 90))
    door = rng.uniform(-0.3, 0.3) * w
    parts = [box((0, 0, 0), (w, d, h), wall), cover]
    parts.append(box((door, -d, -h + 0.22), (0.11, 0.035, 0.22), paint(rng, finish="wood")))
    for x in (-0.68, 0.68):
        if abs(x * w - door) > 0.24:
            parts.append(box((x * w, -d, 0.05), (0.11, 0.03, 0.11), glass))
    if chance(rng, 0.4):
        parts.append(
            box(
                (w * 0.5, d * 0.35, h + rise * 1.5),
                (0.1, 0.1, rise * 0.9),
                paint(rng, "red", "brown", "gray"),
            )
        )
    return parts


def tree(rng: Rng) -> list[Part]:
    h, trunk = rng.uniform(0.4, 0.9), rng.uniform(0.08, 0.13)
    bark = paint(rng, "brown", "gray", "black", "beige", finish="wood")
    leaf = paint(rng, "green", "green", "green", "yellow", "orange", "red", "pink", finish="matte")
    parts = [cone((0, 0, h / 2), h / 2 + 0.1, trunk, trunk * 0.8, bark)]
    if chance(rng, 0.5):
        count, r, z = int(rng.integers(1, 4)), rng.uniform(0.4, 0.6), h
        high = rng.uniform(0.25, 0.4) * (1.6 if count == 1 else 1)
        for i in range(count):
            scale = 1 - 0.22 * i
            parts.append(cone((0, 0, z + high * scale), high * scale, r * scale, 0.02, leaf))
            z += high * scale
        return parts
    r, tall = rng.uniform(0.4, 0.6), rng.uniform(0.35, 0.65)
    parts.append(ball((0, 0, h + tall * 0.7), (r, r, tall), leaf))
    for _ in range(rng.integers(0, 3)):
        a, b = rng.uniform(0, 2 * pi), r * rng.uniform(0.5, 0.65)
        parts.append(
            ball((r * 0.6 * cos(a), r * 0.6 * sin(a), h + tall * rng.uniform(0.3, 0.9)), (b, b, b), leaf)
        )
    return parts


def mushroom(rng: Rng) -> list[Part]:
    h, stem, r, tall = (
        rng.uniform(0.4, 0.8),
        rng.uniform(0.12, 0.2),
        rng.uniform(0.4, 0.65),
        rng.uniform(0.28, 0.5),
    )
    flesh, cap = paint(rng, "white", "beige", "yellow", finish="matte"), paint(rng)
    parts = [cone((0, 0, h / 2), h / 2 + 0.05, stem * rng.uniform(1, 1.35), stem, flesh)]
    parts.append(Part(DOME, (r, r, tall), (0, 0, h), cap))
    if chance(rng, 0.55):
        spot, size = paint(rng, "white", "white", "yellow", "beige", "black"), r * rng.uniform(0.13, 0.18)
        places = [(0.0, 0.0)] + [(0.95, 2 * pi * i / 6 + 0.3) for i in range(6)]
        for tilt, a in places:
            x, y, z = sin(tilt) * cos(a) * r, sin(tilt) * sin(a) * r, cos(tilt) * tall
            parts.append(ball((x, y, h + z), (size, size, size), spot))
    return parts


def car(rng: Rng) -> list[Part]:
    length, w, r, body = (
        rng.uniform(0.8, 1.1),
        rng.uniform(0.36, 0.45),
        rng.uniform(0.17, 0.24),
        rng.uniform(0.14, 0.2),
    )
    lack, glass, tire = (
        paint(rng),
        paint(rng, "cyan", "black", "white", "gray"),
        paint(rng, "black", "black", "gray", finish="matte"),
    )
    z = r + body * 0.6
    parts = [box((0, 0, z), (length, w, body), lack, edge=0.06)]
    if chance(rng, 0.6):
        at, high = rng.uniform(-0.05, 0.2), rng.uniform(0.14, 0.2)
        parts.append(box((at, 0, z + body + high * 0.8), (length * 0.52, w * 0.88, high), glass, edge=0.05))
        parts.append(box((at, 0, z + body + high * 1.75), (length * 0.5, w * 0.86, 0.045), lack, edge=0.03))
    else:
        high = rng.uniform(0.18, 0.24)
        parts.append(
            box((-length * 0.45, 0, z + body + high * 0.8), (length * 0.3, w * 0.92, high), lack, edge=0.05)
        )
        parts.append(
            box(
                (-length * 0.45, 0, z + body + high), (length * 0.31, w * 0.95, high * 0.45), glass, edge=0.02
            )
        )
        for s in (-1, 1):
            parts.append(
                box((length * 0.42, s * (w - 0.04), z + body + 0.07), (length * 0.56, 0.045, 0.09), lack)
            )
        parts.append(box((length * 0.95, 0, z + body + 0.07), (0.05, w, 0.09), lack))
    for x in (-0.6, 0.6):
        for s in (-1, 1):
            parts.append(cone((x * length, s * w, r), 0.075, r, r, tire, (90, 0, 0)))
    return parts


def airplane(rng: Rng) -> list[Part]:
    length, r, span = rng.uniform(0.7, 1.0), rng.uniform(0.12, 0.18), rng.uniform(0.7, 1.1)
    hull, wing = paint(rng), paint(rng)
    if chance(rng, 0.4):
        wing = hull
    chord, at = rng.uniform(0.14, 0.2), rng.uniform(-0.15, 0.05)
    parts = [ball((0, 0, 0), (r, length, r), hull)]
    parts.append(box((0, at, rng.choice([-0.4, 0.0, 0.6]) * r), (span, chord, 0.035), wing, edge=0.02))
    parts.append(box((0, length * 0.85, r * 0.3), (span * 0.36, chord * 0.6, 0.03), wing, edge=0.02))
    parts.append(box((0, length * 0.85, r * 0.3 + 0.15), (0.03, chord * 0.6, 0.16), wing, edge=0.02))
    parts.append(
        ball((0, -length * 0.62, r * 0.62), (r * 0.5, 0.16, r * 0.5), paint(rng, "cyan", "black", "white"))
    )
    if chance(rng, 0.4):
        engine = paint(rng)
        for s in (-1, 1):
            parts.append(
                cone((s * span * 0.45, at - chord * 0.6, -0.07), 0.14, 0.075, 0.075, engine, (90, 0, 0))
            )
    return parts


def sword(rng: Rng) -> list[Part]:
    h, w, guard = rng.uniform(0.6, 1.0), rng.uniform(0.07, 0.11), rng.uniform(0.25, 0.42)
    blade, grip = paint(rng, "gray", "white", "black", "blue", "cyan", finish="metal"), paint(rng)
    cross = paint(rng, finish="metal")
    tip, handle = 0.18, rng.uniform(0.15, 0.24)
    return [
        box((0, 0, h), (w, 0.035, h), blade),
        Part(PRISM, (w, 0.035, tip / 2), (0, 0, 2 * h + tip / 2), blade),
        box((0, 0, 0), (guard, 0.07, 0.055), cross, edge=0.03),
        cone((0, 0, -handle), handle, 0.055, 0.06, grip),
        ball((0, 0, -2 * handle - 0.05), (0.095,) * 3, cross),
    ]


def robot(rng: Rng) -> list[Part]:
    w, d, h = rng.uniform(0.3, 0.42), rng.uniform(0.2, 0.28), rng.uniform(0.3, 0.45)
    body, limb, eye = paint(rng), paint(rng), paint(rng, "red", "green", "cyan", "yellow", "white", "black")
    head, s = (body if chance(rng, 0.6) else paint(rng)), rng.uniform(0.2, 0.26)
    z = h + s + 0.04
    parts = [box((0, 0, 0), (w, d, h), body, edge=0.04)]
    parts.append(cone((0, 0, h), 0.1, 0.08, 0.08, limb))
    round_ = chance(rng, 0.4)
    parts.append(
        ball((0, 0, z), (s * 1.1,) * 3, head)
        if round_
        else box((0, 0, z), (s * 1.1, s * 0.9, s), head, edge=0.03)
    )
    front = -s * (1.0 if round_ else 0.88)
    parts += [ball((e * s * 0.48, front, z + 0.05), (0.075, 0.06, 0.075), eye) for e in (-1, 1)]
    arm, thick = rng.uniform(0.28, 0.42), rng.uniform(0.075, 0.11)
    legs = rng.uniform(0.22, 0.36)
    for e in (-1, 1):
        parts.append(box((e * (w + thick), 0, h - arm), (thick, thick, arm), limb, edge=0.03))
        parts.append(box((e * w * 0.52, 0, -h - legs), (thick * 1.2, thick * 1.3, legs), limb, edge=0.03))
    if chance(rng, 0.5):
        parts.append(cone((0, 0, z + s + 0.1), 0.13, 0.035, 0.03, limb))
        parts.append(ball((0, 0, z + s + 0.25), (0.065,) * 3, eye))
    return parts


def snowman(rng: Rng) -> list[Part]:
    snow = paint(rng, "white", "white", "white", "cyan", "beige", "pink", "gray", finish="matte")
    count, r = int(rng.integers(2, 4)), rng.uniform(0.4, 0.55)
    parts, z, shrink = [], 0.0, rng.uniform(0.68, 0.8)
    for i in range(count):
        parts.append(ball((0, 0, z), (r,) * 3, snow))
        if i < count - 1:
            z += r * 0.78 + r * shrink * 0.78
            r *= shrink
    nose, coal = (
        paint(rng, "orange", "red", finish="matte"),
        paint(rng, "black", "brown", "blue", finish="matte"),
    )
    parts.append(cone((0, -r - 0.1, z), 0.14, 0.075, 0.015, nose, (90, 0, 0)))
    parts += [ball((e * r * 0.38, -r * 0.86, z + r * 0.32), (0.06,) * 3, coal) for e in (-1, 1)]
    if chance(rng, 0.6):
        hat, tall = paint(rng), rng.uniform(0.14, 0.24)
        parts.append(cone((0, 0, z + r * 0.82), 0.035, r * 1.1, r * 1.1, hat))
        parts.append(cone((0, 0, z + r * 0.82 + tall), tall, r * 0.68, r * 0.62, hat))
    if chance(rng, 0.5):
        parts.append(Part(TORUS, (r * 0.72, 0.085), (0, 0, z - r * 0.74), paint(rng)))
    return parts


def rocket(rng: Rng) -> list[Part]:
    r, h, nose = rng.uniform(0.2, 0.3), rng.uniform(0.5, 0.85), rng.uniform(0.15, 0.25)
    hull, tip, fin = paint(rng), paint(rng), paint(rng)
    if chance(rng, 0.5):
        fin = tip
    parts = [cone((0, 0, 0), h, r, r, hull), cone((0, 0, h + nose), nose, r, 0.02, tip)]
    parts.append(
        cone((0, 0, -h - 0.07), 0.08, r * 0.75, r * 0.5, paint(rng, "gray", "black", finish="metal"))
    )
    count, size, start = int(rng.integers(3, 5)), rng.uniform(0.15, 0.24), rng.choice([0.0, 45.0])
    for i in range(count):
        a = start + 360 * i / count - 90
        x, y = cos(a * pi / 180), sin(a * pi / 180)
        parts.append(Part(PRISM, (size * 1.6, 0.035, size * 1.25), (x * r, y * r, -h + size), fin, (0, 0, a)))
    if chance(rng, 0.6):
        parts.append(
            cone(
                (0, -r, h * rng.uniform(0.25, 0.55)),
                0.035,
                r * 0.5,
                r * 0.5,
                paint(rng, "cyan", "white", "yellow", "black"),
                (90, 0, 0),
            )
        )
    return parts


def boat(rng: Rng) -> list[Part]:
    length, w, deep = rng.uniform(0.7, 1.0), rng.uniform(0.26, 0.36), rng.uniform(0.22, 0.32)
    hull, deck, wood = (
        paint(rng),
        paint(rng, "brown", "beige", "white", "gray", finish="wood"),
        paint(rng, "brown", "beige", "white", finish="wood"),
    )
    parts = [Part(DOME, (length, w, deep), (0, 0, 0), hull, (180, 0, 0))]
    parts.append(Part(DOME, (length * 0.9, w * 0.8, 0.09), (0, 0, 0.001), deck, (180, 0, 0), CARVE))
    if chance(rng, 0.6):
        mast, x = rng.uniform(0.8, 1.2), rng.uniform(-0.1, 0.1)
        parts.append(cone((x, 0, mast / 2 - 0.08), mast / 2 + 0.08, 0.045, 0.035, wood))
        high, foot = mast * 0.42, rng.uniform(0.35, 0.5)
        parts.append(Part(PRISM, (foot, 0.03, high), (x, 0.02, mast - high), paint(rng, finish="matte")))
        return parts
    cabin, high = paint(rng), rng.uniform(0.13, 0.2)
    parts.append(
        box((rng.uniform(-0.1, 0.1), 0, high - 0.09), (length * 0.36, w * 0.55, high), cabin, edge=0.03)
    )
    parts.append(cone((0.05, 0, high * 2 + 0.08), 0.18, 0.085, 0.085, paint(rng)))
    if chance(rng, 0.5):
        parts.append(
            box(
                (-0.12, 0, high * 2 - 0.02),
                (length * 0.16, w * 0.4, 0.09),
                paint(rng, "white", "beige", "gray"),
            )
        )
    return parts


CATEGORIES: Mapping[str, Callable[[Rng], list[Part]]] = {
    f.__name__: f
    for f in (
        chair, stool, table, lamp, mug, bottle, house, tree,
        mushroom, car, airplane, sword, robot, snowman, rocket, boat,
    )
}  # fmt: skip
