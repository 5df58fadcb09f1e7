"""Muon for hidden matrices, AdamW for the rest, the averaged copy of the weights, and the learning-rate
curve.

Muon: Jordan et al. (2024), momentum whose update is made orthogonal by Newton-Schulz iterations; matrices
of equal shape are treated together. Knows nothing about models beyond the names of their parameters.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Layers at the rim of a network, and everything that is no matrix of hidden units, are AdamW's.
RIM = re.compile(
    r"(^|\.)(input_layer|out_layer|output_layer|embeddings|t_embedder|adaLN_modulation|modulation|to_latent|from_latent|"
    r"to_subdiv|queries|head|gamma)(\.|$)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    muon_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_decay: float = 0.01
    iterations: int = 4  # Newton-Schulz
    adam_rate: float = 1.5e-3
    adam_betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # limit of the gradient's norm
    ema: float = 0.995


def learning_curve(progress: float, warm_up: float = 0.03, decay_from: float = 0.6) -> float:
    """Factor of the learning rate: linear warm-up, constant, then linear to zero at `progress` 1."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    if progress < decay_from:
        return 1.0
    return max((1 - progress) / (1 - decay_from), 0.0)


class Optimizer:
    """Muon and AdamW side by side, with gradient clipping."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> None:
        self.settings = settings
        named = [(n, p) for n, p in parameters if p.requires_grad]
        self.matrices = [p for n, p in named if p.ndim >= 2 and not RIM.search(n)]
        self.rest = [p for n, p in named if p.ndim < 2 or RIM.search(n)]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(
            self.rest, lr=settings.adam_rate, betas=settings.adam_betas, weight_decay=0.0
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.matrices + self.rest

    def step(self, factor: float) -> float:
        """Apply the gradients at `factor` times the learning rates; the norm of the gradient before
        clipping. A gradient that is not finite changes nothing."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if math.isfinite(norm):
            for group in self.adam.param_groups:
                group["lr"] = self.settings.adam_rate * factor
            self.adam.step()
            self._muon(factor)
        for p in self.parameters:
            p.grad = None
        return norm

    @torch.no_grad()
    def _muon(self, factor: float) -> None:
        s = self.settings
        learning = [
            (p, p.grad, m) for p, m in zip(self.matrices, self.momentum, strict=True) if p.grad is not None
        ]
        if not learning:
            return
        grads, momentum = [grad for _, grad, _ in learning], [m for _, _, m in learning]
        torch._foreach_lerp_(momentum, grads, 1 - s.muon_momentum)
        nesterov = torch._foreach_lerp(grads, momentum, s.muon_momentum)
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for (p, _, _), update in zip(learning, nesterov, strict=True):
            flat = update.flatten(1)
            groups[(flat.shape[0], flat.shape[1])].append((p, flat))
        for (rows, columns), members in groups.items():
            updates = orthogonalized(torch.stack([u for _, u in members]), s.iterations)
            scale = s.muon_rate * factor * max(1.0, rows / columns) ** 0.5
            weights = [p for p, _ in members]
            torch._foreach_mul_(weights, 1 - s.muon_rate * factor * s.muon_decay)
            torch._foreach_add_(
                weights, [u.view_as(p) for p, u in zip(weights, updates, strict=True)], alpha=-scale
            )

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, stored in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(stored)
        self.adam.load_state_dict(state["adam"])


def orthogonalized(
    matrices: Tensor,  # float32 [K, M, N]
    iterations: int = 5,
) -> Tensor:  # float32 [K, M, N]  singular values near 1
    """Quintic Newton-Schulz iterations towards the nearest (semi-)orthogonal matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Average:
    """Exponential moving average of a model's weights, with a ramp at the start."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate, self.updates = rate, 0
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        rate = min(self.rate, self.updates / (self.updates + 10))
        state = model.state_dict()
        torch._foreach_lerp_([self.weights[name] for name in state], list(state.values()), 1 - rate)
