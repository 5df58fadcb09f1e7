"""Filling the texels that no triangle covers: near ones by their nearest neighbour, the rest smoothly.

Filtering and mip maps read across chart borders, so the colours must go on there.
Push-pull: Gortler et al., "The Lumigraph" (1996). Letters: S texture side, Q covered texels, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DILATION = 8  # texels; beyond, the texture is only seen in coarse mip levels
COARSE = 8  # texels per cell of the smooth fill
OUTSIDE = -2


def paint_texture(
    values: Tensor,  # uint8 [Q, C]
    index: Tensor,  # int64 [Q]     row * S + column, each once
    size: int,
) -> Tensor:  # uint8 [S, S, C]
    """An image with the given texels, and every other texel filled in."""
    channels = values.shape[1]
    if len(index) == 0:
        return torch.zeros(size, size, channels, dtype=torch.uint8, device=values.device)
    image = smooth_fill(values, index, size).reshape(-1, channels)
    covered = torch.zeros(size * size, dtype=torch.bool, device=values.device)
    covered[index] = True
    image[index] = values
    texel, source = nearest_covered(covered.reshape(size, size), DILATION)
    image[texel] = image[source]
    return image.reshape(size, size, channels)


def nearest_covered(covered: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Texels within `rounds` rings around the covered ones, and the nearest covered texel of each.

    Each new texel looks at its eight neighbours and takes over the nearest of their sources.
    """
    height, width = covered.shape
    padded = width + 2
    index = torch.arange(height * width, device=covered.device, dtype=torch.int32).reshape(height, width)
    source = F.pad(torch.where(covered, index, -1), (1, 1, 1, 1), value=OUTSIDE).reshape(-1)
    steps = torch.tensor(
        [dy * padded + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy], device=covered.device
    )
    missing = F.pad(~covered, (1, 1, 1, 1)).float()[None, None]
    near_missing = F.max_pool2d(missing, 3, stride=1, padding=1)[0, 0].reshape(-1) > 0
    ring = torch.nonzero(near_missing & (source >= 0)).reshape(-1)
    filled = []
    for _ in range(rounds):
        around = (ring[:, None] + steps).reshape(-1)
        around = torch.unique(around[source[around] == -1])
        if len(around) == 0:
            break
        options = source[around[:, None] + steps].long()
        y, x = around // padded - 1, around % padded - 1
        distance = (options // width - y[:, None]).square() + (options % width - x[:, None]).square()
        best = torch.where(options >= 0, distance, torch.iinfo(torch.int64).max).argmin(1)
        source[around] = options.gather(1, best[:, None]).reshape(-1).to(torch.int32)
        filled.append(around)
        ring = around
    place = torch.cat(filled) if filled else ring[:0]
    return (place // padded - 1) * width + place % padded - 1, source[place].long()


def smooth_fill(values: Tensor, index: Tensor, size: int) -> Tensor:
    """A blurred continuation of the given texels over the whole image, uint8 [S, S, C]."""
    channels = values.shape[1]
    side = -(-size // COARSE)
    cell = index // size // COARSE * side + index % size // COARSE
    count = torch.bincount(cell, minlength=side * side).float()
    total = torch.zeros(side * side, channels, device=values.device).index_add_(0, cell, values.float())
    image = (total / count.clamp_min(1)[:, None]).T.reshape(1, channels, side, side)
    coarse = push_pull(image, (count > 0).reshape(1, 1, side, side)).clamp(0, 255)
    whole = (side * COARSE,) * 2
    scaled = [  # one channel at a time: no large temporary; CUDA does not interpolate bytes
        F.interpolate(channel, size=whole, mode="bilinear", align_corners=False).round_().to(torch.uint8)
        for channel in coarse.split(1, dim=1)
    ]
    return torch.cat(scaled, 1)[0, :, :size, :size].permute(1, 2, 0).contiguous()


def push_pull(image: Tensor, covered: Tensor) -> Tensor:
    """Average covered cells level by level until nothing is missing, then read the holes back from there.

    `image` float32 [1, C, H, W], `covered` bool [1, 1, H, W].
    """
    levels = [(torch.where(covered, image, 0.0), covered.float())]
    while float(levels[-1][1].min()) == 0 and max(levels[-1][1].shape) > 1:
        color, weight = (F.avg_pool2d(x, 2, ceil_mode=True) for x in levels[-1])
        known = weight > 0
        levels.append((torch.where(known, color / weight.clamp_min(1e-12), 0.0), known.float()))
    result = levels[-1][0]
    for color, weight in reversed(levels[:-1]):
        larger = F.interpolate(result, size=color.shape[2:], mode="bilinear", align_corners=False)
        result = torch.where(weight > 0, color, larger)
    return result
