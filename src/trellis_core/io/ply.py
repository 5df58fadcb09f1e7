"""Binary PLY: positions, normals and a color per vertex; z up, millimeters as STL.

No texture coordinates: they would say nothing without a texture, and hide the colors from some programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.frame import in_millimeters

PLY_TYPES = {"f4": "float", "u1": "uchar"}


def write_ply(asset: Asset, path: Path) -> None:
    """Write an asset's mesh with the base color at each vertex; the texture itself does not fit into PLY."""
    mesh = asset.mesh
    columns: list[tuple[str, str, Tensor]] = list(
        zip("xyz", ["f4"] * 3, in_millimeters(asset).unbind(1), strict=True)
    )
    if mesh.normals is not None:
        columns += zip(("nx", "ny", "nz"), ["f4"] * 3, mesh.normals.unbind(1), strict=True)
    color = vertex_colors(asset)
    if color is not None:
        columns += zip(("red", "green", "blue", "alpha"), ["u1"] * 4, color.unbind(1), strict=True)
    write_file(Path(path), encode_ply(columns, mesh.faces))


def write_bare_ply(
    path: Path,
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor | None = None,  # int32 [F, 3]; None: a cloud of points
) -> None:
    """Write positions, and faces where there are any, and nothing else."""
    write_file(path, encode_ply(list(zip("xyz", ["f4"] * 3, vertices.unbind(1), strict=True)), faces))


def encode_ply(columns: Sequence[tuple[str, str, Tensor]], faces: Tensor | None) -> list[bytes]:
    """Header, vertices and faces; a column is a name, a key of PLY_TYPES and its values [V]."""
    vertices: NDArray[Any] = np.zeros(
        len(columns[0][2]), dtype=[(name, "<" + kind) for name, kind, _ in columns]
    )
    for name, _, values in columns:
        vertices[name] = values.cpu().numpy()
    header = ["ply", "format binary_little_endian 1.0", "comment trellis", f"element vertex {len(vertices)}"]
    header += [f"property {PLY_TYPES[kind]} {name}" for name, kind, _ in columns]
    rows: NDArray[Any] = np.zeros(
        0 if faces is None else len(faces), dtype=[("count", "u1"), ("index", "<i4", 3)]
    )
    if faces is not None:
        rows["count"], rows["index"] = 3, faces.cpu().numpy()
        header += [f"element face {len(rows)}", "property list uchar int vertex_indices"]
    return ["\n".join([*header, "end_header"]).encode() + b"\n", vertices.tobytes(), rows.tobytes()]


def vertex_colors(asset: Asset) -> Tensor | None:  # uint8 [V, 4]
    """The color of the texture at each vertex, or the mesh's own; None without either."""
    if asset.mesh.uvs is None:
        return asset.mesh.colors
    return look_up(asset.material.base_color, asset.mesh.uvs)


def look_up(image: Tensor, uvs: Tensor) -> Tensor:
    """Nearest texel of an image [H, W, C] at each texture coordinate, [V, C]."""
    height, width, _ = image.shape
    size = torch.tensor([width, height], device=uvs.device)
    column, row = torch.minimum((uvs * size).long().clamp_min(0), size - 1).unbind(1)
    return image[row, column]
