"""The sparse VAEs: voxels to latents and back, one for shape and one for material.

Encoder and decoder are U-shaped without skips between them; every level halves the grid. Constructor
arguments and state-dict names are those of the released configurations; `use_fp16` is ignored, because
`set_torso_dtype` decides the precision.
SC-VAE: Xiang et al., "Native and Compact Structured Latents for 3D Generation" (2025).

Letters: T voxels, N tokens (voxels of the coarsest level), P parents, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis2.models.sparse_blocks import (
    BLOCKS,
    DOWN_BLOCKS,
    UP_BLOCKS,
    SparseConvNeXtBlock3d,
    SparseResBlock,
)
from trellis_core.errors import InputError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.blocks import convert_torso
from trellis_core.nn.conv import SparseConv3d
from trellis_core.nn.norm import LayerNorm32
from trellis_core.sparse.ops import map_rows
from trellis_core.sparse.tensor import SparseTensor

Subdivisions = tuple[SparseTensor, ...]  # logits [P, 8] on the parents of every step, coarse to fine


class SparseVaeHalf(nn.Module):
    """What encoder and decoder share: the levels, their precision, and where training starts."""

    blocks: nn.ModuleList
    dtype: torch.dtype = torch.float32
    checkpointed: tuple[bool, ...]

    @property
    def levels(self) -> int:
        """How many times the grid is halved or doubled."""
        return len(self.blocks) - 1

    @property
    def factor(self) -> int:
        """Voxels per token along an axis."""
        return int(2**self.levels)

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the blocks' matrices; norms, input and output layers stay float32."""
        convert_torso(self.blocks, dtype, (nn.Linear, SparseConv3d))
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch: residual branches start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, SparseConv3d | LayerNorm32):
                module.reset_parameters()
        for module in self.modules():
            last = None
            if isinstance(module, SparseConvNeXtBlock3d):
                last = module.mlp[-1]
            elif isinstance(module, SparseResBlock):
                last = module.conv2
            if last is not None:
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]
                nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def build_levels(
        self,
        channels: Sequence[int],
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        block_args: Sequence[Mapping[str, Any]],
        resample_type: Sequence[str],
        resample_blocks: Mapping[str, Any],
        kernels: Kernels | None,
        **resample_args: Any,
    ) -> None:
        """`blocks[l]`: the blocks of level l, and at its end the step to level l + 1."""
        counts = {len(channels), len(num_blocks), len(block_type), len(block_args), len(resample_type) + 1}
        if len(counts) > 1:
            raise ValueError(f"the per-level lists of the configuration differ in length: {sorted(counts)}")
        args = [{k: v for k, v in a.items() if k != "use_checkpoint"} for a in block_args]
        levels = [
            [BLOCKS[kind](width, **extra, kernels=kernels) for _ in range(count)]
            for kind, width, count, extra in zip(block_type, channels, num_blocks, args, strict=True)
        ]
        for level, kind, (width, next_width) in zip(levels, resample_type, pairwise(channels), strict=False):
            level.append(resample_blocks[kind](width, next_width, kernels=kernels, **resample_args))
        self.blocks = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.num_blocks = tuple(num_blocks)
        self.checkpointed = tuple(bool(a.get("use_checkpoint")) for a in block_args)

    def run_level(self, level: int, x: SparseTensor) -> SparseTensor:
        """The blocks of one level, without the step to the next."""
        for block in self.blocks[level][: self.num_blocks[level]]:  # type: ignore[index]
            if self.checkpointed[level] and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = block(x)
        return x

    def step(self, level: int) -> nn.Module:
        """The block that leads from `level` to the next one."""
        return self.blocks[level][-1]  # type: ignore[index, return-value]


