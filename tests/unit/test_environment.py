"""Light from pictures of surroundings, and the files they come from.

Properties: an even picture lights evenly; polished surfaces see the picture itself, rough ones what a lobe of
their width averages, matt ones what a cosine averages; the picture goes around without a seam and stays where
it is when the camera moves; Radiance files read as another program reads them; damaged ones are refused.
P directions.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.io.environment import read_environment
from trellis_core.render.environment import ROUGHNESS, ROWS, WHITE, Environment


def directions() -> tuple[Tensor, Tensor]:  # float32 [H, W, 3], and the solid angles [H, W]
    """Of the texels of a picture, worked out here."""
    theta = (torch.arange(ROWS) + 0.5) * math.pi / ROWS
    phi = (torch.arange(2 * ROWS) + 0.5) * math.pi / ROWS - math.pi
    z, ring = theta.cos()[:, None].expand(ROWS, 2 * ROWS), theta.sin()[:, None]
    towards = torch.stack([ring * phi.sin(), ring * phi.cos(), z], 2)
    return towards, (ring * (math.pi / ROWS) ** 2).expand(ROWS, 2 * ROWS)


DIRECTIONS, AREAS = directions()
SUN = torch.nn.functional.normalize(torch.tensor([0.3, -0.6, 0.7]), dim=0)


@pytest.fixture(scope="module")
def sunny() -> tuple[Tensor, Environment, float]:
    """A dim sky with a bright disc; what is made of it; by how much that is scaled."""
    picture = (0.1 + 20 * (DIRECTIONS @ SUN > 0.97).float())[..., None].expand(ROWS, 2 * ROWS, 3)
    mean = float((picture[..., 0] * AREAS).sum()) / (4 * math.pi)
    return picture, Environment.of_picture(picture), WHITE / mean


def around_the_sun(count: int) -> Tensor:
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(SUN + 0.5 * noise, dim=1)


def test_an_even_picture_lights_evenly():
    light = Environment.of_picture(torch.full((8, 16, 3), 7.0), exposure=2.0)
    towards = around_the_sun(40)
    for roughness in (0.0, 0.1, 0.5, 1.0):
        seen = light.reflected(towards, torch.full((40, 1), roughness))
        assert torch.allclose(seen, torch.full_like(seen, 2 * WHITE), rtol=0.01)
    assert torch.allclose(light.diffuse(towards), torch.full((40, 3), 2 * WHITE), rtol=0.01)


def test_polished_surfaces_see_the_picture_itself(sunny):
    picture, light, scale = sunny
    towards = DIRECTIONS.reshape(-1, 3)[::911]
    seen = light.reflected(towards, torch.zeros(len(towards), 1))
    assert torch.allclose(seen, picture.reshape(-1, 3)[::911] * scale, atol=0.01)


@pytest.mark.parametrize("roughness", ROUGHNESS[1:])
def test_rough_surfaces_see_what_their_lobe_averages(sunny, roughness):
    picture, light, scale = sunny
    towards = around_the_sun(40)
    lobe = torch.exp(0.5 / roughness**4 * (towards @ DIRECTIONS.reshape(-1, 3).T - 1)) * AREAS.reshape(-1)
    expected = (lobe / lobe.sum(1, keepdim=True)) @ picture.reshape(-1, 3) * scale
    seen = light.reflected(towards, torch.full((40, 1), roughness))
    assert (seen - expected).abs().max() < 0.1 * expected.max()


def test_matt_surfaces_see_what_a_cosine_averages(sunny):
    picture, light, scale = sunny
    towards = around_the_sun(40)
    cosine = (towards @ DIRECTIONS.reshape(-1, 3).T).clamp(min=0) * AREAS.reshape(-1) / math.pi
    expected = cosine @ picture.reshape(-1, 3) * scale
    assert (light.diffuse(towards) - expected).abs().max() < 0.06 * expected.max()  # nine harmonics


def test_the_picture_goes_around_without_a_seam():
    columns = torch.linspace(0, 2 * math.pi, 129)[:-1]
    wave = (2 + columns.cos())[None, :, None].expand(64, 128, 3).contiguous()
    angles = torch.tensor([-math.pi + 1e-4, math.pi - 1e-4])
    towards = torch.stack([angles.sin(), angles.cos(), torch.zeros(2)], 1)
    left, right = Environment.of_picture(wave).reflected(towards, torch.zeros(2, 1))
    assert torch.allclose(left, right, rtol=1e-3)


def test_the_surroundings_stay_while_the_camera_moves(sunny):
    _, light, _ = sunny
    frames = [light.frame(orbit_camera(FRONT + turn, 0.3)) for turn in (0.0, 1.0)]
    assert torch.equal(*frames)


# --- files -------------------------------------------------------------------------------------------


def hdr_file(folder, height: int, width: int):
    radiance = np.random.default_rng(1).random((height, width, 3)).astype(np.float32) ** 4 * 50
    radiance[: height // 2, :, 1] = 0.25  # runs
    path = folder / "sky.hdr"
    cv2.imwrite(str(path), radiance)
    return path


@pytest.mark.parametrize("size", [(16, 32), (3, 6), (64, 128)])  # narrow ones are not run-length coded
def test_radiance_files_read_as_another_program_reads_them(tmp_path, size):
    path = hdr_file(tmp_path, *size)
    expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert np.allclose(read_environment(path).numpy(), expected, rtol=1e-5)


def test_other_pictures_are_decoded_from_srgb(tmp_path):
    Image.new("RGB", (32, 16), (188, 0, 255)).save(tmp_path / "sky.png")
    assert torch.allclose(
        read_environment(tmp_path / "sky.png")[0, 0], torch.tensor([0.5029, 0, 1]), atol=1e-3
    )


@pytest.mark.parametrize("cut", [5, 40, 300])
def test_a_radiance_file_that_is_cut_short_is_refused(tmp_path, cut):
    path = hdr_file(tmp_path, 16, 32)
    path.write_bytes(path.read_bytes()[:-cut] if cut > 5 else b"#?RAD")
    with pytest.raises(InputError) as refused:
        read_environment(path)
    assert "sky.hdr" in refused.value.message and refused.value.hint


def test_surroundings_must_be_twice_as_wide_as_high_and_give_light(tmp_path):
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "square.png")
    Image.new("RGB", (32, 16)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match="twice as wide"):
        read_environment(tmp_path / "square.png")
    with pytest.raises(InputError, match="no light"):
        read_environment(tmp_path / "black.png")
