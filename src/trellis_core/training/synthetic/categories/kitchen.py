"""Mugs, bottles, vases, teapots and cupcakes."""

from __future__ import annotations

from math import cos, pi, sin

from trellis_core.training.synthetic.categories.sketch import SIDES, Sketch, category
from trellis_core.training.synthetic.shapes import CARVE


@category(
    "mug",
    "cup",
    main="body",
    mention=("handle", "stripe", "inside"),
    unseen=("yellow", "brown"),
    corner=("radius", "handle"),
    proportion=("z", "x", 0.72, 0.89, "wide", "tall"),
)
def mug(d: Sketch) -> None:
    r, h, wall = d.number("radius", 0.4, 0.55), d.number("height", 0.38, 0.7), d.number("wall", 0.08, 0.11)
    reach, tube = d.number("handle", 0.5, 0.62), d.number("tube", 0.075, 0.1)
    low = d.number("taper", 0.75, 0.92) if d.toss(0.5) else 1.0
    d.paint("body")
    d.paint("inside", like="body", share=0.3)
    d.paint("handle", like="body", share=0.5)
    d.ring("handle", (r * (1 + low) / 2, 0, 0), h * reach, tube, (90, 0, 0))
    d.cone("body", (0, 0, 0), h, r * low, r)
    if d.has("stripe", 0.4):
        d.paint("stripe")
        z = d.number("stripe", -0.3, 0.3) * h
        at = r * (low + (1 - low) * (z / h + 1) / 2) + 0.025
        d.cone("stripe", (0, 0, z), 0.11, at, at)
    d.cone("inside", (0, 0, wall), h, r * low - wall, r - wall, operation=CARVE)


@category(
    "bottle",
    main="body",
    mention=("label", "cap"),
    unseen=("pink", "orange"),
    corner=("height", "neck"),
    proportion=("z", "x", 2.08, 2.46, "wide", "tall"),
)
def bottle(d: Sketch) -> None:
    r, h, shoulder = (
        d.number("radius", 0.28, 0.42),
        d.number("height", 0.35, 0.7),
        d.number("shoulder", 0.1, 0.3),
    )
    neck, length = d.number("neck", 0.1, 0.15), d.number("length", 0.08, 0.2)
    d.paint("body")
    d.paint("cap", like="body", share=0.15)
    d.cone("body", (0, 0, 0), h, r, r)
    d.cone("body", (0, 0, h + shoulder / 2), shoulder / 2, r, neck)
    d.cone("body", (0, 0, h + shoulder + length), length, neck, neck)
    d.cone("cap", (0, 0, h + shoulder + 2 * length), 0.1, neck * 1.3, neck * 1.25)
    if d.has("label", 0.5):
        d.paint("label", finish="matte")
        z, half = d.number("label", -0.25, 0.1) * h, h * d.number("paper", 0.3, 0.5)
        d.cone("label", (0, 0, z), half, r + 0.025, r + 0.025)


@category(
    "vase",
    main="body",
    mention=("stripe", "handles", "inside"),
    unseen=("red", "gray"),
    corner=("height", "belly"),
    proportion=("z", "x", 1.33, 1.76, "wide", "tall"),
)
def vase(d: Sketch) -> None:
    h, belly = d.number("height", 0.4, 0.7), d.number("belly", 0.34, 0.5)
    neck, rim, rise = d.number("neck", 0.14, 0.2), d.number("rim", 0.22, 0.32), d.number("rise", 0.1, 0.25)
    d.paint("body")
    d.paint("inside", like="body", share=0.4)
    d.ball("body", (0, 0, 0), (belly, belly, h))
    d.cone("body", (0, 0, -h * 0.92), 0.1, belly * 0.62, belly * 0.5)
    d.cone("body", (0, 0, h * 0.85 + rise), rise + h * 0.1, neck, rim)
    d.cone("inside", (0, 0, h * 0.95 + rise), rise + h * 0.1, neck - 0.07, rim - 0.07, operation=CARVE)
    if d.has("stripe", 0.45):
        d.paint("stripe")
        d.cone("stripe", (0, 0, 0), h * 0.22, belly + 0.015, belly + 0.015)
    if d.has("handles", 0.4):
        d.paint("handles", like="body", share=0.5)
        for s in SIDES:
            d.ring("handles", (s * belly * 0.75, 0, h * 0.62), h * 0.32, 0.06, (90, 0, 0))


