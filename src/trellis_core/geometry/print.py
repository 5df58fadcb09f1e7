"""A mesh made ready for a 3D printer: one closed solid in millimetres, with walls that can be printed.

Letters: V vertices, F faces.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from trellis_core.errors import InputError, QualityError, UsageError
from trellis_core.geometry.cleanup import component_sizes, keep_faces, number_places
from trellis_core.geometry.cluster import cluster_vertices
from trellis_core.geometry.connectivity import connected_components, edges_of, number_labels, sides_of_edges
from trellis_core.geometry.intersections import self_intersections
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.wrap import LARGEST_LATTICE, lattice_points, wrap_solid
from trellis_core.runtime import Runtime

NOZZLE = 0.4  # millimetres: the usual width of a printed line
DETAIL = 200  # voxels along the longest side, or more where walls ask for them
FINEST = NOZZLE / 4  # millimetres: voxels of small prints; no printed line shows more
WALL_VOXELS = 3.0  # voxels across a wall, at most this size
FEWEST_WALL_VOXELS = 2.0
CLUSTER_LEVELS = 3  # what is flat is merged within cells of 2 ** 3 voxels
FLAT_VOXELS = 0.05  # how far that may move the surface
UNTANGLE_ROUNDS = 6
FLAT = 1e-3  # height of a mesh relative to its longest side, below which it cannot be scaled by its height


def print_solid(
    mesh: Mesh,  # any triangles, z up
    height_mm: float,
    wall_mm: float,  # least thickness
    runtime: Runtime,
    faces: int | None = None,  # at most; None: as many as the solid has
    *,
    voxel_mm: float | None = None,  # finest detail; None: as walls and size ask for
    nozzle_mm: float = NOZZLE,  # floating pieces smaller than this are dropped, with a warning
) -> Mesh:
    """Watertight solids, `height_mm` tall, standing on z = 0 around the z axis; outward-facing, manifold.

    Every piece of the input becomes a closed solid. Inner shells vanish, open sheets get the thickness of a
    wall. Runs on the CPU; reports the stages `wrap`, `simplify` and `check`. Raises `UsageError` for sizes
    that make no sense, `InputError` for a mesh that cannot be printed.
    """
    demand_sizes(height_mm, wall_mm, faces, voxel_mm)
    vertices = mesh.vertices.double().cpu()
    used = vertices[mesh.faces.long().cpu()]
    used = used[torch.isfinite(used).all(2).all(1)].reshape(-1, 3)
    if not len(used):
        raise InputError("the mesh has no faces to print", hint="give a mesh with at least one triangle")
    low, high = used.amin(0), used.amax(0)
    extent = high - low
    if float(extent[2]) <= FLAT * float(extent.max()):
        raise InputError(
            "the mesh is flat, so no height can be given to it",
            hint="stand it up, or give it a thickness first",
        )
    scale = height_mm / float(extent[2])
    wall = wall_mm * height_mm / (height_mm - wall_mm)  # left after the solid is scaled to its height again
    voxel = choose_voxel(tuple((extent * scale).tolist()), wall, voxel_mm, runtime)
    placed = Mesh(((vertices - low) * scale).float(), mesh.faces.cpu())

    solid = wrap_solid(placed, voxel, wall, runtime)
    solid = drop_crumbs(solid, wall + nozzle_mm, runtime)
    if faces is not None:
        solid = reduce_solid(solid, faces, voxel, runtime)
    runtime.report("check", 0, 1)
    if not is_solid(solid):
        raise QualityError(
            "the solid is not closed", hint="this is a mistake in the program: please report it with the mesh"
        )
    runtime.report("check", 1, 1)
    return stand(solid, height_mm)


def demand_sizes(height_mm: float, wall_mm: float, faces: int | None, voxel_mm: float | None) -> None:
    def demand(holds: bool, message: str, hint: str) -> None:
        if not holds:
            raise UsageError(message, hint=hint)

    demand(
        math.isfinite(height_mm) and height_mm > 0,
        f"a height of {height_mm:g} mm cannot be printed",
        "give a height in millimetres, such as `--height 80mm`",
    )
    demand(
        math.isfinite(wall_mm) and wall_mm > 0,
        f"a wall of {wall_mm:g} mm cannot be printed",
        "give a thickness in millimetres, such as `--wall 1.2mm`",
    )
    demand(
        wall_mm <= height_mm / 4,
        f"walls of {wall_mm:g} mm are too thick for a height of {height_mm:g} mm",
        f"use `--wall {height_mm / 4:.3g}mm` or less, or a greater height",
    )
    demand(faces is None or faces >= 4, f"a solid cannot have {faces} faces", "ask for at least 4 faces")
    demand(
        voxel_mm is None or 0 < voxel_mm <= wall_mm / FEWEST_WALL_VOXELS,
        f"voxels of {voxel_mm} mm do not fit walls of {wall_mm:g} mm",
        f"use voxels of {wall_mm / FEWEST_WALL_VOXELS:.3g} mm or less",
    )


def choose_voxel(extent: tuple[float, ...], wall: float, wanted: float | None, runtime: Runtime) -> float:
    """The wanted voxel, or one that shows detail and walls; larger, with a warning, to fit into memory."""
    voxel = wanted or min(wall / WALL_VOXELS, max(max(extent) / DETAIL, FINEST))
    fitting = voxel
    while lattice_points(extent, fitting, wall) > LARGEST_LATTICE:
        fitting *= 1.02
    if fitting > wall / FEWEST_WALL_VOXELS:
        raise UsageError(
            f"walls of {wall:.3g} mm are too thin for an object of {max(extent):.0f} mm: "
            "they need more voxels than fit into memory",
            hint=f"use `--wall {fitting * FEWEST_WALL_VOXELS:.2g}mm` or more, or a smaller `--height`",
        )
    if fitting > voxel:
        runtime.report(
            "wrap", 0, 4, warning=f"details below {fitting:.2g} mm are lost: finer voxels need more memory"
        )
    return fitting


def pieces_of(mesh: Mesh) -> tuple[Tensor, int]:
    """Piece of each face, int64 [F] from 0, and how many there are. Pieces are joined at vertices."""
    faces = mesh.faces.long()
    label = connected_components(torch.cat([faces[:, :2], faces[:, 1:]]), len(mesh.vertices))
    return number_labels(label[faces[:, 0]])


def drop_crumbs(solid: Mesh, smallest: float, runtime: Runtime) -> Mesh:
    """Without the pieces that fit into a cube of side `smallest`; the largest piece always stays."""
    piece, count = pieces_of(solid)
    area, extent = component_sizes(solid, piece)
    stays = (extent >= smallest) | (torch.arange(count) == area.argmax())
    dropped, left = int((~stays).sum()), int(stays.sum())
    if dropped:
        runtime.report(
            "wrap", 4, 4, warning=f"{dropped} floating crumb(s) smaller than the nozzle were dropped"
        )
        solid = keep_faces(solid, stays[piece])
    if left > 1:
        runtime.report("wrap", 4, 4, warning=f"the print has {left} pieces that are not connected")
    return solid


def reduce_solid(solid: Mesh, faces: int, voxel: float, runtime: Runtime) -> Mesh:
    """At most `faces` faces, no more than the shape needs; more, with a warning, where few would break it.

    What lies flat within `FLAT_VOXELS` is merged first: it costs neither time nor faces then.
    """
    runtime.report("simplify", 0, 1)
    source = cluster_vertices(
        solid, voxel, CLUSTER_LEVELS, FLAT_VOXELS, lambda step, steps: runtime.report("simplify", 0, 1)
    )
    target = faces
    while True:
        runtime.report("simplify", 0, 1)
        fewer = untangle(simplify(source, target), runtime)
        if fewer is not None and is_solid(fewer):
            runtime.report("simplify", 1, 1)
            return fewer
        if target < len(source.faces):
            target *= 2
            text = f"{target // 2} faces would break the solid; trying {target}"
            runtime.report("simplify", 0, 1, warning=text)
        elif source is not solid:
            source = solid
        else:
            runtime.report("simplify", 1, 1, warning="the solid passes through itself in a few places")
            return solid


def untangle(mesh: Mesh, runtime: Runtime) -> Mesh | None:
    """Smooth the surface where it passes through itself, a little wider each round; None when that fails."""
    edges = edges_of(mesh.faces).vertices
    pairs = torch.cat([edges, edges.flip(1)])
    degree = torch.bincount(pairs[:, 0], minlength=len(mesh.vertices)).clamp_min(1)[:, None]
    points = mesh.vertices.double()
    for rounds in range(1, UNTANGLE_ROUNDS + 1):
        runtime.report("simplify", 0, 1)
        crossed = self_intersections(Mesh(points.float(), mesh.faces))
        if not len(crossed):
            return Mesh(points.float(), mesh.faces)
        moved = torch.zeros(len(points), dtype=torch.bool)
        moved[mesh.faces[crossed.reshape(-1)].long().reshape(-1)] = True
        for _ in range(rounds // 2):
            moved[pairs[moved[pairs[:, 0]], 1]] = True
        mean = torch.zeros_like(points).index_add_(0, pairs[:, 0], points[pairs[:, 1]]) / degree
        points = torch.where(moved[:, None], (points + mean) / 2, points)
    return None


def is_solid(mesh: Mesh) -> bool:
    """Whether the mesh is closed, manifold, consistently wound and encloses a volume."""
    return is_closed(mesh.faces) and volume_of(mesh) > 0


def is_closed(faces: Tensor) -> bool:
    """Whether every edge has two faces that run along it in opposite directions."""
    edges = edges_of(faces)
    if not len(faces) or bool((edges.face_count != 2).any()):
        return False
    first, second = sides_of_edges(edges, edges.face_count == 2)
    start = faces.long().reshape(-1)
    return bool((start[first] != start[second]).all())


def volume_of(mesh: Mesh) -> float:
    a, b, c = mesh.vertices.double()[mesh.faces.long()].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def stand(mesh: Mesh, height: float) -> Mesh:
    """Scale to the height, put the middle of the base on the origin."""
    vertices = mesh.vertices.double()
    low, high = vertices.amin(0), vertices.amax(0)
    origin = torch.stack([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    placed = (vertices - origin) * (height / (high[2] - low[2]))
    return Mesh(placed.float(), mesh.faces)


def solid_facts(mesh: Mesh) -> dict[str, float | int | bool | str]:
    """What is true of a solid, for reports: sizes in millimetres, volume in cubic centimetres.

    `manifold3d` is the verdict of that library when it is installed: `NoError` is good.
    """
    size = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist()
    facts: dict[str, float | int | bool | str] = {
        "width_mm": size[0],
        "depth_mm": size[1],
        "height_mm": size[2],
        "volume_cm3": volume_of(mesh) / 1000,
        "pieces": pieces_of(mesh)[1],
        "watertight": is_solid(mesh),
        "watertight_when_welded": is_closed(number_places(mesh.vertices)[mesh.faces.long()]),
        "self_intersections": len(self_intersections(mesh)),
    }
    if find_spec("manifold3d") is not None:
        facts["manifold3d"] = judge_solid(mesh)
    return facts


def judge_solid(mesh: Mesh) -> str:
    """Status that the library manifold3d gives to the mesh."""
    from manifold3d import Manifold
    from manifold3d import Mesh as Triangles

    triangles = Triangles(mesh.vertices.float().cpu().numpy(), mesh.faces.cpu().numpy().astype("uint32"))
    return str(Manifold(triangles).status().name)
