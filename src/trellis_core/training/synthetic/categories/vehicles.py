"""Cars, trucks, buses and trains, heading towards -x."""

from __future__ import annotations

from trellis_core.training.synthetic.categories.sketch import SIDES, Sketch, category

GLASS = ("cyan", "black", "white", "gray", "blue")


def put_wheels(d: Sketch, places: list[float], y: float, radius: float, half: float) -> None:
    """Pairs of wheels standing on z = 0."""
    for x in places:
        for s in SIDES:
            d.wheel("wheels", (x, s * y, radius), radius, half)


@category(
    "car",
    main="body",
    mention=("windows", "wheels", "lights"),
    unseen=("brown", "purple"),
    corner=("length", "wheel"),
    proportion=("x", "z", 2.1, 2.42, "small", "long"),
)
def car(d: Sketch) -> None:
    l, w, r = d.number("length", 0.8, 1.1), d.number("width", 0.36, 0.45), d.number("wheel", 0.18, 0.25)
    body, high, at = d.number("body", 0.15, 0.2), d.number("cabin", 0.14, 0.2), d.number("at", -0.05, 0.25)
    d.paint("body")
    d.paint("windows", *GLASS, finish="plastic")
    d.paint("wheels", "black", "black", "black", "gray", "white", "red", finish="matte")
    d.paint("lights", "yellow", "white", "orange", finish="plastic")
    z = r + body * 0.6
    d.box("body", (0, 0, z), (l, w, body), edge=0.07)
    room = l * d.number("room", 0.45, 0.58)
    at = at * (l - room)
    d.box("windows", (at, 0, z + body + high * 0.7), (room, w * 0.88, high), edge=0.06)
    d.box("body", (at, 0, z + body + high * 1.7), (room * 0.94, w * 0.86, 0.055), edge=0.04)
    put_wheels(d, [-0.6 * l, 0.6 * l], w, r, 0.085)
    for s in SIDES:
        d.ball("lights", (-l * 0.98, s * w * 0.68, z + body * 0.15), (0.05, 0.085, 0.085))


@category(
    "truck",
    "lorry",
    main="cab",
    mention=("container", "tank", "load", "wheels"),
    unseen=("beige", "pink"),
    corner=("length", "height"),
    proportion=("x", "z", 2.01, 2.34, "short", "long"),
)
def truck(d: Sketch) -> None:
    l, w, r = d.number("length", 0.95, 1.25), d.number("width", 0.36, 0.44), d.number("wheel", 0.17, 0.21)
    front, high = d.number("front", 0.24, 0.3), d.number("height", 0.3, 0.4)
    d.paint("cab")
    d.paint("windows", *GLASS, finish="plastic")
    d.paint("wheels", "black", "black", "black", "gray", "brown", finish="matte")
    d.paint("frame", "black", "gray", finish="metal")
    d.paint("lights", "yellow", "white", "orange", finish="plastic")
    deck = r * 1.5
    d.box("frame", (0.05, 0, deck), (l - 0.06, w * 0.75, 0.07))
    x = -l + front
    d.box("cab", (x, 0, deck - 0.04 + high), (front, w, high), edge=0.06)
    d.box("windows", (x - 0.04, 0, deck + high * 1.3), (front * 0.98, w * 1.05, high * 0.33), edge=0.03)
    for s in SIDES:
        d.ball("lights", (x - front, s * w * 0.65, deck + 0.12), (0.05, 0.085, 0.085))
    start, end = -l + 2 * front + 0.06, l
    middle, half = (start + end) / 2, (end - start) / 2
    style = d.style("container", "container", "tank", "load")
    d.extras.append(style)
    d.paint(style)
    if style == "container":
        box = high * d.number("cargo", 1.0, 1.25)
        d.box("container", (middle, 0, deck + 0.05 + box), (half, w, box), edge=0.02)
    elif style == "tank":
        d.rod("tank", (start + w * 0.8, 0, deck + w * 0.85), (end - w * 0.8, 0, deck + w * 0.85), w * 0.88)
    else:
        log = w * 0.36
        for y, z in ((-1.9, 1), (0, 1), (1.9, 1), (-0.95, 2.7), (0.95, 2.7)):
            d.taper(
                "load",
                (start, y * log, deck + 0.04 + z * log),
                (end, y * log, deck + 0.04 + z * log),
                log,
                log,
            )
    put_wheels(d, [x, l * 0.42, l * 0.42 + 2.15 * r], w * 0.95, r, 0.085)


