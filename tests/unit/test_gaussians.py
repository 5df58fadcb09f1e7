"""Gaussians: their values, pictures, textures and files.

Properties: activations turn zeros into the biases; a picture follows the camera; the screen filter keeps how
much light a small Gaussian takes; files say what the formats demand, are read by independent readers, and
come back the same. Drawing is tested in tests/kernels/test_splat.py, numbers of the released code in
tests/parity.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.geometry.fields import (
    SH0,
    GaussianActivation,
    Gaussians,
    activate_gaussians,
    covariances,
    multiply_quaternions,
    offset_perturbation,
    rotation_matrices,
)
from trellis_core.geometry.types import Mesh
from trellis_core.io.fields import GAUSSIAN_WRITERS, read_field, save_field
from trellis_core.io.gaussian_ply import COLUMNS
from trellis_core.io.video import write_film
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.bake_views import (
    ViewBakeSettings,
    bake_views,
    build_viewed_asset,
    color_voxels,
)
from trellis_core.render.field_image import depth_normals
from trellis_core.render.gaussian import project_gaussians, render_gaussians
from trellis_core.render.subject import Look, draw_subject
from trellis_core.render.turntable import contact_sheet, framed_cameras, turntable
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
CAMERA = orbit_camera(FRONT + 0.3, 0.4)


def cloud(seed: int = 0, count: int = 50) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Gaussians(
        (normal(count, 3) * 0.2).clamp(-0.5, 0.5),
        torch.rand(count, 3, generator=generator) * 0.05 + 0.002,
        normal(count, 4),
        torch.rand(count, 1, generator=generator) * 0.9 + 0.05,
        normal(count, 3),
    )


def one(position=(0.0, 0.0, 0.0), scale=0.02, opacity=0.8, color=(1.0, 0.5, 0.25)) -> Gaussians:
    return Gaussians(
        torch.tensor([position]),
        torch.full((1, 3), scale),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([[opacity]]),
        (torch.tensor([color]) - 0.5) / SH0,
    )


def ball(count: int = 20_000, radius: float = 0.4) -> Gaussians:
    """Flat Gaussians on a sphere, red where x > 0, blue elsewhere, green at the top."""
    number = torch.arange(count) + 0.5
    z, angle = 1 - 2 * number / count, number * math.pi * (1 + 5**0.5)
    ring = (1 - z * z).sqrt()
    normal = torch.stack([ring * angle.cos(), ring * angle.sin(), z], 1)
    color = torch.where(normal[:, :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    color = torch.where(normal[:, 2:] > 0.7, torch.tensor([0.1, 0.9, 0.1]), color)
    tilt = torch.cat([1 + normal[:, 2:], torch.linalg.cross(torch.tensor([[0.0, 0, 1]]), normal)], 1)
    return Gaussians(
        normal * radius,
        torch.tensor([[0.008, 0.008, 0.001]]).expand(count, 3),
        tilt,
        torch.full((count, 1), 0.7),
        (color - 0.5) / SH0,
    )


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("kind", ["softplus", "exp"])
def test_zeros_become_the_biases(kind):
    activation = GaussianActivation(scale_activation=kind, scale_bias=0.02, min_scale=0.003, opacity_bias=0.3)
    found = activate_gaussians(
        torch.zeros(2, 3),
        torch.zeros(2, 3),
        torch.zeros(2, 4),
        torch.zeros(2, 1),
        torch.zeros(2, 3),
        activation,
    )
    assert torch.allclose(found.scales, torch.tensor(math.hypot(0.02, 0.003)), rtol=1e-5)
    assert torch.allclose(found.opacities, torch.tensor(0.3))
    assert torch.equal(found.rotations, torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4))
    assert torch.equal(found.positions, torch.full((2, 3), -0.5))
    assert torch.equal(found.colors, torch.full((2, 3), 0.5))


@pytest.mark.parametrize("wrong", [{"scale_bias": 0.0}, {"opacity_bias": 1.0}, {"scale_activation": "relu"}])
def test_impossible_activations_are_refused(wrong):
    with pytest.raises(ValueError):
        GaussianActivation(**wrong)


def test_a_perturbed_zero_offset_spreads_evenly_over_the_voxel():
    inside = torch.tanh(offset_perturbation(64, 1.5)) * 1.5 / 2  # in voxels, from the centre
    assert (inside.abs() <= 0.5 + 1e-6).all()
    octant = ((inside > -1e-6).int() * torch.tensor([1, 2, 4])).sum(1)
    assert (torch.bincount(octant, minlength=8) >= 6).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_covariances_have_the_squared_scales_as_eigenvalues(seed):
    gaussians = cloud(seed, 5)
    found = torch.linalg.eigvalsh(covariances(gaussians))
    assert torch.allclose(found, gaussians.scales.square().sort(1).values, atol=1e-6)


def test_multiplied_quaternions_turn_one_after_the_other():
    a, b = cloud(1).rotations, cloud(2).rotations
    both = rotation_matrices(multiply_quaternions(a, b))
    assert torch.allclose(both, rotation_matrices(a) @ rotation_matrices(b), atol=1e-5)


# ---------------------------------------------------------------- pictures


def test_a_gaussian_appears_where_a_pinhole_camera_sees_its_centre():
    position = torch.tensor([0.1, -0.2, 0.15])
    splats = project_gaussians(one(tuple(position.tolist())), CAMERA, 200)
    local = CAMERA.extrinsics[:3, :3].float() @ position + CAMERA.extrinsics[:3, 3].float()
    flat = CAMERA.intrinsics.float() @ local
    assert torch.allclose(splats.centers[0], flat[:2] / flat[2] * 200, atol=1e-3)
    assert torch.allclose(splats.depths[0], local[2])
    image = render_gaussians(one(tuple(position.tolist())), CAMERA, 200, RUNTIME)
    brightest = image.alpha.flatten().argmax()
    assert torch.dist(splats.centers[0], torch.tensor([brightest % 200 + 0.5, brightest // 200 + 0.5])) < 1


def test_the_covariance_in_the_picture_is_that_of_projected_samples():
    gaussians = replace(cloud(4, 1), scales=torch.tensor([[0.004, 0.01, 0.02]]), kernel_size=0.0)
    axes = rotation_matrices(gaussians.quaternions)[0] * gaussians.scales[0]
    samples = (
        gaussians.positions + torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0)) @ axes.T
    )
    local = samples @ CAMERA.extrinsics[:3, :3].T.float() + CAMERA.extrinsics[:3, 3].float()
    flat = local @ CAMERA.intrinsics.T.float()
    placed = flat[:, :2] / flat[:, 2:] * 300
    spread = torch.cov(placed.T)
    found = project_gaussians(gaussians, CAMERA, 300).covariances[0]
    expected = torch.stack([spread[0, 0], spread[0, 1], spread[1, 1]])
    assert torch.allclose(found, expected, atol=0.03 * float(expected.abs().max()))


def test_the_screen_filter_keeps_how_much_light_a_small_gaussian_takes():
    small = one(scale=4e-3, opacity=0.5)  # less than a pixel
    sums = [
        float(render_gaussians(replace(small, kernel_size=size), CAMERA, 256, RUNTIME).alpha.sum())
        for size in (0.05, 0.4)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=0.1)


def test_gaussians_behind_the_camera_are_not_drawn():
    behind = one(tuple((CAMERA.eye * 1.5).tolist()))
    assert (render_gaussians(behind, CAMERA, 32, RUNTIME).alpha == 0).all()


def test_the_nearer_of_two_gaussians_hides_the_other():
    near, far = (tuple((CAMERA.eye * share).tolist()) for share in (0.1, -0.1))
    first, second = one(near, 0.1, 0.99, (1, 0, 0)), one(far, 0.1, 0.99, (0, 0, 1))
    pair = Gaussians(*(torch.cat([getattr(g, f.name) for g in (second, first)]) for f in fields(first)[:5]))
    image = render_gaussians(pair, CAMERA, 33, RUNTIME)
    assert image.color[16, 16, 0] > 0.95 and image.color[16, 16, 2] < 0.05
    assert image.depth[16, 16] == pytest.approx(1.8, abs=0.01)


def test_alpha_composites_over_any_background():
    image = render_gaussians(cloud(), CAMERA, 48, RUNTIME)
    white, black = image.over((1, 1, 1)), image.over((0, 0, 0))
    assert torch.allclose(white - black, (1 - image.alpha)[..., None].expand(-1, -1, 3), atol=1e-6)


def test_every_backend_draws_the_same_picture():
    pictures = [
        render_gaussians(cloud(3), CAMERA, 64, Runtime(kernels=kernels))
        for kernels in (Kernels(), RUNTIME.kernels)
    ]
    assert (pictures[0].color - pictures[1].color).abs().max() < 0.02


def test_all_values_can_be_learnt_from_a_picture():
    target = render_gaussians(cloud(0, 12), CAMERA, 40, RUNTIME).color
    start = cloud(0, 12)
    leaves = [getattr(start, f.name).clone() for f in fields(start)[:5]]
    leaves[0] += 0.01
    leaves[4] += 0.3
    leaves = [leaf.requires_grad_() for leaf in leaves]
    optimizer = torch.optim.Adam(leaves, lr=2e-3)
    losses = []
    for _ in range(25):
        loss = (render_gaussians(Gaussians(*leaves), CAMERA, 40, RUNTIME).color - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(leaf.grad is not None and bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_normals_of_a_drawn_ball_point_outward():
    camera = orbit_camera(FRONT, 0.2)
    image = render_gaussians(ball(), camera, 96, RUNTIME)
    mask = image.alpha > 0.5
    normals = depth_normals(image.depth, mask, camera)
    local = torch.nonzero(mask)
    pixel = torch.cat([(local.flip(1) + 0.5) / 96, torch.ones(len(local), 1)], 1)
    rays = pixel @ (camera.intrinsics @ camera.extrinsics[:3, :3]).inverse().T.float()
    points = camera.eye.float() + rays * image.depth[mask][:, None]
    outward = torch.nn.functional.normalize(points, dim=1)
    cosine = (normals[mask] * outward).sum(1)
    assert cosine.median() > 0.97
    assert (normals[~mask] == 0).all()


# ---------------------------------------------------------------- sheets and turntables


@pytest.mark.parametrize("channel", ["color", "depth", "normal"])
def test_pictures_show_the_whole_object_on_a_transparent_background(channel):
    camera = framed_cameras(ball(4000), [(FRONT, 0.2)])[0]
    picture = draw_subject(ball(4000), camera, 64, RUNTIME, Look(mode=channel))
    assert picture.shape == (64, 64, 4) and picture.dtype == torch.uint8
    assert picture[32, 32, 3] > 150
    border = torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 0).all()


def test_a_turntable_and_a_sheet_are_written(tmp_path):
    frames = turntable(ball(2000), RUNTIME, frames=3, size=32)
    path = write_film(frames, tmp_path / "turn.webp", fps=12)
    with Image.open(path) as animation:
        assert animation.n_frames == 3 and animation.size == (32, 32)
    looks = (Look(mode="color"), Look(mode="normal"))
    sheet = contact_sheet(ball(2000), RUNTIME, views=2, size=24, looks=looks)
    assert sheet.shape == (48, 48, 3)


def test_nothing_to_draw_is_said():
    gone = replace(cloud(), opacities=torch.zeros(50, 1))
    with pytest.raises(InputError, match="nothing to draw"):
        framed_cameras(gone, [(0, 0)])


# ---------------------------------------------------------------- textures


def sphere_mesh(radius: float = 0.4) -> Mesh:
    shape = trimesh.creation.uv_sphere(radius=radius, count=[24, 24])
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)).int())


def unwrapped_quads() -> Mesh:
    """Two squares, back to back at z = 0, facing up and down; each has a half of the texture."""
    square = torch.tensor([[-0.3, -0.3, 0], [0.3, -0.3, 0], [0.3, 0.3, 0], [-0.3, 0.3, 0]])
    uv = torch.tensor([[0.02, 0.02], [0.48, 0.02], [0.48, 0.98], [0.02, 0.98]])
    up = torch.tensor([[0, 1, 2], [0, 2, 3]])
    faces = torch.cat([up, up.flip(1) + 4]).int()
    return Mesh(
        torch.cat([square + torch.tensor([0, 0, 0.1]), square]),
        faces,
        torch.cat([uv, uv + torch.tensor([0.5, 0])]),
    )


def sandwich() -> Gaussians:
    """A red sheet at z = 0.1 and a blue one at z = 0."""
    line = torch.linspace(-0.3, 0.3, 60)
    x, y = torch.meshgrid(line, line, indexing="ij")
    flat = torch.stack([x, y, torch.zeros_like(x)], 2).reshape(-1, 3)
    count = len(flat)
    color = torch.tensor([[0.9, 0.1, 0.1]]).expand(count, 3), torch.tensor([[0.1, 0.1, 0.9]]).expand(count, 3)
    return Gaussians(
        torch.cat([flat + torch.tensor([0, 0, 0.1]), flat]),
        torch.tensor([[0.01, 0.01, 0.001]]).expand(2 * count, 3),
        torch.tensor([[1.0, 0, 0, 0]]).expand(2 * count, 4),
        torch.full((2 * count, 1), 0.9),
        (torch.cat(color) - 0.5) / SH0,
    )


SMALL_VIEWS = ViewBakeSettings(views=12, size=128)


def test_each_side_of_a_mesh_gets_its_own_color():
    baked = bake_views(unwrapped_quads(), sandwich(), 64, RUNTIME, settings=SMALL_VIEWS)
    assert baked.unsupported == 0
    left, right = baked.image[8:56, 4:28], baked.image[8:56, 36:60]
    assert (left[..., :3].float() - torch.tensor([230.0, 26, 26])).abs().max() < 12
    assert (right[..., :3].float() - torch.tensor([26.0, 26, 230])).abs().max() < 12
    assert (baked.image[..., 3] == 0).all() and (baked.image[..., 4:] == 255).all()


def test_baking_twice_gives_the_same_bytes():
    first, second = (
        bake_views(unwrapped_quads(), sandwich(), 32, RUNTIME, settings=SMALL_VIEWS) for _ in range(2)
    )
    assert torch.equal(first.image, second.image)


def test_texels_that_no_view_sees_take_the_fallback():
    quads = unwrapped_quads()
    voxels = color_voxels(quads, torch.tensor([[0.0, 1.0, 0.0]]).expand(8, 3), 8)
    nothing = replace(sandwich(), opacities=torch.full((7200, 1), 1e-4))
    baked = bake_views(quads, nothing, 32, RUNTIME, fallback=voxels, settings=SMALL_VIEWS)
    green = (baked.image[baked.covered][:, :3] == torch.tensor([0, 255, 0])).all(1)
    assert green.all() and baked.unsupported < 1
    unknown = bake_views(quads, nothing, 32, RUNTIME, settings=SMALL_VIEWS)
    assert unknown.unsupported == 1


def test_an_asset_is_colored_like_its_gaussians():
    export = ExportSettings(faces=600, texture_size=128)
    asset = build_viewed_asset(
        sphere_mesh(),
        ball(),
        export,
        runtime=RUNTIME,
        resolution=64,
        views=ViewBakeSettings(views=16, size=128),
    )
    assert asset.quality.metrics["boundary_edges"] == 0
    uvs, texture = asset.mesh.uvs, asset.material.base_color
    row, column = (uvs.flip(1) * 128).long().clamp(0, 127).unbind(1)
    color, normal = texture[row, column, :3].float() / 255, asset.mesh.vertices / 0.4
    for region, wanted in (
        ((normal[:, 0] > 0.2) & (normal[:, 2] < 0.5), (0.9, 0.1, 0.1)),
        ((normal[:, 0] < -0.2) & (normal[:, 2] < 0.5), (0.1, 0.1, 0.9)),
        (normal[:, 2] > 0.85, (0.1, 0.9, 0.1)),
    ):
        assert region.sum() > 10
        assert (color[region] - torch.tensor(wanted)).abs().mean() < 0.05


# ---------------------------------------------------------------- files


def test_a_ply_has_the_columns_that_splatting_programs_read(tmp_path):
    gaussians = cloud()
    header, _, body = save_field(gaussians, tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 50"]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert tuple(names) == COLUMNS
    rows = np.frombuffer(body, [(name, "<f4") for name in names])
    x, y, z = gaussians.positions.unbind(1)
    assert np.array_equal(rows["x"], x.numpy()) and np.array_equal(rows["y"], -z.numpy())
    assert np.array_equal(rows["z"], y.numpy())
    assert np.allclose(np.exp(rows["scale_1"]), gaussians.scales[:, 1].numpy())
    assert np.allclose(1 / (1 + np.exp(-rows["opacity"])), gaussians.opacities[:, 0].numpy())
    assert np.array_equal(rows["f_dc_2"], gaussians.features[:, 2].numpy())
    assert not rows["nx"].any()


def test_an_independent_reader_opens_the_ply(tmp_path):
    gaussians = cloud()
    points = trimesh.load(save_field(gaussians, tmp_path / "a.ply"))
    assert isinstance(points, trimesh.PointCloud)
    x, y, z = gaussians.positions.numpy().T
    assert np.allclose(points.vertices, np.stack([x, -z, y], 1))
    data = points.metadata["_ply_raw"]["vertex"]["data"]
    assert np.allclose(data["f_dc_0"].ravel(), gaussians.features[:, 0].numpy())
    turned = np.stack([data[f"rot_{i}"].ravel() for i in range(4)], 1)
    matrix = rotation_matrices(torch.from_numpy(turned))
    frame = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert torch.allclose(matrix, frame @ rotation_matrices(gaussians.quaternions), atol=1e-5)


LIMITS = {  # positions, scales (relative), opacities, features, covariance directions
    ".ply": (0, 1e-6, 1e-5, 0, 1e-5),
    ".splat": (0, 0, 0.5 / 255 + 1e-6, 0.5 / 255 / SH0 + 1e-5, 0.02),
    ".spz": (2.0**-17, 0.035, 0.5 / 255 + 1e-6, 0.5 / 255 / 0.15 + 1e-5, 0.003),
}


@pytest.mark.parametrize("suffix", sorted(GAUSSIAN_WRITERS))
def test_what_is_written_comes_back(tmp_path, suffix):
    before = cloud(1)
    visible = (before.colors > 0).all(1) & (before.colors < 1).all(1)  # bytes hold no other colors
    before = Gaussians(*(getattr(before, f.name)[visible] for f in fields(before)[:5]))
    after = read_field(save_field(before, tmp_path / f"a{suffix}"))
    assert isinstance(after, Gaussians) and len(after) == len(before) > 5
    nearest = torch.cdist(before.positions, after.positions).argmin(1)  # `.splat` is sorted
    after = Gaussians(*(getattr(after, f.name)[nearest] for f in fields(after)[:5]))
    position, scale, opacity, feature, direction = LIMITS[suffix]
    assert (after.positions - before.positions).abs().max() <= position + 1e-7
    assert (after.scales / before.scales - 1).abs().max() <= scale + 1e-6
    assert (after.opacities - before.opacities).abs().max() <= opacity
    assert (after.features - before.features).abs().max() <= feature + 1e-6
    turned = rotation_matrices(after.quaternions) - rotation_matrices(before.quaternions)
    assert turned.abs().max() <= direction


@pytest.mark.parametrize("suffix", sorted(GAUSSIAN_WRITERS))
def test_every_format_draws_the_same_picture(tmp_path, suffix):
    before = ball(3000)
    after = read_field(save_field(before, tmp_path / f"a{suffix}"))
    assert isinstance(after, Gaussians)
    pictures = [render_gaussians(g, CAMERA, 48, RUNTIME).color for g in (before, after)]
    assert (pictures[0] - pictures[1]).abs().mean() < 0.01


def test_a_splat_file_has_32_bytes_per_gaussian_the_most_visible_first(tmp_path):
    content = save_field(cloud(), tmp_path / "a.splat").read_bytes()
    assert len(content) == 50 * 32
    rows = np.frombuffer(content, [("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("r", "u1", 4)])
    visible = rows["s"].prod(1) * rows["c"][:, 3]
    assert visible[0] >= visible[-1]
    assert (np.linalg.norm(rows["r"].astype(float) - 128, axis=1) > 120).all()


def test_an_spz_file_is_the_documented_gzip_stream(tmp_path):
    gaussians = one((0.25, -0.125, 0.5), 0.02, 0.6)
    content = gzip.decompress(save_field(gaussians, tmp_path / "a.spz").read_bytes())
    magic, version, count, degree, bits, flags, reserved = struct.unpack_from("<IIIBBBB", content)
    assert (magic, version, count, degree, flags, reserved) == (0x5053474E, 3, 1, 0, 1, 0)
    assert len(content) == 16 + 20
    place = [
        int.from_bytes(content[16 + 3 * i : 19 + 3 * i], "little", signed=True) / 2**bits for i in range(3)
    ]
    assert place == [0.25, 0.5, 0.125]  # right, up, back
    assert content[25] == round(0.6 * 255)
    assert content[29] == round((math.log(0.02) + 10) * 16)
    # a quarter turn about x: w = sqrt(1/2) is the largest but for a tie with x; x is negative
    packed = int.from_bytes(content[32:36], "little")
    assert packed >> 30 in (0, 3)


def test_spz_of_version_2_is_read(tmp_path):
    turned = torch.nn.functional.normalize(torch.tensor([0.9, 0.3, -0.2, 0.1]), dim=0)
    content = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 1, 12, 0, 0)
    content += b"".join((value % (1 << 24)).to_bytes(3, "little") for value in (4096, -2048, 1024))
    content += bytes([51, 255, 128, 0, 160, 144, 112])
    content += bytes(round(float(q) * 127.5 + 127.5) for q in turned[1:])
    content += bytes(9)  # view-dependent color
    path = tmp_path / "old.spz"
    path.write_bytes(gzip.compress(content))
    found = read_field(path)
    assert torch.allclose(found.positions, torch.tensor([[1.0, -0.25, -0.5]]))
    assert torch.allclose(found.scales.log(), torch.tensor([[0.0, -1.0, -3.0]]))
    assert found.opacities.item() == pytest.approx(0.2)
    back = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ rotation_matrices(turned[None])[0]
    assert torch.allclose(rotation_matrices(found.quaternions)[0], back, atol=0.02)


def test_more_columns_and_other_number_types_in_a_ply_are_fine(tmp_path):
    gaussians = cloud(0, 3)
    plain = save_field(gaussians, tmp_path / "a.ply").read_bytes().partition(b"end_header\n")[2]
    rows = np.frombuffer(plain, [(name, "<f4") for name in COLUMNS])
    row = [("label", "u1"), *((name, "<f8") for name in reversed(COLUMNS)), ("f_rest_0", "<f4")]
    other = np.zeros(3, row)
    for name in COLUMNS:
        other[name] = rows[name]
    types = {"u1": "uchar", "<f8": "double", "<f4": "float"}
    header = ["ply", "format binary_little_endian 1.0", "comment made elsewhere", "element vertex 3"]
    header += [f"property {types[kind]} {name}" for name, kind in row] + ["end_header", ""]
    path = tmp_path / "b.ply"
    path.write_bytes("\n".join(header).encode() + other.tobytes())
    found = read_field(path)
    assert torch.allclose(found.positions, gaussians.positions)
    assert torch.allclose(found.scales, gaussians.scales)


@pytest.mark.parametrize("suffix", sorted(GAUSSIAN_WRITERS))
def test_damaged_files_are_input_errors(tmp_path, suffix):
    path = save_field(cloud(), tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"cut off|cannot read"):
        read_field(path)
    path.write_bytes(b"not what the suffix says")
    with pytest.raises(InputError):
        read_field(path)
    with pytest.raises(InputError):
        read_field(tmp_path / f"missing{suffix}")


def test_a_ply_of_a_mesh_is_no_ply_of_gaussians(tmp_path):
    path = tmp_path / "mesh.ply"
    trimesh.creation.box().export(path)
    with pytest.raises(InputError, match="not a PLY of Gaussians"):
        read_field(path)


def test_unknown_suffixes_are_refused(tmp_path):
    with pytest.raises(OutputError, match="no writer"):
        save_field(cloud(), tmp_path / "a.glb")
    with pytest.raises(InputError, match="Gaussians or a field"):
        read_field(Path("a.glb"))


@pytest.mark.parametrize("suffix", sorted(GAUSSIAN_WRITERS))
def test_no_gaussians_are_written_and_read(tmp_path, suffix):
    empty = cloud(0, 0)
    assert len(read_field(save_field(empty, tmp_path / f"a{suffix}"))) == 0
