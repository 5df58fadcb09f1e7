"""Flexible dual grids and PBR voxels straight from signed distance.

A voxel exists when one of its twelve grid edges is crossed by the surface; its dual vertex is the mean of
the crossings. Flag k of voxel c tells whether the edge from corner c + (1,1,1) - e_k to corner c + (1,1,1)
is crossed (the convention of `trellis2.dual_grid`).

Space is searched from coarse blocks to small ones; each block keeps the parts that can reach its surface.

Letters: T voxels, B solids, R grid resolution, G blocks, K pairs of a part and a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from trellis_core.training.synthetic.shapes import (
    Solids,
    deciding_part,
    join,
    nearest_by_operation,
    part_distances,
    ragged,
)

LEAF = 4  # voxels per side of the smallest blocks
COARSE = 16  # largest number of blocks per side that is tested without a search
SLACK = 1.25  # the distance inside an ellipsoid can exceed the true one by this factor


@dataclass(frozen=True, slots=True)
class VoxelSample:
    """Surface voxels of one object or, packed, of several; quantised as the files of the released toolkit."""

    coords: Tensor  # uint8 [T, 3]    sorted by x, y, z
    position: Tensor  # uint8 [T, 3]    dual vertex in the voxel, 255 = 1
    flags: Tensor  # uint8 [T]       bit k: flag of axis k
    attrs: Tensor  # uint8 [T, 6]    base color, metallic, roughness, alpha
    roles: Tensor  # uint8 [T]       role of the part at the dual vertex, as `Solids.roles`

    def __len__(self) -> int:
        return len(self.coords)

    def rows(self, rows: slice) -> VoxelSample:
        """Some of the voxels."""
        return VoxelSample(
            self.coords[rows], self.position[rows], self.flags[rows], self.attrs[rows], self.roles[rows]
        )


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks that the surface may pass through, and the parts that may matter there."""

    key: Tensor  # int64 [G]      ((solid * S + x) * S + y) * S + z, with S blocks per side
    group: Tensor  # int64 [K]      which block each pair belongs to
    part: Tensor  # int64 [K]      ascending row of the solids
    side: int  # S

    def unpack(self) -> tuple[Tensor, Tensor]:  # int64 [G] solid, int64 [G, 3] block coordinates
        s = self.side
        return self.key // s**3, torch.stack([self.key // s**2 % s, self.key // s % s, self.key % s], dim=1)


def voxelize_batch(
    solids: Solids,
    resolution: int = 128,  # a multiple of 4, at most 256
) -> tuple[VoxelSample, Tensor]:  # packed voxels; int64 [B + 1]  first voxel of each solid
    """The dual grids and materials of all solids, on the solids' device."""
    if resolution % LEAF or not 0 < resolution <= 256:
        raise ValueError(f"resolution must be a multiple of {LEAF}, at most 256, got {resolution}")
    blocks = _leaf_blocks(solids, resolution)
    values = _corner_distances(solids, blocks, resolution)
    cells = _crossed_cells(values)
    corners = _cell_corners(values, cells)
    solid, block = blocks.unpack()
    owner = solid[cells[:, 0]]
    coords = block[cells[:, 0]] * LEAF + cells[:, 1:]
    position, flags = _dual_vertices(corners)
    part = _surface_parts(solids, blocks, cells[:, 0], (coords + position) / resolution - 0.5)
    order = torch.argsort(
        ((owner * resolution + coords[:, 0]) * resolution + coords[:, 1]) * resolution + coords[:, 2]
    )
    material = solids.materials[part[order]]
    attrs = torch.cat([material, torch.ones_like(material[:, :1])], dim=1)
    counts = torch.bincount(owner, minlength=len(solids))
    voxels = VoxelSample(
        coords=coords[order].byte(),
        position=(position[order] * 255).round().byte(),
        flags=flags[order],
        attrs=(attrs.clamp(0, 1) * 255).round().byte(),
        roles=solids.roles[part[order]],
    )
    return voxels, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def surface_points(voxels: VoxelSample, resolution: int) -> Tensor:  # float32 [T, 3]
    """The dual vertices in the unit cube."""
    return (voxels.coords + voxels.position / 255) / resolution - 0.5


# ---- blocks, from coarse to small


def _leaf_blocks(solids: Solids, resolution: int) -> _Blocks:
    """The blocks of LEAF voxels per side that may hold a crossed edge."""
    side = resolution // LEAF
    halvings = 0
    while side > COARSE and side % 2 == 0:
        side, halvings = side // 2, halvings + 1
    blocks = _coarse_blocks(solids, side, 1 / resolution)
    for _ in range(halvings):
        blocks = _halve(solids, blocks, 1 / resolution)
    return blocks


def _coarse_blocks(solids: Solids, side: int, cell: float) -> _Blocks:
    device = solids.device
    axis = (torch.arange(side, device=device) + 0.5) / side - 0.5
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, 1, -1)
    part = torch.arange(len(solids.parts), device=device)
    distance = part_distances(solids, centers, torch.zeros_like(part), part)
    keys = torch.arange(len(solids) * side**3, device=device).view(len(solids), -1)
    return _near_blocks(solids, distance, solids.owner, part, keys, side, cell)


