"""Image encoders of TRELLIS v1."""

from __future__ import annotations

from torch import Tensor

from tests.parity.case import Case, Kind
from trellis_core.models.image_encoder import DINOv2ViT, normalize, place_positions

RENAMED = {  # the training code's name -> the published one
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def dinov2(case: Case) -> dict[str, Tensor]:
    config, picture = case.config, normalize(case.inputs["image"])
    if not config["interpolate_antialias"] or config["interpolate_offset"]:
        raise ValueError("only antialiased positions without offset were ever released")
    model = DINOv2ViT(
        hidden_size=config["embed_dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        num_register_tokens=config["num_register_tokens"],
        layerscale_value=config["init_values"],
    )
    model.load_state_dict(published_keys(case.weights))
    rows, columns = (side // config["patch_size"] for side in picture.shape[2:])
    return {
        "tokens": model(picture),
        "x_prenorm": model.hidden(picture),
        "pos_embed_used": place_positions(model.embeddings.position_embeddings, rows, columns),
    }


def published_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The training code stores queries, keys and values as one matrix."""
    result = {}
    for key, tensor in weights.items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)  # noqa: PLW2901
        if "attn.qkv" in key:
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[key.replace("attn.qkv", f"attention.attention.{name}")] = part
        else:
            result[key.replace("norm.", "layernorm.") if key.startswith("norm.") else key] = tensor
    return result


KINDS: dict[str, Kind] = {"trellis1.dino_encode_image": Kind(dinov2)}
