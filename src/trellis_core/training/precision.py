"""Mixed precision of training: matrices in bfloat16, everything that sums in float32.

On a CPU torch's bfloat16 attention has a slow backward pass (5 times the float32 one, measured on AVX-512),
so attention is kept in float32 there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.kernels.table import Kernels

ATTENTION = ("attention", "packed_attention")


@dataclass(frozen=True, slots=True)
class Float32Attention(Kernels):
    """The chosen kernels, with attention computed in float32."""

    def __getitem__(self, op: str) -> Callable[..., object]:
        kernel = Kernels.__getitem__(self, op)
        return in_float32(kernel) if op in ATTENTION else kernel  # type: ignore[arg-type]


def in_float32(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An attention kernel that casts its queries, keys and values up and its result back."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return attention(q.float(), k.float(), v.float(), *rest).to(q.dtype)

    return attend


def mixed_precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype`, or nothing when it is None."""
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
