"""Meshes to occupied voxels, by an exact test of boxes against triangles.

Akenine-Moller, "Fast 3D Triangle-Box Overlap Testing" (2001): two convex bodies touch unless an axis
separates them; here thirteen axes, in double precision.
Letters: V vertices, F faces, P pairs of a voxel and a face, R grid resolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.sparse.order import key_coords, linear_keys

EDGE = 0.5 - 1e-6  # a normalised mesh stays this far inside the unit cube
CHUNK = 1 << 20  # pairs at a time


def normalized(
    vertices: Tensor,  # float [V, 3]
) -> Tensor:  # float64 [V, 3]
    """Centre the bounding box and scale its longest side to 1; axes stay as they are.

    Raises `InputError` for a mesh without extent.
    """
    low, high = vertices.double().aminmax(dim=0) if len(vertices) else (vertices, vertices)
    if not len(vertices) or not bool((high > low).any()) or not bool((high - low).isfinite().all()):
        raise InputError("the mesh has no extent", hint="give a mesh with at least one triangle")
    placed = (vertices.double() - (low + high) / 2) / (high - low).max()
    return placed.clamp(-EDGE, EDGE)


def occupied_by(
    mesh: Mesh,  # in the unit cube
    resolution: int,
) -> Tensor:  # int32 [N, 3]  sorted, x slowest
    """Every voxel that a triangle touches. Raises `InputError` for a mesh without faces."""
    if not len(mesh.faces):
        raise InputError("the mesh has no faces", hint="give a mesh with at least one triangle")
    # in units of voxels, a voxel is the box from its coordinates to one more
    corners = ((mesh.vertices.double() + 0.5) * resolution)[mesh.faces.long()]  # [F, 3, 3]
    low = (corners.amin(1).ceil().long() - 1).clamp(0, resolution - 1)  # a box that is merely touched counts
    high = corners.amax(1).floor().long().clamp(0, resolution - 1)
    size = high - low + 1
    pairs = size.prod(1)
    keys = []
    for first, last in spans(pairs, CHUNK):
        face = torch.repeat_interleave(torch.arange(first, last, device=low.device), pairs[first:last])
        number = torch.arange(len(face), device=low.device)
        number = number - torch.repeat_interleave(
            pairs[first:last].cumsum(0) - pairs[first:last], pairs[first:last]
        )
        voxel = low[face] + key_coords_of(number, size[face])
        hit = touches(corners[face] - voxel[:, None] - 0.5)
        keys.append(torch.unique(linear_keys(voxel[hit], (resolution,) * 3)))
    return key_coords(torch.unique(torch.cat(keys)), (resolution,) * 3)


def spans(pairs: Tensor, limit: int) -> list[tuple[int, int]]:
    """Ranges of faces with about `limit` pairs each; a face with more has a range of its own."""
    ends = pairs.cumsum(0)
    edges = [0]
    while edges[-1] < len(pairs):
        done = int(ends[edges[-1] - 1]) if edges[-1] else 0
        reach = int(torch.searchsorted(ends, done + limit, right=True))
        edges.append(min(max(reach, edges[-1] + 1), len(pairs)))
    return list(pairwise(edges))


def key_coords_of(number: Tensor, size: Tensor) -> Tensor:  # int64 [P, 3]
    """Cell `number` of a box of `size` cells, x slowest; every row has a box of its own."""
    z = number % size[:, 2]
    y = number // size[:, 2] % size[:, 1]
    return torch.stack([number // (size[:, 1] * size[:, 2]), y, z], dim=1)


def touches(
    corners: Tensor,  # float64 [P, 3, 3]  triangles, seen from the centre of a unit box
) -> Tensor:  # bool [P]
    """Whether a closed triangle and the closed box have a point in common.

    The axes of the box are not tried: pairs come from the triangle's bounding box.
    """
    sides = corners.roll(-1, dims=1) - corners
    normal = torch.linalg.cross(sides[:, 0], sides[:, 1])
    hit = (normal * corners[:, 0]).sum(1).abs() <= 0.5 * normal.abs().sum(1)
    for axis in range(3):
        unit = torch.zeros(3, dtype=corners.dtype, device=corners.device)
        unit[axis] = 1
        for side in range(3):
            across = torch.linalg.cross(unit.expand(len(corners), 3), sides[:, side])
            reach = 0.5 * across.abs().sum(1)
            along = (corners * across[:, None]).sum(2)
            hit &= (along.amin(1) <= reach) & (along.amax(1) >= -reach)
    return hit
