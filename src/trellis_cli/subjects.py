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
    from trellis_core.io.facts import file_facts
    from trellis_core.training.ingest import painted

    file_facts(path)  # says more about damaged files than who reads them
    return painted.read_painted(path)


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
