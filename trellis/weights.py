"""Released TRELLIS v1 checkpoints: names, sizes, where they come from and under which licence.

Facts only; nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REPOSITORIES: Mapping[str, str] = {
    "image-large": "microsoft/TRELLIS-image-large",
    "text-base": "microsoft/TRELLIS-text-base",
    "text-large": "microsoft/TRELLIS-text-large",
    "text-xlarge": "microsoft/TRELLIS-text-xlarge",
}
OWNERS: Mapping[str, str] = {"JeffreyXiang": "microsoft"}  # who published it first -> who does now
ENCODERS: Mapping[str, str] = {  # as written in pipeline.json -> hub repository with safetensors
    "dinov2_vitl14_reg": "facebook/dinov2-with-registers-large",
    "openai/clip-vit-large-patch14": "openai/clip-vit-large-patch14",
}

# DINOv2 ViT-L/14 with registers as published (its config.json in the hub repository says the same).
DINOV2_VITL14 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
}
# The text half of CLIP ViT-L/14 as published.
CLIP_VITL14 = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    repository: str
    bytes: int  # size of the safetensors file
    licence: str = "MIT"
    gated: bool = False

    @property
    def published(self) -> bool:
        """Whether the size was read off the published file; that of others follows from its tensors."""
        return self.repository == IMAGE


IMAGE, BASE, LARGE, XLARGE = REPOSITORIES.values()

CHECKPOINTS: Mapping[str, Checkpoint] = {
    "ckpts/ss_enc_conv3d_16l8_fp16": Checkpoint(IMAGE, 119_068_016),
    "ckpts/ss_dec_conv3d_16l8_fp16": Checkpoint(IMAGE, 147_591_972),
    "ckpts/slat_enc_swin8_B_64l8_fp16": Checkpoint(IMAGE, 173_242_816),
    "ckpts/slat_dec_gs_swin8_B_64l8gs32_fp16": Checkpoint(IMAGE, 171_450_952),
    "ckpts/slat_dec_rf_swin8_B_64l8r16_fp16": Checkpoint(IMAGE, 171_450_488),
    "ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16": Checkpoint(IMAGE, 181_903_412),
    "ckpts/ss_flow_img_dit_L_16l8_fp16": Checkpoint(IMAGE, 1_130_770_840),
    "ckpts/slat_flow_img_dit_L_64l8p2_fp16": Checkpoint(IMAGE, 1_203_755_136),
    "ckpts/ss_flow_txt_dit_B_16l8_fp16": Checkpoint(BASE, 327_736_456),
    "ckpts/slat_flow_txt_dit_B_64l8p2_fp16": Checkpoint(BASE, 372_419_896),
    "ckpts/ss_flow_txt_dit_L_16l8_fp16": Checkpoint(LARGE, 1_105_604_976),
    "ckpts/slat_flow_txt_dit_L_64l8p2_fp16": Checkpoint(LARGE, 1_178_589_272),
    "ckpts/ss_flow_txt_dit_XL_16l8_fp16": Checkpoint(XLARGE, 1_976_327_512),
    "ckpts/slat_flow_txt_dit_XL_64l8p2_fp16": Checkpoint(XLARGE, 2_151_142_688),
}


def former(reference: str) -> str | None:
    """A hub name with the owner who published it first; None for what always had one owner."""
    owner, slash, rest = reference.partition("/")
    first = next((old for old, new in OWNERS.items() if new == owner), None)
    return f"{first}/{rest}" if slash and first and rest.startswith("TRELLIS-") else None


def canonical(reference: str) -> str:
    """A path or hub name with the owner who publishes it now; decided by its form alone."""
    owner, slash, rest = reference.partition("/")
    if slash and owner in OWNERS and rest.startswith("TRELLIS-"):
        return f"{OWNERS[owner]}/{rest}"
    return reference
