"""Strict loading: what fits is loaded bit by bit, what does not fit is named.

Not tested: devices other than the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trellis2.models.latent_flow import SLatFlowModel
from trellis_core.errors import ModelError
from trellis_core.models.image_encoder import DINOv3ViT
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder
from trellis_core.weights.load import build_model, compare_manifest, configured_dtype, load_model

CLASSES: dict[str, type[nn.Module]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SLatFlowModel": SLatFlowModel,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SparseStructureDecoder": SparseStructureDecoder,
    "DINOv3ViT": DINOv3ViT,
}
MANIFESTS = sorted((Path(__file__).parents[1] / "golden" / "manifests").glob("*.json"))
MINE = [path for path in MANIFESTS if json.loads(path.read_text())["config"]["name"] in CLASSES]

FLOW: dict[str, Any] = {
    "resolution": 2,
    "in_channels": 2,
    "model_channels": 24,
    "cond_channels": 4,
    "out_channels": 2,
    "num_blocks": 1,
    "num_heads": 2,
    "pe_mode": "rope",
    "share_mod": True,
    "qk_rms_norm": True,
}


def save(stem: Path, model: nn.Module, name: str, args: dict[str, Any], **extra: torch.Tensor) -> None:
    stem.with_name(stem.name + ".json").write_text(json.dumps({"name": name, "args": args}))
    save_file({**model.state_dict(), **extra}, stem.with_name(stem.name + ".safetensors"))


@pytest.fixture
def flow(tmp_path: Path) -> tuple[Path, SparseStructureFlowModel]:
    model = SparseStructureFlowModel(**FLOW)
    save(tmp_path / "flow", model, "SparseStructureFlowModel", FLOW)
    return tmp_path / "flow", model


@pytest.mark.parametrize("path", MINE, ids=lambda path: path.stem)
def test_published_checkpoints_fit_the_networks_key_by_key(path):
    manifest = json.loads(path.read_text())
    model = build_model(manifest["config"], CLASSES)
    model.set_torso_dtype(configured_dtype(manifest["config"]))
    assert compare_manifest(model, manifest) == []


def test_a_manifest_that_differs_is_described():
    manifest = json.loads(next(path for path in MINE if path.stem.startswith("ss_dec")).read_text())
    model = build_model(manifest["config"], CLASSES)  # still float32
    tensors = manifest["tensors"]
    tensors["foreign"] = tensors.pop("input_layer.bias")
    tensors["input_layer.weight"]["shape"] = [1]
    said = " ".join(compare_manifest(model, manifest))
    for words in ("missing `input_layer.bias`", "unexpected `foreign`", "has shape [1]", "instead of F16"):
        assert words in said


def test_a_loaded_network_is_the_saved_one(flow):
    stem, model = flow
    loaded = load_model(stem, CLASSES)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    x, t, cond = torch.randn(1, 2, 2, 2, 2), torch.tensor([500.0]), torch.randn(1, 3, 4)
    torch.testing.assert_close(loaded(x, t, cond), model(x, t, cond))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_torso_is_converted_and_the_rest_widened_to_float32(tmp_path):
    model = SparseStructureFlowModel(**FLOW)
    save(tmp_path / "flow", model.bfloat16(), "SparseStructureFlowModel", {**FLOW, "dtype": "bfloat16"})
    loaded = load_model(tmp_path / "flow", CLASSES)
    kept = {name for name, p in loaded.named_parameters() if p.dtype == torch.float32}
    assert "input_layer.weight" in kept
    assert "blocks.0.modulation" in kept
    assert "blocks.0.self_attn.q_rms_norm.gamma" in kept
    assert loaded.blocks[0].mlp.mlp[0].weight.dtype == torch.bfloat16
    again = load_model(tmp_path / "flow", CLASSES, dtype=torch.float32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_loading_draws_no_random_numbers(flow):
    state = torch.get_rng_state()
    load_model(flow[0], CLASSES)
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_that_say_nothing_about_the_network_are_ignored(flow, tmp_path):
    args = {**FLOW, "use_fp16": True, "use_checkpoint": True, "block_args": [{}, {"use_checkpoint": True}]}
    save(tmp_path / "other", flow[1], "SparseStructureFlowModel", args)
    assert load_model(tmp_path / "other", CLASSES).dtype == torch.float16
    vae = {"in_channels": 1, "latent_channels": 2, "num_res_blocks": 1, "channels": [4], "resolution": 64}
    encoder = SparseStructureEncoder(1, 2, 1, [4])
    save(tmp_path / "encoder", encoder, "SparseStructureEncoder", vae)
    assert load_model(tmp_path / "encoder", CLASSES).dtype == torch.float32


def test_computed_buffers_may_be_present_or_absent(tmp_path):
    model = SparseStructureFlowModel(**FLOW)
    save(tmp_path / "rope", model, "SparseStructureFlowModel", FLOW, rope_phases=torch.zeros(8, 6))
    assert torch.equal(load_model(tmp_path / "rope", CLASSES).rope_phases, model.rope_phases)

    args = {**FLOW, "pe_mode": "ape"}
    model = SparseStructureFlowModel(**args)
    save(tmp_path / "ape", model, "SparseStructureFlowModel", args)
    (tmp_path / "without.json").write_text((tmp_path / "ape.json").read_text())
    save_file(
        {k: v for k, v in model.state_dict().items() if k != "pos_emb"}, tmp_path / "without.safetensors"
    )
    for name in ("ape", "without"):
        assert torch.equal(load_model(tmp_path / name, CLASSES).pos_emb, model.pos_emb)


def test_keys_that_do_not_fit_are_named(flow):
    stem, model = flow
    state = model.state_dict()
    state["blocks.0.mlp.conv.weight"] = state.pop("blocks.0.mlp.mlp.0.weight")
    state["out_layer.bias"] = torch.zeros(3)
    save_file(state, stem.with_name("flow.safetensors"))
    with pytest.raises(ModelError) as error:
        load_model(stem, CLASSES)
    assert "missing `blocks.0.mlp.mlp.0.weight`" in error.value.message
    assert "unexpected `blocks.0.mlp.conv.weight`" in error.value.message
    assert "`out_layer.bias` has shape [3] instead of [2]" in error.value.message
    assert "models pull" in error.value.hint


def test_many_misfits_are_counted(flow):
    stem, _ = flow
    save_file({"a": torch.zeros(1)}, stem.with_name("flow.safetensors"))
    with pytest.raises(ModelError, match=r"and \d+ more"):
        load_model(stem, CLASSES)


@pytest.mark.parametrize("keep", [0, 5, 100, -7])
def test_a_truncated_file_is_a_model_error(flow, keep):
    stem, _ = flow
    path = stem.with_name("flow.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="damaged"):
        load_model(stem, CLASSES)


def test_other_file_formats_are_refused_with_the_reason(flow):
    stem, _ = flow
    stem.with_name("flow.safetensors").rename(stem.with_name("flow.pt"))
    with pytest.raises(ModelError) as error:
        load_model(stem, CLASSES)
    assert "only safetensors" in error.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "no `name`"),
        ('{"name": "Nonsense"}', "unknown network `Nonsense`"),
        ('{"name": "SLatFlowModel", "args": {"colour": 3}}', "does not fit `SLatFlowModel`"),
        ('{"name": "SLatFlowModel", "args": {"block_args": [{"window": 8}]}}', "block_args"),
    ],
)
def test_a_bad_configuration_is_a_model_error(tmp_path, text, words):
    if text is not None:
        (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "bad", CLASSES)


def test_a_checkpoint_name_may_contain_dots(flow, tmp_path):
    save(tmp_path / "flow.v1.3", flow[1], "SparseStructureFlowModel", FLOW)
    assert load_model(tmp_path / "flow.v1.3", CLASSES).resolution == 2
