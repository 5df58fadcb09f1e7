"""Repair of triangle meshes: weld, remove what is broken or stray, straighten slivers, smooth.

Every function takes a `Mesh` without texture coordinates and returns a new one. Lengths are in the unit
of the mesh; callers that think in voxels multiply. Knows nothing about voxels, textures or files.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import (
    Edges,
    connected_components,
    corner_classes,
    edges_of,
    face_components,
    first_of_each,
    number_labels,
    partner_sides,
    row_keys,
    side_ends,
    sum_by,
)
from trellis_core.geometry.triangles import aspect_ratios, face_areas, face_normals
from trellis_core.geometry.types import Mesh

DEGENERATE_AREA = 1e-12  # in the unit cube
FARTHEST = 2.0**50  # cells from the origin; keeps integers exact


def keep_faces(mesh: Mesh, keep: Tensor) -> Mesh:
    """The faces where `keep` (bool [F]) is true, and the vertices they use."""
    return drop_unused_vertices(replace(mesh, faces=mesh.faces[keep]))


def drop_unused_vertices(mesh: Mesh) -> Mesh:
    used = torch.zeros(len(mesh.vertices), dtype=torch.bool, device=mesh.vertices.device)
    used[mesh.faces.long().reshape(-1)] = True
    number = torch.cumsum(used, 0) - 1
    return Mesh(mesh.vertices[used], number[mesh.faces.long()].to(torch.int32))


def merge_vertices(mesh: Mesh, labels: Tensor) -> Mesh:
    """Replace each vertex by the vertex that `labels` (int64 [V]) names, then drop what is unused."""
    return drop_unused_vertices(replace(mesh, faces=labels[mesh.faces.long()].to(torch.int32)))


def weld_vertices(mesh: Mesh, tolerance: float) -> Mesh:
    """Merge vertices in the same cell of a grid of `tolerance`, or of that grid shifted by half a cell."""
    pairs = []
    for shift in (0.0, 0.5):
        cells = torch.floor(mesh.vertices.double() / tolerance + shift).clamp(-FARTHEST, FARTHEST)
        cell, order = torch.sort(row_keys(cells), stable=True)
        same = cell[1:] == cell[:-1]
        pairs.append(torch.stack([order[:-1][same], order[1:][same]], dim=1))
    return merge_vertices(mesh, connected_components(torch.cat(pairs), len(mesh.vertices)))


def not_duplicate(faces: Tensor) -> Tensor:
    """True for the first face of every vertex set, bool [F]."""
    if len(faces) == 0:
        return torch.zeros(0, dtype=torch.bool, device=faces.device)
    low, high = torch.aminmax(faces, dim=1)
    middle = faces.sum(1) - low - high
    return first_of_each(row_keys(torch.stack([low, middle, high], dim=1)))


def not_degenerate(mesh: Mesh, absolute: float = DEGENERATE_AREA, relative: float = torch.inf) -> Tensor:
    """False for faces that repeat a vertex or have less area than `min(absolute, relative * side^2)`."""
    faces = mesh.faces.long()
    distinct = (faces != faces.roll(1, dims=1)).all(1)
    corners = mesh.vertices[faces]
    longest = (corners.roll(-1, dims=1) - corners).square().sum(2).amax(1)
    limit = torch.clamp(relative * longest, max=absolute) if relative < torch.inf else absolute
    return distinct & (face_areas(mesh.vertices, faces) >= limit)


def remove_broken_faces(mesh: Mesh) -> Mesh:
    """Drop faces with non-finite corners, without area, and repeated faces."""
    finite = torch.isfinite(mesh.vertices).all(1)[mesh.faces.long()].all(1)
    faces = mesh.faces[finite & not_degenerate(mesh)]
    return drop_unused_vertices(replace(mesh, faces=faces[not_duplicate(faces)]))


def remove_repeated_faces(mesh: Mesh) -> Mesh:
    """Drop faces whose corners lie exactly where those of an earlier face lie."""
    keep = not_duplicate(number_places(mesh.vertices)[mesh.faces.long()])
    return mesh if bool(keep.all()) else keep_faces(mesh, keep)


def number_places(points: Tensor) -> Tensor:
    """Number of each point, int64 [N]: float32 points [N, K] at exactly the same place share one."""
    return number_labels(row_keys((points + 0.0).view(torch.int32)))[0]  # + 0.0 turns -0 into 0


def component_sizes(mesh: Mesh, component: Tensor) -> tuple[Tensor, Tensor]:
    """Area and longest bounding-box side of each component; `component` int64 [F] numbered from 0."""
    count = int(component.max()) + 1 if len(component) else 0
    areas = face_areas(mesh.vertices.double(), mesh.faces)
    area = sum_by(areas, component, count)
    corners = mesh.vertices[mesh.faces.long()]
    index = component[:, None].expand(-1, 3)
    low = torch.full((count, 3), torch.inf, device=corners.device)
    low = low.scatter_reduce(0, index, corners.amin(1), "amin")
    high = torch.full((count, 3), -torch.inf, device=corners.device)
    high = high.scatter_reduce(0, index, corners.amax(1), "amax")
    return area, (high - low).amax(1)


def remove_small_components(mesh: Mesh, min_area_share: float, max_extent: float) -> Mesh:
    """Drop pieces with less than `min_area_share` of the largest piece's area that fit into `max_extent`.

    Both must hold, so a small object keeps its parts and a long thin part survives. Pieces are connected
    through shared vertices.
    """
    if len(mesh.faces) == 0:
        return mesh
    faces = mesh.faces.long()
    vertex = connected_components(torch.cat([faces[:, :2], faces[:, 1:]]), len(mesh.vertices))
    component, _ = number_labels(vertex[faces[:, 0]])
    area, extent = component_sizes(mesh, component)
    small = (area < min_area_share * area.max()) & (extent < max_extent)
    return keep_faces(mesh, ~small[component])


def remove_flaps(mesh: Mesh, max_area: float) -> Mesh:
    """Drop small patches that hang on non-manifold edges: without them the surface has fewer odd edges.

    In a proper surface an even number of faces meets at each edge. A stray quad of a dual grid is a
    patch of its own (non-manifold edges separate) whose border edges are odd; taking it away makes them even.
    """
    edges = edges_of(mesh.faces)
    patch, count = number_labels(face_components(partner_sides(edges)))
    on_edge = edges.face_count[edges.of_side.reshape(-1)]
    owner = patch[:, None].expand(-1, 3).reshape(-1)
    odd = torch.bincount(owner[on_edge % 2 == 1], minlength=count)
    crowded = torch.bincount(owner[on_edge > 2], minlength=count)
    even = torch.bincount(owner[(on_edge > 2) & (on_edge % 2 == 0)], minlength=count)
    area, _ = component_sizes(mesh, patch)
    flap = (crowded > 0) & (odd > even) & (area <= max_area)
    return keep_faces(mesh, ~flap[patch]) if bool(flap.any()) else mesh


def pair_crowded_edges(mesh: Mesh, edges: Edges, partner: Tensor) -> Tensor:
    """Partner sides, int64 [F, 3], with the faces at edges of three or more paired off where they agree.

    The flattest pair with opposite directions goes first; a face without a match keeps no partner.
    """
    crowded = torch.nonzero(edges.face_count[edges.of_side.reshape(-1)] > 2).reshape(-1)
    if len(crowded) == 0:
        return partner
    start, _ = side_ends(mesh.faces)
    normals = face_normals(mesh.vertices, mesh.faces)[crowded // 3].tolist()
    at_edge: dict[int, list[tuple[int, int, list[float]]]] = {}
    rows = zip(
        crowded.tolist(),
        edges.of_side.reshape(-1)[crowded].tolist(),
        start[crowded].tolist(),
        normals,
        strict=True,
    )
    for side, edge, begin, normal in rows:
        at_edge.setdefault(edge, []).append((side, begin, normal))
    one: list[int] = []
    other: list[int] = []
    for sides in at_edge.values():
        options = sorted(
            (-sum(x * y for x, y in zip(n0, n1, strict=True)), s0, s1)
            for i, (s0, b0, n0) in enumerate(sides)
            for s1, b1, n1 in sides[i + 1 :]
            if b0 != b1
        )
        taken: set[int] = set()
        for _, s0, s1 in options:
            if s0 not in taken and s1 not in taken:
                taken.update((s0, s1))
                one.append(s0)
                other.append(s1)
    partner = partner.clone().reshape(-1)
    first, second = torch.tensor([one, other], dtype=torch.int64, device=partner.device)
    partner[first], partner[second] = second, first
    return partner.reshape(-1, 3)


def split_vertices(mesh: Mesh, partner: Tensor) -> Mesh:
    """Give every fan of faces its own vertex: what remains is a manifold, possibly with boundary."""
    classes = corner_classes(mesh.faces, partner)
    source = torch.zeros(
        int(classes.max()) + 1 if len(classes) else 0, dtype=torch.int64, device=classes.device
    )
    source[classes.reshape(-1)] = mesh.faces.long().reshape(-1)
    return Mesh(mesh.vertices[source], classes.to(torch.int32))


def split_non_manifold(mesh: Mesh) -> Mesh:
    """Cut the surface along edges with more than two faces, after pairing the faces that belong together."""
    edges = edges_of(mesh.faces)
    return split_vertices(mesh, pair_crowded_edges(mesh, edges, partner_sides(edges)))


def straighten_slivers(mesh: Mesh, max_aspect: float = 100.0, rounds: int = 3) -> Mesh:
    """Remove triangles thinner than `max_aspect`: collapse a short side, else flip the longest one.

    A collapse must satisfy the link condition and a flip must improve the worse of its two triangles, so
    neither tears nor folds the surface. Gives up after `rounds`.
    """
    for _ in range(rounds):
        bad = aspect_ratios(mesh.vertices, mesh.faces) > max_aspect
        if not bool(bad.any()):
            break
        changed = _straighten_once(mesh, bad)
        if changed is None:
            break
        mesh = remove_broken_faces(changed)
    return mesh


def _straighten_once(mesh: Mesh, bad: Tensor) -> Mesh | None:
    # Only the bad faces and what touches them are looked at, as plain Python: there are few.
    vertices, faces, bad = mesh.vertices.double().cpu(), mesh.faces.long().cpu().clone(), bad.cpu()
    near_vertex = torch.zeros(len(vertices), dtype=torch.bool, device=vertices.device)
    near_vertex[faces[bad].reshape(-1)] = True
    around: dict[int, set[int]] = {}
    for face in torch.nonzero(near_vertex[faces].any(1)).reshape(-1).tolist():
        for vertex in faces[face].tolist():
            around.setdefault(vertex, set()).add(face)
    target: dict[int, int] = {}
    locked: set[int] = set()
    flips = 0
    for face in torch.nonzero(bad).reshape(-1).tolist():
        if face in locked:
            continue
        corners = faces[face].tolist()
        length = [float((vertices[corners[(s + 1) % 3]] - vertices[corners[s]]).norm()) for s in range(3)]
        short, long = length.index(min(length)), length.index(max(length))
        u, v = corners[short], corners[(short + 1) % 3]
        if length[short] < 0.2 * length[long] and _may_collapse(faces, around, u, v):
            ring = around[u] | around[v]
            if not ring & locked:
                target[v] = u
                locked |= ring
                continue
        a, b, c = corners[long], corners[(long + 1) % 3], corners[(long + 2) % 3]
        other = [f for f in around[a] & around[b] if f != face]
        if len(other) != 1 or other[0] in locked:
            continue
        (d,) = set(faces[other[0]].tolist()) - {a, b}
        if around.get(d, set()) & around[c]:  # the new side would be a second edge between c and d
            continue
        before = torch.stack([faces[face], faces[other[0]]])
        after = torch.tensor([[a, d, c], [d, b, c]], device=faces.device)
        if bool(aspect_ratios(vertices, after).max() < aspect_ratios(vertices, before).max()):
            faces[face], faces[other[0]] = after[0], after[1]
            locked |= {face, other[0]}.union(*(around.get(x, set()) for x in (a, b, c, d)))
            flips += 1
    if not target and not flips:
        return None
    labels = torch.arange(len(vertices), device=vertices.device)
    for vertex, into in target.items():
        labels[vertex] = into
    device = mesh.vertices.device
    return merge_vertices(replace(mesh, faces=faces.to(device, torch.int32)), labels.to(device))


def _may_collapse(faces: Tensor, around: dict[int, set[int]], u: int, v: int) -> bool:
    """Link condition (Dey et al., 1999): the ends share no neighbour but corners of their common faces."""
    common = around[u] & around[v]

    def ring(of: int) -> set[int]:
        return {x for face in around[of] for x in faces[face].tolist()} - {u, v}

    corners = {x for face in common for x in faces[face].tolist()} - {u, v}
    return len(common) in (1, 2) and ring(u) & ring(v) == corners


def smooth(mesh: Mesh, iterations: int, forward: float = 0.5, backward: float = -0.53) -> Mesh:
    """Low-pass filter without shrinkage (Taubin, 1995): a step towards the neighbours' mean, and one back."""
    if iterations == 0:
        return mesh
    edges = edges_of(mesh.faces).vertices
    pairs = torch.cat([edges, edges.flip(1)])
    degree = torch.bincount(pairs[:, 0], minlength=len(mesh.vertices)).clamp_min(1)[:, None]
    points = mesh.vertices.double()
    for factor in (forward, backward) * iterations:
        mean = sum_by(points[pairs[:, 1]], pairs[:, 0], len(points)) / degree
        points = torch.where(degree > 1, points + factor * (mean - points), points)
    return replace(mesh, vertices=points.float())
