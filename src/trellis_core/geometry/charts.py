"""Cutting a surface into pieces that lie flat: faces of one chart look into one direction.

Labels every face by the best of six directions, smooths the labels as a Potts model, and flattens each
connected piece along its own mean normal. Knows nothing about packing. Letters: V, F, K charts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import connected_components, number_labels
from trellis_core.geometry.triangles import face_areas, face_normals, side_lengths, unit
from trellis_core.geometry.types import Mesh

DIRECTIONS = torch.tensor(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float32
)
NORMAL_ROUNDS = 4
LABEL_ROUNDS = 12
LABEL_LIMIT = math.cos(math.radians(80))  # a face never takes a direction further away than this
MERGE_LIMIT = math.cos(math.radians(80))
FLAT_LIMIT = math.cos(math.radians(85))  # steeper faces would be squeezed or flipped
TINY_AREA = 2e-5  # of the surface
TINY_FACES = 8  # or this many average faces
SPRAWL_FILL = 0.45  # large charts that fill less of their box are cut in two
SPRAWL_AREA = 0.01  # of the surface


@dataclass(frozen=True, slots=True)
class Surface:
    """A mesh with what charting asks of it again and again."""

    mesh: Mesh
    neighbor: Tensor  # int64 [F, 3]   face across each side, -1 at a border
    normals: Tensor  # float32 [F, 3]
    areas: Tensor  # float32 [F]
    sides: Tensor  # float32 [F, 3] lengths


def surface_of(mesh: Mesh, partner: Tensor) -> Surface:
    neighbor = torch.where(partner >= 0, partner // 3, -1)
    return Surface(
        mesh,
        neighbor,
        face_normals(mesh.vertices, mesh.faces),
        face_areas(mesh.vertices, mesh.faces),
        side_lengths(mesh.vertices, mesh.faces),
    )


def make_charts(surface: Surface) -> Tensor:
    """Chart of each face, int64 [F], numbered from 0. No face is steeper than 85 degrees in its chart."""
    labels = smooth_labels(surface, smooth_normals(surface))
    chart = connected_charts(surface, labels)
    chart = cut_sprawling(surface, merge_tiny(surface, chart))
    return split_steep(surface, chart)


def smooth_normals(surface: Surface) -> Tensor:
    near = surface.neighbor.clamp_min(0)
    weight = surface.areas[near] * (surface.neighbor >= 0)
    normals = surface.normals
    for _ in range(NORMAL_ROUNDS):
        total = surface.areas[:, None] * normals + (weight[:, :, None] * normals[near]).sum(1)
        normals = unit(total)
    return normals


def smooth_labels(surface: Surface, guide: Tensor) -> Tensor:
    """Direction of each face, int64 [F]: close to its normal, and the same as most of its border.

    Each round changes a random half of the faces, so that two neighbours do not swap for ever.
    """
    fit = guide @ DIRECTIONS.T
    allowed = surface.normals @ DIRECTIONS.T > LABEL_LIMIT
    allowed[torch.arange(len(fit)), (surface.normals @ DIRECTIONS.T).argmax(1)] = True
    fit = torch.where(allowed, fit, -torch.inf)
    labels = fit.argmax(1)
    near = surface.neighbor.clamp_min(0)
    share = surface.sides / surface.sides.sum(1, keepdim=True) * (surface.neighbor >= 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(LABEL_ROUNDS):
        votes = torch.zeros_like(fit).scatter_add_(1, labels[near], share)
        better = (fit + votes).argmax(1)
        chosen = torch.rand(len(labels), generator=generator) < 0.5
        labels = torch.where(chosen, better, labels)
    return labels


def connected_charts(surface: Surface, labels: Tensor) -> Tensor:
    """Number the connected pieces of equal label, int64 [F]."""
    same = (surface.neighbor >= 0) & (labels[surface.neighbor.clamp_min(0)] == labels[:, None])
    face, side = torch.nonzero(same, as_tuple=True)
    pairs = torch.stack([face, surface.neighbor[face, side]], dim=1)
    return number_labels(connected_components(pairs, len(labels)))[0]


def chart_axes(surface: Surface, chart: Tensor) -> tuple[Tensor, Tensor]:
    """Area-weighted mean normal [K, 3], unit, and area [K] of each chart."""
    count = int(chart.max()) + 1
    total = torch.zeros(count, 3).index_add_(0, chart, surface.areas[:, None] * surface.normals)
    area = torch.zeros(count).index_add_(0, chart, surface.areas)
    axis = unit(total)
    # A chart whose normals cancel out (a closed sliver of a piece) is cut apart by split_steep.
    return torch.where(axis.norm(dim=1, keepdim=True) > 0, axis, DIRECTIONS[4]), area


def merge_tiny(surface: Surface, chart: Tensor, rounds: int = 10) -> Tensor:
    """Join charts too small to be worth a border to the neighbour they share most border with."""
    limit = max(TINY_AREA, TINY_FACES / len(chart)) * float(surface.areas.sum())
    for _ in range(rounds):
        axis, area = chart_axes(surface, chart)
        count = len(area)
        face, side = torch.nonzero((surface.neighbor >= 0) & (area[chart] < limit)[:, None], as_tuple=True)
        here, there = chart[face], chart[surface.neighbor[face, side]]
        border = here != there
        key, inverse = torch.unique(here[border] * count + there[border], return_inverse=True)
        if len(key) == 0:
            break
        length = torch.zeros(len(key)).index_add_(0, inverse, surface.sides[face, side][border])
        order = torch.argsort(length, stable=True)  # the longest border is written last
        best = torch.full((count,), -1)
        best[key[order] // count] = key[order] % count
        tiny = best >= 0
        joint = unit(axis * area[:, None] + (axis * area[:, None])[best.clamp_min(0)])
        fits = (surface.normals * joint[chart]).sum(1) > MERGE_LIMIT
        tiny[chart[~fits]] = False
        # Only into a chart that stays: larger first, then the lower number.
        target = best.clamp_min(0)
        bigger = (area[target] > area) | ((area[target] == area) & (target < torch.arange(count)))
        moves = tiny & bigger
        moves &= ~moves[target]
        if not bool(moves.any()):
            break
        chart = number_labels(torch.where(moves, target, torch.arange(count))[chart])[0]
    return chart


def split_steep(surface: Surface, chart: Tensor, rounds: int = 4) -> Tensor:
    """Cut off faces that are too steep in their chart; the last resort is a chart of one face."""
    for step in range(rounds):
        axis, _ = chart_axes(surface, chart)
        steep = (surface.normals * axis[chart]).sum(1) < FLAT_LIMIT
        if not bool(steep.any()):
            break
        if step == rounds - 1:
            chart = number_labels(torch.where(steep, len(chart) + torch.arange(len(chart)), chart))[0]
        else:
            chart = connected_charts(surface, 2 * chart + steep)
    return chart


@dataclass(frozen=True, slots=True)
class FlatCharts:
    """Every chart laid flat in its own frame, in world units."""

    vertex: Tensor  # int64 [W]      vertex of the mesh; charts share none
    chart: Tensor  # int64 [W]      chart of each flat vertex
    faces: Tensor  # int64 [F, 3]   into the flat vertices
    points: Tensor  # float32 [W, 2] u right, v down seen from outside, from 0 upwards
    height: Tensor  # float32 [W]    along the chart's axis
    size: Tensor  # float32 [K, 2] extent of each chart


def flatten_charts(surface: Surface, chart: Tensor) -> FlatCharts:
    """Project each chart along its mean normal, its longer principal axis along u."""
    faces = surface.mesh.faces.long()
    count = int(chart.max()) + 1
    key, inverse = torch.unique(chart[:, None] * len(surface.mesh.vertices) + faces, return_inverse=True)
    owner, vertex = key // len(surface.mesh.vertices), key % len(surface.mesh.vertices)
    axis, _ = chart_axes(surface, chart)
    helper = torch.where(axis[:, :1].abs() < 0.8, DIRECTIONS[0], DIRECTIONS[2])
    right = unit(torch.linalg.cross(helper.expand_as(axis), axis))
    up = torch.linalg.cross(axis, right)
    point = surface.mesh.vertices[vertex]
    flat = torch.stack([(point * right[owner]).sum(1), -(point * up[owner]).sum(1)], dim=1)
    flat = flat - chart_means(flat, owner, count)[owner]

    covariance = chart_means(flat[:, :, None] * flat[:, None], owner, count)
    angle = 0.5 * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1])
    cos, sin = torch.cos(angle)[owner], torch.sin(angle)[owner]
    flat = torch.stack([cos * flat[:, 0] + sin * flat[:, 1], cos * flat[:, 1] - sin * flat[:, 0]], dim=1)
    index = owner[:, None].expand(-1, 2)
    low = torch.full((count, 2), torch.inf).scatter_reduce(0, index, flat, "amin")
    high = torch.full((count, 2), -torch.inf).scatter_reduce(0, index, flat, "amax")
    return FlatCharts(
        vertex, owner, inverse.reshape(-1, 3), flat - low[owner], (point * axis[owner]).sum(1), high - low
    )


def cut_sprawling(surface: Surface, chart: Tensor, rounds: int = 3) -> Tensor:
    """Cut long winding charts (rings, spirals) across the middle of their box: they pack badly."""
    for _ in range(rounds):
        flat = flatten_charts(surface, chart)
        area = torch.zeros(len(flat.size)).index_add_(0, chart, surface.areas)
        sprawling = (area < SPRAWL_FILL * flat.size.prod(1)) & (area > SPRAWL_AREA * area.sum())
        if not bool(sprawling.any()):
            break
        far = flat.points[flat.faces].mean(1)[:, 0] > 0.5 * flat.size[chart, 0]
        chart = connected_charts(surface, 2 * chart + (far & sprawling[chart]))
    return chart


def chart_means(values: Tensor, owner: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, *values.shape[1:]).index_add_(0, owner, values)
    number = torch.bincount(owner, minlength=count).reshape(-1, *[1] * (values.dim() - 1))
    return total / number
