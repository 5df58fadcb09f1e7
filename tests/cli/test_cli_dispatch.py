"""`trellis generate` with whatever it is given: it does what the command of that kind does, and says so.

What is taken for what is in tests/unit/test_dispatch.py. Not tested here: one picture (test_cli_generate.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli_bad_input import empty
from tests.cli.test_cli_help import imports_of
from tests.tiny_model import write_tiny_model

FAST = ("--steps", 1, "--faces", 2000, "--texture", 256)


def test_words_become_an_asset_and_a_saved_run_the_same_one(run, tiny_model, tmp_path):
    options = ("--model", tiny_model, *FAST)
    said = run("generate", "a", "red", "chair", *options, "--save-bundle", "run.safetensors")
    assert (said.code, said.out) == (0, "a-red-chair.glb\n"), said.err
    said = run("generate", "run.safetensors", "--model", tiny_model, *FAST[2:], "-o", "again.glb")
    assert (said.code, said.out) == (0, "again.glb\n"), said.err
    assert Path("again.glb").read_bytes() == Path("a-red-chair.glb").read_bytes()


def test_several_pictures_are_views_of_one_object_and_it_says_so(run, picture, tiny_model):
    said = run("generate", picture, picture, "--model", tiny_model, *FAST, "--mode", "multidiffusion")
    assert (said.code, said.out) == (0, "box.glb\n"), said.err
    assert "2 pictures are taken as views of one object; one asset each: `trellis batch`" in said.err
    data = Path("box.glb").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    condition = json.loads(data[20 : 20 + size])["asset"]["extras"]["condition"]
    assert condition == {"kind": "pictures", "count": 2, "mode": "multidiffusion"}


@pytest.mark.parametrize(
    ("arguments", "out"),
    [((), "photos-assets"), (("-o", "elsewhere"), "elsewhere")],
    ids=["default", "named"],
)
def test_a_folder_becomes_a_batch_and_it_says_so(run, tmp_path, arguments, out):
    """Its only picture is empty, so that no model is needed."""
    (tmp_path / "photos").mkdir()
    empty(tmp_path / "photos" / "a.png")
    said = run("generate", "photos", *arguments)
    assert said.code == 8
    assert f"`photos` is a folder: going on as `trellis batch photos --out {out}`" in said.err
    assert json.loads((tmp_path / out / "report.jsonl").read_text())["exit_code"] == 3


def test_one_word_that_is_no_file_is_a_prompt_and_it_says_so(run, tmp_path):
    mute = write_tiny_model(tmp_path / "mute", text=False)
    said = run("generate", "chair", "--model", mute)
    said.assert_one_error(2)
    assert "note: no file is called `chair`: taken as a prompt" in said.err
    assert "takes pictures only" in said.err


def test_a_missing_picture_is_never_made_as_a_prompt(run, picture):
    said = run("generate", "boks.png")
    said.assert_one_error(3)
    assert "`boks.png` does not exist" in said.err
    assert "did you mean `box.png`?" in said.err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("box.png", "--mode", "stochastic"), "--mode"),
        (("a red chair", "--background", "keep"), "--background"),
        (("a red chair", "--mode", "stochastic"), "--mode"),
        (("run.safetensors", "--seed", "42"), "--seed"),
        (("run.safetensors", "--steps", "4"), "--steps"),
        (("run.safetensors", "--num-samples", "1"), "--num-samples"),
        (("run.safetensors", "--save-bundle", "x.safetensors"), "--save-bundle"),
        (("photos", "--save-bundle", "x.safetensors"), "--save-bundle"),
        (("photos", "--preview", "x.png"), "--preview"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_without_meaning_is_wrong_usage_even_at_its_default(
    run, picture, tmp_path, arguments, option
):
    (tmp_path / "photos").mkdir()
    said = run("generate", *arguments)
    said.assert_one_error(2)
    assert f"`{option}` does nothing for" in said.err


def test_the_assets_of_a_folder_do_not_go_into_one_file(run, tmp_path):
    (tmp_path / "photos").mkdir()
    said = run("generate", "photos", "-o", "all.glb")
    said.assert_one_error(2)
    assert "trellis batch photos --out all" in said.err


@pytest.mark.parametrize("arguments", [("a", "b.png"), ("photos",), ("list.txt",)], ids=" ".join)
def test_what_cannot_be_made_is_said_without_waiting_for_torch(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    done, imported = imports_of("generate", *arguments)
    assert done.returncode in (2, 3), done.stderr
    assert "torch" not in imported
