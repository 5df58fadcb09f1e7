"""Pictures of a raw surface with its voxels' colors above those of its exports, under the same light.

Rows: the original, each export, and the edges of the last export's triangles. Letters: H picture side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tests.benchmarks.fidelity import read_texture
from trellis_core.geometry.camera import Camera, orbit_camera
from trellis_core.geometry.normals import vertex_normals
from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import Asset, Mesh, VoxelMesh
from trellis_core.render.mesh import MeshBuffers, render_mesh
from trellis_core.runtime import Runtime

SIDE = 512
VIEWS = [(0.6, 0.35), (2.2, 0.35), (4.0, -0.3), (5.3, 1.1)]  # yaw, pitch
NEAR = (1.0, 0.5)  # yaw, pitch of the close view
LIGHT = torch.nn.functional.normalize(torch.tensor([0.4, 0.3, 0.85]), dim=0)


def draw_side_by_side(shape: VoxelMesh, assets: Mapping[str, Asset], runtime: Runtime, path: Path) -> None:
    cameras = [orbit_camera(yaw, pitch, radius=1.9) for yaw, pitch in VIEWS]
    cameras.append(orbit_camera(*NEAR, radius=1.9, fov=math.radians(9), target=(0.2, 0.2, 0.1)))
    rows = [torch.cat([draw_raw(shape, camera, runtime) for camera in cameras], 1)]
    for asset in assets.values():
        rows.append(torch.cat([draw_asset(asset, camera, runtime) for camera in cameras], 1))
    last = list(assets.values())[-1].mesh
    rows.append(torch.cat([draw_edges(last, camera, runtime) for camera in cameras], 1))
    picture = (torch.cat(rows).clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(picture.numpy()).save(path)


def draw_raw(shape: VoxelMesh, camera: Camera, runtime: Runtime) -> Tensor:
    buffers = render_mesh(Mesh(shape.mesh.vertices, shape.mesh.faces), camera, SIDE, runtime)
    side = shape.voxels.resolution
    points = (buffers.position[buffers.mask] + 0.5) * side
    color, _ = sample_voxels(points, shape.voxels.coords, shape.voxels.attrs, side)
    return lit(buffers, color[:, :3])


def draw_asset(asset: Asset, camera: Camera, runtime: Runtime) -> Tensor:
    mesh = asset.mesh
    normals = mesh.normals if mesh.normals is not None else vertex_normals(mesh.vertices, mesh.faces)
    smooth = Mesh(mesh.vertices, mesh.faces, mesh.uvs, normals)
    buffers = render_mesh(smooth, camera, SIDE, runtime)
    assert mesh.uvs is not None
    corners = mesh.uvs[mesh.faces[buffers.face[buffers.mask].long()].long()]
    uv = (corners * buffers.barycentric[buffers.mask][:, :, None]).sum(1)
    return lit(buffers, read_texture(asset.material.base_color[..., :3].float() / 255, uv))


def draw_edges(mesh: Mesh, camera: Camera, runtime: Runtime) -> Tensor:
    buffers = render_mesh(Mesh(mesh.vertices, mesh.faces), camera, SIDE, runtime)
    on_edge = (buffers.barycentric[buffers.mask].amin(1) < 0.08).float()[:, None]
    front = face_normals(mesh.vertices, mesh.faces)[buffers.face[buffers.mask].long()]
    away = camera.eye - buffers.position[buffers.mask]
    back = ((front * away).sum(1) < 0).float()[:, None]
    color = torch.tensor([0.8, 0.8, 0.82]) * (1 - back) + torch.tensor([0.9, 0.2, 0.15]) * back
    return lit(buffers, color * (1 - 0.6 * on_edge))


def lit(buffers: MeshBuffers, color: Tensor) -> Tensor:
    """Colors [P, 3] of the seen pixels under one light, before white; [H, H, 3]."""
    shade = 0.35 + 0.65 * (buffers.normal[buffers.mask] @ LIGHT).clamp_min(0)
    picture = torch.ones(SIDE, SIDE, 3)
    picture[buffers.mask] = color * shade[:, None]
    return picture
