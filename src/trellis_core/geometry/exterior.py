"""The exterior filter: walls that nobody outside can see are taken away.

Decoders make double shells: a wall and a copy of it inside, joined at a few places or through a small hole.
How much of the sky each face sees tells what is inside. What sees next to nothing goes, but only in whole
groups that hang on the rest by short cuts. The light that comes in through an opening is worth the area of
the opening, wherever it falls (form factors are reciprocal: Nusselt, 1928). So a group goes when all that its
faces see is no more than small holes let in, and stays otherwise: the inside of a jar is lit by its mouth.
Letters: F faces, V vertices, N voxels, Q faces looked from, K directions, G cells per side of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from trellis_core.geometry.ambient import cosine_directions
from trellis_core.geometry.cleanup import keep_faces
from trellis_core.geometry.connectivity import (
    Edges,
    connected_components,
    edges_of,
    number_labels,
    partner_sides,
    sum_by,
)
from trellis_core.geometry.orientation import MAX_FLOOD_SIDE, Surroundings
from trellis_core.geometry.triangles import CHUNK, face_areas, normals, side_lengths
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

GLANCES = 4  # directions to each side of a face
ASKED = 4  # faces of which one looks
SPREAD = 3  # neighbours away that what it sees counts for
SECOND_LOOKS = 4  # at the borders of what may go, and at all of it where it is small
DIRECTIONS = 13  # to each side of what may go
DIRECTIONS_ON_GPU = 32
DIM = 0.25  # at most this share of the sky, of both sides together, is seen from inside
CROWD = 2000  # faces of a group that know from glances what they see together
LIT = 0.5  # more than this share is never inside
OPEN_WIDTH = 5  # cells across the shafts through which the sky is surely seen
OPEN_DEPTH = 3  # cells that a face may lie below their bottom
LIFT = 1e-3  # cells: rays start this far from their face
SHORT_CUT = 0.25  # of a group's area: what the holes that it leaves may cover, as disks
STRAY_LIGHT = 0.02  # of what one small hole lets in; rays slip through somewhere
ROUNDS = 4  # of straightening cuts
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class HoleLimits:
    """Which holes are closed anyway, in world units, as in `fill_holes`."""

    perimeter: float  # of any hole
    planar_perimeter: float  # of holes within `flatness` of a plane
    flatness: float


def remove_hidden(
    mesh: Mesh,
    around: Surroundings,
    kernels: Kernels,
    holes: HoleLimits,  # may open in what stays, and let in the only light
    see_through: Tensor | None = None,  # bool [F]  faces that hide nothing
) -> Mesh:
    """Drop the faces that cannot be seen from outside: inner walls of double shells, what closed shells hold.

    Winding does not matter. Runs where the mesh is. Gives the same mesh back where nothing goes, and where
    nothing would be left.
    """
    if len(mesh.faces) == 0:
        return mesh
    device = mesh.vertices.device
    walls = mesh.faces if see_through is None else mesh.faces[~see_through]
    sky = Sky(mesh, walls, kernels["open_sky"], LIFT / around.cells)
    beside = faces_beside(mesh.faces)
    share, guessed = glance(sky, around, beside, glass=see_through is not None)
    rays = DIRECTIONS_ON_GPU if device.type == "cuda" else DIRECTIONS
    for _ in range(SECOND_LOOKS):
        size = closed_off(mesh, share, holes, slack=2)
        border = ((size[beside] > 0) != (size > 0)[:, None]).any(1)
        doubtful = torch.nonzero(guessed & (border | ((size > 0) & (size < CROWD)))).reshape(-1)
        if len(doubtful) == 0:
            break
        share[doubtful] = sky.seen_from(doubtful, rays)
        guessed[doubtful] = False
    keep = closed_off(mesh, share, holes) == 0
    return keep_faces(mesh, keep) if bool(keep.any()) and not bool(keep.all()) else mesh


def faces_beside(faces: Tensor) -> Tensor:
    """The face across each side, int64 [F, 3]; itself where there is none or more than one."""
    partner = partner_sides(edges_of(faces))
    itself = torch.arange(len(faces), device=faces.device)[:, None]
    return torch.where(partner >= 0, partner // 3, itself)


def see_through_faces(
    mesh: Mesh,
    coords: Tensor,  # int [N, 3]
    opaque: Tensor,  # bool [N]  voxels that hide what is behind them
    resolution: int,
) -> Tensor | None:  # bool [F]
    """Faces in cells with voxels of which none is opaque; None where all voxels are."""
    if bool(opaque.all()):
        return None
    factor = -(-resolution // MAX_FLOOD_SIDE)
    cells = -(-resolution // factor)

    def marked(voxels: Tensor) -> Tensor:
        grid = torch.zeros((cells,) * 3, dtype=torch.bool, device=coords.device)
        grid[(voxels.long() // factor).clamp(0, cells - 1).unbind(1)] = True
        return grid

    clear = marked(coords[~opaque]) & ~marked(coords[opaque])
    parts = []
    for faces in mesh.faces.split(CHUNK):
        center = mesh.vertices[faces.long()].mean(1)
        cell = torch.floor((center + 0.5) * (resolution / factor)).long().clamp(0, cells - 1)
        parts.append(clear[cell.unbind(1)])
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Sky:
    """What faces of a mesh see past its walls."""

    mesh: Mesh
    walls: Tensor  # int32 [F, 3]
    open_sky: Any
    lift: float

    def look(self, face: Tensor, center: Tensor, normal: Tensor, directions: Tensor) -> Tensor:
        """Share of the directions [K, 3] around the normals that are free, float32 [Q]."""
        turn = (face.double() * GOLDEN).frac().float() * (2 * math.pi)
        start = center + self.lift * normal
        free: Tensor = self.open_sky(
            start, normal, turn, self.mesh.vertices, self.walls, directions, math.inf
        )
        return free

    def seen_from(self, face: Tensor, count: int) -> Tensor:
        """Share of the sky on both sides of faces [Q], added up, float32 [Q]."""
        corners = self.mesh.vertices[self.mesh.faces[face].long()]
        center, normal = corners.mean(1), normals(corners)
        directions = cosine_directions(count, device=center.device)
        both = self.look(face.repeat(2), center.repeat(2, 1), torch.cat([normal, -normal]), directions)
        return both[: len(face)] + both[len(face) :]


def glance(sky: Sky, around: Surroundings, beside: Tensor, glass: bool) -> tuple[Tensor, Tensor]:
    """Share of the sky that each face sees, both sides added, float32 [F], and where it is a guess, bool [F].

    What lies in the open counts as 1; what the flood did not reach sees nothing. The flood takes glass for a
    wall, so with glass it does not know. Of the others some look, and the rest see what their neighbours see.
    """
    center, way, near = first_looks(sky.mesh, around)
    share = torch.zeros(len(center), device=center.device)
    face = torch.nonzero(way.any(1)).reshape(-1)
    up = torch.tensor([[0.0, 0.0, 1.0]], device=center.device)
    share[face] = sky.look(face, center[face], way[face], up)
    guessed = (share < 1) & (near | glass)
    asked = torch.arange(len(share), device=share.device) % ASKED == 0
    known = ~guessed
    for _ in range(2):
        face = torch.nonzero(asked & ~known).reshape(-1)
        share[face] = sky.seen_from(face, GLANCES)
        share, known = spread(share, known | asked, beside)
        asked = ~known
    return share, guessed


def spread(share: Tensor, known: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Give what is not known the mean of the neighbours that are, and so on; also what is known then."""
    for _ in range(SPREAD):
        tells = known[beside]
        count = tells.sum(1)
        mean = share[beside].where(tells, 0).sum(1) / count.clamp_min(1)
        told = ~known & (count > 0)
        share, known = torch.where(told, mean, share), known | told
    return share, known


