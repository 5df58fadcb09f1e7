"""Image encoders: pictures to tokens. DINOv3 (Simeoni et al., 2025) and DINOv2 with registers (Oquab et al.,
2023; Darcet et al., 2023), file keys as published for the `transformers` package.

Letters: B batch, s picture side in pixels, P patches, M tokens = 1 + registers + P, H heads, D head width,
C channels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trellis_core.errors import InputError, ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE
from trellis_core.nn.blocks import convert_torso

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def prepare_images(
    pictures: Sequence[Image.Image] | Tensor,  # or float [B, 3, H, W] in [0, 1], taken as is
    size: int,  # side in pixels, for PIL pictures only
) -> Tensor:  # float32 [B, 3, s, s]
    """Resize (Lanczos), scale to [0, 1] and normalise by the statistics of ImageNet."""
    if isinstance(pictures, Tensor):
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(f"expected pictures of shape [B, 3, H, W], got {list(pictures.shape)}")
        x = pictures.float()
    else:
        squares = [p.resize((size, size), Image.Resampling.LANCZOS).convert("RGB") for p in pictures]
        x = torch.from_numpy(np.stack([np.asarray(p) for p in squares])).permute(0, 3, 1, 2).float() / 255
    return normalize(x)


def normalize(pictures: Tensor) -> Tensor:  # float32 [B, 3, H, W] in [0, 1]
    """Subtract the mean of ImageNet's pixels, divide by their deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=pictures.device)[:, None, None]
    return (pictures - mean) / std


class DINOv3ViT(nn.Module):
    """Vision transformer: normalised pictures float32 [B, 3, s, s] -> tokens float32 [B, M, C].

    Token order: class, registers, patches row by row. As TRELLIS.2 wants it, the output is normalised
    without parameters; the published final `norm` is loaded and not used. A side that is no multiple
    of the patch size loses its last columns and rows.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        patch_size: int = 16,
        num_channels: int = 3,
        num_register_tokens: int = 4,
        rope_theta: float = 100.0,
        layer_norm_eps: float = 1e-5,
        hidden_act: str = "gelu",
        query_bias: bool = True,
        key_bias: bool = False,
        value_bias: bool = True,
        proj_bias: bool = True,
        mlp_bias: bool = True,
        use_gated_mlp: bool = False,
        layerscale_value: float = 1.0,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        if hidden_act != "gelu" or use_gated_mlp:
            raise ModelError(
                "this DINOv3 variant (gated MLP or another activation) is not supported",
                hint="use a ViT-S, ViT-B or ViT-L checkpoint with the plain GELU MLP",
            )
        self.patch_size = patch_size
        self.rope_theta = rope_theta
        self.head_dim = hidden_size // num_attention_heads
        self.layerscale_value = layerscale_value
        self.dtype = torch.float32
        self.embeddings = Embeddings(hidden_size, patch_size, num_channels, num_register_tokens)
        biases = {"q": query_bias, "k": key_bias, "v": value_bias, "o": proj_bias}
        self.layer = nn.ModuleList(
            Layer(
                hidden_size,
                num_attention_heads,
                intermediate_size,
                eps=layer_norm_eps,
                biases=biases,
                mlp_bias=mlp_bias,
                kernels=kernels,
            )
            for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, pictures: Tensor) -> Tensor:
        h = self.embeddings(pictures.float()).to(self.dtype)
        grid = pictures.shape[2] // self.patch_size, pictures.shape[3] // self.patch_size
        cos, sin = patch_rotations(*grid, self.head_dim, self.rope_theta, h.device)
        for layer in self.layer:
            h = layer(h, cos, sin)
        return F.layer_norm(h.float(), h.shape[-1:], eps=1e-5)

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the layers' matrices; norms, scales and embeddings stay float32."""
        convert_torso(self.layer, dtype)
        for module in self.modules():
            if isinstance(module, Layer):
                module.dtype = dtype
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.lambda1, self.layerscale_value)
        nn.init.normal_(self.embeddings.cls_token, std=0.02)
        nn.init.normal_(self.embeddings.register_tokens, std=0.02)


