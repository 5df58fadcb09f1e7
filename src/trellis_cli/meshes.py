"""Reads a user's mesh file through trimesh: one triangle mesh in the unit cube, and its base colour texture.

Files are y up (STL and PLY, by custom, z up); what is returned is z up, as everything inside.
Letters: V vertices, F faces, S texture side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh

Z_UP = (".stl", ".ply")


def read_mesh(path: Path) -> tuple[Mesh, Tensor | None]:  # base colour uint8 [S, S, 3 or 4]
    """All triangles of the file, its bounding box centred and scaled to the unit cube, z up.

    Raises `InputError` when the file cannot be read or holds no triangles.
    """
    loaded = load_file(path)
    vertices = torch.from_numpy(np.array(loaded.vertices, dtype=np.float32))
    faces = torch.from_numpy(np.array(loaded.faces, dtype=np.int32))
    if path.suffix.lower() not in Z_UP:
        vertices = torch.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], 1)
    low, high = vertices.amin(0), vertices.amax(0)
    vertices = (vertices - (low + high) / 2) / (high - low).max().clamp(min=1e-12)
    uvs, texture = _texture(loaded)
    return Mesh(vertices, faces, uvs), texture


def load_file(path: Path) -> Any:
    """A `trimesh.Trimesh` with at least one triangle and finite corners."""
    import trimesh

    try:
        loaded: Any = trimesh.load(path, force="mesh", process=False)
    except Exception as error:  # trimesh's readers raise whatever they stumble over
        raise InputError(f"mesh `{path}` cannot be read: {error}", hint="export it again as GLB") from error
    if len(getattr(loaded, "faces", ())) == 0:
        raise InputError(f"mesh `{path}` holds no triangles", hint="export it again as a triangle mesh")
    if not np.isfinite(loaded.vertices).all():
        raise InputError(f"mesh `{path}` has corners that are not numbers", hint="clean and export it again")
    return loaded


def _texture(loaded: Any) -> tuple[Tensor | None, Tensor | None]:
    visual = loaded.visual
    uv = getattr(visual, "uv", None)
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if uv is None or image is None:
        return None, None
    uvs = torch.from_numpy(np.array(uv, dtype=np.float32))
    uvs[:, 1] = 1 - uvs[:, 1]  # trimesh counts v from the bottom
    return uvs, torch.from_numpy(np.array(image.convert("RGBA")))
