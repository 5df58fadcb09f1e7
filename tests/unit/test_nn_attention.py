"""Attention, packings, embeddings, norms and blocks.

Dimension key: B samples, L tokens, T packed tokens, M context tokens, H heads, D head width.
Not tested here: agreement with the released networks (golden cases), CUDA kernels (tests/kernels).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.nn.attention import ContextTokens, CrossAttention, Packing, SelfAttention
from trellis_core.nn.blocks import TransformerBlock, TransformerCrossBlock, convert_torso
from trellis_core.nn.embed import grid_coords, patchify, position_embedding, rope_phases, rotate, unpatchify
from trellis_core.nn.norm import ChannelLayerNorm32, LayerNorm32, MultiHeadRMSNorm
from trellis_core.nn.windows import sample_packing, voxel_phases, window_packing
from trellis_core.sparse.plan import SparsePlan


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_packed_attention_is_attention_of_each_sequence(lengths):
    torch.manual_seed(0)
    module = SelfAttention(12, 2, qk_rms_norm=True)
    x = torch.randn(sum(lengths), 12)
    phases = rope_phases(torch.randint(0, 50, (len(x), 3)), 6)
    together = module(x, phases, Packing.of(lengths))
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        if length:
            torch.testing.assert_close(together[rows], module(x[None, rows], phases[rows])[0])
        start += length


def test_tokens_of_other_samples_have_no_influence():
    module = SelfAttention(12, 2)
    x, packing = torch.randn(9, 12), Packing.of([4, 5])
    before = module(x, None, packing)
    x[4:] += 1
    assert torch.equal(module(x, None, packing)[:4], before[:4])


def test_dense_tokens_may_look_at_ragged_context():
    module = CrossAttention(12, 5, 2)
    x, contexts = torch.randn(2, 4, 12), [torch.randn(3, 5), torch.randn(6, 5)]
    ragged = ContextTokens(torch.cat(contexts), Packing.of([3, 6]))
    together = module(x, ragged)
    for i, context in enumerate(contexts):
        torch.testing.assert_close(together[i], module(x[i : i + 1], ContextTokens(context[None]))[0])


def test_one_context_serves_a_whole_batch():
    module = CrossAttention(12, 5, 2)
    x, context = torch.randn(3, 4, 12), torch.randn(1, 6, 5)
    want = module(x, ContextTokens(context.expand(3, -1, -1)))
    torch.testing.assert_close(module(x, ContextTokens(context)), want)
    packed = module(x.flatten(0, 1), ContextTokens(context), Packing.of([4, 4, 4]))
    torch.testing.assert_close(packed, want.flatten(0, 1))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_zero_context_is_a_constant_that_needs_no_attention(qkv_bias, tokens):
    module = CrossAttention(12, 5, 2, qkv_bias=qkv_bias, qk_rms_norm=True)
    x = torch.randn(2, 4, 12)
    full = module(x, ContextTokens(torch.zeros(2, tokens, 5)))
    torch.testing.assert_close(module(x, None).expand_as(x), full)


def test_projected_context_gives_the_same_result():
    module = CrossAttention(12, 5, 2, qk_rms_norm=True)
    x, context = torch.randn(2, 4, 12), ContextTokens(torch.randn(2, 6, 5))
    assert torch.equal(module(x, module.project(context)), module(x, context))


def test_windows_confine_attention_and_keep_the_row_order():
    coords = torch.tensor([[0, 0, 0, 0], [0, 5, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.int32)
    plan = SparsePlan(coords, 2)
    module, x = SelfAttention(12, 2), torch.randn(4, 12)
    out = module(x, None, window_packing(plan, 4))
    torch.testing.assert_close(out[[0, 2]], module(x[None, [0, 2]])[0])
    for alone in (1, 3):
        torch.testing.assert_close(out[alone], module(x[None, alone : alone + 1])[0, 0])
    assert window_packing(plan, 4) is window_packing(plan, 4)
    assert window_packing(plan, 4, 3) is not window_packing(plan, 4)


def test_a_window_over_everything_is_full_attention():
    coords = torch.cat([torch.zeros(8, 1), grid_coords(2)], dim=1).int()
    plan = SparsePlan(coords, 1)
    module, x = SelfAttention(12, 2), torch.randn(8, 12)
    torch.testing.assert_close(
        module(x, None, window_packing(plan, 8)), module(x, None, sample_packing(plan))
    )


@given(st.integers(0, 95), st.integers(0, 95), st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_rotary_attention_depends_on_differences_of_positions_only(a, b, shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 24, dtype=torch.float32)

    def score(i: int, j: int) -> torch.Tensor:
        at = lambda p: rope_phases(torch.full((1, 3), p), 24)  # noqa: E731
        return (rotate(q, at(i)) * rotate(k, at(j))).sum()

    torch.testing.assert_close(score(a, b), score(a + shift, b + shift), rtol=1e-3, atol=2e-3)


def test_rotation_keeps_lengths_and_leaves_spare_channels_alone():
    x = torch.randn(5, 2, 20)  # 3 frequencies for each of 3 axes: 9 of 10 pairs turn
    turned = rotate(x, rope_phases(torch.randint(1, 40, (5, 3)), 20))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 18:], x[..., 18:])
    assert not torch.allclose(turned[..., :18], x[..., :18])


def test_a_voxel_has_the_same_phases_in_the_dense_and_the_sparse_model():
    coords = torch.cat([torch.zeros(27, 1), grid_coords(3)], dim=1).int()
    assert torch.equal(voxel_phases(SparsePlan(coords, 1), 24), rope_phases(grid_coords(3), 24))


def test_grid_coords_run_over_z_fastest():
    assert grid_coords(2).tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_position_embedding_pads_with_zeros():
    embedding = position_embedding(torch.randint(0, 9, (4, 3)), 50)
    assert embedding.shape == (4, 50)
    assert embedding[:, 48:].abs().max() == 0


@pytest.mark.parametrize("size", [1, 2])
def test_patches_unfold_to_the_volume_they_came_from(size):
    x = torch.randn(2, 3, 4, 2, 6)
    assert torch.equal(unpatchify(patchify(x, size), size), x)


def test_pixel_shuffle_counts_x_most_significant():
    x = torch.arange(8.0).view(1, 8, 1, 1, 1)
    assert unpatchify(x, 2)[0, 0].flatten().tolist() == list(range(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_keep_the_dtype_and_compute_in_float32(dtype):
    x = (100 + torch.randn(3, 16)).to(dtype)
    want = torch.nn.functional.layer_norm(x.double(), (16,), eps=1e-6)
    for affine in (True, False):
        got = LayerNorm32(16, affine)(x)
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), want, rtol=1e-2, atol=2e-2 if dtype != torch.float32 else 1e-3
        )
    volume = torch.randn(2, 16, 2, 2, 2, dtype=dtype)
    assert ChannelLayerNorm32(16)(volume).dtype == dtype


def test_rms_norm_gives_every_head_the_same_length():
    got = MultiHeadRMSNorm(8, 2)(torch.randn(5, 2, 8) * 37)
    torch.testing.assert_close(got.norm(dim=-1), torch.full((5, 2), 8**0.5))
    assert MultiHeadRMSNorm(8, 2)(torch.zeros(1, 2, 8)).abs().max() == 0


@pytest.mark.parametrize("modulation", ["none", "own", "shared"])
def test_packed_blocks_equal_dense_blocks(modulation):
    width = {"none": 0, "own": 12, "shared": 72}[modulation]
    mod = torch.randn(2, width) if width else None
    x, context = torch.randn(2, 5, 12), ContextTokens(torch.randn(2, 3, 6))
    packing = Packing.of([5, 5])
    cross = TransformerCrossBlock(12, 6, 2, modulation=modulation)
    torch.testing.assert_close(
        cross(x.flatten(0, 1), mod, context, None, packing), cross(x, mod, context).flatten(0, 1)
    )
    plain = TransformerBlock(12, 2, modulation=modulation)
    torch.testing.assert_close(plain(x.flatten(0, 1), mod, None, packing), plain(x, mod).flatten(0, 1))


def test_closed_gates_leave_only_cross_attention():
    block = TransformerCrossBlock(12, 6, 2, modulation="shared")
    torch.nn.init.zeros_(block.modulation)
    x, context = torch.randn(1, 5, 12), ContextTokens(torch.randn(1, 3, 6))
    got = block(x, torch.zeros(1, 72), context)
    torch.testing.assert_close(got, x + block.cross_attn(block.norm2(x), context))


def test_converting_a_torso_leaves_norms_gammas_and_modulation_in_float32():
    block = TransformerCrossBlock(12, 6, 2, modulation="shared", qk_rms_norm=True)
    convert_torso(block, torch.bfloat16)
    low = {name for name, p in block.named_parameters() if p.dtype == torch.bfloat16}
    assert low == {name for name, _ in block.named_parameters() if "to_" in name or "mlp" in name}


def test_float32_residuals_survive_a_half_precision_torso():
    block = TransformerCrossBlock(12, 6, 2, modulation="shared")
    x, mod = torch.full((1, 5, 12), 1e5), torch.zeros(1, 72)  # beyond float16
    convert_torso(block, torch.float16)
    out = block(x, mod, ContextTokens(torch.randn(1, 3, 6).half()))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_every_parameter_of_a_block_is_trained():
    block = TransformerCrossBlock(12, 6, 2, modulation="shared", qk_rms_norm=True, qk_rms_norm_cross=True)
    phases = rope_phases(torch.randint(0, 9, (7, 3)), 6)
    x, mod = torch.randn(7, 12), torch.randn(2, 72)
    packing = Packing.of([3, 4])
    block(x, mod, ContextTokens(torch.randn(2, 3, 6)), phases, packing).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())
