"""Norms, embeddings, attention, transformer blocks, the dense structure VAE and the image encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.parity.case import Case, Kind
from trellis_core.models.image_encoder import DINOv3ViT, patch_rotations, prepare_images
from trellis_core.models.structure_vae import (
    Downsample3d,
    ResBlock3d,
    SparseStructureDecoder,
    SparseStructureEncoder,
    Upsample3d,
)
from trellis_core.nn.attention import ContextTokens, CrossAttention, Packing, SelfAttention
from trellis_core.nn.blocks import Modulation, TransformerBlock, TransformerCrossBlock
from trellis_core.nn.embed import (
    TimestepEmbedder,
    patchify,
    position_embedding,
    rope_frequencies,
    rope_phases,
    rotate,
    sinusoid,
    unpatchify,
)
from trellis_core.nn.norm import ChannelLayerNorm32, GroupNorm32, LayerNorm32
from trellis_core.nn.windows import sample_packing, voxel_phases, window_packing
from trellis_core.sparse.plan import SparsePlan


def filled(module: nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict(weights)
    return module.eval()


def asked(case: Case) -> dict[str, list[int]]:
    """Names and shapes of the outputs that the case wants."""
    return {k[4:]: v["shape"] for k, v in case.info["tensors"].items() if k.startswith("out.")}


def norms(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.inputs
    channels = config["channels"]
    layer = filled(LayerNorm32(channels, eps=config["layernorm32_eps"]), case.weights_of("layernorm32"))
    channel = filled(
        ChannelLayerNorm32(channels, eps=config["channel_ln_eps"]), case.weights_of("channel_layernorm32")
    )
    group = filled(
        GroupNorm32(config["group_norm_groups"], channels, eps=config["group_norm_eps"]),
        case.weights_of("groupnorm32"),
    )
    return {
        "ln": layer(x["x"]),
        "ln_fp16": layer(x["x_fp16"]),
        "ln_bf16": layer(x["x_bf16"]),
        "ln_noaffine": LayerNorm32(channels, False, config["layernorm32_eps"])(x["x"]),
        "final_ln": F.layer_norm(x["x"], (channels,), eps=config["final_ln_eps"]),
        "channel_ln": channel(x["vol"]),
        "channel_ln_fp16": channel(x["vol_fp16"]),
        "group_norm": group(x["vol"]),
        "group_norm_fp16": group(x["vol_fp16"]),
    }


def timestep_and_ape(case: Case) -> dict[str, Tensor]:
    config, t, pos = case.config, case.inputs["t"], case.inputs["pos"]
    embedder = TimestepEmbedder(config["hidden_size"], config["frequency_embedding_size"])
    out = {"emb": filled(embedder, case.weights)(t)}
    for name, shape in asked(case).items():
        if name.startswith("sinusoid"):
            out[name] = sinusoid(t, shape[-1], config["max_period"])
        elif name.startswith("ape"):
            out[name] = position_embedding(pos, shape[-1])
    return out


def rope3d(case: Case) -> dict[str, Tensor]:
    out = {}
    for config in case.config:
        width, freq = config["head_dim"], tuple(config["rope_freq"])
        coords, q = case.inputs[f"hd{width}_coords"], case.inputs[f"hd{width}_q"]
        phases = rope_phases(coords, width, freq)
        out[f"hd{width}_freqs"] = rope_frequencies(width, freq, coords.shape[-1])
        out[f"hd{width}_phases"] = torch.view_as_real(phases)
        out[f"hd{width}_rotated"] = rotate(q, phases)
        out[f"hd{width}_rotated_bf16"] = rotate(q.bfloat16(), phases)
    for name in (k.removesuffix(".feats") for k in case.inputs if k.endswith(".feats")):
        feats, coords = case.inputs[f"{name}.feats"], case.inputs[f"{name}.coords"]
        out[name] = rotate(feats, rope_phases(coords[:, 1:], feats.shape[-1]))
    return out


def spatial_ops(case: Case) -> dict[str, Tensor]:
    size = case.config["factor"]
    folded = patchify(case.inputs["p"], size)
    return {
        "pixel_shuffle_3d": unpatchify(case.inputs["v"], size),
        "patchify": folded,
        "unpatchify": unpatchify(folded, size),
    }


def self_attention(case: Case, name: str) -> SelfAttention:
    weights = case.weights_of(name)
    module = SelfAttention(
        case.config["channels"],
        case.config["num_heads"],
        qkv_bias="to_qkv.bias" in weights,
        qk_rms_norm="q_rms_norm.gamma" in weights,
    )
    return filled(module, weights)  # type: ignore[no-any-return]


def cross_attention(case: Case, name: str) -> CrossAttention:
    weights = case.weights_of(name)
    module = CrossAttention(
        case.config["channels"],
        case.config["ctx_channels"],
        case.config["num_heads"],
        qkv_bias="to_q.bias" in weights,
        qk_rms_norm="q_rms_norm.gamma" in weights,
    )
    return filled(module, weights)  # type: ignore[no-any-return]


def halved(module: nn.Module) -> Any:
    """The module with its matrices in bfloat16."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.bfloat16()
    return module


