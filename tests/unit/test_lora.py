"""Low-rank adapters on the real flow classes at tiny sizes.

Properties: a new adapter changes nothing, bit for bit; gradients reach the adapter alone; merging equals
applying; saving and loading give the same outputs; an adapter refuses foreign weights.
Letters: R latent grid, T tokens, C channels.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trellis2.models import MODELS
from trellis_core.errors import ModelError, UsageError
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.lora import LoRA, add_lora, base_fingerprint, load_lora, read_lora

SIZES = {
    "resolution": 4,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 24,
    "cond_channels": 12,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "pe_mode": "rope",
    "share_mod": True,
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}
FLOWS = ("SparseStructureFlowModel", "SLatFlowModel")


def flow(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name](**SIZES)
    for parameter in model.parameters():  # silent gates and outputs would hide every change
        nn.init.normal_(parameter, std=0.2)
    return model


def velocity(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    cond = torch.randn(2, 5, 12, generator=generator)
    t = torch.tensor([300.0, 800.0])
    if type(model).__name__ == "SparseStructureFlowModel":
        return model(torch.randn(2, 4, 4, 4, 4, generator=generator), t, cond)
    coords = torch.tensor([[b, i, i * b, 1] for b in (0, 1) for i in range(3 + b)], dtype=torch.int32)
    x = SparseTensor(torch.randn(len(coords), 4, generator=generator), coords, 2)
    return model(x, t, cond).feats


def stirred(lora: LoRA) -> LoRA:
    """An adapter that has learned something."""
    generator = torch.Generator().manual_seed(2)
    for parameter in lora.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return lora


@pytest.mark.parametrize("name", FLOWS)
def test_a_new_adapter_changes_no_bit_of_the_output(name):
    model = flow(name)
    before = velocity(model)
    lora = add_lora(model, rank=3)
    assert torch.equal(velocity(model), before)
    velocity(model).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in lora.parameters())


@pytest.mark.parametrize("name", FLOWS)
def test_only_the_adapter_learns(name):
    model = flow(name)
    lora = stirred(add_lora(model, rank=3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(lora.parameters(), lr=0.1)
    velocity(model).square().mean().backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lora.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sum(p.numel() for p in lora.parameters()) < sum(p.numel() for p in model.parameters()) / 2


@pytest.mark.parametrize("name", FLOWS)
def test_merging_equals_applying_and_keeps_the_released_names(name):
    model, names = flow(name), set(flow(name).state_dict())
    plain = velocity(model)
    lora = stirred(add_lora(model, rank=3, alpha=6.0))
    applied = velocity(model)
    lora.merge()
    assert (applied - plain).abs().max() > 1e-2
    assert torch.allclose(velocity(model), applied, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names
    with pytest.raises(UsageError):
        lora.merge()


@pytest.mark.parametrize("name", FLOWS)
def test_an_adapter_survives_saving_and_loading(name, tmp_path):
    model = flow(name)
    plain = velocity(model)
    lora = stirred(add_lora(model, rank=3, alpha=2.0))
    lora.save(tmp_path / "a.safetensors", recipe="tiny")
    tensors, about = read_lora(tmp_path / "a.safetensors")
    assert about["rank"] == 3 and about["alpha"] == 2.0 and about["recipe"] == "tiny"
    assert about["base"] == base_fingerprint(flow(name))
    assert {k.rsplit(".", 2)[1] for k in tensors} == {"lora_A", "lora_B"}
    other = flow(name)
    loaded = load_lora(tmp_path / "a.safetensors", other)
    assert torch.equal(velocity(other), velocity(model))
    loaded.remove()
    assert torch.equal(velocity(other), plain)


def test_an_adapter_refuses_weights_it_was_not_trained_on(tmp_path):
    add_lora(flow("SLatFlowModel"), rank=2).save(tmp_path / "a.safetensors")
    stranger = flow("SLatFlowModel", seed=5)
    before = velocity(stranger)
    with pytest.raises(ModelError, match="other weights"):
        load_lora(tmp_path / "a.safetensors", stranger)
    assert torch.equal(velocity(stranger), before)
    load_lora(tmp_path / "a.safetensors", stranger, any_base=True)
    with pytest.raises(ModelError):
        load_lora(tmp_path / "absent.safetensors", stranger)
    wide = MODELS["SLatFlowModel"](**{**SIZES, "model_channels": 48})
    with pytest.raises(ModelError, match="does not fit"):
        load_lora(tmp_path / "a.safetensors", wide)


def test_the_fingerprint_does_not_depend_on_the_precision_in_which_weights_are_held():
    model = flow("SLatFlowModel").bfloat16()
    assert base_fingerprint(model) == base_fingerprint(flow("SLatFlowModel").bfloat16().float())
    assert base_fingerprint(model) != base_fingerprint(flow("SLatFlowModel", seed=1))


def test_an_adapter_works_beside_a_bfloat16_torso():
    model = flow("SparseStructureFlowModel")
    model.set_torso_dtype(torch.bfloat16)
    before = velocity(model)
    lora = add_lora(model, rank=2)
    assert torch.equal(velocity(model), before)
    assert {p.dtype for p in lora.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"targets": "nothing"}, "no linear layer"), ({"rank": 0}, "at least 1"), ({"rank": 25}, "larger")],
)
def test_what_makes_no_sense_is_said(options, said):
    with pytest.raises(UsageError, match=said):
        add_lora(flow("SLatFlowModel"), **options)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 8))
def test_the_change_of_a_matrix_has_the_rank_of_its_adapter(rank, width, alpha):
    model = nn.Sequential(nn.Linear(6, 5 + width, bias=False))
    rank = min(rank, 6, 5 + width)
    before = model[0].weight.detach().clone()
    lora = stirred(add_lora(model, rank=rank, targets="0", alpha=alpha))
    lora.merge()
    change = (model[0].weight - before).double()
    assert torch.linalg.matrix_rank(change, atol=1e-5) <= rank
