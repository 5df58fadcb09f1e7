"""What the networks of TRELLIS v1 cost, in the terms of `trellis_core.memory.cost`.

Numbers of voxels are those of released runs: 20 thousand of a grid of 64, one token for 3.5 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trellis.representations import CubeLayout
from trellis.settings import DECODERS, LATENT_FLOW, STRUCTURE_DECODER, STRUCTURE_FLOW
from trellis_core.memory.cost import Network, surface_tokens

VOXELS_PER_TOKEN = 3.5
CUBES = 64  # of the mesh decoder's finest level, for every voxel
# numbers per voxel and channel that convolutions hold beside the blocks at the worst moment, as measured
# (tests/benchmarks/memory_trellis1.py)
FLOW_BLOCKS, MESH_BLOCKS = 11, 5

Config = Mapping[str, Any]


def describe_networks(
    configs: Mapping[str, tuple[Config, int]],  # name in pipeline.json -> (configuration, parameters)
    image_size: int,  # pixels
) -> dict[str, Network]:
    """All networks that a run uses, with their largest inputs."""
    args = {name: config["args"] for name, (config, _) in configs.items()}
    sizes = {name: parameters for name, (_, parameters) in configs.items()}
    found = {name: encoder(args[name], sizes[name], image_size) for name in args if name.endswith("_encoder")}
    context = max((network.tokens for network in found.values()), default=0)
    if STRUCTURE_FLOW in args:
        flow = args[STRUCTURE_FLOW]
        cells = (flow["resolution"] // flow.get("patch_size", 2)) ** 3
        found[STRUCTURE_FLOW] = transformer(flow, sizes[STRUCTURE_FLOW], "structure", cells, context)
        if STRUCTURE_DECODER in args:
            decoder = args[STRUCTURE_DECODER]
            found[STRUCTURE_DECODER] = Network(
                stage="structure",
                kind="dense",
                parameters=sizes[STRUCTURE_DECODER],
                width=decoder["channels"][-1],
                tokens=(flow["resolution"] * 2 ** (len(decoder["channels"]) - 1)) ** 3,
            )
    if LATENT_FLOW in args:
        flow = args[LATENT_FLOW]
        voxels, around = surface_tokens(flow["resolution"]), flow.get("io_block_channels")
        tokens = round(voxels / VOXELS_PER_TOKEN) if around else voxels
        found[LATENT_FLOW] = transformer(flow, sizes[LATENT_FLOW], "latents", tokens, context)
        if around:
            numbers = FLOW_BLOCKS * max(around)
            found[LATENT_FLOW] = replace(found[LATENT_FLOW], voxels=voxels, voxel_numbers=numbers)
    for name in (name for name in DECODERS.values() if name in args):
        voxels = surface_tokens(args[name]["resolution"])
        found[name] = transformer(args[name], sizes[name], "decode", voxels, 0)
        if name == DECODERS["mesh"]:
            result = CubeLayout.of(args[name]["representation_config"]).channels
            numbers = MESH_BLOCKS * (args[name]["model_channels"] // 8) + result
            found[name] = replace(found[name], voxels=CUBES * voxels, voxel_numbers=numbers)
    return found


def transformer(args: Config, parameters: int, stage: str, tokens: int, context: int) -> Network:
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


def encoder(args: Config, parameters: int, image_size: int) -> Network:
    """A picture or text encoder, by the published words of its configuration."""
    width = args["hidden_size"]
    if "vocab_size" in args:
        tokens = args.get("max_position_embeddings", 77)
    else:
        patches = (image_size // args.get("patch_size", 14)) ** 2
        tokens = patches + 1 + args.get("num_register_tokens", 4)
    return Network(
        stage="condition",
        kind="transformer",
        parameters=parameters,
        width=width,
        hidden=args.get("intermediate_size") or int(width * args.get("mlp_ratio", 4)),
        blocks=args["num_hidden_layers"],
        tokens=tokens,
        full_precision=True,
    )
