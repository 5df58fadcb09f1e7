"""What bad input gets: a line saying what is wrong, one saying what to do, the exit code, nothing written.

Each case is a function that makes the file. Not tested: unusual files that can be read all the same
(see test_cli_generate.py).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image


def missing(path: Path) -> None: ...


def directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("this is no picture, whatever its name says\n")


def truncated(path: Path) -> None:
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    noise.save(path)
    path.write_bytes(path.read_bytes()[:5000])


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(path)


def enormous(path: Path) -> None:
    """40,000 x 40,000 in a few bytes: only the header is there."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def all_transparent(path: Path) -> None:
    Image.new("RGBA", (64, 64)).save(path)


def one_colour(path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(path)


PICTURES = (missing, directory, empty, text, truncated, one_pixel, enormous, all_transparent, one_colour)


@pytest.mark.parametrize("make", PICTURES, ids=lambda make: make.__name__)
def test_a_bad_picture_is_named_and_nothing_is_written(run, tmp_path, tiny_model, make):
    path = tmp_path / "bad.png"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    said = run("generate", path, "--model", tiny_model, "--quiet")
    said.assert_one_error(3)
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_json_says_the_same_about_a_bad_picture(run, tmp_path, tiny_model):
    text(tmp_path / "bad.png")
    said = run("generate", "bad.png", "--model", tiny_model, "--json")
    assert said.json == {
        "ok": False,
        "exit_code": 3,
        "error": said.json["error"],
        "hint": said.json["hint"],
    } | {key: value for key, value in said.json.items() if key == "stages"}
    assert f"error: {said.json['error']}" in said.err
    assert f"hint: {said.json['hint']}" in said.err


def test_debug_shows_the_traceback(run, tmp_path):
    said = run("generate", "bad.png", "--debug")
    assert said.code == 3
    assert "Traceback" in said.err


def no_such_model(folder: Path) -> str:
    return "no-such-model"


def not_downloaded(folder: Path) -> str:
    return "trellis2-4b"


def unknown_repository(folder: Path) -> str:
    return "nobody/nothing"


def empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def damaged_pipeline(folder: Path) -> Path:
    (folder / "pipeline.json").write_text('{"args": {"models": ')
    return folder


def foreign_pipeline(folder: Path) -> Path:
    (folder / "pipeline.json").write_text('{"name": "StableDiffusionPipeline", "scheduler": ["x"]}')
    return folder


def missing_weights(folder: Path) -> Path:
    next(folder.glob("ckpts/*decoder*.safetensors")).unlink()
    return folder


def missing_configuration(folder: Path) -> Path:
    next(folder.glob("ckpts/*flow*.json")).unlink()
    return folder


def truncated_weights(folder: Path) -> Path:
    path = next(folder.glob("ckpts/sparse_structure_flow*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def foreign_weights(folder: Path) -> Path:
    shutil.copy(
        next(folder.glob("ckpts/sparse_structure_decoder.safetensors")),
        next(folder.glob("ckpts/sparse_structure_flow*.safetensors")),
    )
    return folder


def foreign_class(folder: Path) -> Path:
    path = next(folder.glob("ckpts/sparse_structure_flow*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "SomeOtherNetwork"}))
    return folder


MODELS = (
    no_such_model,
    not_downloaded,
    unknown_repository,
    empty_folder,
    damaged_pipeline,
    foreign_pipeline,
    missing_weights,
    missing_configuration,
    truncated_weights,
    foreign_weights,
    foreign_class,
)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_bad_model_is_named_and_nothing_is_written(run, tmp_path, tiny_model, picture, make):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    name = make(folder)
    said = run("generate", picture, "--model", name, "--quiet", "--steps", 1)
    said.assert_one_error(4)
    assert not (tmp_path / "box.glb").exists()


def test_a_model_that_is_not_here_gets_the_command_that_fetches_it(run, picture):
    assert "trellis models pull trellis2-4b" in run("generate", picture, "--model", "trellis2-4b").err


def foreign_tensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "make", (missing, directory, empty, text, foreign_tensors), ids=lambda make: make.__name__
)
@pytest.mark.parametrize("command", ["export", "render"])
def test_a_bad_bundle_is_named(run, tmp_path, tiny_model, command, make):
    make(tmp_path / "run.safetensors")
    run(command, "run.safetensors", "--model", tiny_model, "--quiet").assert_one_error(3)


@pytest.mark.parametrize("make", (missing, directory, empty, text), ids=lambda make: make.__name__)
@pytest.mark.parametrize("suffix", [".glb", ".obj", ".stl", ".ply"])
def test_a_bad_mesh_is_named(run, tmp_path, make, suffix):
    make(tmp_path / f"mesh{suffix}")
    run("render", f"mesh{suffix}", "--quiet").assert_one_error(3)


def test_a_file_of_unknown_kind_cannot_be_rendered(run, tmp_path):
    text(tmp_path / "notes.txt")
    run("render", "notes.txt").assert_one_error(3)
