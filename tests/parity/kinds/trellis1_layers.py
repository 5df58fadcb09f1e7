"""TRELLIS v1, from the bottom up: layers and sparse tensors, mostly the shared ones with plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.case import Case, Check, Kind, compare_by_tolerance
from trellis.models.serial_windows import CURVES, SerialWindowAttention, serial_windows
from trellis.models.sparse_blocks import (
    PointwiseConv,
    SparseConv,
    SparseGroupNorm32,
    SparseResBlock3d,
    SparseSubdivideBlock3d,
    halve,
    subdivide,
)
from trellis_core.models.structure_vae import Downsample3d, ResBlock3d, Upsample3d
from trellis_core.nn.attention import ContextTokens, CrossAttention, Packing, SelfAttention
from trellis_core.nn.blocks import FeedForward, Modulation, TransformerBlock, TransformerCrossBlock
from trellis_core.nn.embed import TimestepEmbedder, patchify, position_embedding, sinusoid, unpatchify
from trellis_core.nn.norm import ChannelLayerNorm32, GroupNorm32, LayerNorm32, MultiHeadRMSNorm
from trellis_core.nn.windows import sample_packing, window_packing
from trellis_core.sparse.ops import concat_channels, concat_samples, select_samples
from trellis_core.sparse.plan import Links, SparsePlan
from trellis_core.sparse.spatial import repeat_parents
from trellis_core.sparse.tensor import SparseTensor


def filled(module: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """The module with these weights, strictly, in float32."""
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    return module.eval()


def sparse_input(case: Case, name: str = "x") -> SparseTensor:
    feats, coords = case.inputs[f"{name}.feats"], case.inputs[f"{name}.coords"]
    return SparseTensor(feats, coords, int(coords[:, 0].max()) + 1)


def named(name: str, x: SparseTensor) -> dict[str, Tensor]:
    return {f"{name}.feats": x.feats, f"{name}.coords": x.coords}


def wanted(case: Case) -> dict[str, list[int]]:
    """Names and shapes of the outputs that the case wants."""
    return {k[4:]: v["shape"] for k, v in case.info["tensors"].items() if k.startswith("out.")}


def compare_strictly(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """For tolerances that may be zero: the largest excess over the allowance."""
    rule = case.info["tolerance"]
    checks = []
    for name, expected in want.items():
        if name not in got or got[name].shape != expected.shape:
            checks.append(Check(name, float("inf"), 0.0, "not computed, or another shape"))
            continue
        excess = (got[name].double() - expected.double()).abs() - rule["rtol"] * expected.double().abs()
        worst = excess.max().item() if expected.numel() else 0.0
        checks.append(Check(name, max(worst, 0.0), rule["atol"]))
    return checks


def z_fastest(x: SparseTensor) -> SparseTensor:
    """Rows of eight consecutive children in the released order: their z changes fastest, not x."""
    released = torch.tensor([0, 4, 2, 6, 1, 5, 3, 7])
    rows = (torch.arange(len(x)).view(-1, 8)[:, released]).flatten()
    return SparseTensor(x.feats[rows], x.coords[rows], x.batch_size)


# --- dense layers ----------------------------------------------------------------------------------


def layer_norm(case: Case) -> dict[str, Tensor]:
    norm = filled(LayerNorm32(case.config["dim"], eps=case.config["eps"]), case.weights)
    return {"y": norm(case.inputs["x"])}


def channel_layer_norm(case: Case) -> dict[str, Tensor]:
    return {"y": filled(ChannelLayerNorm32(case.config["channels"]), case.weights)(case.inputs["x"])}


def group_norm(case: Case) -> dict[str, Tensor]:
    norm = GroupNorm32(case.config["groups"], case.config["channels"])
    return {"y": filled(norm, case.weights)(case.inputs["x"])}


def rms_norm(case: Case) -> dict[str, Tensor]:
    norm = MultiHeadRMSNorm(case.config["dim"], case.config["heads"])
    return {"y": filled(norm, case.weights)(case.inputs["q"])}


def timestep_embedder(case: Case) -> dict[str, Tensor]:
    t = case.inputs["t"]
    embedder = TimestepEmbedder(case.config["hidden"], case.config["freq"])
    waves = {name: sinusoid(t, shape[1]) for name, shape in wanted(case).items() if name.startswith("freq")}
    return {"y": filled(embedder, case.weights)(t), **waves}


def absolute_positions(case: Case) -> dict[str, Tensor]:
    return {name: position_embedding(case.inputs["coords"], s[1]) for name, s in wanted(case).items()}


def spatial(case: Case) -> dict[str, Tensor]:
    folded = patchify(case.inputs["p"], 2)
    return {
        "shuffle": unpatchify(case.inputs["x"], 2),
        "patchify": folded,
        "unpatchify": unpatchify(folded, 2),
    }


def residual_volume(case: Case) -> dict[str, Tensor]:
    block = ResBlock3d(case.config["channels"], case.config["out_channels"])
    return {"y": filled(block, case.weights)(case.inputs["x"])}


def resampled_volume(case: Case) -> dict[str, Tensor]:
    kind = Downsample3d if case.config["cls"].startswith("Down") else Upsample3d
    block = kind(case.config["in_channels"], case.config["out_channels"])
    return {"y": filled(block, case.weights)(case.inputs["x"])}


def feed_forward(case: Case) -> dict[str, Tensor]:
    block = FeedForward(case.config["channels"], case.config["mlp_ratio"])
    return {"y": filled(block, case.weights)(case.inputs["x"])}


# --- attention and transformer blocks, dense and sparse ---------------------------------------------


def attention_module(case: Case) -> Any:
    config = case.config
    options = {
        "qkv_bias": config.get("qkv_bias", True),
        "qk_rms_norm": config.get("qk_rms_norm", False),
    }
    channels, heads = config["channels"], config["num_heads"]
    if config.get("type") == "cross":
        return filled(CrossAttention(channels, config["ctx_channels"], heads, **options), case.weights)
    kind = SerialWindowAttention if config.get("attn_mode") == "serialized" else SelfAttention
    return filled(kind(channels, heads, **options), case.weights)


def attention(case: Case) -> dict[str, Tensor]:
    """Dense or sparse, self or cross; windows come with the tables that describe them."""
    module = attention_module(case)
    sparse = "x.coords" in case.inputs
    x = sparse_input(case) if sparse else None
    tokens = case.inputs["x"] if x is None else x.feats
    if case.config.get("type") == "cross":
        packing = None if x is None else sample_packing(x.plan)
        return {"y": module(tokens, ContextTokens(case.inputs["ctx"]), packing)}
    if x is None:
        return {"y": module(tokens)}
    mode, config = case.config.get("attn_mode", "full"), case.config
    if mode == "full":
        return {"y": module(tokens, None, sample_packing(x.plan))}
    if mode == "serialized":
        windows = serial_windows(
            x.plan,
            config["window_size"],
            shift_sequence=config["shift_sequence"],
            shift_window=tuple(config["shift_window"]),
            curve=config["serialize_mode"],
        )
        return {
            "y": module(tokens, None, windows),
            "fwd": windows.gather,
            "bwd": windows.scatter,
            "seq_lens": windows.packing.cu_seqlens.diff(),
            "seq_batch": torch.tensor(windows.sample_of_window),
        }
    packing = window_packing(x.plan, config["window_size"], shift_of(config))
    assert packing.order is not None
    return {
        "y": module(tokens, None, packing),
        "fwd": packing.order,
        "bwd": packing.order.argsort(),
        "seq_lens": packing.cu_seqlens.diff(),
        "seq_batch": x.coords[packing.order[packing.cu_seqlens[:-1].long()], 0],
        "window_of_token": packing.sequence,
    }


def shift_of(config: Mapping[str, Any]) -> Any:
    shift = config["shift_window"]
    return tuple(shift) if isinstance(shift, list) else shift


def compare_windows(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Windows are numbered freely: they are compared as what they are, a partition of the tokens."""
    if "window_of_token" not in want:
        return compare_by_tolerance(case, got, want)
    checks = compare_by_tolerance(case, got, {"y": want["y"]})
    for name in ("seq_lens", "seq_batch"):
        checks += compare_by_tolerance(
            case, {name: got[name].sort()[0]}, {name: want[name].to(got[name].dtype).sort()[0]}
        )
    a, b = got["window_of_token"], want["window_of_token"]
    same = torch.equal(a[:, None] == a, b[:, None] == b)
    found = [sorted(part.tolist()) for part in got["fwd"].split(got["seq_lens"].tolist())]
    listed = [sorted(part.tolist()) for part in want["fwd"].split(want["seq_lens"].tolist())]
    checks.append(Check("window_of_token", 0.0 if same else 1.0, 0.0))
    checks.append(Check("fwd", 0.0 if sorted(found) == sorted(listed) else 1.0, 0.0))
    inverse = torch.equal(got["fwd"][got["bwd"]], torch.arange(len(got["bwd"])))
    return [*checks, Check("bwd", 0.0 if inverse else 1.0, 0.0)]


