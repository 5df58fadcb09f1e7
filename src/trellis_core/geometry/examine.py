"""How a surface hangs together: winding, borders, shells, and what can be seen from outside.

For meshes from anywhere, of any size: lengths are relative to the longest side of the bounding box. Views
from outside are parallel projections, as section "Orientation" of the project's geometry notes counts them.
Letters: V vertices, F faces, S picture side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.ambient import cosine_directions
from trellis_core.geometry.cleanup import component_sizes, not_duplicate, number_places
from trellis_core.geometry.connectivity import (
    Edges,
    connected_components,
    edges_of,
    face_components,
    number_labels,
    partner_sides,
    side_ends,
    sides_of_edges,
    sum_by,
)
from trellis_core.geometry.triangles import CHUNK, face_areas, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.winding import consistent_winding, flip_faces
from trellis_core.kernels.table import Kernels

VIEW_SIDE = 512  # pixels
VIEWS = ((50_000, 26), (500_000, 14))  # faces, views from outside; of larger meshes 6
UNSEEN = 0.01  # of the pixels that a free-standing piece of its area would fill
SMALLEST_SEEN = 8.0  # pixels across: smaller pieces are not judged by what is seen of them
DOUBLE_GAP = 0.03  # hidden pieces nearer to the visible surface are a second shell, others are inside
SHELL_SAMPLES = 8192
MOST_SHELLS = 64  # hidden pieces whose distance is measured, the largest first
FARTHEST = 4.0
DARK_POINTS, DARK_RAYS = 512, 16  # rays to each side of each point
DARK_LIFT = 1e-4  # above the surface, where rays start

Watch = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True, slots=True)
class Placement:
    """How `unit_box` moved a mesh: p = (q - middle) / longest."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def size(self) -> tuple[float, float, float]:
        x, y, z = (b - a for a, b in zip(self.low, self.high, strict=True))
        return x, y, z

    @property
    def longest(self) -> float:
        return max(self.size)


