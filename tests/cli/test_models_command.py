"""`trellis models`: what is here, get more, check what is there.

The hub is a small server on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.hub_server import Hub, serve
from trellis_cli import registry
from trellis_cli.released import released_networks, released_sizes
from trellis_core.weights import hub

WEIGHTS = save({"a": torch.arange(6.0)})
MODEL, OTHER, ENCODER = "maker/model", "other/parts", "lab/encoder"
PIPELINE = {
    "name": "Trellis2ImageTo3DPipeline",
    "args": {
        "models": {"flow": "ckpts/flow", "decoder": f"{OTHER}/ckpts/decoder"},
        "image_cond_model": {"name": "Encoder", "args": {"model_name": ENCODER}},
    },
}
FILES = {
    MODEL: {
        "pipeline.json": json.dumps(PIPELINE).encode(),
        "ckpts/flow.json": b'{"name": "Flow", "args": {}}',
        "ckpts/flow.safetensors": WEIGHTS,
        "ckpts/unused.safetensors": WEIGHTS,
        "picture.png": b"no",
    },
    OTHER: {
        "ckpts/decoder.json": b'{"name": "Decoder", "args": {}}',
        "ckpts/decoder.safetensors": save({"b": torch.ones(2)}),
    },
    ENCODER: {"config.json": b'{"hidden_size": 8}', "model.safetensors": save({"c": torch.ones(3)})},
    "maker/pictures": {"README.md": b"no model"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder in the released layout."""
    root = tmp_path / "mine"
    (root / "ckpts").mkdir(parents=True)
    args = {"models": {"flow": "ckpts/flow"}, "image_cond_model": {"args": {"model_name": "ckpts/eye"}}}
    (root / "pipeline.json").write_text(json.dumps({"name": "P", "args": args}))
    for name in ("flow", "eye"):
        (root / "ckpts" / f"{name}.json").write_text("{}")
        (root / "ckpts" / f"{name}.safetensors").write_bytes(WEIGHTS)
    return root