def attention_dense(case: Case) -> dict[str, Tensor]:
    x, ctx = case.inputs["x"], case.inputs["ctx"]
    phases = torch.view_as_complex(case.inputs["phases"])
    out = {}
    for name in case.info["modules"]:
        if name.startswith("self"):
            module = self_attention(case, name)
            arguments = (phases,) if "rope" in name else ()
            out[name] = module(x, *arguments)
            out[f"{name}_bf16"] = halved(module)(x.bfloat16(), *arguments)
            continue
        crossing = cross_attention(case, name)
        if name == "cross_zero_ctx":
            out[name] = crossing(x, None).expand_as(x)
            continue
        out[name] = crossing(x, ContextTokens(ctx))
        out[f"{name}_bf16"] = halved(crossing)(x.bfloat16(), ContextTokens(ctx.bfloat16()))
    return out


def attention_sparse(case: Case) -> dict[str, Tensor]:
    x, coords = case.inputs["x.feats"], case.inputs["x.coords"]
    plan = SparsePlan(coords, int(coords[:, 0].max()) + 1)
    samples = sample_packing(plan)
    size = case.config["window_size"]
    head_dim = case.config["channels"] // case.config["num_heads"]
    packings = {
        "self_windowed": window_packing(plan, size, tuple(case.config["self_windowed_shift"])),
        "self_windowed_noshift": window_packing(plan, size),
        "self_double_windowed": (window_packing(plan, size), window_packing(plan, size, size // 2)),
    }
    ragged = [case.inputs[f"ctx_list.{i}"] for i in range(samples.count)]
    contexts = {"cross_varlen": ContextTokens(torch.cat(ragged), Packing.of([len(c) for c in ragged]))}
    out = {}
    for name in case.info["modules"]:
        if name.startswith("self"):
            phases = voxel_phases(plan, head_dim) if "rope" in name else None
            out[name] = self_attention(case, name)(x, phases, packings.get(name, samples))
        else:
            context = contexts.get(name, ContextTokens(case.inputs["ctx_dense"]))
            out[name] = cross_attention(case, name)(x, context, samples)
    return out


def block(case: Case, name: str) -> nn.Module:
    """The block whose options the names of its weights tell."""
    weights, config = case.weights_of(name), case.config
    channels = config["channels"]
    modulation: Modulation = (
        "shared" if "modulation" in weights else "own" if "adaLN_modulation.1.weight" in weights else "none"
    )
    shared: dict[str, Any] = {
        "mlp_ratio": (len(weights["mlp.mlp.0.bias"]) + 0.5) / channels,
        "modulation": modulation,
        "ln_affine": "norm1.weight" in weights,
    }
    if "attn.to_qkv.weight" in weights:
        norm = "attn.q_rms_norm.gamma" in weights
        return filled(TransformerBlock(channels, config["num_heads"], qk_rms_norm=norm, **shared), weights)
    crossing = TransformerCrossBlock(
        channels,
        config["ctx_channels"],
        config["num_heads"],
        qk_rms_norm="self_attn.q_rms_norm.gamma" in weights,
        qk_rms_norm_cross="cross_attn.q_rms_norm.gamma" in weights,
        **shared,
    )
    if modulation == "none" and "norm2.weight" not in weights:
        crossing.norm2 = LayerNorm32(channels, elementwise_affine=False)
    return filled(crossing, weights)


def transformer_blocks(case: Case) -> dict[str, Tensor]:
    """Dense and sparse alike: a sparse case brings coordinates, a dense one phases."""
    sparse = "x.coords" in case.inputs
    packing, x = None, case.inputs.get("x")
    if sparse:
        x, coords = case.inputs["x.feats"], case.inputs["x.coords"]
        plan = SparsePlan(coords, int(coords[:, 0].max()) + 1)
        packing = sample_packing(plan)
        phases = voxel_phases(plan, case.config["channels"] // case.config["num_heads"])
    else:
        phases = torch.view_as_complex(case.inputs["phases"])
    out = {}
    for name, text in case.info["modules"].items():
        module = block(case, name)
        rotation = phases if "RoPE" in text or "phases" in text else None
        mod = case.inputs["mod6"] if hasattr(module, "modulation") else case.inputs["emb"]
        if isinstance(module, TransformerCrossBlock):
            out[name] = module(x, mod, ContextTokens(case.inputs["ctx"]), rotation, packing)
        else:
            out[name] = module(x, mod, rotation, packing)
    return out


def ss_vae(case: Case) -> dict[str, Tensor]:
    encoder = filled(SparseStructureEncoder(**case.config["encoder"]), case.weights_of("encoder"))
    decoder = filled(SparseStructureDecoder(**case.config["decoder"]), case.weights_of("decoder"))
    mean, logvar = encoder(case.inputs["occ"])
    out = {"z": mean, "mean": mean, "logvar": logvar, "logits": decoder(mean)}
    encoder.set_torso_dtype(torch.float16)
    decoder.set_torso_dtype(torch.float16)
    out["z_fp16"] = encoder(case.inputs["occ"])[0]
    out["logits_fp16"] = decoder(mean)
    v = case.inputs["v"]
    for name in case.info["modules"]:
        out[name] = filled(volume_block(name, case.weights_of(name), v.shape[1]), case.weights_of(name))(v)
    return out


def volume_block(name: str, weights: dict[str, Tensor], channels: int) -> nn.Module:
    if name == "blk_res":
        return ResBlock3d(channels, len(weights["conv1.bias"]))
    if name == "blk_down_conv":
        return Downsample3d(channels, len(weights["conv.bias"]))
    if name == "blk_up_conv":
        return Upsample3d(channels, len(weights["conv.bias"]) // 8)
    return (
        Downsample3d(channels, channels, "avgpool")
        if "down" in name
        else Upsample3d(channels, channels, "nearest")
    )


def dinov3(case: Case) -> dict[str, Tensor]:
    config = case.config
    model = filled(DINOv3ViT(**config), case.weights)
    pictures = [
        Image.fromarray(case.inputs[name].numpy()) for name in sorted(case.inputs) if name.startswith("pil_")
    ]
    out = {}
    for name, value in case.inputs.items():
        if not name.startswith("tensor_"):
            continue
        side = name.removeprefix("tensor_")
        pixels, seen = prepare_images(value, 0), []
        hook = model.layer[0].register_forward_hook(lambda _m, _i, result, seen=seen: seen.append(result))
        out[name] = model(pixels)
        hook.remove()
        out[f"layer0_{side}"] = seen[0]
        out[f"embeddings_{side}"] = model.embeddings(pixels)
        cells = value.shape[2] // model.patch_size, value.shape[3] // model.patch_size
        out[f"rope_cos_{side}"], out[f"rope_sin_{side}"] = patch_rotations(
            *cells, model.head_dim, config["rope_theta"]
        )
    for name in asked(case):
        if name.startswith("pil_"):
            out[name] = model(prepare_images(pictures, int(name.removeprefix("pil_"))))
    return out


KINDS = {
    "trellis2.norms": Kind(norms),
    "trellis2.timestep_and_ape": Kind(timestep_and_ape),
    "trellis2.rope3d": Kind(rope3d),
    "trellis2.spatial_ops": Kind(spatial_ops),
    "trellis2.attention_dense": Kind(attention_dense),
    "trellis2.attention_sparse": Kind(attention_sparse),
    "trellis2.transformer_blocks_dense": Kind(transformer_blocks),
    "trellis2.transformer_blocks_sparse": Kind(transformer_blocks),
    "trellis2.ss_vae": Kind(ss_vae),
    "trellis2.dinov3": Kind(dinov3),
}
