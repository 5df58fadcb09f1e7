"""Walls thinner than two voxels, and narrow gaps: each sheet keeps its own color.

Walls are red outside and blue inside; their voxels are those that a sheet passes through. F faces.
Not tested here: cells that both sheets pass through, where the surface itself is one sheet in the middle.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.benchmarks.objects import Part, Shape, voxel_object
from trellis_core.geometry import bake
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.bake import bake_texture, cover_texels
from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh
from trellis_core.geometry.walls import STEP, steps_aside
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

KERNELS = Kernels(dict.fromkeys(("rasterize", "closest_point", "ray_cast", "voxel_sampler"), "warp"))
R = 64
RED_BLUE = torch.tensor([[1.0, 0, 0, 0, 1, 1], [0, 0, 1.0, 0, 1, 1]])


def frame(tilted: bool) -> Tensor:  # float32 [3, 3]  rows: two directions along the sheet, and its normal
    if not tilted:
        return torch.eye(3)
    return torch.linalg.qr(torch.tensor([[1.0, 2, 1], [-1, 1, 2], [1.5, -0.5, 1]]))[0].T


def sheets(levels: list[float], up: list[bool], axes: Tensor) -> Mesh:
    """Squares at heights in voxels along the third axis, side by side in the texture."""
    vertices, faces, uvs = [], [], []
    for number, (level, upward) in enumerate(zip(levels, up, strict=True)):
        corners = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [0.25, 0.25], [-0.25, 0.25]])
        local = torch.cat([corners, torch.full((4, 1), level / R)], 1)
        vertices.append(local @ axes)
        across = (corners[:, 0] * 1.8 + 0.5 + number) / len(levels)
        uvs.append(torch.stack([across, corners[:, 1] * 1.8 + 0.5], 1))
        quad = torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * number
        right_handed = bool(torch.det(axes) > 0)
        faces.append(quad if upward == right_handed else quad.flip(1))
    return Mesh(torch.cat(vertices), torch.cat(faces).int(), torch.cat(uvs))


def wall_voxels(thickness: float, axes: Tensor) -> PBRVoxels:
    """The voxels of two sheets: red above the middle, blue below."""
    cells = torch.cartesian_prod(*[torch.arange(R)] * 3)
    height = (cells + 0.5 - R / 2) @ axes[2]
    reach = 0.5 * axes[2].abs().sum()
    crossed = ((height.abs() - thickness / 2).abs() < reach).nonzero().squeeze(1)
    return PBRVoxels(cells[crossed].int(), RED_BLUE[(height[crossed] < 0).long()], R)


def colors(mesh: Mesh, voxels: PBRVoxels, size: int = 128) -> tuple[Tensor, Tensor]:
    """Color of each texel in [0, 1], and the face it lies on."""
    baked = bake_texture(mesh, voxels, size, original=mesh, kernels=KERNELS)
    texels = cover_texels(mesh, size, KERNELS)
    return baked.image.view(-1, 6)[texels.index, :3].float() / 255, texels.face


@pytest.mark.parametrize("tilted", [False, True])
def test_no_texel_of_a_thin_wall_shows_the_other_side(tilted):
    axes = frame(tilted)
    mesh = sheets([0.75, -0.75], [True, False], axes)
    color, face = colors(mesh, wall_voxels(1.5, axes))
    outside = face < 2
    other = torch.where(outside, color[:, 2], color[:, 0])
    assert (other > 0.5).sum() == 0
    assert other.mean() < 0.02


def test_a_step_aside_is_what_keeps_the_colors_of_a_tilted_wall_apart(monkeypatch):
    axes = frame(True)
    mesh, voxels = sheets([0.75, -0.75], [True, False], axes), wall_voxels(1.5, axes)
    apart, face = colors(mesh, voxels)
    monkeypatch.setattr(bake, "steps_aside", lambda mesh, voxel, kernels: torch.zeros(len(mesh.faces), 3))
    mixed, _ = colors(mesh, voxels)
    outside = face < 2
    assert apart[outside, 2].mean() < 0.5 * mixed[outside, 2].mean()


@pytest.mark.parametrize("axes", [frame(False), frame(True)])
def test_steps_lead_away_from_the_nearest_sheet(axes):
    wall = steps_aside(sheets([0.75, -0.75], [True, False], axes), 1 / R, KERNELS)
    gap = steps_aside(sheets([0.75, -0.75], [False, True], axes), 1 / R, KERNELS)
    away = axes[2] * STEP / R
    assert torch.allclose(wall, torch.stack([away, away, -away, -away]), atol=1e-6)
    assert torch.allclose(gap, wall, atol=1e-6)


def test_nothing_moves_where_sheets_are_far_apart_or_alone_or_in_the_middle():
    axes = frame(True)
    for levels, up in (
        ([2.0, -2.0], [True, False]),  # a thick wall
        ([0.0], [True]),  # a leaf
        ([0.5, -0.5], [True, True]),  # two sheets that look the same way
    ):
        assert not steps_aside(sheets(levels, up, axes), 1 / R, KERNELS).any()
    middle = steps_aside(sheets([1.0, 0.0, -1.0], [False, True, False], axes), 1 / R, KERNELS)
    assert not middle[2:4].any() and middle[:2].any()


def test_a_box_of_thin_walls_is_baked_without_a_spot():
    half, thickness = np.array([0.25, 0.22, 0.2]), 1.5 / R

    def distance(points: np.ndarray) -> np.ndarray:
        over = np.abs(points) - half
        box = np.linalg.norm(np.maximum(over, 0), axis=1) + np.minimum(over.max(1), 0)
        return np.maximum(np.abs(box) - thickness / 2, points[:, 2] - 0.1)  # open above

    shape = voxel_object(Shape([Part(distance)], closed=True), R)
    center = (shape.voxels.coords + 0.5) / R - 0.5
    inside = (center.abs() < torch.from_numpy(half)).all(1)
    shape = VoxelMesh(shape.mesh, PBRVoxels(shape.voxels.coords, RED_BLUE[inside.long()], R))
    settings = ExportSettings(faces=200, texture_size=256)
    asset = build_asset(shape, settings, runtime=Runtime(kernels=KERNELS))
    texels = cover_texels(asset.mesh, 256, KERNELS)
    color = asset.material.base_color.view(-1, 4)[texels.index]
    beyond = (texels.position.abs() - torch.from_numpy(half)).amax(1) * R
    below = texels.position[:, 2] < 0.1 - 3 / R
    for sheet, wanted in ((beyond > 0.5, 0), (beyond < -0.5, 2)):
        seen = color[sheet & below].float()
        assert len(seen) > 1000
        assert (seen[:, wanted] < seen[:, 2 - wanted]).float().mean() < 1e-3
