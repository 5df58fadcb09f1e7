"""Draw a mesh into geometry buffers: which face, how far, where, facing which way.

Knows nothing about materials and light. Letters: H height, W width (equal here), V vertices, F faces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime

NEAR = 0.01  # faces with a corner closer to the camera plane are not drawn

Rasterize = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class MeshBuffers:
    """What a camera sees of a mesh; all zeros where it sees nothing."""

    face: Tensor  # int32 [H, W]            -1 where nothing is seen
    barycentric: Tensor  # float32 [H, W, 3]       perspective-correct
    depth: Tensor  # float32 [H, W]          along the camera's z
    normal: Tensor  # float32 [H, W, 3]       unit, world space, turned to the viewer
    position: Tensor  # float32 [H, W, 3]       world space
    mask: Tensor  # bool [H, W]


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    size: int,
    runtime: Runtime,
    behind: Tensor | None = None,  # int32 [H, W]  faces of the layer in front, -1 where it has none
) -> MeshBuffers:
    """Draw `mesh` at `size` x `size` pixels, both sides of its faces.

    Normals are the mesh's own, else those of the faces. With `behind`, the next layer of surface is drawn.
    """
    mesh = mesh.to(runtime.device)
    points = project(mesh.vertices, camera, size)
    rasterize = cast(Rasterize, runtime.kernels["rasterize"])
    face, screen = rasterize(points, mesh.faces, size, size, behind)
    mask = face >= 0
    buffers = MeshBuffers(
        face,
        torch.zeros_like(screen),
        torch.zeros_like(screen[..., 0]),
        torch.zeros_like(screen),
        torch.zeros_like(screen),
        mask,
    )
    corners = mesh.faces[face[mask].long()].long()
    # depth is -1/z, which is linear in the image: weight each corner by its 1/z
    weights = screen[mask] * -points[corners, 2]
    inverse_depth = weights.sum(1, keepdim=True)
    weights = weights / inverse_depth
    buffers.barycentric[mask] = weights
    buffers.depth[mask] = 1 / inverse_depth[:, 0]
    triangles = mesh.vertices[corners]
    position = interpolate(triangles, weights)
    flat = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    smooth = flat if mesh.normals is None else interpolate(mesh.normals[corners], weights)
    to_viewer = camera.eye.to(position) - position
    side = torch.where((flat * to_viewer).sum(1, keepdim=True) < 0, -1.0, 1.0)
    buffers.position[mask] = position
    buffers.normal[mask] = torch.nn.functional.normalize(smooth * side, dim=1)
    return buffers


def project(
    vertices: Tensor,  # float32 [V, 3]  world space
    camera: Camera,
    size: int,
) -> Tensor:  # float32 [V, 3]  x right and y down in pixels, -1/z; NaN in front of the near plane
    """Project to the image for `rasterize`; -1/z grows with distance and is linear in the image."""
    extrinsics, intrinsics = camera.extrinsics.to(vertices), camera.intrinsics.to(vertices)
    seen = (vertices @ extrinsics[:3, :3].T + extrinsics[:3, 3]) @ intrinsics.T
    z = torch.where(seen[:, 2:] < NEAR, torch.nan, seen[:, 2:])
    return torch.cat([seen[:, :2] / z * size, -1 / z], 1)


def interpolate(
    values: Tensor,  # float32 [P, 3, C]  at the corners
    weights: Tensor,  # float32 [P, 3]
) -> Tensor:  # float32 [P, C]
    return (values * weights[..., None]).sum(1)
