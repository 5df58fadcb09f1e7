"""Voxel files: coordinates and per-voxel attributes as `.vxz`, `.npz` or `.ply`.

One dictionary per direction, from suffix to function. Letters: N voxels, C channels.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.types import ALPHA, BASE_COLOR, METALLIC, ROUGHNESS, PBRVoxels
from trellis_core.io.vxz import channels_of, read_vxz, write_vxz

Attributes = Mapping[str, Tensor]  # name -> [N, C]
PBR_COLUMNS = {"base_color": BASE_COLOR, "metallic": METALLIC, "roughness": ROUGHNESS, "alpha": ALPHA}
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4",
    "float": "<f4", "double": "<f8",
    "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4",
    "float32": "<f4", "float64": "<f8",
}  # fmt: skip
PLY_NAMES = {np.dtype(code): name for name, code in reversed(PLY_TYPES.items())}


def read_voxels(path: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Coords int32 [N, 3] and attributes [N, C] of a voxel file. Raises InputError."""
    return by_suffix(READERS, path, InputError)(Path(path))


def write_voxels(
    path: str | Path,
    coords: Tensor,  # int [N, 3]
    attributes: Attributes,  # [N, C] each; vxz takes uint8 only
) -> None:
    """Write a voxel file; the suffix says which kind. Raises OutputError for an unknown one."""
    by_suffix(WRITERS, path, OutputError)(Path(path), coords, attributes)


def pbr_to_bytes(voxels: PBRVoxels) -> dict[str, Tensor]:
    """The material as uint8 attributes: 255 is 1, fractions are cut off as in the released files."""
    cut = (voxels.attrs.clamp(0, 1) * 255).byte()
    return {name: cut[:, columns] for name, columns in PBR_COLUMNS.items()}


def bytes_to_pbr(coords: Tensor, attributes: Attributes, resolution: int) -> PBRVoxels:
    """Inverse of `pbr_to_bytes`, up to the quantisation. Raises InputError when an attribute is missing."""
    missing = [name for name in PBR_COLUMNS if name not in attributes]
    if missing:
        raise InputError(f"voxels without {', '.join(missing)}")
    columns = [channels_of(attributes[name]).float() / 255 for name in PBR_COLUMNS]
    return PBRVoxels(coords.int(), torch.cat(columns, 1), resolution)


def by_suffix(
    table: Mapping[str, Callable], path: str | Path, error: type[InputError | OutputError]
) -> Callable:  # type: ignore[type-arg]
    suffix = Path(path).suffix.lower()
    if suffix not in table:
        raise error(f"`{suffix}` is no kind of voxel file", hint=f"use one of: {', '.join(table)}")
    return table[suffix]


# --- npz ---------------------------------------------------------------------------------------------


def write_npz(path: Path, coords: Tensor, attributes: Attributes, compress: bool = True) -> None:
    """Array `coord` (uint16) and one array per attribute."""
    if coords.numel() and not 0 <= int(coords.min()) <= int(coords.max()) < 1 << 16:
        raise OutputError("npz voxel files hold coordinates from 0 to 65535")
    arrays = {name: tensor.cpu().numpy() for name, tensor in attributes.items()}
    arrays["coord"] = coords.cpu().numpy().astype(np.uint16)
    save: Callable[..., None] = np.savez_compressed if compress else np.savez
    with path.open("wb") as file:  # a name without suffix would get one
        save(file, **arrays)


def read_npz(path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read `{path}`: {error}") from error
    if "coord" not in arrays:
        raise InputError(f"`{path}` has no array `coord`")
    coords = torch.from_numpy(arrays.pop("coord").astype(np.int32))
    return coords, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


# --- ply ---------------------------------------------------------------------------------------------


def write_ply(path: Path, coords: Tensor, attributes: Attributes) -> None:
    """Binary little-endian vertices: float32 x y z, then one property `<name>_<channel>` per channel."""
    columns = {axis: coords[:, i].cpu().numpy().astype("<f4") for i, axis in enumerate("xyz")}
    for name, tensor in attributes.items():
        flat = channels_of(tensor).cpu().numpy()
        if flat.dtype not in PLY_NAMES:
            raise OutputError(f"ply has no type for attribute `{name}` of type {flat.dtype}")
        columns |= {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
    table = np.empty(len(coords), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    properties = [f"property {PLY_NAMES[column.dtype]} {name}" for name, column in columns.items()]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(coords)}",
        *properties,
        "end_header",
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n" + table.tobytes())


def read_ply(path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Positions are rounded to whole numbers; the number behind the last underscore is the channel."""
    data = path.read_bytes()
    head, found, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", errors="replace").splitlines()]
    elements = [line for line in lines if line[:1] == ["element"]]
    properties = [line for line in lines if line[:1] == ["property"]]
    if not found or ["format", "binary_little_endian", "1.0"] not in lines or len(elements) != 1:
        raise InputError(f"`{path}` is no binary little-endian PLY file with vertices alone")
    if any(len(line) != 3 or line[1] not in PLY_TYPES for line in properties):
        raise InputError(f"`{path}` has properties that are no plain numbers")
    layout = np.dtype([(name, PLY_TYPES[kind]) for _, kind, name in properties])
    count = int(elements[0][2])
    if not {"x", "y", "z"} <= set(layout.names or ()) or len(body) < count * layout.itemsize:
        raise InputError(f"`{path}` is damaged")
    table = np.frombuffer(body, layout, count)
    coords = np.stack([table[axis] for axis in "xyz"], 1).round().astype(np.int32)
    channels: dict[str, list[tuple[int, str]]] = {}
    for name in layout.names or ():
        match = re.fullmatch(r"(.+)_(\d+)", name)
        if match:
            channels.setdefault(match[1], []).append((int(match[2]), name))
    attributes = {
        name: torch.from_numpy(np.stack([table[column] for _, column in sorted(columns)], 1))
        for name, columns in channels.items()
    }
    return torch.from_numpy(coords), attributes


READERS: Mapping[str, Callable[[Path], tuple[Tensor, dict[str, Tensor]]]] = {
    ".vxz": read_vxz,
    ".npz": read_npz,
    ".ply": read_ply,
}
WRITERS: Mapping[str, Callable[[Path, Tensor, Attributes], None]] = {
    ".vxz": write_vxz,
    ".npz": write_npz,
    ".ply": write_ply,
}
