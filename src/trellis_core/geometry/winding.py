"""Neighbouring faces wound alike: union-find with parity from the bottom up, refined from the top down.

Faces grow together in rounds: each group joins the neighbour that most edges speak for, turned over if they
ask for that (Borůvka's rounds; hooking and pointer jumping after Shiloach & Vishkin, "An O(log n) parallel
connectivity algorithm", 1982). An orientable surface is settled then. On others the edges that still
contradict are made fewer on the way back by turning groups over at each level (after Hendrickson & Leland,
"A multilevel algorithm for partitioning graphs", 1995). Whole numbers only: the result is the same on every
device. Knows nothing about positions. Letters: F faces, N nodes, P pairs of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import (
    connected_components,
    edges_of,
    number_labels,
    partner_sides,
    side_ends,
)

ROUNDS = 8  # of improvement at each level


def unify_orientations(faces: Tensor) -> Tensor:
    """Wind neighbouring faces alike; in each orientable component the lowest face keeps its winding."""
    flip, _, _ = consistent_winding(faces, partner_sides(edges_of(faces)))
    return flip_faces(faces, flip)


def flip_faces(faces: Tensor, flip: Tensor) -> Tensor:
    """Reverse the winding where `flip` is true; the first corner stays first."""
    return torch.where(flip[:, None], faces[:, [0, 2, 1]], faces)


def consistent_winding(
    faces: Tensor,  # int [F, 3]
    partner: Tensor,  # int64 [F, 3]  the side across each side, -1 where there is none
) -> tuple[Tensor, Tensor, int]:
    """Faces to flip (bool [F]) so that neighbours agree, the patch of each face (int64 [F]), and how many.

    The lowest face of each component keeps its winding. A patch is a component, or what is left of it when it
    is not orientable and the edges that contradict (a seam across a Möbius strip) take it apart.
    """
    start, _ = side_ends(faces)
    partner = partner.reshape(-1)
    side = torch.nonzero(partner > torch.arange(len(partner), device=faces.device)).reshape(-1)
    other = partner[side]
    pairs = torch.stack([side // 3, other // 3], dim=1)
    opposed = start[side] == start[other]
    flip, patch, count = agree(pairs, opposed, len(faces))
    agreed = flip[pairs[:, 0]] ^ flip[pairs[:, 1]] == opposed
    if not bool(agreed.all()):
        patch, count = number_labels(connected_components(pairs[agreed], len(faces)))
    return flip, patch, count


@dataclass(frozen=True, slots=True)
class Level:
    """Groups of faces, what their borders ask for, and the larger groups that they join."""

    pairs: Tensor  # int64 [P, 2]  groups that touch, each pair once above the first level
    pull: Tensor  # int64 [P]     edges between them that agree, less those that do not
    parent: Tensor  # int64 [N]     the group of the next level
    turned: Tensor  # bool [N]      whether it joins it turned over


def agree(
    pairs: Tensor,  # int64 [P, 2]
    opposed: Tensor,  # bool [P]  whether the two should differ
    count: int,
) -> tuple[Tensor, Tensor, int]:
    """A sign for each node, bool [N], that suits (nearly) all pairs; its component, int64 [N]; their number.

    Exact where all pairs can be suited. The lowest node of each component is false.
    """
    levels: list[Level] = []
    nodes, pull = count, torch.where(opposed, -1, 1)
    while len(pairs):
        parent, turned, larger = join_neighbors(pairs, pull, nodes)
        levels.append(Level(pairs, pull, parent, turned))
        pull = torch.where(turned[pairs[:, 0]] ^ turned[pairs[:, 1]], -pull, pull)
        nodes = larger
        pairs, pull = merge_pairs(parent[pairs], pull, nodes)

    sign = torch.zeros(nodes, dtype=torch.bool, device=pairs.device)
    component = torch.arange(nodes, device=pairs.device)
    for level in reversed(levels):
        sign, component = sign[level.parent] ^ level.turned, component[level.parent]
        sign = turn_groups(sign, level.pairs, level.pull)
    number = torch.arange(count, device=pairs.device)
    lowest = torch.full((nodes,), count, device=pairs.device).scatter_reduce(0, component, number, "amin")
    return sign ^ sign[lowest][component], component, nodes


def join_neighbors(pairs: Tensor, pull: Tensor, nodes: int) -> tuple[Tensor, Tensor, int]:
    """Each node joins along its strongest pair: its group int64 [N], whether turned over bool [N], groups."""
    count = len(pairs)
    # Ranks differ and rise along a chain of chosen pairs: the only circle is two that chose each other.
    rank = pull.abs() * count + torch.arange(count - 1, -1, -1, device=pairs.device)
    best = torch.full((nodes,), -1, device=pairs.device)
    for end in pairs.unbind(1):
        best.scatter_reduce_(0, end, rank, "amax")
    node = torch.arange(nodes, device=pairs.device)
    chosen = torch.where(best >= 0, count - 1 - best % count, 0)
    parent = torch.where(best >= 0, pairs.sum(1)[chosen] - node, node)
    root = (parent[parent] == node) & (node <= parent)
    parent = torch.where(root, node, parent)
    turned = ~root & (pull[chosen] < 0)
    while True:
        jumped = parent[parent]
        if torch.equal(jumped, parent):
            break
        turned = turned ^ turned[parent]
        parent = jumped
    number = torch.cumsum(root, 0)
    return number[parent] - 1, turned, int(number[-1])


def merge_pairs(pairs: Tensor, pull: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Pairs of different nodes, each once, with the sums of their pulls."""
    different = pairs[:, 0] != pairs[:, 1]
    pairs, pull = pairs[different], pull[different]
    keys, order = torch.sort(pairs.amin(1) * nodes + pairs.amax(1))
    keys, owner = torch.unique_consecutive(keys, return_inverse=True)
    total = torch.zeros(len(keys), dtype=torch.int64, device=pairs.device)
    total.index_add_(0, owner, pull[order])
    return torch.stack([keys // nodes, keys % nodes], dim=1), total


def turn_groups(sign: Tensor, pairs: Tensor, pull: Tensor) -> Tensor:
    """Turn nodes over where more edges would agree then; of neighbours only the one that gains most."""
    one, other = pairs.unbind(1)
    order = torch.arange(len(sign) - 1, -1, -1, device=sign.device)
    for _ in range(ROUNDS):
        cost = torch.where(sign[one] ^ sign[other], pull, -pull)
        if not bool((cost > 0).any()):
            break
        gain = torch.zeros_like(order).index_add_(0, one, cost).index_add_(0, other, cost)
        rank = torch.where(gain > 0, gain * len(sign) + order, -1)
        best = torch.full_like(rank, -1)
        best.scatter_reduce_(0, one, rank[other], "amax").scatter_reduce_(0, other, rank[one], "amax")
        turn = (gain > 0) & (rank > best)
        if not bool(turn.any()):
            break
        sign = sign ^ turn
    return sign
