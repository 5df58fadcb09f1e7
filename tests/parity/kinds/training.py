"""Losses, gradients and mechanics of the trainers.

Some recorded answers (groups, orders, the fitted line) stand in the sidecar's configuration instead of among
the outputs; `checked_against_config` compares those. Recorded values may be infinite or nan on purpose:
`with_gaps` demands the same there and compares the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.case import Case, Check, Kind, compare_by_tolerance, compare_tensor
from trellis2.models.latent_flow import SLatFlowModel
from trellis2.models.sparse_vae import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeEncoder,
    SparseUnetVaeDecoder,
    SparseUnetVaeEncoder,
)
from trellis2.objectives import (
    ShapeVaeWeights,
    TextureVaeWeights,
    shape_vae_losses,
    texture_vae_losses,
    training_meshes,
)
from trellis_core.geometry.camera import Camera
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.batching import SampleOrder, balanced_groups
from trellis_core.training.clipping import AdaptiveClip
from trellis_core.training.elastic import ElasticMemory, ElasticSettings, checkpointed_blocks
from trellis_core.training.image_losses import ImageWeights, psnr, ssim, ssim_per_image
from trellis_core.training.losses import flow_losses, structure_vae_losses
from trellis_core.training.master import FlatAverage, MasterCopy, linear_warm_up
from trellis_core.training.objectives import (
    TimeSchedule,
    clean_from,
    named_bins,
    noised,
    velocity_target,
    without_condition,
)
from trellis_core.training.regularizers import gaussian_size, transparency, truncated_distance_loss
from trellis_core.training.surface import SurfaceImages, turned_to_viewer


def exact(name: str, got: Any, want: Any) -> Check:
    return Check(name, 0.0 if got == want else 1.0, 0.0, "" if got == want else f"{got}, expected {want}")


def near(name: str, got: float, want: float, rule: dict[str, Any]) -> Check:
    return Check(name, abs(got - want) / (rule["atol"] + rule["rtol"] * abs(want)), 1.0)


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    return module


def gradients(loss: Tensor, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """`<prefix>.<parameter>` -> d loss / d parameter, for the parameters that the loss depends on."""
    names, parameters = [], []
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            names.append(f"{prefix}.{name}")
            parameters.append(parameter)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


# TRELLIS.2


@torch.enable_grad()
def flow_matching(case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, network in (("dense", SparseStructureFlowModel), ("sparse", SLatFlowModel)):
        run = case.config["runs"][name]
        schedule = run["t_schedule"]
        model = loaded(network(**run["model"]), case.weights_of(name))
        t = TimeSchedule(name=schedule["name"], **schedule["args"]).times(case.inputs[f"{name}_t_random"])
        dropped = case.inputs[f"{name}_drop_random"] < run["p_uncond"]
        cond = without_condition(case.inputs["cond"], dropped)
        noise, sigma = case.inputs[f"{name}_noise"], case.config["sigma_min"]
        inputs = {}
        if name == "dense":
            x: Tensor | SparseTensor = case.inputs["x0_dense"]
            feats, scale = x, t.view(-1, 1, 1, 1, 1)
        else:
            x = SparseTensor(case.inputs["x0_sparse.feats"], case.inputs["x0_sparse.coords"], len(t))
            feats, scale = x.feats, x.broadcast(t[:, None])
            inputs = {"concat_cond": x.replace(case.inputs["concat_cond"])}
        losses = flow_losses(model, x, noise, t, cond, sigma_min=sigma, **inputs)
        x_t = noised(feats, noise, scale, sigma)
        out |= {f"{name}_t": t, f"{name}_dropped": dropped, f"{name}_x_t": x_t}
        out |= {f"{name}_target_v": velocity_target(feats, noise, sigma), f"{name}_loss": losses["loss"]}
        out |= {f"{name}_x0_back": clean_from(x_t, noise, scale, sigma), f"{name}_bins": losses["bins"]}
        out |= gradients(losses["loss"], {f"{name}_grad": model})
    return out


def compare_flow_matching(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    checks = compare_by_tolerance(case, got, want)
    for name, run in case.config["runs"].items():
        bins = named_bins(got[f"{name}_bins"])
        checks.append(exact(f"{name}_bins", sorted(bins), sorted(run["bins"])))
        rule = case.info["tolerance"]
        checks += [near(f"{name}_{k}", bins.get(k, math.nan), v, rule) for k, v in run["bins"].items()]
    return checks


@torch.enable_grad()
def vae_losses(case: Case) -> dict[str, Tensor]:
    return structure_part(case) | shape_part(case) | texture_part(case)


def structure_part(case: Case) -> dict[str, Tensor]:
    config, out = case.config["ss"], {}
    encoder = loaded(SparseStructureEncoder(**config["encoder"]), case.weights_of("ss_encoder"))
    decoder = loaded(SparseStructureDecoder(**config["decoder"]), case.weights_of("ss_decoder"))
    for term in ("bce", "l1", "dice"):
        losses = structure_vae_losses(
            encoder,
            decoder,
            case.inputs["occ"],
            case.inputs["ss_posterior_noise"],
            term=term,
            kl_weight=config["lambda_kl"],
        )
        out |= {f"ss_{term}": losses[term], f"ss_{term}_total": losses["loss"], f"ss_{term}_kl": losses["kl"]}
    return out


def shape_part(case: Case) -> dict[str, Tensor]:
    config, named = case.config["shape"], case.config["shape"]["weights"]
    encoder = loaded(FlexiDualGridVaeEncoder(**config["encoder"]), case.weights_of("shape_encoder"))
    decoder = loaded(FlexiDualGridVaeDecoder(**config["decoder"]), case.weights_of("shape_decoder"))
    coords, flags = case.inputs["vertices.coords"], case.inputs["intersected"]
    position = SparseTensor(case.inputs["vertices.feats"], coords, int(coords[:, 0].max()) + 1)
    weights = ShapeVaeWeights(
        crossing=named["lambda_intersected"],
        position=named["lambda_vertice"],
        subdivision=named["lambda_subdiv"],
        mask=named["lambda_mask"],
        depth=named["lambda_depth"],
        normal=named["lambda_normal"],
        normal_terms=ImageWeights(ssim=named["lambda_ssim"], lpips=named["lambda_lpips"]),
        kl=named["lambda_kl"],
    )

    def stored(side: str) -> SurfaceImages:
        return SurfaceImages(*(case.inputs[f"render_{name}_{side}"] for name in ("mask", "depth", "normal")))

    losses = shape_vae_losses(
        encoder,
        decoder,
        position,
        flags,
        case.inputs["shape_posterior_noise"],
        weights=weights,
        render=lambda meshes: (stored("pred"), stored("gt")),
        perceptual=lambda a, b: torch.zeros(()),  # as recorded
    )
    mean, logvar = encoder(position, flags)
    output, subdivisions = decoder(mean)
    grid = decoder.dual_grid(output.feats)
    out = {
        "shape_mean": mean.feats,
        "shape_logvar": logvar.feats,
        "z_mean.feats": mean.feats,
        "z_mean.coords": mean.coords,
        "train_vertices_mode": grid.dual_vertices,
        "train_intersected_logits_mode": grid.crossing_logits,
        "shape_loss": losses["loss"],
        "shape_direct_intersected": losses["crossing"],
        "shape_direct_vertice": losses["position"],
        "shape_render_mask": losses["mask"],
        "shape_render_depth": losses["depth"],
        "shape_kl": losses["kl"],
    }
    for term in ("l1", "ssim", "lpips"):
        out[f"shape_render_normal_{term}"] = losses[f"normal_{term}"]
    for level, logits in enumerate(subdivisions):
        out[f"shape_bce_sub{level}"] = losses[f"subdivision_{level}"]
        out[f"subs_mode.{level}"] = logits.feats
        out[f"subs_gt.{level}"] = logits.plan.expand().mask.byte()
    for sample, mesh in enumerate(training_meshes(output, grid, flags, decoder.resolution)):
        out[f"train_mesh_vertices.{sample}"] = mesh.vertices
        out[f"train_mesh_faces.{sample}"] = mesh.faces
    return out | gradients(losses["loss"], {"shape_encoder_grad": encoder, "shape_decoder_grad": decoder})


def texture_part(case: Case) -> dict[str, Tensor]:
    config, out = case.config["tex"], {}
    encoder = loaded(SparseUnetVaeEncoder(**config["encoder"]), case.weights_of("tex_encoder"))
    decoder = loaded(SparseUnetVaeDecoder(**config["decoder"]), case.weights_of("tex_decoder"))
    coords = case.inputs["vertices.coords"]
    attrs = SparseTensor(case.inputs["attrs"], coords, int(coords[:, 0].max()) + 1)
    weights = TextureVaeWeights(kl=config["lambda_kl"])
    for term in ("l1", "l2"):
        losses = texture_vae_losses(
            encoder, decoder, attrs, case.inputs["tex_posterior_noise"], term=term, weights=weights
        )
        out |= {f"tex_{term}": losses[term], f"tex_{term}_total": losses["loss"]}
        out[f"tex_{term}_kl"] = losses["kl"]
    return out


@torch.enable_grad()
def train_utils(case: Case) -> dict[str, Tensor]:
    a, b = case.inputs["img_a"], case.inputs["img_b"]
    out = {"ssim": ssim(a, b), "ssim_self": ssim(a, a), "psnr": psnr(a, b)}
    # the close picture and beta are not in the sidecar; these give the recorded numbers to the last digit
    out |= {"ssim_close": ssim(a, (a + 0.05 * b).clamp(0, 1)), "smooth_l1": F.smooth_l1_loss(a, b, beta=0.3)}
    for name in ("clip0", "clip1"):
        settings = case.config[name]
        clip = AdaptiveClip(settings["max_norm"], settings["clip_percentile"], settings["buffer_size"])
        norms, limits, clipped = clip_all(clip, case.inputs[f"{name}_grads"])
        out |= {f"{name}_norms": norms, f"{name}_max_norm_after": limits, f"{name}_clipped": clipped}
    return out | training_run(case, "fp32", None) | training_run(case, "inflat", 20.0)


def clip_all(clip: AdaptiveClip, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms, limits after every step (nan: none yet) and clipped gradients of a sequence."""
    norms, limits, clipped = [], [], []
    for grad in grads:
        parameter = nn.Parameter(torch.zeros_like(grad))
        parameter.grad = grad.clone()
        norms.append(clip([parameter]))
        limits.append(math.nan if clip.limit is None else clip.limit)
        clipped.append(parameter.grad)
    return torch.tensor(norms), torch.tensor(limits), torch.stack(clipped)


