"""Reading users' meshes, whatever the format, into our frame (z up).

glTF and OBJ files are y up and are turned here; STL, PLY, OFF and 3MF are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.io.gltf import from_y_up

Y_UP = (".glb", ".gltf", ".obj")
SUFFIXES = (*Y_UP, ".stl", ".ply", ".off", ".3mf")


@dataclass(frozen=True, slots=True)
class TexturedMesh:
    """A mesh as read, and the textures of its material when it has exactly one."""

    mesh: Mesh  # uvs with the origin top left, when there is one set for all faces
    base_color: Tensor | None = None  # uint8 [H, W, 4]  sRGB + alpha
    metallic_roughness: Tensor | None = None  # uint8 [H, W, 3]  glTF channels


def read_mesh(path: str | Path) -> TexturedMesh:
    """Read a mesh file; all parts of a scene become one mesh. Raises `InputError`."""
    import trimesh

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"cannot read `{path.name}`: unknown mesh format `{suffix}`",
            hint=f"use one of: {', '.join(SUFFIXES)}",
        )
    if not path.is_file():
        raise InputError(f"there is no file `{path}`", hint="check the path")
    try:
        scene = trimesh.load_scene(path)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except Exception as error:  # trimesh raises whatever its parsers run into
        raise InputError(
            f"cannot read `{path.name}`: {error}", hint="open and save it again in a 3D program"
        ) from error
    if not parts:
        raise InputError(f"`{path.name}` has no triangles", hint="point clouds and curves cannot be used")

    start = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = torch.from_numpy(np.concatenate([part.vertices for part in parts])).float()
    faces = torch.from_numpy(np.concatenate([part.faces + s for part, s in zip(parts, start, strict=True)]))
    if not bool(torch.isfinite(vertices).all()):
        raise InputError(
            f"`{path.name}` has coordinates that are not numbers", hint="repair it in a 3D program"
        )
    if suffix in Y_UP:
        vertices = from_y_up(vertices)
    textured = len(parts) == 1 and suffix in Y_UP  # the other formats carry no images
    uvs, base_color, metallic_roughness = read_texture(parts[0]) if textured else (None, None, None)
    return TexturedMesh(Mesh(vertices, faces.to(torch.int32), uvs=uvs), base_color, metallic_roughness)


def read_texture(part: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Texture coordinates and images of a trimesh part, where it has them."""
    uv = getattr(part.visual, "uv", None)
    if uv is None or len(uv) != len(part.vertices):
        return None, None, None
    uvs = torch.from_numpy(np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)).float()  # trimesh counts v from below
    material = getattr(part.visual, "material", None)
    color = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    surface = getattr(material, "metallicRoughnessTexture", None)
    return (
        uvs,
        None if color is None else torch.from_numpy(np.array(color.convert("RGBA"))),
        None if surface is None else torch.from_numpy(np.array(surface.convert("RGB"))),
    )
