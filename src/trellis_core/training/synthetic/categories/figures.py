"""Robots, snowmen, fish, ducks and dogs."""

from __future__ import annotations

from trellis_core.training.synthetic.categories.sketch import CORNERS, SIDES, Sketch, category

SNOW = ("cyan", "beige", "pink", "gray", "yellow", "purple", "green", "blue")
EYES = ("red", "green", "cyan", "yellow", "white", "black", "blue")


@category(
    "robot",
    main="body",
    mention=("arms", "legs", "head", "eyes", "antenna"),
    unseen=("pink", "beige"),
    corner=("width", "arm"),
    proportion=("z", "x", 1.7, 2.0, "wide", "tall"),
)
def robot(d: Sketch) -> None:
    w, l, h = d.number("width", 0.3, 0.42), d.number("depth", 0.2, 0.28), d.number("height", 0.3, 0.45)
    s, arm, thick = d.number("head", 0.21, 0.27), d.number("arm", 0.28, 0.42), d.number("limb", 0.08, 0.11)
    legs = d.number("leg", 0.22, 0.36)
    d.paint("body")
    d.paint("head", like="body", share=0.5)
    d.paint("arms", like="body", share=0.2)
    d.paint("legs", like=d.style("arms", "arms", "body"), share=0.7)
    d.paint("eyes", *EYES, finish="plastic")
    z = h + s + 0.04
    d.box("body", (0, 0, 0), (w, l, h), edge=0.04)
    d.cone("arms", (0, 0, h), 0.1, 0.09, 0.09)
    round_ = d.toss(0.4)
    if round_:
        d.ball("head", (0, 0, z), s * 1.1)
    else:
        d.box("head", (0, 0, z), (s * 1.1, s * 0.9, s), edge=0.03)
    front = -s * (0.97 if round_ else 0.88)
    for e in SIDES:
        d.ball("eyes", (e * s * 0.48, front, z + 0.05), (0.09, 0.065, 0.09))
        d.box("arms", (e * (w + thick), 0, h - arm), (thick, thick, arm), edge=0.03)
        d.box("legs", (e * w * 0.52, 0, -h - legs), (thick * 1.2, thick * 1.3, legs), edge=0.03)
    if d.has("antenna", 0.5):
        d.paint("antenna", like="eyes", share=0.6)
        d.cone("antenna", (0, 0, z + s + 0.1), 0.14, 0.045, 0.04)
        d.ball("antenna", (0, 0, z + s + 0.26), 0.085)


@category(
    "snowman",
    main="body",
    mention=("hat", "scarf", "nose", "buttons"),
    unseen=("beige", "purple"),
    corner=("radius", "shrink"),
    proportion=("z", "x", 1.86, 2.22, "short", "tall"),
)
def snowman(d: Sketch) -> None:
    d.paint("body", *(SNOW if d.toss(0.5) else ("white",)), finish="matte")
    r, shrink = d.number("radius", 0.42, 0.55), d.number("shrink", 0.7, 0.8)
    count, z, middle = int(d.rng.integers(2, 4)), 0.0, (0.0, 0.0)
    for i in range(count):
        d.ball("body", (0, 0, z), r)
        if i < count - 1:
            middle = (z, r)
            z += r * 0.78 + r * shrink * 0.78
            r *= shrink
    d.paint("nose", "orange", "orange", "red", "yellow", finish="matte")
    d.paint("eyes", "black", "brown", "blue", finish="matte")
    d.cone("nose", (0, -r - 0.1, z), 0.15, 0.085, 0.02, (90, 0, 0))
    for e in SIDES:
        d.ball("eyes", (e * r * 0.4, -r * 0.84, z + r * 0.34), 0.075)
    if d.has("hat", 0.6):
        d.paint("hat")
        tall = d.number("hat", 0.16, 0.24)
        d.cone("hat", (0, 0, z + r * 0.82), 0.045, r * 1.1, r * 1.1)
        d.cone("hat", (0, 0, z + r * 0.82 + tall), tall, r * 0.68, r * 0.62)
    if d.has("scarf", 0.5):
        d.paint("scarf")
        d.ring("scarf", (0, 0, z - r * 0.74), r * 0.74, 0.1)
    if d.has("buttons", 0.5):
        d.paint("buttons", like="eyes", share=0.5)
        at, size = middle
        for up in (-0.15, 0.3):
            d.ball("buttons", (0, -size * (1 - up * up) ** 0.5, at + up * size), 0.075)


@category(
    "fish",
    main="body",
    mention=("tail", "fins", "stripes"),
    unseen=("brown", "black"),
    corner=("length", "tail"),
    proportion=("x", "z", 1.78, 2.0, "short", "long"),
)
def fish(d: Sketch) -> None:
    l, h, w = d.number("length", 0.5, 0.72), d.number("height", 0.28, 0.38), d.number("width", 0.17, 0.25)
    tail = d.number("tail", 0.2, 0.28)
    d.paint("body")
    d.paint("tail", like="body", share=0.15)
    d.paint("fins", like="tail", share=0.65)
    d.paint("eyes", "black", "white", "yellow", "red", finish="plastic")
    d.ball("body", (0, 0, 0), (l, w, h))
    d.prism("tail", (l + tail * 0.55, 0, 0), (tail * 1.25, 0.05, tail * 0.75), (0, -90, 0))
    d.prism("fins", (0.08, 0, h * 0.98), (l * 0.45, 0.045, 0.15))
    for s in SIDES:
        d.ball("fins", (0.0, s * w * 1.05, -h * 0.3), (0.17, 0.045, 0.09), (0, 35, s * 20))
        d.ball("eyes", (-l * 0.62, s * w * 0.68, h * 0.25), 0.085)
    if d.has("stripes", 0.4):
        d.paint("stripes")
        for x in (-0.2, 0.3):
            f = (1 - x * x) ** 0.5
            d.ball("stripes", (x * l, 0, 0), (0.085, w * f + 0.03, h * f + 0.025))


