"""Coarse grids of occupancy and color, computed once for a whole dataset."""

from __future__ import annotations

import numpy as np

from trellis_core.training.synthetic.shards import Dataset


def occupancy_grids(dataset: Dataset, resolution: int, grid: int) -> np.ndarray:  # bool [n, G, G, G]
    """Which cells of a coarse grid hold surface voxels."""
    factor = resolution // grid
    out = np.zeros((len(dataset), grid, grid, grid), bool)
    for i in range(len(dataset)):
        cells = dataset.coords[dataset.starts[i] : dataset.starts[i + 1]] // factor
        out[i, cells[:, 0], cells[:, 1], cells[:, 2]] = True
    return out


def color_grids(dataset: Dataset, resolution: int, grid: int) -> np.ndarray:  # uint8 [n, 3, G, G, G]
    """Mean base color of the surface voxels in each cell; black where there are none."""
    factor = resolution // grid
    out = np.zeros((len(dataset), 3, grid**3), np.uint8)
    for i in range(len(dataset)):
        rows = slice(dataset.starts[i], dataset.starts[i + 1])
        cells = (dataset.coords[rows] // factor).astype(np.int64)
        flat = (cells[:, 0] * grid + cells[:, 1]) * grid + cells[:, 2]
        count = np.maximum(np.bincount(flat, minlength=grid**3), 1)
        for channel in range(3):
            out[i, channel] = np.bincount(flat, dataset.attrs[rows, channel], grid**3) / count
    return out.reshape(-1, 3, grid, grid, grid)
