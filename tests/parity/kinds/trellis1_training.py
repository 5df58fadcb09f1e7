"""Training of TRELLIS v1: flow matching, and how data become batches."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.parity.case import Case, Kind
from tests.parity.kinds.trellis1_layers import compare_strictly, named, sparse_input
from tests.parity.kinds.trellis1_models import build
from trellis.data import coarser_features, crop_condition, project, sampled_features
from trellis_core.training.batching import micro_batches
from trellis_core.training.losses import flow_losses
from trellis_core.training.objectives import TimeSchedule, noised
from trellis_core.training.tuning import packed


@torch.enable_grad()
def flow_matching(case: Case) -> dict[str, Tensor]:
    config, sigma = case.config, case.config["sigma_min"]
    model = build(config["model"], case.weights)
    schedule = config["t_schedule"]
    t = TimeSchedule(name=schedule["name"], **schedule["args"]).times(case.inputs["z"])
    noise = case.inputs["noise"]
    x: Any
    if "x_0.coords" in case.inputs:
        x = sparse_input(case, "x_0")
        x_t = named("x_t", x.replace(noised(x.feats, noise, x.broadcast(t[:, None]), sigma)))
    else:
        x = case.inputs["x_0"]
        x_t = {"x_t": noised(x, noise, t.view(-1, 1, 1, 1, 1), sigma)}
    losses = flow_losses(model, x, noise, t, case.inputs["cond"], sigma_min=sigma)
    losses["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "t": t,
        **x_t,
        "loss": losses["loss"].detach(),
        "bins": losses["bins"].nan_to_num(-1),
        "grad_out_layer": model.out_layer.weight.grad,
        "grad_norm_total": torch.stack([g.norm() for g in gradients]).norm(),
    }


def condition_picture(case: Case) -> dict[str, Tensor]:
    picture = Image.fromarray(case.inputs["rgba"].numpy())
    return {"cond": crop_condition(picture, case.config["image_size"])}


def aggregated(case: Case) -> dict[str, Tensor]:
    places = project(case.inputs["positions"], case.inputs["extrinsics"], case.inputs["intrinsics"])
    feats = sampled_features(places, case.inputs["patch_maps"]).mean(0)
    return {"uv": places, "feats": feats.half()}


def downsampled(case: Case) -> dict[str, Tensor]:
    factor = 64 // case.config["resolution"]
    coords, feats = coarser_features(case.inputs["indices"], case.inputs["patchtokens"], factor)
    return {"coords": coords, "feats": feats}


def collated(case: Case) -> dict[str, Tensor]:
    count = sum(name.endswith(".coords") for name in case.inputs)
    coords = [case.inputs[f"b{i}.coords"] for i in range(count)]
    feats = [case.inputs[f"b{i}.feats"] for i in range(count)]
    out = {}
    for number, part in enumerate(micro_batches([len(c) for c in coords], case.config["split_size"])):
        out |= named(f"p{number}.x_0", packed([coords[i] for i in part], [feats[i] for i in part]))
    return out


KINDS = {
    "trellis1.train_flow_loss": Kind(flow_matching),
    "trellis1.data_cond_image": Kind(condition_picture),
    "trellis1.data_feat_aggregate": Kind(aggregated),
    "trellis1.data_feat_downsample": Kind(downsampled),
    "trellis1.data_slat_collate": Kind(collated, compare_strictly),
}
