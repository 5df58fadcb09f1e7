"""Which voxels attend to each other: packings made from the coordinates of a sparse tensor.

Computed once per plan. Letters: T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.nn.attention import Packing
from trellis_core.nn.embed import rope_phases
from trellis_core.sparse.plan import SparsePlan


def sample_packing(plan: SparsePlan) -> Packing:
    """Every voxel attends to all voxels of its sample."""

    def make() -> Packing:
        layout = plan.layout
        return Packing(layout.cu_seqlens, layout.max_seqlen, layout.sample_of_row)

    return plan.remember("packing", make)


def window_packing(plan: SparsePlan, size: int, shift: int | tuple[int, int, int] = 0) -> Packing:
    """Voxels attend within cells floor((coords + shift) / size) of their sample (Swin, Liu et al., 2021)."""

    def make() -> Packing:
        offset = torch.as_tensor(shift, device=plan.coords.device)
        cells = torch.cat([plan.coords[:, :1], (plan.coords[:, 1:] + offset) // size], dim=1)
        return Packing.grouped(cells.unique(dim=0, return_inverse=True)[1])

    return plan.remember(("windows", size, shift), make)


def voxel_phases(
    plan: SparsePlan, head_dim: int, freq: tuple[float, float] = (1.0, 10000.0)
) -> Tensor:  # complex64 [T, head_dim // 2]
    """Rotary phases of the voxels; a coordinate means the same at every resolution."""
    return plan.remember(("rope", head_dim, freq), lambda: rope_phases(plan.coords[:, 1:], head_dim, freq))
