"""Which side is outside: flood fill and outward faces.

The raw dual-grid surface has no inside and no consistent winding. Relative winding follows from the
neighbours (`winding.py`); the absolute sign from cells that a flood from the border of the grid reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import connected_components, edges_of, partner_sides, sum_by
from trellis_core.geometry.triangles import CHUNK, cross, face_centers, normals
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.winding import consistent_winding, flip_faces

MAX_FLOOD_SIDE = 256  # cells; finer grids are flooded at a coarser, still closed, resolution
STEPS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # cells from a face, walked before giving up
CLEAR_VOTE = 0.1  # share of a component's area by which one side must win


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cells around an object that the outside can reach."""

    outside: Tensor  # bool [G+2, G+2, G+2]  one free cell of padding on every side

    @property
    def cells(self) -> int:
        return self.outside.shape[0] - 2

    def cell_of(self, points: Tensor) -> Tensor:
        """Place in `outside` of world points [..., 3], int64 [..., 3]."""
        return torch.floor((points + 0.5) * self.cells).long().clamp(-1, self.cells) + 1

    def at(self, points: Tensor) -> Tensor:
        """Whether world points [N, 3] lie in outside cells, bool [N]."""
        return self.outside[self.cell_of(points).unbind(1)]


def flood_surroundings(mesh: Mesh, blocked: Tensor, resolution: int) -> Surroundings:
    """Flood the free cells from the border. `blocked` int [N, 3] are opaque voxels; the mesh blocks too."""
    factor = -(-resolution // MAX_FLOOD_SIDE)
    cells = -(-resolution // factor)
    free = torch.ones((cells + 2,) * 3, dtype=torch.bool, device=mesh.vertices.device)
    for points in mesh.vertices.split(CHUNK):
        block(free, cells_at(points, resolution), resolution, factor)
    for faces in mesh.faces.split(CHUNK):
        block(free, cells_at(face_centers(mesh.vertices, faces), resolution), resolution, factor)
    for voxels in blocked.split(CHUNK):
        block(free, voxels, resolution, factor)
    return Surroundings(flood(free))


def cells_at(points: Tensor, resolution: int) -> Tensor:
    return torch.floor((points + 0.5) * resolution).int()


def block(free: Tensor, voxels: Tensor, resolution: int, factor: int) -> None:
    """Mark the cells of int voxels [N, 3] as not free; those outside of the grid are passed over."""
    cell = voxels[((voxels >= 0) & (voxels < resolution)).all(1)].long() // factor + 1
    free[cell[:, 0], cell[:, 1], cell[:, 2]] = False


def flood(free: Tensor) -> Tensor:
    """Free cells connected to the grid's border through cell faces; bool [G, G, G] in and out.

    Works on runs, the free stretches of each column: there are thousands of times fewer than cells.
    """
    side = free.shape[2]
    column = side + 1  # keys per column: a wall, then the cells
    walls = torch.nonzero(torch.nn.functional.pad(~free, (1, 0), value=True).reshape(-1)).squeeze(1)
    walls = torch.cat([walls, walls.new_tensor([free.shape[0] * free.shape[1] * column])])
    gap = walls[1:] - walls[:-1] > 1
    start, end = walls[:-1][gap] + 1, walls[1:][gap]  # a run is [start, end)

    # A key shifted by one column or one slab names the neighbouring cell. The last column of a slab meets the
    # first one of the next slab: both are at the border, so a link between them changes nothing.
    links = []
    for shift in (column, column * free.shape[1]):
        first = torch.searchsorted(end, start + shift, right=True)
        count = (torch.searchsorted(start, end + shift) - first).clamp_min(0)
        run = torch.repeat_interleave(torch.arange(len(start), device=free.device), count)
        place = torch.arange(len(run), device=free.device) - torch.repeat_interleave(
            count.cumsum(0) - count, count
        )
        links.append(torch.stack([run, first[run] + place], dim=1))
    label = connected_components(torch.cat(links), len(start))

    x, y = start // column // free.shape[1], start // column % free.shape[1]
    at_border = (x == 0) | (x == free.shape[0] - 1) | (y == 0) | (y == free.shape[1] - 1)
    at_border |= (start % column == 1) | (end % column == 0)
    open_labels = torch.zeros(len(start), dtype=torch.bool, device=free.device)
    open_labels[label[at_border]] = True
    reached = open_labels[label]
    change = torch.zeros(free.shape[0] * free.shape[1] * column + 1, dtype=torch.int8, device=free.device)
    change[start[reached]], change[end[reached]] = 1, -1
    inside = torch.cumsum(change, 0, dtype=torch.int8)[:-1].bool()
    return inside.reshape(*free.shape[:2], column)[:, :, 1:].contiguous()


def orient_outward(mesh: Mesh, around: Surroundings) -> tuple[Mesh, float]:
    """Wind all faces so that they are counter-clockwise seen from outside.

    Returns the mesh and the share of its area in patches without a clear side. A patch is turned by
    the vote of its faces on which side reaches the outside sooner; without a clear vote, by its volume.
    """
    if len(mesh.faces) == 0:
        return mesh, 0.0
    flip, patch, count = consistent_winding(mesh.faces, partner_sides(edges_of(mesh.faces)))
    mesh = replace(mesh, faces=flip_faces(mesh.faces, flip))
    sums = torch.zeros(count, 9, dtype=torch.float64, device=mesh.vertices.device)
    for faces, owner in zip(mesh.faces.split(CHUNK), patch.split(CHUNK), strict=True):
        sums += sum_by(side_terms(mesh.vertices[faces.long()], around), owner, count)
    area, vote, volume = sums[:, 0].clamp_min(1e-30), sums[:, 1], sums[:, 2]
    # The volume is seen from the patch's middle, so that open patches have one as well.
    middle = sums[:, 3:6] / area[:, None]
    volume = (volume - (middle * sums[:, 6:9]).sum(1)) / 6 / area**1.5
    vote = vote / area
    clear_vote, clear_volume = vote.abs() > CLEAR_VOTE, volume.abs() > 1e-3
    sign = torch.where(clear_vote | ~clear_volume, vote, volume)
    unclear = ~clear_vote & ~clear_volume
    share = float(area[unclear].sum() / area.sum())
    return replace(mesh, faces=flip_faces(mesh.faces, (sign < 0)[patch])), share


def side_terms(corners: Tensor, around: Surroundings) -> Tensor:
    """What tells the sides of faces [C, 3, 3] apart, in sums over faces; float64 [C, 9].

    Area, area * vote, six times the volume under the face, area * centre [3], twice the area vector [3].
    """
    vote = outside_votes(corners, around)
    corners = corners.double()
    vector = cross(corners)
    area = 0.5 * vector.norm(dim=1)
    a, b, c = corners.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1)
    scalars = torch.stack([area, area * vote, volume], dim=1)
    return torch.cat([scalars, area[:, None] * corners.mean(1), vector], dim=1)


def outside_votes(corners: Tensor, around: Surroundings) -> Tensor:
    """Per face [C, 3, 3]: +1 if its front reaches the outside sooner than its back, -1 if later, else 0."""
    center, step = corners.mean(1), normals(corners) / around.cells
    vote = torch.zeros(len(center), device=center.device)
    undecided = torch.arange(len(center), device=center.device)
    for length in STEPS:
        front, back = around.at(center + length * step), around.at(center - length * step)
        vote[undecided] = front.float() - back.float()
        walk_on = ~(front | back)
        undecided, center, step = undecided[walk_on], center[walk_on], step[walk_on]
    return vote
