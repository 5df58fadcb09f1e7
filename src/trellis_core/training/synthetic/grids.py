"""Coarse grids of occupancy and color, computed once for a whole dataset, on the dataset's device.

Letters: n objects, R resolution of the voxels, G of the coarse grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trellis_core.training.synthetic.shards import Dataset

CHUNK = 1 << 24  # voxels at a time: their keys take 8 bytes each


def occupancy_grids(dataset: Dataset, resolution: int, grid: int) -> Tensor:  # bool [n, G, G, G]
    """Which cells of a coarse grid hold surface voxels; `grid` divides `resolution`."""
    out = torch.zeros(len(dataset) * grid**3, dtype=torch.bool, device=dataset.coords.device)
    for _, cell in _cells(dataset, resolution, grid):
        out[cell] = True
    return out.view(-1, grid, grid, grid)


def color_grids(dataset: Dataset, resolution: int, grid: int) -> Tensor:  # uint8 [n, 3, G, G, G]
    """Mean base color of the surface voxels in each cell; black where there are none."""
    size = grid**3
    out = torch.zeros(len(dataset), 3, size, dtype=torch.uint8, device=dataset.coords.device)
    for rows, cell in _cells(dataset, resolution, grid):
        first, last = int(cell[0]) // size, int(cell[-1]) // size + 1
        color = dataset.attrs[rows, :3].int()
        total = color.new_zeros((last - first) * size, 3).index_add_(0, cell - first * size, color)
        count = torch.bincount(cell - first * size, minlength=len(total)).clamp_min(1)[:, None]
        out[first:last] = (total // count).byte().view(-1, size, 3).transpose(1, 2)
    return out.view(-1, 3, grid, grid, grid)


def _cells(dataset: Dataset, resolution: int, grid: int) -> Iterator[tuple[slice, Tensor]]:
    """Whole objects' voxels at a time, and the linear index [object, x, y, z] of the cell of each."""
    factor, starts = resolution // grid, dataset.starts
    first = 0
    while first < len(dataset):
        last = int(torch.searchsorted(starts, starts[first] + CHUNK, right=True)) - 1
        last = min(max(last, first + 1), len(dataset))
        rows = slice(int(starts[first]), int(starts[last]))
        number = torch.repeat_interleave(starts[first : last + 1].diff()) + first
        x, y, z = (dataset.coords[rows] // factor).long().T
        yield rows, ((number * grid + x) * grid + y) * grid + z
        first = last
