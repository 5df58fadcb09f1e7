"""Gradient clipping whose limit follows the gradients: a percentile of recent norms, capped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class AdaptiveClip:
    """Clips to `max_norm` until `window` norms are known, then to their `percentile` if that is less.

    Norms that are not finite are not remembered. The memory is a ring of the last `window` norms.
    """

    def __init__(self, max_norm: float | None = 1.0, percentile: float = 95.0, window: int = 1000) -> None:
        if not 0 <= percentile <= 100 or window < 1:
            raise ValueError(f"percentile {percentile} must be 0 to 100 and window {window} at least 1")
        self.max_norm, self.percentile, self.window = max_norm, percentile, window
        self.limit = max_norm  # of the next step; None: no limit yet
        self.norms: list[float] = []
        self.next = 0  # place of the next norm once the ring is full

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Tensor]) -> float:
        """Scale the gradients in place; the norm that they had."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.float()) for g in gradients]
        total = torch.linalg.vector_norm(torch.stack(norms))
        if self.limit is not None:
            factor = (self.limit / (total + 1e-6)).clamp(max=1)
            for g in gradients:
                g.mul_(factor.to(g))
        norm = float(total)
        if torch.isfinite(total):
            self._remember(norm)
        return norm

    def _remember(self, norm: float) -> None:
        if len(self.norms) < self.window:
            self.norms.append(norm)
        else:
            self.norms[self.next] = norm
            self.next = (self.next + 1) % self.window
        if len(self.norms) == self.window:
            recent = torch.tensor(self.norms, dtype=torch.float64)
            usual = float(torch.quantile(recent, self.percentile / 100))
            self.limit = usual if self.max_norm is None else min(usual, self.max_norm)

    def state_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "norms": list(self.norms), "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.limit, self.norms, self.next = state["limit"], list(state["norms"]), int(state["next"])
