"""What a camera sees of Gaussians or a radiance field. Letters: H height, W width (equal here)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.camera import Camera

FAINT = 1e-3  # alpha of pixels whose depth means nothing
SPLINE = (1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16)
OUTLIER = 3.0  # times the median distance from the median
PINHOLES = 2  # passes of the median, each of which closes holes of about three pixels
TOLERANCE = 0.01  # world units, per pixel of distance: what is no jump in depth


@dataclass(frozen=True, slots=True)
class FieldImage:
    """A picture of something fuzzy; all zeros where nothing is seen."""

    color: Tensor  # float32 [H, W, 3]  sRGB-coded, on black (multiplied by alpha)
    alpha: Tensor  # float32 [H, W]
    depth: Tensor  # float32 [H, W]     along the camera's z, mean of what is seen; 0 below `FAINT`

    @classmethod
    def of_sums(cls, sums: Tensor) -> FieldImage:  # float32 [H, W, 5]  color, depth and 1, times alpha
        alpha = sums[..., 4]
        seen = alpha >= FAINT
        depth = torch.where(seen, sums[..., 3] / torch.where(seen, alpha, 1.0), 0.0)
        return cls(sums[..., :3], alpha, depth)

    def over(self, background: Sequence[float]) -> Tensor:  # float32 [H, W, 3]
        """The picture before a plain background."""
        return self.color + (1 - self.alpha)[..., None] * self.color.new_tensor(background)


def smooth_depth(
    depth: Tensor,  # float32 [H, W]
    mask: Tensor,  # bool [H, W]
) -> Tensor:  # float32 [H, W]
    """Depth without pinholes, the grain of single Gaussians and steps of rays; 0 outside the mask.

    Outliers give way to the median around them; then everything but jumps is smoothed: Dammertz et al.,
    "Edge-Avoiding À-Trous Wavelet Transform" (2010).
    """
    for _ in range(PINHOLES):
        known = torch.where(mask, depth, torch.nan)
        median = median_around(known)
        spread = median_around((known - median).abs())
        depth = torch.where(mask & ((known - median).abs() > OUTLIER * spread), median, depth)
    passes = max(1, round(math.log2(max(depth.shape[0], 1) / 128)) + 1)
    height, width = depth.shape
    for level in range(passes):
        step = 1 << level
        known, value = (F.pad(x[None, None], [2 * step] * 4)[0, 0] for x in (mask.float(), depth))
        total, weight = torch.zeros_like(depth), torch.zeros_like(depth)
        for i, row in enumerate(SPLINE):
            for j, column in enumerate(SPLINE):
                part = slice(i * step, i * step + height), slice(j * step, j * step + width)
                jump = (value[part] - depth) / (TOLERANCE * step)
                share = row * column * known[part] * torch.exp(-jump * jump)
                total, weight = total + share * value[part], weight + share
        depth = torch.where(mask, total / weight.clamp(min=1e-9), 0.0)
    return depth


def median_around(values: Tensor) -> Tensor:  # float32 [H, W]
    """The median of 5 x 5 pixels, NaN left out."""
    around = F.pad(values[None, None], [2] * 4, value=torch.nan).unfold(2, 5, 1).unfold(3, 5, 1)
    return around.reshape(*values.shape, 25).nanmedian(2).values


def depth_normals(
    depth: Tensor,  # float32 [H, W]
    mask: Tensor,  # bool [H, W]
    camera: Camera,
) -> Tensor:  # float32 [H, W, 3]  unit, world space, turned to the viewer; 0 where unknown
    """Normals of the surface that a depth map describes.

    In each direction the neighbour that is nearer in depth is taken, so that edges stay sharp. A pixel
    without a neighbour in one of the directions has no normal.
    """
    height, width = depth.shape
    device = depth.device
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([x / width, y / height, torch.ones_like(x)], 2).to(depth)
    rays = pixel @ (camera.intrinsics @ camera.extrinsics[:3, :3]).inverse().T.to(depth)
    points = rays * depth[..., None]
    sides = []
    for dim in (1, 0):
        step = points.diff(dim=dim)
        jump = depth.diff(dim=dim).abs()
        both = mask.narrow(dim, 1, mask.shape[dim] - 1) & mask.narrow(dim, 0, mask.shape[dim] - 1)
        jump = torch.where(both, jump, torch.inf)
        edge = torch.full_like(jump.narrow(dim, 0, 1), torch.inf)
        blank = torch.zeros_like(step.narrow(dim, 0, 1))
        before, after = torch.cat([edge, jump], dim), torch.cat([jump, edge], dim)
        chosen = (before < after)[..., None]
        side = torch.where(chosen, torch.cat([blank, step], dim), torch.cat([step, blank], dim))
        sides.append(torch.where(torch.isfinite(torch.minimum(before, after))[..., None], side, 0.0))
    normal = torch.linalg.cross(sides[1], sides[0])  # down, right: towards the viewer
    normal = F.normalize(normal, dim=2)
    return torch.where(mask.to(device)[..., None], normal, 0.0)
