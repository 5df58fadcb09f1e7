"""`trellis render`: files and saved runs of every kind to stills, sheets and films.

Properties: each kind of file is drawn; pictures are as large as was asked for and show the object; maps say
in JSON what they mean; a named view of a run shows the unit cube; what cannot be drawn costs one clear error,
before torch is imported where that is possible, and never a file. Pictures themselves are tested in
tests/unit/test_render_subjects.py, films in tests/unit/test_video.py.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from tests.tiny_trellis1 import write_tiny_trellis1
from trellis_cli import drawing, subjects
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import PBRVoxels
from trellis_core.io.fields import save_field
from trellis_core.io.voxel_files import pbr_to_bytes, write_voxels
from trellis_core.render.subject import MODES

RED, BLUE = [200, 30, 30, 255], [20, 40, 220, 255]


def box(color: list[int] | None = None, **place: object) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(extents=(0.5, 0.5, 0.5)).apply_translation(place.get("at", (0, 0, 0)))
    if color is not None:
        material = PBRMaterial(baseColorFactor=color, metallicFactor=0.0, roughnessFactor=0.7)
        mesh.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(mesh.vertices), 2)), material=material)
    return mesh


def write_glb(path: Path) -> None:
    trimesh.Scene([box(RED, at=(-0.3, 0, 0)), box(BLUE, at=(0.3, 0, 0))]).export(path)


def write_bare(path: Path) -> None:
    box().export(path)


def write_painted_vertices(path: Path) -> None:
    mesh = box()
    mesh.visual.vertex_colors = np.tile(np.array(RED, np.uint8), (len(mesh.vertices), 1))
    mesh.export(path)


def write_gaussians(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 60
    points = torch.rand(count, 3, generator=generator) * 0.5 - 0.25
    turned = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4)
    solid = torch.full((count, 1), 0.9)
    save_field(Gaussians(points, torch.full((count, 3), 0.08), turned, solid, points * 4), path)


def write_field(path: Path) -> None:
    axis = torch.arange(4)
    coords = torch.cartesian_prod(axis, axis, axis).int()
    count = len(coords)
    save_field(
        RadianceField(
            coords, torch.ones(count, 1, 3, 2), torch.full((count, 1), 90.0), torch.ones(count, 1, 3), 4
        ),
        path,
    )


def write_grid(path: Path) -> None:
    axis = torch.arange(2, 6)
    coords = torch.cartesian_prod(axis, axis, axis).int()
    write_voxels(path, coords, pbr_to_bytes(PBRVoxels(coords, torch.full((len(coords), 6), 0.8), 8)))


KINDS = {
    "two.glb": write_glb,
    "bare.stl": write_bare,
    "bare.obj": write_bare,
    "painted.ply": write_painted_vertices,
    "cloud.ply": write_gaussians,
    "cloud.splat": write_gaussians,
    "cloud.spz": write_gaussians,
    "field.safetensors": write_field,
    "grid.vxz": write_grid,
}


@pytest.fixture
def run(run):
    """`trellis` with kernels that need not be compiled; tests/unit shows that all of them draw the same."""
    plain = [word for name in ("rasterize", "splat", "march") for word in ("--kernel", f"{name}=torch")]
    return lambda *arguments: run(*arguments, *plain)


@pytest.fixture
def glb(tmp_path: Path) -> Path:
    write_glb(tmp_path / "two.glb")
    return tmp_path / "two.glb"


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).astype(int)


def shows_something(path: Path) -> bool:
    image = pixels(path)
    return bool(np.abs(image[:, image.shape[1] // 2] - image[:, :1].mean((0, 1))).max() > 20)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_drawn(run, tmp_path, name):
    KINDS[name](tmp_path / name)
    said = run("render", name, "-o", "still.png", "--view", "orbit", "--size", "48")
    assert said.out == "still.png\n", said.err
    assert Image.open(tmp_path / "still.png").size == (48, 48)
    assert shows_something(tmp_path / "still.png")


@pytest.mark.parametrize("name", KINDS)
def test_what_a_file_is_shows_without_torch(tmp_path, name):
    KINDS[name](tmp_path / name)
    expected = {"cloud": "gaussians", "field": "radiance field", "grid": "voxels"}
    assert subjects.kind_of(tmp_path / name) == expected.get(name.split(".")[0], "mesh")


def test_modes_are_those_of_the_renderer():
    assert {*drawing.MODES} == {*MODES, drawing.VOXELS}


def test_parts_keep_their_materials(run, glb, tmp_path):
    args = ("--mode", "base-color", "--view", "front", "--size", "96", "--background", "#00ff00")
    assert run("render", glb, "-o", "still.png", *args).code == 0
    image = pixels(tmp_path / "still.png")
    colors = {tuple(color) for color in image.reshape(-1, 3)}
    for factor in (RED, BLUE):  # linear in a GLB
        share = np.array(factor[:3]) / 255
        coded = np.where(share <= 0.0031308, share * 12.92, 1.055 * share ** (1 / 2.4) - 0.055) * 255
        assert min(np.abs(np.array(color) - coded).max() for color in colors) <= 2
    assert image[0, 0].tolist() == [0, 255, 0]


def test_a_file_of_any_size_and_place_fills_the_picture(run, tmp_path):
    box().apply_scale(4000).apply_translation((9000, 0, 5)).export(tmp_path / "far.stl")
    args = ("--mode", "mask", "--view", "front", "--size", "64")
    assert run("render", "far.stl", "-o", "still.png", *args).code == 0
    white = pixels(tmp_path / "still.png")[..., 0] > 127
    assert 0.7 < white.mean() < 0.98


def test_a_sheet_has_the_views_and_modes_that_were_asked_for(run, glb, tmp_path):
    args = ("--views", "2", "--mode", "color", "--mode", "normal", "--mode", "clay", "--size", "32")
    assert run("render", glb, "-o", "sheet.png", *args).code == 0
    assert Image.open(tmp_path / "sheet.png").size == (64, 96)


def test_without_options_an_asset_is_drawn_with_its_colors_and_bare(run, glb, tmp_path):
    assert run("render", glb, "--size", "24").out == "two.png\n"
    assert Image.open(tmp_path / "two.png").size == (4 * 24, 2 * 24)


def test_a_transparent_picture_has_alpha(run, glb, tmp_path):
    args = ("--view", "front", "--size", "48", "--background", "transparent")
    assert run("render", glb, "-o", "still.png", *args).code == 0
    image = pixels(tmp_path / "still.png")
    assert image.shape == (48, 48, 4) and image[0, 0, 3] == 0 and image[24, 14, 3] == 255


def test_depth_pictures_say_in_json_what_they_mean(run, glb, tmp_path):
    args = ("--mode", "depth", "--view", "front", "--size", "64", "--json")
    output = run("render", glb, "-o", "depth.png", *args).json["outputs"][0]
    assert output["path"] == "depth.png" and output["pictures"] == 1
    near, far = output["depth"][0]
    assert 0 < near < far


def test_light_comes_from_a_picture(run, glb, tmp_path):
    sky = np.zeros((16, 32, 3), np.uint8)
    sky[:8, :] = (60, 60, 255)
    Image.fromarray(sky).save(tmp_path / "sky.png")
    args = ("render", glb, "--view", "front", "--size", "48")
    assert run(*args, "-o", "blue.png", "--environment", "sky.png").code == 0
    assert run(*args, "-o", "even.png", "--environment", "even").code == 0
    blue, even = (pixels(tmp_path / name)[24, 14] for name in ("blue.png", "even.png"))
    assert blue[0] / max(blue[2], 1) < even[0] / max(even[2], 1)  # red box, blue light
    assert run(*args, "-o", "dark.png", "--environment", "even", "--exposure", "0.2").code == 0
    assert pixels(tmp_path / "dark.png")[24, 14].sum() < even.sum()


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_films_turn_once_around_the_object(run, glb, tmp_path, suffix):
    if suffix == ".mp4" and find_spec("av") is None:
        pytest.skip("MP4 needs the package `av`")
    said = run("render", glb, "-o", f"turn{suffix}", "--frames", "4", "--seconds", "1", "--size", "32")
    assert said.out == f"turn{suffix}\n", said.err
    if suffix == ".mp4":
        import av

        with av.open(str(tmp_path / "turn.mp4")) as film:
            assert len(list(film.decode(video=0))) == 4
    else:
        film = Image.open(tmp_path / f"turn{suffix}")
        assert film.n_frames == 4 and film.size == (32, 32)


# --- saved runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_v2(tmp_path_factory, tiny_model) -> Path:
    import trellis2
    from trellis_core.runtime import Runtime

    path = tmp_path_factory.mktemp("runs") / "run.safetensors"
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 60, 40, 255), (12, 12, 52, 52))
    pipeline = trellis2.load(str(tiny_model), Runtime())
    few = {"steps": 1}
    pipeline.sample(picture, structure=few, shape=few, texture=few).save(path)
    return path


@pytest.fixture(scope="module")
def saved_v1(tmp_path_factory) -> tuple[Path, Path]:
    import trellis
    from trellis_core.runtime import Runtime

    folder = write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "model")
    picture = Image.new("RGBA", (64, 64))
    picture.paste((200, 60, 40, 255), (12, 12, 52, 52))
    bundle = trellis.load(str(folder), Runtime()).sample(picture)
    return bundle.save(folder.parent / "run.safetensors"), folder


@pytest.mark.parametrize("form", ["mesh", "voxels"])
def test_a_run_is_drawn_as_mesh_and_as_voxels(run, saved_v2, tiny_model, tmp_path, form):
    args = ("--as", form, "--view", "front", "--size", "32", "-o", "still.png", "--model", tiny_model)
    said = run("render", saved_v2, *args)
    assert said.code == 0, said.err
    assert shows_something(tmp_path / "still.png")


def test_a_sheet_of_a_run_has_a_row_of_voxels(run, saved_v2, tiny_model, tmp_path):
    said = run("render", saved_v2, "--size", "24", "--views", "3", "-o", "sheet.png", "--model", tiny_model)
    assert said.code == 0, said.err
    assert Image.open(tmp_path / "sheet.png").size == (3 * 24, 3 * 24)


@pytest.mark.parametrize("form", ["auto", "radiance-field", "voxels"])
def test_a_run_of_trellis_1_is_drawn_as_all_that_it_decodes_to(run, saved_v1, tmp_path, form):
    bundle, model = saved_v1
    args = ("--as", form, "--view", "front", "--size", "24", "-o", "still.png", "--model", model)
    said = run("render", bundle, *args)
    assert said.code == 0, said.err


def test_a_view_of_a_run_shows_the_unit_cube_unless_told_otherwise(run, saved_v2, tiny_model, tmp_path):
    args = ("render", saved_v2, "--view", "front", "--mode", "mask", "--size", "48", "--model", tiny_model)
    assert run(*args, "-o", "cube.png").code == 0
    assert run(*args, "-o", "object.png", "--frame", "object").code == 0
    assert run(*args, "-o", "same.png", "--frame", "cube").code == 0
    assert (pixels(tmp_path / "cube.png") == pixels(tmp_path / "same.png")).all()
    shares = [(pixels(tmp_path / name)[..., 0] > 127).mean() for name in ("cube.png", "object.png")]
    assert shares[0] <= shares[1]


# --- what cannot be drawn ----------------------------------------------------------------------------


def no_faces(path: Path) -> None:
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")


def points_only(path: Path) -> None:
    trimesh.PointCloud(np.random.default_rng(0).random((9, 3))).export(path)


def one_place(path: Path) -> None:
    trimesh.Trimesh(np.ones((3, 3)), [[0, 1, 2]], process=False).export(path)


def not_numbers(path: Path) -> None:
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    header += b"property float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    corners = struct.pack("<9f", 0, 0, float("nan"), 1, 0, 0, 0, 1, 0)
    path.write_bytes(header + corners + struct.pack("<B3i", 3, 0, 1, 2))


def foreign_tensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path)


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mesh.obj", no_faces),
        ("mesh.ply", points_only),
        ("mesh.stl", one_place),
        ("mesh.ply", not_numbers),
        ("mesh.glb", lambda path: path.write_bytes(b"gl" + bytes(40))),
        ("cloud.splat", lambda path: path.write_bytes(bytes(33))),
        ("cloud.spz", lambda path: path.write_bytes(b"no")),
        ("grid.vxz", lambda path: path.write_bytes(b"no")),
        ("run.safetensors", foreign_tensors),
        ("run.safetensors", huge_header),
        ("notes.txt", lambda path: path.write_text("notes")),
        ("gone.glb", lambda path: None),
    ],
)
def test_what_cannot_be_drawn_is_said_and_leaves_no_file(run, tmp_path, name, make):
    make(tmp_path / name)
    run("render", name, "-o", "still.png", "--quiet").assert_one_error(3)
    assert not (tmp_path / "still.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mode", "colour"),
        ("--mode", "voxels"),
        ("--view", "above"),
        ("--view", "front", "--views", "3"),
        ("--view", "front", "--pitch", "3"),
        ("--frames", "9"),
        ("--background", "greyish"),
        ("--as", "voxels"),
        ("-o", "still.jpg", "--background", "transparent"),
        ("-o", "film.gif", "--view", "front"),
        ("-o", "film.gif", "--views", "3"),
        ("-o", "film.gif", "--mode", "color", "--mode", "clay"),
        ("-o", "film.mp4", "--background", "transparent"),
        ("-o", "film.mp4", "--size", "33"),
        ("-o", "film.avi"),
        ("--size", "9"),
        ("--views", "0"),
        ("--exposure", "nan"),
        ("--frame", "sky"),
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_refused(run, glb, tmp_path, arguments):
    run("render", glb, *arguments, "--quiet").assert_one_error(2)
    assert [path.name for path in tmp_path.iterdir()] == ["two.glb"]


def test_a_mode_that_a_file_has_not_is_refused_with_those_that_it_has(run, tmp_path):
    write_gaussians(tmp_path / "cloud.ply")
    said = run("render", "cloud.ply", "--mode", "metallic", "--quiet")
    said.assert_one_error(2)
    assert "normal" in said.err


def test_surroundings_that_are_no_picture_are_bad_input(run, glb, tmp_path):
    (tmp_path / "sky.hdr").write_text("no")
    run("render", glb, "--environment", "sky.hdr", "--quiet").assert_one_error(3)
    run("render", glb, "--environment", "gone.hdr", "--quiet").assert_one_error(3)


def test_a_picture_that_does_not_fit_into_memory_is_refused_at_once(run, glb, monkeypatch):
    monkeypatch.setattr(drawing, "COPIES", 1 << 40)
    said = run("render", glb, "--size", "8192", "--quiet")
    said.assert_one_error(5)
    assert "--size" in said.err


def test_an_existing_picture_is_kept(run, glb, tmp_path):
    (tmp_path / "two.png").write_text("mine")
    run("render", glb, "--quiet").assert_one_error(7)
    assert (tmp_path / "two.png").read_text() == "mine"
    assert run("render", glb, "--view", "front", "--size", "16", "--force").code == 0


def test_wrong_options_and_files_are_reported_without_waiting_for_torch(glb):
    program = "import sys; from trellis_cli.app import main; code = main(sys.argv[1:]); "
    program += "print(code, 'torch' in sys.modules)"
    for arguments, code in ((["--mode", "colour"], 2), (["--background", "x"], 2), (["-o", "a.avi"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, "render", str(glb), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [str(code), "False"], done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals")
def test_ctrl_c_ends_a_film_without_a_file(glb, tmp_path):
    command = [sys.executable, "-m", "trellis_cli", "render", str(glb), "-o", "turn.webp", "--json-events"]
    command += ["--frames", "2000", "--size", "32", "--kernel", "rasterize=torch"]  # nothing to compile
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            event = json.loads(line)
            if event.get("stage") == "render" and event["step"] > 1:
                running.send_signal(signal.SIGINT)
                break
        running.communicate(timeout=60)
    assert running.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["two.glb"]
