"""Reading users' meshes, whatever the format, into our frame (z up).

glTF, OBJ and USDZ files are y up (or turned so) and are turned here; others are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.io.gltf import from_y_up
from trellis_core.io.scene import open_scene

Y_UP = (".glb", ".gltf", ".obj", ".usdz")
SUFFIXES = (*Y_UP, ".stl", ".ply", ".off", ".3mf")


@dataclass(frozen=True, slots=True)
class TexturedMesh:
    """A mesh as read, and the textures of its material when it has exactly one."""

    mesh: Mesh  # uvs with the origin top left, when all parts have them
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
        scene = open_scene(path)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except InputError:
        raise
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
    uvs = read_uvs(parts) if suffix in Y_UP else None  # the other formats have none that we use
    images = read_texture(parts[0]) if uvs is not None and len(parts) == 1 else (None, None)
    return TexturedMesh(Mesh(vertices, faces.to(torch.int32), uvs=uvs), *images)


def read_uvs(parts: Sequence[Any]) -> Tensor | None:  # float32 [V, 2]
    """Texture coordinates of trimesh parts; None unless every part has them."""
    found = [getattr(part.visual, "uv", None) for part in parts]
    if any(uv is None or len(uv) != len(part.vertices) for uv, part in zip(found, parts, strict=True)):
        return None
    uv = np.concatenate([np.asarray(uv)[:, :2] for uv in found])
    return torch.from_numpy(np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)).float()  # trimesh counts v from below


def read_texture(part: Any) -> tuple[Tensor | None, Tensor | None]:
    """Images of a trimesh part's material, where it has them."""
    material = getattr(part.visual, "material", None)
    color = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    surface = getattr(material, "metallicRoughnessTexture", None)
    return (
        None if color is None else torch.from_numpy(np.array(color.convert("RGBA"))),
        None if surface is None else torch.from_numpy(np.array(surface.convert("RGB"))),
    )
