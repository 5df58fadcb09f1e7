"""Contact sheets: an object from a few sides in one picture, for `--preview` and `trellis render`.

The material is drawn with physically based lights, the bare shape and voxels with a plain headlight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera, snapshot_views
from trellis_core.geometry.types import BASE_COLOR, Asset, Material, Mesh, QualityReport, VoxelMesh
from trellis_core.io.meshes import TexturedMesh
from trellis_core.render.mesh import render_mesh
from trellis_core.render.pbr import render_pbr
from trellis_core.render.turntable import framed_cameras
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime

SIDE = 384  # pixels of one view
SUPERSAMPLING = 2
BACKGROUND = 0.96
GREY = 0.72  # of a surface without colour
VIEWS = snapshot_views(4, FRONT - math.pi / 6, 0.35)


def draw_asset(asset: Asset, runtime: Runtime) -> Image.Image:
    """A row of views of the textured mesh, a row of its bare shape."""
    return draw_rows([textured_row(asset, runtime), shape_row(asset.mesh, runtime)])


def draw_decoded(shape: VoxelMesh, runtime: Runtime) -> Image.Image:
    """A row of views of the raw mesh, a row of its material voxels."""
    return draw_rows([shape_row(shape.mesh, runtime), voxel_row(shape, runtime)])


def draw_rows(rows: Sequence[Sequence[Tensor]]) -> Image.Image:  # tiles float32 [SIDE, SIDE, 3]
    sheet = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
    return Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().cpu().numpy(), "RGB")


def textured_row(asset: Asset, runtime: Runtime) -> list[Tensor]:
    tiles = []
    for camera in framed_cameras(asset.mesh, VIEWS):
        seen = render_pbr(asset, camera, SIDE, runtime).float() / 255
        tiles.append(torch.lerp(torch.full_like(seen[..., :3], BACKGROUND), seen[..., :3], seen[..., 3:]))
    return tiles


def as_asset(read: TexturedMesh) -> Asset | None:
    """A mesh file with its texture as something to draw; None when it has no texture."""
    if read.base_color is None or read.mesh.uvs is None:
        return None
    shine = read.metallic_roughness
    if shine is None:
        shine = torch.tensor([[[0, 160, 0]]], dtype=torch.uint8)  # not metallic, rather rough
    return Asset(read.mesh, Material(read.base_color, shine), QualityReport({}))


def shape_row(mesh: Mesh, runtime: Runtime) -> list[Tensor]:
    return [_lit(mesh, camera, runtime) for camera in framed_cameras(mesh, VIEWS)]


def voxel_row(shape: VoxelMesh, runtime: Runtime) -> list[Tensor]:
    voxels = shape.voxels
    size = 1 / voxels.resolution
    positions = (voxels.coords.float() + 0.5) * size - 0.5
    tiles = []
    for camera in framed_cameras(shape.mesh, VIEWS):
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


def _lit(mesh: Mesh, camera: Camera, runtime: Runtime) -> Tensor:  # float32 [SIDE, SIDE, 3]
    """Lambert's law with a light at the viewer's left shoulder, and some from everywhere."""
    buffers = render_mesh(mesh, camera, SIDE * SUPERSAMPLING, runtime)
    right, down, forward = camera.extrinsics[:3, :3].to(buffers.normal)
    light = torch.nn.functional.normalize(-forward - 0.5 * right - 0.6 * down, dim=0)
    lambert = (buffers.normal[buffers.mask] @ light).clamp(min=0)
    image = torch.full_like(buffers.normal, BACKGROUND)
    image[buffers.mask] = (GREY * (0.4 + 0.7 * lambert[:, None])).expand(-1, 3)
    return image.view(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING, 3).mean((1, 3))
