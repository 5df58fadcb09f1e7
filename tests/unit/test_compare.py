"""Comparing surfaces: distances, scores and colors with known answers.

Unit: the first mesh's longest side. Not tested: the page's drawing code, which runs in a browser.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.solids import cube, inside_out, mesh, scaled, sphere
from trellis_cli.viewer import page
from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.types import Material, Mesh
from trellis_core.kernels.table import Kernels
from trellis_core.render import compare as c
from trellis_core.render.surface import PaintedMesh
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=Kernels({"rasterize": "warp", "closest_point": "warp"}))
SAMPLES = 4000


def metrics(first, second, **more):
    return c.compare(first, second, RUNTIME, samples=SAMPLES, **more).metrics


def painted(shape: Mesh, color: tuple[int, int, int], rough: int = 200) -> PaintedMesh:
    base = torch.tensor([*color, 255], dtype=torch.uint8).expand(4, 4, 4).contiguous()
    shine = torch.tensor([0, rough, 0], dtype=torch.uint8).expand(4, 4, 3).contiguous()
    uvs = torch.full((len(shape.vertices), 2), 0.5)
    owner = torch.zeros(len(shape.faces), dtype=torch.int64)
    return PaintedMesh(replace(shape, uvs=uvs), (Material(base, shine),), owner)


def test_a_surface_is_exactly_like_itself():
    found = metrics(sphere(), sphere())
    assert found["chamfer"] < 1e-6
    assert found["f_scores"]["0.005"] == {"f": 1.0, "precision": 1.0, "recall": 1.0}
    assert found["normal_consistency"] == pytest.approx(1, abs=1e-3)
    assert found["opposed_normals"] == 0


def test_concentric_spheres_are_apart_by_the_difference_of_their_radii():
    found = metrics(sphere(0.5, 40), sphere(0.46, 40))
    assert found["chamfer"] == pytest.approx(0.04, rel=0.02)
    assert found["hausdorff"] == pytest.approx(0.04, rel=0.05)
    assert found["area_ratio"] == pytest.approx((0.46 / 0.5) ** 2, rel=1e-3)
    assert found["f_scores"]["0.02"]["f"] == 0
    assert found["f_scores"]["0.05"]["f"] == 1


def test_a_shifted_sphere_is_off_by_half_the_shift_on_average():
    """Its points are off by | |p - s| - r |, to first order s |cos|, which is s / 2 over the sphere."""
    found = metrics(sphere(0.5, 40), scaled(sphere(0.5, 40), 1, (0.02, 0, 0)))
    assert found["chamfer"] == pytest.approx(0.01, rel=0.03)
    assert found["hausdorff"] == pytest.approx(0.02, rel=0.03)


def test_a_part_that_is_missing_costs_recall_and_not_precision():
    found = metrics(cube(), cube([0, 1, 2, 3, 4]), thresholds=(0.01,))["f_scores"]["0.01"]
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(5 / 6 + 4 * 0.01 / 6, abs=0.02)


def test_a_mesh_inside_out_agrees_but_for_the_side():
    found = metrics(sphere(), inside_out(sphere()))
    assert found["normal_consistency"] == pytest.approx(1, abs=1e-3)
    assert found["opposed_normals"] == 1


def test_the_same_meshes_give_the_same_numbers():
    assert metrics(sphere(), cube()) == metrics(sphere(), cube())


@settings(max_examples=12, deadline=None)
@given(st.floats(0.01, 100), st.tuples(*[st.floats(-50, 50)] * 3))
def test_fitting_takes_place_and_size_away(factor, shift):
    first, second, longest = c.bring_together(cube(), scaled(cube(), factor, shift))
    assert longest == pytest.approx(1)
    assert torch.allclose(
        c.mesh_of(first).vertices, c.mesh_of(second).vertices, atol=1e-2 / factor * 1e-2 + 2e-3
    )


def test_as_is_keeps_place_and_size_relative_to_the_first():
    first, second, longest = c.bring_together(scaled(cube(), 4), scaled(cube(), 2, (4, 0, 0)), as_is=True)
    assert longest == 4
    assert c.mesh_of(first).vertices.abs().max() == 0.5
    assert c.mesh_of(second).vertices.amax(0).tolist() == [1.25, 0.25, 0.25]


def test_meshes_without_extent_cannot_be_compared():
    point = mesh(torch.zeros(3, 3), [[0, 1, 2]])
    with pytest.raises(InputError, match="one place"):
        c.bring_together(cube(), point)
    needle = mesh([[0, 0, 0], [1, 0, 0], [0.5, 0, 0]], [[0, 1, 2]])
    with pytest.raises(InputError, match="area"):
        metrics(cube(), needle)


def test_colors_differ_by_what_they_differ():
    found = metrics(painted(cube(), (255, 0, 0)), painted(cube(), (204, 0, 0)))["color"]
    assert found["error"] == pytest.approx(0.2 / 3, abs=1e-3)
    assert found["psnr"] == pytest.approx(-10 * torch.tensor(0.04 / 3).log10().item(), abs=0.05)
    assert found["histogram_overlap"] == 0
    assert found["roughness_error"] == 0


def test_equal_colors_have_equal_histograms():
    found = metrics(painted(cube(), (90, 120, 10)), painted(cube(), (90, 120, 10), rough=149))["color"]
    assert found["error"] == pytest.approx(0, abs=1e-6)
    assert found["psnr"] == 100
    assert found["histogram_overlap"] == pytest.approx(1)
    assert found["histogram_shift"] == pytest.approx(0)
    assert found["roughness_error"] == pytest.approx(0.2, abs=1e-3)


def test_without_colors_none_are_compared():
    assert "color" not in metrics(cube(), painted(cube(), (1, 2, 3)))


def test_black_and_white_are_a_hundred_apart():
    assert c.lab(torch.tensor([[0.0, 0, 0], [1, 1, 1]])).diff(dim=0).norm() == pytest.approx(100, abs=0.1)


def test_pictures_of_equal_meshes_are_equal_and_of_different_ones_are_not():
    shape = painted(sphere(rings=12), (200, 40, 40))
    same = c.compare_pictures(shape, shape, RUNTIME, size=48, views=2)
    assert same.metrics["psnr"] == 100
    assert same.metrics["ssim"] == pytest.approx(1)
    assert same.metrics["outline_iou"] == 1
    assert same.metrics["normal_degrees"] < 1e-3
    other = c.compare_pictures(shape, painted(cube(), (40, 40, 200)), RUNTIME, size=48, views=2)
    assert other.metrics["psnr"] < 20
    assert other.metrics["outline_iou"] < 0.9
    assert [len(row) for row in other.rows.values()] == [2] * 6


def test_heat_maps_begin_cold_and_end_hot():
    cold, hot, hotter = c.heat_colors(torch.tensor([0.0, 1.0, 9.0])).tolist()
    assert cold == list(c.HEAT[0])
    assert hot == hotter == list(c.HEAT[-1])
    assert [c.hottest_of(d) for d in (0, 0.0011, 0.03, 7)] == [0.001, 0.002, 0.05, 0.2]


# --- the page ----------------------------------------------------------------------------------------


def scene_of(content: bytes) -> tuple[dict, bytes]:
    text = content.decode()
    scene = re.search(r'id="scene">(.*?)</script>', text, re.S)
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    return json.loads(scene[1]), b64decode(data[1])


def make(*things, names=("one", "two"), **more) -> bytes:
    words = ["few"] * len(things)
    return page(things, names[: len(things)], words, [("chamfer", "0")], RUNTIME, **more)


def test_a_page_holds_the_triangles_it_was_given():
    scene, data = scene_of(make(cube(), painted(sphere(rings=6), (9, 9, 9))))
    for thing, shape in zip(scene["things"], (cube(), sphere(rings=6)), strict=True):
        start, length = thing["indices"]
        corners = torch.frombuffer(bytearray(data[start : start + length]), dtype=torch.int32).long()
        start, length = thing["positions"]
        points = torch.frombuffer(bytearray(data[start : start + length]), dtype=torch.float32).view(-1, 3)
        assert torch.allclose(points[corners], shape.vertices[shape.faces.long()].reshape(-1, 3))
        assert sum(group["count"] for group in thing["groups"]) == 3 * len(shape.faces)
    assert [thing["painted"] for thing in scene["things"]] == [False, True]


def test_a_page_needs_nothing_from_elsewhere():
    text = make(cube(), cube()).decode()
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert not re.search(r"(src|href)\s*=", text)
    assert "default-src 'none'" in text


def test_names_cannot_break_out_of_the_page():
    text = make(cube(), cube(), names=("</script><script>alert(1)</script>", "b"), title="<b>").decode()
    assert "alert(1)</script>" not in text
    assert scene_of(text.encode())[0]["things"][0]["name"].startswith("</script>")


def test_a_page_shows_how_far_the_other_mesh_is():
    scene, data = scene_of(make(sphere(0.5, 8), sphere(0.45, 8), hottest=0.1))
    start, length = scene["things"][0]["heat"]
    heat = torch.frombuffer(bytearray(data[start : start + length]), dtype=torch.uint8).float() / 255
    assert heat.mean() == pytest.approx(0.5, abs=0.06)


def test_meshes_too_large_for_a_page_are_refused():
    faces = torch.zeros(4_000_001, 3, dtype=torch.int32)
    with pytest.raises(UsageError, match="too many") as refusal:
        make(Mesh(torch.zeros(1, 3), faces))
    assert "png" in refusal.value.hint
