"""`variant`, `edit` and `texture` from end to end: the embedded model at two steps, a tiny one for the rest.

Properties: each starts from files and leaves files, named after their source; an edit says how many voxels
changed inside and outside, none outside, and its result is a run that can be edited again; wrong input is
named, before the model is loaded where it can be, and nothing is written.
Not tested: what results look like; how regions are written (test_cli_regions.py).
"""

from __future__ import annotations

import json
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import trellis2
from tests.tiny_trellis1 import write_tiny_trellis1
from trellis_core.io.meshes import read_mesh
from trellis_core.weights.bundle import Bundle

FEW = {"steps": 2}
GRID = 4  # cells of the tiny model's structure
FAST = ("--steps", 2, "--texture", 64, "--faces", 500)


def extras_of(path: Path) -> dict:
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size])["asset"]["extras"]


def sampled(model: str | Path, **samplers: dict) -> Bundle:
    return trellis2.load(model).sample(prompt="a red chair", seed=3, **samplers)


@pytest.fixture(scope="module")
def red_chair() -> Bundle:
    """Of the embedded model."""
    return sampled("embedded", structure=FEW, shape=FEW, texture=FEW)


@pytest.fixture(scope="module")
def fragments(tiny_model) -> Bundle:
    return sampled(tiny_model)


@pytest.fixture
def chair(fragments, tmp_path) -> Path:
    return fragments.save(tmp_path / "chair.safetensors")


@pytest.fixture
def fast(tiny_model) -> tuple[object, ...]:
    return ("--model", tiny_model, *FAST, "-q")


@pytest.fixture
def box(tmp_path) -> Path:
    """A box far from the origin and far from the unit cube's size."""
    mesh = trimesh.creation.box((100, 200, 50))
    mesh.apply_translation([1000, 0, 0])
    mesh.export(tmp_path / "box.stl")
    return tmp_path / "box.stl"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- edit ---


def test_an_edit_changes_the_inside_and_leaves_the_outside_voxel_for_voxel(run, red_chair, tmp_path):
    chair = red_chair.save(tmp_path / "chair.safetensors")
    more = ("--region", "top:0.4", "--save-bundle", "new.safetensors", "--preview", "sheet.png")
    said = run("edit", chair, "a tall blue chair", *more, *FAST)
    assert said.code == 0, said.err
    assert said.out == "chair-edited.glb\n"
    lines = {line.split()[0]: line for line in said.err.splitlines() if line}
    assert lines["region"].startswith("region     top:0.4: ")
    assert "voxels before" in lines["inside"]
    assert "; 0 changed" in lines["outside"]

    edited = Bundle.load(tmp_path / "new.safetensors")
    facts = edited.info["edit"]
    assert facts["voxels"]["outside_changed"] == 0
    assert facts["voxels"]["inside_changed"] > 0
    cut = facts["regions"][0]["low"][2]
    assert voxels_below(edited, cut) == voxels_below(red_chair, cut)
    assert extras_of(tmp_path / "chair-edited.glb")["model"]["name"] == "embedded"
    with Image.open(tmp_path / "sheet.png") as sheet:
        before, region, after = np.split(np.asarray(sheet.convert("RGB"), dtype=float), 3)
    assert np.abs(before - region).max() > 50
    assert np.abs(before - after).max() > 50


def voxels_below(bundle: Bundle, height: float) -> set[tuple[int, ...]]:
    coords = bundle.tensors["structure_coords"]
    grid = bundle.info["edit"]["voxels"]["resolution"] if "edit" in bundle.info else 16
    centers = (coords[:, 3] + 0.5) / grid - 0.5
    return {tuple(row) for row in coords[centers < height].tolist()}


def test_an_edited_run_can_be_edited_again_and_says_its_numbers_to_scripts(
    run, chair, fast, picture, tmp_path
):
    first = run("edit", chair, "a chair", "--region", "left", "--save-bundle", "a.safetensors", *fast)
    assert first.code == 0, first.err
    regions = ("--region", "sphere:0,0,0.3,0.2", "--region", "box:0,-0.5,-0.5,0.5,0.5,0")
    more = (*regions, "--preserve-texture", "--image", picture, "--json", "-o", "b.glb")
    said = run("edit", "a.safetensors", *more, *fast)
    assert said.code == 0, said.err
    facts = said.json["edit"]
    assert [region["kind"] for region in facts["regions"]] == ["sphere", "box"]
    assert facts["preserve_texture"] is True
    assert facts["condition"]["kind"] == "picture"
    assert facts["voxels"]["outside_changed"] == 0


