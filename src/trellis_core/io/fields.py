"""Files of Gaussians and radiance fields: one dictionary each from suffix to writer and reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.io.gaussian_ply import read_gaussian_ply, write_gaussian_ply
from trellis_core.io.radiance_file import read_radiance, write_radiance
from trellis_core.io.splat import read_splat, write_splat
from trellis_core.io.spz import read_spz, write_spz

GAUSSIAN_WRITERS: Mapping[str, Callable[[Gaussians, Path], None]] = {
    ".ply": write_gaussian_ply,
    ".splat": write_splat,
    ".spz": write_spz,
}
RADIANCE_WRITERS: Mapping[str, Callable[[RadianceField, Path], None]] = {".safetensors": write_radiance}
FIELD_READERS: Mapping[str, Callable[[Path], Gaussians | RadianceField]] = {
    ".ply": read_gaussian_ply,
    ".splat": read_splat,
    ".spz": read_spz,
    ".safetensors": read_radiance,
}


def save_field(field: Gaussians | RadianceField, path: str | Path) -> Path:
    """Write Gaussians or a radiance field; the suffix says how."""
    path = Path(path)
    suffix = path.suffix.lower()
    if isinstance(field, Gaussians) and suffix in GAUSSIAN_WRITERS:
        GAUSSIAN_WRITERS[suffix](field, path)
        return path
    if isinstance(field, RadianceField) and suffix in RADIANCE_WRITERS:
        RADIANCE_WRITERS[suffix](field, path)
        return path
    gaussians = isinstance(field, Gaussians)
    what, known = ("Gaussians", GAUSSIAN_WRITERS) if gaussians else ("a radiance field", RADIANCE_WRITERS)
    raise OutputError(
        f"cannot write {what} to `{path.name}`: no writer for `{path.suffix}`",
        hint=f"use one of: {', '.join(sorted(known))}",
    )


def read_field(path: str | Path) -> Gaussians | RadianceField:
    """Read Gaussians or a radiance field; the suffix says how."""
    path = Path(path)
    reader = FIELD_READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(FIELD_READERS))
        raise InputError(f"cannot read `{path.name}` as Gaussians or a field", hint=f"use one of: {known}")
    return reader(path)
