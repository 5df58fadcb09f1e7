"""Mixed precision of training: matrices in bfloat16, everything that sums in float32.

On a CPU torch's bfloat16 attention has a slow backward pass (5 times the float32 one, measured on AVX-512),
so attention is kept in float32 there. On a GPU compiled blocks save most of the traffic between kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels

ATTENTION = ("attention", "packed_attention")


@dataclass(frozen=True, slots=True)
class Float32Attention(Kernels):
    """The chosen kernels, with attention computed in float32."""

    def __getitem__(self, op: str) -> Callable[..., object]:
        kernel = Kernels.__getitem__(self, op)
        return in_float32(kernel) if op in ATTENTION else kernel  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LoadedKernels(Kernels):
    """The chosen kernels, looked up once: what a compiled block can see through."""

    functions: dict[str, Callable[..., object]] = field(default_factory=dict)

    def __getitem__(self, op: str) -> Callable[..., object]:
        return self.functions[op]

    @classmethod
    def of(cls, kernels: Kernels) -> LoadedKernels:
        return cls(kernels.choices, kernels.reasons, {op: kernels[op] for op in kernels.choices})


def compile_blocks(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Let torch compile the blocks of these classes, each class once for all sizes. Keeps state dicts."""
    for kind in kinds:
        compiled = torch.compile(kind.forward, dynamic=True)
        for block in model.modules():
            if type(block) is kind:
                block.forward = partial(compiled, block)  # type: ignore[method-assign]


def in_float32(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attention kernel that casts its queries, keys and values up and its result back."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return attention(q.float(), k.float(), v.float(), *rest).to(q.dtype)

    return attend


def mixed_precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype`, or nothing when it is None."""
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
