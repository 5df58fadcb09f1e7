"""Texture of a mesh from pictures of the same object as Gaussians or as a radiance field.

Every texel takes its color from the views that see it best: straight on, and away from silhouettes, where a
fuzzy picture and a sharp mesh disagree most. Nothing is drawn at random, and nothing is optimised.
Blending by view angle: Debevec et al., "Modeling and Rendering Architecture from Photographs" (1996).
Letters: V vertices, Q texels, S texture side, H and W picture height and width (equal here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.asset import (
    ExportSettings,
    assemble,
    demand_geometry,
    prepare_meshes,
    workplace,
)
from trellis_core.geometry.bake import Baked, Texels, cover_texels, sample_texels, to_bytes
from trellis_core.geometry.camera import Camera, hammersley_view
from trellis_core.geometry.connectivity import sum_by
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import Asset, Mesh, PBRVoxels, VoxelMesh
from trellis_core.kernels.table import Kernels
from trellis_core.render.field_image import FieldImage
from trellis_core.render.gaussian import render_gaussians
from trellis_core.render.mesh import render_mesh
from trellis_core.render.radiance import render_radiance
from trellis_core.render.views import cameras_around
from trellis_core.runtime import Runtime
from trellis_core.sparse.order import key_coords, linear_keys

BEST = 4  # views that are blended
SHARPNESS = 4  # power of the cosine between normal and viewer
GRAZING = 0.05  # cosine below which a view tells nothing
SURE = 0.5  # alpha below which a picture does not know the color
SILHOUETTE = 4  # pixels on either side of a jump in depth that count less
JUMP = 0.02  # world units, between neighbouring pixels
MATTE = (0.0, 1.0, 1.0)  # metallic, roughness, alpha: pictures tell nothing about them


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewBakeSettings:
    views: int = 32
    size: int | None = None  # pixels of a view; None: half the texture's side, from 256 to 1024
    tolerance: float = 6e-3  # world units that the pictures' surface may lie off the mesh

    def __post_init__(self) -> None:
        if self.views < 1 or self.tolerance <= 0 or (self.size is not None and self.size < 16):
            raise ValueError("views, size (at least 16) and tolerance must be positive")


STANDARD = ViewBakeSettings()


def build_viewed_asset(
    mesh: Mesh,
    appearance: Gaussians | RadianceField,
    settings: ExportSettings,
    *,
    runtime: Runtime,
    resolution: int,  # of the grid that the mesh was extracted from
    colors: Tensor | None = None,  # float32 [V, 3]  of the vertices, in [0, 1], for what no view sees
    views: ViewBakeSettings = STANDARD,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
) -> Asset:
    """Clean, simplify and unwrap a mesh, and texture it with pictures of `appearance`.

    Raises `InputError` when there is no geometry to work with.
    """
    made = build_viewed_assets(
        mesh,
        appearance,
        [settings],
        runtime=runtime,
        resolution=resolution,
        colors=colors,
        views=views,
        extras=extras,
        writers=writers,
    )
    return next(asset for _, asset in made)


def build_viewed_assets(
    mesh: Mesh,
    appearance: Gaussians | RadianceField,
    wanted: Sequence[ExportSettings],
    *,
    runtime: Runtime,
    resolution: int,
    colors: Tensor | None = None,
    views: ViewBakeSettings = STANDARD,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
) -> Iterator[tuple[int, Asset]]:
    """Several assets of one mesh, each with its number in `wanted`, as `build_assets` makes them."""
    raw = Mesh(mesh.vertices.float(), mesh.faces).to(workplace(runtime))
    known = color_voxels(raw, torch.zeros_like(raw.vertices) if colors is None else colors, resolution)
    demand_geometry(VoxelMesh(raw, known))
    fallback = None if colors is None else known
    for number, part in prepare_meshes(raw, known, wanted, runtime):
        settings = wanted[number]
        size = settings.texture_size
        baked = (
            bake_views(part.mesh, appearance, size, runtime, fallback=fallback, settings=views)
            if settings.textured
            else None
        )
        yield number, assemble(part, baked, settings, runtime, extras or {}, writers or {})


def color_voxels(
    mesh: Mesh,
    colors: Tensor,  # float32 [V, 3]  of the vertices, in [0, 1]
    resolution: int,
) -> PBRVoxels:
    """The voxels that the surface goes through, with its mean color, not metallic and rough."""
    grid = (resolution,) * 3
    face, weights = spread_over_faces(mesh, 0.7 / resolution)
    corners = mesh.faces[face].long()
    points = (mesh.vertices[corners] * weights[..., None]).sum(1)
    shades = (colors.to(points)[corners] * weights[..., None]).sum(1)
    cells = ((points + 0.5) * resolution).floor().long().clamp(0, resolution - 1)
    keys, owner, count = torch.unique(linear_keys(cells, grid), return_inverse=True, return_counts=True)
    total = sum_by(shades, owner, len(keys))
    attrs = torch.cat([total / count[:, None], total.new_tensor(MATTE).expand(len(keys), 3)], 1)
    return PBRVoxels(key_coords(keys, grid), attrs, resolution)


def spread_over_faces(mesh: Mesh, spacing: float) -> tuple[Tensor, Tensor]:  # int64 [P], float32 [P, 3]
    """Points on all finite faces, at most about `spacing` apart: their faces and barycentric coordinates."""
    corners = mesh.vertices[mesh.faces.long()]
    longest = (corners - corners.roll(1, 1)).norm(dim=2).amax(1)
    finite = torch.isfinite(longest)
    side = torch.where(finite, (longest / spacing).ceil().clamp(min=1), 0).long()
    count = side.square()
    face = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    number = torch.arange(len(face), device=count.device) - (count.cumsum(0) - count)[face]
    u, v = ((part + 0.5) / side[face] for part in (number // side[face], number % side[face]))
    outside = u + v > 1
    u, v = torch.where(outside, 1 - u, u), torch.where(outside, 1 - v, v)
    return face, torch.stack([1 - u - v, u, v], 1)


@torch.no_grad()
def bake_views(
    mesh: Mesh,  # with uvs
    appearance: Gaussians | RadianceField,
    texture_size: int,
    runtime: Runtime,
    *,
    fallback: PBRVoxels | None = None,  # for texels that no view sees; else they are filled in
    settings: ViewBakeSettings = STANDARD,
) -> Baked:
    """Color every texel from the views that see it best; stage `bake` reports one step per view."""
    mesh, appearance = mesh.to(runtime.device), appearance.to(runtime.device)
    size = settings.size or min(max(texture_size // 2, 256), 1024)
    texels = cover_texels(mesh, texture_size, runtime.kernels)
    normals = face_normals(mesh.vertices, mesh.faces)[texels.face]
    weights = torch.zeros(len(texels.index), BEST, device=runtime.device)
    colors = torch.zeros(len(texels.index), BEST, 3, dtype=torch.uint8, device=runtime.device)
    directions = [hammersley_view(number, settings.views) for number in range(settings.views)]
    for number, camera in enumerate(cameras_around(mesh.vertices, directions)):
        runtime.report("bake", number, settings.views)
        texel, weight, color = look(
            mesh, appearance, texels, normals, camera, size, settings.tolerance, runtime
        )
        keep_best(weights, colors, texel, weight, to_bytes(color))
    runtime.report("bake", settings.views, settings.views)
    share = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)
    seen = weights[:, 0] > 0
    blended = (colors.float() * share[..., None]).sum(1) / 255
    attrs = torch.cat([blended, blended.new_tensor(MATTE).expand(len(blended), 3)], 1)
    unseen = torch.nonzero(~seen)[:, 0]
    if fallback is not None and len(unseen):
        attrs[unseen], seen[unseen] = look_up(texels, unseen, mesh, fallback, runtime.kernels)
    image = paint_texture(to_bytes(attrs[seen]), texels.index[seen], texture_size)
    missing = float((~seen).float().mean()) if len(seen) else 1.0
    covered = torch.zeros(texture_size**2, dtype=torch.bool, device=runtime.device)
    covered[texels.index[seen]] = True
    return Baked(image, covered.view(texture_size, texture_size), missing)


def look(
    mesh: Mesh,
    appearance: Gaussians | RadianceField,
    texels: Texels,
    normals: Tensor,  # float32 [Q, 3]
    camera: Camera,
    size: int,
    tolerance: float,
    runtime: Runtime,
) -> tuple[Tensor, Tensor, Tensor]:  # int64 [P], float32 [P], float32 [P, 3]
    """The texels that a camera sees: which, how well, and in which color."""
    buffers = render_mesh(Mesh(mesh.vertices, mesh.faces), camera, size, runtime)
    view = camera.extrinsics.to(mesh.vertices)
    to_eye = F.normalize(camera.eye.to(normals) - texels.position, dim=1)
    facing = (normals * to_eye).sum(1)
    texel = torch.nonzero(facing > GRAZING)[:, 0]
    local = texels.position[texel] @ view[:3, :3].T + view[:3, 3]
    flat = local @ camera.intrinsics.to(local).T
    place = flat[:, :2] / flat[:, 2:] * size
    column, row = place.long().clamp(0, size - 1).unbind(1)
    near = buffers.mask[row, column] & (local[:, 2] <= buffers.depth[row, column] + tolerance)
    texel, place, row, column = texel[near], place[near], row[near], column[near]
    picture = draw(appearance, camera, size, runtime)
    color, alpha = sample_picture(picture, place)
    proximity = silhouette_proximity(buffers.depth, buffers.mask)[row, column]
    weight = facing[texel] ** SHARPNESS * (1 - 0.99 * proximity) * alpha
    sure = alpha > SURE
    return texel[sure], weight[sure], color[sure]


def draw(appearance: Gaussians | RadianceField, camera: Camera, size: int, runtime: Runtime) -> FieldImage:
    if isinstance(appearance, Gaussians):
        return render_gaussians(appearance, camera, size, runtime)
    return render_radiance(appearance, camera, size, runtime, supersampling=1)


def sample_picture(picture: FieldImage, place: Tensor) -> tuple[Tensor, Tensor]:  # [P, 2] -> [P, 3], [P]
    """Color (not multiplied by alpha) and alpha at places in pixels."""
    size = picture.color.shape[0]
    layers = torch.cat([picture.color, picture.alpha[..., None]], 2).permute(2, 0, 1)[None]
    grid = (place * (2 / size) - 1)[None, None]
    sampled = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
    color, alpha = sampled[0, :3, 0].T, sampled[0, 3, 0]
    return (color / alpha[:, None].clamp(min=1e-6)).clamp(0, 1), alpha


def silhouette_proximity(depth: Tensor, mask: Tensor) -> Tensor:  # float32 [H, W]  1 at jumps in depth
    """How close each pixel is to a jump in depth, falling to 0 over `SILHOUETTE` pixels."""
    filled = torch.where(mask, depth, depth.max() + 1)[None, None]
    jump = F.max_pool2d(filled, 3, 1, 1) + F.max_pool2d(-filled, 3, 1, 1) > JUMP
    ring = jump.float()
    total = ring
    for _ in range(SILHOUETTE - 1):
        ring = F.max_pool2d(ring, 3, 1, 1)
        total = total + ring
    return (total / SILHOUETTE)[0, 0]


def keep_best(
    weights: Tensor,  # float32 [Q, BEST]     from high to low, changed in place
    colors: Tensor,  # uint8 [Q, BEST, 3]   changed in place
    texel: Tensor,  # int64 [P]
    weight: Tensor,  # float32 [P]
    color: Tensor,  # uint8 [P, 3]
) -> None:
    """Enter a view's samples where they beat the worst of the best."""
    better = weight > weights[texel, -1]
    texel, weight, color = texel[better], weight[better], color[better]
    candidates = torch.cat([weights[texel], weight[:, None]], 1)
    ranked, order = torch.sort(candidates, dim=1, descending=True, stable=True)
    options = torch.cat([colors[texel], color[:, None]], 1)
    chosen = order[:, :BEST, None].expand(-1, -1, 3)
    weights[texel], colors[texel] = ranked[:, :BEST], options.gather(1, chosen)


def look_up(
    texels: Texels, chosen: Tensor, mesh: Mesh, voxels: PBRVoxels, kernels: Kernels
) -> tuple[Tensor, Tensor]:  # float32 [P, 6], bool [P] found
    """Material of some texels from voxels."""
    device = texels.index.device
    part = Texels(texels.index[chosen], texels.face[chosen], texels.position[chosen])
    voxels = PBRVoxels(voxels.coords.to(device), voxels.attrs.to(device), voxels.resolution)
    return sample_texels(part, mesh, voxels, None, False, kernels)
