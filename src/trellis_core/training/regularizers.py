"""Terms of TRELLIS' decoders beside pictures: sizes of Gaussians, distances to a depth map.

Xiang et al., "Structured 3D Latents for Scalable and Versatile 3D Generation" (2024).
Letters: B batch, N Gaussians or grid corners, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.camera import Camera


def gaussian_size(scales: Sequence[Tensor]) -> Tensor:  # [N_i, 3] each, activated -> float32 []
    """Mean over all Gaussians of all samples of the product of their three scales."""
    return torch.cat(list(scales)).prod(1).mean()


def transparency(opacities: Sequence[Tensor]) -> Tensor:  # [N_i, 1] each, activated -> float32 []
    """Mean of (opacity - 1)^2 over all Gaussians of all samples."""
    return (torch.cat(list(opacities)) - 1).square().mean()


def truncated_distance_loss(
    points: Tensor,  # float32 [N, 3]  world space
    distances: Tensor,  # float32 [N]     predicted signed distances at the points
    depth: Tensor,  # float32 [1, H, W]  of the true surface
    camera: Camera,
    band: float,  # world units
) -> Tensor:  # float32 []
    """Mean squared difference of predicted distances to how far the true surface lies behind each point.

    Points deeper than `band` behind the surface are left out: a depth map does not know what is there.
    Projective truncated distances: Curless & Levoy, "A Volumetric Method for Building Complex Models from
    Range Images" (1996).
    """
    extrinsics, intrinsics = camera.extrinsics.to(points), camera.intrinsics.to(points)
    local = points @ extrinsics[:3, :3].T + extrinsics[:3, 3]
    seen = local @ intrinsics.T
    places = (2 * seen[:, :2] / seen[:, 2:] - 1).nan_to_num(2.0).clamp(-2, 2)  # nan would end the process
    surface = F.grid_sample(
        depth[None], places[None, None], mode="bilinear", padding_mode="border", align_corners=True
    ).reshape(-1)
    ahead = surface - local[:, 2]
    known = ahead > -band
    error = ahead[known].clamp(-band, band) - distances[known]
    return error.square().sum() / max(len(error), 1)  # a picture may show nothing
