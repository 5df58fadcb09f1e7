"""Swin transformer, version 1 (Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted
Windows", 2021): pictures to feature maps at 1/4, 1/8, 1/16 and 1/32. Key names as published.

Letters: B pictures, h w map size, C channels, K windows of a map, P positions in a window, H heads.
Maps between the blocks are [B, h, w, C].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SCORES = 1 << 24  # attention scores of the windows that are worked on at a time (64 MiB in float32)


class SwinTransformer(nn.Module):
    """Pictures float32 [B, 3, H, W] -> one map [B, C * 2^i, h, w] per stage, each with its own norm."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        mlp_ratio: float = 4.0,
        patch: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(embed_dim, patch)
        widths = [embed_dim << i for i in range(len(depths))]
        self.layers = nn.ModuleList(
            Stage(
                width, heads, depth=depth, window=window, mlp_ratio=mlp_ratio, downsample=width != widths[-1]
            )
            for width, heads, depth in zip(widths, num_heads, depths, strict=True)
        )
        for i, width in enumerate(widths):
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(pictures).movedim(1, -1), []
        for i, stage in enumerate(self.layers):
            done, x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(done).movedim(-1, 1).contiguous())
        return maps


class PatchEmbedding(nn.Module):
    """Non-overlapping patches as channels [B, C, h, w]; sides are filled up with zeros to whole patches."""

    def __init__(self, channels: int, patch: int = 4, num_channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(num_channels, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[2:]
        x = self.proj(F.pad(pictures, (0, -width % self.patch, 0, -height % self.patch)))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks, every second one with shifted windows. Gives (what the blocks made, the same at half the size).

    Without `downsample`, as in the last stage, the second is the first.
    """

    def __init__(
        self, channels: int, num_heads: int, *, depth: int, window: int, mlp_ratio: float, downsample: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, window, window // 2 if i % 2 else 0, mlp_ratio) for i in range(depth)
        )
        self.downsample = PatchMerging(channels) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return x, self.downsample(x)


class PatchMerging(nn.Module):
    """[B, h, w, C] -> [B, ceil(h/2), ceil(w/2), 2C]: the four pixels of a square become one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # the row's parity runs first in the channels
        x = rearrange(x, "b (h i) (w j) c -> b h w (j i c)", i=2, j=2)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x += attention(norm(x)) within windows; x += mlp(norm(x))."""

    def __init__(self, channels: int, num_heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attend(self, y: Tensor) -> Tensor:
        """The padding comes after the norm and takes part: as trained, it is not masked."""
        height, width = y.shape[1:3]
        y = F.pad(y, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = y.shape[1] // self.window, y.shape[2] // self.window
        regions = None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            regions = shifted_regions(y.shape[1], y.shape[2], self.window, self.shift, y.device)
        windows = rearrange(y, "b (r i) (s j) c -> b (r s) (i j) c", r=rows, s=columns)
        windows = torch.stack([self.attn(picture, regions) for picture in windows])
        y = rearrange(windows, "b (r s) (i j) c -> b (r i) (s j) c", r=rows, i=self.window)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        return y[:, :height, :width]


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned number per head and relative position."""

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        windows: Tensor,  # [K, P, C]
        regions: Tensor | None,  # int64 [K, P]: only positions of one region see each other
    ) -> Tensor:  # like windows
        bias = self.relative_position_bias_table[self.relative_position_index]  # type: ignore[index]
        bias = bias.permute(2, 0, 1)  # [H, P, P]
        size = max(1, SCORES // bias.numel())
        out = torch.empty_like(windows)
        for start in range(0, len(windows), size):
            chosen = slice(start, start + size)
            q, k, v = rearrange(self.qkv(windows[chosen]), "k p (n h d) -> n k h p d", n=3, h=self.num_heads)
            mask = bias[None]
            if regions is not None:
                apart = regions[chosen, None, :, None] != regions[chosen, None, None, :]
                mask = mask.masked_fill(apart, -torch.inf)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out[chosen] = self.proj(rearrange(seen, "k h p d -> k p (h d)"))
        return out


class Mlp(nn.Module):
    """Linear, GELU (erf form), Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


def relative_positions(window: int) -> Tensor:  # int64 [P, P]; rows are queries
    """The row of the bias table for each pair of positions: (dy + w - 1) (2w - 1) + dx + w - 1."""
    y, x = torch.arange(window * window) // window, torch.arange(window * window) % window
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


def shifted_regions(
    height: int,
    width: int,
    window: int,
    shift: int,
    device: torch.device | None = None,
) -> Tensor:  # int64 [K, P]
    """Which pixels of a shifted map belong together: the shift brings opposite edges into one window."""

    def label(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place >= size - window).long() + (place >= size - shift)

    labels = 3 * label(height)[:, None] + label(width)
    return rearrange(labels, "(r i) (s j) -> (r s) (i j)", i=window, j=window)
