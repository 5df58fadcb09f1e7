"""The synthetic objects and what is said about them.

Properties: every category draws sturdy, distinct, named parts inside the unit cube; parts of one role share
one material, which is the color that the object names; a seed is an object; training never sees a held-out
color or corner and `make_novel` makes nothing else; captions use the closed vocabulary and are true of the
parts; users' words are brought to that vocabulary. Not tested: what the categories look like.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis_core.training.synthetic import captions
from trellis_core.training.synthetic.categories.sketch import Sketch
from trellis_core.training.synthetic.objects import (
    CATEGORIES,
    HELD_OUT,
    PALETTE,
    ROLES,
    SyntheticObject,
    in_corner,
    make_novel,
    make_object,
)
from trellis_core.training.synthetic.primitives import primitive_bounds
from trellis_core.training.synthetic.shapes import ADD, CARVE, ELLIPSOID, TORUS, Part, rotation

SMALL = {
    "buttons", "cherry", "eyes", "feet", "flower", "fruits", "hole", "jewels", "lights", "nose", "spots",
    "sprinkles", "window", "windows",
}  # fmt: skip
COLOR = "|".join(PALETTE)
PART = re.compile(rf"(?:(an?|two|three|four) )?(?:({COLOR}) )?(\w+)")
BOTH_WAYS = {f.rstrip("s"): f for f in ("arms", "pillows")}
NOUNS = {noun for kind in CATEGORIES.values() for noun in kind.nouns}
SOME = range(1500)


@pytest.fixture(scope="module")
def objects() -> list[SyntheticObject]:
    return [make_object(seed) for seed in SOME]


def full_sides(part: Part) -> list[float]:
    """The sides of a primitive in its own frame, thinnest first; a ring is as thin as its tube."""
    low, high = primitive_bounds(part.kind, part.size)
    sides = sorted(float(s) for s in high - low)
    return [2 * part.size[1], *sides[1:]] if part.kind == TORUS else sides


def test_there_are_enough_categories_and_all_are_drawn(objects):
    assert len(CATEGORIES) >= 26
    assert {o.category for o in objects} == set(CATEGORIES)


def test_the_role_table_is_small_unique_and_used(objects):
    assert len(set(ROLES)) == len(ROLES) <= 120
    assert {p.role for o in objects for p in o.parts} == set(ROLES)


def test_parts_fit_the_unit_cube_and_fill_it(objects):
    for o in objects:
        reach = 0.0
        for p in o.parts:
            if p.operation == CARVE:
                continue
            low, high = primitive_bounds(p.kind, p.size)
            turn = rotation(p.turn)
            center, half = turn @ (low + high) / 2 + p.position, np.abs(turn) @ (high - low) / 2
            reach = max(reach, float((np.abs(center) + half).max()))
        assert reach == pytest.approx(0.47, abs=1e-6), o.category


def test_no_part_is_too_thin_for_a_grid_of_128(objects):
    for o in objects:
        for p in o.parts:
            if p.operation != CARVE:
                sides = full_sides(p)
                assert sides[0] >= 0.02, (o.category, p.role)
                assert p.role not in SMALL or sides[1] >= 0.05, (o.category, p.role)


def test_no_two_parts_are_identical(objects):
    for o in objects:
        assert len({(p.kind, p.size, p.position, p.turn) for p in o.parts}) == len(o.parts), o.category


def test_what_is_added_after_carving_stands_in_something_carved(objects):
    for o in objects:
        operations = {p.operation for p in o.parts}
        assert ADD not in operations or CARVE in operations


def test_parts_of_one_role_share_one_material_of_the_named_color(objects):
    for o in objects:
        assert set(o.attributes.colors) == {p.role for p in o.parts}
        for role, name in o.attributes.colors.items():
            (material,) = {p.material for p in o.parts if p.role == role}
            scales = np.linspace(0.85, 1.1, 26)[:, None]
            off = (
                np.abs(np.array(material.color) - (scales * PALETTE[name]).clip(0.03, 0.97)).max(axis=1).min()
            )
            assert off < 0.1, (o.category, role, name)
        assert o.attributes.color == o.attributes.colors[CATEGORIES[o.category].main]


@given(st.integers(0, 2 * HELD_OUT))
def test_a_seed_is_an_object(seed):
    assert make_object(seed) == make_object(seed)
    assert make_novel(seed, "corner") == make_novel(seed, "corner")


def test_training_never_sees_a_held_out_color_or_corner(objects):
    for o in (*objects, *(make_object(HELD_OUT + i) for i in range(300))):
        kind = CATEGORIES[o.category]
        assert o.attributes.color not in kind.unseen
        assert not in_corner(o.attributes.numbers, kind)


@pytest.mark.parametrize("novelty", ["color", "corner"])
def test_novel_objects_are_held_out_in_exactly_the_named_way(novelty):
    found = [make_novel(seed, novelty) for seed in range(300)]
    for o in found:
        kind = CATEGORIES[o.category]
        assert (o.attributes.color in kind.unseen) == (novelty == "color")
        assert in_corner(o.attributes.numbers, kind) == (novelty == "corner")
    assert {o.category for o in found} == set(CATEGORIES)


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_every_category_can_reach_what_it_holds_out(name):
    kind = CATEGORIES[name]
    colors, corners = set(), 0
    for seed in range(400):
        sketch = Sketch(np.random.default_rng(seed))
        kind.make(sketch)
        colors.add(sketch.paints[kind.main].color)
        corners += in_corner(sketch.numbers, kind)
    assert len(set(kind.unseen)) == 2 and set(kind.unseen) < colors
    assert 5 <= corners <= 60  # two independent top quarters: 25 on average


def test_size_words_are_given_to_the_extremes_only(objects):
    for name, kind in CATEGORIES.items():
        words = Counter(w for o in objects if o.category == name for w in o.attributes.sizes)
        total = sum(o.category == name for o in objects)
        assert set(words) == {kind.proportion.small, kind.proportion.large}
        assert max(words.values()) < 0.65 * total, name


def said(obj: SyntheticObject, count: int = 12) -> list[str]:
    return captions.make_captions(obj, count, np.random.default_rng((obj.seed, 3)))


def check_part(words: str, obj: SyntheticObject) -> None:
    """A phrase such as `three red legs` is true of the object."""
    article, color, role = PART.fullmatch(words).groups()
    facts, many = obj.attributes, obj.attributes.counts.get(BOTH_WAYS.get(role, role), 0)
    role = BOTH_WAYS.get(role, role)
    assert role in facts.colors or role in facts.counts, words
    assert not color or facts.colors[role] == color, words
    if article in ("two", "three", "four"):
        assert captions.NUMBERS[many] == article, words
    elif many == 1:
        assert article in ("a", "an"), words


def test_captions_are_true_short_and_in_the_vocabulary(objects):
    for o in objects[:400]:
        kind, facts = CATEGORIES[o.category], o.attributes
        for caption in said(o):
            words = caption.split()
            assert len(words) <= 20 and len(caption.encode()) <= 160
            assert set(words) <= set(captions.WORDS), caption
            head, *parts = re.split(" with ", caption)
            *front, noun = head.split()
            assert noun in kind.nouns
            known = {"a", "an", "and", captions.FINISH_WORDS.get(facts.finish), *facts.sizes, *facts.shapes}
            colors = [w for w in front if w not in known]
            assert colors[:1] in ([], [facts.color])
            assert set(colors) <= set(facts.colors.values())
            for part in parts[0].split(" and ") if parts else []:
                check_part(part, o)


def test_numbers_in_captions_are_the_numbers_of_parts(objects):
    counted = set()
    for o in objects:
        for role in set(o.attributes.counts) & set(o.attributes.colors):
            counted.add(role)
            assert sum(p.role == role for p in o.parts) == o.attributes.counts[role], o.category
    assert counted == {"legs", "fins", "cushions", "pillows"}


def test_optional_parts_are_there(objects):
    for o in objects:
        assert set(o.attributes.extras) <= {p.role for p in o.parts}
        assert set(o.attributes.extras) <= set(CATEGORIES[o.category].mention)


def test_most_captions_name_a_color_and_some_only_the_object(objects):
    everything = [c for o in objects[:400] for c in said(o, 4)]
    colored = sum(any(w in PALETTE for w in c.split()) for c in everything) / len(everything)
    bare = sum(c.removeprefix("a ").removeprefix("an ") in NOUNS for c in everything) / len(everything)
    assert 0.8 < colored < 0.9
    assert 0.08 < bare < 0.14


def test_the_vocabulary_is_small_sorted_and_spoken(objects):
    spoken = {w for o in objects for c in said(o, 8) for w in c.split()}
    assert list(captions.WORDS) == sorted(set(captions.WORDS))
    assert len(captions.WORDS) <= 250
    assert spoken == set(captions.WORDS)


def test_prompt_cases_are_fixed_and_cover_every_category_in_its_trained_colors():
    cases = captions.prompt_cases()
    main, parts = ([c for c in cases if len(c.colors) == n] for n in (1, 2))
    assert cases == captions.prompt_cases()
    assert len(main) >= 60 and len(parts) >= 60 and len(main) + len(parts) == len(cases)
    for group in (main, parts):
        assert {c.category for c in group} == set(CATEGORIES)
        assert len({c.prompt for c in group}) == len(group)
    for c in cases:
        assert not captions.unknown_words(c.prompt)
        assert c.colors[0][0] == CATEGORIES[c.category].main
        assert c.colors[0][1] not in CATEGORIES[c.category].unseen
        assert all(role in ROLES and color in c.prompt.split() for role, color in c.colors)


def test_novel_prompt_cases_ask_for_held_out_colors():
    for c in captions.prompt_cases(novel=True):
        assert c.colors[0][1] in CATEGORIES[c.category].unseen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Grey chair.", ["a", "gray", "chair"]),
        ("three   RED chairs, with one blue leg!", ["three", "red", "chair", "with", "a", "blue", "legs"]),
        ("the buses", ["a", "bus"]),
        ("a wood couch", ["a", "wooden", "couch"]),
        ("a dragon", ["a", "dragon"]),
        ("", []),
    ],
)
def test_words_are_brought_to_the_vocabulary(text, words):
    assert captions.words_of(text) == words


def test_unknown_words_are_named_once_in_order():
    assert captions.unknown_words("a shiny red dragon with a Dragon tail") == ["shiny", "dragon"]
    assert captions.unknown_words("ein roter Stuhl") == ["ein", "roter", "stuhl"]


@given(st.text(max_size=60))
def test_bringing_words_to_the_vocabulary_twice_changes_nothing(text):
    once = captions.words_of(text)
    assert captions.words_of(" ".join(once)) == once


def test_aliases_lead_to_words_that_captions_hold():
    assert set(captions.ALIASES.values()) <= set(captions.WORDS)
    assert not set(captions.ALIASES) & set(captions.WORDS)


def test_eyes_of_a_robot_are_balls_on_the_front_of_its_head(objects):
    robots = [o for o in objects if o.category == "robot"]
    for o in robots:
        eyes = [p for p in o.parts if p.role == "eyes"]
        head = next(p for p in o.parts if p.role == "head")
        assert len(eyes) == 2 and all(p.kind == ELLIPSOID and p.position[1] < head.position[1] for p in eyes)
