"""From our frame (z up, the unit cube) to that of files."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.types import Asset

PRINT_MM = 100.0  # per unit, of things whose size is not known, in formats that demand one


def to_y_up(vectors: Tensor) -> Tensor:
    """(x, y, z) with z up -> (x, z, -y) with y up; positions or normals [V, 3]."""
    x, y, z = vectors.detach().cpu().float().unbind(1)
    return torch.stack([x, z, -y + 0.0], dim=1)


def from_y_up(vectors: Tensor) -> Tensor:
    """The inverse of `to_y_up`."""
    x, y, z = vectors.unbind(1)
    return torch.stack([x, -z + 0.0, y], dim=1)


def in_meters(asset: Asset) -> Tensor:  # float32 [V, 3]
    """Vertices in meters, the unit of glTF and USD; of unknown size: as they are."""
    vertices = asset.mesh.vertices.detach().cpu().float()
    return vertices if asset.unit_mm is None else vertices * (asset.unit_mm / 1000)


def in_millimeters(asset: Asset) -> Tensor:  # float32 [V, 3]
    """Vertices in millimeters, as programs for printers take STL and PLY; of unknown size: as they are."""
    vertices = asset.mesh.vertices.detach().cpu().float()
    return vertices if asset.unit_mm is None else vertices * asset.unit_mm
