"""The flow over a dense latent grid that decides which voxels a shape occupies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trellis_core.nn.embed import grid_coords, patchify, position_embedding, rope_phases, unpatchify
from trellis_core.nn.transformer import Condition, FlowTransformer


class SparseStructureFlowModel(FlowTransformer):
    """Velocity of a structure latent; tokens are its cells, x-major.

    `resolution` R is the latent grid. The remaining arguments are those of `FlowTransformer`.
    `rope_freq` is accepted and ignored, as in the released model.
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
        patch_size: int = 1,
        rope_freq: tuple[float, float] | None = None,
        use_checkpoint: bool = False,
        **transformer: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels * patch_size**3,
            model_channels=model_channels,
            cond_channels=cond_channels,
            out_channels=out_channels * patch_size**3,
            num_blocks=num_blocks,
            use_checkpoint=use_checkpoint,
            **transformer,
        )
        self.resolution = resolution
        self.patch_size = patch_size
        if self.pe_mode == "rope":
            self.register_buffer("rope_phases", None, persistent=False)
        else:
            self.register_buffer("pos_emb", None)
        if not self.input_layer.weight.is_meta:  # tables of a network without weights come with its weights
            self.reset_buffers(self.input_layer.weight.device)

    def reset_buffers(self, device: torch.device) -> None:
        coords = grid_coords(self.resolution // self.patch_size, device)
        if self.pe_mode == "rope":
            self.rope_phases = rope_phases(coords, self.head_dim)
        else:
            self.pos_emb = position_embedding(coords, self.model_channels)

    def forward(
        self,
        x: Tensor,  # float32 [B, C, R, R, R]
        t: Tensor,  # float32 [B]  1000 * t
        cond: Condition,  # [B, M, C], precomputed, or None: unconditional
    ) -> Tensor:  # float32 [B, C, R, R, R]
        h = patchify(x.float(), self.patch_size)
        grid = h.shape[2:]
        rope = self.pe_mode == "rope"
        v = self.velocity(
            h.flatten(2).mT,
            t,
            cond,
            phases=self.rope_phases if rope else None,
            position=None if rope else self.pos_emb,
        )
        return unpatchify(v.mT.unflatten(2, grid), self.patch_size)