def transformer_block(case: Case) -> dict[str, Tensor]:
    """Dense or packed, with or without cross-attention and modulation, as the configuration says."""
    config = case.config
    modulated = "mod" in case.inputs or "mod6" in case.inputs
    modulation: Modulation = "none" if not modulated else "shared" if config.get("share_mod") else "own"
    options: dict[str, Any] = {
        "mlp_ratio": config["mlp_ratio"],
        "modulation": modulation,
        "ln_affine": config.get("ln_affine", False),
        "qk_rms_norm": config.get("qk_rms_norm", False),
    }
    channels, heads = config["channels"], config["num_heads"]
    crossing = "ctx" in case.inputs
    block: Any
    if crossing:
        options["qk_rms_norm_cross"] = config.get("qk_rms_norm_cross", False)
        block = TransformerCrossBlock(channels, config["ctx_channels"], heads, **options)
        if "norm2.weight" not in case.weights:
            block.norm2 = LayerNorm32(channels, elementwise_affine=False)
    else:
        block = TransformerBlock(channels, heads, **options)
    if modulation == "shared":  # v1 shares the vectors as they are
        del block.modulation
        block.modulation = 0.0
    filled(block, case.weights)
    x = sparse_input(case) if "x.coords" in case.inputs else None
    tokens = case.inputs["x"] if x is None else x.feats
    mod = case.inputs.get("mod6", case.inputs.get("mod"))
    packing = None if x is None else sample_packing(x.plan)
    if crossing:
        return {"y": block(tokens, mod, ContextTokens(case.inputs["ctx"]), None, packing)}
    windows: Packing | None = None
    if x is not None and config.get("attn_mode") == "windowed":
        windows = window_packing(x.plan, config["window_size"], shift_of(config))
    return {"y": block(tokens, mod, None, packing, windows)}


