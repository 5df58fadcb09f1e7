"""Flexible dual grids and PBR voxels straight from signed distance.

A voxel exists when one of its twelve grid edges is crossed by the surface; its dual vertex is the mean of
the crossings. Flag k of voxel c tells whether the edge from corner c + (1,1,1) - e_k to corner c + (1,1,1)
is crossed (the convention of `trellis2.dual_grid`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trellis_core.training.synthetic.shapes import Solids, signed_distance

# The twelve edges of a voxel: start corner (0/1 per axis) and axis.
_EDGES = [
    (np.array([0, 0, 0]) + a * np.eye(3, dtype=int)[(k + 1) % 3] + b * np.eye(3, dtype=int)[(k + 2) % 3], k)
    for k in range(3)
    for a in (0, 1)
    for b in (0, 1)
]
_BLOCK = 4  # cells per side of the blocks that are tested before their corners are evaluated


@dataclass(frozen=True, slots=True)
class VoxelSample:
    """Surface voxels of one object, quantised as the files of the released toolkit are."""

    coords: np.ndarray  # uint8 [N, 3]    sorted by x, y, z
    position: np.ndarray  # uint8 [N, 3]    dual vertex in the voxel, 255 = 1
    flags: np.ndarray  # uint8 [N]       bit k: flag of axis k
    attrs: np.ndarray  # uint8 [N, 6]    base color, metallic, roughness, alpha


def voxelize(solids: Solids, index: int, resolution: int = 64) -> VoxelSample:
    """The dual grid and materials of solid `index` on a grid of `resolution` (at most 256)."""
    values = _corner_distances(solids, index, resolution)
    inside = values < 0
    count = sum(
        inside[x : x + resolution, y : y + resolution, z : z + resolution].astype(np.int8)
        for x in (0, 1)
        for y in (0, 1)
        for z in (0, 1)
    )
    coords = np.argwhere((count > 0) & (count < 8))
    total = np.zeros((len(coords), 3), np.float32)
    hits = np.zeros(len(coords), np.float32)
    flags = np.zeros(len(coords), np.uint8)
    for start, axis in _EDGES:
        a = coords + start
        b = a + np.eye(3, dtype=int)[axis]
        da, db = values[tuple(a.T)], values[tuple(b.T)]
        crossed = (da < 0) != (db < 0)
        along = np.where(crossed, da / np.where(crossed, da - db, 1), 0)
        total += crossed[:, None] * start
        total[:, axis] += along
        hits += crossed
        if start.sum() == 2:
            flags |= crossed.astype(np.uint8) << axis
    position = total / hits[:, None]
    points = ((coords + position) / resolution - 0.5).astype(np.float32)
    _, part = signed_distance(solids, points, np.full(len(points), index, np.int32))
    attrs = np.concatenate([solids.materials[part], np.ones((len(part), 1), np.float32)], axis=1)
    return VoxelSample(
        np.ascontiguousarray(coords, np.uint8),
        np.round(position * 255).astype(np.uint8),
        flags,
        np.round(attrs.clip(0, 1) * 255).astype(np.uint8),
    )


def _corner_distances(solids: Solids, index: int, resolution: int) -> np.ndarray:  # float32 [R+1, R+1, R+1]
    """Distances at grid corners near the surface; elsewhere the distance at the middle of the corner's
    block."""
    blocks = resolution // _BLOCK
    block = np.stack(np.meshgrid(*[np.arange(blocks)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    middle, _ = _evaluate(solids, index, (block + 0.5) / blocks - 0.5)
    values = np.empty((resolution + 1,) * 3, np.float32)
    coarse = middle.reshape((blocks,) * 3)
    for axis in range(3):
        coarse = np.repeat(coarse, _BLOCK, axis=axis)
    values[:-1, :-1, :-1] = coarse
    values[-1], values[:, -1], values[:, :, -1] = 1, 1, 1
    near = block[
        np.abs(middle) < 1.75 / blocks
    ]  # sqrt(3)/2 would do for exact distances; ellipsoids are bounds
    inner = np.stack(np.meshgrid(*[np.arange(_BLOCK + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    corners = (near[:, None] * _BLOCK + inner[None]).reshape(-1, 3)
    distance, _ = _evaluate(solids, index, corners / resolution - 0.5)
    values[tuple(corners.T)] = distance
    return values


def _evaluate(solids: Solids, index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return signed_distance(solids, points.astype(np.float32), np.full(len(points), index, np.int32))
