"""`generate`, `export`, `render` and `texture` from end to end, with a tiny model of the real classes.

The model's weights are random: it makes a cloud of fragments, so the quality check has something to say.
One run of two samples (`finished`) serves most tests. Not tested: whether the result resembles the picture.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trellis_cli.app import main

FAST = ("--steps", 1, "--faces", 2000, "--texture", 64)


def glb_json(path: Path) -> dict:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size])


@dataclass(frozen=True)
class Finished:
    """A run with everything switched on: its folder and what `--json` said."""

    folder: Path
    facts: dict[str, Any]

    @property
    def bundle(self) -> Path:
        return self.folder / "run.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model) -> Finished:
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("finished")
    picture = folder / "box.png"
    image = Image.new("RGBA", (96, 96))
    image.paste((200, 40, 30, 255), (20, 30, 76, 80))
    image.save(picture)
    arguments = [
        *("generate", picture, "--model", tiny_model, *FAST, "--json", "-q", "--num-samples", 2, "--seed", 7),
        *("-o", folder, "--save-bundle", folder / "run.safetensors", "--preview", folder / "sheet.png"),
    ]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([str(a) for a in arguments]) == 0
    return Finished(folder, json.loads(out.getvalue()))


def test_a_picture_becomes_a_glb_and_stdout_says_where(run, picture, tiny_model, tmp_path):
    said = run("generate", picture, "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    assert said.out == "box.glb\n"
    assert glb_json(tmp_path / "box.glb")["asset"]["extras"]["seed"] == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["box.glb", "box.png"]
    for word in ("model", "structure", "shape", "texture", "quality", "warning:"):
        assert word in said.err


def test_json_reports_everything_once(finished):
    facts = finished.facts
    assert facts["ok"] is True
    assert [Path(output["path"]).name for output in facts["outputs"]] == ["box-1.glb", "box-2.glb"]
    assert facts["bundle"] == str(finished.bundle)
    assert {"structure", "shape", "texture"} <= {stage["stage"] for stage in facts["stages"]}
    assert facts["plan"]["fits"] is True
    for index, output in enumerate(facts["outputs"]):
        path = Path(output["path"])
        assert path.stat().st_size == output["bytes"]
        assert output["faces"] <= 2000
        assert output["texture"] == 64
        assert output["quality"]["passed"] is False
        assert output["quality"]["problems"]
        extras = glb_json(path)["asset"]["extras"]
        assert (extras["seed"], extras["sample"]) == (7, index)


def test_the_samples_of_a_run_differ(finished):
    first, second = ((finished.folder / name).read_bytes() for name in ("box-1.glb", "box-2.glb"))
    assert first != second


def test_every_sample_gets_its_preview(finished):
    for output in finished.facts["outputs"]:
        sheet = Image.open(output["preview"]).convert("L")
        assert sheet.size == (4 * 384, 2 * 384)
        assert len(sheet.resize((64, 32)).getcolors()) > 5, "the sheet shows something"


def test_a_saved_run_exports_to_the_same_assets(run, finished, tiny_model, tmp_path):
    said = run("export", finished.bundle, "--model", tiny_model, *FAST[2:], "--json-events")
    assert said.code == 0, said.err
    for number in (1, 2):
        exported = (tmp_path / f"run-{number}.glb").read_bytes()
        assert exported == (finished.folder / f"box-{number}.glb").read_bytes()
    kinds = [event["event"] for event in said.events]
    assert kinds[-1] == "result"
    assert kinds.count("result") == 1
    assert kinds.count("written") == 2
    assert "progress" in kinds


def test_a_saved_run_can_be_drawn(run, finished, tiny_model, tmp_path):
    said = run("render", finished.bundle, "--model", tiny_model)
    assert said.out.split() == ["run-1.png", "run-2.png"], said.err
    assert len(Image.open(tmp_path / "run-1.png").convert("L").resize((64, 32)).getcolors()) > 5


def test_an_asset_can_be_drawn(run, finished, tmp_path):
    said = run("render", finished.folder / "box-1.glb", "-o", "asset.png")
    assert said.out == "asset.png\n", said.err
    assert Image.open(tmp_path / "asset.png").size == (4 * 384, 2 * 384)


def test_a_bundle_of_another_model_is_bad_input(run, finished, tiny_model, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "other")
    weights = tmp_path / "other" / "ckpts" / "shape_slat_decoder.safetensors"
    save_file(
        {name: tensor + torch.ones_like(tensor) for name, tensor in load_file(weights).items()}, weights
    )
    said = run("export", finished.bundle, "--model", tmp_path / "other", "-o", "x.glb", "-q")
    said.assert_one_error(3)
    assert not (tmp_path / "x.glb").exists()


def test_a_bundle_of_a_model_without_a_name_asks_for_its_folder(run, finished, tiny_model):
    order = ("export", finished.bundle, "-o", "x.glb", "-q", "--texture", 64)
    said = run(*order)
    said.assert_one_error(4)
    assert "--model PATH" in said.err
    assert run(*order, "--model", tiny_model).code == 0


def test_a_bundle_of_the_embedded_model_finds_it(run, picture):
    few = ("--steps", 4, "--texture", 512, "-q")
    made = run("generate", picture, "--model", "embedded", "--save-bundle", "b.safetensors", *few)
    assert made.code == 0, made.err
    said = run("export", "b.safetensors", "-o", "again.glb", "-q", "--texture", 512)
    assert said.code == 0, said.err


def test_a_run_is_kept_when_its_asset_cannot_be_made(run, picture, tmp_path):
    few = ("--steps", 1, "--texture", 16, "-q", "-o", "small.glb")
    said = run("generate", picture, "--model", "embedded", *few)
    said.assert_one_error(2)
    assert "trellis export small.safetensors" in said.err
    assert (tmp_path / "small.safetensors").exists()
    assert not (tmp_path / "small.glb").exists()


def test_an_existing_file_is_kept_without_force(run, picture, tiny_model, tmp_path):
    (tmp_path / "box.glb").write_text("precious")
    said = run("generate", picture, "--model", tiny_model)
    said.assert_one_error(7)
    assert "--force" in said.err
    assert (tmp_path / "box.glb").read_text() == "precious"


def test_strict_keeps_the_file_and_exits_with_6(run, picture, tiny_model, tmp_path):
    (tmp_path / "box.glb").write_text("old")
    said = run("generate", picture, "--model", tiny_model, *FAST, "--strict", "--json", "--force")
    assert said.code == 6
    assert said.json["ok"] is False
    assert said.json["exit_code"] == 6
    assert said.json["outputs"][0]["quality"]["problems"]
    assert glb_json(tmp_path / "box.glb")


def test_steps_and_guidance_reach_the_stages(run, picture, tiny_model, tmp_path):
    said = run(
        *(
            "generate",
            picture,
            "--model",
            tiny_model,
            "--steps",
            2,
            "--shape-steps",
            3,
            "--subject",
            "ambiguous",
        ),
        *("--shape-guidance", 2, "--preset", "lowpoly", "--texture", 64, "--json"),
    )
    assert said.code == 0, said.err
    extras = glb_json(tmp_path / "box.glb")["asset"]["extras"]
    samplers = extras["samplers"]
    assert [samplers[stage]["steps"] for stage in ("structure", "shape", "texture")] == [2, 3, 2]
    assert samplers["structure"]["guidance_scale"] == 6.0
    assert samplers["shape"]["guidance_scale"] == 2.0
    assert (extras["export"]["faces"], extras["export"]["texture_size"]) == (2000, 64)


def test_an_animation_says_that_its_first_frame_is_used(run, tiny_model, tmp_path):
    frames = [Image.new("RGB", (64, 64), "white") for _ in range(2)]
    frames[0].paste("red", (16, 16, 48, 48))
    frames[0].save(tmp_path / "loop.gif", save_all=True, append_images=frames[1:])
    said = run("generate", "loop.gif", "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    assert "several frames" in said.err


def test_a_mesh_gets_a_texture_from_a_picture(run, picture, tiny_model, tmp_path):
    import trimesh

    trimesh.creation.box((1, 2, 1)).export(tmp_path / "mesh.obj")
    said = run("texture", "mesh.obj", picture, "--model", tiny_model, "--texture-steps", 1, "--texture", 64)
    assert said.code == 0, said.err
    assert said.out == "mesh-textured.glb\n"
    assert glb_json(tmp_path / "mesh-textured.glb")["textures"]


def test_nothing_is_downloaded_for_auto(run, picture, monkeypatch):
    """`auto` either finds a model here or says how to get one; it never opens a connection."""
    import socket

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    said = run("generate", picture, "--model", "trellis2-4b")
    said.assert_one_error(4)
