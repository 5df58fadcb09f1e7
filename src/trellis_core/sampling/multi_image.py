"""Sampling from several conditions at once: pictures of one object, without training for it.

Both modes wrap velocities and know nothing about pictures. A flow trained on one picture sees one at a
time: `stochastic` gives every step the next one, `multidiffusion` (Bar-Tal et al., 2023) follows the mean
of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trellis_core.errors import UsageError
from trellis_core.sampling.euler import OnStep, model_velocity, sample_euler
from trellis_core.sampling.guidance import guided
from trellis_core.sampling.schedule import SamplerSettings, timesteps
from trellis_core.sampling.state import State, Velocity, values, with_values

STOCHASTIC = "stochastic"
MULTIDIFFUSION = "multidiffusion"


def sample_flow(
    model: Callable[..., Any],  # (x, 1000 * t float32 [B], cond, **inputs) -> v like x
    noise: State,
    conds: Sequence[Any],  # one per picture
    settings: SamplerSettings,
    *,
    mode: str = STOCHASTIC,
    uncond: Any = None,  # None is the context of zeros
    on_step: OnStep | None = None,
    integrate: Callable[..., Any] = sample_euler,  # (velocity, noise, times, on_step) -> state
    **inputs: Any,
) -> State:
    """`euler.sample_flow` with one condition per picture; with a single one it is the same computation.

    Guidance wraps the combined velocity, so the unconditional one is computed once per step. Raises
    `UsageError` for an unknown mode or no condition.
    """
    combine = mode_named(mode)
    if not conds:
        raise UsageError("there is no condition to sample from", hint="give at least one picture")
    times = timesteps(settings.steps, settings.rescale_t)
    conditional = combine([model_velocity(model, cond, **inputs) for cond in conds], times)
    velocity = guided(conditional, model_velocity(model, uncond, **inputs), settings)
    return integrate(velocity, noise, times, on_step)  # type: ignore[no-any-return]


def alternating(velocities: Sequence[Velocity], times: Sequence[float]) -> Velocity:
    """Step k follows velocity k mod n, wherever it is evaluated from; `times` are the sampler's."""
    step_at = {t: step for step, t in enumerate(times)}

    def velocity(x: Any, t: float) -> Any:
        return velocities[step_at[t] % len(velocities)](x, t)

    return velocity


def averaged(velocities: Sequence[Velocity], times: Sequence[float] = ()) -> Velocity:
    """The mean of all velocities at every step."""

    def velocity(x: Any, t: float) -> Any:
        total = sum(values(each(x, t)) for each in velocities)
        return with_values(x, total / len(velocities))  # type: ignore[arg-type]

    return velocity


MODES: Mapping[str, Callable[[Sequence[Velocity], Sequence[float]], Velocity]] = {
    STOCHASTIC: alternating,
    MULTIDIFFUSION: averaged,
}


def mode_named(name: str) -> Callable[[Sequence[Velocity], Sequence[float]], Velocity]:
    if name not in MODES:
        raise UsageError(
            f"unknown way to combine pictures `{name}`", hint=f"choose one of: {', '.join(MODES)}"
        )
    return MODES[name]


def pictures_used(mode: str, pictures: int, steps: int) -> int:
    """How many of the pictures a stage of so many steps looks at."""
    return min(pictures, steps) if mode == STOCHASTIC else pictures


def unused_pictures(mode: str, count: int, samplers: Mapping[str, SamplerSettings]) -> str:
    """What to say when a stage has fewer steps than there are pictures; empty when none has."""
    short = [
        f"{pictures_used(mode, count, sampler.steps)} in the {name} stage"
        for name, sampler in samplers.items()
        if pictures_used(mode, count, sampler.steps) < count
    ]
    if not short:
        return ""
    return f"of the {count} pictures only {', '.join(short)} are used; give more steps or fewer pictures"
