"""Golden cases of sparse tensors, sparse convolution and the sparse VAEs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.case import Case, Check, Kind, compare_by_tolerance, compare_tensor
from tests.parity.kinds.voxels import canonical, compare_center_vertices, compare_rows
from trellis2.dual_grid import extract_mesh
from trellis2.models.sparse_blocks import (
    SparseConvNeXtBlock3d,
    SparseResBlockC2S3d,
    SparseResBlockDownsample3d,
    SparseResBlockS2C3d,
    SparseResBlockUpsample3d,
    sparse_res_block,
)
from trellis2.models.sparse_vae import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeEncoder,
    SparseUnetVaeDecoder,
    SparseUnetVaeEncoder,
    read_dual_grid,
)
from trellis_core.nn.conv import SparseConv3d
from trellis_core.sparse.ops import (
    concat_channels,
    concat_samples,
    mean_per_sample,
    pad_samples,
    select_samples,
    std_per_sample,
    sum_per_sample,
)
from trellis_core.sparse.spatial import channel_to_space, pool_mean, repeat_parents, space_to_channel
from trellis_core.sparse.tensor import SparseTensor


def sparse_input(case: Case, name: str) -> SparseTensor:
    feats, coords = case.inputs[f"{name}.feats"], case.inputs[f"{name}.coords"]
    return SparseTensor(feats, coords, int(coords[:, 0].max()) + 1)


def named(name: str, x: SparseTensor) -> dict[str, Tensor]:
    return {f"{name}.feats": x.feats, f"{name}.coords": x.coords}


# --- sparse tensors --------------------------------------------------------------------------------


def run_varlen_ops(case: Case) -> dict[str, Tensor]:
    a, c = sparse_input(case, "a"), sparse_input(case, "c")
    b = a.replace(case.inputs["b_feats"])
    per_batch, row = case.inputs["per_batch"], case.inputs["row"]
    dense, mask = pad_samples(a)
    layout = a.layout
    return {
        "add": (a + b).feats,
        "mul_batch": a.feats * a.broadcast(per_batch),
        "add_row": a.feats + a.broadcast(row),
        "rsub": (1 - a).feats,
        "div_row": a.feats / a.broadcast(row),
        "mean_ch": mean_per_sample(a),
        "mean_ch_keep": mean_per_sample(a)[:, None],
        "sum_ch": sum_per_sample(a),
        "std_ch_keep": std_per_sample(a)[:, None],
        "mean_all": a.feats.mean(),
        **named("index_1", select_samples(a, 1)),
        **named("index_list", select_samples(a, [2, 0])),
        **named("cat0", concat_samples([a, c])),
        "cat1": concat_channels([a, b]).feats,
        "to_dense": dense[mask],
        "to_dense_mask": mask,
        "seqlen": torch.tensor(layout.seqlens),
        "cum_seqlen": layout.cu_seqlens,
        "bmap": layout.sample_of_row,
        "spatial_shape": torch.tensor(a.plan.extent),
    }


def run_sparse_conv(case: Case) -> dict[str, Tensor]:
    """Modules by name; the name says the dilation (`dil2`), the weights say the rest."""
    x = sparse_input(case, "x")
    out = {}
    for name in case.info["modules"]:
        weights = case.weights_of(name)
        weight = weights["weight"]
        if weight.ndim == 2:
            out[name] = nn.functional.linear(x.feats, weight, weights.get("bias"))
            continue
        dilation = re.search(r"dil(\d+)", name)
        conv = SparseConv3d(
            weight.shape[4],
            weight.shape[0],
            weight.shape[1],
            int(dilation[1]) if dilation else 1,
            "bias" in weights,
        ).to(weight.dtype)
        conv.load_state_dict(weights)
        out[name] = conv(x.replace(x.feats.to(weight.dtype))).feats
    return out


def run_sparse_resample(case: Case) -> dict[str, Tensor]:
    x, z = sparse_input(case, "x"), sparse_input(case, "z")
    down, stacked = pool_mean(x), space_to_channel(x)
    assert down.plan.recorded is not None
    assert stacked.plan.recorded is not None
    mask = case.inputs["mask"]
    return {
        **named("down_mean", down),
        "down_subdivision": down.plan.recorded.mask,
        **named("up_cached", repeat_parents(down)),
        **named("s2c", stacked),
        "s2c_subdivision": stacked.plan.recorded.mask,
        **named("c2s_cached", channel_to_space(stacked)),
        **named("c2s_mask", channel_to_space(z, mask)),
        **named("up_mask", repeat_parents(z, mask)),
    }


# --- blocks ----------------------------------------------------------------------------------------


def run_blocks(case: Case) -> dict[str, Tensor]:
    """Blocks are told apart by what the sidecar says about them; widths come from the weights."""
    x = sparse_input(case, "x")
    out: dict[str, Tensor] = {}
    for name, text in case.info["modules"].items():
        weights = case.weights_of(name)
        block = build_block(text, weights)
        block.load_state_dict(weights)
        guided = "guide" in text
        result = block(x, case.inputs["guide"]) if guided else block(x)
        result, logits = result if isinstance(result, tuple) else (result, None)
        out |= named(name, result)
        if logits is not None:
            out[f"{name}_subdiv"] = logits.feats
    return out


def build_block(text: str, weights: dict[str, Tensor]) -> nn.Module:
    if "ConvNeXt" in text:
        hidden, width = weights["mlp.0.weight"].shape
        return SparseConvNeXtBlock3d(width, hidden / width)
    width = weights["norm1.weight"].shape[0]
    out_width = weights["conv2.weight"].shape[0]
    predicts = "to_subdiv.weight" in weights
    if "S2C3d" in text:
        return SparseResBlockS2C3d(width, out_width)
    if "C2S3d" in text:
        return SparseResBlockC2S3d(width, out_width, predicts)
    if "Downsample3d" in text or text.startswith("same"):
        return SparseResBlockDownsample3d(width, out_width)
    if "Upsample3d" in text:
        return SparseResBlockUpsample3d(width, out_width, predicts)
    mode = "spatial2channel" if "'spatial2channel'" in text else "nearest"
    plain = "no resampling" in text
    return sparse_res_block(
        width, out_width, not plain and "downsample" in text, not plain and "upsample" in text, mode
    )


# --- VAEs ------------------------------------------------------------------------------------------


def loaded(case: Case, name: str, make: Callable[..., nn.Module]) -> Any:
    model = make(**case.config[name]).eval()
    model.load_state_dict(case.weights_of(name))
    return model


def run_shape_vae(case: Case) -> dict[str, Tensor]:
    encoder = loaded(case, "encoder", FlexiDualGridVaeEncoder)
    decoder = loaded(case, "decoder", FlexiDualGridVaeDecoder)
    vertices, crossings = sparse_input(case, "vertices"), case.inputs["intersected"]
    z, logvar = encoder(vertices, crossings)
    free = z.without_topology()
    out = {**named("z", z), "mean": z.feats, "logvar": logvar.feats}

    features: dict[tuple[int, int], SparseTensor] = {}
    hooks = [
        block.register_forward_hook(lambda _, __, result, at=(i, j): features.update({at: result}))
        for i, level in enumerate(decoder.blocks)
        for j, block in enumerate(level)
    ]
    raw, subdivisions = decoder(free)
    for hook in hooks:
        hook.remove()
    out |= named("raw", raw)
    for i, logits in enumerate(subdivisions):
        out |= named(f"subs.{i}", logits)
    for i, (level, block) in enumerate(case.info["level_feature_blocks"]):
        result = features[level, block]
        out |= named(f"level_features.{i}", result[0] if isinstance(result, tuple) else result)

    grid = decoder.dual_grid(raw.feats)
    out |= {
        "vertex_offset": grid.dual_vertices,
        "intersected": grid.crossings,
        "quad_lerp": grid.split_weight,
    }
    for i in range(raw.batch_size):
        rows = raw.layout.rows(i)
        mesh = extract_mesh(
            raw.coords[rows, 1:], grid.dual_vertices[rows], grid.crossings[rows], grid.split_weight[rows],
            decoder.resolution,
        )  # fmt: skip
        out |= {f"mesh_vertices.{i}": mesh.vertices, f"mesh_faces.{i}": mesh.faces}
    for steps in range(1, decoder.levels + 1):
        out[f"upsample_{steps}"] = decoder.upsample(z.without_topology(), steps)
    recorded, _ = decoder(z)
    out |= named("raw_with_encoder_topology", recorded)

    encoder.set_torso_dtype(torch.float16)
    decoder.set_torso_dtype(torch.float16)
    out["z_fp16"] = encoder(vertices, crossings)[0].feats
    out["raw_with_encoder_topology_fp16"] = decoder(z)[0].feats
    return out


def run_tex_vae(case: Case) -> dict[str, Tensor]:
    encoder = loaded(case, "encoder", SparseUnetVaeEncoder)
    decoder = loaded(case, "decoder", SparseUnetVaeDecoder)
    z, _ = encoder(sparse_input(case, "attrs"))
    count = sum(re.fullmatch(r"guide_subs\.\d+\.feats", name) is not None for name in case.inputs)
    guides = [sparse_input(case, f"guide_subs.{i}") for i in range(count)]
    guided, _ = decoder(z.without_topology(), guides)
    return {
        **named("z", z),
        **named("decoded_with_encoder_topology", decoder(z)[0]),
        **named("decoded_guided", guided),
        **named("voxels", guided.replace(guided.feats * 0.5 + 0.5)),
    }


def run_dual_grid_heads(case: Case) -> dict[str, Tensor]:
    h = sparse_input(case, "h")
    grid = read_dual_grid(h.feats, case.config["voxel_margin"])
    out = {
        "vertex_offset": grid.dual_vertices,
        "intersected": grid.crossings,
        "quad_lerp": grid.split_weight,
    }
    for i in range(h.batch_size):
        rows = h.layout.rows(i)
        for name, training in ((f"mesh{i}", False), (f"mesh{i}_train", True)):
            mesh = extract_mesh(
                h.coords[rows, 1:], grid.dual_vertices[rows], grid.crossings[rows], grid.split_weight[rows],
                case.config["resolution"], aabb=case.config["aabb"], training=training,
            )  # fmt: skip
            out |= {f"{name}_vertices": mesh.vertices, f"{name}_faces": mesh.faces}
    return out


def compare_with_meshes(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """By the sidecar's tolerances, except that the order of quads is free: triangles are a set, and the
    centre vertices of a training mesh are matched through their quads."""
    checks, rest = [], dict(want)
    for name in [name for name in want if "_faces" in name]:
        vertices = name.replace("_faces", "_vertices")
        faces = rest.pop(name)
        if "_train" not in name:
            checks.append(compare_rows(name, canonical(got[name]), canonical(faces)) if len(faces) else
                          compare_tensor(name, got[name], faces, {"kind": "exact"}))  # fmt: skip
            continue
        voxels = len(want[vertices.replace("_train", "")])
        meshes = [{"vertices": side[vertices], "faces": side[name]} for side in (got, want)]
        corners = [{vertices: mesh["vertices"][:voxels]} for mesh in meshes]
        checks += compare_by_tolerance(case, *corners) + compare_center_vertices(voxels, *meshes)
        del rest[vertices]
    return checks + compare_by_tolerance(case, got, rest)


KINDS = {
    "trellis2.varlen_ops": Kind(run_varlen_ops),
    "trellis2.sparse_conv": Kind(run_sparse_conv),
    "trellis2.sparse_resample": Kind(run_sparse_resample),
    "trellis2.scvae_blocks": Kind(run_blocks),
    "trellis2.shape_vae": Kind(run_shape_vae, compare_with_meshes),
    "trellis2.tex_vae": Kind(run_tex_vae),
    "trellis2.dual_grid_heads": Kind(run_dual_grid_heads, compare_with_meshes),
}
