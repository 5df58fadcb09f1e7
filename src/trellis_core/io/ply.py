"""Binary PLY: positions, normals, texture coordinates and a color per vertex; z up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file

PLY_TYPES = {"f4": "float", "u1": "uchar"}


def write_ply(asset: Asset, path: Path) -> None:
    """Write an asset's mesh with the base color at each vertex; the texture itself does not fit into PLY."""
    mesh = asset.mesh
    columns: list[tuple[str, str, Tensor]] = list(
        zip("xyz", ["f4"] * 3, mesh.vertices.unbind(1), strict=True)
    )
    if mesh.normals is not None:
        columns += zip(("nx", "ny", "nz"), ["f4"] * 3, mesh.normals.unbind(1), strict=True)
    if mesh.uvs is not None:
        columns += [("s", "f4", mesh.uvs[:, 0]), ("t", "f4", 1 - mesh.uvs[:, 1])]
        color = look_up(asset.material.base_color, mesh.uvs)
        columns += zip(("red", "green", "blue", "alpha"), ["u1"] * 4, color.unbind(1), strict=True)
    vertices: NDArray[Any] = np.zeros(
        len(mesh.vertices), dtype=[(name, "<" + kind) for name, kind, _ in columns]
    )
    for name, _, values in columns:
        vertices[name] = values.cpu().numpy()
    faces: NDArray[Any] = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces.cpu().numpy()
    header = ["ply", "format binary_little_endian 1.0", "comment trellis", f"element vertex {len(vertices)}"]
    header += [f"property {PLY_TYPES[kind]} {name}" for name, kind, _ in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    write_file(Path(path), ["\n".join(header).encode() + b"\n", vertices.tobytes(), faces.tobytes()])


def look_up(image: Tensor, uvs: Tensor) -> Tensor:
    """Nearest texel of an image [H, W, C] at each texture coordinate, [V, C]."""
    height, width, _ = image.shape
    size = torch.tensor([width, height], device=uvs.device)
    column, row = torch.minimum((uvs * size).long().clamp_min(0), size - 1).unbind(1)
    return image[row, column]
