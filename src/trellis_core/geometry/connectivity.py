"""How triangles hang together: edges, neighbours, components, boundaries.

Knows nothing about positions. A side is one directed edge of one face: side `3 * f + s` of face f goes
from corner s to corner (s + 1) % 3. An edge is an unordered vertex pair.
Letters: V vertices, F faces, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_KEY = 1 << 62


@dataclass(frozen=True, slots=True)
class Edges:
    """The edges of a triangle list, sorted by (low vertex, high vertex)."""

    vertices: Tensor  # int64 [E, 2]  low, high
    face_count: Tensor  # int64 [E]     sides that lie on the edge
    of_side: Tensor  # int64 [F, 3]  edge of each side
    sides: Tensor  # int64 [3F]    all sides, edge by edge


def edges_of(
    faces: Tensor,  # int [F, 3]
) -> Edges:
    """Find all edges of a triangle list."""
    if len(faces) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=faces.device)
        return Edges(none.reshape(0, 2), none, none.reshape(0, 3), none)
    start = faces.long()
    end = start.roll(-1, dims=1)
    count = int(start.max()) + 1
    keys = torch.minimum(start, end) * count + torch.maximum(start, end)
    keys, sides = torch.sort(keys.reshape(-1), stable=True)
    keys, edge, face_count = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    of_side = torch.empty_like(sides)
    of_side[sides] = edge
    low = keys // count
    vertices = torch.stack([low, keys - low * count], dim=1)
    return Edges(vertices, face_count, of_side.reshape(-1, 3), sides)


def partner_sides(edges: Edges) -> Tensor:
    """The side on the other face of each two-face edge; int64 [F, 3], -1 elsewhere."""
    flat = edges.of_side.reshape(-1)
    partner = torch.full_like(flat, -1)
    first, second = sides_of_edges(edges, edges.face_count == 2)
    partner[first] = second
    partner[second] = first
    return partner.reshape(-1, 3)


def sides_of_edges(edges: Edges, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """First two sides, by number, of the chosen edges (bool [E], each with at least two sides)."""
    start = (torch.cumsum(edges.face_count, 0) - edges.face_count)[chosen]
    return edges.sides[start], edges.sides[start + 1]


def connected_components(
    pairs: Tensor,  # int64 [P, 2]
    count: int,
) -> Tensor:  # int64 [count]  smallest member of each node's component
    """Label nodes 0 .. count-1 by component: hook the larger root to the smaller, then jump pointers.

    Shiloach & Vishkin, "An O(log n) parallel connectivity algorithm" (1982).
    """
    labels = torch.arange(count, device=pairs.device)
    one, other = pairs.unbind(1)
    while True:
        open_pairs = torch.nonzero(one != other).squeeze(1)
        if len(open_pairs) == 0:
            return labels
        one, other = one[open_pairs], other[open_pairs]
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        labels.scatter_reduce_(0, high, low, "amin")
        while True:
            jumped = labels[labels]
            if torch.equal(jumped, labels):
                break
            labels = jumped
        one, other = labels[low], labels[high]


def row_keys(
    rows: Tensor,  # int [N, K]
) -> Tensor:  # int64 [N]
    """One number per row, equal exactly where rows are equal."""
    rows = rows.long()
    key, size = torch.zeros_like(rows[:, 0]), 1
    if len(rows) == 0:
        return key
    for column in rows.unbind(1):
        low, high = (int(x) for x in torch.aminmax(column))
        digit, base = column - low, high - low + 1
        if size * base > LARGEST_KEY:
            key, size = number_labels(key)
        if size * base > LARGEST_KEY:
            digit, base = number_labels(column)
        key, size = key * base + digit, size * base
    return key


def first_of_each(
    keys: Tensor,  # int64 [N]
) -> Tensor:  # bool [N]
    """True for the first of equal keys."""
    ordered, order = torch.sort(keys, stable=True)
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    first[order[1:][ordered[1:] == ordered[:-1]]] = False
    return first


def sum_by(
    values: Tensor,  # float [N, ...]
    owner: Tensor,  # int64 [N]  in 0 .. count-1
    count: int,
) -> Tensor:  # float [count, ...]
    """Sum of the values of each owner, the same to the last bit every time.

    Atomic additions on a GPU come in any order, so there the values are sorted and summed in segments.
    """
    if values.device.type == "cpu" or len(values) == 0:
        return torch.zeros(count, *values.shape[1:], dtype=values.dtype, device=values.device).index_add_(
            0, owner, values
        )
    lengths = torch.bincount(owner, minlength=count)
    ordered = values[torch.argsort(owner, stable=True)]
    return torch.segment_reduce(ordered, "sum", lengths=lengths, axis=0, initial=0)


def number_labels(labels: Tensor) -> tuple[Tensor, int]:
    """Renumber labels to 0 .. n-1 in ascending order; returns (numbers, n)."""
    unique, numbers = torch.unique(labels, return_inverse=True)
    return numbers, len(unique)


def face_components(partner: Tensor) -> Tensor:
    """Component of each face, int64 [F]: faces are joined through their partner sides."""
    side = torch.nonzero(partner.reshape(-1) >= 0).reshape(-1)
    pairs = torch.stack([side // 3, partner.reshape(-1)[side] // 3], dim=1)
    return connected_components(pairs[pairs[:, 0] < pairs[:, 1]], len(partner))


def side_ends(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end vertex of every side, int64 [3F] each."""
    start = faces.long()
    return start.reshape(-1), start.roll(-1, dims=1).reshape(-1)


