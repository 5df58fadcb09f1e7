"""Laying charts flat: each along its own mean normal, turned so that it fills its box.

Runs where the mesh is. Letters: V, F, K charts, W flat vertices, S border sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import next_corner, sum_by
from trellis_core.geometry.triangles import face_areas, face_normals, side_lengths, unit
from trellis_core.geometry.types import Mesh

TURNS = 24  # directions in a quarter turn that are tried for the smallest box


@dataclass(frozen=True, slots=True)
class Surface:
    """A mesh with what charting asks of it again and again."""

    mesh: Mesh
    partner: Tensor  # int64 [F, 3]    side across each side, -1 at a border
    neighbor: Tensor  # int64 [F, 3]   its face, -1 at a border
    normals: Tensor  # float32 [F, 3]
    areas: Tensor  # float32 [F]
    sides: Tensor  # float32 [F, 3] lengths
    area: float  # of the whole, also for parts
    count: int  # faces of the whole


def surface_of(mesh: Mesh, partner: Tensor) -> Surface:
    areas = face_areas(mesh.vertices, mesh.faces)
    return Surface(
        mesh,
        partner,
        torch.where(partner >= 0, partner // 3, -1),
        face_normals(mesh.vertices, mesh.faces),
        areas,
        side_lengths(mesh.vertices, mesh.faces),
        float(areas.double().sum()),
        len(mesh.faces),
    )


def part_of(surface: Surface, face: Tensor) -> Surface:
    """Some faces, in ascending order, as a surface of their own."""
    number = torch.full((len(surface.areas),), -1, dtype=torch.int64, device=face.device)
    number[face] = torch.arange(len(face), device=face.device)
    neighbor = torch.where(surface.neighbor[face] >= 0, number[surface.neighbor[face]], -1)
    partner = torch.where(neighbor >= 0, 3 * neighbor + surface.partner[face] % 3, -1)
    return replace(
        surface,
        mesh=Mesh(surface.mesh.vertices, surface.mesh.faces[face]),
        partner=partner,
        neighbor=neighbor,
        normals=surface.normals[face],
        areas=surface.areas[face],
        sides=surface.sides[face],
    )


@dataclass(frozen=True, slots=True)
class FlatCharts:
    """Every chart laid flat in its own frame, in world units."""

    vertex: Tensor  # int64 [W]      vertex of the mesh; charts share none
    chart: Tensor  # int64 [W]      chart of each flat vertex
    faces: Tensor  # int64 [F, 3]   into the flat vertices
    border: Tensor  # int64 [S, 2]   sides on borders of charts, flat vertices in the order of their faces
    points: Tensor  # float32 [W, 2] u right, v down seen from outside, from 0 upwards
    height: Tensor  # float32 [W]    along the chart's axis
    size: Tensor  # float32 [K, 2] extent of each chart


def flatten_charts(surface: Surface, chart: Tensor) -> FlatCharts:
    """Project each chart along its mean normal, and turn it to the smallest box around it."""
    axis, area = chart_axes(surface, chart)
    count = len(area)
    owner, vertex, faces = part_vertices(surface.mesh.faces.long(), chart, len(surface.mesh.vertices))
    right, down = chart_frames(axis)
    point = surface.mesh.vertices[vertex]
    flat = torch.stack([(point * right[owner]).sum(1), (point * down[owner]).sum(1)], dim=1)
    face, side = torch.nonzero(is_border(surface, chart), as_tuple=True)
    border = torch.stack([faces[face, side], faces[face, (side + 1) % 3]], dim=1)

    edge_owner = owner[border[:, 0]]
    angle = smallest_box(flat[border[:, 0]], edge_owner, count)
    cos, sin = torch.cos(angle)[owner], torch.sin(angle)[owner]
    flat = torch.stack([cos * flat[:, 0] + sin * flat[:, 1], cos * flat[:, 1] - sin * flat[:, 0]], dim=1)
    low, high = extremes(flat, owner, count)
    height = (point * axis[owner]).sum(1)
    return FlatCharts(vertex, owner, faces, border, flat - low[owner], height, high - low)


def chart_axes(surface: Surface, chart: Tensor) -> tuple[Tensor, Tensor]:
    """Area-weighted mean normal [K, 3], unit, and area [K] of each chart."""
    weighted = torch.cat([surface.areas[:, None] * surface.normals, surface.areas[:, None]], dim=1)
    total = sum_by(weighted, chart, int(chart.max()) + 1)
    axis = unit(total[:, :3])
    # A chart whose normals cancel out (a closed sliver of a piece) is cut apart by split_steep.
    upward = torch.tensor([0.0, 0.0, 1.0], device=axis.device)
    return torch.where(axis.norm(dim=1, keepdim=True) > 0, axis, upward), total[:, 3]


def chart_frames(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Right and down as seen against each axis, float32 [K, 3]."""
    helper = torch.zeros_like(axis)
    helper[:, 0] = axis[:, 0].abs() < 0.8
    helper[:, 1] = 1 - helper[:, 0]
    right = unit(torch.linalg.cross(helper, axis))
    return right, torch.linalg.cross(right, axis)


def part_vertices(faces: Tensor, chart: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give each chart vertices of its own: chart [W], vertex [W] and faces [F, 3] that use them.

    Most vertices are in one chart only and keep their place; the others are repeated at the end.
    """
    corner_chart = chart[:, None].expand(-1, 3).reshape(-1)
    corner = faces.reshape(-1)
    none = torch.iinfo(torch.int64).max
    owner = torch.full((count,), none, device=faces.device).scatter_reduce(0, corner, corner_chart, "amin")
    shared = torch.nonzero(owner[corner] != corner_chart).squeeze(1)
    key, inverse = torch.unique(corner_chart[shared] * count + corner[shared], return_inverse=True)
    kept = torch.nonzero(owner != none).squeeze(1)
    number = torch.empty(count, dtype=torch.int64, device=faces.device)
    number[kept] = torch.arange(len(kept), device=faces.device)
    parted = number[corner]
    parted[shared] = len(kept) + inverse
    return torch.cat([owner[kept], key // count]), torch.cat([kept, key % count]), parted.reshape(-1, 3)


def is_border(surface: Surface, chart: Tensor) -> Tensor:
    """Which sides have no counterpart in their chart, bool [F, 3]; two that run the same way are none."""
    near = surface.neighbor.clamp_min(0)
    inside = (surface.neighbor >= 0) & (chart[near] == chart[:, None])
    ends = surface.mesh.faces.reshape(-1)
    across = surface.partner.clamp_min(0)
    return ~(inside & (ends[next_corner(across)] == surface.mesh.faces))


def smallest_box(points: Tensor, owner: Tensor, count: int) -> Tensor:
    """Angle by which each chart's box is smallest and lies, float32 [K], from points [S, 2] on its border."""
    step = 0.5 * math.pi / TURNS
    angle = step * torch.arange(2 * TURNS, device=points.device)
    across = points[:, :1] * torch.cos(angle) + points[:, 1:] * torch.sin(angle)
    low, high = extremes(across, owner, count)
    width, height = (high - low).split(TURNS, dim=1)
    best = (width * height).argmin(1, keepdim=True)
    stands = width.gather(1, best) < height.gather(1, best)
    return step * (best + TURNS * stands).squeeze(1)


def extremes(values: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each owner, [K, C] each."""
    index = owner[:, None].expand_as(values)
    low = torch.full((count, values.shape[1]), torch.inf, dtype=values.dtype, device=values.device)
    return low.scatter_reduce(0, index, values, "amin"), (-low).scatter_reduce(0, index, values, "amax")
