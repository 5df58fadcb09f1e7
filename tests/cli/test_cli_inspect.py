"""`trellis inspect`: what it says about sound and damaged files, and to bad input.

Files are written by hand (tests/solids.py). Not tested: the measures themselves (tests/unit/test_examine.py).
"""

from __future__ import annotations

import shlex

import pytest
import torch

from tests.solids import cube, scaled, sphere, together, write_glb, write_obj, write_stl
from trellis_cli import report
from trellis_cli.app import COMMANDS
from trellis_core.geometry.fields import Gaussians
from trellis_core.io.fields import save_field
from trellis_core.weights.bundle import Bundle

MODEL = {"name": "embedded", "fingerprint": "1234"}


def test_a_sound_mesh_passes_and_is_described(run, tmp_path):
    write_stl(scaled(cube(), 20), tmp_path / "cube.stl")
    said = run("inspect", "cube.stl", "--strict")
    assert said.code == 0
    assert "STL, binary" in said.out
    assert "20 mm x 20 mm x 20 mm" in said.out
    assert "watertight, volume 8000 mm³" in said.out
    assert "consistent, outward" in said.out
    assert "passed the quality check" in said.out


def test_a_hole_is_named_and_strict_exits_with_6(run, tmp_path):
    write_stl(cube([0, 1, 2, 3, 4]), tmp_path / "box.stl")
    said = run("inspect", "box.stl")
    assert said.code == 0
    assert "1 open border with 4 edges, the longest 4 mm around" in said.out
    assert "failed the quality check" in said.out
    strict = run("inspect", "box.stl", "--strict", "-q")
    assert strict.code == 6
    assert "failed the quality check" in strict.err and "hint:" in strict.err


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (together(sphere(), scaled(sphere(), 0.98)), "double shell"),
        (together(cube(), scaled(cube(), 1, (3, 0, 0))), "2, the largest has 50% of the area"),
        (cube([0, 1, 2, 3]), "2 open borders"),
    ],
)
def test_what_is_wrong_is_said_in_words(run, tmp_path, shape, words):
    write_stl(shape, tmp_path / "a.stl")
    assert words in run("inspect", "a.stl").out


def test_a_turned_face_is_counted(run, tmp_path):
    shape = cube()
    shape.faces[5] = shape.faces[5].flip(0)
    write_obj(shape, tmp_path / "a.obj")
    said = run("inspect", "a.obj").out
    assert "3 edges between opposed faces; 1 face turned over" in said
    assert "the format has no unit" in said


def test_json_has_every_fact_of_every_file(run, tmp_path):
    extras = {"model": MODEL, "seed": 7}
    write_glb(cube(), tmp_path / "a.glb", extras=extras)
    write_stl(cube(), tmp_path / "b.stl")
    said = run("inspect", "a.glb", "b.stl", "--json")
    assert said.code == 0
    first, second = said.json["files"]
    assert first["kind"] == second["kind"] == "mesh"
    assert first["file"]["extras"] == extras
    assert first["size"] == second["size"] == [1, 1, 1]
    assert first["metrics"]["watertight"] is True
    assert second["passed"] is True and second["problems"] == []
    assert [first["unit"], second["unit"]] == ["m", "mm"]


def test_the_run_behind_an_asset_is_told(run, tmp_path):
    extras = {"model": MODEL, "seed": 7, "condition": {"kind": "text", "prompt": "a red box"}}
    write_glb(cube(), tmp_path / "a.glb", extras=extras)
    said = run("inspect", "a.glb").out
    assert "model embedded, seed 7" in said
    assert 'from the prompt "a red box"' in said
    assert "base color: 16 x 16 PNG" in said


def test_a_saved_run_is_described_from_its_header(run, tmp_path):
    info = {"model": MODEL, "seed": 3, "samplers": {"structure": {"steps": 5, "guidance_scale": 2.0}}}
    Bundle({"coords": torch.zeros(6, 4, dtype=torch.int32)}, info).save(tmp_path / "run.safetensors")
    said = run("inspect", "run.safetensors")
    assert said.code == 0
    assert "a saved run" in said.out and "model embedded, seed 3" in said.out
    assert "structure 5 steps, guidance 2.0" in said.out
    assert "coords: i32 [6, 4]" in said.out
    assert "trellis export run.safetensors" in said.out
    assert run("inspect", "run.safetensors", "--json").json["files"][0]["info"] == info


def test_a_saved_run_that_is_cut_off_is_bad_input(run, tmp_path):
    path = tmp_path / "run.safetensors"
    Bundle({"coords": torch.zeros(600, 4)}, {"model": MODEL}).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    said = run("inspect", "run.safetensors", "-q")
    said.assert_one_error(3)
    assert "cut off" in said.err


def test_gaussians_are_counted_and_bounded(run, tmp_path):
    count = 50
    cloud = Gaussians(
        torch.linspace(-0.4, 0.4, count)[:, None].expand(-1, 3) * torch.tensor([1, 0.5, 0.25]),
        torch.full((count, 3), 0.01),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, -1),
        torch.full((count, 1), 0.5),
        torch.zeros(count, 3),
    )
    save_field(cloud, tmp_path / "cloud.ply")
    said = run("inspect", "cloud.ply", "--json").json["files"][0]
    assert said["kind"] == "gaussians"
    assert said["count"] == count
    assert said["size"] == pytest.approx([0.8, 0.4, 0.2], abs=1e-5)
    assert "50 Gaussians" in run("inspect", "cloud.ply").out


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.glb", None, "does not exist"),
        ("empty.glb", b"", "is empty"),
        ("text.glb", b"hello, this is no mesh at all", "damaged"),
        ("points.obj", b"v 0 0 0\nv 1 0 0\n", "points.obj"),
        ("picture.png", b"\x89PNG", "unknown kind"),
        ("run.safetensors", b"\xff" * 64, "damaged"),
    ],
)
def test_bad_input_is_one_error_and_one_hint(run, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = run("inspect", name, "-q")
    said.assert_one_error(3)
    assert words in said.err


def test_a_later_file_that_is_missing_is_said_before_the_first_is_read(run, tmp_path):
    write_stl(cube(), tmp_path / "a.stl")
    said = run("inspect", "a.stl", "b.stl", "-q")
    said.assert_one_error(3)
    assert said.out == ""


def test_json_reports_an_error_as_an_object(run, tmp_path):
    said = run("inspect", "missing.glb", "--json")
    assert said.json["ok"] is False
    assert said.json["exit_code"] == 3


def test_only_commands_that_exist_are_advised(run, tmp_path):
    write_stl(cube([0, 1, 2]), tmp_path / "my box.stl")
    advice = run("inspect", "my box.stl", "--json").json["files"][0]["advice"]
    for command, _ in advice:
        words = shlex.split(command)
        assert words[0] == "trellis" and words[1] in COMMANDS
        assert "my box.stl" in words
        for option in (word for word in words if word.startswith("--")):
            assert report.has_option(words[1], option)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0.5, "m", "0.5 m"), (0.0005, "m", "0.5 mm"), (12.0, "mm", "12 mm"), (3.25, None, "3.25")],
)
def test_lengths_are_readable(value, unit, words):
    assert report.length(value, unit) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0%"), (1, "100%"), (1e-6, "< 0.1%"), (0.9999, "100.0%"), (0.25, "25%")]
)
def test_shares_are_never_rounded_to_nothing(value, words):
    assert report.share(value) == words
