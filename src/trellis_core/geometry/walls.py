"""Thin walls and narrow gaps: where the voxels of one sheet lie next to those of another one.

A sample on one sheet then mixes in what the other shows. Sampled a little away from the other sheet it does
so less. Measured on a tilted wall 1.5 voxels thick, red outside and blue inside: 4.1 % of the other color
without a step, 1.2 % with 0.25 voxel outwards, 12 % with as much inwards. Letters: F faces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.triangles import face_centers, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

THIN = 2.0  # voxels between two sheets below which they share voxels
STEP = 0.25  # voxels
LIFT = 0.02  # voxels that a ray starts off its face
EVEN = 0.1  # voxels: a sheet so near the middle of two others stays where it is
OPPOSED = -0.5  # cosine between two sheets that look away from each other, or at each other


def steps_aside(mesh: Mesh, voxel: float, kernels: Kernels) -> Tensor:  # float32 [F, 3]
    """How far from each face to sample so as to see its own sheet only; zero where no other is near.

    One ray to each side from the middle of a face finds the nearest sheet; the step leads away from it.
    """
    ray_cast: Any = kernels["ray_cast"]
    normals = face_normals(mesh.vertices, mesh.faces)
    centers = face_centers(mesh.vertices, mesh.faces)
    directions = torch.cat([normals, -normals])
    origins = centers.repeat(2, 1) + directions * (LIFT * voxel)
    distance, face, _ = ray_cast(origins, directions, mesh.vertices, mesh.faces, THIN * voxel)
    other = normals[face.long().clamp_min(0)]
    opposed = (face >= 0) & ((other * normals.repeat(2, 1)).sum(1) < OPPOSED)
    gap, wall = torch.where(opposed, distance, torch.inf).chunk(2)
    even = EVEN * voxel
    side = (gap > wall + even).float() - (wall > gap + even).float()  # 1 outwards, -1 inwards
    return normals * (side * STEP * voxel)[:, None]
