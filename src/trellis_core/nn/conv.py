"""Submanifold sparse convolution as a layer. Weights are laid out as in the released checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.sparse.tensor import SparseTensor


class SparseConv3d(nn.Module):
    """Convolve on the voxels that exist; output voxels are the input voxels.

    Tap (i, j, k) reads the voxel at `coord + dilation * (i - 1, j - 1, k - 1)` of the same sample, i along
    x; absent neighbours contribute nothing, the bias is always added. `weight` is [O, 3, 3, 3, I].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        dilation: int = 1,
        bias: bool = True,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        kernels = kernels or Kernels()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._convolve: Any = kernels["sparse_conv"]
        self._find_neighbors: Any = kernels["neighbor_map"]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +- 1/sqrt(taps * input channels), as torch's dense convolutions."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        neighbors = x.plan.neighbors(self._find_neighbors, self.kernel_size, self.dilation)
        feats: Tensor = x.feats
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(feats.device.type):
            dtype = torch.get_autocast_dtype(feats.device.type)
            feats, weight = feats.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return x.replace(self._convolve(feats, neighbors, weight, bias))

    def extra_repr(self) -> str:
        out_channels, size, _, _, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={size}, dilation={self.dilation}"


def silu_rows(
    norm: nn.Module,
    feats: Tensor,  # [T, C]
) -> Tensor:  # [T, C]
    """SiLU(norm(feats)), overwriting the norm's result when no gradient will ask for it."""
    return nn.functional.silu(norm(feats), inplace=not torch.is_grad_enabled())
