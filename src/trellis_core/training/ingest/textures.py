"""Looking up textures: box-filtered mip chains, trilinear and nearest sampling, wrap modes.

Image coordinates start at the bottom left: v = 0 is the last row. Texel n spans [n, n + 1).
Letters: P points, H, W texels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Wrap = Literal["REPEAT", "CLAMP_TO_EDGE", "MIRRORED_REPEAT"]


@dataclass(frozen=True, slots=True)
class Pyramid:
    """A box-filtered mip chain, all levels one after the other."""

    texels: Tensor  # float32 [texels of all levels, C]  in [0, 1]
    offsets: Tensor  # int64 [levels]
    sizes: Tensor  # int64 [levels, 2]   W, H
    height: float  # side of a square texture of the same area


def build_pyramid(
    texture: Tensor,  # uint8 [H, W] or [H, W, C]
) -> Pyramid:
    """Halve until one texel is left; means are truncated to integers, odd sides repeat their last texel."""
    level = texture[..., None] if texture.dim() == 2 else texture
    if level.dtype != torch.uint8 or 0 in level.shape:
        raise ValueError(
            f"a texture must be uint8 with at least one texel, got {level.dtype} {list(texture.shape)}"
        )
    height, width = level.shape[:2]
    side = math.sqrt(height * width)
    levels = [level]
    while max(height, width) > 1:
        wide = torch.cat([level, level[:, -1:]], 1) if width % 2 else level
        even = torch.cat([wide, wide[-1:]], 0) if height % 2 else wide
        height, width = even.shape[0] // 2, even.shape[1] // 2
        level = (even.reshape(height, 2, width, 2, -1).sum((1, 3), dtype=torch.int32) // 4).byte()
        levels.append(level)
    sizes = torch.tensor([[x.shape[1], x.shape[0]] for x in levels], device=texture.device)
    texels = torch.cat([x.reshape(-1, x.shape[2]) for x in levels]).float() / 255
    area = sizes.prod(1)
    return Pyramid(texels, area.cumsum(0) - area, sizes, side)


def sample_trilinear(pyramid: Pyramid, uv: Tensor, level: Tensor, wrap: Wrap) -> Tensor:
    last = len(pyramid.offsets) - 1
    level = torch.where(level.isfinite(), level, 0.0).clamp(0, last)
    lower = level.floor()
    share = (level - lower)[:, None]
    lower = lower.long()
    coarse = sample_bilinear(pyramid, uv, (lower + 1).clamp_max(last), wrap)
    return (1 - share) * sample_bilinear(pyramid, uv, lower, wrap) + share * coarse


def sample_bilinear(pyramid: Pyramid, uv: Tensor, level: Tensor, wrap: Wrap) -> Tensor:
    position = texel_position(pyramid, uv, level) - 0.5
    corner = position.floor()
    right, down = (position - corner)[:, :, None].unbind(1)
    first = corner.long()

    def texel(x: int, y: int) -> Tensor:
        return fetch(pyramid, first + torch.tensor([x, y], device=uv.device), level, wrap)

    upper = (1 - right) * texel(0, 0) + right * texel(1, 0)
    return (1 - down) * upper + down * ((1 - right) * texel(0, 1) + right * texel(1, 1))


def sample_nearest(pyramid: Pyramid, uv: Tensor, level: Tensor, wrap: Wrap) -> Tensor:
    return fetch(pyramid, texel_position(pyramid, uv, level).floor().long(), level, wrap)


def texel_position(pyramid: Pyramid, uv: Tensor, level: Tensor) -> Tensor:
    """Continuous (column, row): float32 [P, 2]; texel n spans [n, n + 1)."""
    return torch.stack([uv[:, 0], 1 - uv[:, 1]], 1) * pyramid.sizes[level]


def fetch(pyramid: Pyramid, texel: Tensor, level: Tensor, wrap: Wrap) -> Tensor:
    """Texels at (column, row) int64 [P, 2] of a level."""
    size = pyramid.sizes[level]
    if wrap == "REPEAT":
        texel = texel % size
    elif wrap == "CLAMP_TO_EDGE":
        texel = torch.minimum(texel.clamp_min(0), size - 1)
    else:
        turn = texel % (2 * size)
        texel = torch.minimum(turn, 2 * size - 1 - turn)
    return pyramid.texels[pyramid.offsets[level] + texel[:, 1] * size[:, 0] + texel[:, 0]]
