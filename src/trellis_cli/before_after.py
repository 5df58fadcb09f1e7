"""The picture of an edit: the object before, where it may change, the object after, each from four sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.region import Region
from trellis_core.geometry.types import BASE_COLOR, Mesh, PBRVoxels
from trellis_core.render.mesh import render_mesh
from trellis_core.render.views import around, cameras_around
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime

SIDE = 320  # pixels of one view
SUPERSAMPLING = 2
VIEWS = 4
BACKGROUND = 0.96
GREY = 0.72  # of a surface whose voxels are not seen
GRID = 64  # cells in which regions are drawn
MAGENTA = (1.0, 0.0, 0.75)
SURFACE, SPACE = 0.7, 0.25  # strength of the magenta on the object, and in the space of the regions


def draw_before_after(
    before: tuple[Mesh, PBRVoxels],
    after: tuple[Mesh, PBRVoxels],
    regions: Sequence[Region],
    runtime: Runtime,
) -> Image.Image:
    """Three rows; the middle one is the object before with the regions in magenta."""
    cameras = cameras_around(torch.cat([before[0].vertices, after[0].vertices]), around(VIEWS))
    cells = surface_cells(regions)
    rows: list[list[Tensor]] = [[], [], []]
    for camera in cameras:
        rows[0].append(draw_object(*before, camera, runtime))
        tile = draw_object(*before, camera, runtime, regions)
        space = render_voxels(cells, cells, camera, SIDE, runtime, voxel_size=1 / GRID)
        rows[1].append(torch.lerp(tile, tile.new_tensor(MAGENTA), SPACE * space.mask[..., None]))
        rows[2].append(draw_object(*after, camera, runtime))
    sheet = torch.cat([torch.cat(row, 1) for row in rows], 0)
    return Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().cpu().numpy(), "RGB")


def draw_object(
    mesh: Mesh, voxels: PBRVoxels, camera: Camera, runtime: Runtime, regions: Sequence[Region] = ()
) -> Tensor:  # float32 [SIDE, SIDE, 3]
    """The voxels' colors, magenta where the surface is in a region, lit as the mesh bends.

    The light comes over the viewer's left shoulder (Lambert's law) and some from everywhere.
    """
    size = SIDE * SUPERSAMPLING
    surface = render_mesh(mesh, camera, size, runtime)
    right, down, forward = camera.extrinsics[:3, :3].to(surface.normal)
    light = torch.nn.functional.normalize(-forward - 0.5 * right - 0.6 * down, dim=0)
    edge = 1 / voxels.resolution
    positions = (voxels.coords.float() + 0.5) * edge - 0.5
    colors = voxels.attrs[:, BASE_COLOR].float().clamp(0, 1)
    seen = render_voxels(positions, colors, camera, size, runtime, voxel_size=edge)
    color = torch.where(seen.mask[..., None] > 0, seen.attrs, GREY)
    changing = surface.mask.clone()
    changing[surface.mask] = inside(regions, surface.position[surface.mask])
    color[changing] = torch.lerp(color[changing], color.new_tensor(MAGENTA), SURFACE)
    shade = 0.4 + 0.7 * (surface.normal @ light).clamp(min=0)
    tile = torch.where(surface.mask[..., None], color * shade[..., None], BACKGROUND)
    return tile.view(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING, 3).mean((1, 3))


def inside(regions: Sequence[Region], points: Tensor) -> Tensor:  # bool [N]
    found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for region in regions:
        found |= region.contains(points)
    return found


def surface_cells(regions: Sequence[Region]) -> Tensor:  # float32 [N, 3]  centres
    """The outer cells of the regions: all that can be seen of them."""
    axis = (torch.arange(GRID) + 0.5) / GRID - 0.5
    centers = torch.cartesian_prod(axis, axis, axis)
    solid = inside(regions, centers)
    padded = torch.nn.functional.pad(solid.view(1, 1, GRID, GRID, GRID).float(), (1,) * 6)
    hidden = -torch.nn.functional.max_pool3d(-padded, 3, 1) > 0
    return centers[solid & ~hidden.view(-1)]
