"""Rays against a triangle mesh: the plain torch references, on any device.

`ray_cast` finds the first hit of each ray, `open_sky` how much of the sky above each point nothing hides.
The box tree of `closest_point.py` is walked level by level for many rays at once.
Letters: Q rays or points, K directions, V vertices, F faces, P (ray, triangle) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trellis_core.kernels.closest_point import BRANCH, PAIRS, Tree, build_tree, nothing_found

SLACK = 1e-6  # by which barycentric coordinates may be negative: no ray slips between two triangles
TINY = 1e-30


@torch.no_grad()
def ray_cast(
    origins: Tensor,  # float32 [Q, 3]
    directions: Tensor,  # float32 [Q, 3]  unit
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor,  # int32 [F, 3]
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:  # float32 [Q], int32 [Q], float32 [Q, 3]
    """Distance to the first triangle ahead, from either side, its number and where on it (barycentric).

    Where no triangle is within `max_distance` the distance is infinite, the face -1 and the coordinates 0. Of
    triangles at the same distance the lowest number wins.
    """
    if not len(faces) or not len(origins):
        return nothing_found(origins)
    tree = build_tree(vertices[faces.long()].float())
    size = PAIRS // 64
    parts = [
        first_hits(start, along, tree, max_distance)
        for start, along in zip(origins.float().split(size), directions.float().split(size), strict=True)
    ]
    distance, face, bary = (torch.cat(column) for column in zip(*parts, strict=True))
    return distance, face, bary


@torch.no_grad()
def open_sky(
    points: Tensor,  # float32 [Q, 3]
    normals: Tensor,  # float32 [Q, 3]  unit; the sky is above them
    turns: Tensor,  # float32 [Q]  radians by which a point's directions are turned around its normal
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor,  # int32 [F, 3]
    directions: Tensor,  # float32 [K, 3]  unit, in a frame whose z is the normal
    max_distance: float,
) -> Tensor:  # float32 [Q]  in [0, 1]
    """Share of the directions in which nothing is within `max_distance`."""
    free = torch.zeros(len(points), device=points.device)
    for direction in directions:
        along = turned_directions(direction, normals.float(), turns.float())
        _, face, _ = ray_cast(points, along, vertices, faces, max_distance)
        free += (face < 0).float()
    return free / max(len(directions), 1)


def turned_directions(
    direction: Tensor,  # float32 [3]
    normals: Tensor,  # float32 [Q, 3]
    turns: Tensor,  # float32 [Q]
) -> Tensor:  # float32 [Q, 3]
    """One direction in the frame of each normal (Duff et al., "Building an orthonormal basis", 2017)."""
    x, y, z = normals.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    one = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], 1)
    other = torch.stack([b, sign + y * y * a, -y], 1)
    cos, sin = turns.cos(), turns.sin()
    u = direction[0] * cos - direction[1] * sin
    v = direction[0] * sin + direction[1] * cos
    return u[:, None] * one + v[:, None] * other + direction[2] * normals


def first_hits(
    origins: Tensor, directions: Tensor, tree: Tree, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    distance, face, bary = nothing_found(origins)
    for rays, leaves in reach_leaves(origins, directions, tree, max_distance):
        candidates = tree.leaves[leaves]
        ray = rays[:, None].expand_as(candidates).reshape(-1)
        candidates = candidates.reshape(-1)
        far, weight = hit_triangles(origins[ray], directions[ray], tree.triangles[candidates])
        ahead = torch.isfinite(far) & (far <= max_distance)
        ray, candidates, far, weight = ray[ahead], candidates[ahead], far[ahead], weight[ahead]
        nearest = distance.scatter_reduce(0, ray, far, "amin")
        wins = far == nearest[ray]
        number = torch.where(nearest < distance, len(tree.triangles), torch.where(face < 0, 1 << 30, face))
        number = number.long().scatter_reduce(0, ray[wins], candidates[wins], "amin")
        wins &= candidates == number[ray]
        distance = nearest
        face[ray[wins]] = candidates[wins].int()
        bary[ray[wins]] = weight[wins]
    return distance, face, bary


def reach_leaves(
    origins: Tensor, directions: Tensor, tree: Tree, max_distance: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """All (ray, leaf) pairs whose box the ray enters within `max_distance`, in pieces of bounded size."""
    everyone = torch.arange(len(origins), device=origins.device)
    open_pairs = [(0, everyone, torch.zeros_like(everyone))]
    children = torch.arange(BRANCH, device=origins.device)
    last = len(tree.boxes) - 1
    safe = torch.where(directions.abs() < TINY, TINY, directions)
    while open_pairs:
        level, ray, node = open_pairs.pop()
        if level == last:
            yield ray, node
            continue
        options = node[:, None] * BRANCH + children
        boxes = tree.boxes[level + 1][options]
        start, along = origins[ray][:, None], safe[ray][:, None]
        one, other = (boxes[..., 0, :] - start) / along, (boxes[..., 1, :] - start) / along
        enter = torch.minimum(one, other).amax(-1).clamp_min(0)
        leave = torch.maximum(one, other).amin(-1)
        row, child = ((enter <= leave * (1 + 1e-5) + 1e-7) & (enter <= max_distance)).nonzero(as_tuple=True)
        ray, node = ray[row], options[row, child]
        for part in range(0, len(ray), PAIRS // BRANCH):
            piece = slice(part, part + PAIRS // BRANCH)
            open_pairs.append((level + 1, ray[piece], node[piece]))


def hit_triangles(
    origins: Tensor,  # float32 [P, 3]
    directions: Tensor,  # float32 [P, 3]
    triangles: Tensor,  # float32 [P, 3, 3]
) -> tuple[Tensor, Tensor]:  # float32 [P] inf where missed, float32 [P, 3] barycentric
    """Möller & Trumbore, "Fast, minimum storage ray/triangle intersection" (1997), from both sides."""
    a, b, c = triangles.double().unbind(1)
    start, along = origins.double(), directions.double()
    ab, ac, to_start = b - a, c - a, start - a
    across = torch.linalg.cross(along, ac)
    determinant = (ab * across).sum(1)
    safe = torch.where(determinant.abs() < TINY, TINY, determinant)
    beta = (to_start * across).sum(1) / safe
    turned = torch.linalg.cross(to_start, ab)
    gamma = (along * turned).sum(1) / safe
    far = (ac * turned).sum(1) / safe
    alpha = 1 - beta - gamma
    hit = (determinant.abs() >= TINY) & (far >= 0)
    hit &= (alpha >= -SLACK) & (beta >= -SLACK) & (gamma >= -SLACK)
    weight = torch.stack([alpha, beta, gamma], 1).float()
    return torch.where(hit, far, torch.inf).float(), weight
