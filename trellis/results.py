"""What a run decodes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis.flexicubes import CubeMesh
from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh
from trellis_core.render.bake_views import color_voxels

VERTICES = "vertices"
GREY = 0.5  # color of a mesh that has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One object; what was not asked for is None."""

    mesh: CubeMesh | None = None
    gaussians: Gaussians | None = None
    radiance_field: RadianceField | None = None

    def surface(self) -> tuple[Mesh, Tensor]:
        """The mesh on the CPU, and the colors float32 [V, 3] of its vertices.

        Raises `InputError` without a mesh or without a surface in it.
        """
        if self.mesh is None:
            raise InputError("no mesh was decoded", hint="decode `mesh`")
        if not len(self.mesh.faces):
            raise InputError(
                "the model made no surface",
                hint="try another seed, or a picture that shows the whole object on a plain background",
            )
        vertices = self.mesh.vertices.float().cpu()
        colors = torch.full_like(vertices, GREY)
        if self.mesh.attributes is not None:
            colors = self.mesh.attributes[:, :3].float().cpu().clamp(0, 1)
        return Mesh(vertices, self.mesh.faces.cpu()), colors

    @property
    def voxels(self) -> PBRVoxels:
        """The colors of the surface as material voxels: rough, not metallic, opaque."""
        return self.voxel_mesh().voxels

    def voxel_mesh(self) -> VoxelMesh:
        """The mesh and its colors as TRELLIS.2 decodes them."""
        mesh, colors = self.surface()
        assert self.mesh is not None
        return VoxelMesh(mesh, color_voxels(mesh, colors, self.mesh.resolution))

    def appearance(self, source: str) -> Gaussians | RadianceField | None:
        """What a texture is painted after: a key of SOURCES; None stands for the colors of the vertices.

        Raises `UsageError` for an unknown source and for one that was not decoded.
        """
        if source not in SOURCES:
            raise UsageError(f"unknown source of color `{source}`", hint=f"choose from: {', '.join(SOURCES)}")
        found = SOURCES[source](self)
        if found is None and source not in ("auto", VERTICES):
            raise UsageError(f"no `{source}` was decoded", hint=f"decode it, or choose `{VERTICES}`")
        return found


SOURCES: Mapping[str, Callable[[Decoded], Gaussians | RadianceField | None]] = {
    "auto": lambda decoded: decoded.gaussians or decoded.radiance_field,
    "gaussians": lambda decoded: decoded.gaussians,
    "radiance_field": lambda decoded: decoded.radiance_field,
    VERTICES: lambda decoded: None,
}