def training_run(case: Case, mode: str, log_scale: float | None) -> dict[str, Tensor]:
    """Five recorded steps: flow loss in micro-batches, warm-up, adaptive clip, AdamW, average."""
    run = case.config["train_run"]
    model = loaded(SparseStructureFlowModel(**run["model"]), case.weights_of("train"))
    master = MasterCopy(model.named_parameters(), log_scale)
    rate = run["optimizer"]["args"]["lr"]
    optimizer = torch.optim.AdamW([master.flat], **run["optimizer"]["args"])
    averages = [FlatAverage(master, ema) for ema in run["ema_rate"]]
    settings = run["grad_clip"]
    clip = AdaptiveClip(settings["max_norm"], settings["clip_percentile"], settings["buffer_size"])
    parts = run["micro_batches"]
    x, cond = (case.inputs[name].chunk(parts) for name in ("train_x0", "train_cond"))
    means, rates, norms = [], [], []
    for step in range(run["steps"]):
        rates.append(rate * linear_warm_up(step, run["lr_scheduler"]["args"]["warmup_steps"]))
        optimizer.param_groups[0]["lr"] = rates[-1]
        total = 0.0
        for part in range(parts):
            noise, t = (case.inputs[name][step, part] for name in ("train_noise", "train_t"))
            loss = flow_losses(model, x[part], noise, t, cond[part])["loss"]
            master.scaled(loss / parts).backward()
            total += loss.item() / parts
        means.append(total)
        norms.append(master.step(optimizer, clip)[0])
        for average in averages:
            average.update(master)
    out = {f"{mode}_losses": means, f"{mode}_lr": rates, f"{mode}_grad_norm": norms}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in out.items()}
    if master.log_scale is not None:
        tensors["log_scale_after"] = torch.tensor(master.log_scale, dtype=torch.float64)
    tensors |= {f"{mode}_param.{name}": value.detach() for name, value in model.named_parameters()}
    for average in averages:
        named = master.views(average.flat)
        tensors |= {f"{mode}_ema{average.rate}.{name}": value for name, value in named.items()}
    return tensors


