"""A user's mesh file as triangles with all their materials, in the unit cube, z up.

Every part of a scene keeps its own material: factors and textures of glTF, colors and pictures of MTL, colors
of vertices and faces. What a file does not say is a gray, not metallic, rather rough surface.
Knows nothing about voxels. Letters: F triangles, H, W texels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.cleanup import weld_vertices
from trellis_core.geometry.normals import crease_normals
from trellis_core.geometry.types import Mesh
from trellis_core.io.gltf import from_y_up
from trellis_core.io.meshes import SUFFIXES, Y_UP
from trellis_core.io.scene import scene_parts
from trellis_core.training.ingest.surfaces import AlphaMode, SurfaceMaterial, TexturedMesh, to_linear, to_srgb

LONGEST_SIDE = 0.99999  # of the unit cube, so that nothing touches its walls
WELD = 1e-6  # of the unit cube: seams of texture coordinates are no holes
CREASE = 40.0  # degrees; sharper edges are shaded hard
LINEAR_FACTORS = (".glb", ".gltf", ".usdz")  # their color factors are linear, textures are sRGB
ALPHA_MODES: Mapping[str, AlphaMode] = {"MASK": "MASK", "BLEND": "BLEND"}
UNKNOWN = SurfaceMaterial()


@dataclass(frozen=True, slots=True)
class IngestedMesh:
    """One object: its bare shape with seams closed, and the same triangles with their look."""

    shape: Mesh  # welded, without texture coordinates
    look: TexturedMesh
    offset: tuple[float, float, float]  # of the file's frame (z up) to the unit cube: scale * (p + offset)
    scale: float

    @property
    def statistics(self) -> dict[str, int]:
        """Columns of `asset_stats`."""
        counts = {"num_faces": len(self.shape.faces), "num_vertices": len(self.shape.vertices)}
        for column, name in (
            ("basecolor", "base_color"),
            ("metallic", "metallic"),
            ("roughness", "roughness"),
            ("alpha", "alpha"),
        ):
            textures = [getattr(m, f"{name}_texture") for m in self.look.materials]
            counts[f"num_{column}_tex"] = sum(t is not None for t in textures)
        return counts


def read_ingested(path: Path, max_faces: int = 20_000_000) -> IngestedMesh:
    """Read, turn to z up, and fit the longest side into the unit cube. Raises `InputError`."""
    suffix = path.suffix.lower()
    parts = read_parts(path)
    count = sum(len(part.faces) for part in parts)
    if count > max_faces:
        raise InputError(f"it has {count:,} triangles, more than {max_faces:,}", hint="simplify it first")
    triangles = torch.from_numpy(np.concatenate([part.triangles for part in parts])).float()
    if not bool(triangles.isfinite().all()):
        raise InputError("it has coordinates that are not numbers", hint="repair it in a 3D program")
    if suffix in Y_UP:
        triangles = from_y_up(triangles.reshape(-1, 3)).reshape(-1, 3, 3)
    low, high = triangles.amin((0, 1)), triangles.amax((0, 1))
    extent = float((high - low).max())
    if extent <= 0:
        raise InputError("all its vertices lie in one point", hint="repair it in a 3D program")
    triangles = (triangles - (low + high) / 2) * (LONGEST_SIDE / (high - low).max())
    looks = [look_of(part, linear=suffix in LINEAR_FACTORS) for part in parts]
    shape, kept = weld(triangles)
    group, normals = crease_normals(shape, CREASE)
    material = torch.cat([torch.full((len(p.faces),), i) for i, p in enumerate(parts)])
    look = TexturedMesh(
        triangles=shape.vertices[shape.faces.long()],  # welded: both halves of an O-Voxel asset share voxels
        uvs=torch.cat([uvs for uvs, _ in looks])[kept],
        material_ids=material[kept],
        materials=[material for _, material in looks],
        normals=normals[group],
    )
    x, y, z = (-(low + high) / 2).tolist()
    return IngestedMesh(shape, look, (x, y, z), LONGEST_SIDE / extent)


def read_parts(path: Path, *, process: bool = True) -> Sequence[Any]:
    """The meshes of a scene with their transformations applied. Raises `InputError`.

    With `process` vertices that are nearly alike become one.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"unknown mesh format `{path.suffix}`", hint=f"use one of: {', '.join(SUFFIXES)}")
    try:
        parts = scene_parts(path, process=process)
    except InputError:
        raise
    except Exception as error:  # trimesh raises whatever its parsers run into
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"it cannot be read: {said}", hint="open and save it again in a 3D program"
        ) from error
    if not parts:
        raise InputError("it has no triangles", hint="point clouds and curves cannot be used")
    return parts


