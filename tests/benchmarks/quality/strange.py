"""Pictures that are nothing of the kind: no training object, or none at all. Drawn here, always the same.

What the tool does with them, and whether it says so: the background remover may refuse, the familiarity of
the picture may be low, the structure may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.quality.generate import Model, Result, generate, picture_tokens
from tests.benchmarks.quality.judges import Judges
from tests.benchmarks.quality.table import name_categories
from trellis_core.errors import InputError
from trellis_core.image.background import choose_background_remover
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.io.pictures import prepare_picture
from trellis_core.models.familiarity import FamiliarityFacts, familiarity

SIDE = 256

Rng = np.random.Generator


def judge_strange(
    model: Model, judges: Judges | None, facts: FamiliarityFacts | None
) -> tuple[list[dict[str, Any]], list[Image.Image], list[Result]]:
    """What comes of every strange picture; also the pictures as the model saw them, and the results.

    A picture that the background remover refuses goes in whole, as with `--background keep`.
    """
    pictures = strange_pictures()
    seen, said = [], []
    for picture in pictures.values():
        try:
            seen.append(prepare_picture(picture, preprocess_picture, *choose_background_remover("auto"))[0])
            said.append("")
        except InputError as error:
            seen.append(prepare_picture(picture, preprocess_picture, None)[0])
            said.append(f"refused: {error.message}")
    cond = picture_tokens(model, seen)
    results = generate(model, cond, [0] * len(seen))
    named = name_categories([r.shape for r in results], judges) if judges else ["not judged"] * len(seen)
    entries = []
    for name, tokens, refusal, result, became in zip(pictures, cond, said, results, named, strict=True):
        known = None if facts is None else familiarity(tokens, facts)
        unfamiliar = ["unlike what the model knows"] if known is not None and known < 1 else []
        entries.append(
            {
                "picture": name,
                "familiarity": known,
                "said": "; ".join(filter(None, [refusal, *unfamiliar])) or "nothing",
                "became": became,
                "voxels": 0 if result.shape is None else len(result.shape.mesh.vertices),
            }
        )
    return entries, seen, results


def strange_pictures() -> Mapping[str, Image.Image]:
    """RGB pictures without and RGBA pictures with a transparent background."""
    return {name: draw(np.random.default_rng(number)) for number, (name, draw) in enumerate(DRAWERS.items())}


def photo_noise(rng: Rng) -> Image.Image:
    """Colored noise with the spectrum of photographs, 1/f."""
    return Image.fromarray((255 * np.stack([_pink(rng) for _ in range(3)], axis=2)).astype(np.uint8))


def white_noise(rng: Rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def gradient(rng: Rng) -> Image.Image:
    """A smooth change from one color to another."""
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    picture = (1 - ramp) * np.array([250, 200, 80]) + ramp * np.array([40, 60, 160])
    return Image.fromarray(np.broadcast_to(picture, (SIDE, SIDE, 3)).astype(np.uint8))


def glyph(rng: Rng) -> Image.Image:
    """A black letter on white."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).text((60, 0), "&", "black", ImageFont.load_default(size=220))
    return picture


def words(rng: Rng) -> Image.Image:
    """A page of text."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for line in range(10):
        pen.text((14, 12 + 24 * line), "the quick brown fox jumps", (30, 30, 30), font)
    return picture


def face(rng: Rng) -> Image.Image:
    """A drawn face, cut out."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((48, 20, 208, 236), (224, 178, 146, 255))
    pen.pieslice((44, 6, 212, 150), 180, 360, (70, 42, 24, 255))
    for x in (96, 160):
        pen.ellipse((x - 16, 104, x + 16, 126), (250, 250, 250, 255))
        pen.ellipse((x - 7, 108, x + 7, 122), (50, 80, 120, 255))
    pen.polygon([(128, 124), (114, 164), (140, 164)], (204, 150, 120, 255))
    pen.chord((98, 174, 158, 208), 0, 180, (170, 60, 60, 255))
    return picture


def cloud(rng: Rng) -> Image.Image:
    """A soft white cloud, half transparent."""
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2) / (SIDE / 2)
    density = np.clip(1.6 * (1 - (x / 0.9) ** 2 - (y / 0.55) ** 2) * (0.3 + 1.2 * _pink(rng)), 0, 1)
    white = np.full((SIDE, SIDE, 3), 240.0) - 40 * np.clip(y, 0, 1)[..., None]
    return Image.fromarray(np.concatenate([white, 255 * density[..., None]], axis=2).astype(np.uint8), "RGBA")


def landscape(rng: Rng) -> Image.Image:
    """Sky, mountains and a meadow: a scene, not an object."""
    sky = np.linspace(0, 1, SIDE)[:, None, None]
    picture = (1 - sky) * np.array([90, 150, 220]) + sky * np.array([220, 230, 240])
    picture = np.broadcast_to(picture, (SIDE, SIDE, 3)).copy()
    rows = np.arange(SIDE)[:, None]
    ridge = 110 + 70 * (_pink(rng)[128] - 0.5)
    picture[rows > ridge] = (110, 105, 115)
    picture[rows > 175 + 20 * (_pink(rng)[128] - 0.5)] = (80, 140, 60)
    grain = 24 * (_pink(rng) - 0.5)[..., None]
    return Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8))


def checkers(rng: Rng) -> Image.Image:
    """A flat pattern, cut out as a square."""
    tiles = (np.add.outer(np.arange(SIDE) // 32, np.arange(SIDE) // 32) % 2)[..., None]
    picture = np.where(tiles, np.array([240, 240, 240, 255]), np.array([20, 20, 20, 255]))
    picture[:20], picture[-20:], picture[:, :20], picture[:, -20:] = 0, 0, 0, 0
    return Image.fromarray(picture.astype(np.uint8), "RGBA")


def scribble(rng: Rng) -> Image.Image:
    """Thin lines in many colors, cut out."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    points = [tuple(p) for p in rng.integers(15, SIDE - 15, (40, 2)).tolist()]
    for a, b in pairwise(points):
        pen.line([a, b], (*rng.integers(0, 256, 3).tolist(), 255), 4)
    return picture


def star(rng: Rng) -> Image.Image:
    """A flat five-pointed star, cut out: a clear object that is in no training category."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2, 46, 116)
    corners = [
        (SIDE / 2 + r * np.cos(a), SIDE / 2 + r * np.sin(a)) for r, a in zip(reach, turns, strict=True)
    ]
    ImageDraw.Draw(picture).polygon(corners, (220, 60, 120, 255))
    return picture


def _pink(rng: Rng) -> np.ndarray:  # float64 [SIDE, SIDE] in [0, 1]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    spectrum = np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE)
    noise = np.fft.ifft2(spectrum).real
    low, high = np.quantile(noise, (0.01, 0.99))
    return np.clip((noise - low) / (high - low), 0, 1)


DRAWERS: Mapping[str, Callable[[Rng], Image.Image]] = {
    "photo-like noise": photo_noise,
    "white noise": white_noise,
    "gradient": gradient,
    "letter": glyph,
    "page of text": words,
    "drawn face": face,
    "cloud": cloud,
    "landscape": landscape,
    "checkers": checkers,
    "scribble": scribble,
    "star": star,
}
