"""Shapes whose facts are known by heart: cubes, spheres, strips; and files made of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trellis_core.geometry.types import Mesh

CORNERS = [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
SIDES = [  # two triangles each, outward: -x, +x, -y, +y, -z, +z
    [[0, 1, 3], [0, 3, 2]],
    [[4, 6, 7], [4, 7, 5]],
    [[0, 4, 5], [0, 5, 1]],
    [[2, 3, 7], [2, 7, 6]],
    [[0, 2, 6], [0, 6, 4]],
    [[1, 5, 7], [1, 7, 3]],
]


def mesh(vertices: Any, faces: Any) -> Mesh:
    return Mesh(torch.as_tensor(vertices, dtype=torch.float32), torch.as_tensor(faces, dtype=torch.int32))


def cube(sides: Sequence[int] = range(6)) -> Mesh:
    """A unit cube of two triangles a side."""
    return mesh(CORNERS, [face for side in sides for face in SIDES[side]])


def sphere(radius: float = 0.5, rings: int = 24) -> Mesh:
    polar = torch.linspace(0, torch.pi, rings + 1, dtype=torch.float64)[1:-1]
    around = torch.arange(2 * rings, dtype=torch.float64) * (torch.pi / rings)
    t, p = torch.meshgrid(polar, around, indexing="ij")
    points = torch.stack([t.sin() * p.cos(), t.sin() * p.sin(), t.cos()], -1).reshape(-1, 3)
    points = torch.cat([points, torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=torch.float64)]) * radius
    faces, n, top = [], 2 * rings, len(points) - 2
    for i in range(rings - 2):
        for j in range(n):
            a, b = i * n + j, i * n + (j + 1) % n
            faces += [[a, a + n, b + n], [a, b + n, b]]
    last = (rings - 2) * n
    for j in range(n):
        k = (j + 1) % n
        faces += [[top, j, k], [top + 1, last + k, last + j]]
    return mesh(points, faces)


def together(*parts: Mesh) -> Mesh:
    starts = [sum(len(p.vertices) for p in parts[:i]) for i in range(len(parts))]
    faces = [p.faces + start for p, start in zip(parts, starts, strict=True)]
    return Mesh(torch.cat([p.vertices for p in parts]), torch.cat(faces))


def scaled(shape: Mesh, factor: float, shift: Sequence[float] = (0, 0, 0)) -> Mesh:
    return Mesh(shape.vertices * factor + torch.tensor(shift, dtype=torch.float32), shape.faces)


def inside_out(shape: Mesh) -> Mesh:
    return Mesh(shape.vertices, shape.faces.flip(1))


def moebius(steps: int = 24, width: float = 0.15) -> Mesh:
    """A strip that closes on itself after half a turn."""
    angle = torch.arange(steps) * (2 * torch.pi / steps)
    points = []
    for side in (-width, width):
        reach = 0.4 + side * (angle / 2).cos()
        points.append(torch.stack([reach * angle.cos(), reach * angle.sin(), side * (angle / 2).sin()], 1))
    faces = []
    for i in range(steps):
        j, twist = (i + 1) % steps, i == steps - 1
        low, high = (steps + j, j) if twist else (j, steps + j)
        faces += [[i, low, high], [i, high, steps + i]]
    return mesh(torch.cat(points), faces)


def write_stl(shape: Mesh, path: Path) -> Path:
    corners = shape.vertices[shape.faces.long()]
    rows = b"".join(struct.pack("<12fH", *[0.0] * 3, *c.reshape(-1).tolist(), 0) for c in corners)
    path.write_bytes(b"\0" * 80 + struct.pack("<I", len(corners)) + rows)
    return path


def write_obj(shape: Mesh, path: Path) -> Path:
    lines = [f"v {x} {z} {-y}" for x, y, z in shape.vertices.tolist()]  # y up
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in shape.faces.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_glb(
    shape: Mesh,
    path: Path,
    *,
    color: tuple[int, int, int] = (200, 60, 30),
    extras: Mapping[str, Any] | None = None,
    alpha: str = "OPAQUE",
    size: int = 16,
) -> Path:
    """A textured GLB, written without the package's own writer: every triangle is its own half of a cell."""
    corners = shape.vertices[shape.faces.long()].reshape(-1, 3)
    x, y, z = corners.unbind(1)
    points = torch.stack([x, z, -y], 1)
    count = len(shape.faces)
    cells = max(int(count**0.5 + 0.999), 1)
    number = torch.arange(count)
    low = torch.stack([number % cells, number // cells], 1).float()
    corner = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])
    uv = (low[:, None] + corner).reshape(-1, 2) / cells
    file = BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    pieces = [
        points.numpy().astype("<f4").tobytes(),
        uv.numpy().astype("<f4").tobytes(),
        torch.arange(3 * count).numpy().astype("<u4").tobytes(),
        file.getvalue(),
    ]
    views, binary = [], b""
    for piece in pieces:
        binary += b"\0" * (-len(binary) % 4)
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(piece)})
        binary += piece
    binary += b"\0" * (-len(binary) % 4)
    place = {"min": points.amin(0).tolist(), "max": points.amax(0).tolist()}
    document = {
        "asset": {"version": "2.0", "generator": "by hand", **({"extras": extras} if extras else {})},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}
        ],
        "materials": [
            {
                "name": "paint",
                "alphaMode": alpha,
                "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0},
            }
        ],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 3, "mimeType": "image/png"}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3 * count, "type": "VEC3", **place},
            {"bufferView": 1, "componentType": 5126, "count": 3 * count, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5125, "count": 3 * count, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, length)
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )
    return path
