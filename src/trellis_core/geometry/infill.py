"""Filling the texels that no triangle covers: near ones by their nearest neighbour, the rest smoothly.

Filtering and mip maps read across chart borders, so the colours must go on there. Works in bands of rows, so
that memory stays small. Push-pull: Gortler et al., "The Lumigraph" (1996).
Letters: S texture side, Q covered texels, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DILATION = 8  # texels; beyond, the texture is only seen in coarse mip levels
COARSE = 8  # texels per cell of the smooth fill
BAND = 1 << 21  # texels at a time


def paint_texture(
    values: Tensor,  # uint8 [Q, C]
    index: Tensor,  # int64 [Q]     row * S + column, each once
    size: int,
) -> Tensor:  # uint8 [S, S, C]
    """An image with the given texels, and every other texel filled in."""
    image = torch.zeros(size * size, values.shape[1], dtype=torch.uint8, device=values.device)
    covered = torch.zeros(size * size, dtype=torch.bool, device=values.device)
    image[index], covered[index] = values, True
    return fill_texture(image.view(size, size, -1), covered.view(size, size))


def fill_texture(
    image: Tensor,  # uint8 [S, S, C]  written to; 0 where nothing is covered
    covered: Tensor,  # bool [S, S]
) -> Tensor:  # the image
    """Fill every texel that is not covered; without any that is, the image stays black."""
    size, channels = len(image), image.shape[2]
    if not bool(covered.any()):
        return image
    coarse = coarse_fill(image, covered)
    flat = image.view(-1, channels)
    height = max(1, BAND // size // COARSE) * COARSE
    for top in range(0, size, height):
        rows = slice(top, min(top + height, size))
        smooth = enlarge(coarse, rows, size)
        image[rows] = torch.where(covered[rows][:, :, None], image[rows], smooth)
    for top in range(0, size, height):
        first, end = max(top - DILATION, 0), min(top + height, size)
        texel, source = nearest_covered(covered[first : end + DILATION], DILATION)
        texel, source = texel + first * size, source + first * size
        mine = (texel >= top * size) & (texel < end * size)
        flat[texel[mine]] = flat[source[mine]]
    return image


def nearest_covered(covered: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Texels within `rounds` rings around the covered ones, and the nearest covered texel of each.

    Each new texel looks at its eight neighbours and takes over the nearest of their sources.
    """
    height, width = covered.shape
    device, padded = covered.device, width + 2
    index = torch.arange(height * width, device=device, dtype=torch.int32).reshape(height, width)
    source = F.pad(torch.where(covered, index, -1), (1, 1, 1, 1), value=-1).reshape(-1)
    known = F.pad(covered, (1, 1, 1, 1))
    steps = torch.tensor(
        [dy * padded + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy], device=device
    )
    filled = [torch.zeros(0, dtype=torch.int64, device=device)]
    for _ in range(rounds):
        beside = known[:-2] | known[1:-1] | known[2:]
        beside = beside[:, :-2] | beside[:, 1:-1] | beside[:, 2:]
        y, x = torch.nonzero(beside & ~known[1:-1, 1:-1], as_tuple=True)
        if len(y) == 0:
            break
        place = (y + 1) * padded + x + 1
        options = source[place[:, None] + steps]
        distance = (options // width - y[:, None]).square() + (options % width - x[:, None]).square()
        best = torch.where(options >= 0, distance, torch.iinfo(torch.int64).max).argmin(1)
        source[place] = options.gather(1, best[:, None]).squeeze(1)
        known[y + 1, x + 1] = True
        filled.append(place)
    place = torch.cat(filled)
    return (place // padded - 1) * width + place % padded - 1, source[place].long()


def coarse_fill(image: Tensor, covered: Tensor) -> Tensor:
    """Means of the covered texels of each cell, and a smooth continuation; float32 [1, C, S/8, S/8]."""
    height = max(1, BAND // len(image) // COARSE) * COARSE
    total = torch.cat([cell_sums(rows) for rows in image.split(height)])
    count = torch.cat([cell_sums(rows) for rows in covered[:, :, None].split(height)])
    total, count = (values.permute(2, 0, 1)[None] for values in (total, count))
    return push_pull(total / count.clamp_min(1), count > 0).clamp(0, 255)


def cell_sums(image: Tensor) -> Tensor:
    """Sums over cells, float32 [H/8, S/8, C]; in integers, so that their order does not matter."""
    height, width, channels = image.shape
    image = F.pad(image, (0, 0, 0, -width % COARSE, 0, -height % COARSE))
    rows = image.reshape(-(-height // COARSE), COARSE, -1).sum(1, dtype=torch.int32)
    return rows.view(len(rows), -1, COARSE, channels).sum(2, dtype=torch.int32).float()


def enlarge(coarse: Tensor, rows: slice, size: int) -> Tensor:
    """Some rows, whole cells, of the coarse image in full size, uint8 [rows, S, C]."""
    low, high = rows.start // COARSE, -(-rows.stop // COARSE)
    around = coarse[:, :, max(low - 1, 0) : high + 1].contiguous(memory_format=torch.channels_last)
    scaled = F.interpolate(around, scale_factor=COARSE, mode="bilinear", align_corners=False)
    above = COARSE * (low - max(low - 1, 0))
    found = scaled[0, :, above : above + rows.stop - rows.start, :size]
    return found.round_().to(torch.uint8).permute(1, 2, 0)


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
