"""What `trellis render` draws: files and saved runs as subjects of `trellis_core.render`.

`kind_of` looks into a file without torch; `read_subject` reads it; `run_subjects` decodes a saved run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_cli import files, registry
from trellis_core.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from trellis_core.geometry.types import Material
    from trellis_core.render.subject import Subject
    from trellis_core.weights.bundle import Bundle

BUNDLE, MESH, GAUSSIANS, FIELD, VOXELS = "bundle", "mesh", "gaussians", "radiance field", "voxels"
CLOUDS = (".splat", ".spz")
GRIDS = (".vxz",)
DRAWN = (*files.MESHES, *CLOUDS, *GRIDS, *files.BUNDLES)
FORMATS: Mapping[str, str] = {"trellis-bundle": BUNDLE, "trellis-radiance-field": FIELD}
HEADER = 1 << 16  # bytes of a PLY that are searched for its columns
LONGEST_HEADER = 1 << 27  # bytes of a safetensors header

FORMS = ("gaussians", "mesh", "radiance-field", "voxels")  # of runs of TRELLIS v1, best first
NEARLY = 0.51  # how far what is drawn as it is may reach
SMALLEST = 0.1  # longest side of what is drawn as it is


def kind_of(path: Path) -> str:
    """What a file holds, judged by its suffix and its first bytes. Raises `InputError`."""
    suffix = path.suffix.lower()
    files.check_input(path, "asset", DRAWN)
    if suffix in CLOUDS:
        return GAUSSIANS
    if suffix in GRIDS:
        return VOXELS
    if suffix == ".ply":
        with path.open("rb") as file:
            header = file.read(HEADER).partition(b"end_header")[0]
        return GAUSSIANS if b" f_dc_0" in header and b" scale_0" in header else MESH
    if suffix in files.MESHES:
        return MESH
    if suffix in files.BUNDLES:
        kind = FORMATS.get(metadata_of(path).get("format", ""))
        if kind is None:
            raise InputError(
                f"`{path}` is neither a saved run nor a radiance field",
                hint="give a file written with `--save-bundle`",
            )
        return kind
    raise files.unknown_suffix(path, "asset", DRAWN)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; raises `InputError` for anything else."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LONGEST_HEADER:
                raise ValueError("no header")
            found = json.loads(file.read(length)).get("__metadata__", {})
        return dict(found)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"`{path}` is damaged or no bundle", hint="sample again with `--save-bundle`"
        ) from error


def read_subject(path: Path, kind: str) -> Subject:
    """Read a file; what is not about as large as the unit cube, or lies elsewhere, is moved there."""
    readers = {MESH: read_painted, VOXELS: read_grid, GAUSSIANS: read_fuzzy, FIELD: read_fuzzy}
    try:
        return unit_sized(readers[kind](path))
    except InputError as error:
        raise InputError(error.message, hint=error.hint or "export it again, or download it again") from error


def read_fuzzy(path: Path) -> Subject:
    """Gaussians or a radiance field."""
    from trellis_core.io.fields import read_field

    field = read_field(path)
    if not len(field):
        raise InputError(f"`{path.name}` is empty: there is nothing to draw", hint="export it again")
    return field


def read_painted(path: Path) -> Subject:
    """A mesh file with all its materials; a bare `Mesh` when it says nothing about color."""
    import torch

    from trellis_core.geometry.types import Mesh
    from trellis_core.io.gltf import from_y_up
    from trellis_core.io.meshes import Y_UP
    from trellis_core.render.surface import PaintedMesh
    from trellis_core.training.ingest.materials import UNKNOWN, look_of, read_parts

    suffix = path.suffix.lower()
    try:
        parts = read_parts(path)
    except InputError as error:
        raise InputError(f"`{path.name}`: {error.message}", hint=error.hint) from error
    looks = [look_of(part, linear=suffix in (".glb", ".gltf")) for part in parts]
    triangles = torch.cat([torch.tensor(part.triangles, dtype=torch.float32) for part in parts])
    normals = torch.cat([corner_normals(part) for part in parts])
    if not bool(torch.isfinite(triangles).all()):
        raise InputError(
            f"`{path.name}` has coordinates that are not numbers", hint="repair it in a 3D program"
        )
    vertices, normals = triangles.reshape(-1, 3), normals.reshape(-1, 3)
    if suffix in Y_UP:
        vertices, normals = from_y_up(vertices), from_y_up(normals)
    faces = torch.arange(len(vertices), dtype=torch.int32).view(-1, 3)
    uvs = torch.cat([uv for uv, _ in looks]).reshape(-1, 2)
    uvs = torch.stack([uvs[:, 0], 1 - uvs[:, 1]], 1)  # counted from below
    mesh = Mesh(vertices, faces, uvs, normals)
    if all(material is UNKNOWN for _, material in looks):
        return mesh
    owner = torch.cat([torch.full((len(part.faces),), i) for i, part in enumerate(parts)])
    return PaintedMesh(mesh, tuple(as_material(material) for _, material in looks), owner)


def corner_normals(part: Any) -> Tensor:  # float32 [F, 3, 3]
    """Normals as the file has them; else those of the faces."""
    import numpy as np
    import torch

    known = part._cache.cache.get("vertex_normals")  # trimesh would make up smooth ones
    if known is not None and len(known) == len(part.vertices):
        corners = np.asarray(known)[part.faces]
        if np.isfinite(corners).all() and (np.abs(corners).sum(2) > 0).all():
            return torch.tensor(corners, dtype=torch.float32)
    sides = np.cross(part.triangles[:, 1] - part.triangles[:, 0], part.triangles[:, 2] - part.triangles[:, 0])
    flat = torch.nn.functional.normalize(torch.tensor(sides, dtype=torch.float32), dim=1)
    return flat[:, None].expand(-1, 3, -1)


def as_material(surface: Any) -> Material:
    """A material of `trellis_core.training.ingest` as textures that say everything."""
    import torch

    from trellis_core.geometry.types import Material

    base = surface.base_color_texture
    if base is None:
        base = (torch.tensor(surface.base_color_factor).clamp(0, 1) * 255).round().byte().view(1, 1, 3)
    alpha = scaled(surface.alpha_texture, surface.alpha_factor)
    rough = scaled(surface.roughness_texture, surface.roughness_factor)
    metal = scaled(surface.metallic_texture, surface.metallic_factor)
    base_color = torch.cat([*of_one_size(base, alpha[..., None])], 2)
    rough, metal = of_one_size(rough[..., None], metal[..., None])
    shine = torch.cat([torch.zeros_like(rough), rough, metal], 2)
    mode, cutoff = surface.alpha_mode, surface.alpha_cutoff
    return Material(base_color, shine, mode, cutoff, normal=surface.normal_texture)


def scaled(texture: Tensor | None, factor: float) -> Tensor:  # uint8 [H, W]
    import torch

    texture = torch.full((1, 1), 255, dtype=torch.uint8) if texture is None else texture
    return (texture.float() * min(max(factor, 0.0), 1.0)).round().byte()


def of_one_size(*textures: Tensor) -> tuple[Tensor, ...]:  # uint8 [H, W, C] each
    """Single texels as large as the other textures; those come from one picture, and are alike."""
    height, width = (max(texture.shape[i] for texture in textures) for i in (0, 1))
    return tuple(texture.expand(height, width, -1) for texture in textures)


def read_grid(path: Path) -> Subject:
    """Material voxels; the grid is the smallest power of two that they fit into."""
    from trellis_core.io.voxel_files import bytes_to_pbr, read_voxels

    coords, attributes = read_voxels(path)
    if not len(coords):
        raise InputError(f"`{path.name}` has no voxels: there is nothing to draw", hint="export it again")
    resolution = 1 << max(int(coords.max()), 1).bit_length()
    return bytes_to_pbr(coords, attributes, resolution)


def unit_sized(subject: Subject) -> Subject:
    """The subject itself when it lies in the unit cube and is not tiny; else moved and scaled to fit."""
    from trellis_core.geometry.fields import Gaussians
    from trellis_core.geometry.types import Mesh
    from trellis_core.render.subject import bounds_of
    from trellis_core.render.surface import PaintedMesh

    low, high = bounds_of(subject)
    extent = float((high - low).max())
    inside = float(low.min()) >= -NEARLY and float(high.max()) <= NEARLY
    if extent <= 0:
        raise InputError("all its points lie in one place: there is nothing to draw", hint="repair it first")
    if inside and extent >= SMALLEST:
        return subject
    middle = ((low + high) / 2).float()

    def moved(places: Tensor) -> Tensor:
        return (places - middle) / extent

    if isinstance(subject, PaintedMesh):
        return replace(subject, mesh=replace(subject.mesh, vertices=moved(subject.mesh.vertices)))
    if isinstance(subject, Mesh):
        return replace(subject, vertices=moved(subject.vertices))
    if isinstance(subject, Gaussians):
        return replace(subject, positions=moved(subject.positions), scales=subject.scales / extent)
    return subject


def run_subjects(
    engine: Any,
    saved: Bundle,
    form: str,  # one of FORMS, or `auto`: what suits the model best
    voxels: bool,  # these are wanted, too
    on_progress: Callable[..., None],
    cancel: Callable[[], bool],
) -> list[dict[str, Subject]]:
    """Decode a run: for each sample, what it can be drawn as, the wanted form first."""
    if registry.version_of_engine(engine) == registry.V2:
        if form not in ("auto", "mesh", "voxels"):
            raise UsageError(f"this model makes no {form}", hint="choose `--as mesh` or `--as voxels`")
        shapes = engine.decode(saved, on_progress=on_progress, cancel=cancel)
        return [chosen_first({"mesh": shape, "voxels": shape.voxels}, form) for shape in shapes]
    made = {name.replace("_", "-"): name for name in engine.formats}
    made |= {"voxels": made["mesh"]} if "mesh" in made else {}
    if form == "auto":
        form = next(name for name in FORMS if name in made)
    for name in (form, *(["voxels"] if voxels else [])):
        if name not in made:
            raise UsageError(f"this model makes no {name}", hint=f"choose `--as {' or '.join(made)}`")
    formats = list(dict.fromkeys([made[form], *([made["voxels"]] if voxels else [])]))
    decoded = engine.decode(saved, formats=formats, on_progress=on_progress, cancel=cancel)
    return [chosen_first(version1_forms(sample), form) for sample in decoded]


def version1_forms(decoded: Any) -> dict[str, Subject]:
    found: dict[str, Subject] = {}
    if decoded.gaussians is not None:
        found["gaussians"] = decoded.gaussians
    if decoded.radiance_field is not None:
        found["radiance-field"] = decoded.radiance_field
    if decoded.mesh is not None:
        shape = decoded.voxel_mesh()
        found |= {"mesh": shape, "voxels": shape.voxels}
    return found


def chosen_first(forms: dict[str, Subject], form: str) -> dict[str, Subject]:
    return forms if form == "auto" else {form: forms[form], **forms}
