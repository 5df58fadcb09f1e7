"""What a network costs in memory: weights and live activations, from the sizes in its configuration.

Counted from the computation and compared with measured peaks (`tests/benchmarks/memory.py`); numbers of
surface tokens are those of released runs. Knows nothing about devices or plans.
Letters: C channels, N tokens or voxels, M condition tokens, s bytes of one number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

CHILDREN = 4.65  # occupied children per occupied voxel, and occupied voxels per cell of a face of the grid
TAPS = 27
LEVELS = CHILDREN / (CHILDREN - 1)  # all levels together, in units of the finest
MAPS = 4 * TAPS + 4 * 4 + 7 * 8  # bytes a voxel: neighbours, coordinates; keys and orders while they are made
OUTPUTS = 13  # 7 shape and 6 material channels, float32
CHUNK = 1 << 24  # numbers that row-wise work and gathers of the sparse networks hold at once

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network and its largest input in a run."""

    stage: str  # "condition", "structure", "shape", "texture" or "decode"
    kind: str  # "transformer", "dense" (convolutions on a full grid) or "sparse" (a sparse U-Net decoder)
    parameters: int
    width: int  # C; of a decoder: of its finest level
    tokens: int  # N; of a decoder: voxels of its finest level
    blocks: int = 0
    hidden: int = 0  # channels inside the MLP
    context: int = 0  # M
    voxels: int = 0  # of a transformer with convolutions around it, on a finer grid: their rows
    voxel_numbers: int = 0  # and what they hold of each: skips, and one block at work
    full_precision: bool = False  # runs in float32 whatever the plan says


def predict_peaks(
    networks: Mapping[str, Network],
    dtype: torch.dtype,
    *,
    resident: bool,
    cache_condition: bool,
    num_samples: int = 1,
) -> dict[str, int]:
    """Bytes at the worst moment of each stage. Transformers of a stage run one after the other."""
    everything = sum(weight_bytes(network, dtype) for network in networks.values())
    peaks = {}
    for stage in dict.fromkeys(network.stage for network in networks.values()):
        here = [network for network in networks.values() if network.stage == stage]
        in_turn = [weight_bytes(network, dtype) for network in here if network.kind == "transformer"]
        together = sum(weight_bytes(network, dtype) for network in here if network.kind != "transformer")
        weights = everything if resident else max(in_turn, default=0) + together
        work = max(activation_bytes(network, dtype, cache_condition) for network in here)
        peaks[stage] = weights + num_samples * work
    return peaks


def weight_bytes(network: Network, dtype: torch.dtype) -> int:
    return network.parameters * _itemsize(network, dtype)


def activation_bytes(network: Network, dtype: torch.dtype, cache_condition: bool) -> int:
    """Live bytes of one sample beside the weights, at the worst moment of one evaluation."""
    s, n, c = _itemsize(network, dtype), network.tokens, network.width
    if network.kind == "transformer":
        attention = (
            5 * c * s + 15 * c * 4
        )  # residual, packed q k v, result; norms and rotary phases in float32
        mlp = 2 * (c + network.hidden) * s
        blocks = network.blocks if cache_condition else min(network.blocks, 1)
        inside = n * max(attention, mlp) + blocks * network.context * 2 * c * s
        return inside + round(_around_bytes(network, s))
    if network.kind == "dense":
        return n * c * (4 * s + 4)  # input, two convolutions, skip; one float32 norm
    parents = n / CHILDREN
    # the last doubling: C2S convolves parents to the channels of eight children, then the children
    on_parents = parents * (3 * 2 * c + 8 * c) * s
    on_children = n * (3.75 * c * s + 4 * OUTPUTS)  # features, padded copy, result; skip; what is kept
    return round(max(on_parents, on_children) + n * MAPS * LEVELS) + CHUNK * (s + 8)


def _around_bytes(network: Network, s: int) -> float:
    """Convolutions before and after the blocks: numbers, maps of all grids, one chunk."""
    if not network.voxels:
        return 0
    return network.voxels * (network.voxel_numbers * s + MAPS * LEVELS) + CHUNK * (s + 8)


def _itemsize(network: Network, dtype: torch.dtype) -> int:
    return 4 if network.full_precision else dtype.itemsize


