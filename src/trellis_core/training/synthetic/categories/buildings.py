"""Houses, castles and windmills."""

from __future__ import annotations

from math import cos, pi, sin

from trellis_core.training.synthetic.categories.sketch import CORNERS, SIDES, Sketch, category

GLASS = ("cyan", "white", "yellow", "black", "blue")


@category(
    "house",
    main="walls",
    mention=("roof", "door", "windows", "chimney"),
    unseen=("black", "pink"),
    corner=("width", "height"),
    proportion=("z", "x", 0.83, 1.09, "wide", "tall"),
)
def house(d: Sketch) -> None:
    w, l, h = d.number("width", 0.5, 0.85), d.number("depth", 0.45, 0.65), d.number("height", 0.32, 0.6)
    rise, over = d.number("rise", 0.2, 0.35), 0.09
    d.paint("walls", finish="matte")
    d.paint("roof", finish="matte", like="walls", share=0.05)
    d.paint("door", finish="wood")
    d.paint("windows", *GLASS, finish="plastic")
    d.box("walls", (0, 0, 0), (w, l, h))
    along = d.toss(0.5)
    if along:
        d.prism("roof", (0, 0, h + rise), (w + over, l + over, rise))
    else:
        d.prism("roof", (0, 0, h + rise), (l + over, w + over, rise), (0, 0, 90))
    at = d.number("door", -0.3, 0.3) * w
    d.box("door", (at, -l, -h + 0.24), (0.13, 0.04, 0.24))
    for x in (-0.66, 0.66):
        if abs(x * w - at) > 0.28:
            d.box("windows", (x * w, -l, 0.05), (0.13, 0.035, 0.13))
    for s in SIDES:
        d.box("windows", (s * w, 0, 0.05), (0.035, 0.14, 0.13))
    if d.has("chimney", 0.45):
        d.paint("chimney", "red", "brown", "gray", "black", "white", "orange", finish="matte")
        x, y = (w * 0.5, l * 0.1) if along else (w * 0.5, l * 0.35)
        d.box("chimney", (x, y, h + rise * 1.35), (0.11, 0.11, rise * 0.9 + 0.05))


@category(
    "castle",
    main="walls",
    mention=("roofs", "gate", "flag"),
    unseen=("orange", "cyan"),
    corner=("width", "towers"),
    proportion=("z", "x", 0.91, 1.11, "wide", "tall"),
)
def castle(d: Sketch) -> None:
    w, l, h = d.number("width", 0.42, 0.65), d.number("depth", 0.38, 0.5), d.number("height", 0.3, 0.45)
    r, tower = d.number("towers", 0.15, 0.2), d.number("tower", 0.45, 0.65)
    d.paint("walls", finish="matte")
    d.paint("roofs", finish="matte", like="walls", share=0.05)
    d.paint("gate", "brown", "black", "red", "blue", "gray", finish="wood")
    d.box("walls", (0, 0, 0), (w, l, h))
    pointed = d.toss(0.65)
    for sx, sy in CORNERS:
        d.cone("walls", (sx * w, sy * l, tower - h), tower, r, r)
        if pointed:
            d.cone("roofs", (sx * w, sy * l, 2 * tower - h + 0.2), 0.2, r * 1.25, 0.03)
        else:
            d.cone("roofs", (sx * w, sy * l, 2 * tower - h), 0.07, r * 1.2, r * 1.2)
    count = 3
    for i in range(count):
        x = (2 * i + 1 - count) * w * 0.36
        d.box("walls", (x, -l + 0.06, h + 0.06), (0.075, 0.06, 0.08))
    d.box("gate", (0, -l, -h + 0.17), (0.14, 0.05, 0.17))
    d.wheel("gate", (0, -l, -h + 0.34), 0.14, 0.05)
    high = h + d.number("keep", 0.2, 0.4)
    d.box("walls", (0, 0.1, h + (high - h) / 2), (w * 0.45, l * 0.45, (high - h) / 2 + 0.02))
    if d.has("flag", 0.5):
        d.paint("flag")
        top = high + 0.5
        d.cone("walls", (0, 0.1, (high + top) / 2), (top - high) / 2, 0.035, 0.035)
        d.box("flag", (0.15, 0.1, top - 0.11), (0.16, 0.03, 0.11))


@category(
    "windmill",
    main="tower",
    mention=("blades", "roof", "door"),
    unseen=("purple", "yellow"),
    corner=("height", "blades"),
    proportion=("z", "x", 1.42, 1.63, "wide", "tall"),
)
def windmill(d: Sketch) -> None:
    h, foot, reach = (
        d.number("height", 0.65, 0.95),
        d.number("foot", 0.36, 0.48),
        d.number("blades", 0.5, 0.72),
    )
    top = foot * d.number("taper", 0.58, 0.75)
    d.paint("tower", finish=d.style("matte", "wood"))
    d.paint("roof", finish="matte", like="tower", share=0.1)
    d.paint("blades", finish=d.style("wood", "plastic"))
    d.paint("door", finish="wood")
    d.paint("windows", *GLASS, finish="plastic")
    d.cone("tower", (0, 0, 0), h, foot, top)
    if d.toss(0.5):
        d.cone("roof", (0, 0, h + 0.17), 0.18, top * 1.2, 0.04)
    else:
        d.dome("roof", (0, 0, h - 0.01), (top * 1.1, top * 1.1, 0.3))
    y, z = -top - 0.12, h * 0.86
    d.wheel("blades", (0, y + 0.08, z), 0.09, 0.14)
    start = d.number("turn", 0, 90)
    for i in range(4):
        a = start + 90 * i
        x, up = sin(a * pi / 180), cos(a * pi / 180)
        middle = 0.15 + reach / 2
        d.box("blades", (x * reach / 2, y, z + up * reach / 2), (0.04, 0.04, reach / 2), (0, a, 0))
        d.box("blades", (x * middle, y, z + up * middle), (0.11, 0.035, reach / 2), (0, a, 0))
    slope = (foot - top) / (2 * h)
    d.box("door", (0, -foot + slope * 0.2 + 0.02, -h + 0.2), (0.12, 0.06, 0.2))
    d.box("windows", (0.0, -foot + slope * h * 0.95 + 0.01, -0.05 * h), (0.1, 0.075, 0.1))


BUILDINGS = (house, castle, windmill)
