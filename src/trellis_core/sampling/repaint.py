"""Sampling a part of something known: the rest stays what it is.

RePaint (Lugmayr et al., 2022) for flows, as TRELLIS (Xiang et al., 2024) edits regions. The part to keep
follows the straight path from its noise to its known values, the rest follows the model, which sees both.
Going back in time and repeating a step lets the two agree.
Knows nothing about regions or networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.sampling.euler import OnStep
from trellis_core.sampling.state import State, Velocity, values, with_values


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is to stay, and how to sample around it."""

    values: Tensor  # like the values of the state, in the flow's space; what is not kept may hold anything
    keep: Tensor  # bool, broadcasts to `values`
    draw: Callable[..., Tensor]  # sizes -> standard normal numbers on the state's device
    repeats: int = 1  # how often every step is done; above 1 after going back to where it began
    sigma_min: float = 1e-5  # noise left at t=0
    freedom: float = 0.0  # share of the way from t=1 on which the model knows nothing of it

    def __post_init__(self) -> None:
        check_settings(self.repeats, self.freedom)

    def put_back(self, x: State) -> State:
        """`x` with the known values where they are to stay, to the last bit."""
        return with_values(x, torch.where(self.keep, self.values, values(x)))

    def drift(self, x: State) -> float:
        """How far `x` is from what is to stay: root mean square; 0 when nothing is."""
        off = (values(x) - self.values)[self.keep.expand_as(self.values)]
        return float(off.square().mean().sqrt()) if len(off) else 0.0


def check_settings(repeats: int, freedom: float) -> None:
    """Raises `UsageError` for values that make no sense."""
    if repeats < 1:
        raise UsageError(f"steps must be done at least once, got `repeats` {repeats}")
    if not 0 <= freedom <= 1:
        raise UsageError(f"`freedom` must be between 0 and 1, got {freedom}")


def sample_repaint(
    velocity: Velocity,
    noise: State,
    timesteps: Sequence[float],  # falling, from 1 to 0
    on_step: OnStep | None = None,
    *,
    known: Known,
) -> State:
    """Integrate from t=1 to t=0 around what is known.

    The result is the model's own everywhere: `known.drift` measures how well it agrees with what is to stay,
    `known.put_back` restores that.
    """

    def sigma(t: float) -> float:
        return known.sigma_min + (1 - known.sigma_min) * t

    def merged(x: Tensor, t: float) -> Tensor:
        if t > 1 - known.freedom:
            return x
        return torch.where(known.keep, (1 - t) * known.values + sigma(t) * path, x)

    x: Tensor = values(noise)
    path: Tensor = x  # the noise that the known part comes from
    for step, (t, t_next) in enumerate(pairwise(timesteps)):
        rounds = known.repeats if t < 1 else 1  # from t=1 there is only noise to go back to
        for again in reversed(range(rounds)):
            moved = x - (t - t_next) * values(velocity(with_values(noise, x), t))
            if again:  # x_t = a x_s + b e has the marginal of t
                a = (1 - t) / (1 - t_next)
                b = math.sqrt(max(sigma(t) ** 2 - (a * sigma(t_next)) ** 2, 0.0))
                fresh = known.draw(*x.shape)
                x = a * merged(moved, t_next) + b * fresh
                path = (a * sigma(t_next) * path + b * fresh) / sigma(t)
            else:
                x = merged(moved, t_next) if t_next > 0 else moved
        if on_step is not None:
            on_step(step, with_values(noise, x))
    return with_values(noise, x)
