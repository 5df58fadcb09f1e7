"""Radiance fields as `.safetensors`: one tensor per part, the grid's resolution in the metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trellis_core.errors import InputError
from trellis_core.geometry.fields import RadianceField
from trellis_core.io.files import write_file

FORMAT = "trellis-radiance-field"
PARTS = ("coords", "vectors", "densities", "features")


def write_radiance(field: RadianceField, path: Path) -> None:
    """Write a field in world axes (z up)."""
    tensors = {name: getattr(field, name).detach().cpu().contiguous() for name in PARTS}
    metadata = {"format": FORMAT, "resolution": str(field.resolution)}
    write_file(Path(path), [save(tensors, metadata)])


def read_radiance(path: Path) -> RadianceField:
    """Read what `write_radiance` wrote. Raises `InputError`."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or not metadata.get("resolution", "").isdigit():
                raise InputError(f"`{path.name}` is not a radiance field")
            tensors = {name: file.get_tensor(name) for name in PARTS}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read `{path.name}`: {error}") from error
    field = RadianceField(**tensors, resolution=int(metadata["resolution"]))
    count, ranks = field.densities.shape if field.densities.ndim == 2 else (-1, -1)
    shapes_fit = (
        field.coords.shape == (count, 3)
        and field.vectors.shape[:3] == (count, ranks, 3)
        and field.features.shape == (count, ranks, 3)
        and field.coords.dtype == torch.int32
    )
    if not shapes_fit:
        raise InputError(f"the tensors of `{path.name}` do not fit together")
    return field
