"""What can be drawn, from where, and as what.

Properties: every kind of subject has its modes and says which; every backend gives the same picture; one
drawn in parts equals one drawn at once; maps hold what they promise; a mask drawn from a named view finds the
object again; cameras have all of it in the picture. Files are read in tests/cli/test_cli_render.py.
N voxels or Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.fields import SH0, Gaussians, RadianceField
from trellis_core.geometry.region import Painted
from trellis_core.geometry.types import Asset, Material, Mesh, PBRVoxels, QualityReport, VoxelMesh
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import DeviceInfo
from trellis_core.render import subject as drawing
from trellis_core.render.subject import (
    FARTHEST,
    NEAREST,
    Look,
    Subject,
    as_subject,
    before_backdrop,
    depth_range,
    draw_subject,
    modes_of,
    outline,
)
from trellis_core.render.surface import PaintedMesh
from trellis_core.render.turntable import arrange, contact_sheet, turntable
from trellis_core.render.view_names import VIEWS, parse_view
from trellis_core.render.views import fitted_camera, named_view
from trellis_core.runtime import Runtime

FAST = Runtime(kernels=resolve_kernels(DeviceInfo(kind="cpu")))
PLAIN = Runtime(kernels=Kernels())
GOLD = (220, 160, 60)


def ball_mesh(radius: float = 0.4) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    vertices = torch.tensor(np.array(shape.vertices), dtype=torch.float32)
    faces = torch.tensor(np.array(shape.faces), dtype=torch.int32)
    return Mesh(vertices, faces, torch.full((len(vertices), 2), 0.5), vertices / radius)


def plain_material(color: tuple[int, ...] = GOLD, roughness: int = 128, metallic: int = 0) -> Material:
    base = torch.tensor([*color, 255], dtype=torch.uint8).view(1, 1, 4)
    return Material(base, torch.tensor([0, roughness, metallic], dtype=torch.uint8).view(1, 1, 3))


def shell(resolution: int = 16) -> PBRVoxels:
    axis = torch.arange(resolution)
    coords = torch.cartesian_prod(axis, axis, axis).int()
    center = (coords + 0.5) / resolution - 0.5
    coords = coords[(center.norm(dim=1) - 0.4).abs() < 0.7 / resolution]
    attrs = torch.tensor([*[c / 255 for c in GOLD], 0.0, 0.5, 1.0]).expand(len(coords), 6).contiguous()
    return PBRVoxels(coords, attrs, resolution)


def cloud() -> Gaussians:
    points = torch.tensor(np.array(trimesh.creation.icosphere(subdivisions=4).vertices)).float() * 0.4
    count = len(points)
    color = (torch.tensor(GOLD) / 255 - 0.5) / SH0
    return Gaussians(
        points,
        torch.full((count, 3), 0.018),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        torch.full((count, 1), 0.95),
        color.expand(count, 3).contiguous(),
    )


def field() -> RadianceField:
    voxels = shell()
    count = len(voxels.coords)
    features = torch.logit(torch.tensor(GOLD) / 255) / SH0
    return RadianceField(
        voxels.coords,
        torch.ones(count, 1, 3, 2),
        torch.full((count, 1), 500.0),
        features.expand(count, 1, 3).contiguous(),
        voxels.resolution,
    )


def subjects() -> dict[str, Subject]:
    asset = Asset(ball_mesh(), plain_material(), QualityReport({}))
    return {
        "asset": as_subject(asset),
        "bare": replace(ball_mesh(), uvs=None),
        "decoded": VoxelMesh(ball_mesh(), shell()),
        "voxels": shell(),
        "gaussians": cloud(),
        "field": field(),
    }


SUBJECTS = subjects()
EVERY_PICTURE = [(name, mode) for name, subject in SUBJECTS.items() for mode in modes_of(subject)]


def fitted_to(subject: Subject) -> Camera:
    points, reach = outline(subject)
    return fitted_camera(points, "orbit", reach)


def border(picture: Tensor) -> Tensor:
    return torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


@pytest.mark.parametrize(("name", "mode"), EVERY_PICTURE)
def test_every_subject_is_drawn_in_each_of_its_modes_on_transparent_ground(name, mode):
    subject = SUBJECTS[name]
    picture = draw_subject(subject, fitted_to(subject), 48, FAST, Look(mode=mode))
    assert picture.shape == (48, 48, 4) and picture.dtype == torch.uint8
    assert picture[24, 24, 3] > 240
    assert border(picture)[:, 3].max() <= (40 if name == "gaussians" else 0)  # these fade out


@pytest.mark.parametrize("mode", ["color", "normal", "depth"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_backend_gives_the_same_picture(name, mode):
    camera = named_view("orbit")
    ours, reference = (
        draw_subject(SUBJECTS[name], camera, 20, runtime, Look(mode=mode)).int() for runtime in (FAST, PLAIN)
    )
    wrong = (ours - reference).abs().amax(2) > 2
    # rounding decides on which side of a threshold a sample of something fuzzy falls
    assert not wrong.any() if name in ("asset", "bare", "decoded", "voxels") else wrong.float().mean() < 0.03


@pytest.mark.parametrize("name", ["asset", "decoded", "voxels", "gaussians", "field"])
def test_matt_subjects_show_their_color(name):
    mode = "base-color" if "base-color" in modes_of(SUBJECTS[name]) else "color"
    picture = draw_subject(SUBJECTS[name], named_view("front"), 33, FAST, Look(mode=mode))
    assert (picture[16, 16, :3].int() - torch.tensor(GOLD)).abs().max() <= 3


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_front_of_a_ball_faces_the_front_camera(name):
    picture = draw_subject(SUBJECTS[name], named_view("front"), 65, FAST, Look(mode="normal"))
    assert (picture[32, 32, :3].int() - torch.tensor([128, 0, 128])).abs().max() <= 20  # -y


@pytest.mark.parametrize("name", SUBJECTS)
def test_depth_maps_can_be_turned_back_into_depths(name):
    subject, camera = SUBJECTS[name], named_view((40.0, 25.0))
    near, far = depth_range(subject, camera)
    shade = draw_subject(subject, camera, 49, FAST, Look(mode="depth"))[24, 24, 0].item() / 255
    depth = near + (shade - NEAREST) / (FARTHEST - NEAREST) * (far - near)
    assert depth == pytest.approx(camera.eye.norm().item() - 0.4, abs=0.06)  # a cell of the coarsest grid


def test_a_picture_drawn_in_parts_is_the_one_drawn_at_once(monkeypatch):
    camera = named_view("orbit")
    for name in ("asset", "decoded", "voxels", "field"):
        mode = "depth" if name == "asset" else "color"
        whole = draw_subject(SUBJECTS[name], camera, 30, FAST, Look(mode=mode)).int()
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "TILE", 36)  # 18 pixels: does not divide 30
            parts = draw_subject(SUBJECTS[name], camera, 30, FAST, Look(mode=mode)).int()
        assert ((whole - parts).abs().amax(2) > 3).float().mean() < 0.03


def test_a_mode_without_a_material_is_refused_with_those_that_exist():
    with pytest.raises(UsageError) as refused:
        draw_subject(SUBJECTS["bare"], named_view("front"), 16, FAST, Look(mode="metallic"))
    assert "clay" in refused.value.hint and "metallic" not in refused.value.hint
    with pytest.raises(UsageError, match="unknown mode `colour`"):
        Look(mode="colour")


def test_a_wireframe_has_darker_lines_than_clay():
    clay, wires = (
        draw_subject(SUBJECTS["bare"], named_view("front"), 64, FAST, Look(mode=mode)).float()
        for mode in ("clay", "wireframe")
    )
    assert torch.equal(clay[..., 3], wires[..., 3])
    assert (wires[..., 0] <= clay[..., 0]).all()
    assert ((clay - wires)[..., 0] > 20).float().mean() > 0.02


# --- meshes with several materials -------------------------------------------------------------------


def two_squares(uvs: Tensor | None = None) -> PaintedMesh:
    """Two squares that face the front, left and right, each of its own material."""
    square = torch.tensor([[-0.4, 0, -0.2], [0, 0, -0.2], [0, 0, 0.2], [-0.4, 0, 0.2]])
    vertices = torch.cat([square, square + torch.tensor([0.4, 0, 0])])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], dtype=torch.int32)
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]]).repeat(2, 1) if uvs is None else uvs
    materials = plain_material((200, 30, 30)), plain_material((30, 30, 200), metallic=255)
    return PaintedMesh(Mesh(vertices, faces, uvs), materials, torch.tensor([0, 0, 1, 1]))


def test_every_part_keeps_its_material():
    camera = named_view("front")
    color = draw_subject(two_squares(), camera, 64, FAST, Look(mode="base-color"))
    assert color[32, 22, :3].tolist() == [200, 30, 30]
    assert color[32, 42, :3].tolist() == [30, 30, 200]
    metal = draw_subject(two_squares(), camera, 64, FAST, Look(mode="metallic"))
    assert metal[32, 22, 0] == 0 and metal[32, 42, 0] == 255


def test_textures_repeat_outside_their_square():
    uvs = torch.tensor([[0.0, 2], [2, 2], [2, 0], [0, 0]]).repeat(2, 1)
    stripes = torch.tensor([[[250, 0, 0, 255], [0, 0, 250, 255]]], dtype=torch.uint8)
    striped = Material(stripes, torch.tensor([[[0, 255, 0]]], dtype=torch.uint8))
    mesh = replace(two_squares(uvs), materials=(striped, striped))
    row = draw_subject(mesh, named_view("front"), 96, FAST, Look(mode="base-color"))[48]
    red = (row[:, 0] > row[:, 2]) & (row[:, 3] > 0)
    assert int((red[1:] & ~red[:-1]).sum()) == 4  # two pairs of stripes on each square


def test_transparent_voxels_let_the_back_through():
    voxels = shell()
    glass = replace(
        voxels, attrs=torch.cat([voxels.attrs[:, :5], torch.full((len(voxels.attrs), 1), 0.3)], 1)
    )
    picture = draw_subject(VoxelMesh(ball_mesh(), glass), named_view("front"), 32, FAST)
    assert picture[16, 16, 3].item() == pytest.approx(255 * (1 - 0.7**2), abs=4)


# --- views -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [*VIEWS, (40.0, -70.0), (123.0, 5.0)])
def test_a_named_view_has_the_unit_cube_in_its_picture_and_little_else(view):
    camera = named_view(view)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    local = corners @ camera.extrinsics[:3, :3].T + camera.extrinsics[:3, 3]
    place = (local @ camera.intrinsics.T)[:, :2] / local[:, 2:]
    assert (local[:, 2] > 0.5).all()
    assert place.min() > 0 and place.max() < 1
    assert (place - 0.5).abs().max() > 0.45


@pytest.mark.parametrize(
    ("view", "towards"),
    [
        ("front", (0, -1, 0)),
        ("back", (0, 1, 0)),
        ("right", (1, 0, 0)),
        ("left", (-1, 0, 0)),
        ("top", (0, 0, 1)),
        ("bottom", (0, 0, -1)),
    ],
)
def test_named_views_look_from_where_they_say(view, towards):
    eye = named_view(view).eye
    assert torch.allclose(eye / eye.norm(), torch.tensor(towards, dtype=torch.float64), atol=1e-6)


@given(st.floats(-360, 360), st.floats(-90, 90))
def test_a_view_in_degrees_is_read_as_written(yaw, pitch):
    assert parse_view(f"{yaw}, {pitch}") == (yaw, pitch)
    camera = named_view(f"{yaw},{pitch}")
    assert math.asin((camera.eye[2] / camera.eye.norm()).clamp(-1, 1)) == pytest.approx(
        math.radians(pitch), abs=1e-3
    )


@pytest.mark.parametrize("text", ["", "up", "1", "1,2,3", "nan,0", "0,91", "400,0", "a,b"])
def test_other_views_are_refused(text):
    with pytest.raises(UsageError) as refused:
        parse_view(text)
    assert refused.value.hint


@pytest.mark.parametrize("view", ["front", "left", "top", "33,-20"])
def test_a_mask_drawn_from_a_view_finds_the_object_again(view):
    voxels = shell()
    picture = draw_subject(voxels, named_view(view), 128, FAST, Look(mode="mask"))
    white = before_backdrop(picture, ((0, 0, 0), (0, 0, 0)))[..., 0] > 127
    centers = (voxels.coords + 0.5) / voxels.resolution - 0.5
    region = Painted(white, named_view(view))
    assert region.contains(centers).all()
    assert not region.contains(torch.tensor([[0.48, 0.48, 0.48], [-0.48, -0.48, -0.48]])).all()


# --- sheets and films --------------------------------------------------------------------------------


def test_a_sheet_has_a_block_for_every_look():
    looks = (Look(), Look(mode="normal"), Look(mode="clay"))
    sheet = contact_sheet(SUBJECTS["asset"], FAST, views=2, size=16, looks=looks)
    assert sheet.shape == (48, 32, 3)


@pytest.mark.parametrize(("count", "block", "rows", "columns"), [(4, 4, 1, 4), (6, 6, 2, 3), (10, 5, 4, 3)])
def test_blocks_are_laid_out_in_up_to_two_rows(count, block, rows, columns):
    pictures = [torch.full((2, 2, 3), number, dtype=torch.uint8) for number in range(count)]
    assert arrange(pictures, block).shape == (2 * rows, 2 * columns, 3)


def test_the_frames_of_a_film_are_drawn_one_by_one():
    drawn = []
    film = turntable(SUBJECTS["voxels"], FAST.reporting(drawn.append), frames=50, size=16)
    next(film)
    assert [step.step for step in drawn] == [0]


def test_a_backdrop_runs_from_top_to_bottom_and_none_keeps_alpha():
    clear = torch.zeros(5, 3, 4, dtype=torch.uint8)
    painted = before_backdrop(clear, ((0, 0, 0), (200, 100, 0)))
    assert painted[:, 0].tolist() == [[0, 0, 0], [50, 25, 0], [100, 50, 0], [150, 75, 0], [200, 100, 0]]
    assert before_backdrop(clear, None) is clear
