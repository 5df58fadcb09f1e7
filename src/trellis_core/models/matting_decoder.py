"""BiRefNet's decoder: deep maps and the picture itself to a logit per pixel. Key names as published.

Letters: B pictures, C channels, h w map size, H W picture size, e the backbone's embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from trellis_core.errors import ModelError
from trellis_core.models.matting_blocks import DecoderBlock

GATE = 16  # channels between a map and its gate
LEVELS = (4, 3, 2, 1)  # level n works at 1 / 2^(n + 1) of the picture
# How the blocks of the picture are stacked as channels, by the code that a checkpoint was trained with. Its
# keys do not tell; the wrong one costs fine structure.
PATCH_ORDERS = {
    "column": "b c (y h) (x w) -> b (x y c) h w",  # upstream code until 2024-11-05, RMBG-2.0
    "channel": "b c (y h) (x w) -> b (c y x) h w",  # upstream code since then
}


class Decoder(nn.Module):
    """Maps [B, 16e >> i, h << i, w << i], deepest first, and the picture [B, 3, H, W] -> logits [B, 1, H, W].

    `conv_ms_spvn_*` and `gdt_convs_pred_*` served the training only; they are loaded and not used.
    """

    def __init__(self, embed_dim: int, patch_order: str) -> None:
        super().__init__()
        if patch_order not in PATCH_ORDERS:
            raise ModelError(
                f"unknown patch order `{patch_order}`", hint=f"choose one of: {', '.join(PATCH_ORDERS)}"
            )
        self.patch_order = patch_order
        e = embed_dim
        widths = {4: 16 * e, 3: 8 * e, 2: 4 * e, 1: 2 * e, 0: e}
        pictures = {4: 2 * e, 3: 2 * e, 2: e, 1: e // 2, 0: e // 4}  # channels of the picture's features
        for n in LEVELS:
            self.add_module(f"decoder_block{n}", DecoderBlock(widths[n] + pictures[n], widths[n - 1]))
            self.add_module(f"ipt_blk{n + 1}", PictureFeatures(3 * grid_of(n) ** 2, pictures[n]))
        self.ipt_blk1 = PictureFeatures(3, pictures[0])
        for n in LEVELS[:-1]:
            lateral = nn.Module()
            lateral.conv = nn.Conv2d(widths[n - 1], widths[n - 1], 1)
            self.add_module(f"lateral_block{n}", lateral)
            narrow = nn.Conv2d(widths[n - 1], GATE, 3, padding=1)
            self.add_module(f"gdt_convs_{n}", nn.Sequential(narrow, nn.BatchNorm2d(GATE), nn.ReLU()))
            self.add_module(f"gdt_convs_attn_{n}", nn.Sequential(nn.Conv2d(GATE, 1, 1)))
            self.add_module(f"gdt_convs_pred_{n}", nn.Sequential(nn.Conv2d(GATE, 1, 1)))
            self.add_module(f"conv_ms_spvn_{n}", nn.Conv2d(widths[n - 1], 1, 1))
        self.conv_out1 = nn.ModuleList([nn.Conv2d(e + pictures[0], 1, 1)])

    def forward(self, maps: Sequence[Tensor], picture: Tensor) -> Tensor:
        y, *laterals = maps
        for n in LEVELS[:-1]:
            y = self.gated(n, self.refined(n, y, picture))
            lateral = laterals[LEVELS.index(n)]
            y = enlarge(y, lateral.shape[2:]) + self.get_submodule(f"lateral_block{n}.conv")(lateral)
        return self.logits(self.refined(1, y, picture), picture)

    def refined(self, n: int, y: Tensor, picture: Tensor) -> Tensor:
        """The decoder block of level n, which sees the map and the picture."""
        patches = picture_patches(picture, grid_of(n), self.patch_order)
        y = torch.cat([y, self.get_submodule(f"ipt_blk{n + 1}")(patches)], dim=1)
        return self.get_submodule(f"decoder_block{n}")(y)  # type: ignore[no-any-return]

    def gated(self, n: int, p: Tensor) -> Tensor:
        """Each pixel times a number in [0, 1] that once learned where the picture's edges are."""
        h = self.get_submodule(f"gdt_convs_{n}")(p)
        return p * torch.sigmoid(self.get_submodule(f"gdt_convs_attn_{n}")(h))  # type: ignore[no-any-return]

    def logits(self, y: Tensor, picture: Tensor) -> Tensor:
        """`conv_out1` of (y at full size, features of the picture).

        It is linear, so its halves are applied before enlarging y and within the picture's last convolution:
        no map with hundreds of channels at full size.
        """
        features, out = self.ipt_blk1, self.conv_out1[0].state_dict(keep_vars=True)
        own, other = out["weight"].split([y.shape[1], features.conv_out.out_channels], dim=1)
        weight = torch.einsum("ocxy,cdij->odij", other, features.conv_out.weight)
        bias = other[:, :, 0, 0] @ features.conv_out.bias + out["bias"]
        seen = F.conv2d(features.conv1(picture), weight, bias, padding=1)
        return enlarge(F.conv2d(y, own), picture.shape[2:]) + seen


class PictureFeatures(nn.Module):
    """Two convolutions of 3 x 3 with nothing between them."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1)
        self.conv_out = nn.Conv2d(64, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv1(x))  # type: ignore[no-any-return]


def grid_of(level: int) -> int:
    """Blocks along each side of the picture at a level: each block is as large as the level's map."""
    return 1 << (level + 1)


def picture_patches(
    picture: Tensor,  # [B, 3, H, W]
    grid: int,
    order: str,  # one of PATCH_ORDERS
) -> Tensor:  # [B, 3 * grid^2, H / grid, W / grid]
    """Cut into grid x grid contiguous blocks and stack them as channels."""
    return rearrange(picture, PATCH_ORDERS[order], y=grid, x=grid)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corner to corner; also to smaller sizes, then without antialiasing."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
