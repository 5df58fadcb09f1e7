"""Chairs, stools, tables, lamps, sofas, beds and bookshelves."""

from __future__ import annotations

from math import cos, hypot, pi, sin

from trellis_core.training.synthetic.categories.sketch import CORNERS, SIDES, Sketch, category
from trellis_core.training.synthetic.shapes import ADD, CARVE


def stand_leg(
    d: Sketch, x: float, y: float, top: float, radius: float, round_: bool, splay: float = 0.0
) -> None:
    """A leg standing at (x, y) below height `top`; `splay` degrees lean its foot outwards."""
    reach = hypot(x, y) or 1.0
    turn = (splay * y / reach, -splay * x / reach, 0.0)
    if round_:
        d.cone("legs", (x, y, top / 2), top / 2, radius * 0.85, radius, turn)
    else:
        d.box("legs", (x, y, top / 2), (radius, radius, top / 2), turn)


@category(
    "chair",
    main="seat",
    mention=("legs", "back", "armrests"),
    unseen=("purple", "orange"),
    corner=("height", "width"),
    proportion=("z", "x", 1.74, 2.09, "wide", "tall"),
)
def chair(d: Sketch) -> None:
    w, l, h = d.number("width", 0.38, 0.55), d.number("depth", 0.38, 0.52), d.number("height", 0.6, 1.0)
    t, r, back = d.number("plate", 0.06, 0.09), d.number("leg", 0.06, 0.085), d.number("back", 0.35, 0.6)
    d.paint("seat")
    d.paint("legs", like="seat", share=0.35)
    d.paint("back", like=d.style("seat", "legs"), share=0.75)
    round_ = d.toss(0.5)
    d.box("seat", (0, 0, h), (w, l, t), edge=0.03)
    for sx, sy in CORNERS:
        stand_leg(d, sx * (w - r), sy * (l - r), h, r, round_)
    y, z = l - t, h + back
    style = d.style("solid", "slats", "rungs")
    if style == "solid":
        d.box("back", (0, y, z), (w, t, back), edge=0.03)
    else:
        for s in SIDES:
            d.box("back", (s * (w - r), y, z), (r, t, back))
        d.box("back", (0, y, z + back - 0.08), (w, t, 0.1), edge=0.02)
        if style == "slats":
            for x in (-0.45, 0, 0.45):
                d.box("back", (x * w, y, z), (0.055, t * 0.8, back))
        else:
            d.box("back", (0, y, h + back * 0.75), (w, t * 0.8, 0.08))
    if d.has("armrests", 0.35):
        d.paint("armrests", like="legs", share=0.6)
        arm = d.number("arm", 0.24, 0.32)
        for s in SIDES:
            d.box("armrests", (s * (w - r), 0, h + arm), (r, l, 0.06))
            d.box("armrests", (s * (w - r), -l + r, h + arm / 2), (r, r, arm / 2))


@category(
    "stool",
    main="seat",
    mention=("legs", "footrest"),
    unseen=("green", "pink"),
    corner=("height", "leg"),
    proportion=("z", "x", 0.99, 1.28, "short", "tall"),
)
def stool(d: Sketch) -> None:
    r, h, t = d.number("radius", 0.35, 0.5), d.number("height", 0.6, 1.2), d.number("plate", 0.06, 0.1)
    width = d.number("leg", 0.055, 0.08)
    d.paint("seat")
    d.paint("legs", like="seat", share=0.35)
    if d.shape("round", "square") == "round":
        d.cone("seat", (0, 0, h), t, r, r)
    else:
        d.box("seat", (0, 0, h), (r, r, t), edge=0.04)
    count, round_ = d.count("legs", 3, 4), d.toss(0.6)
    start = pi / 4 if count == 4 else -pi / 2
    for i in range(count):
        a = start + 2 * pi * i / count
        stand_leg(d, 0.75 * r * cos(a), 0.75 * r * sin(a), h, width, round_, 8)
    if d.has("footrest", 0.35):
        d.paint("footrest", like="legs", share=0.6)
        d.ring("footrest", (0, 0, h * 0.4), 0.84 * r, 0.05)


