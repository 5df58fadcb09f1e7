"""Better triangles on the same surface: edges are flipped where that makes them less thin."""

from __future__ import annotations

import math

import torch

from trellis_core.geometry.connectivity import edges_of, first_of_each, next_corner, sides_of_edges
from trellis_core.geometry.triangles import aspect_ratios, face_normals
from trellis_core.geometry.types import Mesh

FLAT = math.cos(math.radians(20))  # edges are flipped only where the surface bends less


def flip_edges(mesh: Mesh, max_shift: float, rounds: int = 8) -> Mesh:
    """Give flat regions better triangles: flip edges when that lowers the worse aspect ratio at the edge.

    Lawson (1977), many edges at once: in a round every face takes part in at most one flip, the best one. No
    flip moves the surface by more than `max_shift`, the distance between the old diagonal and the new.
    """
    points = mesh.vertices.double()
    faces = mesh.faces.long().clone()
    for _ in range(rounds):
        edges = edges_of(faces)
        first, second = sides_of_edges(edges, edges.face_count == 2)
        corners = faces.reshape(-1)
        a, b = corners[first], corners[next_corner(first)]
        c, d = corners[next_corner(next_corner(first))], corners[next_corner(next_corner(second))]
        one, two = torch.stack([a, d, c], 1), torch.stack([d, b, c], 1)
        key = torch.minimum(c, d) * len(mesh.vertices) + torch.maximum(c, d)
        known = edges.vertices[:, 0] * len(mesh.vertices) + edges.vertices[:, 1]
        place = torch.searchsorted(known, key).clamp_max(len(known) - 1)

        normals = face_normals(mesh.vertices, faces)
        aspect = aspect_ratios(mesh.vertices, faces)
        before = torch.maximum(aspect[first // 3], aspect[second // 3])
        after = torch.maximum(aspect_ratios(mesh.vertices, one), aspect_ratios(mesh.vertices, two))
        bend = (normals[first // 3] * normals[second // 3]).sum(1)
        for turned in (one, two):
            bend = torch.minimum(bend, (normals[first // 3] * face_normals(mesh.vertices, turned)).sum(1))
        old, new = points[b] - points[a], points[d] - points[c]
        across = torch.linalg.cross(old, new)
        shift = ((points[c] - points[a]) * across).sum(1).abs() / across.norm(dim=1).clamp_min(1e-30)
        wanted = (
            (b == corners[second])
            & (shift < max_shift)
            & (known[place] != key)
            & (bend > FLAT)
            & (after < 0.9 * before)
        )
        if not bool(wanted.any()):
            break
        edge = torch.nonzero(wanted).reshape(-1)
        edge = edge[torch.argsort(after[edge] / before[edge], stable=True)]
        rank = torch.arange(len(edge), device=edge.device)
        best = torch.full((len(faces),), len(edge), device=edge.device)
        for side in (first, second):
            best = best.scatter_reduce(0, side[edge] // 3, rank, "amin")
        chosen = edge[(best[first[edge] // 3] == rank) & (best[second[edge] // 3] == rank)]
        chosen = chosen[first_of_each(key[chosen])]
        faces[first[chosen] // 3], faces[second[chosen] // 3] = one[chosen], two[chosen]
    return Mesh(mesh.vertices, faces.to(torch.int32))
