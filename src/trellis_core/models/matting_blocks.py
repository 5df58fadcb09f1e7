"""The building blocks of BiRefNet's decoder: deformable convolution and its pyramid. Key names as published.

Letters: B pictures, C channels in, O channels out, h w map size, K kernel positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INNER = 64  # channels inside a decoder block
BRANCH = 256  # channels of one branch of the pyramid
AT_A_TIME = 7  # kernel positions: keeps the samples of a 7 x 7 kernel small


class DecoderBlock(nn.Module):
    """[B, C, h, w] -> [B, O, h, w]: narrow, look around, widen. Nothing after the last norm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, INNER, 3, padding=1)
        self.bn_in = nn.BatchNorm2d(INNER)
        self.dec_att = DeformablePyramid(INNER)
        self.conv_out = nn.Conv2d(INNER, out_channels, 3, padding=1)
        self.bn_out = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_in(self.conv_in(x)))
        return self.bn_out(self.conv_out(self.dec_att(x)))  # type: ignore[no-any-return]


class DeformablePyramid(nn.Module):
    """Context at several scales (ASPP, Chen et al., 2017) with deformable kernels of 1, 1, 3 and 7 pixels
    and the mean of the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp1 = DeformableBranch(channels, 1)
        self.aspp_deforms = nn.ModuleList(DeformableBranch(channels, kernel) for kernel in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, BRANCH, 1, bias=False),
            nn.BatchNorm2d(BRANCH),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * BRANCH, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        branches = [self.aspp1(x), *(branch(x) for branch in self.aspp_deforms), mean]
        return F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1))))


class DeformableBranch(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.atrous_conv = DeformableConv2d(channels, BRANCH, kernel)
        self.bn = nn.BatchNorm2d(BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class DeformableConv2d(nn.Module):
    """Convolution that looks where its input tells it to (Zhu et al., "Deformable ConvNets v2", 2018)."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.offset_conv = nn.Conv2d(channels, 2 * kernel * kernel, kernel, padding=padding)
        self.modulator_conv = nn.Conv2d(channels, kernel * kernel, kernel, padding=padding)
        self.regular_conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = 2 * torch.sigmoid(self.modulator_conv(x))
        return deformable_conv2d(x, self.offset_conv(x), mask, self.regular_conv.weight)


def deformable_conv2d(
    x: Tensor,  # [B, C, h, w]
    offsets: Tensor,  # [B, 2K, h, w] pixels; row, column of each kernel position
    mask: Tensor,  # [B, K, h, w] factors
    weight: Tensor,  # [O, C, k, k] with k odd and K = k * k
) -> Tensor:  # [B, O, h, w]
    """Sum over kernel positions of weight * mask * x at the displaced place, stride 1, centred.

    Values between pixels are bilinear; pixels outside the map are zero. Positions need float32: in 16 bits
    they are off by up to half a pixel.
    """
    height, width = x.shape[2:]
    kernel = weight.shape[-1]
    filters = weight.flatten(2)  # [O, C, K]
    row, column = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (height, width))
    out = x.new_zeros(len(x), len(weight), height * width)
    for positions in torch.arange(kernel * kernel, device=x.device).split(AT_A_TIME):
        i, j = positions // kernel - kernel // 2, positions % kernel - kernel // 2
        y = offsets[:, 2 * positions] + row[:, None] + i[:, None, None]  # [B, n, h, w]
        x_ = offsets[:, 2 * positions + 1] + column + j[:, None, None]
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).flatten(1, 2)
        samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        samples = samples.unflatten(2, (len(positions), height)) * mask[:, None, positions]
        out += filters[:, :, positions].flatten(1) @ samples.flatten(1, 2).flatten(2)
    return out.unflatten(2, (height, width))