@category(
    "table",
    main="top",
    mention=("legs", "foot", "shelf"),
    unseen=("cyan", "purple"),
    corner=("width", "height"),
    proportion=("z", "x", 0.46, 0.62, "low", "tall"),
)
def table(d: Sketch) -> None:
    w, l, h = d.number("width", 0.55, 1.0), d.number("depth", 0.45, 0.6), d.number("height", 0.5, 0.95)
    t, r = d.number("plate", 0.05, 0.08), d.number("leg", 0.06, 0.09)
    d.paint("top")
    if d.shape("round", "") == "round":
        d.paint("foot", like="top", share=0.35)
        radius = 0.35 + 0.45 * w
        d.cone("top", (0, 0, h), t, radius, radius)
        d.cone("foot", (0, 0, h / 2), h / 2, 1.6 * r, 1.2 * r)
        d.cone("foot", (0, 0, 0.05), 0.05, radius * 0.6, radius * 0.45)
        return
    d.paint("legs", like="top", share=0.35)
    round_ = d.toss(0.4)
    d.box("top", (0, 0, h), (w, l, t), edge=0.02)
    for sx, sy in CORNERS:
        stand_leg(d, sx * (w - 1.4 * r), sy * (l - 1.4 * r), h, r, round_)
    if d.has("shelf", 0.3):
        d.paint("shelf", like="top", share=0.6)
        d.box("shelf", (0, 0, h * 0.35), (w - r, l - r, 0.045))


@category(
    "lamp",
    main="shade",
    mention=("stand",),
    unseen=("brown", "cyan"),
    corner=("height", "base"),
    proportion=("z", "x", 1.89, 2.35, "short", "tall"),
)
def lamp(d: Sketch) -> None:
    h, base, pole = d.number("height", 0.9, 1.9), d.number("base", 0.25, 0.4), d.number("pole", 0.06, 0.09)
    r, high = d.number("radius", 0.38, 0.52), d.number("shade", 0.22, 0.34)
    d.paint("shade")
    d.paint("stand", like="shade", share=0.15)
    d.cone("stand", (0, 0, 0.05), 0.05, base, base * 0.85)
    d.cone("stand", (0, 0, h / 2), h / 2, pole, pole)
    style = d.style("cone", "ball", "drum")
    if style == "cone":
        d.cone("shade", (0, 0, h), high, r, r * 0.45)
    elif style == "ball":
        d.ball("shade", (0, 0, h), r * 0.85)
    else:
        d.cone("shade", (0, 0, h), high, r * 0.85, r * 0.85)


@category(
    "sofa",
    "couch",
    main="body",
    mention=("cushions", "legs"),
    unseen=("orange", "cyan"),
    corner=("width", "back"),
    proportion=("x", "z", 1.67, 2.02, "small", "long"),
)
def sofa(d: Sketch) -> None:
    w, l, back = d.number("width", 0.75, 1.2), d.number("depth", 0.38, 0.48), d.number("back", 0.3, 0.45)
    arm, thick, foot = d.number("arm", 0.2, 0.28), d.number("side", 0.1, 0.15), d.number("foot", 0.08, 0.15)
    finish = d.style("matte", "plastic", "wood")
    d.paint("body", finish=finish)
    d.paint("cushions", finish="matte", like="body", share=0.2)
    d.paint("legs", "brown", "black", "gray", "beige", "white")
    d.box("body", (0, 0, foot + 0.12), (w, l, 0.12), edge=0.04)
    d.box("body", (0, l - 0.1, foot + 0.2 + back), (w, 0.11, back), edge=0.06)
    round_ = d.toss(0.5)
    for s in SIDES:
        x = s * (w - thick)
        d.box("body", (x, 0, foot + 0.2 + arm / 2), (thick, l, arm), edge=0.04)
        if round_:
            d.wheel("body", (x, 0, foot + 0.2 + 1.5 * arm), thick * 1.15, l)
    count = d.count("cushions", 2, 3)
    half = (w - 2 * thick) / count
    for i in range(count):
        x = (2 * i + 1 - count) * half
        d.box("cushions", (x, -0.06, foot + 0.31), (half * 0.95, l - 0.06, 0.1), edge=0.05)
    for sx, sy in CORNERS:
        d.cone("legs", (sx * (w - 0.12), sy * (l - 0.1), foot / 2), foot / 2 + 0.02, 0.05, 0.065)


