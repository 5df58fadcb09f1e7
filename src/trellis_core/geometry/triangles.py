"""Measures of single triangles: area, normal, shape. Letters: V vertices, F faces.

Large meshes are measured a part at a time: temporaries stay small and in the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1 << 18  # faces at a time


def measure(vertices: Tensor, faces: Tensor, of_corners: Callable[[Tensor], Tensor]) -> Tensor:
    """Values of `of_corners` (float [C, 3, 3] -> [C, ...]) for all faces."""
    if len(faces) <= CHUNK:
        return of_corners(vertices[faces.long()])
    return torch.cat([of_corners(vertices[part.long()]) for part in faces.split(CHUNK)])


def cross(corners: Tensor) -> Tensor:
    """Cross product of two sides, [F, 3]: twice the area along the normal."""
    a, b, c = corners.unbind(1)
    return torch.linalg.cross(b - a, c - a)


def face_areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """Areas, [F]."""
    return measure(vertices, faces, lambda corners: 0.5 * cross(corners).norm(dim=1))


def face_centers(vertices: Tensor, faces: Tensor) -> Tensor:
    """Means of the corners, [F, 3]."""
    return measure(vertices, faces, lambda corners: corners.mean(1))


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals, [F, 3]; zero where a face has no area."""
    return measure(vertices, faces, normals)


def normals(corners: Tensor) -> Tensor:
    return unit(cross(corners.double())).to(corners.dtype)


def side_lengths(vertices: Tensor, faces: Tensor) -> Tensor:
    """Lengths of sides 01, 12, 20, [F, 3]."""
    return measure(vertices, faces, lengths)


def lengths(corners: Tensor) -> Tensor:
    return (corners.roll(-1, dims=1) - corners).norm(dim=2)


def aspect_ratios(vertices: Tensor, faces: Tensor) -> Tensor:
    """Longest side * perimeter / (4 sqrt(3) area), [F]: 1 for an equilateral triangle, inf without area."""

    def ratios(corners: Tensor) -> Tensor:
        corners = corners.double()
        sides, area = lengths(corners), 0.5 * cross(corners).norm(dim=1)
        return torch.where(area > 0, sides.amax(1) * sides.sum(1) / (4 * math.sqrt(3) * area), torch.inf)

    return measure(vertices, faces, ratios)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length one, [..., 3]; zero stays zero."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny), 0.0)
