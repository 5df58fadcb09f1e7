"""What TRELLIS v1 does to sparse voxels between its transformers: convolve, halve, double, normalise.

State-dict names are the released ones. Letters: T voxels, P parents, B samples, C input channels, E output
channels, M channels of the time embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.nn.conv import SparseConv3d
from trellis_core.nn.norm import LayerNorm32
from trellis_core.sparse.plan import SparsePlan
from trellis_core.sparse.spatial import repeat_parents
from trellis_core.sparse.tensor import SparseTensor


class SparseConv(nn.Module):
    """A submanifold convolution under the released name `conv`."""

    def __init__(self, channels: int, out_channels: int, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.conv = SparseConv3d(channels, out_channels, kernels=kernels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return self.conv(x)  # type: ignore[no-any-return]


class PointwiseConv(nn.Module):
    """The released 1x1x1 convolution, row by row.

    Its weight is stored as [E, 1, 1, 1, C], but training read that memory as [C, E]: not transposed.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SparseConv3d(channels, out_channels, kernel_size=1)

    def forward(
        self,
        feats: Tensor,  # [T, C]
    ) -> Tensor:  # [T, E]
        weight, bias = self.conv.weight, self.conv.bias
        return F.linear(feats, weight.reshape(weight.shape[-1], weight.shape[0]).T, bias)


class SparseGroupNorm32(nn.GroupNorm):
    """Group norm over all voxels of a sample (Wu & He, 2018), computed in float32."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        groups = x.feats.float().unflatten(1, (self.num_groups, -1))  # [T, G, C / G]
        normed = torch.empty_like(x.feats)
        for sample in range(x.batch_size):
            rows = x.layout.rows(sample)
            if rows.start == rows.stop:
                continue
            variance, mean = torch.var_mean(groups[rows], dim=(0, 2), correction=0)
            deviation = torch.rsqrt(variance + self.eps)[:, None]
            scale = self.weight.view(self.num_groups, -1) * deviation
            shift = self.bias.view(self.num_groups, -1) - mean[:, None] * scale
            normed = normed.index_copy(
                0,
                torch.arange(rows.start, rows.stop, device=normed.device),
                torch.addcmul(shift, groups[rows], scale).flatten(1).to(normed.dtype),
            )
        return x.replace(normed)


def halve(x: SparseTensor) -> SparseTensor:
    """`[T, C]` -> `[P, C]`: the sum over a parent's voxels divided by their number plus one.

    The released weights were trained with a zero that takes part in every mean. The coarse level lives as
    long as the fine one, because every step of a sampler comes back to it.
    """
    plan = x.plan.remember("coarse", x.plan.coarsen)
    links = plan.recorded
    assert links is not None, "a plan made by coarsening records where it came from"
    total = x.feats.new_zeros(links.parents, x.feats.shape[1]).index_add(0, links.parent_rows, x.feats)
    return SparseTensor.on(plan, total / (links.mask.sum(1, keepdim=True) + 1).to(total.dtype))


def subdivide(x: SparseTensor) -> SparseTensor:
    """`[T, C]` -> `[8 T, C]`: every voxel becomes its eight children, which copy its features."""
    plan = x.plan
    if plan.recorded is not None:  # a remembered finer level is not what is asked for
        plan = plan.remember("subdivided", lambda: SparsePlan(plan.coords, plan.batch_size))
    everywhere = torch.ones(len(x), 8, dtype=torch.bool, device=x.device)
    return repeat_parents(SparseTensor.on(plan, x.feats), everywhere)


class SparseResBlock3d(nn.Module):
    """Residual block that the time embedding scales and shifts, resampled before everything else."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        downsample: bool = False,
        upsample: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        if downsample and upsample:
            raise ValueError("a block cannot both downsample and upsample")
        out_channels = out_channels or channels
        self.downsample, self.upsample = downsample, upsample
        self.norm1 = LayerNorm32(channels, elementwise_affine=True, eps=1e-6)
        self.norm2 = LayerNorm32(out_channels, elementwise_affine=False, eps=1e-6)
        self.conv1 = SparseConv(channels, out_channels, kernels)
        self.conv2 = SparseConv(out_channels, out_channels, kernels)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Linear(channels, out_channels)
        )

    def forward(
        self,
        x: SparseTensor,
        emb: Tensor,  # [B, M]
    ) -> SparseTensor:
        if self.downsample:
            x = halve(x)
        # doubling copies rows: what works row by row is cheaper on the parents
        h, skip = x.replace(F.silu(self.norm1(x.feats))), x.replace(self.skip_connection(x.feats))
        if self.upsample:
            h, skip = repeat_parents(h), repeat_parents(skip)
        h = self.conv1(h)
        scale, shift = h.broadcast(self.emb_layers(emb)).chunk(2, dim=1)
        h = h.replace(F.silu(torch.addcmul(shift, self.norm2(h.feats), 1 + scale)))
        return self.conv2(h) + skip  # type: ignore[no-any-return]


class SparseSubdivideBlock3d(nn.Module):
    """To twice the resolution: every voxel gets all its children. 32 groups, as released."""

    def __init__(self, channels: int, out_channels: int, kernels: Kernels | None = None) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(SparseGroupNorm32(32, channels), nn.SiLU())
        self.out_layers = nn.Sequential(
            SparseConv(channels, out_channels, kernels),
            SparseGroupNorm32(32, out_channels),
            nn.SiLU(),
            SparseConv(out_channels, out_channels, kernels),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else PointwiseConv(channels, out_channels)
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        skip = subdivide(x.replace(self.skip_connection(x.feats)))
        first, norm, _, second = self.out_layers
        h = self.act_layers[0](x)
        h = norm(first(subdivide(h.replace(F.silu(h.feats)))))
        return second(h.replace(F.silu(h.feats))) + skip  # type: ignore[no-any-return]
