"""Losses and noise schedules that no model version owns.

Random numbers come from a `torch.Generator` and are drawn on its device.
Letters: B batch, T packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_MIN = 1e-5  # noise that is left at t = 0, as in the samplers
TIME_BINS = 10  # equal parts of [0, 1] in which flow losses are reported


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of KL(N(mean, exp(logvar)) || N(0, 1)), in nats per channel."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).mean()


def posterior_sample(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """mean + exp(logvar / 2) * noise."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device)
    return reparameterized(mean, logvar, noise.to(mean.device))


def reparameterized(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """mean + exp(logvar / 2) * noise (Kingma & Welling, "Auto-Encoding Variational Bayes", 2014)."""
    return mean + (0.5 * logvar).exp() * noise


def dice_loss(logits: Tensor, target: Tensor, *, whole_batch: bool = False) -> Tensor:
    """1 - Dice coefficient, smoothed by 1, per sample (first axis) or of the whole batch as one set."""
    axis = 0 if whole_batch else 1
    p, q = logits.sigmoid().flatten(axis), target.flatten(axis)
    return (1 - (2 * (p * q).sum(-1) + 1) / (p.sum(-1) + q.sum(-1) + 1)).mean()


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements; the target may be bool."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def noised(x: Tensor, noise: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """x_t = (1 - t) x_0 + (sigma + (1 - sigma) t) noise (rectified flow, Liu et al.); `t` broadcasts."""
    return (1 - t) * x + (sigma_min + (1 - sigma_min) * t) * noise


def velocity_target(x: Tensor, noise: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """What a flow model predicts: (1 - sigma) noise - x_0."""
    return (1 - sigma_min) * noise - x


def clean_from(x_t: Tensor, noise: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """The x_0 that `noised` started from; `t` below 1."""
    return (x_t - (sigma_min + (1 - sigma_min) * t) * noise) / (1 - t)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSchedule:
    """How often each time is trained: evenly, or as the sigmoid of a normal number.

    Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024).
    """

    name: Literal["uniform", "logitNormal"] = "uniform"  # the released words
    mean: float = 0.0  # of the logit
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("uniform", "logitNormal"):
            raise ValueError(f"unknown time schedule `{self.name}`: choose `uniform` or `logitNormal`")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # float32 [B]
        random = torch.rand if self.name == "uniform" else torch.randn
        return self.times(random(count, generator=generator, device=generator.device))

    def times(self, random: Tensor) -> Tensor:
        """From uniform or standard normal numbers, as the schedule wants them."""
        return random if self.name == "uniform" else (self.mean + self.std * random).sigmoid()


def logit_normal_times(
    count: int, mean: float, std: float, generator: torch.Generator
) -> Tensor:  # float32 [B]
    """sigmoid(mean + std * n) with n standard normal."""
    return TimeSchedule(name="logitNormal", mean=mean, std=std).draw(count, generator)


def dropped(count: int, probability: float, generator: torch.Generator) -> Tensor:  # bool [B]
    """Which samples are trained without their condition (Ho & Salimans, 2022): one number per sample."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def without_condition(
    cond: Tensor | Sequence[Tensor],  # [B, M, C], or one [M_i, C] per sample
    chosen: Tensor,  # bool [B]
    uncond: Tensor | None = None,  # [B, M, C] or [M, C]; None: zeros of the condition's shape
) -> Tensor | list[Tensor]:
    """The condition with the chosen samples' tokens replaced."""
    if isinstance(cond, Tensor):
        other = torch.zeros_like(cond) if uncond is None else uncond.to(cond)
        return torch.where(chosen.to(cond.device)[:, None, None], other, cond)
    empty = [torch.zeros_like(c) for c in cond] if uncond is None else list(uncond.expand(len(cond), -1, -1))
    return [e if drop else c for c, e, drop in zip(cond, empty, chosen.tolist(), strict=True)]


def time_bins(
    error: Tensor,  # float32 [B]  of one sample each
    t: Tensor,  # float32 [B]
    bins: int = TIME_BINS,
) -> Tensor:  # float32 [bins]  mean error per part of [0, 1], nan where no sample fell
    """Where along the path a flow errs. Never waits for the device."""
    place = (t.to(error.device) * bins).long().clamp(0, bins - 1)
    zeros = error.new_zeros(bins)
    error = error.detach()
    return zeros.index_add(0, place, error) / zeros.index_add(0, place, torch.ones_like(error))


def named_bins(bins: Tensor) -> dict[str, float]:
    """`bin_0` ... for the bins that have samples: what a log line shows."""
    return {f"bin_{i}": value for i, value in enumerate(bins.tolist()) if value == value}  # noqa: PLR0124
