"""Released TRELLIS.2 checkpoints: names, sizes, where they come from and under which licence.

Facts only; nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REPOSITORY = "microsoft/TRELLIS.2-4B"
STRUCTURE_REPOSITORY = "microsoft/TRELLIS-image-large"  # the structure VAE is shared with TRELLIS v1
IMAGE_ENCODER = "facebook/dinov3-vitl16-pretrain-lvd1689m"

# DINOv3 ViT-L/16 as published (its config.json in the hub repository says the same).
DINOV3_VITL16 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 16,
    "num_register_tokens": 4,
    "rope_theta": 100.0,
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    repository: str
    bytes: int  # size of the safetensors file
    licence: str = "MIT"
    gated: bool = False
    published: bool = True  # the size was read off the published file


CHECKPOINTS: Mapping[str, Checkpoint] = {
    "ckpts/ss_flow_img_dit_1_3B_64_bf16": Checkpoint(REPOSITORY, 2_584_426_920),
    "ckpts/slat_flow_img2shape_dit_1_3B_512_bf16": Checkpoint(REPOSITORY, 2_584_574_424),
    "ckpts/slat_flow_img2shape_dit_1_3B_1024_bf16": Checkpoint(REPOSITORY, 2_584_574_424),
    "ckpts/slat_flow_imgshape2tex_dit_1_3B_512_bf16": Checkpoint(REPOSITORY, 2_584_672_728),
    "ckpts/slat_flow_imgshape2tex_dit_1_3B_1024_bf16": Checkpoint(REPOSITORY, 2_584_672_728),
    "ckpts/shape_enc_next_dc_f16c32_fp16": Checkpoint(REPOSITORY, 708_797_208),
    "ckpts/shape_dec_next_dc_f16c32_fp16": Checkpoint(REPOSITORY, 948_490_494),
    "ckpts/tex_enc_next_dc_f16c32_fp16": Checkpoint(REPOSITORY, 708_797_208),
    "ckpts/tex_dec_next_dc_f16c32_fp16": Checkpoint(REPOSITORY, 948_458_812),
    "ckpts/ss_dec_conv3d_16l8_fp16": Checkpoint(STRUCTURE_REPOSITORY, 147_591_972),
    "ckpts/ss_enc_conv3d_16l8_fp16": Checkpoint(STRUCTURE_REPOSITORY, 119_068_016),
}
