"""Gaussians as PLY: the columns that programs for 3D Gaussian splatting read.

Such files are x right, y down, z forward: a world point (x, y, z) is written as (x, -z, y).
Letters: N Gaussians.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.fields import Gaussians, multiply_quaternions
from trellis_core.io.files import write_file

COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
    *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
NEEDED = tuple(name for name in COLUMNS if name not in ("nx", "ny", "nz"))
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4"},
    **{"float": "<f4", "double": "<f8", "float32": "<f4", "float64": "<f8"},
}
SURE = 1e-6  # opacities are kept this far from 0 and 1, so that their logits are finite
HEADER_LIMIT = 1 << 16  # bytes
QUARTER = 0.5**0.5
TURN = torch.tensor([QUARTER, QUARTER, 0.0, 0.0])  # a quarter turn about x: (x, y, z) -> (x, -z, y)
TURN_BACK = torch.tensor([QUARTER, -QUARTER, 0.0, 0.0])


def write_gaussian_ply(gaussians: Gaussians, path: Path) -> None:
    """Write a binary PLY with one vertex per Gaussian. The screen filter is not part of the format."""
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    header += [f"property float {name}" for name in COLUMNS] + ["end_header"]
    rows = ply_columns(gaussians).cpu().numpy().astype("<f4")
    write_file(Path(path), ["\n".join(header).encode() + b"\n", rows.tobytes()])


def ply_columns(
    gaussians: Gaussians,
    turned: bool = True,  # else in world axes, with quaternions of any length
) -> Tensor:  # float32 [N, 17]  see COLUMNS
    """What the file says: logits of opacities, logarithms of scales, colors as spherical harmonics."""
    positions, quaternions = gaussians.positions, gaussians.quaternions
    if turned:
        positions, quaternions = turn(positions, gaussians.rotations)
    opacity = gaussians.opacities.double().clamp(SURE, 1 - SURE)
    columns = [
        positions,
        torch.zeros_like(positions),
        gaussians.features,
        torch.logit(opacity).float(),
        gaussians.scales.log(),
        quaternions,
    ]
    return torch.cat([column.detach() for column in columns], 1)


def turn(positions: Tensor, quaternions: Tensor) -> tuple[Tensor, Tensor]:
    """World axes to x right, y down, z forward."""
    x, y, z = positions.unbind(1)
    return torch.stack([x, -z, y], 1), multiply_quaternions(TURN.to(quaternions), quaternions)


def turn_back(positions: Tensor, quaternions: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `turn`."""
    x, y, z = positions.unbind(1)
    return torch.stack([x, z, -y], 1), multiply_quaternions(TURN_BACK.to(quaternions), quaternions)


def read_gaussian_ply(path: Path) -> Gaussians:
    """Read what `write_gaussian_ply` or another program wrote; view-dependent color is left out.

    Raises `InputError` when the file is damaged or holds no Gaussians.
    """
    path = Path(path)
    rows = read_vertices(path)

    def columns(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([rows[name].astype(np.float32) for name in names], 1))

    positions, quaternions = turn_back(columns("x", "y", "z"), columns("rot_0", "rot_1", "rot_2", "rot_3"))
    return Gaussians(
        positions,
        columns("scale_0", "scale_1", "scale_2").exp(),
        quaternions,
        torch.sigmoid(columns("opacity")),
        columns("f_dc_0", "f_dc_1", "f_dc_2"),
    )


def read_vertices(path: Path) -> NDArray[Any]:
    """The vertices of a binary PLY as a structured array."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror or error}") from error
    damaged = InputError(
        f"`{path.name}` is not a PLY of Gaussians", hint="binary little-endian, with f_dc_*, scale_*, rot_*"
    )
    header, found, _ = content[:HEADER_LIMIT].partition(b"end_header\n")
    lines = header.decode("ascii", errors="replace").split("\n")
    if not found or lines[0] != "ply" or "format binary_little_endian 1.0" not in lines:
        raise damaged
    elements = [line.split() for line in lines if line.startswith("element ")]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise damaged
    properties = []
    for line in lines[lines.index(" ".join(elements[0])) + 1 :]:
        words = line.split()
        if words[:1] == ["element"]:
            break
        if words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in TYPES:
                raise damaged
            properties.append((words[2], TYPES[words[1]]))
    names = [name for name, _ in properties]
    count, row = int(elements[0][2]), np.dtype(properties) if len(set(names)) == len(names) else None
    if row is None or not set(NEEDED) <= set(names):
        raise damaged
    start = len(header) + len(found)
    if len(content) - start < count * row.itemsize:
        raise InputError(f"`{path.name}` is cut off: {count} Gaussians were announced")
    return np.frombuffer(content, row, count, start)
