"""Closing of small holes with triangles of least area, wound like their neighbours.

Barequet & Sharir, "Filling gaps in the boundary of a polyhedron" (1995); Liepa, "Filling holes in
meshes" (2003). All loops of one length are triangulated together.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from trellis_core.geometry.cleanup import component_sizes, pair_crowded_edges
from trellis_core.geometry.connectivity import (
    boundary_loops,
    edges_of,
    face_components,
    number_labels,
    partner_sides,
)
from trellis_core.geometry.types import Mesh

LONGEST_LOOP = 200  # sides; the cost of triangulating grows with the cube
SHAPE_WEIGHT = 0.05  # of squared side lengths against area: among equal areas take short diagonals
EXISTING_EDGE = 1e6  # a diagonal that is already an edge would become non-manifold
FLAKE = 0.6  # a cap this large against its whole piece belongs to a flake, not to a hole

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def fill_holes(
    mesh: Mesh,
    max_perimeter: float,  # of any loop
    max_planar_perimeter: float = 0,  # of a loop within `flatness` of a plane
    flatness: float = 0,
) -> Mesh:
    """Close boundary loops up to a perimeter. Vertices stay; faces are appended."""
    edges = edges_of(mesh.faces)
    partner = partner_sides(edges)
    loops = boundary_loops(mesh.faces, pair_crowded_edges(mesh, edges, partner))
    points = mesh.vertices.double().cpu().numpy()
    chosen = [
        loop
        for loop in loops
        if len(loop) <= LONGEST_LOOP
        and _is_small(points[loop], max_perimeter, max_planar_perimeter, flatness)
    ]
    if not chosen:
        return mesh
    piece, _ = number_labels(face_components(partner))
    piece_area = component_sizes(mesh, piece)[0].cpu().numpy()
    piece_of_vertex = np.zeros(len(points), dtype=np.int64)
    piece_of_vertex[mesh.faces.long().cpu().numpy()] = piece.cpu().numpy()[:, None]
    count = len(points)
    known = (edges.vertices[:, 0] * count + edges.vertices[:, 1]).cpu().numpy()
    new: list[Ints] = []
    by_length: dict[int, list[list[int]]] = {}
    for loop in chosen:
        by_length.setdefault(len(loop), []).append(loop)
    for loops_of_length in by_length.values():
        index = np.array(loops_of_length)
        triangles, area = triangulate_loops(points[index], index, known, count)
        real = area < FLAKE * piece_area[piece_of_vertex[index]].max(1)
        new.append(np.take_along_axis(index[real][:, None], triangles[real], axis=2).reshape(-1, 3))
    added = torch.from_numpy(np.concatenate(new)).to(mesh.faces)
    return replace(mesh, faces=torch.cat([mesh.faces, added]))


def _is_small(loop: Floats, limit: float, planar_limit: float, flatness: float) -> bool:
    perimeter = float(np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1).sum())
    if perimeter < limit:
        return True
    if perimeter >= planar_limit:
        return False
    centered = loop - loop.mean(0)
    normal = np.linalg.svd(centered, full_matrices=False)[2][-1]
    return bool(np.abs(centered @ normal).max() <= flatness)


def triangulate_loops(
    points: Floats,  # [L, n, 3]  L loops of n vertices
    index: Ints,  # [L, n]     their vertex numbers
    known_edges: Ints,  # [E]        sorted keys low * vertex_count + high
    vertex_count: int,
) -> tuple[Ints, Floats]:
    """Cheapest triangulation of each loop: corners int64 [L, n-2, 3] within the loop, and its area [L]."""
    loops, n, _ = points.shape
    low = np.minimum(index[:, :, None], index[:, None])
    high = np.maximum(index[:, :, None], index[:, None])
    keys = low * vertex_count + high
    place = np.searchsorted(known_edges, keys).clip(max=len(known_edges) - 1)
    square = ((points[:, :, None] - points[:, None]) ** 2).sum(3)
    diagonal = SHAPE_WEIGHT * square + np.where(known_edges[place] == keys, EXISTING_EDGE, 0.0)
    sides = np.arange(n)
    diagonal[:, sides, (sides + 1) % n] = diagonal[:, (sides + 1) % n, sides] = 0.0

    cost = np.zeros((loops, n, n))
    area = np.zeros((loops, n, n))
    split = np.zeros((loops, n, n), dtype=np.int64)
    rows = np.arange(loops)
    for span in range(2, n):
        for i in range(n - span):
            k = i + span
            middle = np.arange(i + 1, k)
            cross = np.cross(points[:, middle] - points[:, i, None], points[:, k, None] - points[:, i, None])
            triangle = 0.5 * np.linalg.norm(cross, axis=2)
            total = cost[:, i, middle] + cost[:, middle, k] + triangle
            best = total.argmin(1)
            m = middle[best]
            split[:, i, k] = m
            cost[:, i, k] = total[rows, best] + diagonal[:, i, k]
            area[:, i, k] = area[rows, i, m] + area[rows, m, k] + triangle[rows, best]
    triangles = np.zeros((loops, n - 2, 3), dtype=np.int64)
    for loop in range(loops):
        stack, written = [(0, n - 1)], 0
        while stack:
            i, k = stack.pop()
            if k - i < 2:
                continue
            m = int(split[loop, i, k])
            triangles[loop, written] = i, m, k
            written += 1
            stack += [(i, m), (m, k)]
    return triangles, area[:, 0, n - 1]
