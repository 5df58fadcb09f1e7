"""Placing flat charts in a square: xatlas's packer, or shelves where xatlas has no wheel.

Charts keep their size relative to each other. Letters: K charts, W flat vertices.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.charts import FlatCharts

EXPECTED_COVERAGE = 0.6
GOOD_FIT = 1.12  # how far the packed size may be off before packing again


def pack(flat: FlatCharts, texture_size: int) -> Tensor:
    """Place the charts in the unit square with at least two texels between them; uvs float32 [W, 2].

    Shelves are better for a few boxy charts, xatlas for many; the larger result is taken.
    """
    padding = max(2, texture_size // 512)
    options = [pack_shelves(flat, texture_size, padding)]
    if find_spec("xatlas") is not None:
        options.append(pack_xatlas(flat, texture_size, padding))
    return max(options, key=lambda uvs: float(doubled_areas(uvs, flat).abs().sum()))


def doubled_areas(points: Tensor, flat: FlatCharts) -> Tensor:
    """Twice the signed area of each flat face, float64 [F]."""
    a, b, c = points.double()[flat.faces].unbind(1)
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]


def pack_shelves(flat: FlatCharts, texture_size: int, padding: int) -> Tensor:
    """Rows of charts by decreasing height, at the largest scale that fits."""
    scale, corner = fit_shelves(flat.size.numpy().astype(np.float64), texture_size, padding)
    return (flat.points * scale + torch.from_numpy(corner).float()[flat.chart]) / texture_size


def fit_shelves(size: np.ndarray, side: int, padding: int) -> tuple[float, np.ndarray]:
    """Largest scale (texels per unit) at which boxes [K, 2] fit on shelves, and their corners [K, 2]."""
    order = np.argsort(-size[:, 1], kind="stable")

    def place(scale: float) -> np.ndarray | None:
        corner = np.zeros_like(size)
        x = y = float(padding)
        shelf = 0.0
        for chart in order:
            width, height = size[chart] * scale
            if x + width + padding > side and x > padding:
                x, y, shelf = float(padding), y + shelf + padding, 0.0
            if x + width + padding > side or y + height + padding > side:
                return None
            corner[chart] = x, y
            x += width + padding
            shelf = max(shelf, height)
        return corner

    low, high = 0.0, side / max(float(size.max()), 1e-9)
    best = place(low)
    if best is None:
        raise UsageError(
            f"a texture of {side} x {side} texels has no room for {len(size)} charts",
            hint="use a larger texture, or smooth the surface",
        )
    for _ in range(14):
        middle = 0.5 * (low + high)
        corner = place(middle)
        if corner is None:
            high = middle
        else:
            low, best = middle, corner
    return low, best


def pack_xatlas(flat: FlatCharts, texture_size: int, padding: int) -> Tensor:
    """Let xatlas place the charts; its answer is read as one affine map per chart.

    Zero-area and flipped triangles would tear charts across the atlas, and charts that share coordinates
    would be merged, so only proper triangles are given, with the chart as their material.
    """
    import xatlas

    doubled = doubled_areas(flat.points, flat)
    proper = doubled.abs() > 1e-6 * doubled.abs().mean()
    if not bool(proper.any()):
        return pack_shelves(flat, texture_size, padding)
    faces = flat.faces[proper].numpy().astype(np.uint32)
    material = flat.chart[flat.faces[proper][:, :1]].numpy().astype(np.uint32)
    scale = math.sqrt(EXPECTED_COVERAGE / (0.5 * float(doubled.abs().sum()))) * texture_size
    for _ in range(2):
        texels = flat.points.double() * scale
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh(texels.numpy().astype(np.float32), faces, material)
        options = xatlas.PackOptions()
        options.padding = padding
        options.texels_per_unit = 1.0
        options.bilinear = True
        options.create_image = False
        atlas.generate(pack_options=options)
        side = max(atlas.width, atlas.height)
        fit = side / texture_size
        if 1 / GOOD_FIT < fit < GOOD_FIT:
            break
        scale /= fit
    source, _, placed = atlas.get_mesh(0)
    source = torch.from_numpy(source.astype(np.int64))
    target = torch.from_numpy(placed).double() * torch.tensor([atlas.width, atlas.height]) / side
    uvs = apply_chart_maps(texels, flat.chart, source, target, len(flat.size))
    return uvs.clamp(0, 1).float()


def apply_chart_maps(points: Tensor, chart: Tensor, source: Tensor, target: Tensor, count: int) -> Tensor:
    """Fit `target [M, 2] = A points[source] + b` for each chart by least squares, and map all its points."""
    owner = chart[source]
    number = torch.bincount(owner, minlength=count).clamp_min(1).double()[:, None]

    def mean(values: Tensor) -> Tensor:
        total = torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, owner, values)
        return total / number

    x_mean, y_mean = mean(points[source]), mean(target)
    x, y = points[source] - x_mean[owner], target - y_mean[owner]
    cross = mean((y[:, :, None] * x[:, None]).reshape(-1, 4)).reshape(-1, 2, 2)
    spread = mean((x[:, :, None] * x[:, None]).reshape(-1, 4)).reshape(-1, 2, 2)
    linear = cross @ torch.linalg.pinv(spread, hermitian=True)
    return torch.einsum("wij,wj->wi", linear[chart], points - x_mean[chart]) + y_mean[chart]
