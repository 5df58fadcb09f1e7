"""The values that geometry code passes around.

World space is the unit cube [-0.5, 0.5]^3, z up. Voxel (i, j, k) of a grid R has its centre at
((i, j, k) + 0.5) / R - 0.5. Letters: V vertices, F faces, N voxels, R grid resolution, S texture side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trellis_core.errors import OutputError

BASE_COLOR = slice(0, 3)  # columns of PBRVoxels.attrs
METALLIC = slice(3, 4)
ROUGHNESS = slice(4, 5)
ALPHA = slice(5, 6)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles, optionally with texture coordinates and vertex normals."""

    vertices: Tensor  # float32 [V, 3]
    faces: Tensor  # int32 [F, 3], counter-clockwise seen from outside
    uvs: Tensor | None = None  # float32 [V, 2], origin top left (row 0 of the image is v = 0), as glTF
    normals: Tensor | None = None  # float32 [V, 3], unit
    colors: Tensor | None = None  # uint8 [V, 4]  sRGB + alpha; of meshes without a texture

    def to(self, device: torch.device | str) -> Mesh:
        more = (self.uvs, self.normals, self.colors)
        moved = (None if values is None else values.to(device) for values in more)
        return Mesh(self.vertices.to(device), self.faces.to(device), *moved)


@dataclass(frozen=True, slots=True)
class PBRVoxels:
    """Surface material as a sparse voxel grid over the unit cube."""

    coords: Tensor  # int32 [N, 3]    x, y, z
    attrs: Tensor  # float32 [N, 6]  base color 0:3 (sRGB-coded), metallic, roughness, alpha; about [0, 1]
    resolution: int  # R


@dataclass(frozen=True, slots=True)
class VoxelMesh:
    """What the TRELLIS.2 decoders produce: the raw dual-grid mesh and its material."""

    mesh: Mesh
    voxels: PBRVoxels


@dataclass(frozen=True, slots=True)
class Material:
    """Metallic-roughness material; factors are 1, the images carry everything."""

    base_color: Tensor  # uint8 [S, S, 4]  sRGB + alpha, row 0 is v = 0
    metallic_roughness: Tensor  # uint8 [S, S, 3]  glTF channels (occlusion or 0, roughness, metallic), linear
    alpha_mode: str = "OPAQUE"  # OPAQUE, MASK or BLEND
    alpha_cutoff: float = 0.5
    double_sided: bool = False
    normal: Tensor | None = None  # uint8 [S, S, 3]  tangent space, +Y up
    occlusion: Tensor | None = None  # uint8 [S, S]  light from all around that gets there


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Measured facts about a mesh, and the sentences they amount to."""

    metrics: Mapping[str, float | int | bool]
    problems: tuple[str, ...] = ()  # one sentence each; empty when the gate is passed
    passed: bool = True


@dataclass(frozen=True, slots=True)
class Asset:
    """A finished mesh, textured when it has uvs. `save` picks the writer by file suffix."""

    mesh: Mesh  # with uvs and normals
    material: Material
    quality: QualityReport
    extras: Mapping[str, Any] = field(default_factory=dict)  # provenance, JSON-serialisable
    writers: Mapping[str, Callable[[Asset, Path], None]] = field(default_factory=dict, repr=False)
    unit_mm: float | None = None  # millimeters per unit of `mesh`; None: its size is not known

    @property
    def facts(self) -> dict[str, Any]:
        """What is written into files that can hold it: where the asset comes from, and how good it is."""
        if not self.quality.metrics:
            return dict(self.extras)
        quality = {"passed": self.quality.passed, "problems": list(self.quality.problems)}
        return {**self.extras, "quality": {**quality, "metrics": dict(self.quality.metrics)}}

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        writer = self.writers.get(path.suffix.lower())
        if writer is None:
            known = ", ".join(sorted(self.writers))
            raise OutputError(
                f"cannot write `{path.name}`: no writer for `{path.suffix}`", hint=f"use one of: {known}"
            )
        writer(self, path)
        return path
