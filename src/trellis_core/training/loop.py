"""The training loop: a piece of given length that ends with its learning rate at zero, and can be
continued.

An objective is a callable `step -> dict of losses`; the sum under `loss` is differentiated. The loop knows
nothing about data or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trellis_core.training.checkpoints import load_checkpoint, save_checkpoint
from trellis_core.training.optimizer import Average, Optimizer, OptimizerSettings, learning_curve
from trellis_core.training.precision import mixed_precision

Objective = Callable[[int], Mapping[str, Tensor]]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    seconds: float  # length of the piece, wall clock
    steps: int | None = None  # length in steps instead, for tests and exact repetition
    device: str = "cpu"
    dtype: torch.dtype | None = None  # of matrix products; None: float32
    log_every: int = 50
    save_every: float = 120.0  # seconds


def train(
    model: nn.Module,  # everything that learns
    objective: Objective,
    optimizer_settings: OptimizerSettings,
    settings: LoopSettings,
    checkpoint: Path | None = None,  # continued from when it exists; written while training and at the end
    log: Log = lambda line: None,
) -> Average:
    """Train for one piece; the averaged weights are returned and stored with the checkpoint."""
    optimizer = Optimizer(model.named_parameters(), optimizer_settings)
    average = Average(model, optimizer_settings.ema)
    step = load_checkpoint(checkpoint, model, optimizer, average) if checkpoint and checkpoint.exists() else 0
    first, began, saved = step, time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    seen = 0
    model.train()
    while True:
        now = time.monotonic()
        progress = (step - first) / settings.steps if settings.steps else (now - began) / settings.seconds
        if progress >= 1:
            break
        with mixed_precision(settings.device, settings.dtype):
            losses = objective(step)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = optimizer.step(learning_curve(progress))
        average.update(model)
        step += 1
        seen += 1
        for name, value in {**losses, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(value).detach())
        if seen == settings.log_every:
            means = " ".join(f"{name} {total / seen:.4f}" for name, total in sums.items())
            log(f"step {step} elapsed {now - began:.0f}s {means}")
            sums, seen = {}, 0
        if checkpoint and now - saved > settings.save_every:
            save_checkpoint(checkpoint, model, optimizer, average, step)
            saved = now
    if checkpoint:
        save_checkpoint(checkpoint, model, optimizer, average, step)
    model.load_state_dict(average.weights)
    model.eval()
    return average
