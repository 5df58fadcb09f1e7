"""Triangles of a mesh that pass through each other.

Pairs are found in the box tree of the closest-point reference; a pair intersects where a side of one triangle
passes through the other. Letters: F faces, P pairs of faces, L leaves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trellis_core.geometry.types import Mesh
from trellis_core.kernels.closest_point import BRANCH, PAIRS, Tree, build_tree

FLAT = 1e-9  # relative: sides this parallel to a triangle do not pass through it


def self_intersections(mesh: Mesh) -> Tensor:  # int64 [P, 2]
    """Pairs of faces that pass through each other, the lower number first.

    What meets at a common vertex counts only where it passes through elsewhere as well. Triangles that merely
    touch, or lie on each other in one plane, do not count.
    """
    if not len(mesh.faces):
        return torch.zeros(0, 2, dtype=torch.int64)
    faces = mesh.faces.long().cpu()
    corners = mesh.vertices.cpu()[faces]
    found = [
        pairs[intersect(corners, faces, pairs)] for pairs in close_pairs(corners, faces, build_tree(corners))
    ]
    pairs = torch.cat(found) if found else faces[:0, :2]
    return torch.unique(pairs, dim=0)


def close_pairs(corners: Tensor, faces: Tensor, tree: Tree) -> Iterator[Tensor]:  # int64 [P, 2] each
    """Pairs whose boxes overlap and that do not share a side."""
    low, high = corners.amin(1), corners.amax(1)
    everyone = torch.arange(len(faces))
    open_pairs = [(0, part, torch.zeros_like(part)) for part in everyone.split(PAIRS // 64)]
    children = torch.arange(BRANCH)
    last = len(tree.boxes) - 1
    while open_pairs:
        level, face, node = open_pairs.pop()
        if level == last:
            other = tree.leaves[node]
            face = face[:, None].expand_as(other)
            near = (other > face) & boxes_meet(low[face], high[face], low[other], high[other])
            pairs = torch.stack([face[near], other[near]], 1)
            shared = (faces[pairs[:, 0]][:, :, None] == faces[pairs[:, 1]][:, None]).sum((1, 2))
            yield pairs[shared < 2]
            continue
        options = node[:, None] * BRANCH + children
        box = tree.boxes[level + 1][options]
        near = boxes_meet(low[face][:, None], high[face][:, None], box[..., 0, :], box[..., 1, :])
        row, child = near.nonzero(as_tuple=True)
        face, node = face[row], options[row, child]
        for start in range(0, len(face), PAIRS // BRANCH):
            piece = slice(start, start + PAIRS // BRANCH)
            open_pairs.append((level + 1, face[piece], node[piece]))


def boxes_meet(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor) -> Tensor:
    return ((low <= other_high) & (other_low <= high)).all(-1)


def intersect(corners: Tensor, faces: Tensor, pairs: Tensor) -> Tensor:  # bool [P]
    """Whether a side of one triangle passes through the other; sides at a common vertex do not count."""
    result = torch.zeros(len(pairs), dtype=torch.bool)
    for one, other in (pairs.unbind(1), pairs.flip(1).unbind(1)):
        shared = (faces[one][:, :, None] == faces[other][:, None]).any(2)
        height = heights_above(corners[other].double(), corners[one].double())
        for side in range(3):
            ends = [side, (side + 1) % 3]
            below, above = height[:, ends].aminmax(dim=1)
            row = torch.nonzero(~shared[:, ends].any(1) & (below <= 0) & (above >= 0)).reshape(-1)
            start, end = corners[one[row]][:, ends].double().unbind(1)
            result[row] |= passes_through(start, end, corners[other[row]].double())
    return result


def heights_above(triangle: Tensor, points: Tensor) -> Tensor:
    """Heights of points [P, 3, 3] above the planes of triangles [P, 3, 3], times an area; float64 [P, 3]."""
    a, b, c = triangle.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    return ((points - a[:, None]) * normal[:, None]).sum(2)


def passes_through(start: Tensor, end: Tensor, triangle: Tensor) -> Tensor:
    """Whether segments (float64 [P, 3] each) pass through the inside of triangles [P, 3, 3]."""
    a, b, c = (triangle - start[:, None]).unbind(1)
    along = end - start
    normal = torch.linalg.cross(b - a, c - a)
    rise, height = (along * normal).sum(1), (a * normal).sum(1)
    steep = rise.abs() > FLAT * along.norm(dim=1) * normal.norm(dim=1)
    share = height / torch.where(steep, rise, 1.0)
    volumes = torch.stack([(along * torch.linalg.cross(p, q)).sum(1) for p, q in ((b, c), (c, a), (a, b))])
    inside = (volumes > 0).all(0) | (volumes < 0).all(0)
    return steep & inside & (share > 0) & (share < 1)
