"""What the harness does not demand, from two explicit tables with reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Better:
    """Outputs where our algorithm is better by design than the released one."""

    outputs: tuple[str, ...]   # prefixes of output names that may differ
    reason: str


BETTER_BY_DESIGN: dict[str, Better] = {}

# Prefix of a kind -> the reason it has no runner yet.
PENDING: dict[str, str] = {
    "trellis2.train_": "the trainers are built with the embedded model",
    "trellis1.": "TRELLIS v1 is not built yet",
    "matting.": "the matting network is built with TRELLIS v1",
    "geometry.flexicubes_": "FlexiCubes is built with TRELLIS v1",
    "geometry.sparse_cube_features_": "FlexiCubes is built with TRELLIS v1",
    "geometry.gaussian_": "Gaussians are built with TRELLIS v1",
    "geometry.radiance_field_": "radiance fields are built with TRELLIS v1",
}
