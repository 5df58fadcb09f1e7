"""The loop that recipes of released models ask for: AdamW at a constant rate, adaptive clipping, an average
of the weights, gradient accumulation, elastic memory, exact continuation.

Samples come in the order of `SampleOrder`; the objective gets the indices of a micro-batch. Knows nothing
about data or networks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_core.errors import ModelError, UsageError
from trellis_core.training.batching import SampleOrder, micro_batches
from trellis_core.training.clipping import AdaptiveClip
from trellis_core.training.distributed import World
from trellis_core.training.elastic import GIB, Checkpointable, ElasticMemory, ElasticSettings, cuda_peak
from trellis_core.training.loop import Log, LogEntry
from trellis_core.training.master import MasterCopy, linear_warm_up
from trellis_core.training.precision import mixed_precision
from trellis_core.training.recipes import Recipe

LossesOf = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Indices of a micro-batch -> losses by name; the mean under `loss` is differentiated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Where and how long; everything else is the recipe's."""

    steps: int  # of all pieces together
    seconds: float | None = None  # end this piece after so long
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    save_every: int | None = None  # steps; None: as the recipe says
    log_every: int | None = None
    world: World = field(default_factory=World)
    stop: Callable[[], bool] = field(default=lambda: False)  # asked between steps: end this piece
    on_step: Callable[[int], None] = field(default=lambda step: None)  # how many are done


