"""A sheet of what a run makes so far: input, result, result from behind; a row per held-out object."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera, orbit_camera
from trellis_core.geometry.types import BASE_COLOR, Mesh
from trellis_core.render.mesh import render_mesh
from trellis_core.render.sheet import picture_sheet
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime
from trellis_core.training.samples import StageSample

SIDE = 160  # pixels of a cell
PAPER = 0.96
FOV = math.radians(30)
CAMERAS = [
    orbit_camera(FRONT + turn, 0.35, radius=3.2, fov=FOV, target=(0.0, 0.0, 0.0))
    for turn in (-math.pi / 6, math.pi * 5 / 6)
]


def sample_sheet(samples: Sequence[StageSample], runtime: Runtime) -> Tensor:  # uint8 [H, W, 3]
    """Structure cells are colored by their place, bare shapes by the direction they face."""
    blank = torch.full((SIDE, SIDE, 3), 255, dtype=torch.uint8)
    rows = []
    for sample in samples:
        picture = blank if sample.picture is None else sample.picture.cpu()
        views = [(draw(sample, camera, runtime).clamp(0, 1) * 255).byte().cpu() for camera in CAMERAS]
        rows.append([picture, *views])
    labels = [sample.label for sample in samples]
    return picture_sheet(rows, labels, columns=["input", "result", "from behind"], cell=SIDE)


def draw(sample: StageSample, camera: Camera, runtime: Runtime) -> Tensor:  # float32 [SIDE, SIDE, 3]
    if sample.draw is not None:
        return sample.draw(camera, SIDE).cpu()
    if sample.materials is not None:
        voxels = sample.materials
        return draw_voxels(voxels.coords, voxels.attrs[:, BASE_COLOR], voxels.resolution, camera, runtime)
    if sample.mesh is not None:
        return draw_mesh(sample.mesh, camera, runtime)
    if sample.cells is None:  # the model found nothing
        return torch.full((SIDE, SIDE, 3), PAPER)
    return draw_voxels(sample.cells, sample.cells.float() / sample.grid, sample.grid, camera, runtime)


def draw_voxels(coords: Tensor, colors: Tensor, grid: int, camera: Camera, runtime: Runtime) -> Tensor:
    places = (coords.float() + 0.5) / grid - 0.5
    seen = render_voxels(places, colors, camera, SIDE, runtime, voxel_size=1 / grid, supersampling=2)
    return seen.attrs + (1 - seen.mask[..., None]) * PAPER


def draw_mesh(mesh: Mesh, camera: Camera, runtime: Runtime) -> Tensor:
    seen = render_mesh(mesh, camera, 2 * SIDE, runtime)
    colors = torch.where(seen.mask[..., None], seen.normal / 2 + 0.5, PAPER)
    return colors.view(SIDE, 2, SIDE, 2, 3).mean((1, 3))
