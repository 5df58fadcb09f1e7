"""Compositing fuzzy ellipses front to back: the inner loop of Gaussian splatting. Plain torch, any device.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (2023), section 6: sort once by
depth, give each tile of pixels the splats that reach it, blend them in order. Differentiable.
Letters: N splats, C channels, P pixels of a tile, K splats at a time, M pairs of a tile and a splat.
"""

from __future__ import annotations

import torch
from torch import Tensor

OPAQUE = 0.99  # the most that one splat covers
FAINT = 1 / 255  # coverage that is not drawn
FULL = 1e-4  # a splat that would leave less light than this ends the pixel
TILE = 16  # pixels
CHUNK = 1024  # splats of a tile at a time


def splat(
    centers: Tensor,  # float32 [N, 2]  x right and y down in pixels; pixel centres at +0.5
    conics: Tensor,  # float32 [N, 3]  inverse covariance xx, xy, yy in pixels^-2
    opacities: Tensor,  # float32 [N]
    values: Tensor,  # float32 [N, C]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:  # float32 [H, W, C] sum of values, float32 [H, W] light that is left
    """Draw splats that are sorted from near to far, on black.

    A splat covers opacity * exp(-d^T conic d / 2) of a pixel at distance d, at most `OPAQUE`; less than
    `FAINT` is nothing. A pixel ends before its light falls below `FULL`.
    """
    starts, order = bin_splats(centers, conics, opacities, height, width)
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    line = torch.arange(TILE, device=centers.device) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    corner_pixels = torch.stack([x, y], 2).reshape(-1, 2)
    images, lights = [], []
    bounds = starts.tolist()
    for tile in range(tiles_x * tiles_y):
        corner = corner_pixels.new_tensor([tile % tiles_x * TILE, tile // tiles_x * TILE])
        members = order[bounds[tile] : bounds[tile + 1]].long()
        image, light = blend(corner_pixels + corner, centers, conics, opacities, values, members)
        images.append(image)
        lights.append(light)
    channels = values.shape[1]
    shape = (tiles_y, tiles_x, TILE, TILE, channels)
    whole = torch.stack(images).reshape(shape).transpose(1, 2).reshape(tiles_y * TILE, -1, channels)
    left = torch.stack(lights).reshape(shape[:-1]).transpose(1, 2).reshape(tiles_y * TILE, -1)
    return whole[:height, :width], left[:height, :width]


def blend(
    pixels: Tensor,  # float32 [P, 2]
    centers: Tensor,
    conics: Tensor,
    opacities: Tensor,
    values: Tensor,
    members: Tensor,  # int64 [K]  splats of the tile, near to far
) -> tuple[Tensor, Tensor]:  # float32 [P, C], float32 [P]
    image = values.new_zeros(len(pixels), values.shape[1])
    running = light = values.new_ones(len(pixels))  # product over all splats, over those that were drawn
    for part in members.split(CHUNK) if len(members) else ():
        dx, dy = (pixels[:, None] - centers[part]).unbind(2)
        xx, xy, yy = conics[part].unbind(1)
        power = -0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy
        alpha = (opacities[part] * torch.exp(power)).clamp(max=OPAQUE)
        alpha = torch.where(alpha >= FAINT, alpha, 0.0)
        after = running[:, None] * torch.cumprod(1 - alpha, 1)
        before = torch.cat([running[:, None], after[:, :-1]], 1)
        drawn = after >= FULL  # false for good once it is false
        image = image + torch.where(drawn, alpha * before, 0.0) @ values[part]
        light = torch.minimum(light, torch.where(drawn, after, 1.0).amin(1))
        running = after[:, -1]
        if bool((running < FULL).all()):
            break
    return image, light


@torch.no_grad()
def bin_splats(
    centers: Tensor,
    conics: Tensor,
    opacities: Tensor,
    height: int,
    width: int,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:  # int64 [tiles + 1] where each tile's splats start, int32 [M] splats
    """Which splats reach which tile, near to far; tiles row by row."""
    tiles_x, tiles_y = -(-width // tile), -(-height // tile)
    xx, xy, yy = conics.unbind(1)
    # the ellipse on which the coverage is `FAINT`, a little more, and the box around it
    reach = (2 * torch.log((opacities / FAINT).clamp(min=1e-30)) + 1e-3) / (xx * yy - xy * xy)
    box = torch.stack([reach * yy, reach * xx], 1)
    drawn = (box > 0).all(1) & torch.isfinite(box).all(1) & torch.isfinite(centers).all(1)
    size = centers.new_tensor([width, height])
    extent = torch.where(drawn[:, None], box, 0.0).sqrt()
    middle = torch.where(drawn[:, None], centers, 0.0)
    low = ((middle - extent).clamp(min=0).minimum(size) / tile).floor().long()
    high = ((middle + extent).clamp(min=0).minimum(size) / tile).ceil().long()
    span = torch.where(drawn[:, None], high - low, 0).clamp(min=0)
    count = span[:, 0] * span[:, 1]
    member = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    place = torch.arange(len(member), device=count.device) - (count.cumsum(0) - count)[member]
    column = low[member, 0] + place % span[member, 0]
    row = low[member, 1] + place // span[member, 0]
    tile_of, order = torch.sort(row * tiles_x + column, stable=True)
    numbers = torch.arange(tiles_x * tiles_y + 1, device=count.device)
    return torch.searchsorted(tile_of, numbers), member[order].int()
