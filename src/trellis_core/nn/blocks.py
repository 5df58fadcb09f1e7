"""Transformer blocks, dense or packed, plain or modulated (DiT, Peebles & Xie, 2023).

Letters: B batch, L tokens, T packed tokens, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import (
    REFERENCE,
    ContextTokens,
    CrossAttention,
    KeyValue,
    Packing,
    SelfAttention,
)
from trellis_core.nn.norm import LayerNorm32

Modulation = Literal["none", "own", "shared"]
SelfPacking = Packing | tuple[Packing, Packing] | None


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)  # type: ignore[no-any-return]


class ModulatedBlock(nn.Module):
    """Where a block gets shift, scale and gate from, and how it applies them.

    "none": nowhere. "own": from the time embedding [B, C], by `adaLN_modulation`. "shared": from
    six vectors [B, 6C] made once for all blocks, plus the block's own offset `modulation`.
    `dtype` is the dtype of the block's matrices; the residual stream keeps its own.
    """

    dtype: torch.dtype = torch.float32

    def __init__(self, channels: int, modulation: Modulation) -> None:
        super().__init__()
        self.kind = modulation
        if modulation == "own":
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))
        elif modulation == "shared":
            self.modulation = nn.Parameter(torch.zeros(6 * channels))

    def six(self, mod: Tensor | None, packing: Packing | None) -> tuple[Tensor | None, ...]:
        """Shift, scale and gate of attention, then of the MLP, laid out to broadcast over tokens."""
        if self.kind == "none":
            return (None,) * 6
        assert mod is not None, "a modulated block needs the modulation vectors"
        vectors = self.adaLN_modulation(mod) if self.kind == "own" else self.modulation + mod
        vectors = vectors.to(self.dtype)
        vectors = vectors[:, None] if packing is None else vectors.index_select(0, packing.sequence)
        return vectors.chunk(6, dim=-1)

    def modulated(self, h: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        if shift is not None and scale is not None:
            h = torch.addcmul(shift, h, 1 + scale)
        return h.to(self.dtype)


def add_gated(h: Tensor, change: Tensor, gate: Tensor | None) -> Tensor:
    return h + change if gate is None else torch.addcmul(h, change.to(h.dtype), gate.to(h.dtype))


class TransformerBlock(ModulatedBlock):
    """Self-attention and MLP."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        modulation: Modulation = "none",
        ln_affine: bool = False,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__(channels, modulation)
        self.norm1 = LayerNorm32(channels, ln_affine)
        self.norm2 = LayerNorm32(channels, ln_affine)
        self.attn = SelfAttention(
            channels, num_heads, qkv_bias=qkv_bias, qk_rms_norm=qk_rms_norm, kernels=kernels
        )
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(
        self,
        h: Tensor,  # [B, L, C] or [T, C]
        mod: Tensor | None = None,  # [B, C] own, [B, 6C] shared
        phases: Tensor | None = None,  # complex64 [L or T, D / 2]
        packing: Packing | None = None,  # samples
        attention_packing: SelfPacking = None,  # windows, when self-attention is not over whole samples
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.six(mod, packing)
        change = self.modulated(self.norm1(h), shift1, scale1)
        change = self.attn(change, phases, attention_packing or packing)
        h = add_gated(h, change, gate1)
        change = self.mlp(self.modulated(self.norm2(h), shift2, scale2))
        return add_gated(h, change, gate2)


class TransformerCrossBlock(ModulatedBlock):
    """Self-attention, cross-attention (neither modulated nor gated) and MLP."""

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        modulation: Modulation = "none",
        ln_affine: bool = False,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__(channels, modulation)
        self.norm1 = LayerNorm32(channels, ln_affine)
        self.norm2 = LayerNorm32(channels, ln_affine or modulation != "none")
        self.norm3 = LayerNorm32(channels, ln_affine)
        self.self_attn = SelfAttention(
            channels, num_heads, qkv_bias=qkv_bias, qk_rms_norm=qk_rms_norm, kernels=kernels
        )
        self.cross_attn = CrossAttention(
            channels,
            ctx_channels,
            num_heads,
            qkv_bias=qkv_bias,
            qk_rms_norm=qk_rms_norm_cross,
            kernels=kernels,
        )
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(
        self,
        h: Tensor,  # [B, L, C] or [T, C]
        mod: Tensor | None,  # [B, C] own, [B, 6C] shared
        context: ContextTokens | KeyValue | None,  # None: the unconditional context of zeros
        phases: Tensor | None = None,  # complex64 [L or T, D / 2]
        packing: Packing | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.six(mod, packing)
        change = self.self_attn(self.modulated(self.norm1(h), shift1, scale1), phases, packing)
        h = add_gated(h, change, gate1)
        h = h + self.cross_attn(self.modulated(self.norm2(h), None, None), context, packing)
        change = self.mlp(self.modulated(self.norm3(h), shift2, scale2))
        return add_gated(h, change, gate2)


def convert_torso(
    torso: nn.Module,
    dtype: torch.dtype,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv3d),
) -> None:
    """Convert the matrices of a torso; its norms, gammas and modulation offsets stay float32."""
    for module in torso.modules():
        if isinstance(module, kinds):
            module.to(dtype)
        elif isinstance(module, ModulatedBlock):
            module.dtype = dtype
