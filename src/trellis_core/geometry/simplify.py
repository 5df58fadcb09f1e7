"""Fewer faces, same surface: quadric edge collapse down to a face target, many edges at once.

Costs after Garland & Heckbert, "Surface simplification using quadric error metrics" (1997), in frames at the
vertices, so that small errors are not lost in large coordinates. A round collapses the edges that both their
ends like best (after Papageorgiou & Platis, "Triangular mesh simplification on the GPU", 2015). Open borders
have quadrics of their own. Letters: V vertices, F faces, E edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.cleanup import drop_unused_vertices, number_places
from trellis_core.geometry.cluster import (
    Block,
    Merged,
    Quadrics,
    multiply,
    open_block,
    outer,
    solve,
    undo_damage,
)
from trellis_core.geometry.connectivity import Edges, edges_of, next_corner, sum_by
from trellis_core.geometry.triangles import aspect_ratios
from trellis_core.geometry.types import Mesh

BORDER = 3.0  # weight of the planes that hold a border against those of faces
LENGTH = 5e-3  # an edge costs as much as a surface that is off by this share of the edge's length
THIN = (10.0, 100.0)  # aspect ratio beyond which no collapse makes a face worse; the second when stuck
SHARE = 0.6  # of the edges, the cheapest: what a round chooses from
RELUCTANCE = 4.0  # factor on the costs around vertices whose collapse was taken back
PATIENCE = 4  # rounds without progress before giving up
PROGRESS = 1e-3  # of the faces still to go
LEAST = 1e-8  # cost, in mean edge lengths: below, all edges are equal
HASH = 2654435761
CHUNK = 1 << 16  # pairs at a time: they stay in the processor's caches


@dataclass(frozen=True, slots=True)
class Candidates:
    """Edges that may be collapsed."""

    ends: Tensor  # int64 [E, 2]
    target: Tensor  # float64 [E, 3]
    cost: Tensor  # float64 [E]


def simplify(mesh: Mesh, target_faces: int, on_round: Callable[[], None] = lambda: None) -> Mesh:
    """Collapse edges until `target_faces` are left, or nothing more can go without damage.

    Closed surfaces stay closed, open borders open; no edge gets a third face, and no face turns over.
    Where a border lies on another sheet (a leaf on a stem), both stay; sheets that only touch come apart.
    """
    if len(mesh.faces) <= target_faces:
        return mesh
    edges = edges_of(mesh.faces)
    ends = edges.vertices
    unit = float((mesh.vertices[ends[:, 0]] - mesh.vertices[ends[:, 1]]).norm(dim=1).mean()) or 1.0
    block = open_block(mesh.vertices.double() / unit, mesh.faces.long(), on_seams(mesh, edges))
    block = replace(block, quadrics=hold_borders(block))
    for thin in THIN:
        block = collapse_until(block, target_faces, thin, on_round)
    return drop_unused_vertices(Mesh((block.points * unit).float(), block.faces.to(mesh.faces.dtype)))


def collapse_until(
    block: Block, target_faces: int, thin: float, on_round: Callable[[], None] = lambda: None
) -> Block:
    reluctance = torch.ones(len(block.points), dtype=torch.float64, device=block.points.device)
    idle = 0
    while idle < PATIENCE and len(block.faces) > target_faces:
        on_round()
        before = len(block.faces)
        block, reluctance = collapse_round(block, reluctance, pairs_to_go(before, target_faces), thin)
        idle = idle + 1 if before - len(block.faces) < PROGRESS * (before - target_faces) else 0
    return block


def pairs_to_go(faces: int, target: int) -> int:
    """Pairs to try: each takes two faces away, and a few are taken back. Half a percent too many at most."""
    return (faces - target + 1) // 2 + target // 400


def on_seams(mesh: Mesh, edges: Edges) -> Tensor:
    """Vertices of borders that share their place with another vertex, and that one; bool [V]."""
    place = number_places(mesh.vertices)
    has_border = torch.zeros_like(place, dtype=torch.bool)
    has_border[place[edges.vertices[edges.face_count == 1].reshape(-1)]] = True
    return (torch.bincount(place)[place] > 1) & has_border[place]


def hold_borders(block: Block) -> Quadrics:
    """Quadrics with a plane through every border edge, upright on its face."""
    edges = edges_of(block.faces)
    side = edges.sides[(torch.cumsum(edges.face_count, 0) - edges.face_count)[edges.face_count == 1]]
    corners = block.faces.reshape(-1)
    start, end = corners[side], corners[next_corner(side)]
    third = corners[next_corner(next_corner(side))]
    a, b, c = block.points[start], block.points[end], block.points[third]
    along = b - a
    square = along.square().sum(1, keepdim=True)
    inward = (c - a) - along * ((c - a) * along).sum(1, keepdim=True) / square.clamp_min(1e-30)
    normal = inward / inward.norm(dim=1, keepdim=True).clamp_min(1e-30)
    plane = outer(normal) * (BORDER * square / 2)
    added = sum_by(torch.cat([plane, plane]), torch.cat([start, end]), len(block.points))
    return replace(block.quadrics, matrix=block.quadrics.matrix + added)


def collapse_round(block: Block, reluctance: Tensor, most: int, thin: float) -> tuple[Block, Tensor]:
    """Collapse up to `most` edges that do not touch each other."""
    edges = edges_of(block.faces)
    found = candidates(block, edges)
    chosen = choose_pairs(found, reluctance)[:most]
    ends, target = found.ends[chosen], found.target[chosen]
    label = torch.arange(len(block.points), device=ends.device)
    label[ends[:, 1]] = ends[:, 0]
    points = block.points.clone()
    points[ends[:, 0]] = target
    wanted = label
    was_border = edges.face_count[edges.of_side] == 1

    label = undo_damage(block, label, points, lambda m: thinner(block, m, thin) | torn(was_border[m.rows], m))
    taken_back = (label != wanted)[ends[:, 1]]
    reluctance = reluctance.clone()
    reluctance[ends[taken_back].reshape(-1)] *= RELUCTANCE
    kept = ends[~taken_back]
    quadrics = merge_quadrics(block, kept, target[~taken_back])
    points = block.points.clone()
    points[kept[:, 0]] = target[~taken_back]
    faces = label[block.faces]
    a, b, c = faces.unbind(1)
    faces = faces[(a != b) & (b != c) & (c != a)]
    return compact(Block(points, faces, block.fixed, quadrics), reluctance)


def compact(block: Block, reluctance: Tensor) -> tuple[Block, Tensor]:
    """Without the vertices that no face uses."""
    used = torch.zeros(len(block.points), dtype=torch.bool, device=block.points.device)
    used[block.faces.reshape(-1)] = True
    number = torch.cumsum(used, 0) - 1
    old = block.quadrics
    quadrics = Quadrics(old.matrix[used], old.vector[used], old.constant[used])
    return Block(block.points[used], number[block.faces], block.fixed[used], quadrics), reluctance[used]


def candidates(block: Block, edges: Edges) -> Candidates:
    """Edges that may be collapsed, where to, and at what cost. A vertex that must stay comes first."""
    border = torch.zeros_like(block.fixed)
    border[edges.vertices[edges.face_count == 1].reshape(-1)] = True
    stays = block.fixed.clone()
    stays[edges.vertices[edges.face_count > 2].reshape(-1)] = True
    ends = edges.vertices
    on_border, staying = border[ends], stays[ends]
    across = on_border.all(1) & (edges.face_count != 1)  # would pinch the sheet
    allowed = (edges.face_count <= 2) & ~staying.all(1) & ~across
    ends, on_border, staying = ends[allowed], on_border[allowed], staying[allowed]
    # a border vertex holds an inner one, and a vertex that stays holds any
    held = staying | (on_border & ~on_border.flip(1) & ~staying.flip(1))
    ends = torch.where((held[:, 1] & ~held[:, 0])[:, None], ends.flip(1), ends)
    parts = [
        price(block, part, stay)
        for part, stay in zip(ends.split(CHUNK), held.any(1).split(CHUNK), strict=True)
    ]
    target, cost = (torch.cat(column) for column in zip(*parts, strict=True))
    return Candidates(ends, target, cost)


def price(block: Block, ends: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Where to put the vertex of each pair, at the first one where it must `stay`, and at what cost."""
    one, other = ends.unbind(1)
    half = 0.5 * (block.points[other] - block.points[one])
    matrix, vector, constant = joined(block.quadrics, ends, half, -half)
    weight = matrix[:, [0, 3, 5]].sum(1)
    square = half.square().sum(1)
    best = solve(matrix, weight, -vector)
    best = torch.where((best.square().sum(1) > 4 * square)[:, None], 0.0, best)
    best = torch.where(stay[:, None], -half, best)
    error = constant + ((2 * vector + multiply(matrix, best)) * best).sum(1)
    return block.points[one] + half + best, error.clamp_min(0) + LENGTH**2 * weight * 4 * square


