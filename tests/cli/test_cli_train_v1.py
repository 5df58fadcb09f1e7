"""`trellis train` with TRELLIS v1: from meshes to an autoencoder, its latents, and an adapter of a flow.

Properties: meshes become everything that the model's encoders can make, and what cannot be made is said; the
latent autoencoder trains by a recipe, continues bit for bit, and shows what it makes; its encoder then makes
the latents; a flow's adapter is merged into a model that loads; what is wrong is one error with a hint.
Not tested: quality.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny_trellis1 import GRID, write_tiny_trellis1
from tests.tiny_trellis1_training import decoder_recipe, write_meshes
from trellis.models import MODELS
from trellis_cli.app import main
from trellis_core.weights.load import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("models") / "tiny-v1")


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    return write_meshes(tmp_path_factory.mktemp("meshes") / "mine")


@pytest.fixture(scope="module")
def data(meshes, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "mine"
    assert main([str(a) for a in [*ingesting(meshes, model, out), "--quiet"]]) == 0
    return out


def ingesting(meshes: Path, model: Path, out: Path) -> list[object]:
    sizes = ["--renders", 3, "--render-size", 24, "--views", 1, "--view-size", 24]
    return ["train", "data", "ingest", meshes, "--out", out, "--model", model, *sizes, "--workers", 1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The latent autoencoder of the tiny model's grid, as a file."""
    content = asdict(decoder_recipe("latent_vae"))
    for facts in content["trains"].values():
        facts["config"]["args"]["resolution"] = GRID
    content["data"]["resolution"] = GRID
    for name, facts in content["trains"].items():
        built = MODELS[facts["config"]["name"]](**facts["config"]["args"])
        content["trains"][name]["parameters"] = sum(p.numel() for p in built.parameters())
    path = tmp_path_factory.mktemp("recipes") / "vae.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.fixture(scope="module")
def vae(data, recipe, tmp_path_factory) -> Path:
    """A finished run of the latent autoencoder."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    assert main([str(a) for a in [*training(recipe, data, folder), "--steps", 3, "--quiet"]]) == 0
    return folder


def training(recipe: Path, data: Path, folder: object) -> list[object]:
    return ["train", "--recipe", recipe, "--data", data, "--run", folder, "--device", "cpu", "--samples", 1]


def test_meshes_become_what_the_model_can_make_and_the_rest_is_said(run, data, meshes, model, tmp_path):
    assert {path.name for path in data.iterdir()} >= {"voxels", "renders", "features", "renders_cond"}
    assert not (data / "latents").exists()
    again = run(*ingesting(meshes, model, data))
    assert again.code == 0 and "2 complete (0 new, 2 there before)" in again.out
    assert "no latent encoder yet" in again.err and "no structure encoder" in again.err


def test_a_recipe_file_is_dry_run_with_its_losses_and_data(run, recipe, data):
    said = run("train", "--recipe", recipe, "--dry-run", "--data", data)
    assert said.code == 0, said.err
    for words in (
        "slat_encoder, SLatEncoder",
        "volume 10000",
        "--lpips FILE",
        "pictures of 24 pixels",
        "2 usable",
    ):
        assert words in said.out, words


def test_the_latent_autoencoder_trains_and_shows_what_it_makes(vae):
    names = {path.name for path in vae.rglob("*") if path.is_file()}
    assert names >= {"slat_encoder.safetensors", "slat_decoder_gs.json", "training.safetensors", "log.jsonl"}
    lines = [json.loads(line) for line in (vae / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and {"l1", "ssim", "kl", "volume"} <= lines[0].keys()
    assert Image.open(vae / "samples.png").width > 300
    load_model(vae / "ckpts" / "slat_encoder", MODELS)


def test_a_run_in_two_pieces_ends_bit_for_bit_as_one(run, recipe, data, vae):
    assert run(*training(recipe, data, "mine"), "--steps", 1).code == 0
    run(*training(recipe, data, "mine"), "--steps", 3).assert_one_error(2)
    more = run(*training(recipe, data, "mine"), "--steps", 3, "--resume", "--json")
    assert more.code == 0 and more.json["step"] == 3
    for name in ("training.safetensors", "ckpts/slat_encoder.safetensors"):
        whole, pieces = load_file(vae / name), load_file(Path("mine") / name)
        assert whole.keys() == pieces.keys()
        assert all(torch.equal(whole[key], pieces[key]) for key in whole), name


def test_the_trained_encoder_makes_latents_and_a_flow_s_adapter_becomes_a_model(
    run, vae, meshes, model, tmp_path
):
    said = run(*ingesting(meshes, model, "data"), "--encoders", vae)
    assert said.code == 0, said.err
    (made,) = (tmp_path / "data" / "latents").iterdir()
    assert made.name == "image_encoder_slat_encoder" and len(list(made.glob("*.npz"))) == 2
    common = ["train", "--from", model, "--data", "data", "--samples", 0, "--device", "cpu"]
    tuned = run(*common, "--stage", "latent_flow", "--lora-rank", 2, "--run", "lora", "--steps", 1, "--json")
    assert tuned.code == 0, tuned.err
    merged = run("train", "merge", tuned.json["outputs"][0], "--from", model, "--out", "merged")
    assert merged.code == 0, merged.err
    before = load_file(model / "ckpts" / "slat_flow_model.safetensors")
    after = load_file(tmp_path / "merged" / "ckpts" / "slat_flow_model.safetensors")
    assert before.keys() == after.keys()
    load_model(tmp_path / "merged" / "ckpts" / "slat_flow_model", MODELS)


@pytest.mark.parametrize(
    "words, code",
    [
        ("train --from {model} --stage shape_flow --run a --data {data}", 2),
        ("train --from {model} --stage latent_flow --run a --data {data}", 3),  # no latents yet
        ("train --from {model} --stage latent_vae --run a --data {data}", 4),  # no encoder
        ("train --from {model} --stage mesh_decoder --lora-rank 2 --run a --data {data}", 2),
        ("train --from {model} --stage structure_flow --lpips {weights} --run a --data {data}", 2),
        ("train --recipe {recipe} --lpips {weights} --run a --data {data}", 4),  # no LPIPS weights
        ("train --recipe {recipe} --lpips absent.safetensors --run a --data {data}", 3),
        ("train data ingest {meshes} --out b --model {model} --encoders {meshes}", 3),
        ("train data ingest {meshes} --out b --model {model} --resolution 512", 2),
    ],
)
def test_what_cannot_be_done_is_one_error_with_a_hint(words, code, run, model, data, recipe, meshes):
    weights = model / "ckpts" / "slat_flow_model.safetensors"
    places = {"model": model, "data": data, "recipe": recipe, "meshes": meshes, "weights": weights}
    run(*[word.format(**places) for word in words.split()]).assert_one_error(code)
