"""A mesh from elsewhere as an asset: as it is, or repaired, simplified, unwrapped and painted anew.

    as read -> into the unit cube -> repair -> simplify -> unwrap -> paint after the original -> where it was

Textures are looked up where the closest point of the original is. Letters: V vertices, F faces, Q texels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.asset import (
    ExportSettings,
    bake_maps,
    clay,
    clean,
    make_solid,
    reduce_in_steps,
    shade_mesh,
    unit_mm,
    unwrap_mesh,
    what_cleaning_needs,
)
from trellis_core.geometry.bake import Texels, cover_texels, to_bytes, to_images
from trellis_core.geometry.cleanup import remove_broken_faces, weld_vertices
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.quality import check_mesh
from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import Asset, Material, Mesh
from trellis_core.render.bake_views import color_voxels
from trellis_core.render.surface import PaintedMesh, linear_to_srgb, sample_material
from trellis_core.runtime import Runtime

GRID = 256  # voxels across, by which tolerances of repair are measured
WELD = 1e-6  # of the longest side
FAR = 0.1  # of the longest side that a texel may lie off the original
SIDES = (0.05, 0.5)  # cosine to the original's normal: least, and what is sure
CHUNK = 1 << 18

Source = PaintedMesh | Mesh


@dataclass(frozen=True, slots=True)
class Placed:
    """A source in the unit cube, and the way back: `vertices * extent + middle`."""

    source: Source
    extent: float
    middle: Tensor  # float32 [3]


def asset_as_it_is(
    source: Source,
    *,
    texture_size: int | None = None,  # side of its textures; None: their own
    runtime: Runtime,
    extras: Mapping[str, Any] | None = None,
    unit: float | None = None,  # millimeters per unit
) -> Asset:
    """A mesh with one material at most as an asset: not a vertex is moved."""
    if isinstance(source, PaintedMesh) and len(source.materials) != 1:
        raise ValueError("an asset has one material")
    mesh = source.mesh if isinstance(source, PaintedMesh) else source
    material = clay() if isinstance(source, Mesh) else source.materials[0]
    if isinstance(source, Mesh):
        mesh = replace(mesh, uvs=None)
    mesh = share_corners(mesh)
    if texture_size is not None:
        material = resized(material, texture_size)
    report = check_mesh(unit_sized(mesh), kernels=runtime.kernels, texture_size=1024)
    double = bool(report.metrics.get("boundary_edges", 0))
    return Asset(mesh, replace(material, double_sided=double), report, dict(extras or {}), {}, unit)


def convert_mesh(
    source: Source,
    wanted: Sequence[ExportSettings],
    *,
    repair: bool,  # clean, close small holes, remove what is inside, turn everything outward
    runtime: Runtime,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
    unit: float | None = None,  # millimeters per unit of the source
) -> Iterator[tuple[int, Asset]]:
    """Assets of a mesh, each with its number in `wanted`, those with the most faces first.

    What has no colors gets no texture, unless a map is wanted. Raises `InputError` for a mesh without area.
    """
    placed = place(source)
    mesh = placed.source.mesh if isinstance(placed.source, PaintedMesh) else placed.source
    voxel = 1.0 / GRID
    runtime.report("clean", 0, 4)
    welded = remove_broken_faces(weld_vertices(Mesh(mesh.vertices, mesh.faces), WELD))
    if not len(welded.faces):
        raise InputError("none of its triangles has an area", hint="repair it in a 3D program")
    runtime.report("clean", 4, 4)
    whole: dict[ExportSettings, Mesh] = {}
    reduced: dict[ExportSettings, dict[int, Mesh]] = {}
    for number in sorted(range(len(wanted)), key=lambda number: -wanted[number].faces):
        settings = wanted[number]
        same = what_cleaning_needs(settings, len(welded.faces))
        if same not in whole:
            whole[same] = repaired(welded, replace(settings, faces=same.faces), runtime) if repair else welded
        original = whole[same]
        if settings.solid:
            shape = make_solid(original, settings, runtime)
        else:
            done = reduced.setdefault(same, {})
            shape = reduce_in_steps(original, settings.faces, voxel, runtime, done)
        asset = paint(shape, placed.source, original, settings, runtime, extras or {})
        size = unit_mm(asset.mesh, settings.height_mm)
        if size is None:
            moved = asset.mesh.vertices * placed.extent + placed.middle
            asset = replace(asset, mesh=replace(asset.mesh, vertices=moved), unit_mm=unit)
        else:
            asset = replace(asset, unit_mm=size)
        yield number, replace(asset, writers=dict(writers or {}))


def repaired(mesh: Mesh, settings: ExportSettings, runtime: Runtime) -> Mesh:
    """Cleaned as what decoders make, on a grid of `GRID` voxels."""
    voxels = color_voxels(mesh, torch.zeros_like(mesh.vertices), GRID)
    return clean(mesh, voxels, settings, runtime).mesh


def paint(
    shape: Mesh,
    source: Source,
    original: Mesh,
    settings: ExportSettings,
    runtime: Runtime,
    extras: Mapping[str, Any],
) -> Asset:
    """Unwrap a mesh, and look its texture up on the source."""
    size = settings.texture_size
    bare = isinstance(source, Mesh) and not (settings.normal_map or settings.ambient)
    if bare or not settings.textured:
        mesh, material = shade_mesh(shape, settings), clay()
    else:
        mesh = unwrap_mesh(shape, settings, 1.0 / GRID, runtime)
        material = clay(size) if isinstance(source, Mesh) else bake_source(mesh, source, size, runtime)
        material = bake_maps(mesh, original, material, settings, runtime)
    runtime.report("check", 0, 1)
    report = check_mesh(mesh, kernels=runtime.kernels, texture_size=min(size, 1024))
    runtime.report("check", 1, 1)
    material = replace(material, double_sided=bool(report.metrics.get("boundary_edges", 0)))
    if settings.alpha not in ("opaque", "auto"):
        material = replace(material, alpha_mode=settings.alpha.upper())
    return Asset(mesh, material, report, {**extras, "export": asdict(settings)})


def bake_source(mesh: Mesh, source: PaintedMesh, size: int, runtime: Runtime) -> Material:
    """The texture of a mesh with uvs, after the closest points of the source."""
    runtime.report("bake", 0, 2)
    texels = cover_texels(mesh, size, runtime.kernels)
    face, weights, found = closest(mesh, texels, source.mesh, runtime)
    runtime.report("bake", 1, 2)
    assert source.mesh.uvs is not None
    corners = source.mesh.faces.long()[face]
    uv = (source.mesh.uvs[corners] * weights[..., None]).sum(1)
    owner = source.owner[face]
    rows = torch.zeros(len(face), 6)
    for number, material in enumerate(source.materials):
        mine = torch.nonzero(owner == number).reshape(-1)
        for part in mine.split(CHUNK):
            seen = sample_material(material, uv[part])
            color = linear_to_srgb(seen.base_color.clamp(0, 1))
            rows[part] = torch.cat([color, seen.metallic, seen.roughness, seen.alpha], 1)
    image = paint_texture(to_bytes(rows[found]), texels.index[found], size)
    base_color, metallic_roughness = to_images(image)
    modes = {material.alpha_mode for material in source.materials}
    mode = next((mode for mode in ("BLEND", "MASK") if mode in modes), "OPAQUE")
    cutoff = next((m.alpha_cutoff for m in source.materials if m.alpha_mode == "MASK"), 0.5)
    runtime.report("bake", 2, 2)
    return Material(base_color, metallic_roughness, mode, cutoff)


def closest(
    mesh: Mesh, texels: Texels, original: Mesh, runtime: Runtime
) -> tuple[Tensor, Tensor, Tensor]:  # int64 [Q], float32 [Q, 3], bool [Q]
    """Face of the original, barycentric coordinates, and whether there is a point that faces the same way."""
    closest_point: Any = runtime.kernels["closest_point"]
    normals, target = face_normals(mesh.vertices, mesh.faces), face_normals(original.vertices, original.faces)
    faces, weights, found = [], [], []
    for place, own in zip(texels.position.split(CHUNK), texels.face.split(CHUNK), strict=True):
        _, face, weight = closest_point(place.contiguous(), original.vertices, original.faces, FAR)
        face = face.long()
        hit = face >= 0
        facing = (normals[own] * target[face.clamp_min(0)]).sum(1)
        turned = torch.nonzero(hit & (facing < SIDES[0])).reshape(-1)
        if len(turned):  # the other side of a thin sheet may be as near: look from a little outside
            offset = place[turned] + normals[own[turned]] * (FAR / 10)
            _, other, other_weight = closest_point(
                offset.contiguous(), original.vertices, original.faces, FAR
            )
            other = other.long()
            better = (normals[own[turned]] * target[other.clamp_min(0)]).sum(1) > facing[turned]
            better &= other >= 0
            face[turned[better]], weight[turned[better]] = other[better], other_weight[better]
        faces.append(face.clamp_min(0))
        weights.append(weight)
        found.append(hit)
    return torch.cat(faces), torch.cat(weights), torch.cat(found)


# --- small parts ---


def place(source: Source) -> Placed:
    """Move the middle to the origin and make the longest side 1."""
    mesh = source.mesh if isinstance(source, PaintedMesh) else source
    used = mesh.vertices[mesh.faces.long()].reshape(-1, 3)
    if not len(used):
        raise InputError("it has no triangles", hint="point clouds and curves cannot be used")
    low, high = used.amin(0), used.amax(0)
    extent, middle = float((high - low).max()), (low + high) / 2
    if extent <= 0:
        raise InputError("all its vertices lie in one point", hint="repair it in a 3D program")
    mesh = replace(mesh, vertices=(mesh.vertices - middle) / extent)
    return Placed(replace(source, mesh=mesh) if isinstance(source, PaintedMesh) else mesh, extent, middle)


def unit_sized(mesh: Mesh) -> Mesh:
    placed = place(mesh).source
    assert isinstance(placed, Mesh)
    return placed


def merge_materials(source: PaintedMesh) -> PaintedMesh:
    """Materials that are the same become one."""
    kept: list[Material] = []
    number = []
    for material in source.materials:
        same = next((i for i, other in enumerate(kept) if is_same(material, other)), len(kept))
        if same == len(kept):
            kept.append(material)
        number.append(same)
    return PaintedMesh(source.mesh, tuple(kept), torch.tensor(number)[source.owner])


def is_same(one: Material, other: Material) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))

    names = ("base_color", "metallic_roughness", "normal", "occlusion")
    modes = [(each.alpha_mode, each.alpha_cutoff) for each in (one, other)]
    return modes[0] == modes[1] and all(equal(getattr(one, name), getattr(other, name)) for name in names)


def share_corners(mesh: Mesh) -> Mesh:
    """Corners that are alike in everything become one vertex."""
    parts = [
        mesh.vertices,
        *(part.float() for part in (mesh.uvs, mesh.normals, mesh.colors) if part is not None),
    ]
    rows = torch.cat(parts, dim=1)
    _, owner = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(owner.max()) + 1,), len(owner), dtype=torch.int64)
    first = first.scatter_reduce(0, owner, torch.arange(len(owner)), "amin")

    def take(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[first]

    faces = owner[mesh.faces.long()].to(torch.int32)
    shared = Mesh(mesh.vertices[first], faces, take(mesh.uvs), take(mesh.normals), take(mesh.colors))
    return shared


def resized(material: Material, size: int) -> Material:
    """Textures of this side; smaller ones, as single colors are, stay."""

    def scale(image: Tensor | None) -> Tensor | None:
        if image is None or max(image.shape[:2]) <= size:
            return image
        planes = image.permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
        return planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)

    base, surface, normal = map(scale, (material.base_color, material.metallic_roughness, material.normal))
    assert base is not None
    assert surface is not None
    return replace(material, base_color=base, metallic_roughness=surface, normal=normal)
