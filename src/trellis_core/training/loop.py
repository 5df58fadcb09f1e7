"""The training loop: a stage of given length whose learning rate ends at zero, in as many pieces as needed.

An objective is a callable `step -> dict of losses`; the mean under `loss` is differentiated. The loop knows
nothing about data or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from trellis_core.errors import UsageError
from trellis_core.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from trellis_core.training.distributed import World
from trellis_core.training.optimizer import Average, Optimizer, OptimizerSettings, learning_curve
from trellis_core.training.precision import mixed_precision

Objective = Callable[[int], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Means since the last entry."""

    step: int
    elapsed: float  # seconds of all pieces
    values: Mapping[str, float]

    def __str__(self) -> str:
        means = " ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"step {self.step} elapsed {self.elapsed:.0f}s {means}"


Log = Callable[[LogEntry], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """A stage lasts `steps` steps, or `seconds` of wall clock over all its pieces; a longer length than
    before prolongs a finished stage."""

    steps: int | None = None
    seconds: float | None = None
    stop_after: int | None = None  # end this piece after so many steps, with a checkpoint
    micro_batches: int = 1  # gradients of so many objectives are averaged per step
    device: str = "cpu"
    dtype: torch.dtype | None = None  # of matrix products; None: float32
    log_every: int = 50
    save_every: float = 120.0  # seconds
    world: World = field(default_factory=World)
    stop: Callable[[], bool] = field(default=lambda: False)  # asked between steps: end this piece
    on_save: Callable[[], None] = field(default=lambda: None)  # called when a checkpoint was written

    def progress(self, step: int, elapsed: float) -> float:
        """How much of the stage is done; 1 or more at its end."""
        if self.steps is not None:
            return step / max(self.steps, 1)
        if self.seconds is not None:
            return elapsed / max(self.seconds, 1e-9)
        raise UsageError("how long to train is not said", hint="give a number of steps or of seconds")


def train(
    model: nn.Module,  # everything that learns
    objective: Objective,
    optimizer_settings: OptimizerSettings,
    settings: LoopSettings,
    checkpoint: Path | None = None,  # continued from when it exists; written while training and at the end
    log: Log = lambda entry: None,
    generators: Mapping[str, torch.Generator] | None = None,  # what the objective draws from
) -> Average:
    """Train to the end of the stage; the averaged weights are returned and stored with the checkpoint.

    A killed run loses what it did after its last checkpoint.
    """
    world, generators = settings.world, dict(generators or {})
    optimizer = Optimizer(model.named_parameters(), optimizer_settings)
    world.broadcast(model)
    average = Average(model, optimizer_settings.ema)
    done = Progress()
    if checkpoint and checkpoint.exists():
        done = load_checkpoint(checkpoint, model, optimizer, average)
        for name, generator in generators.items():
            with suppress(KeyError):  # a process more than before starts with its own numbers
                generator.set_state(done.generators[f"{name}.{world.rank}"])
    began, before = time.monotonic(), done.elapsed
    saved, first = before, done.step
    sums: dict[str, Tensor] = {}
    seen = 0

    def save() -> None:
        done.generators = world.gather({name: g.get_state() for name, g in generators.items()})
        if checkpoint and world.leads:
            save_checkpoint(checkpoint, model, optimizer, average, done)
            settings.on_save()

    def tell() -> None:
        means = world.mean({name: float(value) / seen for name, value in sums.items()})
        if world.leads:
            log(LogEntry(done.step, done.elapsed, means))

    model.train()
    while True:
        done.elapsed = before + world.agree(time.monotonic() - began)
        if (progress := settings.progress(done.step, done.elapsed)) >= 1:
            break
        if world.any(settings.stop()) or done.step - first == settings.stop_after:
            break
        losses = _gradients(objective, done.step, settings)
        world.average_gradients(optimizer.parameters)
        losses["norm"] = torch.tensor(optimizer.step(learning_curve(progress)))
        average.update(model)
        done.step += 1
        seen += 1
        for name, value in losses.items():
            sums[name] = sums[name] + value if name in sums else value
        if seen == settings.log_every:
            tell()
            sums, seen = {}, 0
        if done.elapsed - saved > settings.save_every:
            save()
            saved = done.elapsed
    if seen:
        tell()
    save()
    model.load_state_dict(average.weights)
    model.eval()
    return average


def _gradients(objective: Objective, step: int, settings: LoopSettings) -> dict[str, Tensor]:
    """Add up the gradients of the micro-batches; the means of their losses, detached."""
    count = settings.micro_batches
    means: dict[str, Tensor] = {}
    for _ in range(count):
        with mixed_precision(settings.device, settings.dtype):
            losses = objective(step)
        (losses["loss"] / count).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            value = torch.as_tensor(loss).detach() / count
            means[name] = means[name] + value if name in means else value
    return means
