"""A recipe of stages as the embedded model's, with every network as small as its class allows."""

from __future__ import annotations

from typing import Any

FLOW = {
    "model_channels": 16,
    "cond_channels": 16,
    "num_blocks": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "pe_mode": "ape",
    "share_mod": True,
    "initialization": "scaled",
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}
VAE = {"num_blocks": [0, 0, 1], "block_type": ["SparseConvNeXtBlock3d"] * 3, "block_args": [{}] * 3}
ENCODER = {**VAE, "model_channels": [8, 8, 16], "down_block_type": ["SparseResBlockS2C3d"] * 2}
DECODER = {
    **VAE,
    "num_blocks": [1, 0, 0],
    "model_channels": [16, 8, 8],
    "up_block_type": ["SparseResBlockC2S3d"] * 2,
}
STRUCTURE = {"latent_channels": 2, "num_res_blocks": 1, "num_res_blocks_middle": 0}
RECIPE: dict[str, Any] = {
    "resolution": 16,
    "token_resolution": 4,
    "image_size": 16,
    "text": {"max_length": 12, "share": 0.5},
    "regressor": {"grid": 8, "queries": 4, "num_blocks": 1},
    "models": {
        "image_encoder": {
            "name": "DINOv3ViT",
            "args": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "patch_size": 8,
                "num_register_tokens": 1,
            },
        },
        "text_encoder": {
            "name": "CLIPTextEncoder",
            "args": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
        "sparse_structure_encoder": {
            "name": "SparseStructureEncoder",
            "args": {"in_channels": 1, "channels": [8, 8], **STRUCTURE},
        },
        "sparse_structure_decoder": {
            "name": "SparseStructureDecoder",
            "args": {"out_channels": 1, "channels": [8, 8], **STRUCTURE},
        },
        "shape_slat_encoder": {"name": "FlexiDualGridVaeEncoder", "args": {**ENCODER, "latent_channels": 4}},
        "shape_slat_decoder": {
            "name": "FlexiDualGridVaeDecoder",
            "args": {"resolution": 16, **DECODER, "latent_channels": 4},
        },
        "tex_slat_encoder": {
            "name": "SparseUnetVaeEncoder",
            "args": {"in_channels": 6, **ENCODER, "latent_channels": 3},
        },
        "tex_slat_decoder": {
            "name": "SparseUnetVaeDecoder",
            "args": {"out_channels": 6, **DECODER, "latent_channels": 3, "pred_subdiv": False},
        },
        "sparse_structure_flow_model": {
            "name": "SparseStructureFlowModel",
            "args": {"resolution": 2, "in_channels": 2, "out_channels": 2, **FLOW},
        },
        "shape_slat_flow_model_16": {
            "name": "SLatFlowModel",
            "args": {"resolution": 4, "in_channels": 4, "out_channels": 4, **FLOW},
        },
        "tex_slat_flow_model_16": {
            "name": "SLatFlowModel",
            "args": {"resolution": 4, "in_channels": 7, "out_channels": 3, **FLOW},
        },
    },
    "stages": {
        "encoders": {"batch_size": 2, "text_batch_size": 2},
        "structure_vae": {"batch_size": 2, "kl": 0.01, "latent_noise": 0.1},
        "shape_vae": {"batch_size": 2, "position": 1.0, "kl": 0.01, "latent_noise": 0.1},
        "texture_vae": {"batch_size": 2, "l1": 1.0, "repaint": 1.0, "kl": 0.01, "latent_noise": 0.1},
        "shape_decoder": {"batch_size": 2, "position": 1.0, "latent_noise": 0.3},
        "texture_decoder": {"batch_size": 2, "l1": 1.0, "repaint": 0.5, "latent_noise": 0.3},
        "structure_flow": {"batch_size": 2, "times": [0.5, 1.0]},
        "shape_flow": {"batch_size": 4, "times": [0.5, 1.0]},
        "texture_flow": {"batch_size": 4, "times": [0.5, 1.0]},
    },
    "samplers": {
        stage: {
            "steps": 2,
            "guidance_strength": 2.0,
            "guidance_rescale": 0.0,
            "guidance_interval": [0.0, 1.0],
            "rescale_t": 3.0,
        }
        for stage in ("structure", "shape", "texture")
    },
}
ORDER = (
    "encoders",
    "structure_vae",
    "shape_vae",
    "texture_vae",
    "shape_decoder",
    "texture_decoder",
    "structure_flow",
    "shape_flow",
    "texture_flow",
)
