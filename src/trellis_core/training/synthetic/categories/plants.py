"""Trees, mushrooms, cactuses, flowers and apples."""

from __future__ import annotations

from math import cos, pi, sin

from trellis_core.training.synthetic.categories.sketch import SIDES, Sketch, category
from trellis_core.training.synthetic.shapes import CARVE

LEAVES = ("yellow", "orange", "red", "pink", "purple", "white", "cyan", "brown", "blue")
SKIN = ("cyan", "blue", "yellow", "purple", "red", "brown", "gray", "pink")
POT = ("orange", "brown", "red", "white", "blue", "gray", "black", "yellow", "cyan")


def stand_pot(d: Sketch, radius: float, half: float) -> None:
    """A flower pot with a rim and earth in it; its top is at z = 0."""
    d.paint("pot", *POT)
    d.paint("earth", "brown", "black", finish="matte")
    d.cone("pot", (0, 0, -half), half, radius * 0.65, radius * 0.92)
    d.cone("pot", (0, 0, -0.08), 0.08, radius, radius)
    d.cone("earth", (0, 0, 0), 0.03, radius * 0.82, radius * 0.75)


@category(
    "tree",
    main="leaves",
    mention=("trunk", "fruits"),
    unseen=("cyan", "pink"),
    corner=("trunk", "height"),
    proportion=("z", "x", 1.41, 1.79, "short", "tall"),
)
def tree(d: Sketch) -> None:
    h, trunk = d.number("height", 0.4, 0.9), d.number("trunk", 0.09, 0.14)
    d.paint("trunk", "brown", "brown", "gray", "black", "beige", "white", finish="wood")
    d.paint("leaves", *(LEAVES if d.toss(0.5) else ("green",)), finish="matte")
    d.cone("trunk", (0, 0, h / 2), h / 2 + 0.1, trunk * 1.1, trunk * 0.8)
    r = d.number("crown", 0.4, 0.6)
    if d.shape("pointed", "round") == "pointed":
        count, z = int(d.rng.integers(1, 4)), h
        high = d.number("high", 0.27, 0.4) * (1.6 if count == 1 else 1)
        for i in range(count):
            scale = 1 - 0.22 * i
            d.cone("leaves", (0, 0, z + high * scale), high * scale, r * scale, 0.03)
            z += high * scale
        return
    tall = d.number("high", 0.35, 0.65)
    d.ball("leaves", (0, 0, h + tall * 0.7), (r, r, tall))
    for _ in range(d.rng.integers(0, 3)):
        a, b = d.number("angle", 0, 2 * pi), r * d.number("blob", 0.5, 0.65)
        d.ball("leaves", (r * 0.6 * cos(a), r * 0.6 * sin(a), h + tall * d.number("lift", 0.3, 0.9)), b)
    if d.has("fruits", 0.4):
        d.paint("fruits", "red", "red", "orange", "yellow", "purple", "pink", finish="plastic")
        for i in range(9):
            a, up = 2 * pi * i / 9, (-0.25, 0.2, 0.55)[i % 3]
            out = r * (1 - up * up) ** 0.5
            d.ball("fruits", (out * cos(a), out * sin(a), h + tall * (0.7 + up)), 0.1)


@category(
    "mushroom",
    main="cap",
    mention=("spots", "stem"),
    unseen=("blue", "gray"),
    corner=("radius", "height"),
    proportion=("z", "x", 0.93, 1.19, "wide", "tall"),
)
def mushroom(d: Sketch) -> None:
    h, stem, r = d.number("height", 0.4, 0.8), d.number("stem", 0.13, 0.21), d.number("radius", 0.4, 0.65)
    tall = d.number("cap", 0.28, 0.5)
    d.paint("cap")
    d.paint("stem", "white", "white", "beige", "yellow", "brown", "gray", finish="matte")
    d.cone("stem", (0, 0, h / 2), h / 2 + 0.05, stem * d.number("foot", 1, 1.35), stem)
    d.dome("cap", (0, 0, h), (r, r, tall))
    if d.has("spots", 0.6):
        d.paint("spots", "white", "white", "yellow", "beige", "black", "red", "blue", finish="matte")
        size = d.number("spot", 0.1, 0.125)
        for tilt, a in [(0.0, 0.0)] + [(0.95, 2 * pi * i / 6 + 0.3) for i in range(6)]:
            x, y, z = sin(tilt) * cos(a) * r, sin(tilt) * sin(a) * r, cos(tilt) * tall
            d.ball("spots", (x, y, h + z), size)