# --- sparse tensors --------------------------------------------------------------------------------


def sparse_tensor_ops(case: Case) -> dict[str, Tensor]:
    x = sparse_input(case)
    per_sample, one, per_row = case.inputs["tB"], case.inputs["t1"], case.inputs["tN"]
    starts = torch.tensor(x.layout.starts)
    return {
        "layout": torch.stack([starts[:-1], starts[1:]], dim=1),
        "shape": torch.tensor([x.batch_size, x.feats.shape[1]]),
        "add_B": x.feats + x.broadcast(per_sample),
        "mul_1": x.feats * x.broadcast(one),
        "add_N": x.feats + per_row,
        "affine": (2 * x - 1).feats,
        "rsub": (1 - x).feats,
        **named("item1", select_samples(x, 1)),
        **named("index20", select_samples(x, torch.tensor([2, 0]))),
        **named("slice", select_samples(x, slice(1, None))),
        **named("cat", concat_samples([x, x])),
        **named("cat_c", concat_channels([x, x])),
    }


def sparse_group_norm(case: Case) -> dict[str, Tensor]:
    norm = SparseGroupNorm32(case.config["groups"], case.config["channels"])
    return named("y", filled(norm, case.weights)(sparse_input(case)))


def sparse_rms_norm(case: Case) -> dict[str, Tensor]:
    norm = MultiHeadRMSNorm(case.config["dim"], case.config["heads"])
    return {
        "y": filled(norm, case.weights)(sparse_input(case).feats.unflatten(1, (case.config["heads"], -1)))
    }


def resampled(case: Case) -> dict[str, Tensor]:
    x = sparse_input(case)
    down = halve(x)
    assert down.plan.recorded is not None
    return {
        **named("down", down),
        "down_idx": down.plan.recorded.parent_rows,
        **named("up", repeat_parents(down)),
        **named("subdivide", z_fastest(subdivide(x))),
    }


def codes(case: Case) -> dict[str, Tensor]:
    names = {"z": "Z_ORDER", "z_t": "Z_ORDER_TRANSPOSED", "h": "HILBERT", "h_t": "HILBERT_TRANSPOSED"}
    return {name: CURVES[curve](case.inputs["coords"]) for name, curve in names.items()}


