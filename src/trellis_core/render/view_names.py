"""Views by name, as commands and `render.views` understand them. Imports no torch.

Angles are degrees: yaw 0 looks at the front, 90 at the side to the right in that picture; pitch 90 looks
down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trellis_core.errors import UsageError

VIEWS: Mapping[str, tuple[float, float]] = {  # yaw, pitch
    "front": (0.0, 0.0),
    "right": (90.0, 0.0),
    "back": (180.0, 0.0),
    "left": (-90.0, 0.0),
    "top": (0.0, 90.0),
    "bottom": (0.0, -90.0),
    "orbit": (30.0, 20.0),
}


def parse_view(text: str) -> tuple[float, float]:  # yaw, pitch
    """`front`, ..., or `YAW,PITCH` in degrees. Raises `UsageError`."""
    name = text.strip().lower()
    if name in VIEWS:
        return VIEWS[name]
    try:
        yaw, pitch = (float(part) for part in name.split(","))
    except ValueError:
        raise UsageError(
            f"unknown view `{text}`",
            hint=f"give one of {', '.join(VIEWS)}, or yaw and pitch in degrees, as in `30,20`",
        ) from None
    if not (math.isfinite(yaw) and abs(yaw) <= 360 and abs(pitch) <= 90):
        raise UsageError(
            f"the view `{text}` is out of range",
            hint="yaw goes from -360 to 360 degrees, pitch from -90 to 90",
        )
    return yaw, pitch
