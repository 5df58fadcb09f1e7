"""Presets: what each file gets, the same alone and together, for both model versions and for meshes.

Properties: a file that holds no texture costs no unwrapping and no baking; a preset gives the same asset
whichever others are asked for; TRELLIS v1 results take every option that TRELLIS.2 results take.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image

from tests.shapes import dual_grid, torus
from tests.tiny_trellis1 import write_tiny_trellis1
from trellis_cli.asset_options import AssetFlags, AssetOptions
from trellis_cli.delivery import Order
from trellis_core.errors import UsageError
from trellis_core.geometry.asset import FINE, ExportSettings, build_assets, reduce_in_steps
from trellis_core.geometry.types import Asset
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=Kernels({"rasterize": "warp", "closest_point": "warp", "ray_cast": "warp"}))
SMALL = {"faces": 800, "texture_size": 64}


def order_for(name: str, **flags) -> Order:
    asset = AssetOptions.read(AssetFlags(**flags))
    return Order.check(
        Path("run.safetensors"), Path(name), asset=asset, preview=None, strict=False, force=True
    )


def build(*wanted: ExportSettings, runtime: Runtime = RUNTIME) -> list[Asset]:
    made = dict(build_assets(dual_grid(torus(), 24), wanted, runtime=runtime))
    return [made[number] for number in range(len(wanted))]


# --- files without colors ---


@pytest.mark.parametrize(
    ("name", "flags", "textured"),
    [
        ("a.stl", {}, False),
        ("a.stl", {"preset": ["print"]}, False),
        ("a.stl", {"preset": ["web,print"]}, False),
        ("a.stl", {"format": ["stl,glb"]}, True),
        ("a.3mf", {"preset": ["print"]}, True),
        ("a.ply", {}, True),
    ],
)
def test_a_texture_is_made_only_when_a_file_can_show_it(name, flags, textured):
    settings = [each for levels in order_for(name, **flags).all_settings() for each in levels]
    assert all(each.textured is textured for each in settings)


@pytest.mark.parametrize("solid", [False, True])
def test_an_asset_without_texture_is_neither_unwrapped_nor_baked(solid):
    steps: list = []
    settings = ExportSettings(**SMALL, textured=False, solid=solid, height_mm=20, wall_mm=2)
    (asset,) = build(settings, runtime=RUNTIME.reporting(steps.append))
    assert {step.stage for step in steps} & {"unwrap", "bake"} == set()
    assert asset.mesh.uvs is None
    assert asset.mesh.normals is not None
    assert asset.quality.passed
    assert not [name for name in asset.quality.metrics if name.startswith("uv_")]


def test_an_asset_without_texture_has_the_shape_of_the_textured_one():
    bare, textured = build(ExportSettings(**SMALL, textured=False), ExportSettings(**SMALL))
    corners = [asset.mesh.vertices[asset.mesh.faces.long()].reshape(-1, 9) for asset in (bare, textured)]
    assert torch.equal(*(torch.unique(each, dim=0) for each in corners))


@pytest.mark.parametrize("change", ["texture_size", "alpha", "texture_format", "normal_map", "ambient"])
def test_options_about_colors_are_refused_for_files_without(change):
    asset = AssetOptions(changes={change: "given"})
    with pytest.raises(UsageError, match=r"`\.stl` files have no colors") as refused:
        asset.suffixes(Path("a.stl"))
    assert "a.glb" in refused.value.hint


# --- alone and together ---


def test_a_preset_gives_the_same_asset_alone_and_with_others():
    wanted = [ExportSettings(faces=faces, texture_size=64) for faces in (3000, 700, 300)]
    for alone, together in zip([build(each)[0] for each in wanted], build(*wanted), strict=True):
        for name in ("vertices", "faces", "uvs", "normals"):
            assert torch.equal(getattr(alone.mesh, name), getattr(together.mesh, name)), name
        assert torch.equal(alone.material.base_color, together.material.base_color)


def test_the_way_to_a_face_target_halves_and_is_walked_once():
    mesh = dual_grid(torus(), 48).mesh
    done: dict = {}
    first = reduce_in_steps(mesh, 700, 1 / 48, RUNTIME, done)
    halves = [count for count in done if count != 700]
    assert halves == [FINE >> step for step in range(20) if 700 < FINE >> step < len(mesh.faces)]
    assert len(first.faces) <= 700
    before = dict(done)
    reduce_in_steps(mesh, 300, 1 / 48, RUNTIME, done)
    assert all(done[count] is before[count] for count in before)


# --- TRELLIS v1 ---


@pytest.fixture(scope="module")
def old_run(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny TRELLIS v1 model and a run of it."""
    from trellis_cli.app import main

    folder = tmp_path_factory.mktemp("v1")
    model = write_tiny_trellis1(folder / "model")
    image = Image.new("RGBA", (80, 80))
    image.paste((20, 160, 60, 255), (15, 20, 65, 75))
    image.save(folder / "box.png")
    more = ("--steps", 1, "--latent-steps", 1, "--save-bundle", folder / "run.safetensors", "-q")
    arguments = ("generate", folder / "box.png", "--model", model, "-o", folder / "x.spz", *more)
    assert main([str(each) for each in arguments]) == 0
    return model, folder / "run.safetensors"


