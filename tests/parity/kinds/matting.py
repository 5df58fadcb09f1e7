"""Background removal: BiRefNet and what surrounds it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.parity.case import Case, Kind
from tests.parity.formula import fill_by_formula
from trellis_core.models.matting import BiRefNet, alpha_of, mask_of, prepare_picture
from trellis_core.models.matting_blocks import DecoderBlock, DeformableConv2d, DeformablePyramid
from trellis_core.models.matting_decoder import grid_of, picture_patches
from trellis_core.models.swin import PatchEmbedding, PatchMerging, Stage, SwinTransformer

MLP_RATIO = 4.0
STORED_PATCHES = 61  # of the patch channels every so many are stored


def filled(module: nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict(weights)
    return module.eval()


def run_swin_stage(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, run in case.config["runs"].items():
        stage = Stage(
            run["dim"],
            run["num_heads"],
            depth=run["depth"],
            window=run["window"],
            mlp_ratio=MLP_RATIO,
            downsample=run["patch_merging"],
        )
        tokens = case.inputs[name].unflatten(1, (run["height"], run["width"]))
        done, down = filled(stage, case.weights_of(name))(tokens)
        outputs[name] = done.flatten(1, 2)
        if run["patch_merging"]:
            outputs[f"{name}.down"] = down.flatten(1, 2)
    return outputs


def run_swin_backbone(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, x in case.inputs.items():
        part = name.partition("_")[0]
        weights = case.weights_of(name) or case.weights_of(part)
        run = case.config["runs"].get(name) or case.config["runs"].get(part)
        if part == "embed":
            embed = PatchEmbedding(*weights["proj.weight"].shape[::3], weights["proj.weight"].shape[1])
            outputs[name] = filled(embed, weights)(x)
        elif part == "merge":
            merge = filled(PatchMerging(x.shape[2]), weights)
            outputs[name] = merge(x.unflatten(1, (run["height"], run["width"]))).flatten(1, 2)
        else:
            maps = filled(SwinTransformer(**run), weights)(x)
            outputs |= {f"{name}.{i}": x for i, x in enumerate(maps)}
    return outputs


def run_deform_conv(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, run in case.config["runs"].items():
        x = case.inputs[name]
        conv = DeformableConv2d(run["in_channels"], run["out_channels"], run["kernel"])
        filled(conv, case.weights_of(name))
        outputs[name] = conv(x)
        outputs[f"{name}.offset"] = conv.offset_conv(x)
        outputs[f"{name}.mask"] = 2 * conv.modulator_conv(x).sigmoid()
    return outputs


def run_decoder_block(case: Case) -> dict[str, Tensor]:
    config, seed, outputs = case.config, case.config["weights_seed"], {}
    pyramid = DeformablePyramid(config["aspp"]["channels"])
    pyramid.global_avg_pool.register_forward_hook(partial(keep, outputs, "aspp.pool"))
    pyramid.aspp_deforms[2].register_forward_hook(partial(keep, outputs, "aspp.k7"))
    outputs["aspp"] = fill_by_formula(pyramid, seed)(case.inputs["aspp"])
    block = DecoderBlock(config["dec"]["in_channels"], config["dec"]["out_channels"])
    outputs["dec"] = fill_by_formula(block, seed)(case.inputs["dec"])
    return outputs


def run_network(case: Case) -> dict[str, Tensor]:
    """The config's patch order gives the plain outputs; `column` those that carry its name."""
    config, picture = case.config, case.inputs["image"]
    sizes = {key: config[key] for key in ("embed_dim", "depths", "num_heads", "window")}
    model = BiRefNet(**sizes, patch_order=config["patch_order"])
    fill_by_formula(model, config["weights_seed"])

    outputs: dict[str, Tensor] = {}
    hooks = [model.squeeze_module.register_forward_hook(partial(keep, outputs, "squeeze"))]
    for n in (4, 3, 2, 1):
        block = model.decoder.get_submodule(f"decoder_block{n}")
        hooks.append(block.register_forward_hook(partial(keep, outputs, f"p{n}")))
    for n in (4, 3, 2):
        gate = model.decoder.get_submodule(f"gdt_convs_attn_{n}")
        hooks.append(gate.register_forward_hook(partial(keep_sigmoid, outputs, f"gate{n}")))
    outputs["logits"] = model(picture)
    for hook in hooks:
        hook.remove()

    outputs |= {f"enc.x{i}": x for i, x in enumerate(model.encode(picture), start=1)}
    for suffix, order in (("", config["patch_order"]), ("_column_order", "column")):
        outputs[f"patches4{suffix}"] = picture_patches(picture, grid_of(4), order)[:, ::STORED_PATCHES]
    model.decoder.patch_order = "column"
    outputs["logits_column_order"] = model(picture)
    return outputs


def keep(outputs: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs[name] = output


def keep_sigmoid(
    outputs: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Tensor
) -> None:
    outputs[name] = output.sigmoid()


def run_preprocess(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, run in case.config.items():
        if "mode" in run:
            pixels = case.inputs[name].numpy()
            image = Image.fromarray(pixels[:, :, 0] if run["mode"] == "L" else pixels)
            x = prepare_picture(image, run["size"])
            stored = slice(None, None, run["stored_stride"])
            outputs[name] = x[:, :, stored, stored]
            outputs[f"{name}.resized"] = to_pixels(x)[stored, stored]
        else:
            logits, picture = case.inputs[f"{name}.logits"], case.inputs[f"{name}.picture"]
            alpha = torch.from_numpy(np.array(alpha_of(logits, (run["width"], run["height"]))))
            outputs[f"{name}.mask"] = torch.from_numpy(mask_of(logits))
            outputs[f"{name}.alpha"] = alpha
            outputs[f"{name}.rgba"] = torch.cat([picture, alpha[:, :, None]], dim=-1)
    return outputs


def to_pixels(x: Tensor) -> Tensor:  # normalised [1, 3, s, s] -> uint8 [s, s, 3]
    """Undo the normalisation: what the network is given is what was resized."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x[0].movedim(0, -1) * std + mean) * 255).round().to(torch.uint8)


KINDS: dict[str, Kind] = {
    "matting.swin_stage": Kind(run_swin_stage),
    "matting.swin_backbone": Kind(run_swin_backbone),
    "matting.deform_conv": Kind(run_deform_conv),
    "matting.decoder_block": Kind(run_decoder_block),
    "matting.network": Kind(run_network),
    "matting.preprocess": Kind(run_preprocess),
}
