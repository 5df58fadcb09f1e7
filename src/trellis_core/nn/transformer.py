"""The flow transformer that the structure and the latent flow share: everything but what a token is.

Subclasses turn their input into tokens and hand them to `FlowTransformer.velocity`; they inherit
because the released state dicts are flat.

Letters: B batch, L tokens, M context tokens, T packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis_core.errors import ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE, ContextTokens, KeyValue, Packing
from trellis_core.nn.blocks import TransformerCrossBlock, convert_torso
from trellis_core.nn.embed import TimestepEmbedder


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Keys and values of a context in every block: constant over all steps of a stage."""

    blocks: tuple[KeyValue, ...]


Condition = Tensor | Sequence[Tensor] | Context | None
"""`[B, M, C]`, or one `[M_i, C]` per sample, or precomputed; None is the context of zeros."""


class FlowTransformer(nn.Module):
    """DiT with cross-attention (section 4 of TRELLIS, Xiang et al., 2024).

    Input, output, time and shared modulation layers run in float32, the blocks in the torso dtype.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4.0,
        pe_mode: Literal["ape", "rope"] = "ape",
        share_mod: bool = False,
        initialization: Literal["vanilla", "scaled"] = "vanilla",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        use_checkpoint: bool = False,  # recompute all blocks in the backward pass, to save memory
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("pe_mode", pe_mode, ("ape", "rope")),
            ("initialization", initialization, ("vanilla", "scaled")),
        ):
            if value not in known:
                raise ModelError(f"unknown {name} `{value}`", hint=f"choose one of: {', '.join(known)}")
        num_heads = num_heads or model_channels // num_head_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.model_channels = model_channels
        self.cond_channels = cond_channels
        self.head_dim = model_channels // num_heads
        self.pe_mode = pe_mode
        self.initialization = initialization
        self.checkpointed = num_blocks if use_checkpoint else 0  # the first blocks; may change at any time
        self.dtype = torch.float32

        self.t_embedder = TimestepEmbedder(model_channels)
        self.share_mod = share_mod
        if share_mod:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(model_channels, 6 * model_channels))
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            TransformerCrossBlock(
                model_channels,
                cond_channels,
                num_heads,
                mlp_ratio=mlp_ratio,
                modulation="shared" if share_mod else "own",
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
                kernels=kernels,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels)

    def velocity(
        self,
        h: Tensor,  # float32 [B, L, C_in] or [T, C_in]
        t: Tensor,  # float32 [B]  1000 * t
        cond: Condition,
        *,
        phases: Tensor | None = None,  # complex64 [L or T, D / 2]
        position: Tensor | None = None,  # float32 [L or T, C]
        packing: Packing | None = None,
    ) -> Tensor:  # float32 [B, L, C_out] or [T, C_out]
        h = self.input_layer(h)
        if position is not None:
            h = h + position
        mod = self.t_embedder(t)
        if self.share_mod:
            mod = self.adaLN_modulation(mod)
        mod = mod.to(self.dtype)
        # float16 cannot hold the residual stream of a network trained in bfloat16
        h = h.to(torch.float32 if self.dtype == torch.float16 else self.dtype)
        for number, (block, context) in enumerate(zip(self.blocks, self._contexts(cond), strict=True)):
            if number < self.checkpointed and torch.is_grad_enabled():
                h = checkpoint(block, h, mod, context, phases, packing, use_reentrant=False)
            else:
                h = block(h, mod, context, phases, packing)
        h = F.layer_norm(h.float(), h.shape[-1:], eps=1e-5)
        return self.out_layer(h)  # type: ignore[no-any-return]

    def precompute_context(self, cond: Tensor | Sequence[Tensor]) -> Context:
        """Keys and values of every block, to be passed instead of `cond`.

        Takes 4 * num_blocks * M * model_channels bytes per sample in 16 bit; when memory is short pass the
        tokens themselves, and every call computes them anew.
        """
        tokens = self._context_tokens(cond)
        return Context(tuple(block.cross_attn.project(tokens) for block in self._cross_blocks()))

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the blocks' matrices; everything else stays float32."""
        convert_torso(self.blocks, dtype)
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch, by the scheme `initialization`."""
        with torch.no_grad():
            initialize_flow(self)

    def reset_buffers(self, device: torch.device) -> None:
        """Compute the buffers that a checkpoint need not hold."""

    def _contexts(self, cond: Condition) -> Sequence[ContextTokens | KeyValue | None]:
        if cond is None:
            return [None] * len(self.blocks)
        if isinstance(cond, Context):
            return cond.blocks
        return [self._context_tokens(cond)] * len(self.blocks)

    def _context_tokens(self, cond: Tensor | Sequence[Tensor]) -> ContextTokens:
        if isinstance(cond, Tensor):
            return ContextTokens(cond.to(self.dtype))
        tokens = torch.cat(list(cond)).to(self.dtype)
        return ContextTokens(tokens, Packing.of([len(c) for c in cond], tokens.device))

    def _cross_blocks(self) -> list[TransformerCrossBlock]:
        return [block for block in self.blocks if isinstance(block, TransformerCrossBlock)]


def initialize_flow(model: FlowTransformer) -> None:
    """ "scaled": normal with a width- and depth-dependent deviation; "vanilla": Xavier uniform.

    In both, gates and output start at zero, so that the network starts as the zero function.
    """
    width, depth = model.model_channels, len(model.blocks)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if model.initialization == "scaled":
                nn.init.normal_(module.weight, std=(2 / (5 * width)) ** 0.5)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.initialization == "scaled":
        for name, weight in model.named_parameters():
            if name.startswith("blocks.") and name.endswith(("attn.to_out.weight", "mlp.mlp.2.weight")):
                nn.init.normal_(weight, std=1 / (5 * depth * width) ** 0.5)
        nn.init.normal_(model.input_layer.weight, std=1 / model.in_channels**0.5)
    for name, weight in model.named_parameters():
        if name.startswith("t_embedder.") and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)
        elif name.endswith(".modulation"):
            nn.init.normal_(weight, std=1 / width**0.5)
        elif name.endswith("adaLN_modulation.1.weight") or name == "out_layer.weight":
            nn.init.zeros_(weight)
