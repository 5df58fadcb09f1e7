"""The released optimisation step: one flat float32 copy of all parameters beside a half-precision model.

Micikevicius et al., "Mixed Precision Training" (2018), with one vector for all parameters ("inflat_all" in
released configurations). Knows nothing about losses or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trellis_core.errors import TrellisError

Clip = Callable[[Iterable[Tensor]], float]


class MasterCopy:
    """Float32 master of named parameters, with loss scaling.

    The loss is multiplied by 2^log_scale, which grows a little with every good step and falls by 1 when a
    gradient is not finite; such a step is skipped. With `log_scale` None nothing is scaled.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        log_scale: float | None = 20.0,
        growth: float = 1e-3,
    ) -> None:
        self.named = {name: p for name, p in parameters if p.requires_grad}
        if not self.named:
            raise ValueError("there is no parameter to train")
        self.log_scale, self.growth = log_scale, growth
        values = [p.detach().float().flatten() for p in self.named.values()]
        self.flat = nn.Parameter(torch.cat(values))  # what the optimizer sees

    def scaled(self, loss: Tensor) -> Tensor:
        """What to differentiate."""
        return loss if self.log_scale is None else loss * 2**self.log_scale

    def step(self, optimizer: torch.optim.Optimizer, clip: Clip) -> tuple[float, bool]:
        """Apply the gradients that are in the model and clear them: (norm before clipping, applied?).

        `optimizer` holds `flat` alone. Raises `TrellisError` when the loss scale has fallen below 1.
        """
        self.flat.grad = self.gradient()
        for p in self.named.values():
            p.grad = None
        norm = clip([self.flat])
        applied = bool(torch.isfinite(self.flat.grad).all())
        if applied:
            optimizer.step()
            self.write()
        self.flat.grad = None
        if self.log_scale is not None:
            self.log_scale += self.growth if applied else -1.0
            if self.log_scale < 0:
                raise TrellisError(
                    "training diverged: gradients are not finite at any loss scale",
                    hint="start again from an earlier checkpoint with a smaller learning rate",
                )
        return norm, applied

    def gradient(self) -> Tensor:  # float32 [P]
        """The model's gradients, unscaled; zero where a parameter has none."""
        parts = [
            torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
            for p in self.named.values()
        ]
        flat = torch.cat([g.flatten() for g in parts])
        return flat if self.log_scale is None else flat / 2**self.log_scale

    @torch.no_grad()
    def write(self) -> None:
        """Copy the master into the model, in the model's own precision."""
        for name, value in self.views(self.flat).items():
            self.named[name].copy_(value)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat vector by parameter name and in its shape."""
        sizes = [p.numel() for p in self.named.values()]
        parts = flat.detach().split(sizes)
        return {name: part.view_as(p) for (name, p), part in zip(self.named.items(), parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"flat": self.flat.detach(), "log_scale": self.log_scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.flat.copy_(state["flat"])
        self.log_scale = state["log_scale"]
        self.write()


class FlatAverage:
    """Exponential moving average of a master copy, updated after every step, skipped ones included."""

    def __init__(self, master: MasterCopy, rate: float) -> None:
        self.rate = rate
        self.flat = master.flat.detach().clone()

    def update(self, master: MasterCopy) -> None:
        self.flat.lerp_(master.flat.detach(), 1 - self.rate)


def linear_warm_up(step: int, steps: int) -> float:
    """Factor of the learning rate at `step`, counted from 0: rises to 1 within `steps`."""
    return min((step + 1) / max(steps, 1), 1.0)
