"""`trellis compare`: numbers, picture and page, and what it says to bad input.

Not tested: the numbers themselves (tests/unit/test_compare.py).
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.solids import cube, scaled, sphere, write_glb, write_obj, write_stl
from trellis_core.weights.bundle import Bundle

QUICK = ("--samples", 2000, "--no-pictures")


@pytest.fixture
def pair(tmp_path):
    """The same sphere, in millimetres without color and in metres with it."""
    write_stl(scaled(sphere(rings=12), 50), tmp_path / "a.stl")
    write_glb(scaled(sphere(rings=12), 1, (4, 0, 0)), tmp_path / "b.glb")
    return "a.stl", "b.glb"


def test_place_and_unit_do_not_matter(run, pair):
    said = run("compare", *pair, *QUICK, "--json")
    assert said.code == 0
    assert said.json["distances"]["chamfer"] < 1e-5
    assert said.json["distances"]["f_scores"]["0.005"]["f"] == 1
    assert said.json["unit_length"] == pytest.approx(50)
    assert [mesh["metrics"]["faces"] for mesh in said.json["meshes"]] == [528, 528]
    assert said.json["pictures"] is None


def test_as_is_they_do(run, pair):
    said = run("compare", *pair, *QUICK, "--as-is", "--json")
    assert said.json["distances"]["f_scores"]["0.05"]["f"] == 0
    assert said.json["distances"]["chamfer"] > 0.2


def test_the_report_says_the_main_numbers(run, pair):
    said = run("compare", *pair, *QUICK)
    assert said.code == 0
    for word in ("chamfer", "F @ 0.01", "normals", "each fitted to the unit cube", "not both have colors"):
        assert word in said.out


def test_thresholds_can_be_chosen(run, pair):
    found = run("compare", *pair, *QUICK, "--threshold", 0.2, "--threshold", 0.1, "--json").json
    assert list(found["distances"]["f_scores"]) == ["0.1", "0.2"]


def test_colors_are_compared_when_both_have_them(run, tmp_path):
    write_glb(cube(), tmp_path / "a.glb", color=(200, 0, 0))
    write_glb(cube(), tmp_path / "b.glb", color=(0, 0, 200))
    found = run("compare", "a.glb", "b.glb", *QUICK, "--json").json
    assert found["distances"]["color"]["error"] == pytest.approx(2 / 3 * 200 / 255, abs=0.01)
    assert found["distances"]["color"]["histogram_overlap"] == 0
    assert [len(histogram) for histogram in found["histograms"]] == [3, 3]


def test_a_picture_shows_both(run, pair, tmp_path):
    said = run("compare", *pair, "--samples", 2000, "--size", 64, "-o", "c.png")
    assert said.code == 0
    assert said.out.splitlines()[-1] == "c.png"
    assert "structural similarity" in said.out
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 4 * 64 and picture.height > 6 * 64
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_a_page_holds_both_and_is_whole(run, pair, tmp_path):
    said = run("compare", *pair, *QUICK, "-o", "c.html", "--json")
    assert said.code == 0
    text = (tmp_path / "c.html").read_text()
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "a.stl" in text and "b.glb" in text
    assert "@DATA@" not in text and "@SCENE@" not in text
    assert said.json["outputs"][0]["bytes"] == len(text.encode())


def test_the_same_command_gives_the_same_numbers(run, pair):
    first, second = (run("compare", *pair, *QUICK, "--json").json["distances"] for _ in range(2))
    assert first == second


def test_a_file_that_is_there_is_kept_without_force(run, pair, tmp_path):
    (tmp_path / "c.html").write_text("mine")
    run("compare", *pair, *QUICK, "-o", "c.html", "-q").assert_one_error(7)
    assert (tmp_path / "c.html").read_text() == "mine"
    assert run("compare", *pair, *QUICK, "-o", "c.html", "--force", "-q").code == 0


def test_a_saved_run_is_to_be_exported_first(run, pair, tmp_path):
    Bundle({"coords": torch.zeros(6, 4)}, {"model": {"name": "embedded"}}).save(tmp_path / "run.safetensors")
    said = run("compare", "a.stl", "run.safetensors", "-q")
    said.assert_one_error(3)
    assert "trellis export run.safetensors" in said.err


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"", "is empty"), (b"nothing here", "other.obj")],
)
def test_bad_input_is_one_error_and_one_hint(run, pair, tmp_path, content, words):
    if content is not None:
        (tmp_path / "other.obj").write_bytes(content)
    said = run("compare", "a.stl", "other.obj", *QUICK, "-q")
    said.assert_one_error(3)
    assert words in said.err


def test_meshes_without_a_surface_are_bad_input(run, pair, tmp_path):
    flat = scaled(cube(), 1)
    flat.vertices[:] = 0.5
    write_obj(flat, tmp_path / "flat.obj")
    run("compare", "a.stl", "flat.obj", *QUICK, "-q").assert_one_error(3)


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "c.txt"),
        ("-o", "c.png", "--no-pictures"),
        ("--samples", "0"),
        ("--threshold", "nan"),
        ("--threshold", "-1"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_read(run, pair, options):
    said = run("compare", *pair, *options, "-q")
    said.assert_one_error(2)


def test_one_mesh_cannot_be_compared(run, pair):
    run("compare", "a.stl", "-q").assert_one_error(2)