class Trainee:
    """What learns, with everything that a checkpoint must hold."""

    def __init__(self, model: nn.Module, recipe: Recipe, order: SampleOrder, *, inflated: bool) -> None:
        o, c = recipe.optimizer, recipe.clip
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise UsageError("there is nothing to train: every parameter is frozen", hint="check the recipe")
        self.master = MasterCopy(self.named.items()) if inflated else None
        learning = [self.master.flat] if self.master else list(self.named.values())
        self.adam = torch.optim.AdamW(
            learning, lr=o.rate, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay
        )
        self.clip = AdaptiveClip(c.max_norm, c.percentile, c.window)
        self.model, self.recipe, self.order, self.step = model, recipe, order, 0
        self.average = {name: value.detach().float().clone() for name, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """In the precision in which they are trained."""
        return self.master.views(self.master.flat) if self.master else dict(self.named)

    def scaled(self, loss: Tensor) -> Tensor:
        return self.master.scaled(loss) if self.master else loss

    def update(self) -> float:
        """Apply the gradients, clear them, move the average; the norm before clipping."""
        factor = linear_warm_up(self.step, self.recipe.optimizer.warm_up)
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.optimizer.rate * factor
        if self.master:
            norm, _ = self.master.step(self.adam, self.clip)
        else:
            norm = self.clip(self.named.values())
            if norm < float("inf"):  # false for nan as well
                self.adam.step()
            self.adam.zero_grad(set_to_none=True)
        # the ramp is ours: without it the average of a short run would still be its start
        rate = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        new = self.weights()
        for name, mean in self.average.items():
            mean.lerp_(new[name].detach().float(), 1 - rate)
        self.step += 1
        return norm

    def save(self, path: Path, states: Mapping[str, Tensor]) -> None:
        """Write everything, with the states of random generators; the file appears only when complete."""
        tensors = {f"model.{k}": v.detach() for k, v in self.weights().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in state.items()}
        tensors |= {f"generator.{k}": state for k, state in states.items()}
        facts = {
            "recipe": self.recipe.name,
            "step": self.step,
            "clip": self.clip.state_dict(),
            "order": self.order.state_dict(),
            "log_scale": self.master.log_scale if self.master else None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        contents = {k: v.clone().contiguous() for k, v in tensors.items()}
        save_file(contents, partial, {"facts": json.dumps(facts)})
        partial.replace(path)

    def load(self, path: Path, generators: Mapping[str, torch.Generator], rank: int = 0) -> None:
        """Continue from a checkpoint. Raises `ModelError` when it is of another run."""
        tensors, facts = read_run(path)
        shapes = {k[6:]: v.shape for k, v in tensors.items() if k.startswith("model.")}
        if shapes != {k: v.shape for k, v in self.weights().items()}:
            raise ModelError(f"`{path}` is of another run", hint="choose an empty run folder")
        with torch.no_grad():
            for name, value in self.weights().items():
                value.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        if self.master:
            self.master.log_scale = facts["log_scale"]
            self.master.write()
        self.clip.load_state_dict(facts["clip"])
        self.order.load_state_dict(facts["order"])
        for name, generator in generators.items():
            with suppress(KeyError):  # a process more than before starts with its own numbers
                generator.set_state(tensors[f"generator.{name}.{rank}"])
        self.step = int(facts["step"])


def run(
    trainee: Trainee,
    losses_of: LossesOf,
    settings: RunSettings,
    *,
    checkpoint: Path | None = None,  # continued from when it exists; written while training and at the end
    elastic: Checkpointable | None = None,  # the network whose blocks may be computed again
    generators: Mapping[str, torch.Generator] | None = None,  # what the objective draws from
    log: Log = lambda entry: None,
) -> None:
    """Train up to `settings.steps`, or to the end of this piece."""
    recipe, world, generators = trainee.recipe, settings.world, dict(generators or {})
    world.broadcast(trainee.model)
    if checkpoint and checkpoint.exists():
        trainee.load(checkpoint, generators, world.rank)
    memory = elastic_memory(recipe, settings.device) if elastic is not None else None
    samples = iter(trainee.order)
    began, seen, sums = time.monotonic(), 0, dict[str, float]()

    def save() -> None:
        states = world.gather({name: g.get_state() for name, g in generators.items()})
        if checkpoint and world.leads:
            trainee.save(checkpoint, states)

    def ends() -> bool:
        late = settings.seconds is not None and time.monotonic() - began >= settings.seconds
        return world.agree(float(late or settings.stop())) > 0  # all processes end at one step

    while trainee.step < settings.steps and not ends():
        batch = list(islice(samples, recipe.batch.per_gpu))
        losses = gradients(trainee, losses_of, batch, settings, elastic, memory)
        world.average_gradients(trainee.named.values())
        losses["norm"] = trainee.update()
        settings.on_step(trainee.step)
        seen += 1
        sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
        if seen == (settings.log_every or recipe.log_every):
            if world.leads:
                means = {name: value / seen for name, value in sums.items()}
                log(LogEntry(trainee.step, time.monotonic() - began, means))
            seen, sums = 0, {}
        if trainee.step % (settings.save_every or recipe.save_every) == 0:
            save()
    save()


def gradients(
    trainee: Trainee,
    losses_of: LossesOf,
    batch: Sequence[int],
    settings: RunSettings,
    elastic: Checkpointable | None,
    memory: ElasticMemory | None,
) -> dict[str, float]:
    """Add up the gradients of the micro-batches, weighted equally; the means of their losses."""
    recipe = trainee.recipe
    loads = [1] * len(batch) if trainee.order.loads is None else [trainee.order.loads[i] for i in batch]
    parts = micro_batches(loads, recipe.batch.splits)
    dtype = torch.bfloat16 if recipe.precision == "bfloat16" and settings.device.type != "cpu" else None
    means: dict[str, float] = {}
    for part in parts:
        tokens = sum(loads[i] for i in part)
        with elastic_step(elastic, memory, tokens, settings.device):
            with mixed_precision(settings.device.type, dtype):
                losses = losses_of([batch[i] for i in part])
            trainee.scaled(losses["loss"] / len(parts)).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            if value.numel() == 1 and bool(value.isfinite()):
                means[name] = means.get(name, 0.0) + float(value.detach()) / len(parts)
    return means


def elastic_memory(recipe: Recipe, device: torch.device) -> ElasticMemory | None:
    """None where memory is not measured, or the recipe keeps all activations."""
    if recipe.elastic is None or device.type != "cuda":
        return None
    available = torch.cuda.get_device_properties(device).total_memory / GIB
    return ElasticMemory(
        ElasticSettings(available=available, target=recipe.elastic.target, start=recipe.elastic.start)
    )


@contextmanager
def elastic_step(
    model: Checkpointable | None, memory: ElasticMemory | None, tokens: int, device: torch.device
) -> Iterator[None]:
    if model is None or memory is None:
        with nullcontext():
            yield
        return
    with memory.step(model, tokens, cuda_peak(device)):
        yield


def read_run(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint, and its facts."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "facts" not in metadata:
            raise ModelError(f"`{path}` is no checkpoint of this trainer", hint="choose an empty run folder")
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
