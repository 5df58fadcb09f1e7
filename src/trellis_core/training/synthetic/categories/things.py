"""Swords, hammers, guitars, gifts and crowns."""

from __future__ import annotations

from math import cos, pi, sin

from trellis_core.training.synthetic.categories.sketch import SIDES, Sketch, category
from trellis_core.training.synthetic.shapes import CARVE


@category(
    "sword",
    main="blade",
    mention=("guard", "grip"),
    unseen=("orange", "pink"),
    corner=("length", "guard"),
    proportion=("z", "x", 3.22, 4.07, "short", "long"),
)
def sword(d: Sketch) -> None:
    h, w, guard = d.number("length", 0.6, 1.0), d.number("width", 0.09, 0.13), d.number("guard", 0.25, 0.42)
    grip = d.number("grip", 0.16, 0.24)
    d.paint("blade", finish="metal")
    d.paint("guard")
    d.paint("grip", like="guard", share=0.15)
    tip = 0.22
    d.box("blade", (0, 0, h), (w, 0.045, h))
    d.prism("blade", (0, 0, 2 * h + tip / 2), (w, 0.045, tip / 2))
    d.box("guard", (0, 0, 0), (guard, 0.085, 0.065), edge=0.03)
    d.cone("grip", (0, 0, -grip), grip, 0.07, 0.075)
    d.ball("guard", (0, 0, -2 * grip - 0.05), 0.11)


@category(
    "hammer",
    main="head",
    mention=("handle",),
    unseen=("white", "green"),
    corner=("length", "head"),
    proportion=("z", "x", 1.99, 2.38, "short", "long"),
)
def hammer(d: Sketch) -> None:
    l, w, r = d.number("length", 0.6, 0.9), d.number("head", 0.33, 0.46), d.number("thick", 0.12, 0.17)
    thin = d.number("handle", 0.065, 0.095)
    d.paint("head", finish=d.style("metal", "metal", "wood", "plastic"))
    d.paint("handle", like="head", share=0.1)
    d.cone("handle", (0, 0, -l), l, thin * 1.25, thin)
    d.ball("handle", (0, 0, -2 * l), (thin * 1.4, thin * 1.4, 0.08))
    if d.toss(0.5):  # a mallet
        d.taper("head", (-w, 0, 0), (w, 0, 0), r * 1.25, r * 1.25)
        return
    d.taper("head", (-w, 0, 0), (-w * 0.55, 0, 0), r * 1.1, r * 1.1)
    d.box("head", (-w * 0.1, 0, 0), (w * 0.5, r * 0.8, r * 0.8))
    d.prism("head", (w * 0.6, 0, 0), (r * 0.9, r * 0.75, w * 0.45), (0, 90, 0))


@category(
    "guitar",
    main="body",
    mention=("neck", "hole", "head"),
    unseen=("cyan", "green"),
    corner=("lower", "neck"),
    proportion=("z", "x", 2.72, 2.9, "wide", "slim"),
)
def guitar(d: Sketch) -> None:
    low, high, neck = d.number("lower", 0.33, 0.4), d.number("upper", 0.25, 0.3), d.number("neck", 0.28, 0.4)
    thick = d.number("thick", 0.09, 0.14)
    d.paint("body", finish=d.style("wood", "plastic", "metal"))
    d.paint("neck", "brown", "black", "beige", "white", "red", "gray", finish="wood")
    d.paint("head", like="neck", share=0.6)
    d.paint("hole", "black", "black", "brown", "white", "yellow", finish="matte")
    up = (low + high) * 0.72
    d.wheel("body", (0, 0, 0), low, thick)
    d.wheel("body", (0, 0, up), high, thick)
    front = -thick
    d.wheel("hole", (0, front, up * 0.55), 0.14, 0.035)
    d.box("hole", (0, front, -low * 0.4), (0.18, 0.045, 0.068))
    start, end = up + high * 0.35, up + high + 2 * neck
    d.box("neck", (0, front - 0.01, (start + end) / 2), (0.065, 0.06, (end - start) / 2))
    d.box("head", (0, front + 0.01, end + 0.13), (0.115, 0.05, 0.15))
    for s in SIDES:
        for z in (0.05, 0.2):
            d.ball("head", (s * 0.14, front + 0.01, end + z), (0.05, 0.045, 0.045))


@category(
    "gift",
    "present",
    main="box",
    mention=("ribbon", "lid"),
    unseen=("beige", "gray"),
    corner=("width", "height"),
    proportion=("z", "x", 0.99, 1.24, "flat", "tall"),
)
def gift(d: Sketch) -> None:
    w, l, h = d.number("width", 0.36, 0.6), d.number("depth", 0.34, 0.5), d.number("height", 0.25, 0.52)
    band, bow = d.number("band", 0.075, 0.11), d.number("bow", 0.15, 0.2)
    d.paint("box", finish=d.style("matte", "plastic", "metal"))
    d.paint("ribbon", like="box", share=0.03)
    d.paint("lid", like="box", share=0.5)
    d.box("box", (0, 0, 0), (w, l, h))
    d.box("lid", (0, 0, h), (w + 0.045, l + 0.045, 0.09))
    top = h + 0.09
    d.box("ribbon", (0, 0, 0.02), (band, l + 0.075, h + 0.1), edge=0.005)
    d.box("ribbon", (0, 0, 0.02), (w + 0.075, band, h + 0.1), edge=0.005)
    for s in SIDES:
        d.ring("ribbon", (s * bow * 0.95, 0, top + bow * 0.75), bow * 0.8, 0.055, (90, 0, 0))
    d.ball("ribbon", (0, 0, top + bow * 0.4), 0.1)


@category(
    "crown",
    main="band",
    mention=("jewels", "inside"),
    unseen=("brown", "green"),
    corner=("radius", "spikes"),
    proportion=("z", "x", 0.68, 0.77, "flat", "tall"),
)
def crown(d: Sketch) -> None:
    r, h, spike = d.number("radius", 0.42, 0.52), d.number("height", 0.14, 0.22), d.number("spikes", 0.2, 0.3)
    d.paint("band", finish=d.style("metal", "metal", "plastic"))
    d.paint("jewels", finish="plastic")
    d.paint("inside", like="band", share=0.5)
    count = int(d.rng.integers(5, 8))
    d.cone("band", (0, 0, 0), h, r, r * 1.05)
    for i in range(count):
        a = 360 * i / count - 90
        x, y = r * cos(a * pi / 180), r * sin(a * pi / 180)
        d.prism("band", (x, y, h + spike * 0.7), (pi * r / count * 0.95, 0.075, spike), (0, 0, a + 90))
        d.ball("jewels", (x * 1.03, y * 1.03, h + spike * 1.65), 0.075)
        b = a + 180 / count
        d.ball("jewels", (1.07 * r * cos(b * pi / 180), 1.07 * r * sin(b * pi / 180), 0), 0.08)
    d.cone("inside", (0, 0, 0.5), h + spike + 0.6, r - 0.09, r - 0.07, operation=CARVE)


THINGS = (sword, hammer, guitar, gift, crown)
