"""Contact sheets: an object from a few sides in one picture, for `--preview` and `trellis render`.

A plain headlight shows shape and colour; physically based rendering is `trellis_core.render`'s business.
Letters: V vertices, F faces, P pixels, S texture side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera, orbit_camera, snapshot_views
from trellis_core.geometry.types import BASE_COLOR, Asset, Mesh, PBRVoxels, VoxelMesh
from trellis_core.render.mesh import MeshBuffers, interpolate, render_mesh
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime

SIDE = 384  # pixels of one view
SUPERSAMPLING = 2
BACKGROUND = 0.96
GREY = 0.72  # of a surface without colour
VIEWS = snapshot_views(4, FRONT - math.pi / 6, 0.35)

Colors = Callable[[MeshBuffers], Tensor]  # float32 [P, 3] for the P pixels of the mask


def draw_asset(asset: Asset, runtime: Runtime) -> Image.Image:
    """A row of views of the textured mesh, a row of its bare shape."""
    return draw_rows(
        [textured_row(asset.mesh, asset.material.base_color, runtime), shape_row(asset.mesh, runtime)]
    )


def draw_decoded(shape: VoxelMesh, runtime: Runtime) -> Image.Image:
    """A row of views of the raw mesh, a row of its material voxels."""
    return draw_rows([shape_row(shape.mesh, runtime), voxel_row(shape.voxels, runtime)])


def draw_rows(rows: Sequence[Sequence[Tensor]]) -> Image.Image:  # tiles float32 [SIDE, SIDE, 3]
    sheet = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
    return Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().cpu().numpy(), "RGB")


def textured_row(
    mesh: Mesh,  # with uvs
    base_color: Tensor,  # uint8 [S, S, 3 or 4]
    runtime: Runtime,
) -> list[Tensor]:
    texture = base_color.to(runtime.device)
    uvs = mesh.uvs.to(runtime.device) if mesh.uvs is not None else None
    faces = mesh.faces.to(runtime.device)

    def colors(buffers: MeshBuffers) -> Tensor:
        if uvs is None:
            return torch.full_like(buffers.position[buffers.mask], GREY)
        corners = faces[buffers.face[buffers.mask].long()].long()
        uv = interpolate(uvs[corners], buffers.barycentric[buffers.mask])
        column, row = _texel(uv[:, 0], texture.shape[1]), _texel(uv[:, 1], texture.shape[0])
        return texture[row, column, :3].float() / 255

    return [_lit(mesh, camera, colors, runtime) for camera in _cameras()]


def fit_unit_cube(mesh: Mesh) -> Mesh:
    """Centre the bounding box and scale its longest side to 1."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    scale = (high - low).max().clamp(min=1e-12)
    return replace(mesh, vertices=(mesh.vertices - (low + high) / 2) / scale)


def shape_row(mesh: Mesh, runtime: Runtime) -> list[Tensor]:
    def grey(buffers: MeshBuffers) -> Tensor:
        return torch.full_like(buffers.position[buffers.mask], GREY)

    return [_lit(mesh, camera, grey, runtime) for camera in _cameras()]


def voxel_row(voxels: PBRVoxels, runtime: Runtime) -> list[Tensor]:
    size = 1 / voxels.resolution
    positions = (voxels.coords.float() + 0.5) * size - 0.5
    tiles = []
    for camera in _cameras():
        seen = render_voxels(
            positions,
            voxels.attrs[:, BASE_COLOR],
            camera,
            SIDE,
            runtime,
            voxel_size=size,
            supersampling=SUPERSAMPLING,
        )
        tiles.append(seen.attrs.clamp(0, 1) + (1 - seen.mask[..., None]) * BACKGROUND)
    return tiles


def _cameras() -> list[Camera]:
    return [orbit_camera(yaw, pitch, radius=1.85) for yaw, pitch in VIEWS]


def _lit(mesh: Mesh, camera: Camera, colors: Colors, runtime: Runtime) -> Tensor:  # float32 [SIDE, SIDE, 3]
    """Lambert's law with a light at the viewer's left shoulder, and some from everywhere."""
    buffers = render_mesh(mesh, camera, SIDE * SUPERSAMPLING, runtime)
    right, down, forward = camera.extrinsics[:3, :3].to(buffers.normal)
    light = torch.nn.functional.normalize(-forward - 0.5 * right - 0.6 * down, dim=0)
    lambert = (buffers.normal[buffers.mask] @ light).clamp(min=0)
    image = torch.full_like(buffers.normal, BACKGROUND)
    image[buffers.mask] = colors(buffers) * (0.4 + 0.7 * lambert[:, None])
    return image.view(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING, 3).mean((1, 3))


def _texel(coordinate: Tensor, side: int) -> Tensor:
    return (coordinate * side).long().clamp(0, side - 1)
