"""Weights by formula: golden cases of whole networks store none, both sides compute the same ones."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

MASK = np.uint64(0xFFFFFFFF)


def fill_by_formula(module: nn.Module, seed: int) -> nn.Module:
    """Give every floating tensor of `module` the value of its key, shape and `seed`."""
    state = module.state_dict()
    computed = {k: formula_tensor(k, tuple(t.shape), seed) for k, t in state.items() if t.is_floating_point()}
    module.load_state_dict({**state, **computed})
    return module.eval()


def formula_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    u = torch.from_numpy(noise(key, math.prod(shape), seed)).reshape(shape)
    return (scaled(key, u)).float()


def scaled(key: str, u: Tensor) -> Tensor:
    """Uniform noise in [-1, 1) to a plausible weight of this key."""
    if key.endswith("running_var"):
        return 1 + 0.5 * u
    if key.endswith("running_mean"):
        return 0.1 * u
    if key.endswith("relative_position_bias_table"):
        return 0.5 * u
    if u.ndim == 1:
        return 1 + 0.2 * u if key.endswith("weight") else 0.1 * u
    gain = 3.0 if key.endswith("offset_conv.weight") else 1.5 if u.ndim == 4 else 1.0
    return u * (gain * math.sqrt(3 / math.prod(u.shape[1:])))


def noise(key: str, count: int, seed: int) -> np.ndarray:  # float64 [count] in [-1, 1)
    """A hash of the flat index, in 32-bit integer arithmetic."""
    start = np.uint64(zlib.crc32(key.encode()) ^ seed)
    h = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + start) & MASK
    for _ in range(2):
        h ^= h >> np.uint64(16)
        h = (h * np.uint64(0x045D9F3B)) & MASK
    h ^= h >> np.uint64(16)
    return h.astype(np.float64) / 2**31 - 1
