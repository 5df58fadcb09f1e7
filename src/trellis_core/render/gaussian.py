"""Pictures of Gaussians.

Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (2023), with the screen filter of
Yu et al., "Mip-Splatting: Alias-free 3D Gaussian Splatting" (2024). Differentiable in all that is drawn.
Letters: N Gaussians, H height, W width (equal here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.fields import Gaussians, principal_axes
from trellis_core.render.field_image import FieldImage
from trellis_core.runtime import Runtime

NEAR = 0.2  # Gaussians whose centre is closer to the camera plane are not drawn
FIELD = 1.3  # times half the picture: how far outside perspective is still linearised where it is
SMALL = 1e-6  # pixels^4, determinants of ellipses that are not drawn

Splat = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Splats:
    """Gaussians as ellipses in a picture."""

    centers: Tensor  # float32 [N, 2]  x right and y down in pixels; pixel centres at +0.5
    covariances: Tensor  # float32 [N, 3]  xx, xy, yy in pixels^2, screen filter included
    opacities: Tensor  # float32 [N]     lowered by as much as the filter widened them; 0 where not drawn
    depths: Tensor  # float32 [N]     along the camera's z

    @property
    def conics(self) -> Tensor:  # float32 [N, 3]  inverse covariances
        xx, xy, yy = self.covariances.unbind(1)
        determinant = (xx * yy - xy * xy).clamp(min=SMALL)
        return torch.stack([yy, -xy, xx], 1) / determinant[:, None]


def render_gaussians(
    gaussians: Gaussians,
    camera: Camera,
    size: int,
    runtime: Runtime,
    *,
    supersampling: int = 1,
) -> FieldImage:
    """Draw `gaussians` at `size` x `size` pixels; `supersampling` squared samples are averaged per pixel."""
    gaussians = gaussians.to(runtime.device)
    side = size * supersampling
    splats = project_gaussians(gaussians, camera, side)
    shown = torch.nonzero(splats.opacities.detach() > 0)[:, 0]
    order = shown[torch.argsort(splats.depths.detach()[shown], stable=True)]
    values = torch.cat([gaussians.colors, splats.depths[:, None]], 1)
    image, light = cast(Splat, runtime.kernels["splat"])(
        splats.centers[order], splats.conics[order], splats.opacities[order], values[order], side, side
    )
    sums = torch.cat([image, 1 - light[..., None]], 2)
    if supersampling > 1:
        sums = sums.view(size, supersampling, size, supersampling, 5).mean((1, 3))
    return FieldImage.of_sums(sums)


def project_gaussians(gaussians: Gaussians, camera: Camera, size: int) -> Splats:
    """Ellipses in a picture of `size` pixels: affine approximation of perspective around each centre.

    Zwicker et al., "EWA Splatting" (2002).
    """
    axes = principal_axes(gaussians)
    view = camera.extrinsics.to(gaussians.positions)
    focal = torch.stack([camera.intrinsics[0, 0], camera.intrinsics[1, 1]]).to(view) * size
    middle = camera.intrinsics[:2, 2].to(view) * size
    local = gaussians.positions @ view[:3, :3].T + view[:3, 3]
    depth = local[:, 2]
    z = depth.clamp(min=NEAR)
    slope = local[:, :2] / z[:, None]
    limit = FIELD * 0.5 * size / focal
    bent = slope.maximum(-limit).minimum(limit)
    # the Jacobian's rows, (f / z, 0, -f x / z^2) and (0, f / z, -f y / z^2), in world space, then along axes
    rows = (focal / z[:, None])[..., None] * (view[:2, :3] - bent[..., None] * view[2, :3])
    across, down = ((row[..., None] * axes).sum(1) for row in rows.unbind(1))
    xx, xy, yy = (across * across).sum(1), (across * down).sum(1), (down * down).sum(1)
    sharp = (xx * yy - xy * xy).clamp(min=SMALL)
    xx, yy = xx + gaussians.kernel_size, yy + gaussians.kernel_size
    soft = (xx * yy - xy * xy).clamp(min=SMALL)
    kept = (sharp / (soft + SMALL) + SMALL).sqrt()
    drawn = (depth > NEAR) & (sharp > SMALL) & (soft > SMALL)
    opacity = torch.where(drawn, gaussians.opacities[:, 0] * kept, 0.0)
    return Splats(slope * focal + middle, torch.stack([xx, xy, yy], 1), opacity, depth)
