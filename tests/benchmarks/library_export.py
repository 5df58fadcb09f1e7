"""The straightforward export with libraries alone, to compare with: what one would write first.

fast-simplification as it comes, xatlas as it comes, the closest point of the raw surface for every texel.
"""

from __future__ import annotations

from collections.abc import Callable

import fast_simplification
import torch
import xatlas

from trellis_core.geometry.bake import Texels, cover_texels, points_on, to_bytes
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.types import Mesh, VoxelMesh
from trellis_core.kernels.table import Kernels


def export_with_libraries(
    shape: VoxelMesh, faces: int, texture_size: int, kernels: Kernels, on_step: Callable[[str], None]
) -> tuple[Mesh, torch.Tensor]:
    """A mesh with texture coordinates, and its texture uint8 [S, S, 6]. `on_step` hears what begins."""
    raw, side = shape.mesh, shape.voxels.resolution
    on_step("simplify")
    points, index = fast_simplification.simplify(
        raw.vertices.double().numpy(), raw.faces.numpy(), target_count=faces
    )
    on_step("unwrap")
    vertex, triangles, uvs = xatlas.parametrize(points.astype("float32"), index.astype("uint32"))
    mesh = Mesh(
        torch.from_numpy(points[vertex]).float(),
        torch.from_numpy(triangles.astype("int32")),
        torch.from_numpy(uvs).float(),
    )
    on_step("closest point")
    texels: Texels = cover_texels(mesh, texture_size, kernels)
    closest_point = kernels["closest_point"]
    _, hit, weight = closest_point(texels.position, raw.vertices, raw.faces, 0.1)  # type: ignore[operator]
    on_step("sample")
    moved = points_on(raw, hit.clamp_min(0).long(), weight)
    attrs, support = sample_voxels((moved + 0.5) * side, shape.voxels.coords, shape.voxels.attrs, side)
    on_step("fill")
    known = support > 0
    return mesh, paint_texture(to_bytes(attrs[known]), texels.index[known], texture_size)
