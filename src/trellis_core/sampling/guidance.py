"""Classifier-free guidance as a wrapper around velocities."""

from __future__ import annotations

from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sampling.state import State, Velocity, sample_std, values, with_values


def guided(conditional: Velocity, unconditional: Velocity, settings: SamplerSettings) -> Velocity:
    """Classifier-free guidance (Ho & Salimans, 2022) within an interval (Kynkaanniemi et al., 2024).

    v = g * v_c + (1 - g) * v_u where g is `guidance_scale`; outside of the interval v = v_c.
    A network that cannot change the result is not run: g = 1 is conditional, g = 0 unconditional.
    """
    low, high = settings.guidance_interval
    scale = settings.guidance_scale

    def velocity(x: State, t: float) -> State:
        if scale == 1 or not low <= t <= high:
            return conditional(x, t)  # type: ignore[no-any-return]
        if scale == 0:
            return unconditional(x, t)  # type: ignore[no-any-return]
        v_cond = conditional(x, t)
        v_uncond = unconditional(x, t)
        v = with_values(x, scale * values(v_cond) + (1 - scale) * values(v_uncond))
        if settings.guidance_rescale > 0:
            v = rescaled(x, t, v, v_cond, settings)
        return v

    return velocity


def rescaled(x: State, t: float, v: State, v_cond: State, settings: SamplerSettings) -> State:
    """Give the clean estimate the deviation of the conditional one (Lin et al., 2024), in part."""
    sigma, amount = settings.sigma_min, settings.guidance_rescale
    estimate = clean_estimate(x, t, v, sigma)
    ratio = sample_std(clean_estimate(x, t, v_cond, sigma)) / sample_std(estimate)
    clean = values(estimate) * (amount * ratio + (1 - amount))
    return with_values(x, ((1 - sigma) * values(x) - clean) / (sigma + (1 - sigma) * t))


def clean_estimate(x: State, t: float, v: State, sigma_min: float) -> State:
    """The data x_0 that the velocity at (x, t) points to."""
    return with_values(x, (1 - sigma_min) * values(x) - (sigma_min + (1 - sigma_min) * t) * values(v))