SMALL_OPTIONS = ("--faces", 200, "--texture", 64)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--preset", "game,lowpoly", "--format", "glb,obj"), ["a-game.glb", "a-game.obj", "a-lowpoly.glb"]),
        (("--lods", 2, "--quantize"), ["a.glb"]),
        (("--normal-map", "--ao", "--texture-format", "png"), ["a.glb"]),
        (("--color-from", "radiance-field", "--alpha", "mask"), ["a.glb"]),
    ],
)
def test_results_of_trellis_v1_take_the_same_options(run, old_run, tmp_path, options, names):
    model, bundle = old_run
    made = run(
        "export", bundle, "--model", model, "--as", "mesh", "-o", "a.glb", *options, *SMALL_OPTIONS, "--json"
    )
    assert made.code == 0, made.err
    assert set(names) <= {output["path"] for output in made.json["outputs"]}
    assert all(output["texture"] == 64 for output in made.json["outputs"] if output["faces"])


def test_results_of_trellis_v1_are_packed_with_draco(run, old_run, tmp_path):
    pytest.importorskip("DracoPy", reason="the extra `draco` is not installed")
    model, bundle = old_run
    made = run("export", bundle, "--model", model, "-o", "a.glb", "--draco", *SMALL_OPTIONS)
    assert made.code == 0, made.err
    assert b"KHR_draco_mesh_compression" in (tmp_path / "a.glb").read_bytes()


def test_results_of_trellis_v1_are_not_unwrapped_for_stl(run, old_run, tmp_path):
    model, bundle = old_run
    made = run(
        "export", bundle, "--model", model, "-o", "a.stl", "--faces", 200, "--height", "20mm", "--json"
    )
    assert made.code == 0, made.err
    (output,) = made.json["outputs"]
    assert output["texture"] == 0
    assert output["size_mm"][2] == pytest.approx(20)
    assert len(trimesh.load_mesh(tmp_path / "a.stl").faces) == output["faces"]
    assert not {stage["stage"] for stage in made.json["stages"]} & {"unwrap", "bake"}


# --- what the file says ---


def test_a_glb_holds_the_report_that_was_printed(run, old_run, tmp_path):
    model, bundle = old_run
    made = run("export", bundle, "--model", model, "-o", "a.glb", *SMALL_OPTIONS, "--json")
    data = (tmp_path / "a.glb").read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    kept = document["asset"]["extras"]["quality"]
    said = made.json["outputs"][0]["quality"]
    assert (kept["passed"], kept["problems"]) == (said["passed"], said["problems"])
    assert kept["metrics"]["faces"] == said["metrics"]["faces"]


def test_inspect_and_the_report_agree(run, tmp_path):
    (asset,) = build(ExportSettings(**SMALL))
    from trellis_core.io import save_asset

    save_asset(asset, tmp_path / "a.glb")
    said = run("inspect", "a.glb", "--json").json["files"][0]
    for name in ("faces", "boundary_edges", "non_manifold_edges", "closed", "watertight", "components"):
        assert said["metrics"][name] == asset.quality.metrics[name], name
    assert said["passed"] == asset.quality.passed


def test_a_closed_surface_that_touches_itself_is_called_closed(run, tmp_path):
    cubes = [trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))]
    cubes[1].apply_translation([1, 1, 0])  # they share one edge
    trimesh.util.concatenate(cubes).export(tmp_path / "two.stl")
    said = run("inspect", "two.stl")
    assert "closed, without open borders; it touches itself along 1 edge" in said.out
    assert "not watertight" not in said.out


# --- wrong files ---


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (("convert", "run.safetensors"), "a saved run, not a mesh", "trellis export run.safetensors"),
        (("export", "box.stl"), "a mesh, not a saved run", "trellis convert box.stl"),
        (("convert", "picture.glb"), "does not begin as a GLB does", "export it again"),
        (("convert", "cut.glb"), "it is cut off", "export it again"),
        (("convert", "point.obj"), "`point.obj`: all its vertices lie in one point", "repair it"),
        (("inspect", "folder"), "is a directory, not an asset", "pass one"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_the_next_command(run, tmp_path, arguments, said, hint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.safetensors").write_bytes(b"12345678{}")
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "box.stl")
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "cut.glb")
    (tmp_path / "cut.glb").write_bytes((tmp_path / "cut.glb").read_bytes()[:-100])
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.glb", format="PNG")
    (tmp_path / "point.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    more = () if arguments[0] == "inspect" else ("-o", "out.glb")
    made = run(*arguments, *more)
    made.assert_one_error(3)
    assert said in made.err
    assert hint in made.err
    assert not (tmp_path / "out.glb").exists()