def joined(old: Quadrics, ends: Tensor, to_first: Tensor, to_second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of two vertices' quadrics, seen from the points that lie at these offsets from them."""
    matrix = vector = constant = old.constant.new_zeros(())
    for end, shift in zip(ends.unbind(1), (to_first, to_second), strict=True):
        own = old.matrix[end]
        moved = multiply(own, shift)
        matrix = matrix + own
        vector = vector + old.vector[end] + moved
        constant = constant + old.constant[end] + ((2 * old.vector[end] + moved) * shift).sum(1)
    return matrix, vector, constant


def merge_quadrics(block: Block, ends: Tensor, target: Tensor) -> Quadrics:
    shifts = (target - block.points[end] for end in ends.unbind(1))
    sums = joined(block.quadrics, ends, *shifts)
    new = [
        values.clone() for values in (block.quadrics.matrix, block.quadrics.vector, block.quadrics.constant)
    ]
    for values, total in zip(new, sums, strict=True):
        values[ends[:, 0]] = total
    return Quadrics(*new)


def choose_pairs(found: Candidates, reluctance: Tensor) -> Tensor:
    """Edges that both ends like best, cheapest first, int64.

    Costs count in steps of a factor of two, and equal ones in a scattered order: along a row of slowly rising
    costs only the first edge would be anybody's best.
    """
    cost = found.cost.clamp_min(LEAST) * reluctance[found.ends].amax(1)
    count = int(SHARE * len(cost)) + 1
    if count < len(cost):
        cheap = torch.nonzero(cost <= smallest(cost, count)).reshape(-1)
    else:
        cheap = torch.arange(len(cost), device=cost.device)
    step = cost[cheap].log2().floor().long()
    scatter = (cheap * HASH) & 0xFFFFFFFF
    order = torch.argsort((step + 100 << 32) | scatter, stable=True)
    cheap = cheap[order]
    rank = torch.arange(len(cheap), device=cheap.device)
    best = torch.full((len(reluctance),), len(cheap), device=cheap.device)
    for end in found.ends[cheap].unbind(1):
        best = best.scatter_reduce(0, end, rank, "amin")
    mutual = (best[found.ends[cheap]] == rank[:, None]).all(1)
    return cheap[mutual]


def smallest(values: Tensor, count: int) -> Tensor:
    """The `count`-th smallest value; selecting is faster on a CPU, sorting on a GPU."""
    if values.device.type == "cpu":
        return values.kthvalue(count).values
    return values.sort().values[count - 1]


def thinner(block: Block, merged: Merged, limit: float) -> Tensor:
    """Faces with an aspect ratio over `limit` that is worse than it was, bool [F]."""
    new = aspect_ratios(merged.position, merged.faces)
    thin = torch.nonzero(new > limit).reshape(-1)
    worse = new[thin] > aspect_ratios(block.points, block.faces[merged.rows[thin]])
    result = torch.zeros_like(new, dtype=torch.bool)
    result[thin[worse]] = True
    return result


def torn(was_border: Tensor, merged: Merged) -> Tensor:
    """Faces at a border that has closed up or touches itself, bool [F]; `was_border` bool [F, 3]."""
    edges = merged.edges
    is_border = edges.face_count == 1
    ends = edges.vertices[is_border].reshape(-1)
    pinched = (torch.bincount(ends, minlength=len(merged.complete)) > 2) & merged.complete
    closed_up = was_border & ~is_border[edges.of_side]
    return (closed_up | pinched[edges.vertices[edges.of_side]].any(2)).any(1)
