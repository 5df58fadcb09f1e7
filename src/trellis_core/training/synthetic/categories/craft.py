"""Airplanes, helicopters, rockets and boats."""

from __future__ import annotations

from math import cos, pi, sin

from trellis_core.training.synthetic.categories.sketch import SIDES, Sketch, category
from trellis_core.training.synthetic.shapes import CARVE

GLASS = ("cyan", "black", "white", "blue", "gray")


@category(
    "airplane",
    "plane",
    "aeroplane",
    main="body",
    mention=("wings", "tail", "engines"),
    unseen=("green", "brown"),
    corner=("length", "span"),
    proportion=("x", "y", 0.93, 1.15, "narrow", "wide"),
)
def airplane(d: Sketch) -> None:
    l, r, span = d.number("length", 0.7, 1.0), d.number("radius", 0.14, 0.2), d.number("span", 0.7, 1.1)
    chord, at = d.number("chord", 0.16, 0.22), d.number("at", -0.15, 0.05)
    d.paint("body")
    d.paint("wings", like="body", share=0.25)
    d.paint("tail", like="wings", share=0.6)
    d.paint("cockpit", *GLASS, finish="plastic")
    d.ball("body", (0, 0, 0), (r, l, r))
    lift = (-0.4, 0.0, 0.6)[d.rng.integers(3)] * r
    d.box("wings", (0, at, lift), (span, chord, 0.04), edge=0.02)
    d.box("tail", (0, l * 0.85, r * 0.3), (span * 0.38, chord * 0.65, 0.035), edge=0.02)
    d.box("tail", (0, l * 0.88, r * 0.3 + 0.17), (0.035, chord * 0.6, 0.19), edge=0.02)
    d.ball("cockpit", (0, -l * 0.58, r * 0.6), (r * 0.6, 0.18, r * 0.55))
    if d.has("engines", 0.45):
        d.paint("engines", like="wings", share=0.2)
        for s in SIDES:
            d.cone("engines", (s * span * 0.45, at - chord * 0.6, lift - 0.08), 0.17, 0.09, 0.09, (90, 0, 0))


@category(
    "helicopter",
    main="body",
    mention=("rotor", "tail", "skids"),
    unseen=("purple", "beige"),
    corner=("body", "tail"),
    proportion=("x", "z", 1.8, 1.94, "short", "long"),
)
def helicopter(d: Sketch) -> None:
    l, r, tail = d.number("body", 0.36, 0.48), d.number("radius", 0.24, 0.3), d.number("tail", 0.5, 0.7)
    span = d.number("rotor", 0.6, 0.85)
    d.paint("body")
    d.paint("tail", like="body", share=0.6)
    d.paint("rotor", like="body", share=0.1)
    d.paint("skids", like="rotor", share=0.5)
    d.paint("windows", *GLASS, finish="plastic")
    d.ball("body", (0, 0, 0), (l, r, r * 1.05))
    d.ball("windows", (-l * 0.48, 0, r * 0.2), (l * 0.5, r * 0.92, r * 0.68))
    d.taper("tail", (l * 0.5, 0, r * 0.2), (l + tail, 0, r * 0.45), r * 0.45, 0.06)
    d.box("tail", (l + tail, 0, r * 0.45 + 0.12), (0.09, 0.04, 0.2), (0, 12, 0))
    top = r * 1.05 + 0.12
    d.cone("rotor", (0, 0, top - 0.05), 0.12, 0.08, 0.06)
    start = d.number("turn", -30, 30)
    d.box("rotor", (0, 0, top + 0.07), (span, 0.075, 0.04), (0, 0, start))
    if d.count("blades", 1, 2) == 2:
        d.box("rotor", (0, 0, top + 0.07), (0.075, span, 0.04), (0, 0, start))
    d.counts["blades"] *= 2
    foot = -r * 1.05 - 0.14
    for s in SIDES:
        d.rod("skids", (-l * 0.85, s * r * 0.85, foot), (l * 0.75, s * r * 0.85, foot), 0.045)
        for x in (-0.4, 0.35):
            d.rod("skids", (x * l, s * r * 0.5, -r * 0.7), (x * l, s * r * 0.85, foot), 0.04)


