"""Where and when a token is: time and position embeddings, rotary phases, patches of a volume.

Letters: B batch, L tokens, H heads, D head width, C channels.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def sinusoid(
    t: Tensor,  # float32 [B]
    channels: int,
    max_period: float = 10000,
) -> Tensor:  # float32 [B, channels]
    """Cosines, then sines, of `t` times falling frequencies (Vaswani et al., 2017); zero where odd."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angles = t[:, None].float() * frequencies
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, channels - 2 * half))


class TimestepEmbedder(nn.Module):
    """Embed times, scaled to 0...1000, as float32 `[B, C]`."""

    def __init__(self, channels: int, frequency_channels: int = 256) -> None:
        super().__init__()
        self.frequency_channels = frequency_channels
        self.mlp = nn.Sequential(
            nn.Linear(frequency_channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(t, self.frequency_channels))  # type: ignore[no-any-return]


def position_embedding(
    coords: Tensor,  # [L, axes]  positions on a grid
    channels: int,
) -> Tensor:  # float32 [L, channels]
    """Sines, then cosines, axis by axis; zero where the channels do not divide evenly."""
    axes = coords.shape[-1]
    count = channels // axes // 2
    index = torch.arange(count, dtype=torch.float32, device=coords.device)
    angles = coords[..., None].float() * (1.0 / 10000 ** (index / count))  # [L, axes, count]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.functional.pad(embedding, (0, channels - embedding.shape[1]))


def rope_frequencies(
    head_dim: int,
    freq: tuple[float, float] = (1.0, 10000.0),
    axes: int = 3,
    device: torch.device | None = None,
) -> Tensor:  # float32 [head_dim // 2 // axes]
    """Angles per unit of one coordinate: freq[0] / freq[1]^(j / F)."""
    count = head_dim // 2 // axes
    index = torch.arange(count, dtype=torch.float32, device=device)
    return freq[0] / freq[1] ** (index / count)


def rope_phases(
    coords: Tensor,  # [L, axes]  integer positions
    head_dim: int,
    freq: tuple[float, float] = (1.0, 10000.0),
) -> Tensor:  # complex64 [L, head_dim // 2]
    """Rotations of adjacent channel pairs, axis by axis (RoPE, Su et al., 2021); the rest stay unrotated."""
    angles = coords[..., None].float() * rope_frequencies(head_dim, freq, coords.shape[-1], coords.device)
    angles = angles.flatten(1)
    angles = nn.functional.pad(angles, (0, head_dim // 2 - angles.shape[1]))
    return torch.polar(torch.ones_like(angles), angles)


def rotate(
    x: Tensor,  # [..., L, H, D]
    phases: Tensor,  # complex64 [L, D / 2]
) -> Tensor:  # like x
    """Turn adjacent channel pairs by their phases, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phases[:, None]).flatten(-2).to(x.dtype)


def grid_coords(resolution: int, device: torch.device | None = None) -> Tensor:
    """Positions int64 [resolution^3, 3] of a dense grid, z fastest."""
    axis = torch.arange(resolution, device=device)
    return torch.cartesian_prod(axis, axis, axis)


def patchify(x: Tensor, size: int) -> Tensor:
    """Fold blocks of a volume into channels: [B, C, X, Y, Z] -> [B, C * size^3, X/size, Y/size, Z/size]."""
    return rearrange(x, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=size, j=size, k=size)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Unfold channels into blocks, the inverse of `patchify`; with size 2 also called pixel shuffle."""
    return rearrange(x, "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=size, j=size, k=size)
