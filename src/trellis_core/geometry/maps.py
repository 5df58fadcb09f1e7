"""The maps of an asset that show what simplification took away: normals and ambient occlusion.

Letters: S texture side.
"""

from __future__ import annotations

from torch import Tensor

from trellis_core.geometry.ambient import RAYS, bake_ambient
from trellis_core.geometry.beneath import find_beneath
from trellis_core.geometry.normal_map import bake_normal_map
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime


def bake_detail(
    mesh: Mesh,  # with uvs and normals
    original: Mesh | None,  # the detailed surface, wound as `mesh`; None: the mesh itself
    texture_size: int,
    runtime: Runtime,
    *,
    normal_map: bool,
    ambient: bool,
    both_sides: bool,  # the mesh is drawn from both sides
) -> tuple[Tensor | None, Tensor | None]:  # uint8 [S, S, 3] normals, uint8 [S, S] occlusion
    """The wanted maps, None for the others. What both need is looked up once.

    A mesh without a detailed original has no normal map.
    """
    normal_map = normal_map and original is not None
    beneath = None
    if original is not None and normal_map and not (ambient and both_sides):
        beneath = find_beneath(mesh, original, texture_size, runtime)
    normals = occlusion = None
    if normal_map and original is not None:
        normals = bake_normal_map(mesh, original, texture_size, runtime, beneath=beneath)
    if ambient:
        occlusion = bake_ambient(
            mesh, texture_size, RAYS, runtime, original=original, both_sides=both_sides, beneath=beneath
        )
    return normals, occlusion
