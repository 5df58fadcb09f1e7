"""What a run decodes to. Letters: V vertices, N voxels, R cube grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trellis.flexicubes import CubeMesh
from trellis_core.errors import InputError
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh
from trellis_core.sparse.order import key_coords, linear_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One object; what was not asked for is None."""

    mesh: CubeMesh | None = None
    gaussians: Gaussians | None = None
    radiance_field: RadianceField | None = None

    def voxel_mesh(self) -> VoxelMesh:
        """The mesh, and its colors as material voxels: rough, not metallic, opaque.

        Raises `InputError` without a mesh or without a surface in it.
        """
        if self.mesh is None or not len(self.mesh.faces):
            raise InputError(
                "the model made no surface" if self.mesh is not None else "no mesh was decoded",
                hint="use another seed, or decode `mesh`",
            )
        mesh = self.mesh
        vertices = mesh.vertices.float().cpu()
        colors = torch.full((len(vertices), 3), 0.5)
        if mesh.attributes is not None:
            colors = mesh.attributes[:, :3].float().cpu()
        coords, colors = averaged(vertices, colors, mesh.resolution)
        roughness, rest = torch.ones(len(coords), 1), torch.zeros(len(coords), 1)
        attrs = torch.cat([colors, rest, roughness, torch.ones(len(coords), 1)], dim=1)
        return VoxelMesh(Mesh(vertices, mesh.faces.cpu()), PBRVoxels(coords, attrs, mesh.resolution))


def averaged(
    points: Tensor,  # float32 [V, 3]  in the unit cube
    values: Tensor,  # float32 [V, C]
    resolution: int,
) -> tuple[Tensor, Tensor]:  # int32 [N, 3] sorted, float32 [N, C]
    """Values at points as values of the voxels that hold them."""
    cells = ((points + 0.5) * resolution).floor().long().clamp(0, resolution - 1)
    keys, cell = torch.unique(linear_keys(cells, (resolution,) * 3), return_inverse=True)
    total = values.new_zeros(len(keys), values.shape[1]).index_add(0, cell, values)
    return key_coords(keys, (resolution,) * 3), total / torch.bincount(cell)[:, None]
