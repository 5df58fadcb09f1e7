"""Texture a mesh from a picture: mesh -> dual grid -> shape latent -> texture latent -> material voxels.

The texture decoder reuses the voxels that the shape encoder recorded, so the material comes out on
exactly the voxels of the mesh.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trellis_core.sparse.tensor import SparseTensor


def to_unit_cube(
    vertices: Tensor,    # float [V, 3]  y up, any size
) -> Tensor:             # like the input, z up, strictly inside [-0.5, 0.5]^3
    """Centre the bounding box, scale its longest side to 0.99999, turn y up into z up."""
    low, high = vertices.amin(0), vertices.amax(0)
    centered = (vertices - (low + high) / 2) * (0.99999 / (high - low).max())
    return torch.stack([centered[:, 0], -centered[:, 2], centered[:, 1]], dim=1)


def encode_shape(
    encoder: nn.Module,
    coords: Tensor,          # int32 [N, 3]
    dual_vertices: Tensor,   # float32 [N, 3]  in [0, 1], relative to each voxel's lower corner
    crossings: Tensor,       # bool [N, 3]
) -> SparseTensor:           # [T, C] raw shape latent (posterior mean); remembers its voxels
    """Shape latent of one dual grid."""
    rows = torch.cat([torch.zeros_like(coords[:, :1]), coords], dim=1)
    mean, _ = encoder(SparseTensor(dual_vertices.float(), rows, batch_size=1), crossings)
    return mean
