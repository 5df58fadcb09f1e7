"""When a sampler evaluates the network, and the settings of a sampling run.

Flow convention: x_t = (1 - t) * x_0 + (sigma + (1 - sigma) * t) * noise, so t=1 is noise and t=0 data
(rectified flow, Liu et al., 2023). Knows nothing about networks or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trellis_core.errors import UsageError

Overrides = Mapping[str, Any] | None  # entries of SamplerSettings; None keeps the model's value


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How to integrate the flow and how to guide it. Raises `UsageError` for values that make no sense."""

    steps: int = 12
    rescale_t: float = 1.0  # above 1: more steps near the noise
    guidance_scale: float = 3.0  # 1 means no guidance, 0 ignores the condition
    guidance_rescale: float = 0.0  # 0...1, pulls the deviation back to the conditional one
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # in t, both ends included
    sigma_min: float = 1e-5  # noise left at t=0

    def __post_init__(self) -> None:
        def check(good: bool, name: str, rule: str) -> None:
            if not good:
                raise UsageError(f"sampler setting `{name}` must be {rule}, got {getattr(self, name)}")

        check(isinstance(self.steps, int) and self.steps >= 1, "steps", "an integer of at least 1")
        check(0 < self.rescale_t < math.inf, "rescale_t", "a number above 0")
        check(0 <= self.guidance_scale < math.inf, "guidance_scale", "a number of at least 0")
        check(0 <= self.guidance_rescale <= 1, "guidance_rescale", "between 0 and 1")
        check(0 <= self.sigma_min < 1, "sigma_min", "at least 0 and below 1")
        interval = self.guidance_interval
        check(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            "guidance_interval",
            "two rising numbers between 0 and 1",
        )
        object.__setattr__(self, "guidance_interval", (float(interval[0]), float(interval[1])))


def override(settings: SamplerSettings, changes: Overrides) -> SamplerSettings:
    """Replace single entries; entries that are None keep the model's value. `UsageError` for unknown ones."""
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    unknown = set(given) - set(SamplerSettings.__dataclass_fields__)
    if unknown:
        raise UsageError(
            f"unknown sampler setting `{sorted(unknown)[0]}`",
            hint=f"choose from: {', '.join(SamplerSettings.__dataclass_fields__)}",
        )
    return replace(settings, **given)


def timesteps(steps: int, rescale_t: float = 1.0) -> list[float]:
    """The `steps + 1` times from 1 to 0.

    In float64 and by this very formula: the released guidance intervals end on times that are hit exactly.
    """
    import numpy as np  # here: the command line reads settings before it needs any numbers

    s = np.linspace(1, 0, steps + 1)
    t = rescale_t * s / (1 + (rescale_t - 1) * s)
    return t.clip(0, 1).tolist()  # type: ignore[no-any-return]
