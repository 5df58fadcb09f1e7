"""Text encoders: token ids to token features. The text half of CLIP (Radford et al., 2021), file keys as
published.

Letters: B batch, L tokens, H heads, D head width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis_core.errors import InputError, ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.models.tokenizer import Tokenizer
from trellis_core.nn.attention import REFERENCE
from trellis_core.nn.blocks import convert_torso

# What a published `config.json` leaves out: the defaults of the `transformers` package.
PUBLISHED_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}


def published_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `CLIPTextEncoder` from the `config.json` of a whole CLIP model or of its text half."""
    text = config.get("text_config") or config
    return {name: text.get(name, default) for name, default in PUBLISHED_DEFAULTS.items()}


class CLIPTextEncoder(nn.Module):
    """Text transformer: token ids int64 [B, L] -> features float32 [B, L, C], after the final norm.

    Each token sees itself and those before it. There is no padding mask: end tokens that fill a short
    prompt take part, as in training. Of the published file of a whole CLIP model this half is read, strictly;
    the picture half and the projections are left out by name. `kernels` is taken as every network takes it;
    causal attention over a few dozen tokens is torch's own. Raises `InputError` for more than
    `max_position_embeddings` tokens.
    """

    other_tensors = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
    tokenizer: Tokenizer | None = None  # makes the ids it was trained on; given by who reads its files

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        max_position_embeddings: int = 77,
        layer_norm_eps: float = 1e-5,
        hidden_act: str = "quick_gelu",
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        if hidden_act != "quick_gelu":
            raise ModelError(
                f"this CLIP variant (activation `{hidden_act}`) is not supported",
                hint="use a text encoder with `quick_gelu`, such as openai/clip-vit-large-patch14",
            )
        if hidden_size % num_attention_heads:
            raise ModelError(f"{num_attention_heads} heads do not divide {hidden_size} channels")
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.dtype = torch.float32
        layers = [
            Layer(hidden_size, num_attention_heads, intermediate_size, eps=layer_norm_eps)
            for _ in range(num_hidden_layers)
        ]
        embeddings = Embeddings(vocab_size, max_position_embeddings, hidden_size)
        self.text_model = TextTransformer(embeddings, layers, nn.LayerNorm(hidden_size, eps=layer_norm_eps))
        self.register_load_state_dict_pre_hook(drop_position_ids)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] > self.max_position_embeddings:
            raise InputError(
                f"expected token ids [B, L] with L at most {self.max_position_embeddings}, "
                f"got {list(tokens.shape)}"
            )
        h = self.text_model.encoder(self.text_model.embeddings(tokens).to(self.dtype))
        return self.text_model.final_layer_norm(h.float())  # type: ignore[no-any-return]

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the layers' matrices; norms and embeddings stay float32."""
        convert_torso(self.text_model.encoder, dtype)
        for module in self.modules():
            if isinstance(module, Layer):
                module.dtype = dtype
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch, with the deviations of CLIP's released code."""
        width, depth = self.hidden_size, len(self.text_model.encoder.layers)
        residual = width**-0.5 * (2 * max(depth, 1)) ** -0.5
        for name, parameter in self.named_parameters():
            if "norm" in name:
                (nn.init.ones_ if name.endswith("weight") else nn.init.zeros_)(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "token_embedding" in name:
                nn.init.normal_(parameter, std=0.02)
            elif "position_embedding" in name:
                nn.init.normal_(parameter, std=0.01)
            elif "out_proj" in name or "fc2" in name:
                nn.init.normal_(parameter, std=residual)
            else:
                nn.init.normal_(parameter, std=(2 * width if "fc1" in name else width) ** -0.5)


class TextTransformer(nn.Module):
    """Holds the parts under their published names: `text_model.embeddings`, `text_model.encoder`, ..."""

    def __init__(self, embeddings: Embeddings, layers: list[Layer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = Layers(layers)
        self.final_layer_norm = norm


class Layers(nn.Module):
    """One after the other, under the published name `layers`."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Embeddings(nn.Module):
    """What a token is, plus where it stands."""

    def __init__(self, vocab_size: int, positions: int, channels: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, channels)
        self.position_embedding = nn.Embedding(positions, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]  # type: ignore[no-any-return]


class Layer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    dtype: torch.dtype = torch.float32

    def __init__(self, channels: int, num_heads: int, hidden: int, *, eps: float) -> None:
        super().__init__()
        self.self_attn = CausalAttention(channels, num_heads)
        self.layer_norm1 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, hidden)
        self.layer_norm2 = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x.float()).to(self.dtype))
        return x + self.mlp(self.layer_norm2(x.float()).to(self.dtype))  # type: ignore[no-any-return]


class CausalAttention(nn.Module):
    """Softmax attention to the tokens up to and including one's own; scale 1/sqrt(D)."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, D]
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, quick GELU x * sigmoid(1.702 x), linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # type: ignore[no-any-return]


def drop_position_ids(module: nn.Module, state: dict[str, Any], prefix: str, *unused: object) -> None:
    """Older files hold the numbers 0, 1, 2, ... as a tensor; nothing is learned in them."""
    state.pop(f"{prefix}text_model.embeddings.position_ids", None)
