"""Where a network's weights are while it runs, and what happens when memory runs out.

Knows nothing about stages: the caller says when a network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trellis_core.errors import OutOfMemory

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def on_device(
    model: Network,
    device: torch.device | str,
    *,
    keep: bool = False,
) -> Iterator[Network]:
    """Run `model` on `device` inside the block.

    On exit the copies on the device are dropped and the tensors that were there before are put back: nothing
    is copied back, so changes made to the weights inside the block are lost. With `keep` the model stays.
    """
    device = torch.device(device)
    if keep or all(_same_device(tensor.device, device) for tensor in _tensors(model)):
        yield model.to(device)
        return
    moved: dict[int, Tensor] = {}  # by identity: tied weights stay tied
    homes: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    homes.append((table, name, tensor))
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _copy_to(tensor, device)
                    table[name] = moved[id(tensor)]
        yield model
    finally:
        for table, name, tensor in homes:
            table[name] = tensor


@contextmanager
def memory_errors(stage: str) -> Iterator[None]:
    """Turn the several ways in which torch says "out of memory" into `OutOfMemory`, naming the stage."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory in stage `{stage}`",
            hint="use less: `--vram-tier low`, `--device cpu`, or with TRELLIS.2 `--resolution 512`; "
            "see `trellis doctor`",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or the allocator of the host ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    copy = tensor.detach().to(device, non_blocking=tensor.is_pinned())
    return (
        nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    )


def _same_device(a: torch.device, b: torch.device) -> bool:
    """`cuda` means the current device; `cuda:0` and `cuda` are one device on a machine with one GPU."""
    if a.type != b.type:
        return False
    return a == b or (b.index is None and a.type == "cuda" and a.index == torch.cuda.current_device())