@category(
    "rocket",
    main="body",
    mention=("tip", "fins", "window"),
    unseen=("yellow", "brown"),
    corner=("height", "radius"),
    proportion=("z", "x", 1.79, 2.13, "short", "tall"),
)
def rocket(d: Sketch) -> None:
    r, h, nose = d.number("radius", 0.2, 0.3), d.number("height", 0.5, 0.85), d.number("nose", 0.15, 0.25)
    size, start = d.number("fin", 0.15, 0.24), (0.0, 45.0)[d.rng.integers(2)]
    d.paint("body")
    d.paint("tip", like="body", share=0.1)
    d.paint("fins", like="tip", share=0.45)
    d.paint("nozzle", "gray", "black", finish="metal")
    d.cone("body", (0, 0, 0), h, r, r)
    d.cone("tip", (0, 0, h + nose), nose, r, 0.03)
    d.cone("nozzle", (0, 0, -h - 0.07), 0.08, r * 0.75, r * 0.5)
    count = d.count("fins", 3, 4)
    for i in range(count):
        a = start + 360 * i / count - 90
        x, y = cos(a * pi / 180), sin(a * pi / 180)
        d.prism("fins", (x * r, y * r, -h + size), (size * 1.6, 0.04, size * 1.25), (0, 0, a))
    if d.has("window", 0.6):
        d.paint("window", "cyan", "white", "yellow", "black", "blue", finish="plastic")
        d.wheel("window", (0, -r, h * d.number("window", 0.25, 0.55)), max(0.12, r * 0.5), 0.045)


@category(
    "boat",
    "ship",
    main="hull",
    mention=("sail", "cabin", "funnel", "deck"),
    unseen=("pink", "gray"),
    corner=("length", "width"),
    proportion=("x", "z", 1.32, 1.82, "short", "long"),
)
def boat(d: Sketch) -> None:
    l, w, deep = d.number("length", 0.7, 1.0), d.number("width", 0.27, 0.36), d.number("deep", 0.24, 0.33)
    d.paint("hull")
    d.paint("deck", "brown", "beige", "white", "gray", finish="wood")
    d.dome("hull", (0, 0, 0), (l, w, deep), (180, 0, 0))
    d.dome("deck", (0, 0, 0.02), (l * 0.9, w * 0.8, 0.15), (180, 0, 0), CARVE)
    if d.has("sail", 0.55):
        d.paint("sail", finish="matte")
        d.paint("mast", "brown", "beige", "white", "black", finish="wood")
        mast, x = d.number("mast", 0.8, 1.2), d.number("at", -0.1, 0.1)
        d.cone("mast", (x, 0, mast / 2 - 0.1), mast / 2 + 0.1, 0.05, 0.045)
        high, foot = mast * 0.42, d.number("foot", 0.35, 0.5)
        d.prism("sail", (x, 0.02, mast - high), (foot, 0.04, high))
        return
    d.extras.append("cabin")
    d.paint("cabin", like="hull", share=0.1)
    d.paint("funnel", like="cabin", share=0.15)
    high, at = d.number("cabin", 0.15, 0.22), d.number("at", -0.1, 0.1)
    d.extras.append("funnel")
    d.box("cabin", (at, 0, high - 0.1), (l * 0.38, w * 0.55, high), edge=0.03)
    d.cone("funnel", (at + 0.12, 0, high * 2 + 0.06), 0.2, 0.1, 0.1)
    if d.toss(0.5):
        d.box("cabin", (at - l * 0.16, 0, high * 2), (l * 0.16, w * 0.42, 0.11), edge=0.02)


CRAFT = (airplane, helicopter, rocket, boat)
