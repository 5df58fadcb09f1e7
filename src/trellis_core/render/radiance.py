"""Pictures of radiance fields in voxels. Differentiable in the field.

Gao et al., "Strivec: Sparse Tri-Vector Radiance Fields" (2023).
Letters: P pixels, H height, W width (equal here).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.fields import SH0, RadianceField
from trellis_core.kernels.march import MarchField, shift_constants
from trellis_core.render.field_image import FieldImage
from trellis_core.render.voxel import pixel_rays
from trellis_core.runtime import Runtime
from trellis_core.sparse.order import linear_keys, sort_keys

March = Callable[[MarchField, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def render_radiance(
    field: RadianceField,
    camera: Camera,
    size: int,
    runtime: Runtime,
    *,
    supersampling: int = 4,
    generator: torch.Generator | None = None,
) -> FieldImage:
    """Draw `field` at `size` x `size` pixels.

    Samples lie in the middle of their steps; with a `generator` (on the runtime's device) every ray shifts
    them at random. Supersampled pictures are made smaller by antialiased bilinear interpolation.
    """
    side = size * supersampling
    rays = camera_rays(camera, side, runtime.device)
    color, light, distance, _ = march_rays(field, camera, rays, runtime, generator=generator)
    depth = distance * (rays @ camera.extrinsics[2, :3].to(rays))
    sums = torch.cat([color, depth[:, None], 1 - light[:, None]], 1).view(side, side, 5)
    if supersampling > 1:
        stacked = sums.permute(2, 0, 1)[None]
        reduced = F.interpolate(stacked, size=(size, size), mode="bilinear", antialias=True)
        sums = reduced[0].permute(1, 2, 0)
    return FieldImage.of_sums(sums)


def camera_rays(camera: Camera, side: int, device: torch.device) -> Tensor:  # float32 [side * side, 3]
    number = torch.arange(side * side, device=device)
    return pixel_rays(camera, side, number % side, number // side)


def march_rays(
    field: RadianceField,
    camera: Camera,
    rays: Tensor,  # float32 [P, 3]  unit, world space
    runtime: Runtime,
    *,
    density_shift: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What rays from the camera's eye see.

    Returns float32 [P, 3] color on black, [P] light that is left, [P] sum of distances weighted like the
    color, and [P] distance at which less than half of the light is left (0: never).
    """
    offsets = torch.full_like(rays[:, 0], 0.5)
    if generator is not None:
        offsets = torch.rand(len(rays), generator=generator, device=rays.device)
    march = cast(March, runtime.kernels["march"])
    prepared = prepare_field(field.to(rays.device), density_shift)
    return march(prepared, camera.eye.to(rays), rays, offsets)


def prepare_field(field: RadianceField, density_shift: float = 0.0) -> MarchField:
    """Voxels in the order of their keys, constants folded in."""
    keys, order = sort_keys(linear_keys(field.coords, (field.resolution,) * 3))
    bias, gain = shift_constants(density_shift)
    return MarchField(
        keys,
        field.vectors[order],
        field.densities[order],
        field.features[order] * SH0,
        field.resolution,
        bias,
        gain,
    )
