"""Residual blocks of the sparse VAEs: on one level, to the next coarser and to the next finer level.

State-dict names are the released ones. A `subdiv` argument holds logits or a mask [P, 8], and children
exist where it is positive; a recorded topology overrules it.
SC-VAE: Xiang et al., "Native and Compact Structured Latents for 3D Generation" (2025). ConvNeXt: Liu et
al., "A ConvNet for the 2020s" (2022). Space-to-channel skips: Chen et al., "Deep Compression Autoencoder
for Efficient High-Resolution Diffusion Models" (2024).

Letters: T voxels, P parents, C input channels, E output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.nn.conv import SparseConv3d, silu_rows
from trellis_core.nn.norm import LayerNorm32
from trellis_core.sparse.ops import map_rows
from trellis_core.sparse.spatial import (
    pool_mean,
    repeat_parents,
    space_to_channel,
    take_children,
)
from trellis_core.sparse.tensor import SparseTensor

ResampleMode = Literal["nearest", "spatial2channel"]


class SparseConvNeXtBlock3d(nn.Module):
    """x + mlp(norm(conv(x))), with a full (not depthwise) convolution."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0, kernels: Kernels | None = None) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm = LayerNorm32(channels, elementwise_affine=True, eps=1e-6)
        self.conv = SparseConv3d(channels, channels, kernels=kernels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.conv(x).feats
        return x.replace(_add(map_rows(lambda rows: self.mlp(self.norm(rows)), h), x.feats))


class SparseResBlock(nn.Module):
    """conv2(silu(norm2(conv1(silu(norm1(x)))))) + skip, resampled somewhere on the way."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        middle_channels: int,
        pred_subdiv: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, elementwise_affine=True, eps=1e-6)
        self.norm2 = LayerNorm32(out_channels, elementwise_affine=False, eps=1e-6)
        self.conv1 = SparseConv3d(channels, middle_channels, kernels=kernels)
        self.conv2 = SparseConv3d(out_channels, out_channels, kernels=kernels)
        if pred_subdiv:
            self.to_subdiv = nn.Linear(channels, 8)
        self.pred_subdiv = pred_subdiv

    def first(self, x: SparseTensor) -> SparseTensor:
        return x.replace(map_rows(partial(silu_rows, self.norm1), x.feats))

    def second(self, x: SparseTensor) -> SparseTensor:
        """Overwrites its input, which nobody else holds."""
        return x.replace(map_rows(partial(silu_rows, self.norm2), x.feats, overwrite=True))

    def subdivision(self, x: SparseTensor) -> SparseTensor:
        """Logits [P, 8], from the block's input."""
        return x.replace(self.to_subdiv(x.feats))


class SparseResBlockS2C3d(SparseResBlock):
    """To the parents: children become channels; the skip is their mean in groups."""

    def __init__(self, channels: int, out_channels: int, kernels: Kernels | None = None) -> None:
        _require(out_channels % 8 == 0, f"output channels must be divisible by 8, got {out_channels}")
        _require(
            (8 * channels) % out_channels == 0,
            f"8 * {channels} input channels must be divisible by {out_channels} output channels",
        )
        super().__init__(channels, out_channels, out_channels // 8, kernels=kernels)
        self.out_channels = out_channels

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = space_to_channel(self.conv1(self.first(x)))
        h = self.conv2(self.second(h))
        skip = space_to_channel(x).feats
        return h.replace(_add(h.feats, skip.unflatten(1, (self.out_channels, -1)).mean(2)))


class SparseResBlockC2S3d(SparseResBlock):
    """To the children: channels become children; the skip repeats channels.

    With `pred_subdiv` the block predicts which children exist; otherwise `subdiv` or a recorded
    topology says so. Returns (children, logits or None).
    """

    def __init__(
        self, channels: int, out_channels: int, pred_subdiv: bool = True, kernels: Kernels | None = None
    ) -> None:
        _require(channels % 8 == 0, f"input channels must be divisible by 8, got {channels}")
        _require(
            out_channels % (channels // 8) == 0,
            f"{out_channels} output channels must be divisible by {channels} / 8 input channels",
        )
        super().__init__(channels, out_channels, out_channels * 8, pred_subdiv, kernels)

    def forward(
        self, x: SparseTensor, subdiv: Tensor | None = None
    ) -> tuple[SparseTensor, SparseTensor | None]:
        logits = self.subdivision(x) if self.pred_subdiv else None
        h = self.conv1(self.first(x))
        links = x.plan.expand(_mask(logits, subdiv))
        h = SparseTensor.on(links.fine, take_children(h.feats, links))
        h = self.conv2(self.second(h))
        skip = take_children(x.feats, links)
        return h.replace(_add(h.feats.unflatten(1, (skip.shape[1], -1)), skip[:, :, None]).flatten(1)), logits


class SparseResBlockDownsample3d(SparseResBlock):
    """To the parents by mean pooling, before the first convolution."""

    def __init__(self, channels: int, out_channels: int, kernels: Kernels | None = None) -> None:
        super().__init__(channels, out_channels, out_channels, kernels=kernels)
        self.skip_connection = _skip(channels, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.conv1(pool_mean(self.first(x)))
        h = self.conv2(self.second(h))
        return h.replace(_add(h.feats, self.skip_connection(pool_mean(x).feats)))


class SparseResBlockUpsample3d(SparseResBlock):
    """To the children by repetition, before the first convolution. Returns (children, logits or None)."""

    def __init__(
        self, channels: int, out_channels: int, pred_subdiv: bool = True, kernels: Kernels | None = None
    ) -> None:
        super().__init__(channels, out_channels, out_channels, pred_subdiv, kernels)
        self.skip_connection = _skip(channels, out_channels)

    def forward(
        self, x: SparseTensor, subdiv: Tensor | None = None
    ) -> tuple[SparseTensor, SparseTensor | None]:
        logits = self.subdivision(x) if self.pred_subdiv else None
        mask = _mask(logits, subdiv)
        h = self.conv1(repeat_parents(self.first(x), mask))
        h = self.conv2(self.second(h))
        return h.replace(_add(h.feats, self.skip_connection(repeat_parents(x, mask).feats))), logits


class SparseResBlockPlain3d(SparseResBlock):
    """Both convolutions on one level."""

    def __init__(
        self, channels: int, out_channels: int | None = None, kernels: Kernels | None = None
    ) -> None:
        out_channels = out_channels or channels
        super().__init__(channels, out_channels, out_channels, kernels=kernels)
        self.skip_connection = _skip(channels, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.conv2(self.second(self.conv1(self.first(x))))
        return h.replace(_add(h.feats, self.skip_connection(x.feats)))


def sparse_res_block(
    channels: int,
    out_channels: int | None = None,
    downsample: bool = False,
    upsample: bool = False,
    resample_mode: ResampleMode = "nearest",
    kernels: Kernels | None = None,
) -> SparseResBlock:
    """The released `SparseResBlock3d`: one name for five blocks; upsampling predicts its subdivision."""
    out_channels = out_channels or channels
    if downsample and upsample:
        raise ValueError("a block cannot both downsample and upsample")
    if downsample:
        down = SparseResBlockS2C3d if resample_mode == "spatial2channel" else SparseResBlockDownsample3d
        return down(channels, out_channels, kernels=kernels)
    if upsample:
        up = SparseResBlockC2S3d if resample_mode == "spatial2channel" else SparseResBlockUpsample3d
        return up(channels, out_channels, True, kernels=kernels)
    return SparseResBlockPlain3d(channels, out_channels, kernels=kernels)


BLOCKS: Mapping[str, Callable[..., nn.Module]] = {
    "SparseConvNeXtBlock3d": SparseConvNeXtBlock3d,
    "SparseResBlock3d": sparse_res_block,
}
DOWN_BLOCKS: Mapping[str, Callable[..., nn.Module]] = {
    "SparseResBlockS2C3d": SparseResBlockS2C3d,
    "SparseResBlockDownsample3d": SparseResBlockDownsample3d,
}
UP_BLOCKS: Mapping[str, Callable[..., nn.Module]] = {
    "SparseResBlockC2S3d": SparseResBlockC2S3d,
    "SparseResBlockUpsample3d": SparseResBlockUpsample3d,
}


def _mask(logits: SparseTensor | None, subdiv: Tensor | None) -> Tensor | None:
    if subdiv is not None:
        return subdiv > 0
    return None if logits is None else logits.feats > 0


def _add(total: Tensor, skip: Tensor) -> Tensor:
    """`total + skip`, in place of `total` when no gradient will ask for it."""
    return total + skip if torch.is_grad_enabled() else total.add_(skip)


def _skip(channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if channels == out_channels else nn.Linear(channels, out_channels)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
