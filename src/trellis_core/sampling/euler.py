"""Integrate a flow from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from trellis_core.sampling.guidance import guided
from trellis_core.sampling.schedule import SamplerSettings, timesteps
from trellis_core.sampling.state import State, Velocity, model_times, values, with_values

OnStep = Callable[[int, Any], None]
"""(step from 0, x after the step); may raise to stop."""


def sample_euler(
    velocity: Velocity,
    x: State,
    timesteps: Sequence[float],  # falling, from 1 to 0
    on_step: OnStep | None = None,
) -> State:
    """Integrate the flow from t=1 (noise) to t=0 (data) with Euler steps."""
    for step, (t, t_next) in enumerate(pairwise(timesteps)):
        x = with_values(x, values(x) - (t - t_next) * values(velocity(x, t)))
        if on_step is not None:
            on_step(step, x)
    return x


def model_velocity(model: Callable[..., Any], cond: Any, **inputs: Any) -> Velocity:
    """A network and its condition as a velocity; `inputs` go to every call."""

    def velocity(x: Any, t: float) -> Any:
        return model(x, model_times(x, t), cond, **inputs)

    return velocity


def sample_flow(
    model: Callable[..., Any],  # (x, 1000 * t float32 [B], cond, **inputs) -> v like x
    noise: State,
    cond: Any,
    settings: SamplerSettings,
    *,
    uncond: Any = None,  # None is the context of zeros
    on_step: OnStep | None = None,
    **inputs: Any,
) -> State:
    """Sample one stage: guidance around the network, Euler around guidance."""
    velocity = guided(
        model_velocity(model, cond, **inputs), model_velocity(model, uncond, **inputs), settings
    )
    return sample_euler(velocity, noise, timesteps(settings.steps, settings.rescale_t), on_step)