def _halve(solids: Solids, blocks: _Blocks, cell: float) -> _Blocks:
    """The halves of the blocks' sides: up to eight blocks for one."""
    side = 2 * blocks.side
    solid, block = blocks.unpack()
    half = torch.arange(2, device=solids.device)
    child = 2 * block[:, None] + torch.cartesian_prod(half, half, half)  # [G, 8, 3]
    keys = ((solid[:, None] * side + child[..., 0]) * side + child[..., 1]) * side + child[..., 2]
    centers = ((child + 0.5) / side - 0.5).permute(2, 0, 1)
    distance = part_distances(solids, centers, blocks.group, blocks.part)
    return _near_blocks(solids, distance, blocks.group, blocks.part, keys, side, cell)


def _near_blocks(
    solids: Solids,
    distance: Tensor,  # float32 [K, Q]  of the parts at the blocks' centers
    group: Tensor,  # int64 [K]
    part: Tensor,  # int64 [K]
    keys: Tensor,  # int64 [G, Q]    of the blocks
    side: int,  # blocks per side
    cell: float,  # side of a voxel
) -> _Blocks:
    """The blocks whose circumscribed ball the surface reaches, each with the parts that come within a voxel
    of that ball: others change no sign in the block, and no distance at the ends of a crossed edge."""
    radius = sqrt(3) / 2 / side
    near = join(nearest_by_operation(solids, distance, group, part, len(keys))).abs() <= radius * SLACK
    number = (near.flatten().cumsum(0) - 1).view_as(near)
    pair, column = (near[group] & (distance <= radius + cell)).nonzero(as_tuple=True)
    return _Blocks(keys[near], number[group[pair], column], part[pair], side)


# ---- voxels of a block


def _corner_distances(solids: Solids, blocks: _Blocks, resolution: int) -> Tensor:  # float32 [G, 125]
    """Distances at the corners of the blocks' voxels."""
    span = torch.arange(LEAF + 1, device=solids.device)
    corner = blocks.unpack()[1][:, None] * LEAF + torch.cartesian_prod(span, span, span)
    points = (corner / resolution - 0.5).permute(2, 0, 1)
    distance = part_distances(solids, points, blocks.group, blocks.part)
    return join(nearest_by_operation(solids, distance, blocks.group, blocks.part, len(blocks.key)))


def _crossed_cells(values: Tensor) -> Tensor:  # int64 [T, 4]  block, and the voxel's place in it
    """Voxels whose corners differ in sign."""
    some = every = (values < 0).view(-1, LEAF + 1, LEAF + 1, LEAF + 1)
    for axis in (1, 2, 3):
        low, high = (slice(None),) * axis + (slice(LEAF),), (slice(None),) * axis + (slice(1, None),)
        some, every = some[low] | some[high], every[low] & every[high]
    return (some & ~every).nonzero()


def _cell_corners(values: Tensor, cells: Tensor) -> Tensor:  # float32 [8, T]  corner 4x + 2y + z
    n = LEAF + 1
    first = ((cells[:, 0] * n + cells[:, 1]) * n + cells[:, 2]) * n + cells[:, 3]
    steps = [(x * n + y) * n + z for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    return torch.stack([values.flatten()[first + step] for step in steps])


def _dual_vertices(corners: Tensor) -> tuple[Tensor, Tensor]:  # float32 [T, 3] in [0, 1]; uint8 [T]
    """The mean of the crossings of a voxel's edges, and its flags."""
    total = corners.new_zeros(3, corners.shape[1])
    hits = torch.zeros_like(total[0])
    flags = torch.zeros_like(hits, dtype=torch.uint8)
    for axis, start in _edges():
        a, b = corners[start], corners[start + (4 >> axis)]
        crossed = (a < 0) != (b < 0)
        total[axis] += torch.where(crossed, a / (a - b), 0)
        for other in range(3):
            if start & (4 >> other):
                total[other] += crossed
        hits += crossed
        if start | (4 >> axis) == 7:
            flags |= crossed.byte() << axis
    return (total / hits).T, flags


def _edges() -> Iterator[tuple[int, int]]:
    """Axis and first corner of the twelve edges of a voxel."""
    for axis in range(3):
        for corner in range(8):
            if not corner & (4 >> axis):
                yield axis, corner


def _surface_parts(solids: Solids, blocks: _Blocks, block: Tensor, points: Tensor) -> Tensor:  # int64 [T]
    """The part that decides at each point of a block; `block` is ascending."""
    count = torch.bincount(block, minlength=len(blocks.key))
    pair, point = ragged((count.cumsum(0) - count)[blocks.group], count[blocks.group])
    part = blocks.part[pair]
    distance = part_distances(solids, points.T[:, :, None], point, part)
    nearest = nearest_by_operation(solids, distance, point, part, len(points))
    return deciding_part(solids, distance, nearest, point, part)[:, 0]
