"""Which side is outside: consistent winding, flood fill, outward faces, enclosed pieces.

The raw dual-grid surface has no inside and no consistent winding. Relative winding follows from the
neighbours; the absolute sign comes from cells that a flood from the border of the grid can reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.cleanup import keep_faces
from trellis_core.geometry.connectivity import (
    connected_components,
    edges_of,
    face_components,
    number_labels,
    partner_sides,
    side_ends,
)
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import Mesh

MAX_FLOOD_SIDE = 256  # cells; finer grids are flooded at a coarser, still closed, resolution
REACH = 3.0  # cells to walk from a face before giving up
CLEAR_VOTE = 0.1  # share of a component's area by which one side must win


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cells around an object that the outside can reach."""

    outside: Tensor  # bool [G+2, G+2, G+2]  one free cell of padding on every side

    @property
    def cells(self) -> int:
        return self.outside.shape[0] - 2

    def at(self, points: Tensor) -> Tensor:
        """Whether world points [N, 3] lie in outside cells, bool [N]."""
        cell = torch.floor((points + 0.5) * self.cells).long().clamp(-1, self.cells) + 1
        return self.outside[cell[:, 0], cell[:, 1], cell[:, 2]]


def flood_surroundings(mesh: Mesh, blocked: Tensor, resolution: int) -> Surroundings:
    """Flood the free cells from the border. `blocked` int [N, 3] are opaque voxels; the mesh blocks too."""
    factor = -(-resolution // MAX_FLOOD_SIDE)
    cells = -(-resolution // factor)
    corners = mesh.vertices[mesh.faces.long()]
    points = torch.cat([corners.reshape(-1, 3), corners.mean(1)])
    cell = torch.cat([torch.floor((points + 0.5) * resolution).long(), blocked.long()])
    cell = cell[((cell >= 0) & (cell < resolution)).all(1)] // factor + 1
    free = torch.ones((cells + 2,) * 3, dtype=torch.bool, device=mesh.vertices.device)
    free[cell[:, 0], cell[:, 1], cell[:, 2]] = False
    return Surroundings(flood(free))


def flood(free: Tensor) -> Tensor:
    """Free cells connected to the grid's border through cell faces, by sweeps; bool [G, G, G] in and out."""
    reached = torch.zeros_like(free)
    for axis in range(3):
        for border in (0, -1):
            reached.select(axis, border).copy_(free.select(axis, border))
    count = -1
    while (now := int(reached.sum())) != count:
        count = now
        for axis in range(3):
            for order in (range(1, free.shape[axis]), range(free.shape[axis] - 2, -1, -1)):
                step = -order.step
                for index in order:
                    layer = reached.select(axis, index)
                    layer |= reached.select(axis, index + step) & free.select(axis, index)
    return reached


def consistent_winding(faces: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Faces to flip (bool [F]) so that neighbours agree, and the patch of each face (int64 [F]).

    Breadth first from the lowest face of each component, which keeps its winding. Where a component is not
    orientable (a Möbius strip) the contradiction ends up between two patches.
    """
    count = len(faces)
    start, _ = side_ends(faces)
    has = partner >= 0
    neighbor = torch.where(has, partner // 3, -1)
    side = torch.arange(3 * count, device=faces.device).reshape(-1, 3)
    disagree = has & (start[side] == start[partner.clamp_min(0)])
    flip = torch.zeros(count, dtype=torch.bool, device=faces.device)
    seen = torch.zeros_like(flip)
    component = face_components(partner)
    frontier = torch.unique(component)
    seen[frontier] = True
    while len(frontier):
        near = neighbor[frontier]
        turned = flip[frontier, None] ^ disagree[frontier]
        new = (near >= 0) & ~seen[near.clamp_min(0)]
        face, first = near[new], turned[new]
        flip[face] = first  # two ways in that disagree: either is as good, the patches below tell
        seen[face] = True
        frontier = torch.unique(face)
    agree = has & ~(flip[:, None] ^ flip[neighbor.clamp_min(0)] ^ disagree)
    side = side[agree]
    pairs = torch.stack([side // 3, neighbor.reshape(-1)[side]], dim=1)
    return flip, connected_components(pairs, count)


def flip_faces(faces: Tensor, flip: Tensor) -> Tensor:
    """Reverse the winding where `flip` is true; the first corner stays first."""
    return torch.where(flip[:, None], faces[:, [0, 2, 1]], faces)


def unify_orientations(faces: Tensor) -> Tensor:
    """Wind neighbouring faces alike; in each component the lowest face keeps its winding."""
    flip, _ = consistent_winding(faces, partner_sides(edges_of(faces)))
    return flip_faces(faces, flip)


def orient_outward(mesh: Mesh, around: Surroundings) -> tuple[Mesh, float]:
    """Wind all faces so that they are counter-clockwise seen from outside.

    Returns the mesh and the share of its area in patches without a clear side. A patch is turned by
    the vote of its faces on which side reaches the outside sooner; without a clear vote, by its volume.
    """
    if len(mesh.faces) == 0:
        return mesh, 0.0
    flip, label = consistent_winding(mesh.faces, partner_sides(edges_of(mesh.faces)))
    mesh = replace(mesh, faces=flip_faces(mesh.faces, flip))
    patch, count = number_labels(label)
    area = face_areas(mesh.vertices.double(), mesh.faces)

    def per_patch(values: Tensor) -> Tensor:
        shape = (count, *values.shape[1:])
        return torch.zeros(shape, dtype=torch.float64, device=area.device).index_add_(
            0, patch, values.double()
        )

    total = per_patch(area).clamp_min(1e-30)
    vote = per_patch(area * outside_votes(mesh, around)) / total
    corners = mesh.vertices.double()[mesh.faces.long()]
    middle = per_patch(area[:, None] * corners.mean(1)) / total[:, None]
    a, b, c = (corners - middle[patch][:, None]).unbind(1)
    volume = per_patch((a * torch.linalg.cross(b, c)).sum(1) / 6) / total**1.5
    clear_vote, clear_volume = vote.abs() > CLEAR_VOTE, volume.abs() > 1e-3
    sign = torch.where(clear_vote | ~clear_volume, vote, volume)
    unclear = ~clear_vote & ~clear_volume
    share = float(total[unclear].sum() / total.sum())
    return replace(mesh, faces=flip_faces(mesh.faces, (sign < 0)[patch])), share


def outside_votes(mesh: Mesh, around: Surroundings) -> Tensor:
    """Per face: +1 when its front reaches the outside sooner than its back, -1 the other way, else 0."""
    center = mesh.vertices[mesh.faces.long()].mean(1)
    step = face_normals(mesh.vertices, mesh.faces) / around.cells

    def distance(direction: float) -> Tensor:
        found = torch.full((len(center),), torch.inf, device=center.device)
        for length in torch.arange(0.5, REACH + 0.25, 0.5).tolist():
            hit = around.at(center + direction * length * step) & torch.isinf(found)
            found[hit] = length
        return found

    front, back = distance(1.0), distance(-1.0)
    return (front < back).double() - (back < front).double()


def remove_enclosed(mesh: Mesh, around: Surroundings) -> Mesh:
    """Drop pieces that the outside cannot reach: inner walls of a double shell, hidden debris.

    A piece is dropped only as a whole and only when no cell next to any of its vertices is outside.
    """
    if len(mesh.faces) == 0:
        return mesh
    step = (
        torch.tensor(
            [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]],
            device=mesh.vertices.device,
        )
        / around.cells
    )
    near = torch.stack([around.at(mesh.vertices + offset) for offset in step]).any(0)
    faces = mesh.faces.long()
    piece = connected_components(torch.cat([faces[:, :2], faces[:, 1:]]), len(mesh.vertices))
    reached = torch.zeros_like(near)
    reached[piece[near]] = True
    keep = reached[piece[faces[:, 0]]]
    return keep_faces(mesh, keep) if bool(keep.any()) else mesh
