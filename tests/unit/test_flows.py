"""The structure flow and the latent flow at tiny sizes.

Not tested here: agreement with the released networks (golden cases), sampling (test_sampling).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trellis2.models.latent_flow import SLatFlowModel
from trellis_core.errors import InputError, ModelError
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.nn.attention import CrossAttention
from trellis_core.nn.transformer import FlowTransformer
from trellis_core.sparse.tensor import SparseTensor

SIZES: dict[str, Any] = {
    "resolution": 4,
    "in_channels": 3,
    "model_channels": 24,
    "cond_channels": 5,
    "out_channels": 3,
    "num_blocks": 2,
    "num_heads": 2,
    "pe_mode": "rope",
    "share_mod": True,
    "initialization": "scaled",
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}


def structure_flow(**changes: Any) -> SparseStructureFlowModel:
    torch.manual_seed(0)
    return SparseStructureFlowModel(**{**SIZES, **changes})


def latent_flow(**changes: Any) -> SLatFlowModel:
    torch.manual_seed(0)
    return SLatFlowModel(**{**SIZES, **changes})


def latents(*lengths: int, channels: int = 3) -> SparseTensor:
    coords = torch.cat(
        [
            torch.cat(
                [
                    torch.full((n, 1), b),
                    torch.stack([torch.arange(n), torch.arange(n) % 3, torch.arange(n) % 2], 1),
                ],
                1,
            )
            for b, n in enumerate(lengths)
        ]
    ).int()
    return SparseTensor(torch.randn(len(coords), channels), coords, len(lengths))


def times(batch: int) -> Tensor:
    return torch.linspace(100, 900, batch)


def test_dense_and_sparse_flow_are_one_network():
    """A latent flow with the weights of a structure flow, on all voxels, computes the same."""
    dense, sparse = structure_flow(), latent_flow()
    sparse.load_state_dict(dense.state_dict())
    x, cond = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6, 5)
    coords = torch.nonzero(torch.ones(2, 4, 4, 4)).int()
    feats = x.permute(0, 2, 3, 4, 1).reshape(-1, 3)
    got = sparse(SparseTensor(feats, coords, 2), times(2), cond).feats
    torch.testing.assert_close(got, dense(x, times(2), cond).permute(0, 2, 3, 4, 1).reshape(-1, 3))


@pytest.mark.parametrize("pe_mode", ["rope", "ape"])
@pytest.mark.parametrize("share_mod", [True, False])
def test_a_sample_does_not_depend_on_its_batch(pe_mode, share_mod):
    model = latent_flow(pe_mode=pe_mode, share_mod=share_mod)
    x, cond, t = latents(7, 4), torch.randn(2, 6, 5), times(2)
    together = model(x, t, cond)
    for b in range(2):
        rows = x.coords[:, 0] == b
        coords = x.coords[rows].clone()
        coords[:, 0] = 0
        alone = model(SparseTensor(x.feats[rows], coords, 1), t[b : b + 1], cond[b : b + 1])
        torch.testing.assert_close(alone.feats, together.feats[rows])


@pytest.mark.parametrize("make", [structure_flow, latent_flow])
def test_unconditional_means_a_context_of_zeros(make):
    model = make()
    x = torch.randn(2, 3, 4, 4, 4) if make is structure_flow else latents(5, 3)
    got, want = model(x, times(2), None), model(x, times(2), torch.zeros(2, 6, 5))
    if isinstance(x, SparseTensor):
        got, want = got.feats, want.feats
    torch.testing.assert_close(got, want)


def test_unconditional_never_attends_to_a_context(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the context was projected")

    monkeypatch.setattr(CrossAttention, "project", refuse)
    structure_flow()(torch.randn(1, 3, 4, 4, 4), times(1), None)


def test_precomputed_context_is_projected_once(monkeypatch):
    model, cond = latent_flow(), torch.randn(1, 6, 5)
    x = latents(5)
    want = model(x, times(1), cond).feats
    context = model.precompute_context(cond)
    monkeypatch.setattr(CrossAttention, "project", None)
    torch.testing.assert_close(model(x, times(1), context).feats, want)


@pytest.mark.parametrize("lengths", [(6,), (6, 3)])
def test_ragged_context_may_be_given_as_a_list(lengths):
    model = latent_flow()
    x = latents(*[4] * len(lengths))
    cond = [torch.randn(n, 5) for n in lengths]
    together = model(x, times(len(lengths)), cond).feats
    torch.testing.assert_close(model(x, times(len(lengths)), model.precompute_context(cond)).feats, together)
    alone = model(latents(4).replace(x.feats[:4]), times(len(lengths))[:1], cond[0][None]).feats
    torch.testing.assert_close(together[:4], alone)


def test_concatenated_latents_extend_the_input_channels():
    model = latent_flow(in_channels=6)
    x = latents(5, 3)
    shape = x.replace(torch.randn(8, 3))
    whole = x.replace(torch.cat([x.feats, shape.feats], dim=1))
    torch.testing.assert_close(model(x, times(2), None, shape).feats, model(whole, times(2), None).feats)
    with pytest.raises(InputError, match="other voxels"):
        model(x, times(2), None, latents(3, 5))


def test_coordinates_are_read_once_per_voxel_set():
    x, model = latents(5, 3), latent_flow()
    model(x, times(2), None)
    made = set(x.plan._made)
    model(x.replace(torch.randn(8, 3)), times(2), None)
    assert set(x.plan._made) == made
    assert ("rope", 12, (1.0, 10000.0)) in made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_torso_stays_close_to_float32(dtype):
    model = structure_flow()
    x, cond = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 6, 5)
    want = model(x, times(1), cond)
    model.set_torso_dtype(dtype)
    got = model(x, times(1), cond)
    assert got.dtype == torch.float32
    assert model.input_layer.weight.dtype == model.blocks[0].modulation.dtype == torch.float32
    assert (got - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("initialization", ["scaled", "vanilla"])
@pytest.mark.parametrize("share_mod", [True, False])
def test_training_starts_at_the_zero_function(initialization, share_mod):
    model = structure_flow(initialization=initialization, share_mod=share_mod)
    model.initialize()
    assert model(torch.randn(1, 3, 4, 4, 4), times(1), torch.randn(1, 6, 5)).abs().max() == 0


def test_scaled_initialisation_has_the_published_deviations():
    model = structure_flow(model_channels=96, num_blocks=4)
    model.initialize()
    block = model.blocks[0]
    for weight, deviation in (
        (block.self_attn.to_qkv.weight, (2 / (5 * 96)) ** 0.5),
        (block.mlp.mlp[2].weight, 1 / (5 * 4 * 96) ** 0.5),
        (block.cross_attn.to_out.weight, 1 / (5 * 4 * 96) ** 0.5),
        (model.input_layer.weight, 1 / 3**0.5),
        (model.t_embedder.mlp[0].weight, 0.02),
        (block.modulation, 1 / 96**0.5),
    ):
        assert weight.std().item() == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize("make", [structure_flow, latent_flow])
def test_training_reduces_the_loss(make):
    model: FlowTransformer = make()
    model.initialize()
    x = torch.randn(2, 3, 4, 4, 4) if make is structure_flow else latents(9, 5)
    target = torch.randn_like(x if isinstance(x, Tensor) else x.feats)
    cond = torch.randn(2, 6, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        v = model(x, times(2), cond)
        loss = ((v if isinstance(v, Tensor) else v.feats) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_patches_shorten_the_sequence():
    model = structure_flow(patch_size=2, pe_mode="ape")
    assert model.pos_emb.shape == (8, 24)
    assert model(torch.randn(1, 3, 4, 4, 4), times(1), None).shape == (1, 3, 4, 4, 4)


def test_head_count_follows_from_the_width_when_absent():
    assert structure_flow(num_heads=None, num_head_channels=12).blocks[0].self_attn.num_heads == 2


def test_unknown_options_are_named():
    with pytest.raises(ModelError, match="pe_mode `learned`"):
        structure_flow(pe_mode="learned")