def corner_classes(faces: Tensor, partner: Tensor) -> Tensor:
    """Corners that belong together, int64 [F, 3]: numbered by first appearance.

    Corners are joined across partner sides only, so a class is one fan of faces around one vertex.
    """
    start, end = side_ends(faces)
    side = torch.nonzero(partner.reshape(-1) >= 0).reshape(-1)
    other = partner.reshape(-1)[side]
    keep = side < other
    side, other = side[keep], other[keep]
    opposed = (
        start[side] == end[other]
    )  # the usual case: neighbours run along the edge in opposite directions
    at_start = torch.where(opposed, next_corner(other), other)
    at_end = torch.where(opposed, other, next_corner(other))
    pairs = torch.cat([torch.stack([side, at_start], 1), torch.stack([next_corner(side), at_end], 1)])
    classes, _ = number_labels(connected_components(pairs, 3 * len(faces)))
    return classes.reshape(-1, 3)


def next_corner(corner: Tensor) -> Tensor:
    """The following corner of the same face (corners are numbered 3 * f + s)."""
    return corner - corner % 3 + (corner + 1) % 3


@dataclass(frozen=True, slots=True)
class VertexFlags:
    boundary: Tensor  # bool [V]  touches an edge with one face
    manifold: Tensor  # bool [V]  at most two boundary edges and no edge with more than two faces


def vertex_flags(edges: Edges, vertex_count: int) -> VertexFlags:
    """Which vertices lie on a boundary, and which have a clean neighbourhood."""

    def touching(chosen: Tensor) -> Tensor:
        return torch.bincount(edges.vertices[chosen].reshape(-1), minlength=vertex_count)

    boundary_edges = touching(edges.face_count == 1)
    crowded_edges = touching(edges.face_count > 2)
    return VertexFlags(boundary_edges > 0, (boundary_edges <= 2) & (crowded_edges == 0))


def boundary_loops(
    faces: Tensor,  # int [F, 3]
    partner: Tensor,  # int64 [F, 3]
) -> list[list[int]]:
    """Closed chains of sides without a partner, as vertex lists, each vertex at most once.

    A loop runs against (most of) the sides it borders, so faces made from it in order are wound like their
    neighbours. A chain that touches itself at a vertex is cut into simple loops there.
    """
    start, end = side_ends(faces)
    free = torch.nonzero(partner.reshape(-1) < 0).reshape(-1)
    if len(free) == 0:
        return []
    # Only fans around ends of free sides are asked for, and these faces hold them whole.
    at_end = torch.zeros(int(end.max()) + 1, dtype=torch.bool, device=faces.device)
    at_end[start[free]] = at_end[end[free]] = True
    near = torch.nonzero(at_end[faces.long()].any(1)).reshape(-1)
    number = torch.full((len(faces),), -1, device=faces.device)
    number[near] = torch.arange(len(near), device=faces.device)
    across = partner[near]
    across_face = torch.where(across >= 0, number[across // 3], -1)
    near_partner = torch.where(across_face >= 0, 3 * across_face + across % 3, -1)
    classes = corner_classes(faces[near], near_partner).reshape(-1)
    corner = 3 * number[free // 3] + free % 3
    # Every open fan has two ends: number 2 * i is the start of free side i, and 2 * i + 1 its end.
    fan = torch.stack([classes[corner], classes[next_corner(corner)]], dim=1).reshape(-1)
    order = torch.argsort(fan, stable=True)
    across = torch.empty_like(order)
    across[order[0::2]], across[order[1::2]] = order[1::2], order[0::2]
    vertex = torch.stack([start[free], end[free]], dim=1).reshape(-1).tolist()
    next_end = across.tolist()
    visited = [False] * len(free)
    loops: list[list[int]] = []
    for first in range(len(free)):
        chain, backward, place = [], 0, 2 * first + 1
        while not visited[place // 2]:
            visited[place // 2] = True
            backward += 1 if place % 2 else -1
            chain.append(vertex[place ^ 1])
            place = next_end[place ^ 1]
        if chain:
            loops.extend(simple_loops(chain if backward >= 0 else chain[::-1]))
    return loops


def simple_loops(chain: list[int]) -> list[list[int]]:
    """Cut a closed vertex chain into loops that visit each vertex once."""
    loops: list[list[int]] = []
    stack: list[int] = []
    place: dict[int, int] = {}
    for vertex in chain:
        if vertex in place:
            loop = stack[place[vertex] :]
            del stack[place[vertex] :]
            for other in loop:
                del place[other]
            loops.append(loop)
        place[vertex] = len(stack)
        stack.append(vertex)
    loops.append(stack)
    return [loop for loop in loops if len(loop) >= 3]
