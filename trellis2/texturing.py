"""Texture a mesh from a picture: mesh -> dual grid -> shape latent -> texture latent -> material voxels.

The texture decoder reuses the voxels that the shape encoder recorded, so the material comes out on
exactly the voxels of the mesh.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trellis2.dual_grid import DualGrid, mesh_to_dual_grid
from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.sparse.tensor import SparseTensor


def mesh_voxels(
    mesh: Mesh,  # inside the unit cube
    resolution: int,  # R, voxel grid
) -> DualGrid:
    """The dual grid of a mesh. Raises `InputError` when it crosses no grid edge."""
    if len(mesh.faces) == 0:
        raise InputError("the mesh has no faces", hint="give a mesh with triangles")
    grid = mesh_to_dual_grid(mesh.vertices, mesh.faces, resolution)
    if len(grid.coords) == 0:
        raise InputError("the mesh has no surface to paint", hint="check that its triangles have an area")
    return grid


def encode_shape(
    encoder: nn.Module,
    coords: Tensor,  # int32 [N, 3]
    dual_vertices: Tensor,  # float32 [N, 3]  in [0, 1], relative to each voxel's lower corner
    crossings: Tensor,  # bool [N, 3]
) -> SparseTensor:  # [T, C] raw shape latent (posterior mean); remembers its voxels
    """Shape latent of one dual grid."""
    rows = torch.cat([torch.zeros_like(coords[:, :1]), coords], dim=1)
    mean, _ = encoder(SparseTensor(dual_vertices.float(), rows, batch_size=1), crossings)
    return mean