@category(
    "bed",
    main="blanket",
    mention=("frame", "pillows"),
    unseen=("black", "green"),
    corner=("width", "headboard"),
    proportion=("x", "y", 0.54, 0.68, "narrow", "wide"),
)
def bed(d: Sketch) -> None:
    w, l, high = d.number("width", 0.45, 0.8), d.number("length", 0.85, 1.0), d.number("height", 0.12, 0.3)
    board, share = d.number("headboard", 0.2, 0.45), d.number("blanket", 0.5, 0.75)
    d.paint("blanket", finish="matte")
    d.paint("frame", finish=d.style("wood", "metal", "plastic"))
    d.paint("mattress", "white", "beige", "gray", finish="matte")
    d.paint("pillows", finish="matte", like="mattress", share=0.4)
    d.box("frame", (0, 0, high), (w, l, 0.08))
    d.box("frame", (0, l, high + board / 2), (w, 0.06, board + high / 2), edge=0.03)
    if d.toss(0.5):
        d.box("frame", (0, -l, high + 0.08), (w, 0.055, 0.2), edge=0.03)
    for sx, sy in CORNERS:
        d.box("frame", (sx * (w - 0.07), sy * (l - 0.07), high / 2), (0.07, 0.07, high / 2))
    top = high + 0.2
    d.box("mattress", (0, 0, top), (w * 0.95, l * 0.96, 0.12), edge=0.05)
    d.box(
        "blanket",
        (0, -l * (0.98 - share), top + 0.01),
        (w * 0.99, l * share * 0.98, 0.15),
        edge=0.06,
    )
    count = d.count("pillows", 1, 2)
    half = w * 0.85 / count
    for i in range(count):
        d.box(
            "pillows", ((2 * i + 1 - count) * half, l * 0.72, top + 0.14), (half * 0.85, 0.16, 0.1), edge=0.07
        )


@category(
    "bookshelf",
    "shelf",
    main="body",
    mention=("books", "inside"),
    unseen=("pink", "blue"),
    corner=("height", "depth"),
    proportion=("z", "x", 1.4, 1.72, "wide", "tall"),
)
def bookshelf(d: Sketch) -> None:
    w, l, h = d.number("width", 0.4, 0.7), d.number("depth", 0.2, 0.3), d.number("height", 0.65, 1.05)
    t = d.number("plate", 0.05, 0.065)
    d.paint("body")
    d.paint("inside", like="body", share=0.6)
    books = d.has("books", 0.75)
    if books:
        d.paint("books", finish="matte")
    d.box("body", (0, 0, 0), (w, l, h))
    rows = d.count("shelves", 2, 4)
    half = (h - t) / rows
    for i in range(rows):
        z = (2 * i + 1 - rows) * half
        d.box("inside", (0, -t, z), (w - 2 * t, l, half - t), edge=0, operation=CARVE)
        if books and (i == 0 or d.toss(0.7)):
            share, tall = d.number("row", 0.45, 0.9), (half - t) * d.number("book", 0.65, 0.85)
            x = (w - 2 * t) * (1 - share) * (1 if d.toss(0.5) else -1)
            d.box(
                "books", (x, 0.02, z - half + t + tall), ((w - 2 * t) * share, l * 0.7, tall), operation=ADD
            )


FURNITURE = (chair, stool, table, lamp, sofa, bed, bookshelf)
