"""Material voxels of a textured mesh: every voxel averages the triangles that cross its edges.

The voxels are those of `dual_grid.mesh_to_dual_grid`. Image coordinates start at the bottom left: v = 0 is
the last row. Knows nothing about files or networks.
Letters: F triangles, N voxels, P (triangle, voxel) pairs, H, W texels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis2.crossings import VoxelTable, find_crossings, touched_voxels
from trellis2.dual_grid import UNIT_CUBE, Box, Grid
from trellis2.quadrics import add_rows, unit_normals
from trellis2.textures import Pyramid, Wrap, build_pyramid, sample_nearest, sample_trilinear
from trellis_core.geometry.types import PBRVoxels
from trellis_core.kernels.closest_point import closest_on_triangles
from trellis_core.sparse.order import key_coords

Filter = Literal["LINEAR", "NEAREST"]
AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]
Average = Literal["released", "surface"]

WORK = 1 << 20  # pairs at a time
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


@dataclass(frozen=True, slots=True)
class SurfaceVoxels:
    """Averages per voxel, not clamped and not quantised."""

    coords: Tensor  # int32 [N, 3]     in key order
    base_color: Tensor  # float32 [N, 3]
    metallic: Tensor  # float32 [N]
    roughness: Tensor  # float32 [N]
    alpha: Tensor  # float32 [N]
    normal: Tensor  # float32 [N, 3]   mean, not unit


def voxelize_material(
    mesh: TexturedMesh,
    resolution: int,
    *,
    aabb: Box = UNIT_CUBE,
    average: Average = "released",
) -> PBRVoxels:
    """Material voxels of a textured mesh. See `voxelize_surface` for `average`."""
    grid = Grid.of(resolution, aabb)
    device = mesh.triangles.device
    moved = replace(mesh, triangles=mesh.triangles.float() - grid.origin(device))
    voxels = voxelize_surface(moved, grid.voxel_size(device), grid.size, average=average)
    scalars = torch.stack([voxels.metallic, voxels.roughness, voxels.alpha], 1)
    return PBRVoxels(voxels.coords, torch.cat([voxels.base_color, scalars], 1).clamp(0, 1), resolution)


@torch.no_grad()
def voxelize_surface(
    mesh: TexturedMesh,  # positions relative to the grid's minimum corner
    voxel_size: Tensor,  # float32 [3]
    size: Sequence[int],  # (Gx, Gy, Gz)
    *,
    average: Average = "released",
    mip_level_offset: float = 0.0,
) -> SurfaceVoxels:
    """Average what the triangles show at each voxel.

    `released`, what the released encoders were trained on: look up the foot of the perpendicular from the
    voxel's centre, even outside the triangle, with weight 1 - signed distance. `surface`: look up the closest
    point of the triangle, weighted by its area and its distance to the centre, and average the base color in
    linear light.
    """
    if average not in ("released", "surface"):
        raise ValueError(f"average must be `released` or `surface`, got `{average}`")
    triangles, step, device = mesh.triangles.float(), voxel_size, mesh.triangles.device
    table, triangle, keys = pairs_of(triangles, step, size)
    scales = texel_scales(triangles, mesh.uvs, step)
    frames = tangent_frames(triangles, mesh.uvs, turn_mirrored=average == "released")
    own_normals = unit_normals(triangles)
    pyramids = [{name: build_pyramid(t) for name, t in textures_of(m).items()} for m in mesh.materials]
    total = torch.zeros(len(table), 10, device=device)  # weighted 3 + 1 + 1 + 1 + 3, then the weight
    for start in range(0, len(keys), WORK):
        which, key = triangle[start : start + WORK], keys[start : start + WORK]
        centers = (key_coords(key, size) + 0.5) * step
        find = closest_sample if average == "surface" else perpendicular_sample
        bary, weight = find(triangles[which], centers, step)
        uv = (mesh.uvs[which] * bary[..., None]).sum(1)
        corners = own_normals[which, None] if mesh.normals is None else mesh.normals[which]
        normal = (corners * bary[..., None]).sum(1)
        values = torch.zeros(len(which), 9, device=device)
        for number, material in enumerate(mesh.materials):
            mine = (mesh.material_ids[which] == number).nonzero().squeeze(1)
            look = Lookup(material, pyramids[number], uv[mine], scales[which[mine]], mip_level_offset)
            values[mine] = shade(look, frames[which[mine]], normal[mine])
        if average == "surface":
            values[:, :3] = to_linear(values[:, :3])
        add_rows(
            total, table.rows(key), torch.cat([values, torch.ones_like(weight)[:, None]], 1) * weight[:, None]
        )
    mean = total[:, :9] / total[:, 9:]
    if average == "surface":
        mean[:, :3] = to_srgb(mean[:, :3])
    metallic, roughness, alpha = mean[:, 3:6].unbind(1)
    return SurfaceVoxels(key_coords(table.keys, size), mean[:, :3], metallic, roughness, alpha, mean[:, 6:])


def pairs_of(triangles: Tensor, step: Tensor, size: Sequence[int]) -> tuple[VoxelTable, Tensor, Tensor]:
    """All voxels, and each (triangle int64 [P], voxel key int64 [P]) that touches, once."""
    crossings = find_crossings(triangles, step, size)
    keys = touched_voxels(crossings, size)
    table = VoxelTable(keys, size)
    pairs = crossings.triangle[:, None] * max(len(table), 1) + table.rows(keys)
    pairs = pairs.unique()
    return table, pairs // max(len(table), 1), table.keys[pairs % max(len(table), 1)]


# --- where in the triangle -------------------------------------------------------------------------


def perpendicular_sample(triangles: Tensor, centers: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates of the foot of the perpendicular, not clamped, and 1 - signed distance."""
    a, b, c = triangles.unbind(1)
    ab, ac, v = b - a, c - a, centers - a
    bb, bc, cc = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    vb, vc = (v * ab).sum(1), (v * ac).sum(1)
    area = bb * cc - bc * bc
    beta, gamma = (cc * vb - bc * vc) / area, (bb * vc - bc * vb) / area
    distance = (unit_normals(triangles) * v).sum(1)
    bary = torch.stack([1 - beta - gamma, beta, gamma], 1)
    flat = ~bary.isfinite().all(1, keepdim=True)
    return torch.where(flat, 1 / 3, bary), 1 - distance


def closest_sample(triangles: Tensor, centers: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates of the closest point, and a weight that falls with its distance."""
    bary, squared = closest_on_triangles(centers, triangles)
    a, b, c = triangles.unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
    inside_voxel = torch.minimum(area, step.square().amax()) / step.square().amax()
    near = (1 - squared.sqrt() / step.amax()).clamp_min(1e-3)  # never 0: a voxel needs a value
    return bary, near * inside_voxel.clamp_min(1e-6)


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


# --- what the material shows there -----------------------------------------------------------------


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
