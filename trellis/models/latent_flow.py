"""The flow over structured latents: a transformer at half resolution between sparse convolutions.

TRELLIS (Xiang et al., 2024), figure 3. Letters: T voxels, P tokens (occupied 2x2x2 cells), B samples,
M condition tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis.models.modulation import own_offsets_removed, require_absolute_positions
from trellis.models.sparse_blocks import SparseConv, SparseResBlock3d
from trellis_core.errors import ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE
from trellis_core.nn.blocks import convert_torso
from trellis_core.nn.conv import SparseConv3d
from trellis_core.nn.embed import position_embedding
from trellis_core.nn.transformer import Condition, FlowTransformer
from trellis_core.nn.windows import sample_packing
from trellis_core.sparse.ops import concat_channels
from trellis_core.sparse.tensor import SparseTensor


class SLatFlowModel(FlowTransformer):
    """Velocity of a structured latent.

    `io_block_channels` has one width per halving between voxels and tokens, so `patch_size` is 2 to the
    power of their number; None means that the transformer works on the voxels. The remaining arguments are
    those of `FlowTransformer`.
    """

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        io_block_channels: Sequence[int] | None = None,
        use_skip_connection: bool = True,
        pe_mode: Literal["ape"] = "ape",
        share_mod: bool = False,
        kernels: Kernels = REFERENCE,
        **transformer: Any,
    ) -> None:
        require_absolute_positions(pe_mode)
        widths = tuple(io_block_channels or ())
        if patch_size != 2 ** len(widths):
            raise ModelError(
                f"patch_size {patch_size} does not fit {len(widths)} levels of io_block_channels",
                hint="every level halves the grid once",
            )
        if share_mod and widths:
            raise ModelError("share_mod needs a flow without io_block_channels")
        super().__init__(
            in_channels=in_channels,
            model_channels=model_channels,
            cond_channels=cond_channels,
            out_channels=out_channels,
            num_blocks=num_blocks,
            pe_mode=pe_mode,
            share_mod=share_mod,
            kernels=kernels,
            **transformer,
        )
        own_offsets_removed(self)
        self.resolution = resolution
        self.use_skip_connection = use_skip_connection
        self.input_layer = nn.Linear(in_channels, (*widths, model_channels)[0])
        self.out_layer = nn.Linear((*widths, model_channels)[0], out_channels)
        self.input_blocks = nn.ModuleList()
        self.out_blocks = nn.ModuleList()
        joined = 2 if use_skip_connection else 1
        levels = list(pairwise((*widths, model_channels)))
        for width, wider in levels:
            for _ in range(num_io_res_blocks - 1):
                self.input_blocks.append(SparseResBlock3d(width, model_channels, kernels=kernels))
            self.input_blocks.append(
                SparseResBlock3d(width, model_channels, wider, downsample=True, kernels=kernels)
            )
        for width, wider in reversed(levels):
            self.out_blocks.append(
                SparseResBlock3d(joined * wider, model_channels, width, upsample=True, kernels=kernels)
            )
            for _ in range(num_io_res_blocks - 1):
                self.out_blocks.append(
                    SparseResBlock3d(joined * width, model_channels, width, kernels=kernels)
                )

    def forward(
        self,
        x: SparseTensor,  # float32 [T, C]
        t: Tensor,  # float32 [B]  1000 * t
        cond: Condition,  # [B, M, C], precomputed, or None: unconditional
    ) -> SparseTensor:  # float32 [T, C_out]
        h = x.replace(self.input_layer(x.feats.float()).to(self.dtype))
        mod = self.t_embedder(t)
        if self.share_mod:
            mod = self.adaLN_modulation(mod)
        mod = mod.to(self.dtype)
        skips: list[SparseTensor] = []
        for block in self.input_blocks:
            h = block(h, mod)
            skips.append(h)
        h = self._transform(h, mod, cond)
        for block in self.out_blocks:
            h = block(concat_channels([h, skips.pop()]) if self.use_skip_connection else h, mod)
        # released: this norm sees 16-bit numbers, that of the structure flow does not
        feats = F.layer_norm(h.feats, h.feats.shape[1:], eps=1e-5)
        return x.replace(self.out_layer(feats.float()))

    def _transform(self, x: SparseTensor, mod: Tensor, cond: Condition) -> SparseTensor:
        """All transformer blocks, on the tokens [P, C]."""
        h = x.feats + x.plan.remember(
            ("ape", self.model_channels, self.dtype),
            lambda: position_embedding(x.coords[:, 1:], self.model_channels).to(self.dtype),
        )
        packing = sample_packing(x.plan)
        if self.dtype == torch.float16:  # the residual stream loses less than in the released code
            h = h.float()
        for number, (block, context) in enumerate(zip(self.blocks, self._contexts(cond), strict=True)):
            if number < self.checkpointed and torch.is_grad_enabled():
                h = checkpoint(block, h, mod, context, None, packing, use_reentrant=False)  # type: ignore[assignment]
            else:
                h = block(h, mod, context, None, packing)
        return x.replace(h.to(self.dtype))

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the matrices of all blocks; everything else stays float32."""
        super().set_torso_dtype(dtype)
        for blocks in (self.input_blocks, self.out_blocks):
            convert_torso(blocks, dtype, (nn.Linear, SparseConv3d))

    def initialize(self) -> None:
        """Random weights for training from scratch; residual branches and output start at zero."""
        super().initialize()
        for module in self.modules():
            if isinstance(module, SparseConv):
                module.conv.reset_parameters()
        for module in self.modules():
            if isinstance(module, SparseResBlock3d):
                module.norm1.reset_parameters()
                nn.init.zeros_(module.conv2.conv.weight)
                nn.init.zeros_(module.conv2.conv.bias)  # type: ignore[arg-type]
