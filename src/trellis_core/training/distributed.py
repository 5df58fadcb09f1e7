"""Several processes that train one model: each has its own batch, all have the same weights.

Started by `torchrun`; gradients are averaged, everything else is the same code on every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class World:
    """Which process this is; the default is a run of one process."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes; a parameter without one counts as zero."""
        if self.size == 1:
            return
        parameters = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def broadcast(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def agree(self, value: float) -> float:
        """The first process's number, on all of them (elapsed time, so that all stop at one step)."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=_device())
        dist.broadcast(shared, 0)
        return float(shared)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes, `name.rank`; byte tensors of equal size on every process."""
        if self.size == 1:
            return {f"{name}.0": value for name, value in tensors.items()}
        out: dict[str, Tensor] = {}
        for name, value in tensors.items():
            parts = [torch.empty_like(value, device=_device()) for _ in range(self.size)]
            dist.all_gather(parts, value.to(_device()))
            out |= {f"{name}.{rank}": part.cpu() for rank, part in enumerate(parts)}
        return out


def join_world(rank: int, size: int, backend: str) -> World:
    """Meet the other processes (addresses as `torchrun` hands them to every process)."""
    if size > 1 and not dist.is_initialized():
        dist.init_process_group(backend, rank=rank, world_size=size)
    return World(rank, size)


def leave_world(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()


def _device() -> torch.device:
    """Where the backend's collectives work."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
