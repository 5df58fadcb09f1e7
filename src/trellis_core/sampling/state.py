"""What is being sampled: a dense tensor [B, ...], or a sparse tensor whose features are.

The only place in `sampling` that knows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from trellis_core.sparse.ops import std_per_sample
from trellis_core.sparse.tensor import SparseTensor

State = TypeVar("State", Tensor, SparseTensor)
Velocity = Callable[[Any, float], Any]
"""(x, t) -> v, of the type of x; t in [0, 1], 1 is noise."""


def values(x: Tensor | SparseTensor) -> Tensor:
    """The numbers of a state."""
    return x if isinstance(x, Tensor) else x.feats


def with_values(x: State, new: Tensor) -> State:
    """A state like `x` with other numbers."""
    return new if isinstance(x, Tensor) else x.replace(new)


def model_times(x: Tensor | SparseTensor, t: float) -> Tensor:
    """The time as networks take it: float32 [B], scaled to 0...1000."""
    batch = x.shape[0] if isinstance(x, Tensor) else x.batch_size
    return torch.full((batch,), 1000 * t, dtype=torch.float32, device=values(x).device)


def sample_std(x: Tensor | SparseTensor) -> Tensor:
    """Standard deviation of each sample, laid out to broadcast over its values.

    Dense: unbiased. Sparse: the population value. The released models were tuned with this difference.
    """
    if isinstance(x, Tensor):
        return x.std(dim=list(range(1, x.ndim)), keepdim=True)
    return x.broadcast(std_per_sample(x))[:, None]