class SparseUnetVaeEncoder(SparseVaeHalf):
    """Features float32 [T, in_channels] on voxels -> (mean, logvar) of the latent, each float32 [N, C].

    The latent's plan records the voxels it came from: a decoder restores exactly those.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: Sequence[int],
        latent_channels: int,
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        down_block_type: Sequence[str],
        block_args: Sequence[Mapping[str, Any]],
        use_fp16: bool = False,
        resolution: int | None = None,  # in old configurations; has no meaning
        *,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Linear(in_channels, model_channels[0])
        self.to_latent = nn.Linear(model_channels[-1], 2 * latent_channels)
        self.build_levels(
            model_channels, num_blocks, block_type, block_args, down_block_type, DOWN_BLOCKS, kernels
        )

    def forward(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        if len(x) == 0:
            raise InputError("there is no voxel to encode", hint="check that the mesh is not empty")
        h = x.replace(self.input_layer(x.feats.float()).to(self.dtype))
        for level in range(self.levels):
            h = self.step(level)(self.run_level(level, h))
        h = self.run_level(self.levels, h)
        mean, logvar = self.to_latent(_plain_norm(h.feats)).chunk(2, dim=1)
        return h.replace(mean), h.replace(logvar)


class FlexiDualGridVaeEncoder(SparseUnetVaeEncoder):
    """The dual grid of a surface -> (mean, logvar) of the shape latent."""

    def __init__(
        self,
        model_channels: Sequence[int],
        latent_channels: int,
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        down_block_type: Sequence[str],
        block_args: Sequence[Mapping[str, Any]],
        use_fp16: bool = False,
        resolution: int | None = None,  # in old configurations; has no meaning
        *,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__(
            6,
            model_channels,
            latent_channels,
            num_blocks,
            block_type,
            down_block_type,
            block_args,
            kernels=kernels,
        )

    def forward(  # type: ignore[override]
        self,
        dual_vertices: SparseTensor,  # float32 [T, 3]   inside the voxel, in [0, 1]
        crossings: Tensor,  # bool [T, 3]
    ) -> tuple[SparseTensor, SparseTensor]:
        feats = torch.cat([dual_vertices.feats.float(), crossings.float()], dim=1) - 0.5
        return super().forward(dual_vertices.replace(feats))


class SparseUnetVaeDecoder(SparseVaeHalf):
    """Latent float32 [N, C] -> (features float32 [T, out_channels] on voxels, subdivision logits).

    Which children exist is decided at every step by, in this order: the recorded topology of the
    latent's plan; `guides`, the logits that another decoder returned for the same tokens; the
    decoder's own prediction. The logits stand on the parents' plans, so `logits.plan.expand().mask`
    is the target of their training, and a guided decoder shares the guide's tables.
    """

    def __init__(
        self,
        out_channels: int,
        model_channels: Sequence[int],
        latent_channels: int,
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        up_block_type: Sequence[str],
        block_args: Sequence[Mapping[str, Any]],
        use_fp16: bool = False,
        pred_subdiv: bool = True,
        *,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.output_layer = nn.Linear(model_channels[-1], out_channels)
        self.from_latent = nn.Linear(latent_channels, model_channels[0])
        self.build_levels(
            model_channels,
            num_blocks,
            block_type,
            block_args,
            up_block_type,
            UP_BLOCKS,
            kernels,
            pred_subdiv=pred_subdiv,
        )
        self.pred_subdiv = pred_subdiv

    def forward(
        self, latent: SparseTensor, guides: Sequence[SparseTensor] = ()
    ) -> tuple[SparseTensor, Subdivisions]:
        h = self._enter(latent, guides)
        subdivisions = []
        for level in range(self.levels):
            h = self.run_level(level, h)
            h, logits = self.step(level)(h, guides[level].feats if guides else None)
            _require_voxels(h)
            if logits is not None:
                subdivisions.append(logits)
        h = self.run_level(self.levels, h)
        return h.replace(map_rows(self._leave, h.feats)), tuple(subdivisions)

    def upsample(self, latent: SparseTensor, steps: int) -> Tensor:
        """int32 [T, 4]: the voxels after `steps` doublings. Computes masks only: the last step's
        convolutions do not run."""
        if not 1 <= steps <= self.levels:
            raise ValueError(f"this decoder doubles the grid 1 to {self.levels} times, not {steps}")
        h = self._enter(latent, ())
        for level in range(steps - 1):
            h, _ = self.step(level)(self.run_level(level, h))
            _require_voxels(h)
        last = self.run_level(steps - 1, h)
        mask = self.step(steps - 1).subdivision(last).feats > 0 if self.pred_subdiv else None  # type: ignore[operator]
        return last.plan.expand(mask).fine.coords

    def _enter(self, latent: SparseTensor, guides: Sequence[SparseTensor]) -> SparseTensor:
        _require_voxels(latent)
        if guides and latent.plan.recorded is None:
            if len(guides) != self.levels or not torch.equal(guides[0].coords, latent.coords):
                raise ValueError("guides must come from a decoder of the same depth and the same tokens")
            latent = SparseTensor.on(guides[0].plan, latent.feats)
        return latent.replace(self.from_latent(latent.feats.float()).to(self.dtype))

    def _leave(self, feats: Tensor) -> Tensor:
        return self.output_layer(_plain_norm(feats))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class DualGrid:
    """What the shape decoder's seven channels mean, per voxel."""

    dual_vertices: Tensor  # float32 [T, 3]   in voxels from the voxel's minimum corner
    crossing_logits: Tensor  # float32 [T, 3]   the x, y, z edge is crossed where positive
    split_weight: Tensor  # float32 [T, 1]   positive

    @property
    def crossings(self) -> Tensor:
        """bool [T, 3]"""
        return self.crossing_logits > 0


class FlexiDualGridVaeDecoder(SparseUnetVaeDecoder):
    """Shape latent -> (seven raw channels per voxel, subdivision logits); `dual_grid` reads the channels."""

    def __init__(
        self,
        resolution: int,  # of the released training data; callers choose their own
        model_channels: Sequence[int],
        latent_channels: int,
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        up_block_type: Sequence[str],
        block_args: Sequence[Mapping[str, Any]],
        use_fp16: bool = False,
        voxel_margin: float = 0.5,
        *,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__(
            7,
            model_channels,
            latent_channels,
            num_blocks,
            block_type,
            up_block_type,
            block_args,
            kernels=kernels,
        )
        self.resolution = resolution
        self.voxel_margin = voxel_margin

    def dual_grid(self, feats: Tensor) -> DualGrid:
        """Activate raw channels [T, 7]."""
        return read_dual_grid(feats, self.voxel_margin)


def read_dual_grid(
    feats: Tensor,  # [T, 7]
    voxel_margin: float,  # how far a dual vertex may leave its voxel, in voxels
) -> DualGrid:
    """Raw channels of the shape decoder -> dual vertices, crossings and split weights."""
    feats = feats.float()
    position = (1 + 2 * voxel_margin) * feats[:, 0:3].sigmoid() - voxel_margin
    return DualGrid(position, feats[:, 3:6], F.softplus(feats[:, 6:7]))


def _plain_norm(feats: Tensor) -> Tensor:
    return F.layer_norm(feats.float(), feats.shape[-1:], eps=1e-5)


def _require_voxels(x: SparseTensor) -> None:
    if len(x) == 0:
        raise InputError(
            "the decoder found no voxel: the sampled shape is empty",
            hint="try another --seed or a stronger --shape-guidance",
        )
