"""A mesh file as something to draw, convert or compare: all its materials, their maps included.

Places and normals are the file's own, turned to z up; what a file does not say is as in `materials`.
Letters: V vertices, F triangles, H, W texels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.tangents import Frames
from trellis_core.geometry.triangles import unit
from trellis_core.geometry.types import Material, Mesh
from trellis_core.io.gltf import from_y_up
from trellis_core.io.meshes import Y_UP
from trellis_core.io.scene import file_normals
from trellis_core.render.surface import PaintedMesh
from trellis_core.training.ingest.materials import LINEAR_FACTORS, UNKNOWN, look_of, read_parts
from trellis_core.training.ingest.surfaces import SurfaceMaterial


def read_painted(path: Path) -> PaintedMesh | Mesh:
    """A mesh file with all its materials; a bare `Mesh` when it says nothing about color.

    Raises `InputError`.
    """
    suffix = path.suffix.lower()
    try:
        parts = read_parts(path, process=False)
    except InputError as error:
        raise InputError(f"`{path.name}`: {error.message}", hint=error.hint) from error
    looks = [look_of(part, linear=suffix in LINEAR_FACTORS) for part in parts]
    mesh = joined([part_mesh(part, uvs) for part, (uvs, _) in zip(parts, looks, strict=True)])
    assert mesh.normals is not None
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError(
            f"`{path.name}` has coordinates that are not numbers", hint="repair it in a 3D program"
        )
    if suffix in Y_UP:
        mesh = Mesh(from_y_up(mesh.vertices), mesh.faces, mesh.uvs, from_y_up(mesh.normals))
    if all(material is UNKNOWN for _, material in looks):
        return mesh
    owner = torch.cat([torch.full((len(part.faces),), i) for i, part in enumerate(parts)])
    materials = tuple(as_material(material) for _, material in looks)
    framed = any(material.normal is not None for material in materials)
    return PaintedMesh(mesh, materials, owner, Frames.of(mesh) if framed else None)


def part_mesh(part: Any, uvs: Tensor) -> Mesh:
    """One trimesh part; `uvs` float32 [F, 3, 2] count from below.

    It keeps its vertices when they have normals and texture coordinates, else every corner becomes one, with
    the normal of its face.
    """
    faces = torch.from_numpy(np.asarray(part.faces, np.int32))
    vertices = torch.from_numpy(np.asarray(part.vertices, np.float32))
    known, own = file_normals(part), getattr(part.visual, "uv", None)
    uvs = torch.stack([uvs[..., 0], 1 - uvs[..., 1]], 2)
    if known is not None and own is not None and len(own) == len(vertices):
        at_vertices = torch.zeros(len(vertices), 2)
        at_vertices[faces.long().reshape(-1)] = uvs.reshape(-1, 2)  # what is written twice is the same
        return Mesh(vertices, faces, at_vertices, torch.from_numpy(known))
    corners = vertices[faces.long()]
    if known is not None:
        normals = torch.from_numpy(known)[faces.long()]
    else:
        a, b, c = corners.double().unbind(1)
        normals = unit(torch.linalg.cross(b - a, c - a)).float()[:, None].expand(-1, 3, -1)
    numbers = torch.arange(faces.numel(), dtype=torch.int32).view(-1, 3)
    return Mesh(corners.reshape(-1, 3), numbers, uvs.reshape(-1, 2), normals.reshape(-1, 3))


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """Meshes with uvs and normals as one."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]]).tolist()
    faces = torch.cat([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)])
    uvs = torch.cat([mesh.uvs for mesh in meshes if mesh.uvs is not None])
    normals = torch.cat([mesh.normals for mesh in meshes if mesh.normals is not None])
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), faces, uvs, normals)


def as_material(surface: SurfaceMaterial) -> Material:
    """Textures that say everything."""
    base = surface.base_color_texture
    if base is None:
        base = (torch.tensor(surface.base_color_factor).clamp(0, 1) * 255).round().byte().view(1, 1, 3)
    alpha = scaled(surface.alpha_texture, surface.alpha_factor)
    rough = scaled(surface.roughness_texture, surface.roughness_factor)
    metal = scaled(surface.metallic_texture, surface.metallic_factor)
    base_color = torch.cat([*of_one_size(base, alpha[..., None])], 2)
    rough, metal = of_one_size(rough[..., None], metal[..., None])
    shine = torch.cat([torch.zeros_like(rough), rough, metal], 2)
    return Material(
        base_color,
        shine,
        surface.alpha_mode,
        surface.alpha_cutoff,
        normal=surface.normal_texture,
        occlusion=surface.occlusion_texture,
    )


def scaled(texture: Tensor | None, factor: float) -> Tensor:  # uint8 [H, W]
    texture = torch.full((1, 1), 255, dtype=torch.uint8) if texture is None else texture
    return (texture.float() * min(max(factor, 0.0), 1.0)).round().byte()


def of_one_size(*textures: Tensor) -> tuple[Tensor, ...]:  # uint8 [H, W, C] each
    """Single texels as large as the other textures; those come from one picture, and are alike."""
    height, width = (max(texture.shape[i] for texture in textures) for i in (0, 1))
    return tuple(texture.expand(height, width, -1) for texture in textures)
