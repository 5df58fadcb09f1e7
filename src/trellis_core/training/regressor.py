"""A tokens-to-voxels regressor: the task that image and text encoders are pre-trained on. It is thrown away.

Letters: B batch, M tokens, C channels, G coarse grid; each of q^3 queries answers for (G / q)^3 cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE, ContextTokens
from trellis_core.nn.blocks import TransformerCrossBlock
from trellis_core.nn.embed import unpatchify
from trellis_core.training.objectives import dice_loss


class VoxelRegressor(nn.Module):
    """Picture or text tokens float32 [B, M, C] -> occupancy logits [B, 1, G, G, G], colors [B, 3, G, G, G],
    category logits."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_blocks: int,
        grid: int,
        queries: int,  # per side
        categories: int,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self.side, self.patch = queries, grid // queries
        self.queries = nn.Parameter(torch.randn(queries**3, channels) * 0.5)
        self.blocks = nn.ModuleList(
            TransformerCrossBlock(
                channels,
                channels,
                num_heads,
                ln_affine=True,
                qk_rms_norm=True,
                qk_rms_norm_cross=True,
                kernels=kernels,
            )
            for _ in range(num_blocks)
        )
        self.head = nn.ModuleDict(
            {"cells": nn.Linear(channels, 4 * self.patch**3), "category": nn.Linear(channels, categories)}
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.queries.expand(len(tokens), -1, -1)
        for block in self.blocks:
            h = block(h, None, ContextTokens(tokens))
        h = F.layer_norm(h, h.shape[-1:])
        cells = self.head["cells"](h).mT.unflatten(2, (self.side,) * 3)
        cells = unpatchify(cells, self.patch)
        return cells[:, :1], cells[:, 1:].sigmoid(), self.head["category"](h.mean(dim=1))


def regression_losses(
    predicted: tuple[Tensor, Tensor, Tensor],
    occupancy: Tensor,  # float32 [B, 1, G, G, G]  0 or 1
    colors: Tensor,  # float32 [B, 3, G, G, G]
    category: Tensor,  # int64 [B]
) -> dict[str, Tensor]:
    """5 BCE + 0.5 Dice of occupancy, 2 L1 of the colors of occupied cells, 0.1 cross-entropy of the
    category."""
    logits, color, kind = predicted
    bce = F.binary_cross_entropy_with_logits(logits, occupancy)
    dice = dice_loss(logits, occupancy)
    l1 = ((color - colors).abs() * occupancy).sum() / (3 * occupancy.sum())
    entropy = F.cross_entropy(kind, category)
    both, either = ((logits > 0) & (occupancy > 0)).sum(), ((logits > 0) | (occupancy > 0)).sum()
    return {
        "loss": 5 * bce + 0.5 * dice + 2 * l1 + 0.1 * entropy,
        "bce": bce.detach(),
        "color": l1.detach(),
        "iou": both / either,
        "accuracy": (kind.argmax(1) == category).float().mean(),
    }