class Embeddings(nn.Module):
    """Patches as tokens, behind the class and register tokens."""

    def __init__(self, channels: int, patch_size: int, num_channels: int, num_register_tokens: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, channels))  # of the pre-training, not used
        self.register_tokens = nn.Parameter(torch.zeros(1, num_register_tokens, channels))
        self.patch_embeddings = nn.Conv2d(num_channels, channels, patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embeddings(pictures).flatten(2).mT
        first = torch.cat([self.cls_token, self.register_tokens], dim=1)
        return torch.cat([first.expand(len(patches), -1, -1), patches], dim=1)


class Layer(nn.Module):
    """x += scale * attention(norm(x)); x += scale * mlp(norm(x))."""

    dtype: torch.dtype = torch.float32

    def __init__(
        self,
        channels: int,
        num_heads: int,
        hidden: int,
        *,
        eps: float,
        biases: dict[str, bool],
        mlp_bias: bool,
        kernels: Kernels,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attention = Attention(channels, num_heads, biases, kernels)
        self.layer_scale1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, hidden, mlp_bias)
        self.layer_scale2 = LayerScale(channels)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x.float()).to(self.dtype), cos, sin))
        return x + self.layer_scale2(self.mlp(self.norm2(x.float()).to(self.dtype)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention whose patch queries and keys are rotated; class and registers are not."""

    def __init__(self, channels: int, num_heads: int, biases: dict[str, bool], kernels: Kernels) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels, bias=biases["q"])
        self.k_proj = nn.Linear(channels, channels, bias=biases["k"])
        self.v_proj = nn.Linear(channels, channels, bias=biases["v"])
        self.o_proj = nn.Linear(channels, channels, bias=biases["o"])
        self.kernels = kernels

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)
        out: Tensor = self.kernels["attention"](q, k, v)  # type: ignore[assignment]
        return self.o_proj(out.flatten(-2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Linear, GELU (erf form), Linear."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(channels, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """Multiply each channel by a learned number (CaiT, Touvron et al., 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1.to(x.dtype)


def patch_rotations(
    rows: int,
    columns: int,
    head_dim: int,
    theta: float,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:  # cos and sin, float32 [P, D]
    """Angles from the patch centres in [-1, 1]: the row's, then the column's, both once per half of D."""
    wavelengths = theta ** (4 * torch.arange(head_dim // 4, dtype=torch.float32, device=device) / head_dim)

    def centres(count: int) -> Tensor:
        return (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count * 2 - 1

    places = torch.cartesian_prod(centres(rows), centres(columns))  # [P, 2]
    angles = (2 * math.pi * places[:, :, None] / wavelengths).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def rotate_halves(
    x: Tensor,  # [B, M, H, D]
    cos: Tensor,  # float32 [P, D]
    sin: Tensor,  # float32 [P, D]
) -> Tensor:  # like x
    """Rotate channel c against channel c + D/2, for the last P tokens, in float32."""
    first, patches = x[:, : -len(cos)], x[:, -len(cos) :].float()
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos[:, None] + torch.cat([-right, left], dim=-1) * sin[:, None]
    return torch.cat([first, turned.to(x.dtype)], dim=1)


def published_arguments(config: Mapping[str, Any], encoder: type[nn.Module]) -> dict[str, Any]:
    """Arguments of an image encoder from its published `config.json`, which says more than it takes."""
    known = inspect.signature(encoder).parameters
    return {name: value for name, value in config.items() if name in known}


class DINOv2ViT(nn.Module):
    """Vision transformer: normalised pictures float32 [B, 3, s, s] -> tokens float32 [B, M, C].

    Loads facebook/dinov2-with-registers-large and its siblings; arguments as in their `config.json`. Token
    order: class, registers, patches row by row. As TRELLIS wants it, the output is normalised without
    parameters; the published final `layernorm` is loaded and not used. Positions were learned for pictures
    of `image_size` pixels and are interpolated for others; a side that is no multiple of the patch size loses
    its last columns and rows.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        mlp_ratio: float = 4,
        image_size: int = 518,
        patch_size: int = 14,
        num_channels: int = 3,
        num_register_tokens: int = 4,
        layer_norm_eps: float = 1e-6,
        hidden_act: str = "gelu",
        qkv_bias: bool = True,
        use_swiglu_ffn: bool = False,
        layerscale_value: float = 1.0,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        if hidden_act != "gelu" or use_swiglu_ffn:
            raise ModelError(
                "this DINOv2 variant (gated MLP or another activation) is not supported",
                hint="use a ViT-S, ViT-B or ViT-L checkpoint with the plain GELU MLP",
            )
        self.patch_size = patch_size
        self.layerscale_value = layerscale_value
        self.dtype = torch.float32
        self.embeddings = PlacedEmbeddings(
            hidden_size, patch_size, num_channels, num_register_tokens, (image_size // patch_size) ** 2
        )
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            PlainLayer(
                hidden_size,
                num_attention_heads,
                int(hidden_size * mlp_ratio),
                eps=layer_norm_eps,
                qkv_bias=qkv_bias,
                kernels=kernels,
            )
            for _ in range(num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, pictures: Tensor) -> Tensor:
        h = self.hidden(pictures)
        return F.layer_norm(h, h.shape[-1:], eps=1e-5)

    def hidden(self, pictures: Tensor) -> Tensor:
        """The tokens after the last layer, before any norm: float32 [B, M, C]."""
        h = self.embeddings(pictures.float()).to(self.dtype)
        for layer in self.encoder.layer:  # type: ignore[union-attr]
            h = layer(h)
        return h.float()  # type: ignore[no-any-return]

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the layers' matrices; norms, scales and embeddings stay float32."""
        convert_torso(self.encoder, dtype)
        for module in self.modules():
            if isinstance(module, PlainLayer):
                module.dtype = dtype
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.lambda1, self.layerscale_value)
        for table in ("cls_token", "register_tokens", "position_embeddings"):
            nn.init.normal_(self.embeddings.get_parameter(table), std=0.02)


class PlacedEmbeddings(nn.Module):
    """Patches as tokens with a learned position each, behind the class token (that has one, too) and the
    registers (that have none)."""

    def __init__(
        self, channels: int, patch_size: int, num_channels: int, num_register_tokens: int, places: int
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))  # of the pre-training, not used
        self.register_tokens = nn.Parameter(torch.zeros(1, num_register_tokens, channels))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + places, channels))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(num_channels, channels, patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(pictures)  # type: ignore[operator]
        positions = place_positions(self.position_embeddings, patches.shape[2], patches.shape[3])
        first, registers = (t.expand(len(patches), -1, -1) for t in (self.cls_token, self.register_tokens))
        placed = torch.cat([first, patches.flatten(2).mT], dim=1) + positions
        return torch.cat([placed[:, :1], registers, placed[:, 1:]], dim=1)


class PlainLayer(nn.Module):
    """x += scale * attention(norm(x)); x += scale * mlp(norm(x))."""

    dtype: torch.dtype = torch.float32

    def __init__(
        self, channels: int, num_heads: int, hidden: int, *, eps: float, qkv_bias: bool, kernels: Kernels
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attention = PlainAttention(channels, num_heads, qkv_bias, kernels)
        self.layer_scale1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(channels, hidden)
        self.mlp.fc2 = nn.Linear(hidden, channels)
        self.layer_scale2 = LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x.float()).to(self.dtype)))
        h = self.mlp.fc1(self.norm2(x.float()).to(self.dtype))  # type: ignore[operator]
        return x + self.layer_scale2(self.mlp.fc2(F.gelu(h)))  # type: ignore[operator, no-any-return]


class PlainAttention(nn.Module):
    """Self-attention under the published names."""

    def __init__(self, channels: int, num_heads: int, bias: bool, kernels: Kernels) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = nn.Module()
        for name in ("query", "key", "value"):
            self.attention.add_module(name, nn.Linear(channels, channels, bias=bias))
        self.output = nn.Module()
        self.output.dense = nn.Linear(channels, channels)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.attention.query, self.attention.key, self.attention.value)
        q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)) for f in projections)  # type: ignore[operator]
        out: Tensor = self.kernels["attention"](q, k, v)  # type: ignore[assignment]
        return self.output.dense(out.flatten(-2))  # type: ignore[operator, no-any-return]


def place_positions(
    table: Tensor,  # [1, 1 + n * n, C]: class token, then a square grid row by row
    rows: int,
    columns: int,
) -> Tensor:  # [1, 1 + rows * columns, C]
    """The learned positions on another grid, bicubic; those of a grid of the learned size are untouched."""
    side = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (side, side):
        return table
    grid = table[:, 1:].float().mT.unflatten(2, (side, side))
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).mT.to(table.dtype)], dim=1)
