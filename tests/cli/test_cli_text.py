"""`text` and `multi-image` from end to end, with a tiny model of the real classes.

Properties: both do what `generate` does, from something else; wrong prompts and pictures are bad input (3), a
model that takes no text is wrong usage (2); `--model auto` takes a model with a text encoder.
Not tested: whether the result resembles the words (evaluation of the embedded model).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_cli_registry import CPU, LARGE_GPU
from tests.tiny_model import write_tiny_model
from trellis_cli import registry
from trellis_cli.commands.text import LONGEST_NAME, slug
from trellis_core.errors import ModelError, UsageError
from trellis_core.memory.budget import MemoryRequest

FAST = ("--steps", 1, "--faces", 2000, "--texture", 256)


def extras_of(path: Path) -> dict:
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size])["asset"]["extras"]


@pytest.fixture
def back(tmp_path: Path) -> Path:
    image = Image.new("RGBA", (80, 80))
    image.paste((20, 60, 200, 255), (10, 30, 70, 80))
    path = tmp_path / "back.png"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def mute_model(tmp_path_factory) -> Path:
    """A model that takes pictures only."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "mute", text=False)


def test_a_prompt_becomes_a_glb_named_after_it(run, tiny_model, tmp_path):
    said = run("text", "A tall red chair, with armrests!", "--model", tiny_model, *FAST, "--seed", 7)
    assert said.code == 0, said.err
    assert said.out == "a-tall-red-chair-with-armrests.glb\n"
    extras = extras_of(tmp_path / said.out.strip())
    assert extras["condition"] == {"kind": "text", "prompt": "a tall red chair with armrests"}
    assert extras["seed"] == 7
    assert "note:" not in said.err


def test_everything_that_generate_writes_is_written_for_a_prompt(run, tiny_model, tmp_path):
    more = ("--num-samples", 2, "--save-bundle", "run.safetensors", "--preview", "sheet.png", "--json", "-q")
    said = run("text", "a steampunk chair", "--model", tiny_model, *FAST, *more, "-o", "out.glb")
    assert said.code == 0, said.err
    facts = said.json
    assert [Path(output["path"]).name for output in facts["outputs"]] == ["out-1.glb", "out-2.glb"]
    assert "`steampunk`" in facts["notes"][0]
    assert "street lamp" in facts["notes"][0]
    assert {"condition", "structure", "shape", "texture"} <= {stage["stage"] for stage in facts["stages"]}
    made = (tmp_path / "out-1.glb").read_bytes()
    again = run("export", "run.safetensors", "--model", tiny_model, *FAST[2:], "-o", "again.glb", "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "again-1.glb").read_bytes() == made
    assert sorted(p.name for p in tmp_path.glob("sheet*")) == ["sheet-1.png", "sheet-2.png"]


def test_a_prompt_of_ten_thousand_words_is_cut_with_a_note(run, tiny_model, tmp_path):
    said = run("text", "chair " * 10_000, "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    assert "cut to its first 10 words" in said.err
    assert len(said.err) < 5_000
    assert len(said.out) <= LONGEST_NAME + len(".glb\n")
    assert extras_of(tmp_path / said.out.strip())["condition"]["prompt"] == " ".join(["chair"] * 10)


def test_quotes_may_be_forgotten(run, tiny_model, tmp_path):
    said = run("text", "a", "red", "chair", "--model", tiny_model, *FAST, "-q")
    assert said.code == 0, said.err
    assert extras_of(tmp_path / "a-red-chair.glb")["condition"]["prompt"] == "a red chair"


@pytest.mark.parametrize("prompt", ["", "  ", "...", "\n"])
def test_an_empty_prompt_is_bad_input(run, prompt):
    said = run("text", prompt)
    said.assert_one_error(3)
    assert "empty" in said.err


@pytest.mark.parametrize(
    "prompt",
    ["une chaise rouge", "\u6905\u5b50", "\u043a\u0440\u0435\u0441\u043b\u043e", "red", "dragon " * 10_000],
)
def test_a_prompt_without_a_known_object_is_bad_input_and_says_what_is_known(
    run, tiny_model, tmp_path, prompt
):
    said = run("text", prompt, "--model", tiny_model, *FAST, "-q")
    said.assert_one_error(3)
    assert "chair, table, street lamp" in said.err
    assert not list(tmp_path.glob("*.glb"))


def test_a_model_that_takes_no_text_is_wrong_usage_and_the_others_are_named(
    run, mute_model, tiny_model, monkeypatch
):
    said = run("text", "a chair", "--model", mute_model)
    said.assert_one_error(2)
    assert "trellis generate" in said.err
    monkeypatch.setattr(registry, "embedded_folder", lambda: tiny_model)
    said = run("text", "a chair", "--model", mute_model)
    said.assert_one_error(2)
    assert "--model embedded" in said.err


def test_auto_takes_a_model_with_a_text_encoder(private_folders, mute_model, tiny_model, monkeypatch):
    places = {"trellis2-4b": mute_model, "embedded": tiny_model}
    monkeypatch.setattr(registry, "MODELS", {name: registry.MODELS[name] for name in places})
    monkeypatch.setattr(registry, "find_model", lambda name: registry.Found(name, places[name], "asked for"))
    assert registry.choose_model(LARGE_GPU, MemoryRequest()).name == "trellis2-4b"
    found = registry.choose_model(LARGE_GPU, MemoryRequest(), text=True)
    assert found.name == "embedded"
    assert "trellis2-4b takes pictures only" in found.reason


def test_auto_without_any_text_encoder_says_what_else_to_do(private_folders, mute_model, monkeypatch):
    monkeypatch.setattr(registry, "embedded_folder", lambda: mute_model)
    with pytest.raises(ModelError, match="no model that takes text") as error:
        registry.choose_model(CPU, MemoryRequest(), text=True)
    assert "trellis2-4b" not in error.value.message  # it takes no text either
    assert "trellis models pull text-xlarge" in error.value.hint


def test_a_text_encoder_belongs_to_the_checkpoints_of_a_model(tiny_model, mute_model):
    assert registry.references(tiny_model)["text_encoder"] == "ckpts/text_encoder"
    assert registry.has_text(tiny_model)
    assert not registry.has_text(mute_model)
    with pytest.raises(UsageError):
        registry.require_text(registry.Found("mute", mute_model, "asked for"))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A tall RED chair!", "a-tall-red-chair"),
        ("../../etc/passwd", "etc-passwd"),
        ("caf\u00e9 chair", "caf\u00e9-chair"),
        ("\u6905\u5b50", "\u6905\u5b50"),
        ("!?", "text"),
        ("x" * 500, "x" * LONGEST_NAME),
        ("word " * 100, "-".join(["word"] * 9)),
    ],
)
def test_a_file_name_is_made_from_the_first_words(prompt, name):
    assert slug(prompt) == name
    assert len(name) <= LONGEST_NAME


