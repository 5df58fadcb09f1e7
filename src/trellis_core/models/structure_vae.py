"""The dense VAE between an occupancy grid and a small latent grid (TRELLIS, Xiang et al., 2024).

Torso (`blocks`, `middle_block`) in the torso dtype, input and output layers in float32.
Letters: B batch, C channels, R grid resolution, r latent resolution R / 2^(levels - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis_core.errors import InputError, ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE
from trellis_core.nn.blocks import convert_torso
from trellis_core.nn.embed import unpatchify
from trellis_core.nn.norm import ChannelLayerNorm32, GroupNorm32

NormType = Literal["layer", "group"]


class StructureVae(nn.Module):
    """What encoder and decoder share: precision, and where training starts."""

    blocks: nn.ModuleList
    middle_block: nn.Sequential
    dtype: torch.dtype = torch.float32

    @property
    def factor(self) -> int:
        """Voxels per cell of the latent along an axis."""
        return int(2 ** sum(isinstance(block, Downsample3d | Upsample3d) for block in self.blocks))

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the convolutions of the torso; norms, input and output layers stay float32."""
        convert_torso(self.blocks, dtype)
        convert_torso(self.middle_block, dtype)
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch: residual branches start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d | ChannelLayerNorm32 | GroupNorm32):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, ResBlock3d):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]


class SparseStructureEncoder(StructureVae):
    """Occupancy float32 [B, 1, R, R, R] -> (mean, logvar), each float32 [B, C, r, r, r]."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        *,
        norm_type: NormType = "layer",
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(_levels(channels, num_res_blocks, Downsample3d))
        self.middle_block = _middle(channels[-1], num_res_blocks_middle)
        self.out_layer = _out_layer(channels[-1], 2 * latent_channels, norm_type)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.input_layer(x.float()).to(self.dtype)
        for block in self.blocks:
            h = block(h)
        h = self.middle_block(h)
        mean, logvar = self.out_layer(h.float()).chunk(2, dim=1)
        return mean, logvar


class SparseStructureDecoder(StructureVae):
    """Latent float32 [B, C, r, r, r] -> occupancy logits float32 [B, 1, R, R, R], occupied above 0."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        *,
        norm_type: NormType = "layer",
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = _middle(channels[0], num_res_blocks_middle)
        self.blocks = nn.ModuleList(_levels(channels, num_res_blocks, Upsample3d))
        self.out_layer = _out_layer(channels[-1], out_channels, norm_type)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input_layer(x.float()).to(self.dtype)
        h = self.middle_block(h)
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.float())  # type: ignore[no-any-return]


def occupied_cells(
    logits: Tensor,  # [B, 1, D, D, D]  occupied where > 0
    resolution: int,  # R, a divisor of D
) -> Tensor:  # int32 [N, 4]  batch, x, y, z, sorted
    """Cells of a grid that contain an occupied cell of the decoded grid."""
    occupied = logits > 0
    decoded = occupied.shape[-1]
    if decoded != resolution:
        if decoded % resolution:
            raise InputError(
                f"a structure grid of {resolution} cannot be taken from a decoded grid of {decoded}",
                hint="choose another --pipeline",
            )
        ratio = decoded // resolution
        occupied = F.max_pool3d(occupied.float(), ratio, ratio) > 0.5
    return torch.argwhere(occupied)[:, [0, 2, 3, 4]].int()


def encode_cells(
    encoder: SparseStructureEncoder,
    coords: Tensor,  # int32 [N, 4]  batch, x, y, z
    samples: int,  # B
    resolution: int,  # R, grid of `coords`
    latent_resolution: int,  # r
) -> Tensor:  # float32 [B, C, r, r, r]
    """The structure latent (posterior mean) of occupied cells; coarse cells fill all that they cover."""
    size = latent_resolution * encoder.factor
    if size % resolution:
        raise InputError(
            f"a structure grid of {resolution} does not fit the encoder's grid of {size}",
            hint="choose another --pipeline",
        )
    dense = torch.zeros(samples, 1, *[resolution] * 3, device=coords.device)
    batch, x, y, z = coords.long().unbind(1)
    dense[batch, 0, x, y, z] = 1
    mean, _ = encoder(F.interpolate(dense, scale_factor=size // resolution))
    return mean  # type: ignore[no-any-return]


class ResBlock3d(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.norm1 = ChannelLayerNorm32(channels)
        self.norm2 = ChannelLayerNorm32(out_channels)
        self.conv1 = nn.Conv3d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv3d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip_connection(x)  # type: ignore[no-any-return]


class Downsample3d(nn.Module):
    """Halve a volume, by convolution or by average pooling (which keeps the channels)."""

    def __init__(self, channels: int, out_channels: int, mode: Literal["conv", "avgpool"] = "conv") -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 2, stride=2) if mode == "conv" else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x, 2) if self.conv is None else self.conv(x)


class Upsample3d(nn.Module):
    """Double a volume, by convolution and pixel shuffle or by copying (which keeps the channels)."""

    def __init__(self, channels: int, out_channels: int, mode: Literal["conv", "nearest"] = "conv") -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 8 * out_channels, 3, padding=1) if mode == "conv" else None

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2) if self.conv is None else unpatchify(self.conv(x), 2)


def _levels(
    channels: Sequence[int], num_res_blocks: int, resample: type[Downsample3d] | type[Upsample3d]
) -> list[nn.Module]:
    """Residual blocks level by level, and the change of resolution between levels."""
    blocks: list[nn.Module] = []
    for level, width in enumerate(channels):
        blocks += [ResBlock3d(width) for _ in range(num_res_blocks)]
        if level + 1 < len(channels):
            blocks.append(resample(width, channels[level + 1]))
    return blocks


def _middle(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock3d(channels) for _ in range(count)))


def _out_layer(channels: int, out_channels: int, norm_type: NormType) -> nn.Sequential:
    norms = {"layer": lambda: ChannelLayerNorm32(channels), "group": lambda: GroupNorm32(32, channels)}
    if norm_type not in norms:
        raise ModelError(f"unknown norm_type `{norm_type}`", hint=f"choose one of: {', '.join(norms)}")
    return nn.Sequential(norms[norm_type](), nn.SiLU(), nn.Conv3d(channels, out_channels, 3, padding=1))
