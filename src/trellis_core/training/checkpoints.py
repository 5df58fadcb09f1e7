"""Checkpoints of training: weights, their average, the optimizer's state, random numbers and how far it got,
in one safetensors file. A run that continues from one goes on bit for bit on the same device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_core.errors import ModelError
from trellis_core.training.optimizer import Average, Optimizer


@dataclass(slots=True)
class Progress:
    """How far a stage has come."""

    step: int = 0
    elapsed: float = 0.0  # seconds of all pieces
    generators: dict[str, Tensor] = field(default_factory=dict)  # uint8 states of the random generators


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, average: Average, progress: Progress
) -> None:
    """Write all of training's state; the file appears only when it is complete."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    state = optimizer.state_dict()
    tensors |= {f"momentum.{i}": m for i, m in enumerate(state["momentum"])}
    for index, entry in state["adam"]["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in entry.items()}
    tensors |= {f"generator.{k}": v for k, v in progress.generators.items()}
    counts = {"step": progress.step, "elapsed": progress.elapsed, "updates": average.updates}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {k: v.detach().clone().contiguous() for k, v in tensors.items()},
        partial,
        {"counts": json.dumps(counts)},
    )
    partial.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, average: Average) -> Progress:
    """Restore what `save_checkpoint` wrote, strictly; where to continue from.

    From a file of weights alone (`save_weights`) a new run starts at these weights.
    """
    tensors, counts = read_checkpoint(path)

    def under(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    weights = under("model.") or under("average.")
    mine = model.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in mine.items()}:
        raise ModelError(f"`{path}` belongs to another model", hint="choose an empty run folder")
    model.load_state_dict(weights)
    for name, value in under("average.").items():
        average.weights[name].copy_(value)
    if not counts:
        return Progress()
    average.updates = int(counts["updates"])
    momentum = under("momentum.")
    state = optimizer.state_dict()
    adam: dict[int, dict[str, Tensor]] = {}
    for key, value in under("adam.").items():
        index, name = key.split(".", 1)
        adam.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {
            "momentum": [momentum[str(i)] for i in range(len(momentum))],
            "adam": {**state["adam"], "state": adam},
        }
    )
    return Progress(int(counts["step"]), float(counts["elapsed"]), under("generator."))


def save_weights(path: Path, checkpoint: Path) -> None:
    """Write the averaged weights of a checkpoint alone, in float16."""
    weights = {f"average.{k}": v.half() for k, v in averaged_weights(checkpoint).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, {"counts": "{}"})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All tensors of a checkpoint, and its counts."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["counts"])  # noqa: SIM118


def averaged_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights of the part of the model whose names start with `prefix`."""
    start = f"average.{prefix}"
    with safe_open(path, framework="pt") as file:
        return {k[len(start) :]: file.get_tensor(k) for k in file.keys() if k.startswith(start)}  # noqa: SIM118
