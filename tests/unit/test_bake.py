"""Baking: the texture shows at every point of the surface what the voxels hold there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.shapes import dual_grid, rainbow, sphere, torus
from trellis_core.geometry import bake, infill
from trellis_core.geometry.bake import (
    average_texels,
    bake_texture,
    bands_of,
    cover_rows,
    cover_texels,
    to_bytes,
    to_images,
)
from trellis_core.geometry.infill import nearest_covered, paint_texture
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.sample import NEAR, nearest_voxels
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.types import Mesh, PBRVoxels
from trellis_core.geometry.unwrap import unwrap
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp", "closest_point": "warp", "voxel_sampler": "warp"})


def flat_square(side: float = 0.8) -> Mesh:
    h = side / 2
    corners = torch.tensor([[-h, -h, 0], [h, -h, 0], [h, h, 0], [-h, h, 0]])
    uvs = torch.tensor([[0.1, 0.9], [0.9, 0.9], [0.9, 0.1], [0.1, 0.1]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uvs=uvs)


def flat_voxels(resolution: int = 32, height: int = 0) -> PBRVoxels:
    axis = torch.arange(resolution)
    level = torch.tensor([resolution // 2 - 1 + height, resolution // 2 + height])
    coords = torch.cartesian_prod(axis, axis, level).int()
    center = (coords + 0.5) / resolution - 0.5
    attrs = torch.cat(
        [center + 0.5, center[:, :1].abs(), center[:, 1:2].abs(), torch.ones(len(center), 1)], 1
    )
    return PBRVoxels(coords, attrs.float(), resolution)


def unwrapped(shape, resolution: int, faces: int | None = None):
    raw = dual_grid(shape, resolution)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, resolution)
    original, _ = orient_outward(raw.mesh, around)
    mesh = simplify(original, faces) if faces else original
    return unwrap(mesh, 256, layer_gap=0.25 / resolution, kernels=KERNELS), original, raw.voxels


def texel_points(size: int) -> torch.Tensor:
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([(column + 0.5) / size, (row + 0.5) / size], 2)


def test_every_covered_texel_holds_the_material_at_its_point():
    size = 64
    baked = bake_texture(flat_square(), flat_voxels(), size, original=None, kernels=KERNELS)
    u, v = texel_points(size).unbind(2)
    x, y = (u - 0.5), (0.5 - v)
    inside = (x.abs() < 0.4) & (y.abs() < 0.4)
    want = torch.stack([x + 0.5, y + 0.5], 2)
    got = baked.image[..., :2].float() / 255
    assert (got - want)[inside].abs().max() < 0.5 / 255 + 1e-4
    assert torch.equal(baked.covered, inside)
    assert baked.unsupported == 0


def test_the_pattern_survives_on_a_curved_surface():
    mesh, original, voxels = unwrapped(torus(), 32)
    baked = bake_texture(mesh, voxels, 256, original=original, kernels=KERNELS)
    corner = mesh.faces.long()
    middle = mesh.vertices[corner].mean(1)
    uv = mesh.uvs[corner].mean(1)
    column, row = (uv * 256).long().clamp(0, 255).unbind(1)
    got = baked.image[row, column].float() / 255
    want = torch.from_numpy(rainbow(middle.numpy())).float()
    assert (got - want).abs().mean() < 0.02


def test_a_surface_off_the_voxels_is_baked_from_the_original():
    square = flat_square()
    away = Mesh(square.vertices + torch.tensor([0, 0, 3 / 32]), square.faces, uvs=square.uvs)
    flat = Mesh(square.vertices, square.faces)
    for mode in ("auto", "projected"):
        baked = bake_texture(away, flat_voxels(), 32, original=flat, mode=mode, kernels=KERNELS)
        straight = bake_texture(square, flat_voxels(), 32, original=None, kernels=KERNELS)
        assert (baked.image.int() - straight.image.int()).abs().max() <= 1
    assert (
        bake_texture(away, flat_voxels(), 32, original=flat, mode="direct", kernels=KERNELS).unsupported == 0
    )
    far = Mesh(square.vertices + torch.tensor([0, 0, 12 / 32]), square.faces, uvs=square.uvs)
    assert (
        bake_texture(far, flat_voxels(), 32, original=flat, mode="direct", kernels=KERNELS).unsupported == 1
    )


def test_a_face_does_not_take_its_color_from_a_surface_that_looks_the_other_way():
    square = flat_square()
    above = Mesh(square.vertices + torch.tensor([0, 0, 2 / 32]), square.faces, uvs=square.uvs)
    turned = Mesh(square.vertices, square.faces[:, [0, 2, 1]])
    near = Mesh(square.vertices, square.faces)
    red, blue = flat_voxels(), flat_voxels(height=0)
    kept = bake_texture(above, red, 16, original=turned, mode="projected", kernels=KERNELS)
    moved = bake_texture(above, blue, 16, original=near, mode="projected", kernels=KERNELS)
    middle = (8, 8)
    assert kept.image[middle][2] > moved.image[middle][2]  # not moved down, so the upper voxels count more


def test_a_coarse_texture_averages_what_a_texel_covers():
    resolution, size = 64, 8
    voxels = flat_voxels(resolution)
    checker = (voxels.coords[:, :2].sum(1) % 2).float()
    voxels = PBRVoxels(voxels.coords, checker[:, None].expand(-1, 6).contiguous(), resolution)
    baked = bake_texture(flat_square(), voxels, size, original=None, kernels=KERNELS)
    assert baked.covered.sum() == 36
    assert (baked.image[baked.covered].float() / 255 - 0.5).abs().max() < 0.3


def test_averaging_counts_only_the_samples_that_exist():
    index = torch.tensor([0, 1, 4, 10])  # in an image of 4 x 4
    values = torch.tensor([[0.0], [1.0], [0.5], [0.3]])
    texel, mean = average_texels(index, values, 2, 2)
    assert texel.tolist() == [0, 3]
    assert mean[:, 0].tolist() == pytest.approx([0.5, 0.3])


def test_the_nearest_voxel_is_found_up_to_three_cells_away():
    voxels = PBRVoxels(torch.tensor([[10, 10, 10], [12, 10, 10]]).int(), torch.zeros(2, 6), 32)
    points = torch.tensor([[10.2, 10.5, 10.5], [11.9, 10.5, 10.5], [10.5, 13.4, 10.5], [20.0, 20.0, 20.0]])
    assert nearest_voxels(points, voxels).tolist() == [0, 1, 0, -1]


def test_bytes_are_rounded_not_cut_off():
    assert to_bytes(torch.tensor([0.999, 0.5, 0.0019, -1.0, 2.0])).tolist() == [255, 128, 0, 0, 255]


def test_images_have_the_channels_of_gltf():
    baked = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 6)
    color, surface = to_images(baked)
    assert color.tolist() == [[[0, 1, 2, 5]]]
    assert surface.tolist() == [[[0, 4, 3]]]


def test_uncovered_texels_take_the_nearest_color_and_covered_ones_keep_theirs():
    size = 32
    covered = torch.zeros(size, size, dtype=torch.bool)
    covered[8:12, 8:12] = True
    covered[20:24, 20:24] = True
    image = torch.zeros(size, size, 1, dtype=torch.uint8)
    image[8:12, 8:12] = 50
    image[20:24, 20:24] = 200
    index = torch.nonzero(covered.reshape(-1)).reshape(-1)
    filled = paint_texture(image.reshape(-1, 1)[index], index, size)[..., 0]
    assert (filled[covered] == image[..., 0][covered]).all()
    assert filled[5, 9] == filled[12, 12] == 50
    assert filled[26, 22] == filled[19, 20] == 200
    assert 50 <= filled[0, 31] <= 200


def test_dilation_finds_the_exact_nearest_texel_of_a_line():
    covered = torch.zeros(40, 40, dtype=torch.bool)
    covered[20, 5:35] = True
    texel, source = nearest_covered(covered, 8)
    row, column = texel // 40, texel % 40
    above = (column >= 5) & (column < 35)
    assert (source[above] == 20 * 40 + column[above]).all()
    assert set((row - 20).abs().tolist()) == set(range(9))  # 0: beyond the ends of the line


def test_an_empty_texture_is_black():
    none = torch.zeros(0, 6, dtype=torch.uint8)
    assert not paint_texture(none, torch.zeros(0, dtype=torch.int64), 16).any()


def test_colors_do_not_bleed_out_of_the_charts_of_a_sphere():
    mesh, original, voxels = unwrapped(sphere(), 32, faces=500)
    red = torch.zeros(len(voxels.coords), 6)
    red[:, 0] = 1
    baked = bake_texture(mesh, PBRVoxels(voxels.coords, red, 32), 128, original=original, kernels=KERNELS)
    assert np.array_equal(np.unique(baked.image[..., 0].numpy()), [255])
    assert not baked.image[..., 1:].any()


def test_a_point_finds_its_nearest_voxel_within_reach_and_none_beyond():
    generator = torch.Generator().manual_seed(0)
    coords = torch.unique(torch.randint(-2, 20, (60, 3), generator=generator), dim=0).int()
    points = torch.rand(800, 3, generator=generator) * 26 - 4
    found = nearest_voxels(points, PBRVoxels(coords, torch.zeros(len(coords), 6), 18))
    there = ((coords >= 0) & (coords < 18)).all(1)
    near = (coords - points.floor()[:, None]).abs().amax(2) <= NEAR
    square = (coords + 0.5 - points[:, None]).square().sum(2)
    square = torch.where(near & there, square, torch.inf)
    reachable = torch.isfinite(square).any(1)
    assert 0 < int(reachable.sum()) < len(points)
    assert torch.equal(found >= 0, reachable)
    assert torch.equal(square.gather(1, found.clamp_min(0)[:, None])[reachable, 0], square.amin(1)[reachable])


def test_a_texture_made_in_many_bands_is_the_one_made_at_once(monkeypatch):
    mesh, original, voxels = unwrapped(torus(), 32, faces=300)
    whole = cover_texels(mesh, 250, KERNELS)
    at_once = [bake_texture(mesh, voxels, s, original=original, kernels=KERNELS) for s in (100, 250)]
    for module in (bake, infill):
        monkeypatch.setattr(module, "BAND", 5000)
    assert len(bands_of(250)) > 10
    pieces = cover_texels(mesh, 250, KERNELS)
    assert torch.equal(pieces.index, whole.index) and torch.equal(pieces.face, whole.face)
    assert torch.equal(pieces.position, whole.position)
    rows = cover_rows(mesh, 250, range(100, 120), KERNELS)
    assert torch.equal(rows.index, whole.index[(whole.index >= 25_000) & (whole.index < 30_000)])
    for one, size in zip(at_once, (100, 250), strict=True):
        other = bake_texture(mesh, voxels, size, original=original, kernels=KERNELS)
        assert torch.equal(other.image, one.image) and torch.equal(other.covered, one.covered)


def test_baking_has_the_same_bytes_with_the_reference_kernels():
    mesh, original, voxels = unwrapped(torus(), 32, faces=300)
    fast = bake_texture(mesh, voxels, 128, original=original, kernels=KERNELS)
    plain = bake_texture(mesh, voxels, 128, original=original, kernels=Kernels())
    assert torch.equal(fast.covered, plain.covered)
    assert (fast.image.int() - plain.image.int()).abs().max() <= 1
