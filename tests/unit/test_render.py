"""Rendering: geometry buffers, shading, voxels, sheets and turntables.

Properties: buffers agree with analytic shapes and with each other; every rasteriser gives the same picture;
shading conserves energy and follows the material; transparent layers composite in order; sheets show whole
objects. How pictures look is judged by eye, not here.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from trellis_core.errors import Cancelled
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io.video import write_film
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render.mesh import render_mesh
from trellis_core.render.pbr import RenderSettings, render_pbr, tone_map
from trellis_core.render.sheet import picture_sheet
from trellis_core.render.studio import Studio
from trellis_core.render.surface import linear_to_srgb, sample_texture, srgb_to_linear
from trellis_core.render.turntable import contact_sheet, framed_cameras, turntable
from trellis_core.render.voxel import render_voxels
from trellis_core.runtime import Runtime, Step

RUNTIME = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
CAMERA = orbit_camera(FRONT + 0.4, 0.3)
EVEN_LIGHT = RenderSettings(
    light=Studio(boxes=(), sky=(0.5,) * 3, horizon=(0.5,) * 3, ground=(0.5,) * 3, exposure=1)
)


def mesh_of(shape: trimesh.Trimesh, smooth: bool = True) -> Mesh:
    vertices = torch.tensor(np.array(shape.vertices), dtype=torch.float32)
    normals = torch.tensor(np.array(shape.vertex_normals), dtype=torch.float32) if smooth else None
    return Mesh(
        vertices,
        torch.tensor(np.array(shape.faces), dtype=torch.int32),
        torch.full((len(vertices), 2), 0.5),
        normals,
    )


def ball(radius: float = 0.5) -> Mesh:
    return mesh_of(trimesh.creation.icosphere(subdivisions=4, radius=radius))


def asset_of(
    mesh: Mesh,
    color: tuple[int, ...] = (180, 90, 60, 255),
    *,
    metallic: float = 0.0,
    roughness: float = 0.5,
    alpha_mode: str = "OPAQUE",
) -> Asset:
    base = torch.tensor(color, dtype=torch.uint8).expand(4, 4, 4).contiguous()
    other = torch.tensor([0, round(roughness * 255), round(metallic * 255)], dtype=torch.uint8).expand(
        4, 4, 3
    )
    return Asset(mesh, Material(base, other.contiguous(), alpha_mode), QualityReport({}))


def middle(picture: Tensor) -> Tensor:
    return picture[picture.shape[0] // 2, picture.shape[1] // 2]


def test_the_buffers_of_a_ball_are_those_of_a_sphere():
    buffers = render_mesh(ball(), CAMERA, 96, RUNTIME)
    seen = buffers.mask
    assert torch.allclose(buffers.position[seen].norm(dim=1), torch.full((int(seen.sum()),), 0.5), atol=2e-3)
    assert torch.allclose(buffers.normal[seen], buffers.position[seen] * 2, atol=2e-2)
    assert middle(buffers.depth).item() == pytest.approx(1.5, abs=2e-3)
    radius = 96 * CAMERA.intrinsics[0, 0].item() * 0.5 / math.sqrt(2**2 - 0.5**2)  # of the outline
    assert seen.sum().item() == pytest.approx(math.pi * radius**2, rel=0.01)


def test_a_closed_mesh_has_no_holes_in_its_picture():
    mask = render_mesh(ball(), CAMERA, 200, RUNTIME).mask
    for row in torch.cat([mask, mask.T]):
        inside = torch.nonzero(row)[:, 0]
        assert len(inside) == 0 or len(inside) == inside[-1] - inside[0] + 1


def test_positions_project_back_to_their_pixels():
    buffers = render_mesh(mesh_of(trimesh.creation.box()), CAMERA, 64, RUNTIME)
    y, x = torch.nonzero(buffers.mask, as_tuple=True)
    seen = buffers.position[y, x].double() @ CAMERA.extrinsics[:3, :3].T + CAMERA.extrinsics[:3, 3]
    pixel = seen @ CAMERA.intrinsics.T
    expected = torch.stack([x, y], 1) + 0.5
    assert torch.allclose(pixel[:, :2] / pixel[:, 2:] * 64, expected.double(), atol=5e-3)
    assert torch.allclose(buffers.depth[y, x].double(), seen[:, 2], atol=1e-5)


def test_normals_are_turned_to_the_viewer_even_inside_out():
    inside_out = mesh_of(trimesh.creation.box(), smooth=False)
    inside_out = dataclasses.replace(inside_out, faces=inside_out.faces.flip(1))
    buffers = render_mesh(inside_out, CAMERA, 48, RUNTIME)
    to_viewer = CAMERA.eye.float() - buffers.position[buffers.mask]
    assert ((buffers.normal[buffers.mask] * to_viewer).sum(1) > 0).all()


def test_the_front_camera_sees_the_side_of_minus_y():
    buffers = render_mesh(
        mesh_of(trimesh.creation.box(), smooth=False), orbit_camera(FRONT, 0.0), 32, RUNTIME
    )
    assert torch.allclose(middle(buffers.normal), torch.tensor([0.0, -1.0, 0.0]), atol=1e-6)
    right = buffers.position[16, 24]
    assert right[0] > 0.1  # x to the right
    assert buffers.position[8, 16][2] > 0.1  # z up


def test_faces_behind_the_camera_are_not_drawn():
    behind = mesh_of(trimesh.creation.icosphere().apply_translation([0, -6, 0]))
    assert not render_mesh(behind, orbit_camera(FRONT, 0.0), 32, RUNTIME).mask.any()


def test_an_empty_mesh_gives_an_empty_picture():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 2))
    assert not render_mesh(empty, CAMERA, 16, RUNTIME).mask.any()
    assert (render_pbr(asset_of(empty), CAMERA, 16, RUNTIME) == 0).all()


def test_every_rasteriser_gives_the_same_picture():
    asset = asset_of(ball())
    pictures = [render_pbr(asset, CAMERA, 40, Runtime(kernels=k)) for k in (Kernels(), RUNTIME.kernels)]
    assert torch.equal(*pictures)


def test_the_picture_is_opaque_inside_smooth_at_the_border_and_empty_outside():
    picture = render_pbr(asset_of(ball()), CAMERA, 64, RUNTIME)
    assert picture.shape == (64, 64, 4)
    assert picture.dtype == torch.uint8
    assert (picture[0] == 0).all()
    assert middle(picture)[3] == 255
    assert set(picture[..., 3].unique().tolist()) == {0, 64, 128, 191, 255}  # quarters


def test_the_light_turns_with_the_camera():
    asset = asset_of(
        mesh_of(trimesh.creation.uv_sphere(count=[64, 64], radius=0.5)), metallic=1.0, roughness=0.3
    )
    one, other = (render_pbr(asset, orbit_camera(yaw, 0.2), 48, RUNTIME).int() for yaw in (0.0, math.pi / 2))
    assert (one - other).abs().float().mean() < 0.5


@pytest.mark.parametrize("roughness", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_even_light_is_given_back_never_multiplied(metallic, roughness):
    white = asset_of(ball(), (255, 255, 255, 255), metallic=metallic, roughness=roughness)
    picture = render_pbr(white, CAMERA, 48, RUNTIME, EVEN_LIGHT)
    shown = srgb_to_linear(picture[picture[..., 3] == 255][:, :3] / 255)
    assert shown.max() < 0.51
    assert shown.min() > 0.4  # the tone curve takes 0.04 away


def test_metal_takes_its_color_from_its_base_and_loses_its_diffuse_part():
    rough_gold = asset_of(ball(), (255, 200, 80, 255), metallic=1.0, roughness=0.2)
    dark_metal = asset_of(ball(), (0, 0, 0, 255), metallic=1.0, roughness=0.2)
    gold = render_pbr(rough_gold, CAMERA, 32, RUNTIME, EVEN_LIGHT)
    black = render_pbr(dark_metal, CAMERA, 32, RUNTIME, EVEN_LIGHT)
    assert middle(gold)[0] > 1.5 * middle(gold)[2]
    assert middle(black)[:3].max() < 40


def test_polished_metal_has_more_contrast_than_rough_metal():
    def contrast(roughness: float) -> float:
        picture = render_pbr(
            asset_of(ball(), (220, 220, 220, 255), metallic=1.0, roughness=roughness), CAMERA, 48, RUNTIME
        )
        return picture[picture[..., 3] == 255][:, 1].float().std().item()

    assert contrast(0.1) > 1.3 * contrast(0.9)


@pytest.mark.parametrize("alpha", [64, 128])
def test_transparent_layers_add_up(alpha):
    asset = asset_of(ball(), (180, 90, 60, alpha), alpha_mode="BLEND")
    picture = render_pbr(asset, CAMERA, 32, RUNTIME)
    assert middle(picture)[3].item() == pytest.approx(
        255 * (1 - (1 - alpha / 255) ** 2), abs=1
    )  # front and back


def test_nearer_transparent_layers_cover_further_ones():
    red, blue = ball(0.5), ball(0.25)
    mesh = Mesh(
        torch.cat([red.vertices, blue.vertices]),
        torch.cat([red.faces, blue.faces + len(red.vertices)]),
        torch.cat([torch.full((len(red.vertices), 2), 0.25), torch.full((len(blue.vertices), 2), 0.75)]),
    )
    base = torch.zeros(2, 2, 4, dtype=torch.uint8)
    base[0, :], base[1, :] = torch.tensor([230, 20, 20, 90]), torch.tensor([20, 20, 230, 255])
    material = Material(
        base, torch.tensor([0, 255, 0], dtype=torch.uint8).expand(2, 2, 3).contiguous(), "BLEND"
    )
    picture = render_pbr(Asset(mesh, material, QualityReport({})), CAMERA, 32, RUNTIME)
    assert middle(picture)[3] == 255
    assert middle(picture)[2] > middle(picture)[0] > middle(picture)[1]


@pytest.mark.parametrize(("alpha", "shown"), [(100, 0), (200, 255)])
def test_masked_materials_are_seen_or_not(alpha, shown):
    asset = asset_of(ball(), (180, 90, 60, alpha), alpha_mode="MASK")
    assert middle(render_pbr(asset, CAMERA, 32, RUNTIME))[3] == shown


def test_texture_lookup_is_bilinear_and_clamped():
    texture = torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8)
    uv = torch.rand(200, 2) * 1.2 - 0.1
    expected = torch.nn.functional.grid_sample(
        (texture / 255).permute(2, 0, 1)[None],
        (uv * 2 - 1)[None, None],
        padding_mode="border",
        align_corners=False,
    )[0, :, 0].T
    assert torch.allclose(sample_texture(texture, uv, color_channels=0), expected, atol=1e-5)
    centre = torch.tensor([[2.5 / 9, 4.5 / 7]])
    assert torch.allclose(
        sample_texture(texture, centre, color_channels=3)[0], srgb_to_linear(texture[4, 2] / 255)
    )


def test_srgb_coding_round_trips():
    value = torch.linspace(0, 1, 256)
    assert torch.allclose(linear_to_srgb(srgb_to_linear(value)), value, atol=1e-5)


def test_the_tone_curve_keeps_order_and_range():
    gray = torch.linspace(0, 20, 2000)[:, None].expand(-1, 3)
    mapped = tone_map(gray)
    assert (mapped.diff(dim=0) >= 0).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    saturated = tone_map(torch.tensor([[0.7, 0.0, 0.0]]))
    assert torch.allclose(saturated, torch.tensor([[0.7, 0.0, 0.0]]))


def test_voxels_are_drawn_as_a_ray_caster_sees_them():
    generator = torch.Generator().manual_seed(1)
    coords = torch.unique(torch.randint(0, 8, (60, 3), generator=generator), dim=0)
    positions = (coords + 0.5) / 8 - 0.5
    attrs = torch.rand(len(coords), 4, generator=generator)
    image = render_voxels(positions, attrs, CAMERA, 40, RUNTIME, voxel_size=1 / 8)
    pixel = torch.stack(torch.meshgrid(torch.arange(40), torch.arange(40), indexing="xy"), -1).double() + 0.5
    rays = torch.cat([pixel / 40, torch.ones(40, 40, 1)], -1) @ torch.linalg.inv(CAMERA.intrinsics).T
    rays = torch.nn.functional.normalize(rays @ CAMERA.extrinsics[:3, :3], dim=-1)
    middle_of, reach = (positions - CAMERA.eye) / rays[:, :, None], (1 / 16 / rays[:, :, None]).abs()
    near, far = (middle_of - reach).amax(-1), (middle_of + reach).amin(-1)
    entry, nearest = torch.where(near < far, near, torch.inf).min(-1)
    expected = torch.where(entry.isfinite(), nearest, -1)
    agrees = image.voxel == expected
    assert agrees.float().mean() > 0.995
    seen = agrees & (expected >= 0)
    assert torch.allclose(image.depth[seen], entry[seen].float(), atol=1e-4)
    assert torch.equal(image.attrs[seen], attrs[expected[seen]])
    assert (image.attrs[expected < 0][agrees[expected < 0]] == 0).all()


def test_supersampled_voxels_are_averages():
    one = torch.zeros(1, 3)
    image = render_voxels(one, torch.ones(1, 1), CAMERA, 24, RUNTIME, voxel_size=0.5, supersampling=4)
    assert image.attrs.shape == (24, 24, 1)
    assert image.mask[12, 12] == 1
    assert ((image.mask > 0) & (image.mask < 1)).any()
    assert torch.allclose(image.attrs[..., 0], image.mask)


@pytest.mark.parametrize(("views", "shape"), [(1, (32, 32)), (4, (32, 128)), (5, (64, 96)), (8, (64, 128))])
def test_a_contact_sheet_has_one_cell_per_view(views, shape):
    sheet = contact_sheet(asset_of(ball()), RUNTIME, views=views, size=32)
    assert sheet.shape == (*shape, 3)
    assert sheet.dtype == torch.uint8


@pytest.mark.parametrize("size", [(1, 1, 1), (0.2, 0.2, 1), (1, 0.05, 0.05)])
@pytest.mark.parametrize("offset", [(0, 0, 0), (0.3, -0.2, 0.1)])
def test_framed_cameras_show_the_whole_mesh_and_little_else(size, offset):
    mesh = mesh_of(trimesh.creation.box(extents=size).apply_translation(offset))
    for camera in framed_cameras(mesh, [(yaw, 0.35) for yaw in (0.0, 0.8, 1.6, 2.4)]):
        mask = render_mesh(mesh, camera, 64, RUNTIME).mask
        assert mask.any()
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    spans = [render_mesh(mesh, c, 64, RUNTIME).mask.any(0).sum() for c in framed_cameras(mesh, [(0.0, 0.0)])]
    assert size[0] < 1 or spans[0] > 24


def test_a_turntable_is_an_endless_animation_of_all_frames(tmp_path):
    steps: list[Step] = []
    frames = turntable(asset_of(ball()), RUNTIME.reporting(steps.append), frames=5, size=24)
    path = write_film(frames, tmp_path / "a.webp", fps=10)
    film = Image.open(path)
    assert film.n_frames == 5
    assert film.info["loop"] == 0
    assert [(s.stage, s.step, s.steps) for s in steps] == [("render", i, 5) for i in range(6)]


def test_a_cancelled_turntable_leaves_no_file(tmp_path):
    def stop(step: Step) -> None:
        if step.step == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        frames = turntable(asset_of(ball()), RUNTIME.reporting(stop), frames=5, size=24)
        write_film(frames, tmp_path / "a.webp", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_sheet_has_room_for_every_picture_and_caption():
    pictures = [
        Image.new("RGB", (10, 20), (255, 0, 0)),
        torch.zeros(30, 30, 4, dtype=torch.uint8),
        np.zeros((9, 9), np.uint8),
    ]
    plain = picture_sheet([pictures, pictures[:1]], cell=40)
    assert plain.shape == (2 * 48 + 8, 3 * 48 + 8, 3)
    assert plain[8 + 20, 8 + 20].tolist() == [255, 0, 0]
    captioned = picture_sheet([pictures], ["seed 1"], columns=["in", "front", "back"], cell=40)
    assert captioned.shape[0] > 48 + 8
    assert (captioned[:24] < 128).any()  # ink


def test_labels_must_match_the_rows_of_a_sheet():
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        picture_sheet([[], []], ["a"])