def unit_box(mesh: Mesh) -> tuple[Mesh, Placement]:
    """The mesh moved to the origin, its longest side 1; corners that no face uses do not count.

    A mesh without extent, or with coordinates that are not finite, is left where it is.
    """
    used = mesh.vertices[mesh.faces.long().unique()] if len(mesh.faces) else mesh.vertices
    used = used[torch.isfinite(used).all(1)].double()
    if not len(used):
        return mesh, Placement((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    low, high = used.amin(0), used.amax(0)
    a, b, c = low.tolist()
    d, e, f = high.tolist()
    placement = Placement((a, b, c), (d, e, f))
    if placement.longest <= 0:
        return mesh, placement
    moved = (mesh.vertices.double() - (low + high) / 2) / placement.longest
    return replace(mesh, vertices=moved.float()), placement


@dataclass(frozen=True, slots=True)
class Joined:
    """A mesh whose coinciding vertices count as one: texture seams are no borders."""

    faces: Tensor  # int64 [F, 3]  over places
    edges: Edges
    piece: Tensor  # int64 [F]
    pieces: int


def join_corners(mesh: Mesh) -> Joined:
    faces = number_places(mesh.vertices)[mesh.faces.long()]
    edges = edges_of(faces)
    component = connected_components(edges.vertices, int(faces.max()) + 1)
    return Joined(faces, edges, *number_labels(component[faces[:, 0]]))


def topology_metrics(mesh: Mesh, joined: Joined | None = None) -> dict[str, float | int | bool]:
    """Edges, pieces and closedness."""
    joined = joined or join_corners(mesh)
    faces, face_count = joined.faces, joined.edges.face_count
    count = len(face_count)
    boundary, crowded = int((face_count == 1).sum()), int((face_count > 2).sum())
    area, _ = component_sizes(mesh, joined.piece)
    return {
        "edges": count,
        "components": joined.pieces,
        "largest_component_share": float(area.max() / area.sum().clamp_min(1e-30)),
        "boundary_edges": boundary,
        "boundary_share": boundary / count,
        "non_manifold_edges": crowded,
        "non_manifold_share": crowded / count,
        "duplicate_faces": int((~not_duplicate(faces)).sum()),
        "closed": not bool((face_count % 2).any()),  # it may touch itself
        "watertight": boundary == 0 and crowded == 0,
        "euler_characteristic": len(torch.unique(faces)) - count + len(faces),
    }


def examine(
    mesh: Mesh,  # about as large as the unit cube, with indices in range
    kernels: Kernels | None,  # None: nothing is said about what is seen
    *,
    joined: Joined | None = None,
    side: int = VIEW_SIDE,
    on_view: Watch = lambda done, of: None,
) -> dict[str, float | int | bool]:
    """Facts by name; shares are of all edges, of the area, or of what is seen from outside."""
    joined = joined or join_corners(mesh)
    welded, edges = joined.faces, joined.edges
    facts: dict[str, float | int | bool] = {**border_metrics(mesh, welded, edges)}
    facts.update(winding_metrics(welded, edges))
    closed = facts["borders"] == 0 and not bool((edges.face_count > 2).any())
    if closed:
        facts["volume"] = signed_volume(mesh)
        euler = len(torch.unique(welded)) - len(edges.face_count) + len(welded)
        if facts["mixed_edges"] == 0:
            facts["handles"] = joined.pieces - euler // 2
    if kernels is not None:
        facts.update(visibility_metrics(mesh, joined.piece, kernels, side, on_view))
    return facts


# --- borders and winding -------------------------------------------------------------------------------


def border_metrics(
    mesh: Mesh,
    welded: Tensor,  # int64 [F, 3]  faces over places
    edges: Edges,
) -> dict[str, float | int]:
    """Connected chains of edges with one face, whether holes or rims, and their lengths."""
    free = edges.face_count == 1
    if not bool(free.any()):
        return {"borders": 0, "border_length": 0.0, "longest_border": 0.0}
    ends = edges.vertices[free]
    place = torch.zeros(int(welded.max()) + 1, 3, dtype=torch.float64, device=welded.device)
    place[welded.reshape(-1)] = mesh.vertices[mesh.faces.long().reshape(-1)].double()
    length = (place[ends[:, 0]] - place[ends[:, 1]]).norm(dim=1)
    chain, count = number_labels(connected_components(ends, len(place))[ends[:, 0]])
    total = sum_by(length, chain, count)
    return {
        "borders": count,
        "border_length": float(total.sum()),
        "longest_border": float(total.max()),
    }


def winding_metrics(welded: Tensor, edges: Edges) -> dict[str, int | bool]:
    """Edges whose two faces are wound against each other, and the fewest faces to turn over to mend that."""
    start, _ = side_ends(welded)
    first, second = sides_of_edges(edges, edges.face_count == 2)
    mixed = int((start[first] == start[second]).sum())
    found: dict[str, int | bool] = {"mixed_edges": mixed, "turned_faces": 0, "orientable": True}
    if mixed:
        partner = partner_sides(edges)
        flip, _, _ = consistent_winding(welded, partner)
        patch, count = number_labels(face_components(partner))
        turned, whole = (torch.bincount(rows, minlength=count) for rows in (patch[flip], patch))
        found["turned_faces"] = int(torch.minimum(turned, whole - turned).sum())
        settled = flip_faces(welded, flip)
        start, _ = side_ends(settled)
        edges = edges_of(settled)
        first, second = sides_of_edges(edges, edges.face_count == 2)
        found["orientable"] = not bool((start[first] == start[second]).any())
    return found


def signed_volume(mesh: Mesh) -> float:
    """Volume inside a closed mesh; negative when it is inside out."""
    total = 0.0
    for faces in mesh.faces.split(CHUNK):
        a, b, c = mesh.vertices[faces.long()].double().unbind(1)
        total += float((a * torch.linalg.cross(b, c)).sum()) / 6
    return total


# --- from outside --------------------------------------------------------------------------------------


def visibility_metrics(
    mesh: Mesh, piece: Tensor, kernels: Kernels, side: int, on_view: Watch
) -> dict[str, float | int]:
    """Back faces among what is seen first, and pieces that no view shows.

    Hidden pieces close to the visible surface are second shells: they cost faces and texture for nothing.
    """
    area, extent = component_sizes(mesh, piece)
    count = view_count(len(mesh.faces))
    seen = torch.zeros(len(area), dtype=torch.int64, device=piece.device)
    back, hits = 0, 0
    normals = face_normals(mesh.vertices, mesh.faces)
    texel = 2.1 * float(mesh.vertices[mesh.faces.long().unique()].norm(dim=1).max()) / side
    for number, (direction, points) in enumerate(projections(mesh.vertices, count, side, texel)):
        on_view(number, count)
        rasterize: Any = kernels["rasterize"]
        face, _ = rasterize(points, mesh.faces, side, side)
        pixels = torch.bincount(face[face >= 0], minlength=len(mesh.faces))
        seen.index_add_(0, piece, pixels)
        back += int(pixels[normals @ direction.to(normals) > 0].sum())
        hits += int(pixels.sum())
    on_view(count, count)
    expected = area / 4 / max(texel, 1e-30) ** 2 * count  # a convex body shows a quarter of its area
    hidden = (seen < UNSEEN * expected) & (extent > SMALLEST_SEEN * texel)
    found: dict[str, float | int] = {
        "back_face_share": back / max(hits, 1),
        "hidden_pieces": int(hidden.sum()),
        "hidden_area_share": float(area[hidden].sum() / area.sum().clamp_min(1e-30)),
        "double_shells": 0,
    }
    found["dark_area_share"] = dark_share(mesh, normals, kernels)
    if bool(hidden.any()) and bool((~hidden).any()):
        gap = shell_gaps(mesh, piece, hidden, area, kernels)
        found["double_shells"] = int((gap < DOUBLE_GAP).sum())
    return found


def dark_share(mesh: Mesh, normals: Tensor, kernels: Kernels) -> float:
    """Share of the area from which no ray on either side gets out, by points spread evenly over the area.

    Pieces that are joined to what is seen count as well, such as the inner wall of a shell with a hole.
    """
    sums = face_areas(mesh.vertices.double(), mesh.faces).cpu().cumsum(0)
    places = (torch.arange(DARK_POINTS, device="cpu") + 0.5) / DARK_POINTS * sums[-1]
    face = torch.searchsorted(sums, places).clamp_max(len(sums) - 1).to(mesh.faces.device)
    center, normal = mesh.vertices[mesh.faces[face].long()].mean(1), normals[face]
    turn = torch.arange(len(face), device=face.device).float()
    directions = cosine_directions(DARK_RAYS, device=face.device)
    open_sky: Any = kernels["open_sky"]
    free = torch.zeros(len(face), device=face.device)
    for way in (normal, -normal):
        start = center + DARK_LIFT * way
        free += open_sky(start, way, turn, mesh.vertices, mesh.faces, directions, math.inf)
    return float((free == 0).double().mean())


def view_count(faces: int) -> int:
    return next((views for most, views in VIEWS if faces <= most), 6)


def projections(
    vertices: Tensor,  # float32 [V, 3]
    count: int,
    side: int,  # pixels
    texel: float,  # side of a pixel
) -> Iterator[tuple[Tensor, Tensor]]:
    """Parallel views along the axes (6), the diagonals of the cube too (14), and those of its sides (26).

    Yields the viewing direction float64 [3], and points float32 [V, 3] for `rasterize`.
    """
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device=vertices.device)
    grid = torch.cartesian_prod(steps, steps, steps)
    length = grid.abs().sum(1)
    order = torch.cat([grid[length == 1], grid[length == 3], grid[length == 2]])
    vertices = vertices.double()
    for direction in torch.nn.functional.normalize(order[:count], dim=1):
        helper = torch.eye(3, dtype=torch.float64, device=vertices.device)[int(direction.abs().argmin())]
        right = torch.nn.functional.normalize(torch.linalg.cross(direction, helper), dim=0)
        down = torch.linalg.cross(direction, right)
        points = vertices @ torch.stack([right / texel, down / texel, direction], dim=1)
        points[:, :2] += side / 2
        yield direction, points.float()


def shell_gaps(mesh: Mesh, piece: Tensor, hidden: Tensor, area: Tensor, kernels: Kernels) -> Tensor:
    """Median distance of the largest hidden pieces to what is seen; float32 [n]."""
    closest_point: Any = kernels["closest_point"]
    numbers = torch.nonzero(hidden).reshape(-1)
    numbers = numbers[area[numbers].argsort(descending=True, stable=True)][:MOST_SHELLS]
    each = SHELL_SAMPLES // len(numbers)
    chosen = [torch.nonzero(piece == number).reshape(-1) for number in numbers.tolist()]
    chosen = [rows[:: len(rows) // each + 1] for rows in chosen]
    faces = mesh.faces[torch.cat(chosen)]
    centers = mesh.vertices[faces.long()].mean(1)
    distance, _, _ = closest_point(centers, mesh.vertices, mesh.faces[~hidden[piece]], FARTHEST)
    return torch.stack([part.median() for part in distance.split([len(rows) for rows in chosen])])