def test_a_region_in_free_space_is_allowed(run, chair, fast, fragments):
    taken = {tuple(cell) for cell in fragments.tensors["structure_coords"][:, 1:].tolist()}
    free = next(cell for cell in product(range(GRID), repeat=3) if cell not in taken)
    low, high = ([(c + d) / GRID - 0.5 for c in free] for d in (0.1, 0.9))
    corners = ",".join(map(str, (*low, *high)))
    said = run("edit", chair, "a chair", "--region", f"box:{corners}", "--json", *fast)
    assert said.code == 0, said.err
    voxels = said.json["edit"]["voxels"]
    assert (voxels["cells"], voxels["inside_before"], voxels["outside_changed"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "region",
    ["box:2,2,2,3,3,3", "sphere:0,0,0,0.001", "box:-9,-9,-9,-0.6,9,9"],
    ids=["far", "tiny", "beside"],
)
def test_a_region_without_a_cell_is_bad_input(run, chair, fast, tmp_path, region):
    before = files_in(tmp_path)
    said = run("edit", chair, "a chair", "--region", region, *fast)
    said.assert_one_error(3)
    assert "holds no cell" in said.err
    assert files_in(tmp_path) == before


def test_a_mask_may_be_painted_from_any_view(run, chair, fast, tmp_path):
    mask = Image.new("L", (300, 300))
    mask.paste(255, (0, 0, 300, 150))
    mask.save(tmp_path / "mask.png")
    said = run("edit", chair, "a chair", "--region", "mask.png", "--mask-view", "30,20", "--json", *fast)
    assert said.code == 0, said.err
    assert said.json["edit"]["voxels"]["outside_changed"] == 0


def test_a_mask_that_is_not_square_is_bad_input(run, chair, fast, tmp_path):
    Image.new("L", (64, 32), 255).save(tmp_path / "mask.png")
    said = run("edit", chair, "a chair", "--region", "mask.png", *fast)
    said.assert_one_error(3)
    assert "64 x 32 pixels" in said.err


WRONG = {
    "no region": ((), 2, "no region says what to change"),
    "no such region": (("--region", "legs"), 2, "is no region"),
    "missing mask": (("--region", "mask.png"), 3, "does not exist"),
    "view without mask": (("--region", "top", "--mask-view", "front"), 2, "belongs to a mask"),
}


@pytest.mark.parametrize(("options", "code", "said"), WRONG.values(), ids=WRONG)
def test_regions_are_looked_at_before_anything_is_loaded(run, chair, options, code, said):
    result = run("edit", chair, "a chair", *options, "--model", "no-such-model")
    result.assert_one_error(code)
    assert said in result.err


def missing(path: Path) -> None: ...


def empty(path: Path) -> None:
    path.touch()


def damaged(path: Path) -> None:
    path.write_bytes(path.with_name("chair.safetensors").read_bytes()[:-1000])


def foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("make", [missing, empty, damaged, foreign], ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["edit", "variant"])
def test_a_bundle_that_cannot_be_used_is_bad_input(run, chair, fast, tmp_path, command, make):
    make(tmp_path / "bad.safetensors")
    before = files_in(tmp_path)
    region = ("--region", "top") if command == "edit" else ()
    said = run(command, "bad.safetensors", "a chair", *region, *fast)
    said.assert_one_error(3)
    assert files_in(tmp_path) == before


# --- variant ---


def test_the_embedded_model_varies_a_mesh_offline(run, box, tmp_path):
    said = run("variant", box, "a red car", "--offline", *FAST)
    assert said.code == 0, said.err
    assert "embedded" in said.err
    assert extras_of(tmp_path / "box-variant.glb")["model"]["name"] == "embedded"


@pytest.mark.parametrize("suffix", [".stl", ".glb", ".obj", ".ply"])
def test_any_mesh_becomes_a_variant_in_the_unit_cube(run, box, fast, tmp_path, suffix):
    path = box.with_suffix(suffix)
    trimesh.load(box).export(path)
    said = run("variant", path, "a", "red", "chair", *fast)
    assert said.code == 0, said.err
    assert said.out == "box-variant.glb\n"
    assert extras_of(tmp_path / "box-variant.glb")["condition"] == {"kind": "text", "prompt": "a red chair"}
    assert read_mesh(tmp_path / "box-variant.glb").mesh.vertices.abs().max() < 0.6


def test_a_run_becomes_several_variants_that_can_be_exported_again(run, chair, fast, picture, tmp_path):
    more = (
        "--image",
        picture,
        "--num-samples",
        2,
        "--save-bundle",
        "v.safetensors",
        "--preview",
        "sheet.png",
    )
    said = run("variant", chair, *more, *fast, "--seed", 5, "--json")
    assert said.code == 0, said.err
    names = ["chair-variant-1.glb", "chair-variant-2.glb"]
    assert [Path(output["path"]).name for output in said.json["outputs"]] == names
    assert extras_of(tmp_path / names[0])["seed"] == 5
    assert {"sheet-1.png", "sheet-2.png"} <= set(files_in(tmp_path))
    again = run("export", "v.safetensors", "-o", "again.glb", *fast[:2], *fast[4:])
    assert again.code == 0, again.err
    assert (tmp_path / "again-1.glb").read_bytes() == (tmp_path / names[0]).read_bytes()


def no_faces(path: Path) -> None:
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")


def no_extent(path: Path) -> None:
    path.write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")


def no_mesh(path: Path) -> None:
    path.write_text("chairs, tables and other things\n")


@pytest.mark.parametrize(
    "make", [missing, empty, no_faces, no_extent, no_mesh], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("command", ["variant", "texture"])
def test_a_mesh_that_cannot_be_used_is_bad_input(run, picture, tiny_model, tmp_path, command, make):
    make(tmp_path / "bad.obj")
    rest = ("a chair", *FAST) if command == "variant" else (picture, "--texture-steps", 2)
    said = run(command, "bad.obj", *rest, "--model", tiny_model, "-q")
    said.assert_one_error(3)
    assert not list(tmp_path.glob("*.glb"))


@pytest.mark.parametrize("command", ["variant", "texture"])
def test_a_file_that_is_no_mesh_is_named_before_anything_is_loaded(run, picture, tmp_path, command):
    (tmp_path / "notes.txt").write_text("a chair")
    said = run(
        command, "notes.txt", picture if command == "texture" else "a chair", "--model", "no-such-model"
    )
    said.assert_one_error(3)
    assert "unknown kind" in said.err


# --- what it is to look like ---


@pytest.mark.parametrize("prompt", ["", "  ", "...", "\n"])
@pytest.mark.parametrize("command", ["edit", "variant"])
def test_an_empty_prompt_is_bad_input(run, chair, command, prompt):
    region = ("--region", "top") if command == "edit" else ()
    said = run(command, chair, prompt, *region, "--model", "no-such-model")
    said.assert_one_error(3)
    assert "the prompt is empty" in said.err


@pytest.mark.parametrize("prompt", ["une chaise haute", "\u6905\u5b50", "dragon " * 10_000])
@pytest.mark.parametrize("command", ["edit", "variant"])
def test_a_prompt_without_a_known_object_is_bad_input_and_nothing_is_written(
    run, chair, fast, tmp_path, command, prompt
):
    before = files_in(tmp_path)
    region = ("--region", "top") if command == "edit" else ()
    said = run(command, chair, prompt, *region, *fast)
    said.assert_one_error(3)
    assert "it knows: " in said.err
    assert len(said.err) < 2000
    assert files_in(tmp_path) == before


def test_a_prompt_of_ten_thousand_words_is_cut_with_a_note(run, chair, fast):
    said = run("variant", chair, "red chair " * 5_000, *fast[:-1])
    assert said.code == 0, said.err
    assert "cut to its first" in said.err
    assert len(said.err) < 5_000


WISHES = {
    "nothing": ((), 2, "nothing says how it is to look"),
    "twice": (("a chair", "--prompt", "a table"), 2, "in one way only"),
    "words and picture": (("a chair", "--image", "box.png"), 2, "in one way only"),
    "picture as words": (("box.png",), 2, "`--image box.png`"),
    "no such picture": (("--image", "missing.png"), 3, "does not exist"),
}


@pytest.mark.parametrize(("words", "code", "said"), WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("command", ["edit", "variant"])
def test_exactly_one_thing_says_how_it_is_to_look(run, chair, picture, command, words, code, said):
    region = ("--region", "top") if command == "edit" else ()
    result = run(command, chair, *words, *region, "--model", "no-such-model")
    result.assert_one_error(code)
    assert said in result.err


@pytest.mark.parametrize("command", ["edit", "variant"])
def test_an_existing_file_is_kept_without_force(run, chair, tmp_path, command):
    (tmp_path / "kept.glb").write_text("precious")
    region = ("--region", "top") if command == "edit" else ()
    said = run(command, chair, "a chair", *region, "-o", "kept.glb", "--model", "no-such-model")
    said.assert_one_error(7)
    assert (tmp_path / "kept.glb").read_text() == "precious"


# --- texture ---


@pytest.fixture
def plates(tmp_path) -> Path:
    """Two quads side by side, each with half of the texture."""
    vertices = [[x + 2 * k, 0.1 * k, z] for k in range(2) for x, z in ((0, 0), (1, 0), (1, 1), (0, 1))]
    uv = [[0.5 * k + u, v] for k in range(2) for u, v in ((0.05, 0.1), (0.4, 0.1), (0.4, 0.9), (0.05, 0.9))]
    faces = [[4 * k, 4 * k + i, 4 * k + i + 1] for k in range(2) for i in (1, 2)]
    mesh = trimesh.Trimesh(vertices, faces, visual=trimesh.visual.TextureVisuals(uv=uv), process=False)
    mesh.export(tmp_path / "plates.glb")
    return tmp_path / "plates.glb"


def test_a_mesh_keeps_its_own_texture_coordinates_when_asked(run, plates, picture, tiny_model, tmp_path):
    few = ("--texture-steps", 1, "--texture", 64, "--model", tiny_model, "-q")
    kept = run("texture", plates, picture, "--keep-uv", *few, "-o", "kept.glb")
    assert kept.code == 0, kept.err
    assert run("texture", plates, picture, *few).out == "plates-textured.glb\n"

    def coordinates(name: str) -> set[tuple[float, ...]]:
        return {tuple(row) for row in read_mesh(tmp_path / name).mesh.uvs.round(decimals=4).tolist()}

    assert coordinates("kept.glb") == coordinates("plates.glb")
    assert coordinates("plates-textured.glb") != coordinates("plates.glb")


def test_a_mesh_without_coordinates_cannot_keep_them(run, box, picture, tiny_model, tmp_path):
    said = run("texture", box, picture, "--keep-uv", "--model", "no-such-model")
    said.assert_one_error(2)
    assert "`.stl` files have no texture coordinates" in said.err
    trimesh.load(box).export(tmp_path / "bare.glb")
    said = run("texture", "bare.glb", picture, "--keep-uv", "--model", tiny_model, "-q")
    said.assert_one_error(3)
    assert "leave `--keep-uv` out" in said.err


# --- TRELLIS v1 ---


@pytest.fixture(scope="module")
def first_version(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("models") / "v1")


def test_a_trellis_v1_model_does_not_paint_meshes(run, box, picture, first_version):
    said = run("texture", box, picture, "--model", first_version)
    said.assert_one_error(2)
    assert "pass a TRELLIS.2 model" in said.err


def test_a_trellis_v1_model_varies_a_mesh_and_edits_what_it_made(run, box, picture, first_version, tmp_path):
    few = ("--image", picture, "--steps", 1, "--model", first_version, "-q")
    mesh = ("--texture", 64, "--color-from", "vertices")
    said = run("variant", box, *few, *mesh)
    assert said.code == 0, said.err
    assert said.out == "box-variant.glb\n"
    said = run("generate", picture, *few[2:], *mesh, "--save-bundle", "run.safetensors")
    assert said.code == 0, said.err
    more = ("--region", "top", "--as", "gaussians", "--preview", "sheet.png", "--json")
    said = run("edit", "run.safetensors", *few, *more)
    assert said.code == 0, said.err
    assert said.json["edit"]["voxels"]["outside_changed"] == 0
    assert said.json["previews"] == ["sheet.png"]
    assert (tmp_path / "run-edited.ply").read_bytes().startswith(b"ply")


def test_options_of_the_other_version_are_wrong_usage(run, chair, first_version, tiny_model):
    said = run("variant", chair, "a chair", "--model", tiny_model, "--latent-steps", 2)
    said.assert_one_error(2)
    said = run("variant", "chair.safetensors", "a chair", "--model", first_version, "--shape-steps", 2)
    said.assert_one_error(2)
