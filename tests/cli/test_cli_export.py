"""`trellis export` and `trellis convert`: formats, presets, levels of detail, and what is refused at once.

Properties: several presets and formats come out of one call; names say which is which; nothing is overwritten
unasked; every mistake is one error with a hint.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from trellis_cli import asset_options
from trellis_cli.asset_options import AssetFlags, AssetOptions, level_settings, millimeters
from trellis_core.errors import UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_model):
    """A run of a tiny model."""
    from trellis_cli.app import main

    folder = tmp_path_factory.mktemp("bundle")
    picture = folder / "box.png"
    image = Image.new("RGBA", (96, 96))
    image.paste((200, 40, 30, 255), (20, 30, 76, 80))
    image.save(picture)
    path = folder / "box.safetensors"
    arguments = ["--model", tiny_model, "--steps", 1, "--texture", 64, "--faces", 200, "-q"]
    outputs = ["-o", folder / "x.glb", "--save-bundle", path]
    assert main([str(a) for a in ("generate", picture, *arguments, *outputs)]) == 0
    return path


@pytest.fixture
def cube(tmp_path):
    """A textured cube of 1 m with all its texture coordinates, and a bare one."""
    mesh = trimesh.creation.box((1, 1, 1))
    mesh = mesh.subdivide().subdivide()
    uv = np.stack([mesh.vertices[:, 0] + 0.5, mesh.vertices[:, 1] + 0.5], 1)
    image = Image.new("RGB", (64, 64), (200, 40, 30))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh.export(tmp_path / "cube.glb")
    trimesh.creation.box((20, 20, 20)).export(tmp_path / "bare.stl")
    return tmp_path


def part_of(path) -> trimesh.Trimesh:
    (part,) = trimesh.load_scene(path).dump()
    return part


# --- export ---


def test_presets_and_formats_come_out_of_one_call(run, bundle, tiny_model, tmp_path):
    few = ("--texture", 64, "--faces", 300, "--model", tiny_model)
    made = run(
        "export", bundle, "-o", "a.glb", "--preset", "game,mobile", "--format", "glb,obj", *few, "--json"
    )
    assert made.code == 0, made.err
    names = ["a-game.glb", "a-game.obj", "a-mobile.glb", "a-mobile.obj"]
    assert sorted(output["path"] for output in made.json["outputs"]) == names
    assert {output["preset"] for output in made.json["outputs"]} == {"game", "mobile"}
    assert all((tmp_path / name).is_file() for name in names)
    stages = [stage["stage"] for stage in made.json["stages"]]
    assert stages.count("decode") == stages.count("clean") == 1


def test_levels_of_detail_are_in_a_glb_and_beside_an_stl(run, bundle, tiny_model, tmp_path):
    few = ("--texture", 64, "--faces", 400, "--model", tiny_model)
    made = run("export", bundle, "-o", "a.glb", "--format", "glb,stl", "--lods", 2, *few, "--json")
    assert made.code == 0, made.err
    outputs = {output["path"]: output for output in made.json["outputs"]}
    assert set(outputs) == {"a.glb", "a.stl", "a-lod1.stl"}
    fine, coarse = outputs["a.glb"]["lods"]
    assert coarse < fine / 2
    assert len(part_of(tmp_path / "a-lod1.stl").faces) == coarse


def test_existing_files_of_any_preset_are_kept(run, bundle, tmp_path):
    (tmp_path / "a-mobile.usdz").write_text("mine")
    made = run("export", bundle, "-o", "a.glb", "--preset", "game,mobile", "--format", "glb,usdz")
    made.assert_one_error(7)
    assert "a-mobile.usdz" in made.err
    assert (tmp_path / "a-mobile.usdz").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "blend"), "glb, gltf, obj, stl, ply, 3mf, usdz"),
        (("--preset", "huge"), "max, web, game, mobile, lowpoly, print"),
        (("-o", "a.glb", "--format", "usdz"), "a.usdz"),
        (("-o", "a.stl", "--quantize"), "glTF"),
        (("-o", "a.obj", "--draco"), "glTF"),
        (("--draco", "--quantize"), "not both"),
        (("--height", "tall"), "80mm"),
        (("--height", "0mm"), "out of reach"),
        (("--wall", "2mm"), "--preset print"),
        (("--preset", "print", "--lods", "3"), "levels of detail"),
        (("--lods", "0"), "lods"),
        (("--as", "gaussians", "--lods", "2"), "meshes"),
        (("--as", "gaussians", "--normal-map"), "meshes"),
        (("-o", "a.xyz"), ".glb"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(run, bundle, options, said):
    made = run("export", bundle, *options)
    assert made.code == 2, made.err
    assert said in made.err
    assert "hint:" in made.err


@pytest.mark.parametrize(("what", "extra"), [("--draco", "draco"), (".usdz", "usd")])
def test_a_missing_package_is_named_before_any_work(run, bundle, monkeypatch, what, extra):
    monkeypatch.setattr(asset_options, "find_spec", lambda name: None)
    options = ("--draco",) if what == "--draco" else ("-o", "a.usdz")
    made = run("export", bundle, *options)
    made.assert_one_error(2)
    assert f"trellis-cli[{extra}]" in made.err


@pytest.mark.parametrize(
    ("text", "value"), [("80mm", 80), ("8cm", 80), ("0.08m", 80), ("2in", 50.8), ("80", 80), (" 1.5 CM ", 15)]
)
def test_lengths_are_read_with_their_unit(text, value):
    assert millimeters("--height", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "mm", "8 feet", "-8mm", "8,5mm", "nan", "1e9m"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(UsageError):
        millimeters("--height", text)


def test_levels_have_a_quarter_of_the_faces_and_half_the_texture():
    settings = {"faces": 4000, "texture_size": 1024, "alpha": "auto"}
    assert level_settings(settings, 0) == settings
    assert level_settings(settings, 2) == {"faces": 250, "texture_size": 256, "alpha": "auto"}
    assert level_settings(settings, 7)["faces"] == 64


def test_names_may_be_repeated_or_listed():
    options = AssetOptions.read(AssetFlags(format=["glb,.USDZ", "glb"], preset=["web", "mobile,web"]))
    assert options.formats == (".glb", ".usdz")
    assert options.presets == ("web", "mobile")
    assert options.given == ["--format", "--preset"]


# --- convert ---


@pytest.mark.parametrize("suffix", [".gltf", ".obj", ".stl", ".ply", ".3mf"])
def test_a_mesh_is_written_in_another_format_as_it_is(run, cube, suffix):
    made = run("convert", "cube.glb", "-o", f"out{suffix}", "--json")
    assert made.code == 0, made.err
    part = part_of(cube / f"out{suffix}")
    assert len(part.faces) == made.json["outputs"][0]["faces"] == 192
    meters = suffix in (".gltf", ".obj")
    assert max(part.extents) == pytest.approx(1 if meters else 1000, rel=1e-5)


def test_a_mesh_keeps_its_place_size_and_color_when_it_is_simplified(run, cube):
    scene = trimesh.load_scene(cube / "cube.glb")
    scene.apply_translation([3, 5, -7])
    scene.export(cube / "far.glb")
    made = run("convert", "far.glb", "-o", "less.glb", "--faces", 40, "--texture", 64, "--json")
    assert made.code == 0, made.err
    part = part_of(cube / "less.glb")
    assert len(part.faces) <= 40
    assert np.allclose(part.bounds, [[2.5, 4.5, -7.5], [3.5, 5.5, -6.5]], atol=1e-3)
    color = np.array(part.visual.material.baseColorTexture.convert("RGB")).reshape(-1, 3)
    assert np.abs(np.median(color, axis=0) - [200, 40, 30]).max() <= 3


def test_several_materials_become_one_texture(run, cube):
    red, blue = (trimesh.creation.box((1, 1, 1)) for _ in range(2))
    for box, color in ((red, [255, 0, 0, 255]), (blue, [0, 0, 255, 255])):
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=color)
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(box.vertices), 2)), material=material)
    blue.apply_translation([3, 0, 0])
    trimesh.Scene([red, blue]).export(cube / "two.glb")
    made = run("convert", "two.glb", "-o", "one.glb", "--texture", 128)
    assert made.code == 0, made.err
    assert "2 materials" in made.err
    part = part_of(cube / "one.glb")
    image = np.array(part.visual.material.baseColorTexture.convert("RGB"))
    middle, uv = part.triangles_center, part.visual.uv[part.faces].mean(1)
    texel = image[((1 - uv[:, 1]) * 128).astype(int), (uv[:, 0] * 128).astype(int)]
    assert (texel[middle[:, 0] < 1, 0] > 200).all()
    assert (texel[middle[:, 0] > 1, 2] > 200).all()


def test_a_bare_mesh_gets_no_texture(run, cube):
    made = run("convert", "bare.stl", "-o", "bare.glb", "--json")
    assert made.code == 0, made.err
    assert made.json["outputs"][0]["texture"] == 0
    assert made.json["outputs"][0]["size_mm"] == [20, 20, 20]
    assert max(part_of(cube / "bare.glb").extents) == pytest.approx(0.02)
    refused = run("convert", "bare.stl", "-o", "b.glb", "--texture", 512)
    refused.assert_one_error(2)


def test_height_gives_a_size(run, cube):
    made = run("convert", "cube.glb", "-o", "small.stl", "--height", "8cm", "--json")
    assert made.code == 0, made.err
    assert np.allclose(part_of(cube / "small.stl").extents, 80, rtol=1e-5)


def test_a_hole_is_closed_by_repair(run, cube):
    mesh = trimesh.load_mesh(cube / "bare.stl").subdivide().subdivide().subdivide()
    mesh.update_faces(np.arange(len(mesh.faces)) != 100)
    mesh.export(cube / "open.stl")
    assert run("convert", "open.stl", "-o", "as-is.stl").code == 0
    made = run("convert", "open.stl", "-o", "closed.stl", "--repair")
    assert made.code == 0, made.err
    assert not part_of(cube / "as-is.stl").is_watertight
    assert part_of(cube / "closed.stl").is_watertight


def test_a_print_is_one_closed_solid_of_the_height(run, cube, monkeypatch):
    monkeypatch.setattr(
        "trellis_core.geometry.print.DETAIL", 24
    )  # voxels over the height: seconds, not minutes
    few = ("--faces", 1_000_000, "--wall", "2mm")
    made = run("convert", "bare.stl", "-o", "p.stl", "--preset", "print", "--height", "15mm", *few)
    assert made.code == 0, made.err
    part = part_of(cube / "p.stl")
    assert part.is_watertight
    assert part.extents[2] == pytest.approx(15, rel=1e-3)
    assert part.volume == pytest.approx(15**3, rel=0.05)


@pytest.mark.parametrize("name", ["no.glb", "empty.glb", "broken.glb", "points.obj", "thing.blend"])
def test_what_is_no_mesh_is_one_error(run, cube, name):
    (cube / "empty.glb").write_bytes(b"")
    (cube / "broken.glb").write_bytes(b"not a model")
    (cube / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    (cube / "thing.blend").write_bytes(b"BLENDER")
    made = run("convert", name, "-o", "x.glb")
    made.assert_one_error(3)
    assert not (cube / "x.glb").exists()


def test_a_mesh_is_not_written_over_itself(run, cube):
    made = run("convert", "cube.glb", "--quantize")
    assert made.code == 0, made.err
    assert made.out.strip() == "cube-converted.glb"
    run("convert", "cube.glb", "-o", "cube.glb").assert_one_error(7)


def test_provenance_names_the_source(run, cube):
    run("convert", "cube.glb", "-o", "b.gltf")
    assert json.loads((cube / "b.gltf").read_text())["asset"]["extras"]["source"] == "cube.glb"
