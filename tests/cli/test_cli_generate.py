"""`generate`, `export`, `render` and `texture` from end to end, with a tiny model of the real classes.

The model's weights are random: it makes a cloud of fragments, so the quality check has something to say.
Not tested: whether the result resembles the picture.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from PIL import Image

FAST = ("--steps", 1, "--faces", 2000, "--texture", 64)


def glb_json(path: Path) -> dict:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size])


def test_a_picture_becomes_a_glb_and_stdout_says_where(run, picture, tiny_model, tmp_path):
    said = run("generate", picture, "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    assert said.out == "box.glb\n"
    assert glb_json(tmp_path / "box.glb")["asset"]["extras"]["seed"] == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["box.glb", "box.png"]
    for word in ("model", "structure", "shape", "texture", "quality"):
        assert word in said.err


def test_json_reports_everything_once(run, picture, tiny_model, tmp_path):
    said = run(
        "generate",
        picture,
        "--model",
        tiny_model,
        *FAST,
        "--json",
        "--num-samples",
        2,
        "--seed",
        7,
        "--save-bundle",
        "run.safetensors",
        "--preview",
        "sheet.png",
    )
    assert said.code == 0, said.err
    facts = said.json
    assert facts["ok"] is True
    assert [output["path"] for output in facts["outputs"]] == ["box-1.glb", "box-2.glb"]
    assert facts["bundle"] == "run.safetensors"
    for index, output in enumerate(facts["outputs"]):
        path = tmp_path / output["path"]
        assert path.stat().st_size == output["bytes"]
        assert output["faces"] <= 2000
        assert output["texture"] == 64
        assert set(output["quality"]) == {"passed", "problems", "metrics"}
        assert Image.open(tmp_path / output["preview"]).size[0] > 500
        extras = glb_json(path)["asset"]["extras"]
        assert (extras["seed"], extras["sample"]) == (7, index)
    assert {"structure", "shape", "texture"} <= {stage["stage"] for stage in facts["stages"]}
    assert facts["plan"]["fits"] is True


def test_json_events_are_lines_and_the_last_one_is_the_result(run, picture, tiny_model):
    said = run("generate", picture, "--model", tiny_model, *FAST, "--json-events")
    assert said.code == 0, said.err
    kinds = [event["event"] for event in said.events]
    assert kinds[-1] == "result"
    assert kinds.count("result") == 1
    assert {"progress", "written"} <= set(kinds)
    assert said.events[-1]["outputs"][0]["path"] == "box.glb"


def test_the_same_seed_makes_the_same_file_and_another_seed_another(run, picture, tiny_model, tmp_path):
    for name, seed in (("a.glb", 1), ("b.glb", 1), ("c.glb", 2)):
        assert (
            run("generate", picture, "--model", tiny_model, *FAST, "-o", name, "--seed", seed, "-q").code == 0
        )
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.glb", "b.glb", "c.glb"))
    assert a == b != c


def test_an_existing_file_is_kept_without_force_and_replaced_with_it(run, picture, tiny_model, tmp_path):
    (tmp_path / "box.glb").write_text("precious")
    said = run("generate", picture, "--model", tiny_model, *FAST)
    said.assert_one_error(7)
    assert "--force" in said.err
    assert (tmp_path / "box.glb").read_text() == "precious"
    assert run("generate", picture, "--model", tiny_model, *FAST, "--force").code == 0
    assert glb_json(tmp_path / "box.glb")


def test_strict_keeps_the_file_and_exits_with_6(run, picture, tiny_model, tmp_path):
    plain = run("generate", picture, "--model", tiny_model, *FAST, "-o", "a.glb")
    assert "warning:" in plain.err, "the fragments of the tiny model should not pass the check"
    said = run("generate", picture, "--model", tiny_model, *FAST, "--strict", "--json")
    assert said.code == 6
    assert said.json["ok"] is False
    assert said.json["exit_code"] == 6
    assert (tmp_path / said.json["outputs"][0]["path"]).exists()
    assert said.json["outputs"][0]["quality"]["problems"]


def test_steps_and_guidance_reach_the_stages(run, picture, tiny_model, tmp_path):
    said = run(
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
        "--shape-guidance",
        2,
        "--faces",
        500,
        "--texture",
        64,
    )
    assert said.code == 0, said.err
    samplers = glb_json(tmp_path / "box.glb")["asset"]["extras"]["samplers"]
    assert [samplers[stage]["steps"] for stage in ("structure", "shape", "texture")] == [2, 3, 2]
    assert samplers["structure"]["guidance_scale"] == 6.0
    assert samplers["shape"]["guidance_scale"] == 2.0


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "png"), ("CMYK", "jpg"), ("P", "png"), ("LA", "png"), ("animated", "gif")]
)
def test_unusual_pictures_are_read(run, picture, tiny_model, tmp_path, mode, kind):
    image = Image.open(picture)
    path = tmp_path / f"unusual.{kind}"
    if mode == "animated":
        frames = [image.convert("RGB"), Image.new("RGB", image.size)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif mode == "I;16":
        image.convert("L").convert("I").point(lambda v: v * 256).convert("I;16").save(path)
    else:
        (image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)).save(path)
    said = run("generate", path, "--model", tiny_model, *FAST)
    assert said.code == 0, said.err
    if mode == "animated":
        assert "frames" in said.err


def test_a_saved_run_exports_to_the_same_asset(run, picture, tiny_model, tmp_path):
    options = ("--faces", 2000, "--texture", 64, "-q")
    run(
        "generate", picture, "--model", tiny_model, "--steps", 1, "--save-bundle", "run.safetensors", *options
    )
    said = run("export", "run.safetensors", "--model", tiny_model, *options)
    assert said.code == 0, said.err
    assert said.out == "run.glb\n"
    assert (tmp_path / "run.glb").read_bytes() == (tmp_path / "box.glb").read_bytes()


def test_a_run_of_several_samples_exports_to_several_files(run, picture, tiny_model):
    run(
        "generate",
        picture,
        "--model",
        tiny_model,
        *FAST,
        "--num-samples",
        2,
        "--save-bundle",
        "run.safetensors",
    )
    said = run("export", "run.safetensors", "--model", tiny_model, *FAST[2:])
    assert said.out.split() == ["run-1.glb", "run-2.glb"], said.err


def test_a_bundle_of_another_model_is_bad_input(run, picture, tiny_model, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    run("generate", picture, "--model", tiny_model, *FAST, "--save-bundle", "run.safetensors")
    shutil.copytree(tiny_model, tmp_path / "other")
    weights = next((tmp_path / "other").glob("ckpts/shape_slat_decoder*.safetensors"))
    changed = {name: tensor + torch.ones_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(changed, weights)
    said = run("export", "run.safetensors", "--model", tmp_path / "other", "-o", "x.glb", "-q")
    said.assert_one_error(3)
    assert not (tmp_path / "x.glb").exists()


def test_an_asset_and_a_saved_run_can_be_drawn(run, picture, tiny_model, tmp_path):
    run("generate", picture, "--model", tiny_model, *FAST, "--save-bundle", "run.safetensors")
    asset = run("render", "box.glb", "-o", "asset.png")
    saved = run("render", "run.safetensors", "--model", tiny_model)
    assert (asset.out, saved.out) == ("asset.png\n", "run.png\n"), asset.err + saved.err
    for name in ("asset.png", "run.png"):
        image = Image.open(tmp_path / name).convert("L")
        assert image.size == (4 * 384, 2 * 384)
        assert len(set(image.resize((64, 32)).getdata())) > 5, "the sheet shows something"


def test_a_mesh_gets_a_texture_from_a_picture(run, picture, tiny_model, tmp_path):
    import trimesh

    trimesh.creation.box((1, 2, 1)).export(tmp_path / "mesh.obj")
    said = run("texture", "mesh.obj", picture, "--model", tiny_model, "--texture-steps", 1, "--texture", 64)
    assert said.code == 0, said.err
    assert said.out == "mesh-textured.glb\n"
    assert glb_json(tmp_path / "mesh-textured.glb")["textures"]
