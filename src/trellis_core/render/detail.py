"""What a normal map adds to the points a camera sees. Letters: P shaded points."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.normal_map import decode
from trellis_core.geometry.tangents import Frames
from trellis_core.geometry.types import Mesh


def mapped_normals(
    mesh: Mesh,  # with uvs and normals
    frames: Frames,
    face: Tensor,  # int64 [P]
    weight: Tensor,  # float32 [P, 3]  barycentric
    seen: Tensor,  # float32 [P, 3]  shading normals without the map
    texel: Tensor,  # float32 [P, 3]  of the normal map, in [0, 1]
) -> Tensor:  # float32 [P, 3]  unit, world space, on the viewer's side of the surface
    """Shading normals of points that a camera sees."""
    tangent, bitangent, normal = frames.at(mesh, face, weight)
    detail = decode(texel, tangent, bitangent, normal)
    behind = (normal * seen).sum(1, keepdim=True) < 0
    return torch.where(behind, -detail, detail)
