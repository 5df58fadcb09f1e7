"""Several processes that train one model: each has its own batch, all have the same weights.

Started by `torchrun`; gradients are averaged, everything else is the same code on every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class World:
    """Which process this is; the default is a run of one process."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where the processes meet

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes.

        A gradient that some processes lack counts as zero there; one that all lack stays away.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        dist.all_reduce(there)
        flat /= self.size
        parts = flat.split([p.numel() for p in parameters])
        for p, part, count in zip(parameters, parts, there.tolist(), strict=True):
            p.grad = part.view_as(p) if count else None

    def broadcast(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def agree(self, value: float) -> float:
        """The first process's number, on all of them (elapsed time, so that all stop at one step)."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def any(self, said: bool) -> bool:
        """Whether one process or more said so, on all of them (a signal reaches them at different steps)."""
        if self.size == 1:
            return said
        shared = torch.tensor(float(said), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over the processes of numbers with the same names."""
        if self.size == 1:
            return dict(values)
        shared = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return dict(zip(values, (shared / self.size).tolist(), strict=True))

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes, `name.rank`; byte tensors of equal size on every process."""
        if self.size == 1:
            return {f"{name}.0": value for name, value in tensors.items()}
        out: dict[str, Tensor] = {}
        for name, value in tensors.items():
            parts = [torch.empty_like(value, device=self.device) for _ in range(self.size)]
            dist.all_gather(parts, value.to(self.device))
            out |= {f"{name}.{rank}": part.cpu() for rank, part in enumerate(parts)}
        return out


def join_world(rank: int, size: int, device: torch.device) -> World:
    """Meet the other processes, over NCCL on a GPU of one's own, over Gloo on a CPU.

    Where they meet is what `torchrun` hands to every process.
    """
    if size > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", rank=rank, world_size=size, device_id=device)
        else:
            dist.init_process_group("gloo", rank=rank, world_size=size)
    return World(rank, size, device)


def leave_world(world: World) -> None:
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
