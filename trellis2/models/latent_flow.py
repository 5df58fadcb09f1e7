"""The flow over structured latents: one token per occupied voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.nn.attention import KeyValue
from trellis_core.nn.embed import position_embedding
from trellis_core.nn.transformer import Condition, Context, FlowTransformer
from trellis_core.nn.windows import sample_packing, voxel_phases
from trellis_core.sparse.tensor import SparseTensor


class SLatFlowModel(FlowTransformer):
    """Velocity of a structured latent (shape, or texture given the shape).

    `resolution` is informational: the same weights serve every grid. The remaining arguments are
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
        rope_freq: tuple[float, float] = (1.0, 10000.0),
        use_checkpoint: bool = False,
        **transformer: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            model_channels=model_channels,
            cond_channels=cond_channels,
            out_channels=out_channels,
            num_blocks=num_blocks,
            use_checkpoint=use_checkpoint,
            **transformer,
        )
        self.resolution = resolution
        self.rope_freq = (float(rope_freq[0]), float(rope_freq[1]))

    def forward(
        self,
        x: SparseTensor,  # float32 [T, C]
        t: Tensor,  # float32 [B]  1000 * t
        cond: Condition,  # [B, M, C], one [M_i, C] per sample, precomputed, or None
        concat_cond: SparseTensor | None = None,  # float32 [T, C']  appended to the channels of x
    ) -> SparseTensor:  # float32 [T, C_out]
        h = x.feats.float()
        if concat_cond is not None:
            if concat_cond.plan is not x.plan and not torch.equal(concat_cond.coords, x.coords):
                raise InputError("the latent to append lies on other voxels than the latent to denoise")
            h = torch.cat([h, concat_cond.feats.float()], dim=1)
        places: dict[str, Any] = {}
        if self.pe_mode == "rope":
            places["phases"] = voxel_phases(x.plan, self.head_dim, self.rope_freq)
        else:
            places["position"] = x.plan.remember(
                ("ape", self.model_channels),
                lambda: position_embedding(x.coords[:, 1:], self.model_channels),
            )
        if x.batch_size == 1:  # one sample is a dense batch: no packing, no gathered modulation
            return x.replace(self.velocity(h[None], t, as_one(cond), **places)[0])
        return x.replace(self.velocity(h, t, cond, packing=sample_packing(x.plan), **places))


def as_one(cond: Condition) -> Condition:
    """The condition of a single sample without its packing."""
    if isinstance(cond, Context):
        return Context(tuple(b if b.packing is None else KeyValue(b.k[None], b.v[None]) for b in cond.blocks))
    if isinstance(cond, Sequence):
        return cond[0][None]
    return cond
