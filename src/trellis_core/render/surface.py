"""What a mesh is made of at the points a camera sees: textures, several materials, or material voxels.

Knows nothing about light. Letters: P points, F faces, S texture side, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.tangents import Frames
from trellis_core.geometry.types import (
    ALPHA,
    BASE_COLOR,
    METALLIC,
    ROUGHNESS,
    Asset,
    Material,
    Mesh,
    PBRVoxels,
    VoxelMesh,
)
from trellis_core.render.detail import mapped_normals
from trellis_core.render.mesh import MeshBuffers, interpolate

ROUNDING = 1e-4  # by which texture coordinates may miss [0, 1] without meaning the other side of the texture
GREY = 0.5  # sRGB-coded, where voxels say nothing
SEE_THROUGH = 0.9  # alpha below which a voxel counts as transparent
FEW = 0.02  # share of transparent voxels up to which all of them are taken for opaque


@dataclass(frozen=True, slots=True)
class PaintedMesh:
    """A mesh with several materials, as files have them."""

    mesh: Mesh  # with uvs, which may leave [0, 1]: textures repeat
    materials: tuple[Material, ...]
    owner: Tensor  # int64 [F]  material of each face
    frames: Frames | None = None  # of normal maps; None: they are worked out for every picture

    def to(self, device: torch.device | str) -> PaintedMesh:
        def moved(image: Tensor | None) -> Tensor | None:
            return None if image is None else image.to(device)

        materials = tuple(
            replace(
                m,
                base_color=m.base_color.to(device),
                metallic_roughness=m.metallic_roughness.to(device),
                normal=moved(m.normal),
                occlusion=moved(m.occlusion),
            )
            for m in self.materials
        )
        frames = None if self.frames is None else self.frames.to(device)
        return PaintedMesh(self.mesh.to(device), materials, self.owner.to(device), frames)

    @classmethod
    def of(cls, asset: Asset) -> PaintedMesh:
        owner = torch.zeros(len(asset.mesh.faces), dtype=torch.int64, device=asset.mesh.faces.device)
        has_map = asset.material.normal is not None and asset.mesh.uvs is not None
        framed = has_map and asset.mesh.normals is not None
        return cls(asset.mesh, (asset.material,), owner, Frames.of(asset.mesh) if framed else None)


Painted = PaintedMesh | VoxelMesh  # a mesh that knows its material


@dataclass(frozen=True, slots=True)
class Surface:
    """Material at shaded points; colors linear."""

    base_color: Tensor  # float32 [P, 3]
    metallic: Tensor  # float32 [P, 1]
    roughness: Tensor  # float32 [P, 1]
    alpha: Tensor  # float32 [P, 1]
    normal: Tensor | None = None  # float32 [P, 3]  from a normal map, world space
    occlusion: Tensor | None = None  # float32 [P, 1]  share of the light from all around that gets there


@dataclass(frozen=True, slots=True)
class SeenPoints:
    """Points of a mesh that a camera sees."""

    face: Tensor  # int64 [P]
    weight: Tensor  # float32 [P, 3]  barycentric
    uv: Tensor  # float32 [P, 2]
    normal: Tensor  # float32 [P, 3]  unit, world space, turned to the viewer

    def at(self, rows: Tensor) -> SeenPoints:
        return SeenPoints(self.face[rows], self.weight[rows], self.uv[rows], self.normal[rows])


def is_opaque(painted: Painted) -> bool:
    if isinstance(painted, PaintedMesh):
        return all(material.alpha_mode == "OPAQUE" for material in painted.materials)
    alpha = painted.voxels.attrs[:, ALPHA]
    return not len(alpha) or float((alpha < SEE_THROUGH).float().mean()) <= FEW


def sample_surface(painted: Painted, buffers: MeshBuffers, opaque: bool) -> Surface:
    """Look the material up at every pixel that shows the mesh."""
    if isinstance(painted, VoxelMesh):
        return sample_material_voxels(painted.voxels, buffers.position[buffers.mask], opaque)
    mesh = painted.mesh
    if mesh.uvs is None:
        raise ValueError("the mesh has no texture coordinates")
    face, weight = buffers.face[buffers.mask].long(), buffers.barycentric[buffers.mask]
    corners = mesh.faces.to(face.device)[face].long()
    uv = interpolate(mesh.uvs.to(face.device)[corners], weight)
    points = SeenPoints(face, weight, uv, buffers.normal[buffers.mask])
    if len(painted.materials) == 1:
        return sample_painted(painted, 0, points)
    owner = painted.owner.to(face.device)[face]
    rows = torch.zeros(len(face), 10, device=face.device)
    for number in owner.unique().tolist():
        mine = torch.nonzero(owner == number)[:, 0]
        part = sample_painted(painted, number, points.at(mine))
        normal = points.normal[mine] if part.normal is None else part.normal
        open_to = torch.ones_like(part.alpha) if part.occlusion is None else part.occlusion
        columns = (part.base_color, part.metallic, part.roughness, part.alpha, normal, open_to)
        rows[mine] = torch.cat(columns, 1)
    return Surface(*rows.split([3, 1, 1, 1, 3, 1], dim=1))


def sample_painted(painted: PaintedMesh, number: int, points: SeenPoints) -> Surface:
    """What one material says at points of the mesh, its normal map and occlusion included."""
    material, device = painted.materials[number], points.uv.device
    surface = sample_material(material, points.uv)
    uv = repeated(points.uv)
    if material.occlusion is not None:
        image = material.occlusion[..., None].to(device)
        surface = replace(surface, occlusion=sample_texture(image, uv, color_channels=0))
    if material.normal is not None and painted.mesh.normals is not None:
        mesh = painted.mesh.to(device)
        frames = Frames.of(mesh) if painted.frames is None else painted.frames.to(device)
        texel = sample_texture(material.normal.to(device), uv, color_channels=0)
        normal = mapped_normals(mesh, frames, points.face, points.weight, points.normal, texel)
        surface = replace(surface, normal=normal)
    return surface


def sample_material(material: Material, uv: Tensor) -> Surface:  # float32 [P, 2]
    uv = repeated(uv)
    base = sample_texture(material.base_color.to(uv.device), uv, color_channels=3)
    other = sample_texture(material.metallic_roughness.to(uv.device), uv, color_channels=0)
    return Surface(base[:, :3], other[:, 2:3], other[:, 1:2], opacity(base[:, 3:], material))


def repeated(uv: Tensor) -> Tensor:
    """Texture coordinates inside the texture: outside of it, it repeats."""
    outside = (uv < -ROUNDING) | (uv > 1 + ROUNDING)
    return torch.where(outside, uv - uv.floor(), uv)


def sample_material_voxels(voxels: PBRVoxels, position: Tensor, opaque: bool) -> Surface:  # float32 [P, 3]
    places = (position + 0.5) * voxels.resolution
    coords, attrs = voxels.coords.to(places.device), voxels.attrs.to(places.device)
    values, support = sample_voxels(places, coords, attrs, voxels.resolution)
    values = values.clamp(0, 1)
    known = support[:, None] > 0
    color = srgb_to_linear(torch.where(known, values[:, BASE_COLOR], GREY))
    alpha = torch.where(known, values[:, ALPHA], 1.0)
    rough = torch.where(known, values[:, ROUGHNESS], 1.0)
    return Surface(color, values[:, METALLIC], rough, torch.ones_like(alpha) if opaque else alpha)


def opacity(alpha: Tensor, material: Material) -> Tensor:
    if material.alpha_mode == "OPAQUE":
        return torch.ones_like(alpha)
    if material.alpha_mode == "MASK":
        return (alpha >= material.alpha_cutoff).float()
    return alpha


def sample_texture(
    texture: Tensor,  # uint8 [S, S, C]
    uv: Tensor,  # float32 [P, 2]  origin top left
    color_channels: int,  # so many leading channels are decoded from sRGB before they are mixed
) -> Tensor:  # float32 [P, C]  in [0, 1]
    """Bilinear lookup, clamped at the border."""
    height, width, channels = texture.shape
    decoded = srgb_to_linear(torch.arange(256, device=texture.device) / 255)
    texels = texture.reshape(-1, channels)
    limit = uv.new_tensor([width - 1, height - 1])
    at = torch.minimum(uv * (limit + 1) - 0.5, limit).clamp(min=0)
    corner = at.floor()
    weight = at - corner
    x0, y0 = corner.long().unbind(1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)

    def texel(x: Tensor, y: Tensor) -> Tensor:
        raw = texels.index_select(0, y * width + x)
        color, other = raw[:, :color_channels], raw[:, color_channels:]
        return torch.cat([decoded[color.int()], other / 255], 1)

    wx, wy = weight[:, :1], weight[:, 1:]
    top = torch.lerp(texel(x0, y0), texel(x1, y0), wx)
    return torch.lerp(top, torch.lerp(texel(x0, y1), texel(x1, y1), wx), wy)


def srgb_to_linear(value: Tensor) -> Tensor:
    """IEC 61966-2-1, exact."""
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Tensor) -> Tensor:
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
