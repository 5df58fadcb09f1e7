"""Fewer faces before anything else is done: vertices of a cell become one where the surface hardly moves.

Quadric clustering in cells of 2, 4 and 8 voxels (Lindstrom, "Out-of-core simplification of large polygonal
models", 2000), bounded in error as in octree collapse (Ju et al., 2002), and kept from changing the topology
(Schaefer, Ju & Warren, 2007). Works on slabs of the grid one after the other, so that a mesh of twenty
million faces needs little more memory than itself. Winding does not matter. Letters: V vertices, F faces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.geometry.cleanup import drop_unused_vertices
from trellis_core.geometry.connectivity import (
    Edges,
    connected_components,
    edges_of,
    sides_of_edges,
    sum_by,
)
from trellis_core.geometry.types import Mesh

SLAB_VERTICES = 100_000  # about as many are worked on at a time: they stay in the caches
GPU_SLABS = 5  # times as many on a GPU, which takes as long for few as for many
PULL = 1e-2  # towards the centroid, as a share of the area: keeps the vertex of a flat group in its middle
REACH = 0.65  # of a cell: how far the vertex may be from the centroid
TURN = 0.3  # cosine; a face that turns by more undoes the groups at its corners
CHUNK = 1 << 18  # faces at a time


@dataclass(frozen=True, slots=True)
class Quadrics:
    """Squared distance of x to the planes around each vertex p: y'My + 2b'y + c with y = x - p."""

    matrix: Tensor  # float64 [V, 6]  upper triangle; its trace is the area
    vector: Tensor  # float64 [V, 3]
    constant: Tensor  # float64 [V]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the mesh, in voxels."""

    points: Tensor  # float64 [V, 3]
    faces: Tensor  # int64 [F, 3]
    fixed: Tensor  # bool [V]  vertices that stay
    quadrics: Quadrics


