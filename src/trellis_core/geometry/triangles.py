"""Measures of single triangles: area, normal, shape. Letters: V vertices, F faces."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def face_cross(vertices: Tensor, faces: Tensor) -> Tensor:
    """Cross product of two sides, [F, 3]: twice the area along the normal."""
    a, b, c = vertices[faces.long()].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def face_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """Areas, [F]."""
    return 0.5 * face_cross(vertices, faces).norm(dim=1)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals, [F, 3]; zero where a face has no area."""
    return unit(face_cross(vertices.double(), faces)).to(vertices.dtype)


def side_lengths(vertices: Tensor, faces: Tensor) -> Tensor:
    """Lengths of sides 01, 12, 20, [F, 3]."""
    corners = vertices[faces.long()]
    return (corners.roll(-1, dims=1) - corners).norm(dim=2)


def aspect_ratios(vertices: Tensor, faces: Tensor) -> Tensor:
    """Longest side * perimeter / (4 sqrt(3) area), [F]: 1 for an equilateral triangle, inf without area."""
    sides = side_lengths(vertices.double(), faces)
    area = face_areas(vertices.double(), faces)
    ratio = sides.amax(1) * sides.sum(1) / (4 * math.sqrt(3) * area)
    return torch.where(area > 0, ratio, torch.inf)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length one, [..., 3]; zero stays zero."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny), 0.0)
