"""Texture coordinates: cut into charts, lay flat, take overlaps apart, pack.

About 500,000 faces in seconds, where a general unwrapper takes minutes; the price is slightly less even
texel density. Letters: V vertices, F faces, K charts, W vertices after cutting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.charts import connected_charts, make_charts, split_steep
from trellis_core.geometry.connectivity import edges_of, partner_sides
from trellis_core.geometry.flatten import FlatCharts, flatten_charts, surface_of
from trellis_core.geometry.masks import wound_twice
from trellis_core.geometry.pack import pack, rim_of
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

OVERLAP_ROUNDS = 6
OVERLAP_PIXELS = 1 << 20  # of the picture in which overlaps are searched
PIXELS_PER_CHART = 256  # at least, on average


def unwrap(
    mesh: Mesh,
    texture_size: int,
    *,
    layer_gap: float,  # layers of one chart closer than this are one surface
    kernels: Kernels,
) -> Mesh:
    """Give a mesh texture coordinates; faces keep their order, vertices on chart borders are duplicated."""
    surface = surface_of(mesh, partner_sides(edges_of(mesh.faces)))
    chart = make_charts(surface, rim_of(texture_size, float(surface.areas.sum())))
    flat = flatten_charts(surface, chart)
    for _ in range(OVERLAP_ROUNDS):
        upper = overlapping_faces(flat, layer_gap, kernels)
        if not bool(upper.any()):
            break
        chart = split_steep(surface, connected_charts(surface, 2 * chart + upper))
        flat = flatten_charts(surface, chart)
    uvs = pack(flat, texture_size, kernels)
    return Mesh(mesh.vertices[flat.vertex], flat.faces.to(torch.int32), uvs=uvs)


def overlapping_faces(flat: FlatCharts, layer_gap: float, kernels: Kernels) -> Tensor:
    """Faces that lie above another face of their chart by more than `layer_gap`, bool [F].

    Charts that lie over themselves wind around some place twice. These are drawn side by side, seen from
    above and from below: where the two pictures differ in height there are two layers.
    """
    scale, corner, height, width = lay_in_rows(flat.size)
    found = torch.zeros(len(flat.faces), dtype=torch.bool, device=flat.faces.device)
    doubtful = wound_twice(flat.points.double() * scale, flat.chart, flat.border, flat.size.double() * scale)
    drawn = torch.nonzero(doubtful[flat.chart[flat.faces[:, 0]]]).squeeze(1)
    if len(drawn) == 0:
        return found
    pixel = flat.points * scale + corner[flat.chart]
    faces = flat.faces[drawn].to(torch.int32)
    rasterize: Any = kernels["rasterize"]
    top, top_weight = rasterize(torch.cat([pixel, -flat.height[:, None]], 1), faces, height, width)
    bottom, bottom_weight = rasterize(torch.cat([pixel, flat.height[:, None]], 1), faces, height, width)
    double = top != bottom
    upper, lower = drawn[top[double].long()], drawn[bottom[double].long()]
    above = flat.height[flat.faces[upper]] * top_weight[double]
    below = flat.height[flat.faces[lower]] * bottom_weight[double]
    found[upper[above.sum(1) - below.sum(1) > layer_gap]] = True
    return found


def lay_in_rows(size: Tensor) -> tuple[float, Tensor, int, int]:
    """Pixels per unit, corner [K, 2] of each box, and height and width of a picture that holds them all.

    Boxes stand in rows, ordered by height, each at the place that the widths before it make.
    """
    pixels = max(OVERLAP_PIXELS, PIXELS_PER_CHART * len(size))
    scale = (pixels / max(float(size.double().prod(1).sum()), 1e-30)) ** 0.5
    scale = min(scale, 4 * pixels**0.5 / max(float(size.max()), 1e-30))
    box = (size * scale).floor() + 2
    order = torch.argsort(-box[:, 1], stable=True)
    wide = box[order, 0].long()
    end = torch.cumsum(wide, 0)
    longest = int(pixels**0.5)
    row = (end - wide) // longest
    rows = int(row[-1]) + 1
    column = end - wide - row * longest
    tall = torch.zeros(rows, dtype=torch.int64, device=size.device)
    tall = tall.scatter_reduce(0, row, box[order, 1].long(), "amax")
    corner = torch.empty_like(size)
    corner[order] = torch.stack([column, (torch.cumsum(tall, 0) - tall)[row]], 1).to(size.dtype)
    return scale, corner, int(tall.sum()), int((column + wide).max())
