"""What a normal map adds to the points a camera sees. Letters: P shaded points."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.normal_map import Frames, decode
from trellis_core.geometry.types import Mesh
from trellis_core.render.mesh import MeshBuffers


def mapped_normals(
    mesh: Mesh,  # with uvs and normals
    buffers: MeshBuffers,
    texel: Tensor,  # float32 [P, 3]  of the normal map, in [0, 1]
) -> Tensor:  # float32 [P, 3]  unit, world space, on the viewer's side of the surface
    """Shading normals of all pixels that show the mesh."""
    mask = buffers.mask
    mesh = mesh.to(texel.device)
    seen = buffers.normal[mask]
    face = buffers.face[mask].long()
    tangent, bitangent, normal = Frames(mesh).blend(mesh, face, buffers.barycentric[mask])
    detail = decode(texel, tangent, bitangent, normal)
    behind = (normal * seen).sum(1, keepdim=True) < 0
    return torch.where(behind, -detail, detail)
