"""Textured surfaces: triangles with everything their look needs, and what they show at a point.

Image coordinates start at the bottom left: v = 0 is the last row. Knows nothing about files, voxels or
cameras. Letters: F triangles, P points, H, W texels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.training.ingest.textures import Pyramid, Wrap, sample_nearest, sample_trilinear

Filter = Literal["LINEAR", "NEAREST"]
AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]

FLAT_UV = 1e-6  # below this determinant a uv map has no scale
FLAT_SCALE = 1e6  # length of one uv unit where there is no scale: the base level is used


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceMaterial:
    """glTF metallic-roughness material; textures are multiplied by the factors."""

    base_color_factor: tuple[float, float, float] = (0.8, 0.8, 0.8)
    metallic_factor: float = 0.0
    roughness_factor: float = 0.5
    alpha_factor: float = 1.0
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: float = 0.5
    base_color_texture: Tensor | None = None  # uint8 [H, W, 3]  sRGB
    metallic_texture: Tensor | None = None  # uint8 [H, W]
    roughness_texture: Tensor | None = None  # uint8 [H, W]
    alpha_texture: Tensor | None = None  # uint8 [H, W]
    normal_texture: Tensor | None = None  # uint8 [H, W, 3]  tangent space
    occlusion_texture: Tensor | None = None  # uint8 [H, W]
    filter: Filter = "LINEAR"
    wrap: Wrap = "REPEAT"


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedMesh:
    """Triangles with everything their look needs, corner by corner."""

    triangles: Tensor  # float32 [F, 3, 3]
    uvs: Tensor  # float32 [F, 3, 2]  v = 0 is the bottom row of the image
    material_ids: Tensor  # int64 [F]
    materials: Sequence[SurfaceMaterial] = field(default_factory=lambda: (SurfaceMaterial(),))
    normals: Tensor | None = None  # float32 [F, 3, 3]  of the corners; None: the triangles' own


# --- how the texture lies on the triangle ------------------------------------------------------------


def uv_derivatives(triangles: Tensor, uvs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dp/du and dp/dv, float32 [F, 3], where they exist and where uv is mirrored, bool [F]."""
    e1, e2 = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    (u1, v1), (u2, v2) = ((uvs[:, k] - uvs[:, 0])[:, :, None].unbind(1) for k in (1, 2))
    determinant = u1 * v2 - u2 * v1
    exists = determinant.abs() >= FLAT_UV
    safe = torch.where(exists, determinant, 1.0)
    return (e1 * v2 - e2 * v1) / safe, (e2 * u1 - e1 * u2) / safe, exists[:, 0], determinant[:, 0] < 0


def texel_scales(triangles: Tensor, uvs: Tensor, step: Tensor) -> Tensor:
    """How much uv one voxel spans: float32 [F]."""
    along_u, along_v, exists, _ = uv_derivatives(triangles, uvs)
    length = torch.where(exists, (along_u.norm(dim=1) * along_v.norm(dim=1)).sqrt(), FLAT_SCALE)
    return step.amax() / length


def tangent_frames(triangles: Tensor, uvs: Tensor, turn_mirrored: bool) -> Tensor:
    """Unit tangent (along u) and bitangent (along v): float32 [F, 2, 3]; zero where uv is flat.

    `turn_mirrored` negates both where uv is mirrored, as the released averages do.
    """
    along_u, along_v, exists, mirrored = uv_derivatives(triangles, uvs)
    frames = F.normalize(torch.stack([along_u, along_v], 1), dim=2, eps=1e-30)
    if turn_mirrored:
        frames = torch.where(mirrored[:, None, None], -frames, frames)
    return torch.where(exists[:, None, None], frames, 0.0)


# --- what the material shows there -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lookup:
    """One material at many points."""

    material: SurfaceMaterial
    pyramids: dict[str, Pyramid]
    uv: Tensor  # float32 [P, 2]
    scale: Tensor  # float32 [P]   from texel_scales
    level_offset: float

    def __call__(self, name: str, factor: float | Sequence[float]) -> Tensor:
        """Texture times factor, or the factor alone: float32 [P, C]."""
        value = torch.tensor(factor, device=self.uv.device).reshape(1, -1)
        if name not in self.pyramids:
            return value.expand(len(self.uv), -1)
        pyramid = self.pyramids[name]
        if self.material.filter == "NEAREST":
            base = torch.zeros(len(self.uv), dtype=torch.int64, device=self.uv.device)
            return sample_nearest(pyramid, self.uv, base, self.material.wrap) * value
        level = (self.scale * pyramid.height).log2() + self.level_offset
        return sample_trilinear(pyramid, self.uv, level, self.material.wrap) * value


def shade(look: Lookup, frames: Tensor, normal: Tensor) -> Tensor:
    """base color, metallic, roughness, alpha, normal: float32 [P, 9]."""
    material = look.material
    alpha = torch.ones(len(normal), 1, device=normal.device)
    if material.alpha_mode != "OPAQUE":
        alpha = look("alpha", material.alpha_factor)
        if material.alpha_mode == "MASK":
            alpha = (alpha >= material.alpha_cutoff).float()
    if "normal" in look.pyramids:
        x, y, z = (look("normal", 1.0) * 2 - 1)[:, :, None].unbind(1)
        normal = F.normalize(x * frames[:, 0] + y * frames[:, 1] + z * normal, dim=1)
    values = [
        look("base_color", material.base_color_factor),
        look("metallic", material.metallic_factor),
        look("roughness", material.roughness_factor),
        alpha,
        normal,
    ]
    return torch.cat(values, 1)


def textures_of(material: SurfaceMaterial) -> dict[str, Tensor]:
    names = ("base_color", "metallic", "roughness", "alpha", "normal")
    found = {name: getattr(material, f"{name}_texture") for name in names}
    return {name: texture for name, texture in found.items() if texture is not None}


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB transfer function (IEC 61966-2-1) to linear light."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(0) ** (1 / 2.4) - 0.055)
