"""Losses that both model versions train with, held against recorded ones.

Each function takes networks and a batch, with the random numbers already drawn, and returns its losses by
name; `loss` is what training differentiates.
Letters: B batch, T packed tokens, C channels, R occupancy grid, r latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from trellis_core.nn.transformer import Condition
from trellis_core.sparse.ops import mean_per_sample
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.objectives import (
    SIGMA_MIN,
    binary_cross_entropy,
    dice_loss,
    kl_divergence,
    noised,
    reparameterized,
    time_bins,
    velocity_target,
)

Losses = dict[str, Tensor]


def flow_losses(
    model: nn.Module,  # called as model(x_t, 1000 t, cond, **inputs)
    x: Tensor | SparseTensor,  # float32 [B, C, R, R, R], or [T, C]: data
    noise: Tensor,  # float32, of the shape of x or of its features
    t: Tensor,  # float32 [B]
    cond: Condition,
    *,
    sigma_min: float = SIGMA_MIN,
    **inputs: Any,  # such as concat_cond
) -> Losses:
    """Flow matching (Lipman et al., 2023): mean over all elements, so large samples weigh more.

    `bins` float32 [10] holds the mean error of the samples in each tenth of t, nan without samples.
    """
    if isinstance(x, SparseTensor):
        scale = x.broadcast(t[:, None])
        x_t = x.replace(noised(x.feats, noise, scale, sigma_min))
        predicted = model(x_t, 1000 * t, cond, **inputs).feats
        errors = (predicted - velocity_target(x.feats, noise, sigma_min)).square()
        per_sample = mean_per_sample(x.replace(errors.detach()))
    else:
        scale = t.view(-1, *[1] * (x.ndim - 1))
        predicted = model(noised(x, noise, scale, sigma_min), 1000 * t, cond, **inputs)
        errors = (predicted - velocity_target(x, noise, sigma_min)).square()
        per_sample = errors.detach().flatten(1).mean(1)
    return {"loss": errors.mean(), "bins": time_bins(per_sample, t)}


STRUCTURE_TERMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": binary_cross_entropy,
    "l1": lambda logits, target: (logits.sigmoid() - target).abs().mean(),
    "dice": lambda logits, target: dice_loss(logits, target, whole_batch=True),
}


def structure_vae_losses(
    encoder: nn.Module,
    decoder: nn.Module,
    occupancy: Tensor,  # float32 [B, 1, R, R, R], 0 or 1
    noise: Tensor,  # float32 [B, C, r, r, r]  of the posterior
    *,
    term: Literal["bce", "l1", "dice"] = "bce",
    kl_weight: float = 1e-6,
) -> Losses:
    """One term of STRUCTURE_TERMS, and KL."""
    occupancy = occupancy.float()
    mean, logvar = encoder(occupancy)
    logits = decoder(reparameterized(mean, logvar, noise))
    error, kl = STRUCTURE_TERMS[term](logits, occupancy), kl_divergence(mean, logvar)
    return {"loss": error + kl_weight * kl, term: error, "kl": kl}
