"""The named colors and finishes of the synthetic objects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trellis_core.training.synthetic.shapes import Material, Vector

PALETTE: Mapping[str, Vector] = {  # sRGB-coded, [0, 1]
    "red": (0.80, 0.12, 0.10),
    "orange": (0.93, 0.49, 0.11),
    "yellow": (0.95, 0.80, 0.18),
    "green": (0.18, 0.58, 0.22),
    "blue": (0.14, 0.28, 0.74),
    "purple": (0.47, 0.19, 0.62),
    "pink": (0.93, 0.52, 0.68),
    "brown": (0.43, 0.26, 0.13),
    "white": (0.92, 0.92, 0.90),
    "gray": (0.52, 0.53, 0.55),
    "black": (0.15, 0.15, 0.16),
    "cyan": (0.16, 0.68, 0.74),
    "beige": (0.86, 0.76, 0.58),
}
FINISHES: Mapping[str, tuple[float, tuple[float, float]]] = {  # metallic, range of roughness
    "plastic": (0.0, (0.25, 0.45)),
    "wood": (0.0, (0.6, 0.8)),
    "metal": (1.0, (0.2, 0.45)),
    "matte": (0.0, (0.8, 1.0)),
}


def mix_material(rng: np.random.Generator, color: str, finish: str) -> Material:
    """A material of a named color and finish, with a little jitter: two red chairs are not the same red."""
    metallic, (low, high) = FINISHES[finish]
    rgb = np.array(PALETTE[color]) * rng.uniform(0.85, 1.1) + rng.normal(0, 0.02, 3)
    red, green, blue = (float(c) for c in rgb.clip(0.03, 0.97))
    return Material((red, green, blue), metallic, float(rng.uniform(low, high)))
