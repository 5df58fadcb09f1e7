"""From what the decoder produced to a finished asset: repaired, simplified, unwrapped, baked, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.bake import Baked, BakeMode, bake_texture, to_images
from trellis_core.geometry.cleanup import (
    remove_broken_faces,
    remove_flaps,
    remove_repeated_faces,
    remove_small_components,
    smooth,
    split_non_manifold,
    straighten_slivers,
    weld_vertices,
)
from trellis_core.geometry.cluster import cluster_vertices
from trellis_core.geometry.connectivity import edges_of
from trellis_core.geometry.exterior import HoleLimits, remove_hidden, see_through_faces
from trellis_core.geometry.flips import flip_edges
from trellis_core.geometry.holes import fill_holes
from trellis_core.geometry.normals import crease_normals, vertex_normals
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.quality import QualityLimits, check_mesh
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.types import ALPHA, Asset, Material, Mesh, PBRVoxels, VoxelMesh
from trellis_core.geometry.unwrap import unwrap
from trellis_core.runtime import Runtime

AlphaMode = Literal["opaque", "mask", "blend", "auto"]

FINE = 100_000  # faces: what is cleaned is not clustered for less, as normal maps are baked from it, too
LARGEST_CLUSTER = 3  # cells of 2 ** 3 voxels
CLUSTER_TOLERANCE, COARSE_TOLERANCE = 0.05, 0.15  # voxels
WELD = 1e-3  # voxels
FLAP_AREA = 4.0  # voxel faces
STRAY_AREA = 1e-4  # of the largest piece
STRAY_EXTENT = 4.0  # voxels
FLAT_HOLE = 3.0  # times the hole limit, for holes within
FLATNESS = 0.5  # voxels of a plane
LAYER_GAP = 0.02  # voxels
FLIP_SHIFT = 0.02  # voxels
CLAY = (184, 184, 184, 255), (0, 153, 0)  # of what has no colors: base color, and rough 0.6
ANY_SHELLS = QualityLimits(max_double_shells=1 << 62)  # of what keeps its interior
SEE_THROUGH = 0.5  # alpha below which a voxel does not hide what is behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How an asset is made."""

    faces: int = 100_000  # at most
    texture_size: int = 2048  # texels per side
    textured: bool = True  # False: for files that hold nothing but a shape

    fill_holes_voxels: float = 12  # close holes with a smaller perimeter; 0 closes none
    keep_interior: bool = False  # keep what cannot be seen from outside
    keep_small_parts: bool = False  # keep crumbs of less than four voxels
    smooth_iterations: int = 0  # Taubin smoothing
    crease_angle: float = 60  # degrees; sharper edges are shaded hard
    watertight: bool = False  # rebuild as one closed surface, for printing

    bake: BakeMode = "auto"  # where to sample: in place, on the original surface, or as needed
    alpha: AlphaMode = "opaque"
    normal_map: bool = False  # of the original surface, for what simplification takes away
    ambient: bool = False  # bake how much light from all around gets there
    texture_format: Literal["webp", "png", "jpeg"] = "webp"  # jpeg: of opaque base colors

    height_mm: float | None = None  # how tall it is in the world; None: not known
    solid: bool = False  # one closed solid with walls of at least `wall_mm`, for printing
    wall_mm: float = 1.2

    def __post_init__(self) -> None:
        def demand(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise UsageError(
                    f"export setting `{name}` is {getattr(self, name)!r}", hint=f"use {expected}"
                )

        demand(self.faces >= 4, "faces", "at least 4")
        demand(16 <= self.texture_size <= 16384, "texture_size", "16 to 16384")
        demand(self.fill_holes_voxels >= 0, "fill_holes_voxels", "0 or more")
        demand(0 <= self.smooth_iterations <= 100, "smooth_iterations", "0 to 100")
        demand(0 <= self.crease_angle <= 180, "crease_angle", "0 to 180")
        demand(self.bake in ("auto", "projected", "direct"), "bake", "auto, projected or direct")
        demand(self.alpha in ("opaque", "mask", "blend", "auto"), "alpha", "opaque, mask, blend or auto")
        demand(self.texture_format in ("webp", "png", "jpeg"), "texture_format", "webp, png or jpeg")
        demand(self.height_mm is None or 0 < self.height_mm < 1e6, "height_mm", "more than 0, below 1000000")
        demand(0 < self.wall_mm <= 100, "wall_mm", "more than 0, at most 100")
        demand(not self.solid or self.height_mm is not None, "height_mm", "a height: walls have a thickness")


def build_asset(
    shape: VoxelMesh,
    settings: ExportSettings,
    *,
    runtime: Runtime,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
) -> Asset:
    """Make a finished asset of a decoded shape.

    Runs on the runtime's device (on the CPU where that has no float64); the asset is on the CPU. Raises
    `InputError` when there is no geometry to work with.
    """
    made = build_assets(shape, [settings], runtime=runtime, extras=extras, writers=writers)
    return next(asset for _, asset in made)


def build_assets(
    shape: VoxelMesh,
    wanted: Sequence[ExportSettings],
    *,
    runtime: Runtime,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
) -> Iterator[tuple[int, Asset]]:
    """Several assets of one shape, each with its number in `wanted`; those with the most faces come first.

    What can be shared is done once, so it takes less time, and gives the same as `build_asset` one by one.
    """
    demand_geometry(shape)
    place = workplace(runtime)
    voxels = move_voxels(shape.voxels, place)
    raw = Mesh(shape.mesh.vertices.float(), shape.mesh.faces).to(place)
    for number, part in prepare_meshes(raw, voxels, wanted, runtime):
        settings = wanted[number]
        baked = bake_original(part, voxels, settings, runtime) if settings.textured else None
        yield number, assemble(part, baked, settings, runtime, extras or {}, writers or {})


def workplace(runtime: Runtime) -> torch.device:
    """Where meshes are worked on: float64 and 64-bit sorting are for CPUs and CUDA only."""
    return runtime.device if runtime.device.type == "cuda" else torch.device("cpu")


def move_voxels(voxels: PBRVoxels, device: torch.device) -> PBRVoxels:
    return PBRVoxels(voxels.coords.to(device), voxels.attrs.float().to(device), voxels.resolution)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A mesh that is ready to be baked."""

    mesh: Mesh  # with normals, and uvs when it gets a texture
    original: Mesh | None  # before it was simplified, where there was more
    facts: Mapping[str, float | int]  # of the surface before, for the quality report


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A repaired surface."""

    mesh: Mesh  # outward-facing and manifold
    unclear: float  # share of the area whose orientation is not known
    raw: Mapping[str, int]  # what the surface was before

    @property
    def facts(self) -> Mapping[str, float | int]:
        return {"unclear_orientation": self.unclear, **self.raw}


def prepare_meshes(
    raw: Mesh, voxels: PBRVoxels, wanted: Sequence[ExportSettings], runtime: Runtime
) -> Iterator[tuple[int, Prepared]]:
    """Clean, simplify and unwrap for each of the settings, those with the most faces first."""
    voxel = 1.0 / voxels.resolution
    cleaned: dict[ExportSettings, Cleaned] = {}
    reduced: dict[ExportSettings, dict[int, Mesh]] = {}
    for number in sorted(range(len(wanted)), key=lambda number: -wanted[number].faces):
        settings = wanted[number]
        same = what_cleaning_needs(settings, len(raw.faces))
        if same not in cleaned:
            runtime.report("clean", 0, 4)
            cleaned[same] = clean(raw, voxels, replace(settings, faces=same.faces), runtime)
        repaired = cleaned[same]
        original = repaired.mesh
        if settings.solid:
            mesh = finish_mesh(make_solid(original, settings, runtime), settings, voxel, runtime)
            yield number, Prepared(mesh, original, {**repaired.facts, "unclear_orientation": 0.0})
            continue
        mesh = reduce_in_steps(original, settings.faces, voxel, runtime, reduced.setdefault(same, {}))
        yield number, Prepared(finish_mesh(mesh, settings, voxel, runtime), original, repaired.facts)


def make_solid(mesh: Mesh, settings: ExportSettings, runtime: Runtime) -> Mesh:
    """The printable solid around a mesh, where the mesh is; its walls count in millimeters of the print."""
    from trellis_core.geometry.print import print_solid

    assert settings.height_mm is not None
    solid = print_solid(mesh.to("cpu"), settings.height_mm, settings.wall_mm, runtime, settings.faces)
    solid = solid.to(mesh.vertices.device)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    base = torch.stack(
        [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    )  # a print stands on the origin
    return Mesh(solid.vertices * ((high[2] - low[2]) / settings.height_mm) + base, solid.faces)


def what_cleaning_needs(settings: ExportSettings, faces: int) -> ExportSettings:
    """The settings that cleaning of so many faces looks at, the others as they are by default."""
    clustered = cluster_levels(faces, FINE) > 0  # or else the target does not matter
    return ExportSettings(
        faces=max(settings.faces, FINE) if clustered else FINE,
        fill_holes_voxels=settings.fill_holes_voxels,
        keep_interior=settings.keep_interior,
        keep_small_parts=settings.keep_small_parts,
        smooth_iterations=settings.smooth_iterations,
        watertight=settings.watertight,
    )


def texture_mesh(
    mesh: Mesh,
    voxels: PBRVoxels,
    settings: ExportSettings,
    *,
    runtime: Runtime,
    extras: Mapping[str, Any] | None = None,
    writers: Mapping[str, Callable[[Asset, Path], None]] | None = None,
) -> Asset:
    """Bake material voxels onto a mesh that somebody else made, inside the unit cube.

    Its shape stays as it is but for faces without area. Its own texture coordinates are used when they lie in
    the unit square. It is drawn from both sides, as its winding is not checked.
    """
    demand_geometry(VoxelMesh(mesh, voxels))
    place = workplace(runtime)
    voxels, mesh = move_voxels(voxels, place), mesh.to(place)
    if mesh.uvs is None or not bool(((mesh.uvs >= 0) & (mesh.uvs <= 1)).all()):
        voxel = 1.0 / voxels.resolution
        welded = remove_broken_faces(weld_vertices(Mesh(mesh.vertices, mesh.faces), 1e-6))
        mesh = unwrap_mesh(welded, settings, voxel, runtime)
    elif mesh.normals is None:
        mesh = replace(mesh, normals=vertex_normals(mesh.vertices, mesh.faces))
    part = Prepared(mesh, None, {"unclear_orientation": 1.0})
    baked = bake_original(part, voxels, settings, runtime)
    return assemble(part, baked, settings, runtime, extras or {}, writers or {})


def finish_mesh(mesh: Mesh, settings: ExportSettings, voxel: float, runtime: Runtime) -> Mesh:
    """Add normals, and texture coordinates where the settings ask for a texture."""
    return unwrap_mesh(mesh, settings, voxel, runtime) if settings.textured else shade_mesh(mesh, settings)


def shade_mesh(mesh: Mesh, settings: ExportSettings) -> Mesh:
    """Add normals, smooth but for creases; a corner is a vertex of its own where its normal differs."""
    group, normals = crease_normals(mesh, settings.crease_angle)
    key, faces = torch.unique(mesh.faces.long() * len(normals) + group, return_inverse=True)
    vertex, group = key // len(normals), key % len(normals)
    return Mesh(mesh.vertices[vertex], faces.to(torch.int32), normals=normals[group])


def unwrap_mesh(mesh: Mesh, settings: ExportSettings, voxel: float, runtime: Runtime) -> Mesh:
    """Add texture coordinates, and normals that are smooth but for creases."""
    runtime.report("unwrap", 0, 1)
    smooth_group, normals = crease_normals(mesh, settings.crease_angle)
    mesh = unwrap(mesh, settings.texture_size, layer_gap=LAYER_GAP * voxel, kernels=runtime.kernels)
    # A corner is a vertex of its own where either its chart or its normal differs.
    key, faces = torch.unique(mesh.faces.long() * len(normals) + smooth_group, return_inverse=True)
    vertex, group = key // len(normals), key % len(normals)
    runtime.report("unwrap", 1, 1)
    assert mesh.uvs is not None
    return Mesh(mesh.vertices[vertex], faces.to(torch.int32), mesh.uvs[vertex], normals[group])


def bake_original(part: Prepared, voxels: PBRVoxels, settings: ExportSettings, runtime: Runtime) -> Baked:
    """The material of the voxels, on the texture of a mesh; on the runtime's device."""
    device = runtime.device
    return bake_texture(
        part.mesh.to(device),
        move_voxels(voxels, device),
        settings.texture_size,
        original=None if part.original is None else part.original.to(device),
        mode=settings.bake,
        kernels=runtime.kernels,
        on_step=lambda step, steps: runtime.report("bake", step, steps),
    )


def assemble(
    part: Prepared,
    baked: Baked | None,  # None: it gets no texture
    settings: ExportSettings,
    runtime: Runtime,
    extras: Mapping[str, Any],
    writers: Mapping[str, Callable[[Asset, Path], None]],
) -> Asset:
    """Check a mesh, baked or not, and put everything together."""
    material = clay() if baked is None else to_material(baked, settings)
    runtime.report("check", 0, 1)
    report = check_mesh(
        part.mesh,
        kernels=runtime.kernels,
        texture_size=min(settings.texture_size, 1024),
        unsupported_texels=0.0 if baked is None else baked.unsupported,
        limits=ANY_SHELLS if settings.keep_interior else QualityLimits(),
        on_view=lambda done, of: runtime.report("check", 0, 1),
    )
    report = replace(report, metrics={**report.metrics, **part.facts})
    double_sided = bool(report.metrics.get("boundary_edges", 0)) or part.facts["unclear_orientation"] > 0
    runtime.report("check", 1, 1)
    material = replace(material, double_sided=double_sided)
    if baked is not None:
        material = bake_maps(part.mesh, part.original, material, settings, runtime)
    extras = {**extras, "export": asdict(settings)}
    size = unit_mm(part.mesh, settings.height_mm)
    return Asset(part.mesh.to("cpu"), material, report, extras, dict(writers), size)


def to_material(baked: Baked, settings: ExportSettings) -> Material:
    """The images of a baked mesh."""
    base_color, metallic_roughness = (image.cpu() for image in to_images(baked.image))
    alpha_mode = choose_alpha(baked.alpha, settings.alpha)
    if alpha_mode == "OPAQUE":
        base_color[..., 3] = 255
    return Material(base_color, metallic_roughness, alpha_mode)


def clay(size: int = 1) -> Material:
    """What a mesh without a texture is made of."""
    color, surface = (torch.tensor(value, dtype=torch.uint8).expand(size, size, -1) for value in CLAY)
    return Material(color.clone(), surface.clone())


def bake_maps(
    mesh: Mesh, original: Mesh | None, material: Material, settings: ExportSettings, runtime: Runtime
) -> Material:
    """The material with the maps that the settings ask for."""
    from trellis_core.geometry.maps import bake_detail

    normal, occlusion = bake_detail(
        mesh,
        original,
        settings.texture_size,
        runtime,
        normal_map=settings.normal_map,
        ambient=settings.ambient,
        both_sides=material.double_sided,
    )
    return replace(
        material,
        normal=None if normal is None else normal.cpu(),
        occlusion=None if occlusion is None else occlusion.cpu(),
    )


def unit_mm(mesh: Mesh, height_mm: float | None) -> float | None:
    """Millimeters per unit that make a mesh (z up) so tall."""
    if height_mm is None:
        return None
    return height_mm / max(float(mesh.vertices[:, 2].max() - mesh.vertices[:, 2].min()), 1e-9)


def demand_geometry(shape: VoxelMesh) -> None:
    hint = "try another seed, or a picture that shows the whole object on a plain background"
    if len(shape.mesh.faces) == 0 or len(shape.mesh.vertices) == 0:
        raise InputError("the decoded shape has no faces", hint=hint)
    if len(shape.voxels.coords) == 0:
        raise InputError("the decoded shape has no material voxels", hint=hint)
    if not bool(torch.isfinite(shape.mesh.vertices).all(1).any()):
        raise InputError("the decoded shape has no finite coordinates", hint="decode with `--precision full`")


def clean(mesh: Mesh, voxels: PBRVoxels, settings: ExportSettings, runtime: Runtime) -> Cleaned:
    """Repair the raw surface: outward-facing, manifold, without crumbs, small holes and hidden parts."""
    voxel = 1.0 / voxels.resolution
    raw_faces = len(mesh.faces)
    mesh = keep_finite(mesh)
    opaque = voxels.attrs[:, ALPHA].squeeze(1) >= SEE_THROUGH
    around = flood_surroundings(mesh, voxels.coords[opaque], voxels.resolution)
    runtime.report("clean", 1, 4)

    levels = cluster_levels(len(mesh.faces), settings.faces)
    if levels:
        tolerance = cluster_tolerance(len(mesh.faces), settings.faces)
        mesh = cluster_vertices(
            mesh, voxel, levels, tolerance, lambda step, steps: runtime.report("clean", 1, 4)
        )
    runtime.report("clean", 2, 4)
    raw = {"raw_faces": raw_faces, **raw_facts(mesh)}
    mesh = remove_broken_faces(weld_vertices(mesh, WELD * voxel))
    mesh = remove_flaps(mesh, FLAP_AREA * voxel**2)
    if not settings.keep_small_parts:
        mesh = remove_small_components(mesh, STRAY_AREA, STRAY_EXTENT * voxel)
    if len(mesh.faces) == 0:
        raise InputError("nothing is left of the decoded shape after cleaning", hint="try another seed")
    runtime.report("clean", 3, 4)

    # Closing holes joins patches, which settles the winding of more neighbours, which closes more holes.
    # What is hidden goes in between: it leaves holes, and is lit by holes that are not closed yet.
    limit = settings.fill_holes_voxels * voxel
    holes = HoleLimits(limit, FLAT_HOLE * limit, FLATNESS * voxel)
    for first in (True, False):
        mesh, unclear = orient_outward(mesh, around)
        closed = fill_holes(mesh, holes.perimeter, holes.planar_perimeter, holes.flatness)
        if first and not settings.keep_interior:
            glass = see_through_faces(closed, voxels.coords, opaque, voxels.resolution)
            closed = remove_hidden(closed, around, runtime.kernels, holes, glass)
        if closed is mesh:
            break
        mesh = remove_broken_faces(closed)
    mesh = remove_repeated_faces(straighten_slivers(split_non_manifold(mesh)))
    mesh = smooth(mesh, settings.smooth_iterations)
    if settings.watertight:
        from trellis_core.geometry.remesh import remesh_watertight

        closed = remesh_watertight(mesh.to("cpu"), voxels.resolution, runtime.kernels)
        mesh, unclear = closed.to(mesh.vertices.device), 0.0
    else:
        mesh, unclear = orient_outward(mesh, around)
    runtime.report("clean", 4, 4)
    return Cleaned(mesh, unclear, raw)


def raw_facts(mesh: Mesh) -> dict[str, int]:
    """Edges that are not in order before anything is repaired; clustering leaves all of them as they are."""
    count = edges_of(mesh.faces).face_count
    return {
        "raw_boundary_edges": int((count == 1).sum()),
        "raw_non_manifold_edges": int((count > 2).sum()),
    }


def cluster_levels(faces: int, target: int) -> int:
    """Each level leaves a quarter of the faces where the surface is smooth; the target must stay in reach."""
    return min(LARGEST_CLUSTER, int(math.log(max(faces / target, 1), 4)))


def cluster_tolerance(faces: int, target: int) -> float:
    """In voxels: what the eye cannot see, or more where few faces will have to do anyway."""
    return min(CLUSTER_TOLERANCE * max(faces / target / 16, 1) ** 0.5, COARSE_TOLERANCE)


def keep_finite(mesh: Mesh) -> Mesh:
    finite = torch.isfinite(mesh.vertices).all(1)
    if bool(finite.all()):
        return mesh
    return Mesh(
        torch.where(finite[:, None], mesh.vertices, 0.0), mesh.faces[finite[mesh.faces.long()].all(1)]
    )


def reduce_in_steps(
    mesh: Mesh,
    target: int,
    voxel: float,
    runtime: Runtime,
    done: dict[int, Mesh],  # face targets that were reached before on this way; grows
) -> Mesh:
    """At most `target` faces, by way of all halves of `FINE` above it.

    After each step triangles are evened out, so few faces fit better than in one go. The steps depend on the
    target alone: a mesh is the same whichever others are made with it.
    """
    halves = [FINE >> step for step in range(FINE.bit_length())]
    way = [*(half for half in halves if target < half < len(mesh.faces)), target]
    for step, faces in enumerate(way):
        runtime.report("simplify", step, len(way))
        if faces not in done:
            on_round = partial(runtime.report, "simplify", step, len(way))
            done[faces] = reduce_faces(mesh, faces, voxel, on_round)
        mesh = done[faces]
    runtime.report("simplify", len(way), len(way))
    return mesh


def reduce_faces(mesh: Mesh, faces: int, voxel: float, on_round: Callable[[], None] = lambda: None) -> Mesh:
    """Bring the mesh to the face target, and repair what collapsing edges may have broken."""
    if len(mesh.faces) > faces:
        mesh = simplify(mesh, faces, on_round)
        mesh = remove_broken_faces(weld_vertices(mesh, WELD * voxel))
        mesh = remove_repeated_faces(straighten_slivers(split_non_manifold(mesh)))
        mesh = flip_edges(mesh, FLIP_SHIFT * voxel, rounds=2)
    return mesh


def choose_alpha(alpha: Tensor, wanted: AlphaMode) -> str:
    """OPAQUE, MASK or BLEND for values in [0, 1]; `auto` is opaque unless over 2% of them are see-through."""
    if wanted != "auto":
        return wanted.upper()
    if len(alpha) == 0 or float((alpha < 0.9).float().mean()) <= 0.02:
        return "OPAQUE"
    between = ((alpha > 0.1) & (alpha < 0.9)).float().mean()
    return "MASK" if float(between) < 0.25 * float((alpha < 0.9).float().mean()) else "BLEND"