@pytest.mark.parametrize("mode", [(), ("--mode", "multidiffusion")])
def test_several_pictures_become_one_asset(run, picture, back, tiny_model, tmp_path, mode):
    said = run("multi-image", picture, back, *mode, "--model", tiny_model, *FAST, "--steps", 2)
    assert said.code == 0, said.err
    assert said.out == "box.glb\n"
    name = mode[1] if mode else "stochastic"
    facts = extras_of(tmp_path / "box.glb")["condition"]
    assert facts == {"kind": "pictures", "count": 2, "mode": name}


def test_one_picture_gives_what_generate_gives(run, picture, tiny_model, tmp_path):
    assert run("generate", picture, "--model", tiny_model, *FAST, "-q", "-o", "one.glb").code == 0
    assert run("multi-image", picture, "--model", tiny_model, *FAST, "-q", "-o", "same.glb").code == 0
    assert (tmp_path / "one.glb").read_bytes() == (tmp_path / "same.glb").read_bytes()


def test_pictures_that_are_not_used_are_named(run, picture, back, tiny_model):
    said = run("multi-image", picture, back, "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    assert "note: of the 2 pictures only 1 in the structure stage" in said.err


def test_a_missing_picture_among_several_is_bad_input(run, picture, tmp_path):
    said = run("multi-image", picture, "boks.png")
    said.assert_one_error(3)
    assert "`boks.png` does not exist" in said.err
    assert not list(tmp_path.glob("*.glb"))


def test_a_picture_without_object_among_several_is_named(run, picture, tiny_model, tmp_path):
    image = Image.new("RGBA", (64, 64))
    image.putpixel((3, 3), (255, 0, 0, 255))
    image.save(tmp_path / "speck.png")
    said = run("multi-image", picture, "speck.png", "--model", tiny_model, *FAST, "-q")
    said.assert_one_error(3)
    assert "picture 2: the object in the picture is only 1 x 1 pixels" in said.err


def test_no_picture_at_all_is_wrong_usage(run):
    said = run("multi-image")
    assert said.code == 2
    said = run("multi-image", "a.png", "--mode", "round-robin")
    said.assert_one_error(2)


@pytest.mark.parametrize(("command", "arguments"), [("text", ("a chair",)), ("multi-image", ("box.png",))])
def test_an_existing_file_is_kept_without_force(run, picture, tiny_model, tmp_path, command, arguments):
    (tmp_path / "kept.glb").write_text("precious")
    said = run(command, *arguments, "--model", tiny_model, "-o", "kept.glb")
    said.assert_one_error(7)
    assert (tmp_path / "kept.glb").read_text() == "precious"


def test_all_three_commands_take_the_same_options(run):
    def options(command: str) -> set[str]:
        return {word for word in run(command, "--help").out.split() if word.startswith("--")}

    assert options("generate") == options("multi-image")
    assert options("generate") - options("text") == {"--background", "--mode"}
    assert options("text") < options("generate")