@category(
    "duck",
    "bird",
    main="body",
    mention=("beak", "wings", "feet"),
    unseen=("red", "gray"),
    corner=("length", "head"),
    proportion=("x", "z", 1.04, 1.12, "short", "long"),
)
def duck(d: Sketch) -> None:
    l, h, r = d.number("length", 0.48, 0.62), d.number("height", 0.27, 0.36), d.number("head", 0.21, 0.27)
    neck = d.number("neck", 0.1, 0.24)
    d.paint("body", finish=d.style("plastic", "matte", "metal"))
    d.paint("beak", "orange", "orange", "red", "yellow", "black", "white", finish="plastic")
    d.paint("wings", like="body", share=0.4)
    d.paint("feet", like="beak", share=0.7)
    d.paint("eyes", "black", "white", "blue", finish="plastic")
    w = h * 1.1
    d.ball("body", (0, 0, 0), (l, w, h))
    d.cone("body", (l * 0.92, 0, h * 0.42), 0.17, 0.14, 0.04, (0, 50, 0))
    x, z = -l * 0.55, h + neck + r * 0.4
    d.rod("body", (x * 0.9, 0, h * 0.3), (x, 0, z), r * 0.62)
    d.ball("body", (x, 0, z), r)
    d.ball("beak", (x - r * 1.15, 0, z - 0.03), (0.2, 0.12, 0.065))
    for s in SIDES:
        d.ball("eyes", (x - r * 0.55, s * r * 0.62, z + r * 0.42), 0.075)
        d.ball("wings", (l * 0.12, s * w * 0.88, 0.05), (l * 0.55, 0.09, h * 0.52), (0, 12, 0))
        d.cone("feet", (0, s * w * 0.45, -h - 0.06), 0.14, 0.055, 0.055)
        d.box("feet", (-0.08, s * w * 0.45, -h - 0.2), (0.17, 0.11, 0.045), edge=0.03)


@category(
    "dog",
    "puppy",
    main="body",
    mention=("ears", "collar", "nose", "spots"),
    unseen=("cyan", "green"),
    corner=("length", "leg"),
    proportion=("x", "z", 1.51, 1.73, "short", "long"),
)
def dog(d: Sketch) -> None:
    l, w, h = d.number("length", 0.4, 0.62), d.number("width", 0.19, 0.25), d.number("height", 0.19, 0.25)
    leg, r, s = d.number("leg", 0.26, 0.42), d.number("thick", 0.075, 0.1), d.number("head", 0.2, 0.26)
    d.paint("body", finish=d.style("matte", "plastic", "wood"))
    d.paint("ears", like="body", share=0.3)
    d.paint("nose", "black", "black", "brown", "pink", finish="plastic")
    d.paint("eyes", "black", "blue", "brown", finish="plastic")
    z = leg + h
    d.box("body", (0, 0, z), (l, w, h), edge=0.09)
    for sx, sy in CORNERS:
        high = (leg + h) / 2  # up into the body, whose edges are round
        d.box("body", (sx * (l - r - 0.03), sy * (w - r - 0.015), high), (r, r, high), edge=0.04)
    x, up = -l - s * 0.35, z + h + s * 0.55
    d.taper("body", (-l * 0.75, 0, z), (x, 0, up), 0.15, 0.13)
    d.box("body", (x, 0, up), (s, s * 0.9, s * 0.85), edge=0.07)
    d.box("body", (x - s * 1.2, 0, up - s * 0.25), (s * 0.55, s * 0.5, s * 0.42), edge=0.05)
    d.ball("nose", (x - s * 1.75, 0, up - s * 0.02), (0.08, 0.09, 0.08))
    hanging = d.toss(0.6)
    for e in SIDES:
        d.ball("eyes", (x - s * 0.95, e * s * 0.5, up + s * 0.4), (0.06, 0.07, 0.07))
        if hanging:
            d.ball("ears", (x + s * 0.3, e * s * 0.98, up), (s * 0.42, 0.06, s * 0.8))
        else:
            d.prism(
                "ears", (x + s * 0.3, e * s * 0.55, up + s * 1.15), (s * 0.36, 0.07, s * 0.42), (0, 0, 90)
            )
    d.rod("body", (l * 0.9, 0, z + h * 0.5), (l + 0.24, 0, z + h + 0.22), 0.07)
    if d.has("collar", 0.5):
        d.paint("collar")
        front, rise = x + l * 0.75, up - z  # along the neck
        lower = (-l * 0.75 + 0.4 * front, 0.0, z + 0.4 * rise)
        upper = (-l * 0.75 + 0.62 * front, 0.0, z + 0.62 * rise)
        d.taper("collar", lower, upper, 0.24, 0.22)
    if d.has("spots", 0.35):
        d.paint("spots", "black", "brown", "white", "beige", "gray", finish="matte")
        for e in SIDES:
            d.ball("spots", (l * 0.1, e * w, z + h * 0.35), (0.17, 0.04, 0.13))
            d.ball("spots", (l * 0.62, e * w, z - h * 0.3), (0.13, 0.04, 0.1))


FIGURES = (robot, snowman, fish, duck, dog)