def compare_train_utils(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    config, rule = case.config, case.info["tolerance"]
    checks = with_gaps(case, got, want)
    for name in ("groups0", "groups1", "groups2"):
        entry = config[name]
        groups = balanced_groups(entry["load"], entry["num_groups"], equal_size=entry["equal_size"])
        checks.append(exact(name, groups, entry["groups"]))
    checks += sampler_checks(config["balanced_sampler"])
    checks += memory_checks(config["memory_controller"], rule)
    for entry in config["checkpoint_blocks"]:
        count, ratio = checkpointed_blocks(entry["num_blocks"], entry["mem_ratio"])
        checks.append(exact(f"checkpointed {entry['mem_ratio']}", count, entry["checkpointed"]))
        checks.append(near(f"exact ratio {entry['mem_ratio']}", ratio, entry["exact_ratio"], rule))
    log_scale = got["log_scale_after"].item()
    return [*checks, near("log_scale_after", log_scale, config["log_scale_after"], rule)]


def sampler_checks(entry: dict[str, Any]) -> list[Check]:
    checks = []
    for rank in range(entry["world_size"]):
        for prefix, loads in (("", entry["loads"]), ("plain_", None)):
            order = SampleOrder(
                entry["dataset_len"],
                rank=rank,
                ranks=entry["world_size"],
                loads=loads,
                batch_size=entry["batch_size"],
            )
            name = f"{prefix}rank{rank}_epoch0"
            checks.append(exact(name, order.epoch_share(), entry["result"][name]))
            name = f"{prefix}rank{rank}_epoch1_from3"
            if name in entry["result"]:
                order.load_state_dict({"epoch": 1, "index": 3})
                checks.append(exact(name, order.epoch_share()[order.index :], entry["result"][name]))
    return checks


def memory_checks(entry: dict[str, Any], rule: dict[str, Any]) -> list[Check]:
    settings = ElasticSettings(
        available=entry["available_memory_gb"], target=entry["target_ratio"], start=entry["max_mem_ratio"]
    )
    elastic = ElasticMemory(settings)
    for row in zip(entry["input_size"], entry["mem_ratio"], entry["memory_gb"], strict=True):
        elastic.record(*row)
    elastic.fit()
    line = elastic.line or (math.nan, math.nan)
    checks = [near(f"fit {i}", line[i], entry["fit_k_b"][i], rule) for i in range(2)]
    for cap, name in ((entry["max_mem_ratio"], "ratio"), (1.0, "ratio_with_max_1")):
        elastic.cap = cap
        for size, ratio in zip(entry["query"], entry[name], strict=True):
            checks.append(near(f"{name} {size}", elastic.ratio(size), ratio, rule))
    return checks


def with_gaps(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Compare by tolerance; where infinity or nan was recorded the same has to be found."""
    checks, finite_got, finite_want = [], dict(got), {}
    for name, expected in want.items():
        gap = ~expected.isfinite() if expected.is_floating_point() else torch.zeros(())
        finite_want[name] = expected
        if bool(gap.any()) and name in got:
            same = torch.equal(got[name][gap].nan_to_num(), expected[gap].nan_to_num())
            checks.append(exact(f"{name} where not finite", same, True))
            finite_want[name] = expected.masked_fill(gap, 0)
            finite_got[name] = got[name].masked_fill(gap, 0)
    return checks + compare_by_tolerance(case, finite_got, finite_want)


# TRELLIS


def cfg_drop(case: Case) -> dict[str, Tensor]:
    chosen = case.inputs["u"] < case.config["p_uncond"]
    return {"y": without_condition(case.inputs["cond"], chosen, case.inputs["neg_cond"])}


def diffuse(case: Case) -> dict[str, Tensor]:
    x, noise, sigma = case.inputs["x_0"], case.inputs["noise"], case.config["sigma_min"]
    t = case.inputs["t"][:, None]
    x_t = noised(x, noise, t, sigma)
    return {"x_t": x_t, "v": velocity_target(x, noise, sigma), "x_0_back": clean_from(x_t, noise, t, sigma)}


@torch.enable_grad()
def flow_loss(case: Case) -> dict[str, Tensor]:
    """The dense case; the sparse one needs the latent flow of TRELLIS."""
    schedule = case.config["t_schedule"]
    model = loaded(SparseStructureFlowModel(**case.config["model"]["args"]), case.weights)
    x, noise, sigma = case.inputs["x_0"], case.inputs["noise"], case.config["sigma_min"]
    t = TimeSchedule(name=schedule["name"], **schedule["args"]).times(case.inputs["z"])
    losses = flow_losses(model, x, noise, t, case.inputs["cond"], sigma_min=sigma)
    found = gradients(losses["loss"], {"": model})
    return {
        "t": t,
        "x_t": noised(x, noise, t.view(-1, 1, 1, 1, 1), sigma),
        "loss": losses["loss"],
        "bins": losses["bins"].nan_to_num(-1),
        "grad_out_layer": found[".out_layer.weight"],
        "grad_norm_total": torch.stack([g.norm() for g in found.values()]).norm(),
    }


def grad_clip(case: Case) -> dict[str, Tensor]:
    settings = case.config
    clip = AdaptiveClip(settings["max_norm"], settings["clip_percentile"], settings["buffer_size"])
    grads = case.inputs["grads"].clone()
    infinite = 7  # the sidecar: stored as 0
    grads[infinite, 0] = torch.inf
    norms, limits, clipped = clip_all(clip, grads)
    kept = torch.arange(len(grads)) != infinite
    return {"norms": norms.nan_to_num(posinf=-1), "max_norm_after": limits, "clipped": clipped[kept]}


def gaussian_terms(case: Case) -> dict[str, Tensor]:
    """With the activations of the released Gaussian decoder (specification, 11.1)."""
    raw = [[case.inputs[f"g{i}._{name}"] for i in range(2)] for name in ("scaling", "opacity")]
    start, kernel, opacity = 0.004, 9e-4, 0.1
    bias = start + math.log(-math.expm1(-start))
    scales = [(F.softplus(s + bias).square() + kernel**2).sqrt() for s in raw[0]]
    size = gaussian_size(scales)
    clear = transparency([(o + math.log(opacity / (1 - opacity))).sigmoid() for o in raw[1]])
    loss = case.config["lambda_vol"] * size + case.config["lambda_opacity"] * clear
    return {"vol": size, "opacity": clear, "loss": loss}


def image_losses(case: Case) -> dict[str, Tensor]:
    a, b = case.inputs["a"], case.inputs["b"]
    return {
        "l1": (a - b).abs().mean(),
        "l2": (a - b).square().mean(),
        "smooth_l1": F.smooth_l1_loss(a, b, beta=1 / 512),
        "ssim": ssim(a, b),
        "ssim_per_image": ssim_per_image(a, b),
        "psnr": psnr(a, b),
    }


def memory_controller(case: Case) -> dict[str, Tensor]:
    settings = ElasticSettings(available=case.config["available_memory"], target=case.config["target_ratio"])
    elastic = ElasticMemory(settings)
    rows = (case.inputs[name].tolist() for name in ("size", "ratio", "memory"))
    for row in zip(*rows, strict=True):
        elastic.record(*row)
    elastic.fit()
    out = {"params": torch.tensor(elastic.line)}
    for cap in (0.5, 1.0):
        elastic.cap = cap
        ratios = [elastic.ratio(size) for size in case.inputs["query"].tolist()]
        out[f"ratio_cap_{cap}"] = torch.tensor(ratios, dtype=torch.float64)
    return out


def mesh_terms(case: Case) -> dict[str, Tensor]:
    i = case.inputs
    camera = Camera(i["extrinsics"].double(), i["intrinsics"].double())
    band = 3 / case.config["res"]
    return {
        "tsdf_loss": truncated_distance_loss(i["tsdf_v"], i["tsdf_s"], i["depth"], camera, band),
        "flipped": turned_to_viewer(i["normal"], camera),
    }


@torch.enable_grad()
def structure_vae_loss(case: Case) -> dict[str, Tensor]:
    encoder = loaded(SparseStructureEncoder(**case.config["encoder"]), case.weights_of("encoder"))
    decoder = loaded(SparseStructureDecoder(**case.config["decoder"]), case.weights_of("decoder"))
    out: dict[str, Tensor] = {}
    for term in ("bce", "l1", "dice"):
        losses = structure_vae_losses(
            encoder,
            decoder,
            case.inputs["ss"],
            case.inputs["eps"],
            term=term,
            kl_weight=case.config["lambda_kl"],
        )
        out |= {term: losses[term], f"loss_{term}": losses["loss"], "kl": losses["kl"]}
    return out


def data_utils(case: Case) -> dict[str, Tensor]:
    """Group counts, ranks and batch size are not in the sidecar: 4 groups, 2 ranks, 3 samples per batch."""
    loads = case.inputs["load"].tolist()
    whole = loads[: len(loads) // 4 * 4]
    plain = SampleOrder(len(loads))
    out = {"epoch0": plain.epoch_share()}
    plain.load_state_dict({"epoch": 1, "index": 5})
    out["epoch1_from5"] = plain.epoch_share()[plain.index :]
    for rank in range(2):
        order = SampleOrder(len(loads), rank=rank, ranks=2, drop_last=True, loads=loads, batch_size=3)
        out[f"balanced_rank{rank}"] = order.epoch_share()
    out["group_of"] = group_of(balanced_groups(loads, 4))
    out["group_of_equal"] = group_of(balanced_groups(whole, 4, equal_size=True))
    tensors = {name: torch.tensor(values) for name, values in out.items()}
    return tensors | {"warmup_lr": torch.tensor([linear_warm_up(step, 4) for step in range(7)])}


def group_of(groups: list[list[int]]) -> list[int]:
    return [next(g for g, members in enumerate(groups) if i in members) for i in range(sum(map(len, groups)))]


def compare_exactly(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """For tolerances of zero."""
    return [compare_tensor(name, got[name], want[name], {"kind": "exact"}) for name in want]


def compare_elastic_blocks(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """The questions (blocks, requested ratio) are recorded beside the answers, in one table."""
    answers = [checkpointed_blocks(int(n), ratio) for n, ratio in want["rows"][:, :2].tolist()]
    rows = torch.cat([want["rows"][:, :2], torch.tensor(answers, dtype=torch.float64)], 1)
    return compare_by_tolerance(case, {"rows": rows}, want)


def nothing(case: Case) -> dict[str, Tensor]:
    return {}


V1: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "train_data_utils": data_utils,
    "train_diffuse": diffuse,
    "train_grad_clip": grad_clip,
    "train_gs_reg": gaussian_terms,
    "train_image_losses": image_losses,
    "train_memory_controller": memory_controller,
    "train_mesh_reg": mesh_terms,
    "train_ss_vae_loss": structure_vae_loss,
}

KINDS = {
    "trellis2.train_flow_matching": Kind(flow_matching, compare_flow_matching),
    "trellis2.train_vae_losses": Kind(vae_losses),
    "trellis2.train_utils": Kind(train_utils, compare_train_utils),
    "trellis1.train_cfg_drop": Kind(cfg_drop, compare_exactly),
    "trellis1.train_elastic_blocks": Kind(nothing, compare_elastic_blocks),
    **{f"trellis1.{name}": Kind(run) for name, run in V1.items()},
}
