"""Losses and noise schedules that no model version owns.

Letters: B batch, T packed tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIGMA_MIN = 1e-5  # noise that is left at t = 0, as in the samplers


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of KL(N(mean, exp(logvar)) || N(0, 1)), in nats per channel."""
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).mean()


def posterior_sample(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """mean + exp(logvar / 2) * noise."""
    return mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient per sample (first axis), smoothed by 1."""
    p, q = logits.sigmoid().flatten(1), target.flatten(1)
    return (1 - (2 * (p * q).sum(1) + 1) / (p.sum(1) + q.sum(1) + 1)).mean()


def noised(x: Tensor, noise: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """x_t = (1 - t) x_0 + (sigma + (1 - sigma) t) noise (rectified flow, Liu et al.); `t` broadcasts."""
    return (1 - t) * x + (sigma_min + (1 - sigma_min) * t) * noise


def velocity_target(x: Tensor, noise: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """What a flow model predicts: (1 - sigma) noise - x_0."""
    return (1 - sigma_min) * noise - x


def logit_normal_times(
    count: int, mean: float, std: float, generator: torch.Generator
) -> Tensor:  # float32 [B]
    """sigmoid(mean + std * n) with n standard normal."""
    return (mean + std * torch.randn(count, generator=generator)).sigmoid()
