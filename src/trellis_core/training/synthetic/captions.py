"""Captions of synthetic objects in a small closed English, and how a user's words become that English.

    [a] [size] [shape] [color [and color]] [finish] noun [with part [and part]]
    part = [a | number] [color] role

A caption says only what is true of the object's parts, but never all of it; it gives an object one color
only when the parts that people expect in that color have it. Knows nothing about tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np

from trellis_core.training.synthetic.categories import CATEGORIES
from trellis_core.training.synthetic.categories.sketch import Category
from trellis_core.training.synthetic.objects import HELD_OUT, SyntheticObject, make_object
from trellis_core.training.synthetic.palette import PALETTE

STYLES: Mapping[str, float] = {  # what a caption tells -> how often
    "bare": 0.10,  # a chair
    "plain": 0.05,  # a tall chair with armrests
    "color": 0.25,  # a tall red chair
    "parts": 0.45,  # a red chair with blue legs and a white back
    "pair": 0.08,  # a red and blue chair
    "named": 0.07,  # a chair with a red seat and blue legs
}
NUMBERS: Mapping[int, str] = {2: "two", 3: "three", 4: "four"}
FINISH_WORDS: Mapping[str, str] = {"wood": "wooden", "metal": "metal"}
SHAPES = ("round", "square", "pointed")
COUNTED = ("arm", "pillow", "arms", "blades", "cushions", "fins", "legs", "pillows", "shelves")
NO_ARTICLE = ("icing", "feet")  # and plurals in -s


def _known_words() -> Iterator[str]:
    yield from (
        "a",
        "an",
        "with",
        "and",
        *NUMBERS.values(),
        *FINISH_WORDS.values(),
        *SHAPES,
        *COUNTED,
        *PALETTE,
    )
    for kind in CATEGORIES.values():
        yield from (*kind.nouns, kind.main, *kind.mention, kind.proportion.small, kind.proportion.large)


WORDS: tuple[str, ...] = tuple(sorted(set(_known_words())))  # every word a caption may hold
ALIASES: Mapping[str, str] = {  # words that people use for words that captions hold
    "grey": "gray", "silver": "gray", "gold": "yellow", "golden": "yellow", "violet": "purple",
    "turquoise": "cyan", "teal": "cyan", "aqua": "cyan", "scarlet": "red", "crimson": "red", "navy": "blue",
    "cream": "beige", "tan": "beige", "little": "small", "tiny": "small", "high": "tall",
    "wood": "wooden", "metallic": "metal", "circular": "round", "the": "a", "one": "a", "having": "with",
    "desk": "table", "armchair": "chair", "settee": "sofa", "bookcase": "bookshelf", "jar": "vase",
    "muffin": "cupcake", "toadstool": "mushroom", "fir": "tree", "pine": "tree", "cacti": "cactus",
    "cottage": "house", "home": "house", "fortress": "castle", "automobile": "car", "jet": "airplane",
    "chopper": "helicopter", "spaceship": "rocket", "sailboat": "boat", "android": "robot",
    "mallet": "hammer", "duckling": "duck", "doggy": "dog", "snowmen": "snowman",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PromptCase:
    """A prompt to evaluate with: what the result must be, and which color which role must have."""

    prompt: str
    category: str
    colors: tuple[tuple[str, str], ...]  # (role, color); the first is the main role


def make_captions(obj: SyntheticObject, count: int, rng: np.random.Generator) -> list[str]:
    """`count` captions of an object, each of a style drawn from `STYLES`."""
    return [_caption(obj, rng) for _ in range(count)]


def words_of(text: str) -> list[str]:
    """The words of a sentence as captions write them: lower case, no punctuation, aliases and other numbers
    (`chairs`, `leg`) replaced. Words that captions do not hold stay as they are."""
    return [_known_form(word) for word in re.findall(r"\w+", text.lower())]


def unknown_words(text: str) -> list[str]:
    """The words of a sentence that no caption holds, each once, in their order."""
    return [word for word in dict.fromkeys(words_of(text)) if word not in WORDS]


def prompt_cases(novel: bool = False) -> list[PromptCase]:
    """The fixed prompts of the evaluation: per category two with a main color (`a red chair`) and two that
    give colors to two parts (`a red chair with blue legs`), as held-out objects have them. With `novel`, main
    colors that no training object of the category has."""
    if novel:
        return [
            PromptCase(_one(f"{color} {kind.name}"), kind.name, ((kind.main, color),))
            for kind in CATEGORIES.values()
            for color in kind.unseen
        ]
    main: dict[str, dict[str, PromptCase]] = {name: {} for name in CATEGORIES}
    parts: dict[str, dict[str, PromptCase]] = {name: {} for name in CATEGORIES}
    for seed in count(HELD_OUT):
        obj = make_object(seed)
        kind, color = CATEGORIES[obj.category], obj.attributes.color
        bare = _one(f"{color} {kind.name}")
        if len(main[kind.name]) < 2:
            main[kind.name].setdefault(color, PromptCase(bare, kind.name, ((kind.main, color),)))
        for role in _contrasting(obj, kind)[:2]:
            if len(parts[kind.name]) < 2 and color not in parts[kind.name]:
                other = obj.attributes.colors[role]
                prompt = f"{bare} with {_part(obj, role, other)}"
                parts[kind.name][color] = PromptCase(prompt, kind.name, ((kind.main, color), (role, other)))
        if all(len(cases) == 2 for cases in (*main.values(), *parts.values())):
            break
    return [case for group in (main, parts) for cases in group.values() for case in cases.values()]


def _caption(obj: SyntheticObject, rng: np.random.Generator) -> str:
    kind, facts = CATEGORIES[obj.category], obj.attributes
    style = str(rng.choice(list(STYLES), p=list(STYLES.values())))
    noun = kind.name if rng.random() < 0.6 else _any(rng, kind.nouns)
    others = _contrasting(obj, kind)
    second = [role for role in others if role in kind.mention[:2]]
    if style == "bare":
        return _open(noun, rng)
    odd = [role for role in others if role in facts.kin]
    if (style == "pair" and not second) or (style == "named" and not others):
        style = "color"
    if style == "color" and odd:
        style = "parts"
    color, parts = facts.color, []
    if style == "plain":
        color = ""
        parts = _some(
            rng, [_part(obj, role, "", True) for role in dict.fromkeys((*facts.extras, *facts.counts))]
        )
    elif style == "parts":
        roles = [r for r in kind.mention if r in others or (r in facts.colors and rng.random() < 0.15)]
        roles += [r for r in facts.counts if r not in facts.colors]
        parts = _some(rng, [_colored_part(obj, role, rng) for role in roles])
    elif style == "pair":
        color = f"{color} and {facts.colors[second[0]]}"
    elif style == "named":
        parts = [_part(obj, kind.main, color), _colored_part(obj, _any(rng, others), rng)]
        color = ""
    words = [
        *(w for w in facts.sizes if rng.random() < 0.45),
        *(w for w in facts.shapes if rng.random() < 0.5),
        color,
        FINISH_WORDS.get(facts.finish, "") if rng.random() < 0.2 else "",
        noun,
    ]
    sentence = _open(" ".join(w for w in words if w), rng)
    return f"{sentence} with {' and '.join(parts)}" if parts else sentence


def _contrasting(obj: SyntheticObject, kind: Category) -> list[str]:
    """The roles worth a word that the object has in another color than its own, the largest first."""
    colors = obj.attributes.colors
    return [role for role in kind.mention if colors.get(role, obj.attributes.color) != obj.attributes.color]


def _colored_part(obj: SyntheticObject, role: str, rng: np.random.Generator) -> str:
    """A part with its color, sometimes with its number."""
    color = obj.attributes.colors.get(role, "")
    return _part(obj, role, color, numbered=not color or rng.random() < 0.4)


def _part(obj: SyntheticObject, role: str, color: str, numbered: bool = False) -> str:
    number = obj.attributes.counts.get(role, 0)
    if number == 1:
        return _one(f"{color} {role.removesuffix('s')}".strip())
    words = f"{color} {role}".strip()
    if numbered and number:
        return f"{NUMBERS[number]} {words}"
    return words if role.endswith("s") or role in NO_ARTICLE else _one(words)


def _one(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _open(words: str, rng: np.random.Generator) -> str:
    """The beginning of a caption; people often leave the article out."""
    return words if rng.random() < 0.08 else _one(words)


def _some(rng: np.random.Generator, options: list[str]) -> list[str]:
    """One or two of the options, in their order."""
    take = min(len(options), 1 + int(rng.random() < 0.45))
    return [options[i] for i in sorted(rng.permutation(len(options))[:take])]


def _any(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[rng.integers(len(options))]


def _known_form(word: str) -> str:
    word = ALIASES.get(word, word)
    forms = (word, word + "s", word.removesuffix("s"), word.removesuffix("es"))
    return next((form for form in forms if form in WORDS), word)
