"""Pictures of meshes whose material stands at the vertices: the project's physically based shading, without
unwrapping a texture first. Plain torch; any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera
from trellis_core.geometry.types import VoxelMesh
from trellis_core.render.mesh import interpolate, render_mesh
from trellis_core.render.pbr import STANDARD, average_blocks, shade, to_srgb8, tone_map
from trellis_core.render.surface import Surface
from trellis_core.render.turntable import framed_cameras
from trellis_core.runtime import Runtime


def draw(
    shape: VoxelMesh,  # one voxel for each vertex
    camera: Camera,
    size: int,
    runtime: Runtime,
) -> np.ndarray:  # uint8 [size, size, 4]  straight alpha
    """Draw the shape on a transparent background."""
    side = size * STANDARD.supersampling
    buffers = render_mesh(shape.mesh, camera, side, runtime)
    color = torch.zeros(side, side, 4, device=runtime.device)
    if bool(buffers.mask.any()):
        face = buffers.face[buffers.mask].long()
        corners = shape.mesh.faces.to(face.device)[face].long()
        attrs = interpolate(shape.voxels.attrs.to(face.device)[corners], buffers.barycentric[buffers.mask])
        surface = material(attrs.clamp(0, 1))
        shaded = tone_map(shade(surface, buffers, camera, STANDARD.light))
        color[buffers.mask] = torch.cat([shaded, torch.ones_like(surface.alpha)], dim=1)
    return to_srgb8(average_blocks(color, STANDARD.supersampling)).cpu().numpy()


def material(attrs: Tensor) -> Surface:  # float32 [P, 6]
    """Voxel attributes as the renderer takes them: base color linear."""
    base = attrs[:, :3]
    linear = torch.where(base <= 0.04045, base / 12.92, ((base + 0.055) / 1.055) ** 2.4)
    return Surface(linear, attrs[:, 3:4], attrs[:, 4:5], attrs[:, 5:6])


def cameras_around(shape: VoxelMesh, *yaws: float, pitch: float = 20.0) -> list[Camera]:
    """Cameras that see the whole shape; yaw 0 (degrees) looks at the front."""
    return framed_cameras(shape, [(FRONT - math.radians(yaw), math.radians(pitch)) for yaw in yaws])
