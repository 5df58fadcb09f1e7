"""Tangents at vertices, as files store them. Letters: V vertices, F faces."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.normal_map import corner_tangents
from trellis_core.geometry.types import Mesh


def vertex_tangents(mesh: Mesh) -> Tensor:  # float32 [V, 4]
    """Unit tangent of each vertex, and 1 or -1: bitangent = cross(normal, tangent) * sign, up in the picture.

    Those that normal maps are baked with. Where mirrored faces meet others at a vertex, one of them decides.
    """
    tangent, sign = corner_tangents(mesh)
    found = torch.tensor([1.0, 0, 0, 1], device=tangent.device).repeat(len(mesh.vertices), 1)
    values = torch.cat([tangent, sign[:, None, None].expand(-1, 3, 1)], dim=2)
    for corner in (2, 1, 0):
        found[mesh.faces[:, corner].long()] = values[:, corner]
    return found