@category(
    "teapot",
    main="body",
    mention=("lid", "handle", "spout"),
    unseen=("gray", "green"),
    corner=("belly", "spout"),
    proportion=("z", "x", 0.6, 0.67, "wide", "tall"),
)
def teapot(d: Sketch) -> None:
    r, h = d.number("belly", 0.44, 0.56), d.number("height", 0.34, 0.5)
    spout, lift, tube = (
        d.number("spout", 0.22, 0.36),
        d.number("lift", 0.6, 1.0),
        d.number("tube", 0.065, 0.085),
    )
    d.paint("body")
    d.paint("lid", like="body", share=0.35)
    d.paint("handle", like=d.style("body", "lid"), share=0.7)
    d.paint("spout", like="body", share=0.6)
    d.ball("body", (0, 0, 0), (r, r, h))
    d.cone("body", (0, 0, -h * 0.93), 0.07, r * 0.62, r * 0.55)
    d.dome("lid", (0, 0, h * 0.84), (r * 0.55, r * 0.55, h * 0.4))
    d.ball("lid", (0, 0, h * 1.3), 0.1)
    d.ring("handle", (r * 0.95, 0, h * 0.1), h * 0.62, tube, (90, 0, 0))
    tip = (-r - spout, 0.0, h * lift)
    d.taper("spout", (-r * 0.7, 0.0, -h * 0.25), tip, 0.16, 0.075)
    d.taper("spout", tip, (tip[0] - 0.1, 0.0, tip[2] + 0.05), 0.08, 0.09)


@category(
    "cupcake",
    main="icing",
    mention=("wrapper", "cherry", "sprinkles"),
    unseen=("blue", "beige"),
    corner=("radius", "layers"),
    proportion=("z", "x", 1.36, 1.51, "wide", "tall"),
)
def cupcake(d: Sketch) -> None:
    r, h, low = d.number("radius", 0.42, 0.52), d.number("cup", 0.22, 0.36), d.number("taper", 0.68, 0.85)
    layer = d.number("layers", 0.16, 0.22)
    d.paint("icing", finish=d.style("matte", "plastic"))
    d.paint("wrapper", like="icing", share=0.1)
    d.cone("wrapper", (0, 0, 0), h, r * low, r)
    count = 3
    sizes = [r * f for f in (1.08, 0.8, 0.5)]
    for i in range(count):
        d.ball("icing", (0, 0, h + layer * (0.35 + 1.25 * i)), (sizes[i], sizes[i], layer * 1.15))
    top = h + layer * (0.35 + 1.25 * (count - 1)) + layer * 1.1
    if d.has("cherry", 0.6):
        d.paint("cherry", "red", "red", "purple", "pink", "yellow", finish="plastic")
        d.ball("cherry", (0, 0, top + 0.05), 0.12)
    else:
        d.cone("icing", (0, 0, top), 0.12, 0.16, 0.02)
    if d.has("sprinkles", 0.45):
        d.paint("sprinkles")
        for i in range(10):
            a, row = 2 * pi * i / 5 + 0.6 * (i // 5), i // 5
            radius = sizes[row] * 0.93
            z = h + layer * (0.35 + 1.25 * row) + layer * 0.5
            d.ball("sprinkles", (radius * cos(a), radius * sin(a), z), 0.065)


KITCHEN = (mug, bottle, vase, teapot, cupcake)
