"""`trellis train`: what it says before it starts, its data, a fine-tuned adapter from meshes to a model.

Properties: every recipe can be dry-run without weights; what is missing or wrong is one error with a hint; a
run that is interrupted and continued ends, bit for bit, as one that is not; what a recipe of stages trains is
seen in curves and sheets, and becomes a model that knows its pictures; a merged adapter is a model.
Not tested: the quality of what is trained.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.conftest import Run
from tests.tiny_recipe import RECIPE
from trellis2.settings import read_settings
from trellis_cli.app import main
from trellis_cli.commands import train_setup
from trellis_cli.dry_run import recipe_folders
from trellis_core.training.recipes import find_recipes

RECIPES = sorted(find_recipes(recipe_folders()))


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    trimesh.creation.torus(1.0, 0.3).export(folder / "ring.ply")
    trimesh.creation.box().export(folder / "box.stl")
    (folder / "broken.obj").write_text("v 0 0 0\n")
    return folder


@pytest.fixture(scope="module")
def data(meshes, tiny_model, tmp_path_factory) -> Path:
    """The meshes as training data, made by the command."""
    out = tmp_path_factory.mktemp("data") / "mine"
    arguments = ["train", "data", "ingest", meshes, "--out", out, "--model", tiny_model, "--quiet"]
    assert main([str(a) for a in [*arguments, "--views", 2, "--view-size", 48, "--workers", 1]]) == 0
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_dry_run(run, name):
    said = run("train", "--recipe", name, "--dry-run", "--json")
    assert said.code == 0, said.err
    facts = said.json
    assert facts["recipe"] == name and facts["steps"] == 1_000_000
    assert facts["parameters"]["trained"] == facts["parameters"]["networks"] > 1e7
    assert facts["memory"]["optimizer"] == 8 * facts["parameters"]["trained"]


def test_a_dry_run_says_steps_batch_memory_and_layout(run, tmp_path):
    said = run("train", "--recipe", "trellis2-shape-512", "--dry-run", "--data", tmp_path).out
    for words in (
        "1,000,000; log every 500",
        "1,292,253,728 parameters",
        "8 per GPU; micro-batches: 2 of 4",
        "estimated, per GPU: 27.6 GiB",
        "shape_latent folder",
        "data_512.json` is missing",
    ):
        assert words in said
    adapter = run("train", "--recipe", "trellis2-shape-512", "--lora-rank", 16, "--dry-run", "--json").json
    assert adapter["parameters"]["trained"] == 18_677_760


def test_the_embedded_recipe_is_dry_run_stage_by_stage(run):
    said = run("train", "--recipe", "embedded", "--dry-run")
    assert said.code == 0 and "structure_flow" in said.out and "trellis train data" in said.out
    stages = run("train", "--recipe", "embedded", "--dry-run", "--json").json["stages"]
    assert all(stage["parameters"] > 1e5 for stage in stages.values())
    small = run("train", "--recipe", "embedded", "--dry-run", "--batch-share", 0.125, "--json").json["stages"]
    assert all(small[name]["batch"] == max(1, round(stage["batch"] / 8)) for name, stage in stages.items())


def test_recipes_are_listed(run):
    said = run("train", "recipes")
    assert all(name in said.out for name in [*RECIPES, "embedded"])


def test_ingesting_reports_what_was_rejected_and_why(run, data, meshes, tiny_model):
    report = json.loads((data / "report.json").read_text())
    assert (report["meshes"], report["complete"]) == (3, 2)
    assert report["rejected"][0]["file"] == "broken.obj"
    again = run("train", "data", "ingest", meshes, "--out", data, "--model", tiny_model, "--views", 2,
                "--view-size", 48, "--workers", 1)  # fmt: skip
    assert "2 complete (0 new, 2 there before), 1 rejected" in again.out
    assert "broken.obj  it has no triangles" in again.out


def test_an_adapter_is_trained_continued_and_merged(run, data, tiny_model, tmp_path):
    common = ["train", "--from", tiny_model, "--stage", "shape_flow", "--lora-rank", 2, "--data", data,
              "--run", "mine", "--seed", 1]  # fmt: skip
    first = run(*common, "--steps", 2, "--samples", 1, "--json")
    assert first.code == 0, first.err
    assert first.json["finished"] and first.json["step"] == 2
    assert len((tmp_path / "mine" / "log.jsonl").read_text().splitlines()) == 2
    assert Image.open(tmp_path / first.json["sheets"][0]).width > 300
    assert first.json["curves"] == "mine/curves.png" and (tmp_path / "mine" / "curves.png").exists()
    run(*common, "--steps", 3).assert_one_error(2)
    more = run(*common, "--steps", 3, "--samples", 0, "--resume", "--json")
    assert more.json["step"] == 3
    adapter = more.json["outputs"][0]
    merged = run("train", "merge", adapter, "--from", tiny_model, "--out", "model")
    assert merged.code == 0, merged.err
    assert run("models", "verify", tmp_path / "model").code == 0
    changed = [
        path.name
        for path in sorted((tiny_model / "ckpts").glob("*.safetensors"))
        if path.read_bytes() != (tmp_path / "model" / "ckpts" / path.name).read_bytes()
    ]
    assert changed == ["shape_slat_flow_model_512.safetensors"]
    run("train", "merge", adapter, "--from", tiny_model, "--out", "model").assert_one_error(2)
    run("train", "merge", adapter, "--from", "model", "--out", "other").assert_one_error(4)


def test_an_interrupted_run_ends_after_its_step_with_a_checkpoint(run, data, tiny_model, tmp_path):
    common = [
        "train",
        "--from",
        tiny_model,
        "--stage",
        "shape_flow",
        "--data",
        data,
        "--run",
        "mine",
        "--samples",
        0,
    ]

    def interrupt() -> None:
        while not (tmp_path / "mine" / "log.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    said = run(*common, "--steps", 100_000, "--json")
    waiting.join()
    assert said.code == 130
    assert said.json["step"] > 0 and not said.json["finished"]
    more = run(*common, "--steps", said.json["step"] + 1, "--resume", "--json")
    assert more.code == 0 and more.json["finished"] and more.json["step"] == said.json["step"] + 1


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> Path:
    """A tiny recipe of stages, and objects for it."""
    folder = tmp_path_factory.mktemp("staged")
    recipe = folder / "tiny.json"
    recipe.write_text(json.dumps(RECIPE))
    made = main(
        [
            str(a)
            for a in ["train", "data", "--recipe", recipe, "--objects", 6, "--out", folder / "data", "-q"]
        ]
    )
    assert made == 0
    return folder


def stages(staged: Path, run_folder: str, *more: object) -> list[object]:
    recipe, data = staged / "tiny.json", staged / "data"
    return ["train", "--recipe", recipe, "--data", data, "--run", run_folder, "--device", "cpu", *more]


def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(run, staged, tmp_path):
    """SIGTERM, as a cluster sends it, in the second of two stages; twice continued."""
    chosen = ["--stage", "structure_vae,shape_vae", "--steps", 40]
    assert run(*stages(staged, "whole", *chosen)).code == 0

    def terminate() -> None:
        log = tmp_path / "pieces" / "shape_vae.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=terminate)
    waiting.start()
    said = run(*stages(staged, "pieces", *chosen, "--json"))
    waiting.join()
    assert said.code == 130 and not said.json["finished"]
    assert 8 <= steps_of(tmp_path / "pieces" / "shape_vae.safetensors") < 40
    assert run(*stages(staged, "pieces", *chosen, "--resume")).code == 0
    for name in ("structure_vae", "shape_vae"):
        whole, pieces = (
            load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "pieces")
        )
        assert whole.keys() == pieces.keys()
        assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    assert steps_of(tmp_path / "pieces" / "shape_vae.safetensors") == 40


def steps_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["counts"])["step"]


def test_a_stage_starts_alike_whichever_stages_ran_before(run, staged, tmp_path):
    assert run(*stages(staged, "both", "--stage", "structure_vae,texture_vae", "--steps", 2)).code == 0
    assert run(*stages(staged, "alone", "--stage", "texture_vae", "--steps", 2)).code == 0
    both, alone = (load_file(tmp_path / name / "texture_vae.safetensors") for name in ("both", "alone"))
    assert all(torch.equal(both[key], alone[key]) for key in both)


def test_a_whole_run_leaves_curves_sheets_events_and_a_model(run, staged, tmp_path):
    said = run(*stages(staged, "all", "--steps", 2, "--samples", 1, "--tensorboard", "--json"))
    assert said.code == 0, said.err
    assert [Path(sheet).name for sheet in said.json["sheets"]] == [
        "structure_flow.png", "shape_flow.png", "texture_flow.png"
    ]  # fmt: skip
    assert Image.open(tmp_path / said.json["curves"]).width > 1000
    assert any((tmp_path / "all" / "events" / "shape_flow").iterdir())
    made = run(*stages(staged, "all", "--stage", "encode,weights,release", "--output", "model"))
    assert made.code == 0, made.err
    assert (tmp_path / "model" / "shape_flow.safetensors").exists()
    facts = read_settings(tmp_path / "model" / "pipeline.json").familiarity
    assert facts is not None and facts.limit > 0
    run(*stages(staged, "all", "--steps", 2)).assert_one_error(2)


def test_sheets_wait_for_the_stages_that_they_need(run, staged, tmp_path):
    chosen = ["--stage", "structure_vae,encoders,shape_vae,shape_flow", "--steps", 1, "--json"]
    said = run(*stages(staged, "some", *chosen))
    assert said.code == 0, said.err
    assert any("structure_flow must be trained first" in note for note in said.json["notes"])
    assert not (tmp_path / "some" / "shape_flow.png").exists()


def test_a_run_without_matplotlib_says_so_once(run, staged, tmp_path, monkeypatch):
    monkeypatch.setattr(train_setup, "find_spec", lambda name: None)
    said = run(*stages(staged, "plain", "--stage", "structure_vae", "--steps", 1, "--json"))
    assert sum("matplotlib" in note for note in said.json["notes"]) == 1
    assert not (tmp_path / "plain" / "curves.png").exists()


def test_every_step_can_be_heard_by_a_script(run, data, tiny_model):
    said = run("train", "--from", tiny_model, "--stage", "shape_flow", "--data", data, "--run", "mine",
               "--steps", 1, "--samples", 0, "--json-events")  # fmt: skip
    losses = [event for event in said.events if event["event"] == "losses"]
    assert losses[0]["step"] == 1 and losses[0]["loss"] > 0
    assert said.events[-1]["outputs"] == ["mine/ckpts/shape_slat_flow_model_512.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--recipe", "trellis2-shapes"], 2),
        (["--recipe", "missing.json"], 2),
        (["--recipe", "trellis2-shape-512"], 2),
        (["--recipe", "trellis2-shape-512", "--run", "a"], 2),
        (["--recipe", "trellis2-shape-512", "--run", "a", "--data", "nowhere"], 3),
        (["--recipe", "trellis-structure-vae", "--run", "a", "--data", "."], 3),
        (["--recipe", "embedded", "--run", "a", "--data", "."], 3),
        (["--recipe", "embedded", "--stage", "shapes"], 2),
        (["--recipe", "embedded", "--stage", "release", "--run", "a", "--data", "."], 3),
        (["--recipe", "embedded", "--lora-rank", "4"], 2),
        (["--recipe", "embedded", "--resume", "--steps", "1", "--run", "nowhere", "--data", "."], 3),
        (["familiarity", "nowhere"], 3),
        (["familiarity", "."], 4),
        (["--from", "embedded"], 2),
        (["--from", "embedded", "--stage", "encoders"], 2),
        (["--from", "nobody/nothing", "--stage", "shape_flow"], 4),
        (["--from", "embedded", "--stage", "shape_vae", "--lora-rank", "4", "--run", "a", "--data", "."], 2),
        (["data"], 2),
        (["data", "--recipe", "trellis2-shape-512", "--preview"], 2),
        (["data", "--out", "shards"], 2),
        (["data", "ingest", "nowhere", "--out", "data"], 3),
        (["data", "ingest", ".", "--out", "data"], 3),
        (["data", "ingest", ".", "--out", "data", "--model", "nobody/nothing"], 4),
        (["merge", "nothing.safetensors", "--from", "embedded", "--out", "model"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_error_with_a_hint(run, arguments, code):
    said: Run = run("train", *arguments, "--quiet") if arguments else run("train")
    said.assert_one_error(code)


def test_the_preview_shows_pictures_and_captions(run, tmp_path):
    said = run("train", "data", "--preview", "--objects", 2, "-o", "sheet.png", "--json")
    assert said.code == 0, said.err
    assert len(said.json["captions"]) == 2 and all(said.json["captions"])
    sheet = Image.open(tmp_path / "sheet.png")
    assert min(sheet.size) > 160
    run("train", "data", "--preview", "--objects", 2, "-o", "sheet.png").assert_one_error(7)