def trellis(server: Hub, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in its own process: the hub's library reads its settings once."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
    }
    command = [sys.executable, "-m", "trellis_cli", "models", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_list_names_every_model_its_licence_and_how_to_get_it(run):
    models = {m["name"]: m for m in run("models", "list", "--json").json["models"]}
    assert set(models) == set(registry.MODELS)
    big = models["trellis2-4b"]
    assert big["licence"] == "MIT" and big["repository"] == "microsoft/TRELLIS.2-4B"
    if big["state"] == "absent":
        assert "trellis models pull trellis2-4b" in run("models", "list").out
        assert 16.0e9 < big["bytes"] < 16.4e9


def test_the_list_says_which_models_take_text_and_which_networks_find_objects(run):
    said = run("models", "list", "--json").json
    assert all(isinstance(model["text"], bool) for model in said["models"])
    assert not next(m for m in said["models"] if m["name"] == "trellis2-4b")["text"]
    networks = {network["name"]: network for network in said["background"]}
    assert networks["birefnet"]["licence"] == "MIT" and networks["birefnet"]["state"] in ("absent", "ready")
    lines = run("models", "list").out.splitlines()
    assert "text" in lines[0].split() and any(line.startswith("birefnet ") for line in lines)


def test_a_background_network_is_one_file_that_is_pulled_by_name_and_verified(tmp_path):
    files = {"ZhengPeng7/BiRefNet": {"model.safetensors": WEIGHTS, "birefnet.py": b"raise SystemExit"}}
    with serve(Hub(files)) as server:
        answer = trellis(server, tmp_path, "pull", "birefnet", "--json")
        assert answer.returncode == 0, answer.stderr
        assert "has changed its weights" in answer.stderr  # these are not the published ones
        assert [path for path in server.downloads if not path.startswith("api")] == [
            "ZhengPeng7/BiRefNet/model.safetensors"
        ]
        path = Path(json.loads(answer.stdout)["model"]["file"])
        assert path.read_bytes() == WEIGHTS
        assert "whole" in trellis(server, tmp_path, "verify", "birefnet").stdout
        path.resolve().chmod(0o644)
        path.resolve().write_bytes(WEIGHTS[:-4] + b"\0\0\0\0")
        assert trellis(server, tmp_path, "verify", "birefnet").returncode == 4


def test_a_text_encoder_is_pulled_with_its_tokenizer(tmp_path):
    args = {**PIPELINE["args"], "text_cond_model": {"args": {"model": "lab/words"}}}
    words = {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "vocab.json": b'{"a": 0}',
        "merges.txt": b"#",
    }
    pipeline = json.dumps({"name": "P", "args": args}).encode()
    with serve(
        Hub({**FILES, MODEL: {**FILES[MODEL], "pipeline.json": pipeline}, "lab/words": words})
    ) as server:
        answer = trellis(server, tmp_path, "pull", MODEL)
        assert answer.returncode == 0, answer.stderr
        assert {f"lab/words/{name}" for name in words} <= set(server.downloads)


def test_a_model_is_pulled_with_what_it_takes_from_other_repositories_and_is_whole(tmp_path):
    with serve(Hub(FILES)) as server:
        answer = trellis(server, tmp_path, "pull", MODEL, "--json")
        assert answer.returncode == 0, answer.stderr
        facts = json.loads(answer.stdout)
        assert facts["download"]["files"] == 6
        assert "maker/model/ckpts/unused.safetensors" not in server.downloads
        assert {"other/parts/ckpts/decoder.safetensors", "lab/encoder/model.safetensors"} <= set(
            server.downloads
        )
        root = Path(facts["model"]["folder"])
        assert hub.find_checkpoint("ckpts/flow", root) == root / "ckpts" / "flow"
        fetched = len(server.downloads)
        again = trellis(server, tmp_path, "pull", MODEL)
        assert again.stdout.strip() == str(root) and len(server.downloads) == fetched
        checked = trellis(server, tmp_path, "verify", MODEL)
        assert checked.returncode == 0 and "whole" in checked.stdout
        weights = (root / "ckpts" / "flow.safetensors").resolve()
        weights.chmod(0o644)
        weights.write_bytes(WEIGHTS[:-4] + b"\0\0\0\0")
        damaged = trellis(server, tmp_path, "verify", MODEL)
        assert damaged.returncode == 4 and "SHA-256" in damaged.stdout


def test_the_size_can_be_asked_for_without_downloading_weights(tmp_path):
    with serve(Hub(FILES)) as server:
        answer = trellis(server, tmp_path, "pull", MODEL, "--size-only", "--json")
        assert json.loads(answer.stdout)["download"]["bytes"] > len(WEIGHTS)
        assert not any(path.endswith(".safetensors") for path in server.downloads)


def test_a_licence_that_was_not_accepted_stops_before_the_gigabytes(tmp_path):
    with serve(Hub(FILES, gated={ENCODER})) as server:
        answer = trellis(server, tmp_path, "pull", MODEL)
        assert answer.returncode == 4
        assert "licence" in answer.stderr and f"huggingface.co/{ENCODER}" in answer.stderr
        assert "Traceback" not in answer.stderr
        assert "maker/model/ckpts/flow.safetensors" not in server.downloads


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maker/pictures", "released layout"),
        ("nobody/nothing", "does not exist"),
        ("nonsense", "no model `nonsense`"),
    ],
)
def test_what_cannot_be_pulled_is_a_model_error(tmp_path, name, said):
    with serve(Hub(FILES)) as server:
        answer = trellis(server, tmp_path, "pull", name)
    assert answer.returncode == 4 and said in answer.stderr and "hint:" in answer.stderr


def test_verifying_a_whole_folder_says_so(run, folder):
    answer = run("models", "verify", folder)
    assert answer.code == 0 and "whole" in answer.out


def test_verifying_names_every_damaged_and_missing_file(run, folder):
    flow = folder / "ckpts" / "flow.safetensors"
    flow.write_bytes(flow.read_bytes()[:-3])
    (folder / "ckpts" / "eye.safetensors").unlink()
    answer = run("models", "verify", folder, "--json")
    assert answer.code == 4
    (model,) = answer.json["models"]
    assert any("eye" in problem for problem in model["problems"])
    assert any("flow.safetensors" in problem for problem in model["problems"])


def test_verifying_a_model_that_is_not_here_is_a_model_error(run):
    run("models", "verify", "nobody/nothing").assert_one_error(4)


def test_the_released_model_is_known_before_it_is_downloaded():
    """Eight networks of the pipeline and the picture encoder, with their published sizes."""
    sizes = released_sizes("trellis2-4b")
    assert len(sizes) == 9
    assert sizes["sparse_structure_flow_model"] == 2_584_426_920
    networks = released_networks("trellis2-4b")
    assert networks["image_encoder"][0]["args"]["hidden_size"] == 1024
    assert networks["shape_slat_decoder"][0]["name"] == "FlexiDualGridVaeDecoder"
    for name, (_, parameters) in networks.items():
        assert parameters == pytest.approx(sizes[name] / (4 if name == "image_encoder" else 2), rel=1e-4)
    assert released_sizes("somebody/else") == {}
