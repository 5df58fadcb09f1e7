"""Parametric objects with names for what they are. One seed, one object.

Some objects are never made for training: per category two main colors, and the corner of the parameter space
where two chosen numbers are both in their top quarter (`Category.unseen`, `Category.corner`). `make_novel`
makes exactly those. Knows nothing about voxels, pictures or captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trellis_core.training.synthetic.categories import CATEGORIES, ROLES
from trellis_core.training.synthetic.categories.sketch import Category, Sketch
from trellis_core.training.synthetic.palette import FINISHES, PALETTE
from trellis_core.training.synthetic.primitives import primitive_bounds
from trellis_core.training.synthetic.shapes import CARVE, Part, fit_unit_cube, rotation

__all__ = [
    "CATEGORIES",
    "FINISHES",
    "HELD_OUT",
    "PALETTE",
    "ROLES",
    "Attributes",
    "Novelty",
    "SyntheticObject",
    "in_corner",
    "make_novel",
    "make_object",
]

HELD_OUT = 900_000  # seeds from here on are never trained on
MATCHING = 0.3  # share of objects whose related parts all have one material
TOP = 0.75  # a number is in its corner from here on, as a share of its range
Novelty = Literal["color", "corner"]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What can truly be said about an object."""

    color: str  # of the category's main role
    finish: str  # of the category's main role
    colors: Mapping[str, str]  # role -> color, for every role that has parts
    sizes: tuple[str, ...]  # words such as "tall"
    shapes: tuple[str, ...]  # words such as "round"
    extras: tuple[str, ...]  # roles that other objects of the category may lack
    counts: Mapping[str, int]  # role -> how many parts of it one sees
    kin: tuple[str, ...]  # roles that people expect in the color of the object
    numbers: Mapping[str, float]  # parameter -> where in its range, [0, 1)


@dataclass(frozen=True, slots=True)
class SyntheticObject:
    seed: int
    category: str
    parts: list[Part]  # inside the unit cube
    attributes: Attributes


def make_object(seed: int) -> SyntheticObject:
    """The object of a seed: its category and every parameter follow from `seed` alone. Never one of those
    that `make_novel` makes."""
    rng = np.random.default_rng(seed)
    kind = _pick_category(rng)
    return _draw_until(rng, seed, kind, unseen_color=False, corner=False)


def make_novel(seed: int, novelty: Novelty) -> SyntheticObject:
    """An object that no training seed makes: its main color (`color`) or its proportions (`corner`) are
    held out for its category."""
    rng = np.random.default_rng((seed, 2))
    kind = _pick_category(rng)
    return _draw_until(rng, seed, kind, unseen_color=novelty == "color", corner=novelty == "corner")


def in_corner(numbers: Mapping[str, float], category: Category) -> bool:
    """Whether both of the category's corner parameters are in the top quarter of their ranges."""
    return all(numbers[name] >= TOP for name in category.corner)


def _pick_category(rng: np.random.Generator) -> Category:
    names = tuple(CATEGORIES)
    return CATEGORIES[names[rng.integers(len(names))]]


def _draw_until(
    rng: np.random.Generator, seed: int, kind: Category, *, unseen_color: bool, corner: bool
) -> SyntheticObject:
    """Draw objects from one generator until one is on the wanted side of both hold-outs."""
    matching = bool(np.random.default_rng((seed, 4)).random() < MATCHING)
    while True:
        sketch = Sketch(rng, matching)
        kind.make(sketch)
        color = sketch.paints[kind.main].color
        if (color in kind.unseen) == unseen_color and in_corner(sketch.numbers, kind) == corner:
            return SyntheticObject(seed, kind.name, fit_unit_cube(sketch.parts), _describe(sketch, kind))


def _describe(sketch: Sketch, kind: Category) -> Attributes:
    paint, rule = sketch.paints[kind.main], kind.proportion
    drawn = {part.role for part in sketch.parts}
    sides = dict(zip("xyz", _sides(sketch.parts), strict=True))
    ratio = sides[rule.over] / sides[rule.under]
    size = rule.small if ratio <= rule.low else rule.large if ratio >= rule.high else ""
    return Attributes(
        color=paint.color,
        finish=paint.finish,
        colors={role: p.color for role, p in sketch.paints.items() if role in drawn},
        sizes=(size,) if size else (),
        shapes=tuple(sketch.shapes),
        extras=tuple(sketch.extras),
        counts=dict(sketch.counts),
        kin=tuple(sketch.kin),
        numbers=dict(sketch.numbers),
    )


def _sides(parts: list[Part]) -> np.ndarray:  # float64 [3]
    """The sides of the box around all parts."""
    corners = []
    for part in parts:
        if part.operation != CARVE:
            low, high = primitive_bounds(part.kind, part.size)
            turn, middle, half = rotation(part.turn), (low + high) / 2, (high - low) / 2
            center, reach = turn @ middle + part.position, np.abs(turn) @ half
            corners += [center - reach, center + reach]
    return np.ptp(corners, axis=0)