@category(
    "cactus",
    main="body",
    mention=("pot", "flower"),
    unseen=("yellow", "brown"),
    corner=("height", "thick"),
    proportion=("z", "x", 1.5, 1.74, "short", "tall"),
)
def cactus(d: Sketch) -> None:
    h, r, arm = d.number("height", 0.75, 1.2), d.number("thick", 0.16, 0.23), d.number("arm", 0.25, 0.4)
    d.paint("body", *(SKIN if d.toss(0.5) else ("green",)))
    stand_pot(d, d.number("pot", 0.34, 0.46), d.number("deep", 0.2, 0.3))
    d.rod("body", (0, 0, 0), (0, 0, h - r), r)
    count = d.count("arms", 1, 2)
    first = 1 if d.toss(0.5) else -1
    for i in range(count):
        s, z, thin = first * (-1) ** i, h * (0.3 + 0.2 * i), r * 0.62
        x = s * (r + 0.2)
        d.rod("body", (0, 0, z), (x, 0, z), thin)
        d.rod("body", (x, 0, z), (x, 0, z + arm), thin)
    if d.has("flower", 0.5):
        d.paint("flower", "pink", "red", "yellow", "white", "orange", "purple")
        d.ball("flower", (0, 0, h + 0.03), (0.15, 0.15, 0.09))
        for i in range(5):
            a = 2 * pi * i / 5
            d.ball("flower", (0.12 * cos(a), 0.12 * sin(a), h + 0.06), 0.08)


@category(
    "flower",
    main="petals",
    mention=("pot", "center", "leaves"),
    unseen=("green", "gray"),
    corner=("height", "petals"),
    proportion=("z", "x", 1.6, 1.79, "short", "tall"),
)
def flower(d: Sketch) -> None:
    h, reach, core = (
        d.number("height", 0.7, 1.1),
        d.number("petals", 0.22, 0.3),
        d.number("center", 0.14, 0.19),
    )
    d.paint("petals", finish=d.style("matte", "plastic"))
    d.paint("center", "yellow", "yellow", "orange", "brown", "black", "white", "red", finish="matte")
    d.paint("stem", "green", finish="matte")
    d.paint("leaves", "green", finish="matte")
    stand_pot(d, d.number("pot", 0.28, 0.38), d.number("deep", 0.2, 0.3))
    d.cone("stem", (0, 0, h / 2), h / 2, 0.05, 0.05)
    count = int(d.rng.integers(5, 8))
    for i in range(count):
        a = 360 * i / count + 90
        out = core * 0.7 + reach * 0.75
        x, z = out * cos(a * pi / 180), out * sin(a * pi / 180)
        d.ball("petals", (x, -0.08, h + z), (reach, 0.06, pi * out / count * 0.95), (0, -a, 0))
    d.ball("center", (0, -0.11, h), (core, 0.09, core))
    for s in SIDES:
        d.ball("leaves", (s * 0.2, 0, h * (0.3 + 0.06 * s)), (0.2, 0.09, 0.05), (0, -30 * s, 0))


@category(
    "apple",
    main="body",
    mention=("leaf", "bite", "stem"),
    unseen=("purple", "white"),
    corner=("radius", "stem"),
    proportion=("z", "x", 0.92, 1.03, "wide", "tall"),
)
def apple(d: Sketch) -> None:
    ring, tube, tall = (
        d.number("radius", 0.18, 0.28),
        d.number("tube", 0.28, 0.34),
        d.number("height", 0.45, 0.62),
    )
    length = d.number("stem", 0.16, 0.26)
    d.paint("body", finish=d.style("plastic", "matte", "metal"))
    d.paint("stem", "brown", "black", "green", finish="wood")
    wide, top = ring + tube, tube * 0.75
    d.ring("body", (0, 0, 0), ring, tube)  # the shoulders, with the dimple
    d.dome("body", (0, 0, -0.02), (wide, wide, tall), (180, 0, 0))
    d.rod("stem", (0, 0, top - 0.1), (0.06, 0, top + length), 0.045)
    if d.has("leaf", 0.65):
        d.paint("leaf", "green", "green", "yellow", "brown", "red", finish="matte")
        d.ball("leaf", (0.22, 0, top + length * 0.8), (0.2, 0.1, 0.05), (0, -25, 0))
    if d.has("bite", 0.25):
        d.paint("bite", "white", "beige", "yellow", finish="matte")
        for z in (0.1, -0.14):
            d.ball("bite", (-wide, -0.1, z), 0.2, operation=CARVE)


PLANTS = (tree, mushroom, cactus, flower, apple)
