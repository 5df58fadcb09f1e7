"""TRELLIS v1 from the command line, with tiny random models of the real classes.

Properties: every command that samples does with them what it does with TRELLIS.2; a result is a mesh,
Gaussians or a radiance field, as `--as` or the name of the file says; a saved run gives the same file again;
what a model does not take or make is wrong usage (2), bad input is 3, what is missing or cut off is 4, and is
said before the sampling starts.
Not tested: what the results look like (the weights are random), downloads (test_registry_trellis1).
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_trellis1 import GRID, MAX_LENGTH, write_tiny_trellis1
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.io.fields import read_field
from trellis_core.io.meshes import read_mesh
from trellis_core.weights.bundle import Bundle

PER_VOXEL = 2  # Gaussians of the tiny model
SMALL = ("--faces", 400, "--texture", 64)


def extras_of(path: Path) -> dict:
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size])["asset"]["extras"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "words", text=True)


@pytest.fixture
def bundle(run, picture, pictures, tmp_path) -> Path:
    """A saved run of the picture model."""
    said = run("generate", picture, "--model", pictures, "--save-bundle", "run.safetensors", "-o", "x.spz")
    assert said.code == 0, said.err
    return tmp_path / "run.safetensors"


@pytest.fixture
def back(tmp_path) -> Path:
    image = Image.new("RGBA", (80, 80))
    image.paste((20, 60, 200, 255), (10, 30, 70, 80))
    image.save(tmp_path / "back.png")
    return tmp_path / "back.png"


# What comes out


def test_a_picture_becomes_a_textured_mesh_and_its_saved_run_gives_the_same_file(
    run, picture, pictures, tmp_path
):
    more = ("--steps", 1, "--latent-steps", 2, "--seed", 7, "--save-bundle", "run.safetensors", "--json")
    said = run("generate", picture, "--model", pictures, *SMALL, *more)
    assert said.code == 0, said.err
    facts = said.json
    assert facts["model"]["version"] == "trellis"
    assert [stage["stage"] for stage in facts["stages"]][1:6] == [
        "picture", "condition", "structure", "latents", "decode",
    ]  # fmt: skip
    assert facts["outputs"][0]["texture"] == 64
    extras = extras_of(tmp_path / "box.glb")
    assert extras["seed"] == 7
    assert extras["model"]["name"] == "pictures"
    assert [extras["samplers"][stage]["steps"] for stage in ("structure", "latents")] == [1, 2]
    assert extras["condition"]["kind"] == "picture"
    again = run("export", "run.safetensors", "--model", pictures, *SMALL, "-o", "again.glb", "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "again.glb").read_bytes() == (tmp_path / "box.glb").read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("a.ply", ("--as", "gaussians"), Gaussians),
        ("a.splat", (), Gaussians),
        ("a.SPZ", (), Gaussians),
        ("a.spz", ("--as", "gaussians"), Gaussians),
        ("a.safetensors", (), RadianceField),
        ("a.safetensors", ("--as", "radiance-field"), RadianceField),
    ],
)
def test_a_saved_run_becomes_what_is_asked_for(run, bundle, pictures, tmp_path, name, options, kind):
    said = run("export", bundle, "--model", pictures, *options, "-o", name, "--json")
    assert said.code == 0, said.err
    voxels = len(Bundle.load(bundle).tensors["coords"])
    read = read_field(tmp_path / name)
    assert isinstance(read, kind)
    assert len(read) == voxels * (PER_VOXEL if kind is Gaussians else 1)
    (output,) = said.json["outputs"]
    assert output["parts"] == len(read)
    assert output["bytes"] == (tmp_path / name).stat().st_size


def test_a_ply_is_a_mesh_unless_gaussians_are_asked_for(run, bundle, pictures, tmp_path):
    said = run("export", bundle, "--model", pictures, "-o", "a.ply", *SMALL, "--color-from", "vertices", "-q")
    assert said.code == 0, said.err
    assert len(read_mesh(tmp_path / "a.ply").mesh.faces) > 50


def test_a_result_without_a_name_gets_one_that_fits_it(run, picture, bundle, pictures, tmp_path):
    said = run("generate", picture, "--model", pictures, "--as", "gaussians", "-q")
    assert said.out == "box.ply\n"
    assert isinstance(read_field(tmp_path / "box.ply"), Gaussians)
    before = bundle.read_bytes()
    said = run("export", bundle, "--model", pictures, "--as", "radiance-field", "-q")
    assert said.out == "run-radiance-field.safetensors\n"
    assert bundle.read_bytes() == before


def test_several_samples_are_numbered(run, picture, pictures, tmp_path):
    more = ("--num-samples", 2, "-o", "a.spz", "--save-bundle", "run.safetensors")
    said = run("generate", picture, "--model", pictures, *more, "-q")
    assert said.code == 0, said.err
    assert said.out == "a-1.spz\na-2.spz\n"
    rows = Bundle.load(tmp_path / "run.safetensors").tensors["coords"][:, 0].bincount().tolist()
    counts = [len(read_field(tmp_path / name)) for name in ("a-1.spz", "a-2.spz")]
    assert counts == [PER_VOXEL * row for row in rows]


def test_gaussians_can_be_looked_at(run, bundle, pictures, tmp_path):
    said = run("export", bundle, "--model", pictures, "-o", "a.spz", "--preview", "a.png", "-q")
    assert said.code == 0, said.err
    seen = np.asarray(Image.open(tmp_path / "a.png").convert("L"), dtype=int)
    assert np.ptp(seen, axis=1).max() > 10  # a row of the backdrop alone has one shade


# Words and several pictures


def test_a_prompt_becomes_gaussians_named_after_it(run, words, tmp_path):
    more = ("--as", "gaussians", "--save-bundle", "run.safetensors")
    said = run("text", "a", "tall", "red", "chair", "--model", words, *more)
    assert said.code == 0, said.err
    assert said.out == "a-tall-red-chair.ply\n"
    condition = Bundle.load(tmp_path / "run.safetensors").info["condition"]
    assert condition["kind"] == "text"
    assert condition["prompt"] == "a tall red chair"
    assert "note:" not in said.err


def test_a_prompt_of_ten_thousand_words_is_cut_with_a_note(run, words):
    said = run("text", "chair " * 10_000, "--model", words, "--as", "gaussians")
    assert said.code == 0, said.err
    assert f"cut to its first {MAX_LENGTH - 2} words" in said.err
    assert len(said.err) < 5_000


@pytest.mark.parametrize("prompt", ["\u6905\u5b50", "\u043a\u0440\u0435\u0441\u043b\u043e"])
def test_a_prompt_in_another_writing_is_made_with_a_note(run, words, tmp_path, prompt):
    said = run("text", prompt, "--model", words, "--as", "gaussians")
    assert said.code == 0, said.err
    assert "note: the model was trained on English captions" in said.err
    assert (tmp_path / f"{prompt}.ply").is_file()


@pytest.mark.parametrize("prompt", ["", "  ", "...", "\n"])
def test_an_empty_prompt_is_bad_input(run, words, prompt):
    said = run("text", prompt, "--model", words)
    said.assert_one_error(3)
    assert "empty" in said.err


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures_become_one_object(run, picture, back, pictures, tmp_path, mode):
    more = ("--mode", mode, "-o", "a.spz", "--save-bundle", "run.safetensors")
    said = run("multi-image", picture, back, "--model", pictures, *more)
    assert said.code == 0, said.err
    condition = Bundle.load(tmp_path / "run.safetensors").info["condition"]
    assert condition == {"kind": "pictures", "count": 2, "mode": mode}


# What cannot be


@pytest.mark.parametrize(
    ("form", "name", "advice"),
    [
        ("gaussians", "a.glb", "--as mesh"),
        ("mesh", "a.spz", "--as gaussians"),
        ("radiance-field", "a.splat", "--as gaussians"),
        ("gaussians", "a.safetensors", "--as radiance-field"),
        ("mesh", "a.docx", ".glb"),
    ],
)
def test_a_name_that_does_not_fit_is_wrong_usage_and_says_what_does(run, picture, form, name, advice):
    said = run("generate", picture, "--as", form, "-o", name)
    said.assert_one_error(2)
    assert advice in said.err


@pytest.mark.parametrize(
    "options", [("--faces", 500), ("--texture", 64), ("--preset", "game"), ("--strict",)]
)
def test_what_is_about_meshes_does_not_go_with_gaussians(run, picture, options):
    said = run("generate", picture, "-o", "a.spz", *options)
    said.assert_one_error(2)
    assert f"`{options[0]}` is for meshes" in said.err


@pytest.mark.parametrize(
    "options",
    [
        ("--resolution", 512),
        ("--pipeline", "1024_cascade"),
        ("--subject", "organic"),
        ("--shape-steps", 3),
        ("--shape-guidance", 3),
        ("--texture-steps", 3),
        ("--texture-guidance", 2),
    ],
)
def test_an_option_of_trellis2_is_wrong_usage(run, picture, pictures, options):
    said = run("generate", picture, "--model", pictures, *options)
    said.assert_one_error(2)
    assert f"`{options[0]}` does nothing" in said.err
    assert "TRELLIS v1" in said.err


@pytest.mark.parametrize(
    "options", [("--latent-steps", 3), ("--latent-guidance", 3), ("--color-from", "vertices")]
)
def test_an_option_of_trellis1_is_wrong_usage_for_trellis2(run, picture, tiny_model, options):
    said = run("generate", picture, "--model", tiny_model, *options)
    said.assert_one_error(2)
    assert f"`{options[0]}` does nothing" in said.err
    assert "TRELLIS.2" in said.err


@pytest.mark.parametrize("options", [("--as", "gaussians"), ("-o", "a.splat"), ("--as", "radiance-field")])
def test_a_trellis2_model_makes_meshes_only(run, picture, tiny_model, options):
    said = run("generate", picture, "--model", tiny_model, *options)
    said.assert_one_error(2)
    assert "makes meshes only" in said.err
    assert "image-large" in said.err


def test_a_picture_is_nothing_for_a_text_model_and_a_prompt_nothing_for_a_picture_model(
    run, picture, pictures, words
):
    said = run("generate", picture, "--model", words)
    said.assert_one_error(2)
    assert "takes prompts only" in said.err
    said = run("text", "a chair", "--model", pictures)
    said.assert_one_error(2)
    assert "takes pictures only" in said.err


def test_a_bundle_of_another_model_names_its_own(run, bundle, words):
    said = run("export", bundle, "--model", words, "-o", "a.glb", "-q")
    said.assert_one_error(3)
    assert "made by the model `pictures`" in said.err
    said = run("export", bundle, "-o", "a.glb", "-q")
    said.assert_one_error(4)
    assert "--model PATH" in said.err


def test_a_decoder_that_is_missing_is_said_before_the_sampling(run, picture, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "partial")
    (folder / "ckpts" / "slat_decoder_mesh.safetensors").unlink()
    said = run("generate", picture, "--model", folder, "--json-events", "-q")
    said.assert_one_error(4)
    assert "decodes `mesh`" in said.err
    assert {event.get("stage", "start") for event in said.events} == {"start"}
    made = run("generate", picture, "--model", folder, "--as", "gaussians", "-q")
    assert made.code == 0, made.err


def test_a_flow_that_is_missing_or_cut_off_says_which_and_how(run, picture, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "partial")
    weights = folder / "ckpts" / "slat_flow_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    said = run("generate", picture, "--model", folder, "-q")
    said.assert_one_error(4)
    assert f"cut off after {len(whole) // 2:,} of {len(whole):,} bytes" in said.err
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    said = run("generate", picture, "--model", folder, "-q")
    said.assert_one_error(4)
    assert "Git LFS pointer" in said.err
    weights.unlink()
    said = run("generate", picture, "--model", folder, "-q")
    said.assert_one_error(4)
    assert "slat_flow_model.safetensors` is missing" in said.err
    assert "repository" not in said.err.lower()


def test_running_out_of_memory_while_loading_names_the_network(run, picture, pictures, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("trellis.loading.load_model", refuse)
    said = run("generate", picture, "--model", pictures, "-q")
    said.assert_one_error(5)
    assert "loading image_encoder" in said.err


def test_a_result_and_its_saved_run_need_two_names(run, picture, pictures):
    said = run(
        "generate", picture, "--model", pictures, "-o", "a.safetensors", "--save-bundle", "a.safetensors"
    )
    said.assert_one_error(2)


def test_the_grid_comes_from_the_model(run, bundle):
    assert Bundle.load(bundle).info["resolution"] == GRID
