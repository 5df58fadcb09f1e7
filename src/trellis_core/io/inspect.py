"""Everything that can be said about a mesh file without knowing who made it.

The mesh is measured as it lies in the file, unrepaired, moved into the unit cube.
Letters: V vertices, F faces.
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
from trellis_core.geometry.examine import Placement, Watch, unit_box
from trellis_core.geometry.quality import QualityLimits, check_mesh, uv_metrics
from trellis_core.geometry.triangles import CHUNK, face_areas
from trellis_core.geometry.types import Mesh, QualityReport
from trellis_core.io.facts import Facts, file_facts
from trellis_core.io.gltf import from_y_up
from trellis_core.io.meshes import Y_UP
from trellis_core.io.scene import file_normals, scene_parts
from trellis_core.kernels.table import Kernels

TEXTURE_SIDES = (256, 2048)  # pixels at which texture coordinates are drawn to measure them
DEFAULT_SIDE = 1024  # without a texture
LIMITS = QualityLimits(min_faces=1)  # a cube from elsewhere is no failed generation
WORST: Mapping[str, Any] = {  # how the numbers of several textures become one
    "uv_outside": sum,
    "uv_flips": sum,
    "uv_charts": sum,
    "uv_coverage": min,
}


@dataclass(frozen=True, slots=True)
class RawMesh:
    """A mesh file as it is: no vertex merged, nothing left out but what is not triangles."""

    mesh: Mesh  # z up; uvs and normals when every part has them
    material: Tensor  # int64 [F]  number of the material
    parts: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a mesh file."""

    facts: Facts  # what the file says, see `io.facts`
    placement: Placement  # bounds, z up, in the file's unit
    quality: QualityReport  # metrics in a frame where the longest side is 1
    parts: int


def inspect_mesh(path: str | Path, kernels: Kernels, *, on_view: Watch = lambda done, of: None) -> Inspection:
    """Read a mesh file and measure it. Raises `InputError` when there is nothing to measure."""
    path = Path(path)
    facts = file_facts(path)
    raw = read_raw(path)
    return inspect_raw(raw, facts, kernels, on_view=on_view)


def inspect_raw(
    raw: RawMesh, facts: Facts, kernels: Kernels, *, on_view: Watch = lambda done, of: None
) -> Inspection:
    mesh, placement = raw.mesh, Placement((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    in_range = int(mesh.faces.min()) >= 0 and int(mesh.faces.max()) < len(mesh.vertices)
    if in_range:
        mesh, placement = unit_box(mesh)
    sides = [max(t["width"] or 0, t["height"] or 0) for t in facts.get("textures", ())]
    side = max(sides, default=0)
    one_texture = int(raw.material.max()) == 0
    measured = mesh if one_texture else replace(mesh, uvs=None)
    drawn = min(max(side or DEFAULT_SIDE, TEXTURE_SIDES[0]), TEXTURE_SIDES[1])
    report = check_mesh(measured, kernels=kernels, texture_size=drawn, limits=LIMITS, on_view=on_view)
    metrics = dict(report.metrics)
    if in_range and metrics["finite"]:
        if mesh.uvs is not None and not one_texture:
            metrics.update(worst_uvs(mesh, raw.material, kernels, drawn))
        if mesh.uvs is not None and side:
            metrics["texels_per_side"] = texel_density(mesh, side)
    return Inspection(facts, placement, replace(report, metrics=metrics), raw.parts)


def read_raw(path: Path) -> RawMesh:
    """Read a mesh file without repairing anything. Raises `InputError`."""
    try:
        parts = scene_parts(path, process=False)
    except InputError:
        raise
    except Exception as error:  # trimesh raises whatever its parsers run into
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read `{path.name}`: {said}", hint="open and save it again in a 3D program"
        ) from error
    if not parts:
        raise InputError(
            f"`{path.name}` has no triangles", hint="give a mesh; point clouds and curves have no surface"
        )
    start = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = torch.from_numpy(np.concatenate([part.vertices for part in parts])).float()
    faces = np.concatenate([part.faces + s for part, s in zip(parts, start, strict=True)])
    uvs = all_or_none([getattr(part.visual, "uv", None) for part in parts], parts)
    if uvs is not None:
        uvs = torch.stack([uvs[:, 0], 1 - uvs[:, 1]], 1)  # trimesh counts v from below
    normals = all_or_none([file_normals(part) for part in parts], parts)
    if path.suffix.lower() in Y_UP:
        vertices = from_y_up(vertices)
        normals = None if normals is None else from_y_up(normals)
    mesh = Mesh(vertices, torch.from_numpy(faces).to(torch.int32), uvs, normals)
    names = [getattr(getattr(part.visual, "material", None), "name", None) for part in parts]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    material = torch.cat(
        [torch.full((len(part.faces),), numbers[name]) for part, name in zip(parts, names, strict=True)]
    )
    return RawMesh(mesh, material, len(parts))


def all_or_none(found: Sequence[Any], parts: Sequence[Any]) -> Tensor | None:
    """Values at all vertices as one float32 tensor, None unless every part has them."""
    if any(x is None or len(x) != len(part.vertices) for x, part in zip(found, parts, strict=True)):
        return None
    return torch.from_numpy(np.concatenate([np.asarray(x, np.float32) for x in found]))


def worst_uvs(mesh: Mesh, material: Tensor, kernels: Kernels, side: int) -> dict[str, float | int]:
    """Texture coordinates of several materials, each on a texture of its own."""
    found = [
        uv_metrics(replace(mesh, faces=mesh.faces[material == number]), kernels, side)
        for number in material.unique().tolist()
    ]
    return {name: WORST.get(name, max)(each[name] for each in found) for name in found[0]}


def texel_density(mesh: Mesh, side: int) -> float:
    """Texels along a line as long as the longest side of the bounding box, on average over the area."""
    assert mesh.uvs is not None
    flat = 0.0
    for faces in mesh.faces.split(CHUNK):
        a, b, c = mesh.uvs[faces.long()].double().unbind(1)
        doubled = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
        flat += 0.5 * float(doubled.abs().sum())
    area = float(face_areas(mesh.vertices.double(), mesh.faces).sum())
    return side * (flat / max(area, 1e-30)) ** 0.5