def weld(triangles: Tensor) -> tuple[Mesh, Tensor]:
    """The triangles with shared vertices, and bool [F]: those that still have three different ones."""
    corners = torch.arange(3 * len(triangles), dtype=torch.int32).view(-1, 3)
    welded = weld_vertices(Mesh(triangles.reshape(-1, 3), corners), WELD)
    faces = welded.faces
    kept = (faces != faces.roll(1, dims=1)).all(1)
    if not bool(kept.any()):
        raise InputError("none of its triangles has an area", hint="repair it in a 3D program")
    return Mesh(welded.vertices, faces[kept]), kept


# --- what a part looks like --------------------------------------------------------------------------


def look_of(part: Any, *, linear: bool) -> tuple[Tensor, SurfaceMaterial]:
    """Texture coordinates float32 [F, 3, 2] and the material of one trimesh part."""
    visual = part.visual
    material = getattr(visual, "material", None)
    if material is not None:
        uv = getattr(visual, "uv", None)
        known = uv is not None and len(uv) == len(part.vertices)
        read = (
            pbr_material(material, linear) if hasattr(material, "baseColorFactor") else mtl_material(material)
        )
        if not known:
            read = replace(
                read,
                base_color_texture=None,
                metallic_texture=None,
                roughness_texture=None,
                alpha_texture=None,
                normal_texture=None,
                occlusion_texture=None,
            )
        corners = np.asarray(uv, np.float32)[part.faces] if known else np.zeros((len(part.faces), 3, 2))
        return torch.from_numpy(corners).float(), read
    if getattr(visual, "defined", False):
        return face_colors(np.asarray(visual.face_colors), linear)
    return torch.zeros(len(part.faces), 3, 2), UNKNOWN


def pbr_material(material: Any, linear: bool) -> SurfaceMaterial:
    """glTF's metallic-roughness material. Of an opaque one, alpha means nothing."""
    factor = channels(material.baseColorFactor, default=(255, 255, 255, 255))
    color, alpha = pixels(material.baseColorTexture, "RGBA"), factor[3]
    rgb = (to_srgb(factor[:3]) if linear else factor[:3]).clamp(0, 1)
    picture = (
        None if color is None else tinted(color[..., :3], factor[:3] if linear else to_linear(factor[:3]))
    )
    surface = pixels(material.metallicRoughnessTexture, "RGB")
    occlusion = pixels(material.occlusionTexture, "RGB")
    mode = (material.alphaMode or "OPAQUE").upper()
    cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
    return SurfaceMaterial(
        base_color_factor=(1.0, 1.0, 1.0) if picture is not None else triple(rgb),
        metallic_factor=1.0 if material.metallicFactor is None else float(material.metallicFactor),
        roughness_factor=1.0 if material.roughnessFactor is None else float(material.roughnessFactor),
        alpha_factor=float(alpha),
        alpha_mode=ALPHA_MODES.get(mode, "OPAQUE"),
        alpha_cutoff=cutoff,
        base_color_texture=picture,
        metallic_texture=None if surface is None else surface[..., 2].contiguous(),
        roughness_texture=None if surface is None else surface[..., 1].contiguous(),
        alpha_texture=None if color is None or mode == "OPAQUE" else color[..., 3].contiguous(),
        normal_texture=pixels(material.normalTexture, "RGB"),
        occlusion_texture=None if occlusion is None else occlusion[..., 0].contiguous(),
    )