def convolution(case: Case) -> dict[str, Tensor]:
    conv = SparseConv(case.config["in_channels"], case.config["out_channels"])
    return named("y", filled(conv, case.weights)(sparse_input(case)))


def pointwise_convolution(case: Case) -> dict[str, Tensor]:
    x = sparse_input(case)
    conv = PointwiseConv(case.config["in_channels"], case.config["out_channels"])
    return named("y", x.replace(filled(conv, case.weights)(x.feats)))


def compare_pointwise(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """The transposed reading is recorded as well, and must not be ours."""
    wrong = want.pop("wrong_if_transposed", None)
    checks = compare_by_tolerance(case, got, want)
    if wrong is not None:
        same = torch.allclose(got["y.feats"], wrong, atol=1e-3)
        checks.append(Check("not transposed", 1.0 if same else 0.0, 0.0))
    return checks


def residual_block(case: Case) -> dict[str, Tensor]:
    config = case.config
    block = filled(SparseResBlock3d(**config), case.weights)
    x = sparse_input(case)
    if config.get("upsample"):  # the case says which voxels the coarse ones came from
        x = SparseTensor.on(remembered(x, case.inputs["orig_coords"], case.inputs["idx"]), x.feats)
    return named("y", block(x, case.inputs["emb"]))


def remembered(coarse: SparseTensor, coords: Tensor, parent: Tensor) -> SparsePlan:
    fine = SparsePlan(coords, coarse.batch_size)
    x, y, z = coords[:, 1:].unbind(1)
    number = (x & 1) + 2 * (y & 1) + 4 * (z & 1)
    return SparsePlan(coarse.coords, coarse.batch_size, Links(fine, (parent * 8 + number).int(), len(coarse)))


def subdivide_block(case: Case) -> dict[str, Tensor]:
    block = SparseSubdivideBlock3d(case.config["channels"], case.config["out_channels"])
    return named("y", z_fastest(filled(block, case.weights)(sparse_input(case))))


KINDS = {
    "trellis1.mod_layernorm32": Kind(layer_norm),
    "trellis1.mod_channel_layernorm32": Kind(channel_layer_norm),
    "trellis1.mod_groupnorm32": Kind(group_norm),
    "trellis1.mod_rms_norm": Kind(rms_norm),
    "trellis1.mod_timestep_embedder": Kind(timestep_embedder),
    "trellis1.mod_ape": Kind(absolute_positions),
    "trellis1.mod_spatial": Kind(spatial, compare_strictly),
    "trellis1.mod_conv3d_res": Kind(residual_volume),
    "trellis1.mod_conv3d_down": Kind(resampled_volume),
    "trellis1.mod_conv3d_up": Kind(resampled_volume),
    "trellis1.mod_ffn": Kind(feed_forward),
    **{
        f"trellis1.{name}": Kind(attention, compare_windows)
        for name in (
            "mod_mha",
            "sp_attn_cross",
            "sp_attn_full",
            "sp_attn_ser",
            "sp_attn_win",
            "sp_attn_win0",
            "sp_attn_win4",
        )
    },
    **{
        f"trellis1.{name}": Kind(transformer_block)
        for name in (
            "mod_dense_block",
            "mod_dense_cross_block",
            "mod_dense_mod_block",
            "mod_dense_mod_cross_block",
            "sp_block_affine",
            "sp_block_win",
            "sp_mod_block",
            "sp_mod_cross_block",
        )
    },
    "trellis1.sp_tensor_ops": Kind(sparse_tensor_ops, compare_strictly),
    "trellis1.sp_groupnorm": Kind(sparse_group_norm),
    "trellis1.sp_rms_norm": Kind(sparse_rms_norm),
    "trellis1.sp_down_up": Kind(resampled),
    "trellis1.sp_codes": Kind(codes),
    "trellis1.sp_conv3": Kind(convolution),
    "trellis1.sp_conv1": Kind(pointwise_convolution, compare_pointwise),
    "trellis1.sp_res_plain": Kind(residual_block),
    "trellis1.sp_res_down": Kind(residual_block),
    "trellis1.sp_res_up": Kind(residual_block),
    "trellis1.sp_subdivide_block": Kind(subdivide_block),
}