def first_looks(mesh: Mesh, around: Surroundings) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, the axis along which each face most likely sees the sky (or 0), whether the flood came near.

    float32 [F, 3], float32 [F, 3], bool [F]. A shaft that is open is several cells wide, so nothing behind a
    small hole lies in one.
    """
    shafts = open_shafts(mesh, around)
    near = beside(around.outside)
    parts = []
    for faces in mesh.faces.split(CHUNK):
        corners = mesh.vertices[faces.long()]
        center, normal = corners.mean(1), normals(corners).abs()
        reached = near[around.cell_of(torch.cat([corners, center[:, None]], dim=1)).unbind(2)].any(1)
        cell = around.cell_of(center)
        best = torch.zeros(len(faces), device=center.device)
        way = torch.zeros_like(center)
        for axis, (first, last) in enumerate(shafts):
            column = cell[:, (axis + 1) % 3], cell[:, (axis + 2) % 3]
            above = cell[:, axis] >= last[column] - OPEN_DEPTH
            below = cell[:, axis] <= first[column] + OPEN_DEPTH
            wins = (above | below) & (normal[:, axis] > best)
            best = torch.where(wins, normal[:, axis], best)
            along = torch.zeros_like(center)
            along[:, axis] = torch.where(above, 1.0, -1.0)
            way = torch.where(wins[:, None], along, way)
        parts.append((center, way, reached))
    centers, ways, reached_faces = (torch.cat(column) for column in zip(*parts, strict=True))
    return centers, ways, reached_faces


def open_shafts(mesh: Mesh, around: Surroundings) -> list[tuple[Tensor, Tensor]]:
    """Per axis the first and last cells of the mesh in columns of `OPEN_WIDTH`, int64 [G, G] each.

    Indexed by the two axes that follow, in turn.
    """
    side = around.outside.shape[0]
    first = torch.full((3, side * side), side, device=mesh.vertices.device)
    last = torch.full_like(first, -1)
    centers = (mesh.vertices[faces.long()].mean(1) for faces in mesh.faces.split(CHUNK))
    for points in (mesh.vertices, *centers):
        cell = around.cell_of(points)
        for axis in range(3):
            column = cell[:, (axis + 1) % 3] * side + cell[:, (axis + 2) % 3]
            first[axis].scatter_reduce_(0, column, cell[:, axis], "amin")
            last[axis].scatter_reduce_(0, column, cell[:, axis], "amax")
    return list(zip(-widest(-first.reshape(3, side, side)), widest(last.reshape(3, side, side)), strict=True))


def widest(height: Tensor) -> Tensor:
    """The largest value within `OPEN_WIDTH`, int64 [3, G, G] in and out."""
    return max_pool2d(height.float(), OPEN_WIDTH, stride=1, padding=OPEN_WIDTH // 2).long()


def beside(outside: Tensor) -> Tensor:
    """Cells that are outside or share a side with one that is, bool [G, G, G]."""
    near = outside.clone()
    for axis in range(3):
        length = outside.shape[axis] - 1
        near.narrow(axis, 1, length).logical_or_(outside.narrow(axis, 0, length))
        near.narrow(axis, 0, length).logical_or_(outside.narrow(axis, 1, length))
    return near


def closed_off(mesh: Mesh, share: Tensor, holes: HoleLimits, slack: float = 1) -> Tensor:
    """For faces that may go the size of their group, int64 [F], 0 for others.

    With slack also for those of which a closer look may find that they may go.
    """
    dark = share <= DIM
    touched = torch.zeros(len(mesh.vertices), dtype=torch.bool, device=share.device)
    touched[mesh.faces[dark].long().reshape(-1)] = True
    # All faces at the edges of dark ones.
    near = torch.nonzero(touched[mesh.faces.long()].any(1)).reshape(-1)
    vertices, faces, share, dark = mesh.vertices.double(), mesh.faces[near], share[near], dark[near]
    edges = edges_of(faces)
    dark = straighten_cuts(edges, side_lengths(vertices, faces), dark, share <= LIT)
    group, count = dark_groups(edges, dark)
    area = face_areas(vertices, faces)
    total, seen = sum_by(torch.stack([area, area * share], 1)[dark], group[dark], count).unbind(1)
    complete = touched[edges.vertices].any(1)
    cuts = cuts_around(vertices, edges, complete, dark, group, count, holes)
    goes = cuts.disks <= slack * SHORT_CUT * total
    # Flat holes may be larger, as the wall goes on beside them, but are no excuse for light.
    stray = STRAY_LIGHT * disk(holes.perimeter)
    if slack == 1:
        goes &= ~cuts.too_long & (seen <= cuts.light + stray)
    else:
        goes &= seen <= slack * cuts.disks + stray
    size = torch.zeros(len(mesh.faces), dtype=torch.int64, device=share.device)
    size[near[dark]] = torch.where(goes, torch.bincount(group[dark], minlength=count), 0)[group[dark]]
    return size


def straighten_cuts(edges: Edges, lengths: Tensor, dark: Tensor, may_darken: Tensor) -> Tensor:
    """Faces take the side of the neighbours with which they share more of their border, bool [F].

    In turns, so that no two neighbours change places.
    """
    pairs = (edges.face_count == 2)[edges.of_side]
    for _ in range(ROUNDS):
        before = dark
        for darken in (True, False):
            count = torch.bincount(edges.of_side[dark].reshape(-1), minlength=len(edges.face_count))
            beside_dark = pairs & (count[edges.of_side] > dark[:, None].long())
            pull = torch.where(beside_dark, lengths, -lengths).where(pairs, 0).sum(1)
            dark = dark | (may_darken & (pull > 0)) if darken else dark & (pull >= 0)
        if torch.equal(before, dark):
            break
    return dark


def dark_groups(edges: Edges, dark: Tensor) -> tuple[Tensor, int]:
    """Number of the group of each dark face (int64 [F], 0 for others), and how many: joined by edges."""
    sides = edges.sides[dark[edges.sides // 3]]
    edge = edges.of_side.reshape(-1)[sides]
    same = edge[1:] == edge[:-1]
    pairs = torch.stack([sides[:-1][same], sides[1:][same]], dim=1) // 3
    label, count = number_labels(connected_components(pairs, len(dark))[dark])
    group = torch.zeros(len(dark), dtype=torch.int64, device=dark.device)
    group[dark] = label
    return group, count


@dataclass(frozen=True, slots=True)
class Cuts:
    """What taking each group of faces away would open."""

    light: Tensor  # float64 [groups]  area of disks with the perimeters of the small holes
    disks: Tensor  # float64 [groups]  of all holes
    too_long: Tensor  # bool [groups]  some hole would stay open


def cuts_around(
    vertices: Tensor,  # float64 [V, 3]
    edges: Edges,
    complete: Tensor,  # bool [E]  edges of which all faces are there
    dark: Tensor,  # bool [F]
    group: Tensor,  # int64 [F]
    count: int,
    limits: HoleLimits,
) -> Cuts:
    """Holes are chains of edges at which an odd number of faces is left, also where that is so already."""
    left = torch.bincount(edges.of_side[~dark].reshape(-1), minlength=len(edges.face_count))
    odd = complete & (left % 2 == 1)
    ends, places = number_labels(edges.vertices[odd])
    chain, chains = number_labels(connected_components(ends, places)[ends[:, 0]])
    points = vertices[edges.vertices[odd]]
    perimeter = sum_by((points[:, 0] - points[:, 1]).norm(dim=1), chain, chains)
    flat = thickness(points.mean(1), chain, chains) <= limits.flatness
    small = perimeter < limits.perimeter
    closes = small | (flat & (perimeter < limits.planar_perimeter))

    owner = torch.zeros_like(edges.face_count).scatter_reduce(
        0, edges.of_side[dark].reshape(-1), group[dark].repeat_interleave(3), "amax"
    )
    opened = (left < edges.face_count)[odd]
    hole = torch.unique(chain[opened] * count + owner[odd][opened])
    hole, of = hole // count, hole % count
    area = disk(perimeter)[hole]
    return Cuts(
        sum_by(area * small[hole], of, count),
        sum_by(area, of, count),
        torch.bincount(of[~closes[hole]], minlength=count) > 0,
    )


def thickness(points: Tensor, owner: Tensor, count: int) -> Tensor:
    """How far the points [N, 3] of each owner reach from the plane that suits them best, float64 [count]."""
    size = torch.bincount(owner, minlength=count)[:, None]
    off = points - (sum_by(points, owner, count) / size)[owner]
    spread = sum_by(off[:, :, None] * off[:, None], owner, count)
    normal = torch.linalg.eigh(spread).eigenvectors[:, :, 0]
    reach = (off * normal[owner]).sum(1).abs()
    return torch.zeros(count, dtype=reach.dtype, device=reach.device).scatter_reduce(0, owner, reach, "amax")


def disk(perimeter: Any) -> Any:
    """Area of a disk."""
    return perimeter**2 / (4 * math.pi)