def surface_tokens(grid: int) -> int:
    """Occupied cells of a busy object's surface: about 5 k in a grid of 32, 19 k of 64, 43 k of 96."""
    return round(CHILDREN * grid * grid)


def describe_networks(
    configs: Mapping[str, tuple[Config, int]],  # name in pipeline.json -> (configuration, parameters)
    *,
    resolution: int,  # output voxels along an axis
    image_size: int,  # pixels along the side of the largest picture that the encoder sees
) -> dict[str, Network]:
    """The networks that a run from a picture uses, read from released configurations.

    Of several flows of one kind (`..._512`, `..._1024`), those up to `resolution` are used; the last one
    works at `resolution`, the shape flows before it make drafts at their own size.
    """
    args = {name: config.get("args", config) for name, (config, _) in configs.items()}
    sizes = {name: parameters for name, (_, parameters) in configs.items()}
    kinds = {name: kind for name in args if (kind := _kind(name, args[name])) is not None}

    encoders = [args[name] for name, kind in kinds.items() if kind == "encoder"]
    context = max((_encoder_tokens(encoder, image_size) for encoder in encoders), default=0)
    decoders = [args[name] for name, kind in kinds.items() if kind == "decoder"]
    levels = max((len(decoder["model_channels"]) - 1 for decoder in decoders), default=0)
    sides = [args[name]["resolution"] for name, kind in kinds.items() if kind == "structure flow"]

    found = {}
    for name, kind in kinds.items():
        a, parameters = args[name], sizes[name]
        if kind == "encoder":
            found[name] = _encoder(a, parameters, context)
        elif kind == "structure flow":
            found[name] = _flow(a, parameters, "structure", a["resolution"] ** 3, context)
        elif kind == "structure decoder":
            voxels = (max(sides, default=0) * 2 ** (len(a["channels"]) - 1)) ** 3
            found[name] = Network(
                stage="structure", kind="dense", parameters=parameters, width=a["channels"][-1], tokens=voxels
            )
        elif kind == "decoder":
            voxels = round(surface_tokens(resolution >> levels) * CHILDREN**levels)
            found[name] = Network(
                stage="decode",
                kind="sparse",
                parameters=parameters,
                width=a["model_channels"][-1],
                tokens=voxels,
            )
    for stage in ("shape", "texture"):
        flows = sorted((n for n, kind in kinds.items() if kind == f"{stage} flow"), key=_size_in)
        used = [n for n in flows if _size_in(n) <= resolution] or flows[:1]
        for name in used if stage == "shape" else used[-1:]:
            grid = (resolution if name == used[-1] else _size_in(name)) >> levels
            found[name] = _flow(args[name], sizes[name], stage, surface_tokens(grid), context)
    return found


def _kind(name: str, args: Config) -> str | None:
    """What a network of a pipeline file is; None for those that a run from a picture does not use."""
    if "hidden_size" in args:
        return "encoder"
    if "encoder" in name:
        return None
    transformer = isinstance(args.get("model_channels"), int)
    if "structure" in name:
        return "structure flow" if transformer else "structure decoder"
    if transformer:
        return "texture flow" if "tex" in name else "shape flow"
    return "decoder" if "model_channels" in args else None


def _encoder(args: Config, parameters: int, tokens: int) -> Network:
    return Network(
        stage="condition",
        kind="transformer",
        parameters=parameters,
        width=args["hidden_size"],
        hidden=args["intermediate_size"],
        blocks=args["num_hidden_layers"],
        tokens=tokens,
        full_precision=True,
    )


def _flow(args: Config, parameters: int, stage: str, tokens: int, context: int) -> Network:
    return Network(
        stage=stage,
        kind="transformer",
        parameters=parameters,
        width=args["model_channels"],
        hidden=int(args["model_channels"] * args.get("mlp_ratio", 4)),
        blocks=args["num_blocks"],
        tokens=tokens,
        context=context,
    )


def _encoder_tokens(args: Config, image_size: int) -> int:
    return (image_size // args["patch_size"]) ** 2 + 1 + args.get("num_register_tokens", 0)


def _size_in(name: str) -> int:
    """512 in `shape_slat_flow_model_512`; 0 without a number."""
    match = re.search(r"_(\d+)$", name)
    return int(match.group(1)) if match else 0
