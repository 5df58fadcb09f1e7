"""Closest point on a triangle mesh: the plain torch reference, exact, on any device.

A balanced box tree (each group of triangles is halved along its longest axis) is walked level by level for
many queries at once. Letters: Q queries, V vertices, F faces, P (query, triangle) pairs, L leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BRANCH = 8  # children per node: three halvings
LEAF = 8  # triangles per leaf, at most
PAIRS = 1 << 19  # (query, box) pairs at a time; bounds the memory
SLACK = 1 + 1e-5  # a box may be farther than the best hit by rounding alone


@torch.no_grad()
def closest_point(
    points: Tensor,  # float32 [Q, 3]
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor,  # int32 [F, 3]
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:  # float32 [Q], int32 [Q], float32 [Q, 3]
    """Distance to the nearest triangle, its number and the barycentric coordinates of the nearest point.

    Where no triangle is within `max_distance` the distance is infinite, the face -1 and the coordinates 0. Of
    equally near triangles the lowest number wins.
    """
    if not len(faces) or not len(points):
        return nothing_found(points)
    tree = build_tree(vertices[faces.long()].float())
    parts = [nearest_in_tree(part, tree, max_distance) for part in points.float().split(PAIRS // 64)]
    distance, face, bary = (torch.cat(column) for column in zip(*parts, strict=True))
    return distance, face, bary


def nothing_found(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    distance = points.new_full((len(points),), float("inf"), dtype=torch.float32)
    face = torch.full((len(points),), -1, dtype=torch.int32, device=points.device)
    return distance, face, points.new_zeros(len(points), 3, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Tree:
    triangles: Tensor  # float32 [F, 3, 3]
    leaves: Tensor  # int64 [L, LEAF]   face numbers; the last ones may repeat
    boxes: tuple[Tensor, ...]  # per level float32 [BRANCH ** level, 2, 3]; the last level has L boxes


def build_tree(triangles: Tensor) -> Tree:
    levels = 0
    while LEAF * BRANCH**levels < len(triangles):
        levels += 1
    count = BRANCH**levels
    width = -(-len(triangles) // count)
    groups = torch.arange(count * width, device=triangles.device).clamp_(max=len(triangles) - 1)[None]
    low, high = triangles.amin(1), triangles.amax(1)
    center = (low + high) / 2
    while groups.shape[1] > width:
        where = center[groups]
        axis = (where.amax(1) - where.amin(1)).argmax(1)
        along = where.gather(2, axis[:, None, None].expand(-1, groups.shape[1], 1)).squeeze(2)
        groups = groups.gather(1, along.argsort(dim=1, stable=True)).reshape(groups.shape[0] * 2, -1)
    box = torch.stack([low[groups].amin(1), high[groups].amax(1)], 1)
    boxes = [box]
    while len(boxes[0]) > 1:
        parent = boxes[0].reshape(-1, BRANCH, 2, 3)
        boxes.insert(0, torch.stack([parent[:, :, 0].amin(1), parent[:, :, 1].amax(1)], 1))
    return Tree(triangles, groups, tuple(boxes))


def nearest_in_tree(points: Tensor, tree: Tree, max_distance: float) -> tuple[Tensor, Tensor, Tensor]:
    everyone = torch.arange(len(points), device=points.device)
    limit = torch.full((len(points),), float(max_distance), device=points.device).square()
    limit = torch.minimum(limit, greedy_limit(points, tree)) * SLACK
    distance, face, bary = nothing_found(points)
    best = distance.clone()
    for queries, leaves in reach_leaves(points, tree, limit, everyone):
        candidates = tree.leaves[leaves]
        query = queries[:, None].expand_as(candidates).reshape(-1)
        candidates = candidates.reshape(-1)
        coordinates, squared = closest_on_triangles(points[query], tree.triangles[candidates])
        found = torch.full_like(best, float("inf")).scatter_reduce(0, query, squared, "amin")
        wins = squared == found[query]
        number = torch.full((len(points),), len(tree.triangles), device=points.device)
        number = number.scatter_reduce(0, query[wins], candidates[wins], "amin")
        wins &= candidates == number[query]
        better = (found < best) | ((found == best) & (number < face))
        taken = wins & better[query]
        bary[query[taken]] = coordinates[taken]
        face = torch.where(better, number.int(), face)
        best = torch.where(better, found, best)
    hit = best.sqrt() <= max_distance
    distance = torch.where(hit, best.sqrt(), distance)
    return distance, torch.where(hit, face, -1), torch.where(hit[:, None], bary, 0.0)


def greedy_limit(points: Tensor, tree: Tree) -> Tensor:
    """Squared distance to the best triangle in the leaf that the nearest boxes lead to: float32 [Q]."""
    node = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    children = torch.arange(BRANCH, device=points.device)
    for box in tree.boxes[1:]:
        options = node[:, None] * BRANCH + children
        nearest = squared_distance_to_box(points[:, None], box[options]).argmin(1, keepdim=True)
        node = options.gather(1, nearest).squeeze(1)
    candidates = tree.leaves[node]
    query = torch.arange(len(points), device=points.device)[:, None].expand_as(candidates).reshape(-1)
    _, squared = closest_on_triangles(points[query], tree.triangles[candidates.reshape(-1)])
    return squared.reshape(candidates.shape).amin(1)


def reach_leaves(
    points: Tensor, tree: Tree, limit: Tensor, queries: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """All (query, leaf) pairs closer than the query's limit, in pieces of bounded size."""
    open_pairs = [(0, queries, torch.zeros_like(queries))]
    children = torch.arange(BRANCH, device=points.device)
    last = len(tree.boxes) - 1
    while open_pairs:
        level, query, node = open_pairs.pop()
        if level == last:
            yield query, node
            continue
        options = node[:, None] * BRANCH + children
        near = (
            squared_distance_to_box(points[query][:, None], tree.boxes[level + 1][options])
            <= limit[query, None]
        )
        row, child = near.nonzero(as_tuple=True)
        query, node = query[row], options[row, child]
        for part in range(0, len(query), PAIRS // BRANCH):
            piece = slice(part, part + PAIRS // BRANCH)
            open_pairs.append((level + 1, query[piece], node[piece]))


def squared_distance_to_box(points: Tensor, boxes: Tensor) -> Tensor:
    """Points [..., 3], boxes [..., 2, 3] -> [...]."""
    outside = torch.maximum(boxes[..., 0, :] - points, points - boxes[..., 1, :]).clamp_min_(0)
    return outside.square().sum(-1)


def closest_on_triangles(
    points: Tensor,  # float32 [P, 3]
    triangles: Tensor,  # float32 [P, 3, 3]
) -> tuple[Tensor, Tensor]:  # float32 [P, 3] barycentric, float32 [P] squared distance
    """The foot of the perpendicular where it is inside, else the nearest point of the three edges."""
    a, b, c = triangles.unbind(1)
    v = points - a
    ab, ac = b - a, c - a
    bb, bc, cc = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    vb, vc = (v * ab).sum(1), (v * ac).sum(1)
    area = bb * cc - bc * bc
    safe = area.clamp_min(torch.finfo(area.dtype).tiny)
    beta, gamma = (cc * vb - bc * vc) / safe, (bb * vc - bc * vb) / safe
    zero = torch.zeros_like(beta)
    on_ab = share(vb, bb)
    on_ac = share(vc, cc)
    on_bc = share(vc - vb - bc + bb, bb - 2 * bc + cc)
    # (beta, gamma) of the four candidates
    beta = torch.stack([beta, on_ab, zero, 1 - on_bc])
    gamma = torch.stack([gamma, zero, on_ac, on_bc])
    offset = v - beta[..., None] * ab - gamma[..., None] * ac
    squared = offset.square().sum(-1)
    in_face = (beta[0] >= 0) & (gamma[0] >= 0) & (beta[0] + gamma[0] <= 1) & (area > 0)
    squared[0] = torch.where(in_face, squared[0], float("inf"))
    choice = squared.argmin(0, keepdim=True)
    squared, beta, gamma = (x.gather(0, choice).squeeze(0) for x in (squared, beta, gamma))
    return torch.stack([1 - beta - gamma, beta, gamma], 1), squared


def share(along: Tensor, length: Tensor) -> Tensor:
    """Parameter of the nearest point on a segment; 0 on a segment without length."""
    return (along / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(0, 1)