def mtl_material(material: Any) -> SurfaceMaterial:
    """Wavefront MTL: a picture or a diffuse color; shininess becomes roughness."""
    color = pixels(getattr(material, "image", None), "RGB")
    diffuse = channels(getattr(material, "diffuse", None), default=(204, 204, 204, 255))
    roughness = material.to_pbr().roughnessFactor
    alpha = dissolve(getattr(material, "kwargs", None) or {})
    return SurfaceMaterial(
        base_color_factor=(1.0, 1.0, 1.0) if color is not None else triple(diffuse[:3]),
        roughness_factor=0.5 if roughness is None else float(roughness),
        alpha_factor=alpha,
        alpha_mode="BLEND" if alpha < 1 else "OPAQUE",
        base_color_texture=color,
    )


def dissolve(entries: Mapping[str, Any]) -> float:
    """Opacity of an MTL material: `d`, or 1 - `Tr`; 1 where neither is a number."""
    for name, invert in (("d", False), ("tr", True)):
        value = np.ravel(entries.get(name, []))
        try:
            number = float(value[0])
        except (IndexError, ValueError):
            continue
        return min(max(1 - number if invert else number, 0.0), 1.0)
    return 1.0


def face_colors(colors: np.ndarray, linear: bool) -> tuple[Tensor, SurfaceMaterial]:
    """Colors of faces uint8 [F, 4] as a texture with one texel each."""
    side = int(np.ceil(np.sqrt(len(colors))))
    texels = torch.zeros(side * side, 4, dtype=torch.uint8)
    texels[: len(colors)] = torch.from_numpy(colors.astype(np.uint8))
    if linear:
        texels[:, :3] = (to_srgb(texels[:, :3].float() / 255).clamp(0, 1) * 255).round().byte()
    image = texels.view(side, side, 4)
    number = torch.arange(len(colors))
    place = torch.stack([(number % side + 0.5) / side, 1 - (number // side + 0.5) / side], 1)
    seen_through = bool((texels[: len(colors), 3] < 255).any())
    material = SurfaceMaterial(
        base_color_factor=(1.0, 1.0, 1.0),
        alpha_mode="BLEND" if seen_through else "OPAQUE",
        base_color_texture=image[..., :3].contiguous(),
        alpha_texture=image[..., 3].contiguous() if seen_through else None,
        filter="NEAREST",
    )
    return place[:, None].expand(-1, 3, -1).contiguous(), material


def tinted(
    picture: Tensor,  # uint8 [H, W, 3]  sRGB
    factor: Tensor,  # float32 [3]  linear
) -> Tensor:  # uint8 [H, W, 3]
    """The picture times a factor, multiplied in linear light as glTF says."""
    if bool((factor == 1).all()):
        return picture
    table = to_srgb(to_linear(torch.arange(256) / 255)[:, None] * factor).clamp(0, 1)
    table = (table * 255).round().byte()
    return torch.stack([table[:, i][picture[..., i].int()] for i in range(3)], 2)


def pixels(image: Any, mode: str) -> Tensor | None:
    """A Pillow image as uint8 [H, W, C]."""
    return None if image is None else torch.from_numpy(np.array(image.convert(mode)))


def channels(color: Any, default: tuple[int, int, int, int]) -> Tensor:  # float32 [4]
    """RGBA in [0, 1]; trimesh holds factors as bytes."""
    rgba = np.asarray(default if color is None else color)
    rgba = rgba if rgba.dtype.kind == "f" else rgba / 255
    return torch.from_numpy(np.append(rgba, 1.0)[:4] if len(rgba) == 3 else rgba[:4]).float()


def triple(color: Tensor) -> tuple[float, float, float]:
    r, g, b = color.tolist()
    return r, g, b
