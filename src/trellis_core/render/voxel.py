"""Draw voxels as cubes.

The released rule: boxes are tried in the order of the camera depth of their centres, and the first one that a
ray hits wins. Here each box is drawn as its faces turned to the viewer, all at the depth of the centre.
Letters: N voxels, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.render.mesh import Rasterize, project
from trellis_core.runtime import Runtime

NEAR = 0.2  # boxes whose centre is closer to the camera plane are not drawn

CORNERS = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
# four corners around each side of the cube: -x, +x, -y, +y, -z, +z
SIDES = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


@dataclass(frozen=True, slots=True)
class VoxelImage:
    """What a camera sees of voxels; zeros where it sees nothing."""

    attrs: Tensor  # float32 [H, W, C]
    depth: Tensor  # float32 [H, W]     distance along the ray to where it enters the voxel
    mask: Tensor  # float32 [H, W]     share of the pixel that is covered
    voxel: Tensor  # int32 [H, W]       -1 where none; with supersampling, of the first sample


def render_voxels(
    positions: Tensor,  # float32 [N, 3]  centres
    attrs: Tensor,  # float32 [N, C]
    camera: Camera,
    size: int,
    runtime: Runtime,
    *,
    voxel_size: float,
    supersampling: int = 1,
) -> VoxelImage:
    """Draw voxels at `size` x `size` pixels, averaging `supersampling` squared samples per pixel."""
    positions, attrs = positions.to(runtime.device), attrs.to(runtime.device)
    side = size * supersampling
    voxel = visible_voxels(positions, camera, side, voxel_size, cast(Rasterize, runtime.kernels["rasterize"]))
    y, x = torch.nonzero(voxel >= 0, as_tuple=True)
    found = voxel[y, x].long()
    color = torch.zeros(side, side, attrs.shape[1], device=attrs.device)
    depth = torch.zeros(side, side, device=attrs.device)
    color[y, x] = attrs[found]
    rays = pixel_rays(camera, side, x, y)
    depth[y, x] = entry_distance(positions[found], camera.eye.to(rays), rays, voxel_size)
    mask = (voxel >= 0).float()
    if supersampling == 1:
        return VoxelImage(color, depth, mask, voxel)
    sampled = torch.cat([color, depth[..., None], mask[..., None]], 2)
    sampled = sampled.view(size, supersampling, size, supersampling, -1).mean((1, 3))
    return VoxelImage(
        sampled[..., :-2], sampled[..., -2], sampled[..., -1], voxel[::supersampling, ::supersampling]
    )


def visible_voxels(
    positions: Tensor,  # float32 [N, 3]
    camera: Camera,
    size: int,
    voxel_size: float,
    rasterize: Rasterize,
) -> Tensor:  # int32 [size, size]  -1 where none
    device, half = positions.device, voxel_size / 2
    z = positions @ camera.extrinsics[2, :3].to(positions) + camera.extrinsics[2, 3].to(positions)
    to_eye = camera.eye.to(positions) - positions
    # per axis the side on the eye's side, if the eye is beyond its plane
    seen = (to_eye.abs() > half) & (z > NEAR)[:, None]
    voxel, axis = torch.nonzero(seen, as_tuple=True)
    towards = (to_eye[voxel, axis] > 0).long()
    quad = voxel[:, None] * 8 + SIDES.to(device)[2 * axis + towards]
    corners = (positions[:, None] + CORNERS.to(device) * half).view(-1, 3)
    points = torch.cat([project(corners, camera, size)[:, :2], z.repeat_interleave(8)[:, None]], 1)
    triangles = torch.stack([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]], 1).view(-1, 3)
    face, _ = rasterize(points, triangles.int(), size, size)
    owner = torch.cat([voxel.int(), torch.tensor([-1], dtype=torch.int32, device=device)])
    return owner[torch.where(face >= 0, face // 2, len(voxel)).long()]


def pixel_rays(
    camera: Camera, size: int, x: Tensor, y: Tensor
) -> Tensor:  # float32 [P, 3]  unit, world space
    pixel = torch.stack([x + 0.5, y + 0.5, torch.full_like(x, size)], 1).double() / size
    inverse = (camera.intrinsics @ camera.extrinsics[:3, :3]).inverse().to(x.device)
    return torch.nn.functional.normalize(pixel @ inverse.T, dim=1).float()


def entry_distance(
    centers: Tensor,  # float32 [P, 3]
    eye: Tensor,  # float32 [3]
    rays: Tensor,  # float32 [P, 3]
    voxel_size: float,
) -> Tensor:  # float32 [P]
    """Slab method: Kay & Kajiya, "Ray Tracing Complex Scenes" (1986)."""
    middle, reach = (centers - eye) / rays, (voxel_size / 2 / rays).abs()
    return torch.nan_to_num(middle - reach, nan=-torch.inf).amax(1).clamp(min=0)
