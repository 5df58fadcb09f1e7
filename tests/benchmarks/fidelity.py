"""How faithful an exported mesh and its texture are to the voxels they were made from.

Lengths are in voxels. The reference is the raw surface before any repair, as far as the outside can see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import Mesh, VoxelMesh
from trellis_core.kernels.table import Kernels

SAMPLES = 200_000
FARTHEST = 0.2  # world units


def scatter(mesh: Mesh, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random points on a mesh, even over its area: points [N, 3], faces int64 [N], weights [N, 3]."""
    generator = torch.Generator().manual_seed(0)
    areas = face_areas(mesh.vertices.double(), mesh.faces).cumsum(0)
    pick = torch.rand(count, generator=generator, dtype=torch.float64) * areas[-1]
    face = torch.searchsorted(areas, pick).clamp_max(len(areas) - 1)
    u, v = torch.rand(2, count, generator=generator)
    root = u.sqrt()
    weight = torch.stack([1 - root, root * (1 - v), root * v], dim=1)
    return (mesh.vertices[mesh.faces[face].long()] * weight[:, :, None]).sum(1), face, weight


def shape_fidelity(
    mesh: Mesh,
    shape: VoxelMesh,
    visible: Callable[[np.ndarray], np.ndarray],
    kernels: Kernels,
) -> dict[str, float]:
    """Distances in voxels between export and reference, agreement of normals, and how often it covers it."""
    closest_point: Any = kernels["closest_point"]
    raw = shape.mesh
    corners = raw.vertices[raw.faces.long()].mean(1)
    seen = torch.from_numpy(visible(corners.numpy()))
    target = Mesh(raw.vertices, raw.faces[seen])
    distances, agreement = [], []
    for one, other in ((mesh, target), (target, mesh)):
        points, face, _ = scatter(one, SAMPLES)
        distance, hit, _ = closest_point(points, other.vertices, other.faces, FARTHEST)
        distances.append(distance.double().clamp_max(FARTHEST) * shape.voxels.resolution)
        here = face_normals(one.vertices, one.faces)[face]
        there = face_normals(other.vertices, other.faces)[hit.clamp_min(0).long()]
        agreement.append((here * there).sum(1).abs().double())
    both = torch.cat(distances)
    return {
        "chamfer": float(sum(d.mean() for d in distances) / 2),
        "rms": float(both.square().mean().sqrt()),
        "p99": float(both.quantile(0.99)),
        "farthest": float(both.max()),
        "normals": float(torch.cat(agreement).mean()),
        "area_ratio": float(
            face_areas(mesh.vertices.double(), mesh.faces).sum()
            / face_areas(target.vertices.double(), target.faces).sum()
        ),
    }


def texture_fidelity(mesh: Mesh, base_color: Tensor, shape: VoxelMesh, kernels: Kernels) -> dict[str, float]:
    """PSNR in dB of the texture against the voxels at the nearest point of the raw surface."""
    closest_point: Any = kernels["closest_point"]
    points, face, weight = scatter(mesh, SAMPLES)
    assert mesh.uvs is not None
    uv = (mesh.uvs[mesh.faces[face].long()] * weight[:, :, None]).sum(1)
    got = read_texture(base_color[..., :3].float() / 255, uv)
    raw, side = shape.mesh, shape.voxels.resolution
    _, hit, inner = closest_point(points, raw.vertices, raw.faces, FARTHEST)
    on_raw = (raw.vertices[raw.faces[hit.clamp_min(0).long()].long()] * inner[:, :, None]).sum(1)
    want, support = sample_voxels((on_raw + 0.5) * side, shape.voxels.coords, shape.voxels.attrs, side)
    known = (support > 0) & (hit >= 0)
    square = (got - want[:, :3].clamp(0, 1)).square().mean(1)[known].double()
    return {
        "psnr": float(-10 * square.mean().log10()),
        "bad_texels": float((square > 0.01).double().mean()),  # off by more than a tenth
    }


def read_texture(image: Tensor, uv: Tensor) -> Tensor:
    """Bilinear lookup: image [S, S, C], uv [N, 2] with the origin top left -> [N, C]."""
    grid = (uv * 2 - 1)[None, None]
    found = torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T
