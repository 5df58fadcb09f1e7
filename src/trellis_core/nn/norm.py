"""Normalisation layers that always compute in float32.

Parameters are float32 whatever the dtype of the torso; the result has the dtype of the input.
Letters: B batch, T tokens or voxels, C channels, H heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm32(nn.LayerNorm):
    """Layer norm over the last axis of `[..., C]` (Ba et al., 2016), computed in float32."""

    def __init__(self, channels: int, elementwise_affine: bool = True, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over the channels of a volume `[B, C, X, Y, Z]`, computed in float32."""

    def __init__(self, channels: int, elementwise_affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__(channels, elementwise_affine, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GroupNorm32(nn.GroupNorm):
    """Group norm of a volume `[B, C, X, Y, Z]` (Wu & He, 2018), computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class MultiHeadRMSNorm(nn.Module):
    """Give each head's vector of `[..., H, D]` the length sqrt(D), then scale it by `gamma` [H, D]."""

    def __init__(self, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.scale = head_dim**0.5
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(x.float(), dim=-1) * (self.gamma * self.scale)).to(x.dtype)
