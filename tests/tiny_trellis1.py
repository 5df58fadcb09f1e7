"""Tiny TRELLIS v1 model folders in the released layout, for tests of everything around the networks.

Weights are random, so what they make is a cloud of fragments, but every class, file and stage is the real
one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trellis.models import MODELS
from trellis_core.models.tokenizer import Tokenizer, word_vocabulary
from trellis_core.weights.load import network_arguments

GRID = 8  # voxels along an axis
CONTEXT = 12  # channels of the condition
IMAGE_SIZE = 42  # pixels
WORDS = ("a", "red", "blue", "tall", "chair", "table")
MAX_LENGTH = 8  # tokens
OUTSIDE = 0.05  # subtracted from the logits of occupancy

FLOW = {"model_channels": 20, "cond_channels": CONTEXT, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2}
FLOW |= {"in_channels": 4, "out_channels": 4, "qk_rms_norm": True}
TORSO = {"resolution": GRID, "latent_channels": 4, "num_blocks": 1, "num_heads": 2, "window_size": 4}
GAUSSIANS = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 2,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "sparse_structure_flow_model": {
        "name": "SparseStructureFlowModel",
        "args": {**FLOW, "resolution": GRID // 2, "patch_size": 1},
    },
    "sparse_structure_decoder": {
        "name": "SparseStructureDecoder",
        "args": {
            "out_channels": 1,
            "latent_channels": 4,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [8, 6],
        },
    },
    "slat_flow_model": {
        "name": "SLatFlowModel",
        "args": {**FLOW, "resolution": GRID, "num_io_res_blocks": 2, "io_block_channels": [8]},
    },
    "slat_decoder_gs": {
        "name": "SLatGaussianDecoder",
        "args": {**TORSO, "model_channels": 20, "representation_config": GAUSSIANS},
    },
    "slat_decoder_rf": {
        "name": "ElasticSLatRadianceFieldDecoder",
        "args": {**TORSO, "model_channels": 20, "representation_config": {"rank": 2, "dim": 3}},
    },
    "slat_decoder_mesh": {
        "name": "SLatMeshDecoder",
        "args": {
            **TORSO,
            "model_channels": 256,
            "mlp_ratio": 0.25,
            "representation_config": {"use_color": True},
        },
    },
}
IMAGE_ENCODER = {
    "name": "DINOv2ViT",
    "args": {
        "hidden_size": CONTEXT,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
    },
}
SAMPLER = {
    "name": "FlowEulerGuidanceIntervalSampler",
    "args": {"sigma_min": 1e-5},
    "params": {"steps": 2, "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
}


def write_tiny_trellis1(folder: Path, *, text: bool = False) -> Path:
    """Write `pipeline.json` and `ckpts/` below `folder`, of a picture or of a text model; returns it."""
    (folder / "ckpts").mkdir(parents=True)
    for seed, (name, config) in enumerate(NETWORKS.items()):
        write_network(folder, name, config, seed)
    args = {
        "models": {name: f"ckpts/{name}" for name in NETWORKS},
        "sparse_structure_sampler": SAMPLER,
        "slat_sampler": SAMPLER,
        "slat_normalization": {"mean": [0.5, -0.5, 0.0, 1.0], "std": [1.0, 2.0, 1.0, 0.5]},
        "image_size": IMAGE_SIZE,
    }
    if text:
        tokenizer = Tokenizer(*word_vocabulary(WORDS))
        config = {
            "name": "CLIPTextEncoder",
            "args": {
                "vocab_size": tokenizer.size,
                "hidden_size": CONTEXT,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": MAX_LENGTH,
            },
        }
        stem = write_network(folder, "text_encoder", config, 99)
        tokenizer.write(stem.with_suffix(".vocab.json"), stem.with_suffix(".merges.txt"))
        args["text_cond_model"] = "ckpts/text_encoder"
    else:
        write_network(folder, "image_encoder", IMAGE_ENCODER, 98)
        args["image_cond_model"] = "ckpts/image_encoder"
    kind = "Text" if text else "Image"
    content = {"name": f"Trellis{kind}To3DPipeline", "args": args}
    (folder / "pipeline.json").write_text(json.dumps(content, indent=1))
    return folder


def write_network(folder: Path, name: str, config: Mapping[str, Any], seed: int) -> Path:
    """Random weights that are neither zero nor large; returns the stem of the files."""
    stem = folder / "ckpts" / name
    kind = MODELS[config["name"]]
    network = kind(**network_arguments(kind, config["args"]))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: torch.randn(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 0.1)
        + (1.0 if "norm" in key and key.endswith(("weight", "gamma")) else 0.0)
        for key, value in network.state_dict().items()
    }
    if name == "sparse_structure_decoder":
        weights["out_layer.2.bias"] -= OUTSIDE  # so that a run is quick
    save_file(weights, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(config))
    return stem
