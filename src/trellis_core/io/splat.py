"""Gaussians as `.splat`: 32 bytes each, as web viewers read them; x right, y down, z forward.

Position and scale as float32, color and opacity as bytes, rotation as bytes (128 is 0, 256 would be 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trellis_core.errors import InputError
from trellis_core.geometry.fields import SH0, Gaussians
from trellis_core.io.files import write_file
from trellis_core.io.gaussian_ply import turn, turn_back

ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def write_splat(gaussians: Gaussians, path: Path) -> None:
    """Write the most visible Gaussians first: viewers draw while they are still reading."""
    size = gaussians.scales.prod(1) * gaussians.opacities[:, 0]
    order = torch.argsort(size.detach(), descending=True, stable=True)
    positions, rotations = turn(gaussians.positions, gaussians.rotations)
    color = torch.cat([gaussians.colors, gaussians.opacities], 1)
    rows = np.zeros(len(gaussians), ROW)
    for name, values in (
        ("position", positions),
        ("scale", gaussians.scales),
        ("color", (color * 255).round().clamp(0, 255)),
        ("rotation", (rotations * 128 + 128).round().clamp(0, 255)),
    ):
        rows[name] = values.detach()[order].cpu().numpy()
    write_file(Path(path), [rows.tobytes()])


def read_splat(path: Path) -> Gaussians:
    """Read Gaussians; colors, opacities and rotations come in steps of a byte. Raises `InputError`."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror or error}") from error
    if len(content) % ROW.itemsize:
        raise InputError(f"`{path.name}` is cut off: its size is no multiple of {ROW.itemsize} bytes")
    rows = np.frombuffer(content, ROW)
    position, scale = (torch.from_numpy(rows[name].copy()) for name in ("position", "scale"))
    color, rotation = (torch.from_numpy(rows[name].astype(np.float32)) for name in ("color", "rotation"))
    positions, quaternions = turn_back(position, (rotation - 128) / 128)
    return Gaussians(positions, scale, quaternions, color[:, 3:] / 255, (color[:, :3] / 255 - 0.5) / SH0)