@category(
    "bus",
    main="body",
    mention=("stripe", "windows", "wheels"),
    unseen=("gray", "black"),
    corner=("length", "height"),
    proportion=("x", "z", 2.45, 2.8, "short", "long"),
)
def bus(d: Sketch) -> None:
    l, w, h = d.number("length", 0.95, 1.3), d.number("width", 0.32, 0.4), d.number("height", 0.33, 0.43)
    r = d.number("wheel", 0.15, 0.2)
    d.paint("body", finish=d.style("plastic", "metal", "matte"))
    d.paint("windows", *GLASS, finish="plastic")
    d.paint("wheels", "black", "black", "black", "gray", "white", finish="matte")
    d.paint("lights", "yellow", "white", "orange", finish="plastic")
    z = r * 0.8 + h
    d.box("body", (0, 0, z), (l, w, h), edge=0.06)
    count = int(d.rng.integers(4, 6))
    half = 0.92 * l / count
    for i in range(count):
        at = ((2 * i + 1 - count) * half, 0, z + h * 0.35)
        d.box("windows", at, (half * 0.78, w + 0.03, h * 0.34), edge=0.025)
    d.box("windows", (-l, 0, z + h * 0.3), (0.035, w * 0.85, h * 0.42), edge=0.015)
    if d.has("stripe", 0.5):
        d.paint("stripe")
        d.box("stripe", (0, 0, z - h * 0.35), (l + 0.025, w + 0.025, 0.085), edge=0.02)
    for s in SIDES:
        d.ball("lights", (-l, s * w * 0.65, z - h * 0.65), (0.055, 0.08, 0.08))
    put_wheels(d, [-0.6 * l, 0.6 * l], w * 0.95, r, 0.085)


@category(
    "train",
    "locomotive",
    main="body",
    mention=("cabin", "chimney", "wheels"),
    unseen=("white", "orange"),
    corner=("length", "boiler"),
    proportion=("x", "z", 1.48, 1.64, "short", "long"),
)
def train(d: Sketch) -> None:
    l, r, wheel = d.number("length", 0.75, 1.0), d.number("boiler", 0.25, 0.33), d.number("wheel", 0.16, 0.21)
    cab, high = d.number("cabin", 0.25, 0.34), d.number("chimney", 0.17, 0.27)
    d.paint("body")
    d.paint("cabin", like="body", share=0.25)
    d.paint("chimney", like=d.style("body", "cabin"), share=0.4)
    d.paint("wheels", "black", "red", "gray", "black", "brown")
    d.paint("frame", "black", "gray", "red", "brown", finish="metal")
    d.paint("windows", *GLASS, finish="plastic")
    deck = wheel * 1.6
    axis = deck + 0.06 + r
    d.box("frame", (0, 0, deck), (l, 0.3, 0.08))
    d.taper("body", (-l + 0.05, 0, axis), (l - cab, 0, axis), r, r)
    d.taper("frame", (-l - 0.02, 0, axis), (-l + 0.06, 0, axis), r * 0.7, r * 0.85)
    x, top = l - cab, axis + r * 0.7 + 0.2
    d.box("cabin", (x, 0, (deck + top) / 2), (cab, 0.34, (top - deck) / 2))
    d.box("frame", (x, 0, top + 0.02), (cab + 0.07, 0.4, 0.05))
    d.box("windows", (x, 0, top - 0.17), (cab * 0.55, 0.37, 0.11))
    d.cone("chimney", (-l * 0.68, 0, axis + r + high * 0.6), high, 0.1, 0.16)
    d.dome("chimney", (-l * 0.12, 0, axis + r * 0.9), (0.13, 0.13, 0.16))
    d.box("frame", (-l - 0.06, 0, deck * 0.62), (0.09, 0.26, 0.09), (0, 35, 0))
    put_wheels(d, [-0.68 * l, -0.68 * l + 2.15 * wheel], 0.3, wheel, 0.07)
    big = wheel * 1.3
    for s in SIDES:
        d.wheel("wheels", (l - cab, s * 0.36, big), big, 0.07)


VEHICLES = (car, truck, bus, train)
