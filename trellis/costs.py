"""What the networks of TRELLIS v1 cost, in the terms of `trellis_core.memory.cost`.

Numbers of voxels are those of released runs: 20 thousand of a grid of 64, one token for 3.5 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trellis.settings import DECODERS, LATENT_FLOW, STRUCTURE_DECODER, STRUCTURE_FLOW
from trellis_core.memory.cost import Network, surface_tokens

VOXELS_PER_TOKEN = 3.5

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
        tokens = surface_tokens(flow["resolution"])
        if flow.get("io_block_channels"):
            tokens = round(tokens / VOXELS_PER_TOKEN)
        found[LATENT_FLOW] = transformer(flow, sizes[LATENT_FLOW], "latents", tokens, context)
    for name in (name for name in DECODERS.values() if name in args):
        voxels = surface_tokens(args[name]["resolution"])
        if name == DECODERS["mesh"]:  # its last level is the widest by far: 64 cubes for every voxel
            width = args[name]["model_channels"] // 8
            found[name] = Network(
                stage="decode", kind="sparse", parameters=sizes[name], width=width, tokens=64 * voxels
            )
        else:
            found[name] = transformer(args[name], sizes[name], "decode", voxels, 0)
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
