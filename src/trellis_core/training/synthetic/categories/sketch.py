"""What the makers of the categories draw with: random choices that are written down, and named parts.

A maker gets a `Sketch`, draws its sizes and colors from it and adds parts in raw units, z up, front towards
-y, width along x. Every part has a role; all parts of one role share one material. Knows nothing about
captions or voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import asin, atan2, degrees, dist
from typing import NamedTuple

import numpy as np

from trellis_core.training.synthetic.palette import FINISHES, PALETTE, mix_material
from trellis_core.training.synthetic.shapes import (
    BOX,
    CAPSULE,
    CONE,
    DOME,
    ELLIPSOID,
    PRISM,
    TORUS,
    UNION,
    Material,
    Part,
    Vector,
)

STILL: Vector = (0.0, 0.0, 0.0)
SIDES = (-1, 1)
RARE = 0.1  # two roles that share a material no more often than this are expected to differ
CORNERS = tuple((x, y) for x in SIDES for y in SIDES)


class Paint(NamedTuple):
    color: str
    finish: str
    material: Material


@dataclass(frozen=True, slots=True)
class Proportion:
    """The ratio of two sides of the box around an object, and what people call its extremes."""

    over: str  # axis "x", "y" or "z"
    under: str
    low: float  # up to here the object is `small`
    high: float  # from here on it is `large`
    small: str
    large: str


@dataclass(frozen=True, slots=True)
class Category:
    """How objects of one kind are drawn, and what of them is never trained on."""

    make: Callable[[Sketch], None]
    nouns: tuple[str, ...]  # what people call it; the first is the name of the category
    main: str  # the role whose color is the color of the object
    mention: tuple[str, ...]  # further roles worth a word, the largest first
    unseen: tuple[str, str]  # main colors that are held out
    corner: tuple[str, str]  # objects with both of these numbers in their top quarter are held out
    proportion: Proportion

    @property
    def name(self) -> str:
        return self.nouns[0]


def category(
    *nouns: str,
    main: str,
    mention: tuple[str, ...],
    unseen: tuple[str, str],
    corner: tuple[str, str],
    proportion: tuple[str, str, float, float, str, str],
) -> Callable[[Callable[[Sketch], None]], Category]:
    """Turns the maker below it into a `Category`."""
    return lambda make: Category(make, nouns, main, mention, unseen, corner, Proportion(*proportion))


class Sketch:
    """An object on its way: `parts` so far, `paints` by role, and the choices that were made."""

    def __init__(self, rng: np.random.Generator, matching: bool = False) -> None:
        self.rng = rng
        self.matching = matching  # parts that people expect in one color have one
        self.parts: list[Part] = []
        self.paints: dict[str, Paint] = {}
        self.numbers: dict[str, float] = {}  # name -> where in its range, [0, 1)
        self.shapes: list[str] = []
        self.extras: list[str] = []
        self.counts: dict[str, int] = {}
        self.kin: list[str] = []

    # Choices

    def number(self, name: str, low: float, high: float) -> float:
        """A length, angle or share, uniform in its range."""
        self.numbers[name] = float(self.rng.random())
        return low + self.numbers[name] * (high - low)

    def toss(self, probability: float) -> bool:
        """A choice without a name."""
        return bool(self.rng.random() < probability)

    def style(self, *options: str) -> str:
        """A variant without a name in captions."""
        return options[self.rng.integers(len(options))]

    def shape(self, *options: str) -> str:
        """A variant whose word fits in front of the noun (`a round table`); an empty word is left out."""
        word = self.style(*options)
        self.shapes += [word] if word else []
        return word

    def has(self, role: str, probability: float) -> bool:
        """Whether the object has an optional part; its maker adds parts of this role then."""
        present = self.toss(probability)
        self.extras += [role] if present else []
        return present

    def count(self, role: str, low: int, high: int) -> int:
        """How many of a part there are, both ends included."""
        self.counts[role] = int(self.rng.integers(low, high + 1))
        return self.counts[role]

    def paint(self, role: str, *colors: str, finish: str = "", like: str = "", share: float = 0.5) -> None:
        """Choose the material of a role: that of the role `like` with probability `share`, else one of
        `colors` (any color when none is named) in a finish. In a matching object it is that of `like`,
        unless that is rare."""
        kin = bool(like) and share > RARE
        self.kin += [role] if kin else []
        if like and (self.toss(share) or (kin and self.matching)):
            self.paints[role] = self.paints[like]
            return
        color = self.style(*(colors or tuple(PALETTE)))
        chosen = finish or self.style(*FINISHES)
        self.paints[role] = Paint(color, chosen, mix_material(self.rng, color, chosen))

    # Parts

    def box(
        self,
        role: str,
        position: Vector,
        half: Vector,
        turn: Vector = STILL,
        edge: float = 0.015,
        operation: int = UNION,
    ) -> None:
        self._add(BOX, (*half, min(edge, *(0.5 * h for h in half))), role, position, turn, operation)

    def cone(
        self,
        role: str,
        position: Vector,
        half: float,
        low: float,
        high: float,
        turn: Vector = STILL,
        operation: int = UNION,
    ) -> None:
        """A cone or cylinder along z: half height, bottom radius, top radius."""
        self._add(CONE, (half, low, high), role, position, turn, operation)

    def wheel(self, role: str, position: Vector, radius: float, half: float) -> None:
        """A cylinder whose axis runs along y."""
        self.cone(role, position, half, radius, radius, (90, 0, 0))

    def ball(
        self, role: str, position: Vector, radii: float | Vector, turn: Vector = STILL, operation: int = UNION
    ) -> None:
        size = radii if isinstance(radii, tuple) else (radii, radii, radii)
        self._add(ELLIPSOID, size, role, position, turn, operation)

    def dome(
        self, role: str, position: Vector, radii: Vector, turn: Vector = STILL, operation: int = UNION
    ) -> None:
        self._add(DOME, radii, role, position, turn, operation)

    def ring(self, role: str, position: Vector, radius: float, tube: float, turn: Vector = STILL) -> None:
        self._add(TORUS, (radius, tube), role, position, turn, UNION)

    def prism(self, role: str, position: Vector, half: Vector, turn: Vector = STILL) -> None:
        self._add(PRISM, half, role, position, turn, UNION)

    def rod(self, role: str, start: Vector, end: Vector, radius: float) -> None:
        """A round-ended rod between two points."""
        middle, turn, length = _between(start, end)
        self._add(CAPSULE, (length / 2, radius), role, middle, turn, UNION)

    def taper(self, role: str, start: Vector, end: Vector, low: float, high: float) -> None:
        """A cone between two points: radius `low` at the start, `high` at the end."""
        middle, turn, length = _between(start, end)
        self.cone(role, middle, length / 2, low, high, turn)

    def _add(
        self, kind: int, size: tuple[float, ...], role: str, position: Vector, turn: Vector, operation: int
    ) -> None:
        self.parts.append(Part(kind, size, position, self.paints[role].material, turn, operation, role))


def _between(start: Vector, end: Vector) -> tuple[Vector, Vector, float]:
    """Middle, turn (that takes z to the direction) and length of a segment."""
    length = dist(start, end)
    x, y, z = ((b - a) / length for a, b in zip(start, end, strict=True))
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
    return middle, (degrees(-asin(max(-1.0, min(1.0, y)))), degrees(atan2(x, z)), 0.0), length