def cluster_vertices(
    mesh: Mesh,
    voxel: float,
    levels: int,  # largest cells: 2 ** levels voxels
    tolerance: float = 0.05,  # voxels: root mean square distance of a new vertex from the planes it replaces
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Mesh:
    """Merge vertices where that moves the surface by less than `tolerance`.

    Vertices on open borders and on edges with more than two faces stay as they are. Closed surfaces stay
    closed, sheets stay apart, and no tunnel closes. Faces keep their winding and their order in a slab.
    """
    points = mesh.vertices.double() / voxel
    coarse = 2**levels
    slab_of = cut_slabs(torch.floor(points[:, 0] / coarse).long())
    faces = mesh.faces
    first = first_slabs(faces, slab_of)
    count = int(slab_of.max()) + 1 if len(slab_of) else 0
    number = torch.full((len(points),), -1, device=points.device)
    used = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    pending, done = faces[:0], []
    vertices = mesh.vertices.clone()
    for slab in range(count):
        on_step(slab, count)
        near = torch.cat([pending, faces[first == slab]])
        used[near.long().reshape(-1)] = True
        ids = torch.nonzero(used).reshape(-1)
        used[ids] = False
        number[ids] = torch.arange(len(ids), device=ids.device)
        block = open_block(points[ids], number[near.long()], slab_of[ids] != slab)
        kept = torch.arange(len(ids), device=ids.device)
        for level in range(1, levels + 1):
            block, survivors = merge_cells(block, 2**level, tolerance)
            kept = kept[survivors]
        points[ids[kept]] = block.points
        vertices[ids[kept]] = (block.points * voxel).float()
        near = ids[kept][block.faces].to(faces.dtype)
        later = (slab_of[near.long()] > slab).any(1)
        done.append(near[~later])
        pending = near[later]
    on_step(count, count)
    return drop_unused_vertices(Mesh(vertices, torch.cat(done) if done else faces))


def cut_slabs(column: Tensor) -> Tensor:
    """Slab of each vertex, int64 [V]: whole columns of cells."""
    if len(column) == 0:
        return column
    column = column - column.min()
    before = torch.bincount(column).cumsum(0)
    most = SLAB_VERTICES * (1 if column.device.type == "cpu" else GPU_SLABS)
    return (before // most)[column]


def first_slabs(faces: Tensor, slab_of: Tensor) -> Tensor:
    """Lowest slab among the corners of each face, int16 [F]."""
    slab = slab_of.to(torch.int16)
    parts = []
    for part in faces.split(CHUNK):
        a, b, c = (slab[corner] for corner in part.unbind(1))
        parts.append(torch.minimum(torch.minimum(a, b), c))
    return torch.cat(parts) if parts else slab[:0]


def open_block(points: Tensor, faces: Tensor, fixed: Tensor) -> Block:
    a, b, c = points[faces].unbind(1)
    vector = torch.linalg.cross(b - a, c - a)
    length = vector.norm(dim=1, keepdim=True)
    normal = vector / length.clamp_min(1e-30)
    # a third of the area to each corner; relative to a corner, the plane has no other terms
    matrix = outer(normal) * (length / 6)
    total = sum_by(matrix.repeat(3, 1), faces.T.reshape(-1), len(points))
    return Block(
        points, faces, fixed, Quadrics(total, torch.zeros_like(points), points.new_zeros(len(points)))
    )


def outer(vector: Tensor) -> Tensor:
    """Upper triangles of the products of vectors [N, 3] with themselves, [N, 6]."""
    x, y, z = vector.unbind(1)
    return torch.stack([x * x, x * y, x * z, y * y, y * z, z * z], 1)


def merge_cells(block: Block, cell: int, tolerance: float) -> tuple[Block, Tensor]:
    """Merge within cells of `cell` voxels; also which vertices are left, int64."""
    edges = edges_of(block.faces)
    fixed = block.fixed.clone()
    fixed[edges.vertices[edges.face_count != 2].reshape(-1)] = True
    place = torch.floor(block.points / cell).long()
    ends = edges.vertices
    inner = (place[ends[:, 0]] == place[ends[:, 1]]).all(1) & ~fixed[ends].any(1)
    label = connected_components(ends[inner], len(block.points))
    points, quadrics, fits = group_optimum(block, label, cell, tolerance)
    fits &= is_disk(label, ends[inner], block.faces)
    label = torch.where(fits[label], label, torch.arange(len(label), device=label.device))
    label = undo_damage(block, label, points)

    faces = label[block.faces]
    faces = faces[is_proper(faces)]
    merged = torch.bincount(label, minlength=len(label)) > 1
    used = torch.zeros_like(merged)
    used[faces.reshape(-1)] = True
    survivors = torch.nonzero(used).reshape(-1)
    number = torch.cumsum(used, 0) - 1
    choose = merged[survivors]

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(choose.reshape(-1, *[1] * (old.dim() - 1)), new[survivors], old[survivors])

    old = block.quadrics
    left = Quadrics(
        pick(old.matrix, quadrics.matrix),
        pick(old.vector, quadrics.vector),
        pick(old.constant, quadrics.constant),
    )
    return Block(pick(block.points, points), number[faces], block.fixed[survivors], left), survivors


def group_optimum(
    block: Block, label: Tensor, cell: int, tolerance: float
) -> tuple[Tensor, Quadrics, Tensor]:
    """Best point of each group, its quadric there, and whether it is good enough; rows by label."""
    count = len(label)
    old = block.quadrics
    area = old.matrix[:, [0, 3, 5]].sum(1).clamp_min(1e-30)
    area = area[:, None]
    sums = sum_by(torch.cat([area, area * block.points, old.matrix], 1), label, count)
    weight, centroid, matrix = sums[:, 0], sums[:, 1:4], sums[:, 4:]
    centroid = centroid / weight.clamp_min(1e-30)[:, None]
    shift = centroid[label] - block.points
    moved = multiply(old.matrix, shift)
    constant = old.constant + ((2 * old.vector + moved) * shift).sum(1)
    sums = sum_by(torch.cat([old.vector + moved, constant[:, None]], 1), label, count)
    vector, constant = sums[:, :3], sums[:, 3]
    step = solve(matrix, weight, -vector)
    error = constant + ((2 * vector + multiply(matrix, step)) * step).sum(1)
    fits = (error <= tolerance**2 * weight) & (step.norm(dim=1) <= REACH * cell)
    fits &= torch.bincount(label, minlength=count) > 1
    at_optimum = Quadrics(matrix, vector + multiply(matrix, step), error.clamp_min(0))
    return centroid + step, at_optimum, fits


def multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Symmetric matrices [N, 6] times vectors [N, 3]."""
    xx, xy, xz, yy, yz, zz = matrix.unbind(1)
    x, y, z = vector.unbind(1)
    return torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z], 1)


def solve(matrix: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """Solve (matrix + PULL * weight) x = right by the adjugate; the pull keeps it well-conditioned."""
    pull = PULL * weight.clamp_min(1e-30)
    xx, xy, xz, yy, yz, zz = matrix.unbind(1)
    xx, yy, zz = xx + pull, yy + pull, zz + pull
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    determinant = xx * a + xy * b + xz * c
    return multiply(torch.stack([a, b, c, d, e, f], 1), right) / determinant[:, None]


def is_disk(label: Tensor, inner: Tensor, faces: Tensor) -> Tensor:
    """Whether the vertices, edges and faces within each group have Euler characteristic 1; bool by label.

    A connected part of a surface without that has a hole in it, or is all of a closed piece.
    """
    count = len(label)
    corners = label[faces]
    whole = (corners[:, 0] == corners[:, 1]) & (corners[:, 1] == corners[:, 2])
    return (
        torch.bincount(label, minlength=count)
        - torch.bincount(label[inner[:, 0]], minlength=count)
        + torch.bincount(corners[whole, 0], minlength=count)
    ) == 1


@dataclass(frozen=True, slots=True)
class Merged:
    """Faces as they would be: for what must not happen to them."""

    rows: Tensor  # int64 [F]     which faces of the block are left
    faces: Tensor  # int64 [F, 3]  their vertices now
    edges: Edges  # of these faces
    position: Tensor  # float64 [V, 3]  of all vertices, now
    complete: Tensor  # bool [V]  vertices whose faces are all here


Damage = Callable[[Merged], Tensor]  # -> bool [F]


def no_damage(merged: Merged) -> Tensor:
    return torch.zeros_like(merged.rows, dtype=torch.bool)


def undo_damage(block: Block, label: Tensor, points: Tensor, damage: Damage = no_damage) -> Tensor:
    """Take groups apart until they do no harm.

    They must not leave an edge with three faces, a face on another, a face turned over, nothing of a piece.
    `damage` may name more faces that must not be. Only what a taken-apart group touches is looked at again.
    """
    alone = torch.arange(len(label), device=label.device)
    rows = torch.arange(len(block.faces), device=label.device)
    complete = torch.ones_like(label, dtype=torch.bool)
    while True:
        joined = torch.bincount(label, minlength=len(label)) > 1
        position = torch.where(joined[:, None], points, block.points)
        before = label[block.faces[rows]]
        proper = is_proper(before)
        left, faces = rows[proper], before[proper]
        merged = Merged(left, faces, edges_of(faces), position, complete)
        bad = spoiled(merged) | turned(block, merged) | damage(merged)
        bad &= joined[faces].any(1)
        apart = torch.zeros_like(joined)
        apart[faces[bad].reshape(-1)] = True
        apart |= vanished(before, faces, joined)
        apart &= joined
        if not bool(apart.any()):
            return label
        complete = apart[label]
        label = torch.where(complete, alone, label)
        rows = torch.nonzero(complete[block.faces].any(1)).reshape(-1)


def vanished(before: Tensor, left: Tensor, vertices: Tensor) -> Tensor:
    """Vertices that had faces and have none left, bool [V] as `vertices`."""
    gone = torch.zeros_like(vertices)
    gone[before.reshape(-1)] = True
    gone[left.reshape(-1)] = False
    return gone


def spoiled(merged: Merged) -> Tensor:
    """Faces with a side of more than two faces, or with all corners of a neighbour; bool [F]."""
    edges = merged.edges
    bad = edges.face_count > 2
    pair = edges.face_count == 2
    first, second = sides_of_edges(edges, pair)
    corners = merged.faces.sum(1)
    bad[pair] = corners[first // 3] == corners[second // 3]
    return bad[edges.of_side].any(1)


def turned(block: Block, merged: Merged) -> Tensor:
    """Faces whose normal is far from what it was, or that have lost their area; bool [F]."""

    def vectors(points: Tensor, corners: Tensor) -> Tensor:
        a, b, c = points[corners].unbind(1)
        return torch.linalg.cross(b - a, c - a)

    new, old = vectors(merged.position, merged.faces), vectors(block.points, block.faces[merged.rows])
    return (new * old).sum(1) < TURN * new.norm(dim=1) * old.norm(dim=1).clamp_min(1e-30)


def is_proper(faces: Tensor) -> Tensor:
    a, b, c = faces.unbind(1)
    return (a != b) & (b != c) & (c != a)
