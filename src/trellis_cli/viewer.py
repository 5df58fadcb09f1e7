"""Meshes as one HTML page to turn them in: everything inside, no network, WebGL 2.

`viewer.html` beside this file draws; this module packs the meshes for it. Letters: V vertices, F faces.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.cleanup import number_places
from trellis_core.geometry.types import Material, Mesh
from trellis_core.render.compare import HEAT, Thing, mesh_of, nearest_to
from trellis_core.render.surface import PaintedMesh
from trellis_core.runtime import Runtime

MOST_FACES = 4_000_000  # of all meshes together; more are too much for most browsers
LARGEST_TEXTURE = 2048  # pixels; larger ones are shown smaller
LOSSLESS = 256  # pixels; up to this side nothing is lost
QUALITY = 90  # of WebP
ALPHA_MODES = {"OPAQUE": 0, "MASK": 1, "BLEND": 2}


@dataclass(slots=True)
class Packed:
    """One growing buffer; every piece begins at a multiple of four."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, content: bytes) -> tuple[int, int]:
        """Where it is: first byte and length."""
        self.data.extend(b"\0" * (-len(self.data) % 4))
        self.data.extend(content)
        return len(self.data) - len(content), len(content)


def page(
    things: Sequence[Thing],  # one or two, in one frame around the origin
    names: Sequence[str],
    summaries: Sequence[str],  # a few words each
    lines: Sequence[tuple[str, str]],  # what the page says about them
    runtime: Runtime,
    *,
    hottest: float = 0.05,  # distance shown as the last color
    title: str = "trellis",
) -> bytes:
    """The page. Raises `UsageError` when the meshes are too large for one."""
    total = sum(len(mesh_of(thing).faces) for thing in things)
    if total > MOST_FACES:
        raise UsageError(
            f"{total:,} faces are too many for a page, at most {MOST_FACES:,}",
            hint="write a picture instead: `-o compare.png`",
        )
    packed = Packed()
    entries = []
    for number, thing in enumerate(things):
        runtime.report("page", number, len(things))
        other = mesh_of(things[1 - number]) if len(things) == 2 else None
        packing = pack(thing, other, packed, runtime, hottest)
        entries.append({"name": names[number], "summary": summaries[number], **packing})
    runtime.report("page", len(things), len(things))
    farthest = max(float(corners(thing).norm(dim=1).max()) for thing in things)
    scene = {
        "title": title,
        "things": entries,
        "lines": [list(pair) for pair in lines],
        "radius": farthest,
        "heat": [list(color) for color in HEAT],
        "hottest": hottest,
    }
    text = json.dumps(scene, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    frame = files("trellis_cli").joinpath("viewer.html").read_text(encoding="utf-8")
    head, rest = frame.split("@SCENE@")
    middle, tail = rest.split("@DATA@")
    return b"".join(
        [head.encode(), text.encode(), middle.encode(), b64encode(bytes(packed.data)), tail.encode()]
    )


def corners(thing: Thing) -> Tensor:  # float32 [n, 3]
    mesh = mesh_of(thing)
    return mesh.vertices[mesh.faces.long().unique()]


def pack(
    thing: Thing, other: Mesh | None, packed: Packed, runtime: Runtime, hottest: float
) -> dict[str, Any]:
    """Put a mesh into the buffer, and say where its pieces are."""
    mesh = mesh_of(thing)
    order, owners = in_groups(thing)
    vertices, faces = indexed(mesh, order)
    if other is None:
        heat = torch.zeros(len(vertices))
    else:
        heat = nearest_to(vertices[:, :3].to(runtime.device), other, runtime).distance.cpu() / hottest
    normals = torch.zeros(len(vertices), 4, dtype=torch.int8)
    normals[:, :3] = (vertices[:, 3:6] * 127).round().to(torch.int8)
    groups = []
    for number, start, count in owners:
        chosen = order[start : start + count]
        groups.append({"start": 3 * start, "count": 3 * count, **pack_look(thing, number, chosen, packed)})
    return {
        "painted": isinstance(thing, PaintedMesh),
        "positions": packed.add(raw(vertices[:, :3], "<f4")),
        "normals": packed.add(raw(normals, "i1")),
        "uvs": packed.add(raw(vertices[:, 6:], "<f4")),
        "heat": packed.add(raw((heat.clamp(0, 1) * 255).round().to(torch.uint8), "u1")),
        "indices": packed.add(raw(faces, "<u4")),
        "groups": groups,
    }


def in_groups(thing: Thing) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Faces in the order of their materials, int64 [F]; and of each material its number, start and count."""
    if not isinstance(thing, PaintedMesh):
        count = len(thing.faces)
        return torch.arange(count), [(0, 0, count)]
    owner = thing.owner.cpu()
    order = owner.argsort(stable=True)
    numbers, counts = owner.unique(return_counts=True)
    starts = (counts.cumsum(0) - counts).tolist()
    return order, list(zip(numbers.tolist(), starts, counts.tolist(), strict=True))


def indexed(mesh: Mesh, order: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct corners float32 [V, 8] (position, normal, texture coordinates), and faces over them [F, 3]."""
    corner = mesh.faces.long().cpu()[order].reshape(-1)
    columns = [mesh.vertices.cpu()[corner]]
    columns.append(torch.zeros(len(corner), 3) if mesh.normals is None else mesh.normals.cpu()[corner])
    columns.append(torch.zeros(len(corner), 2) if mesh.uvs is None else mesh.uvs.cpu()[corner])
    rows = torch.cat(columns, 1).float()
    number = number_places(rows)
    distinct = rows.new_zeros(int(number.max()) + 1, 8)
    distinct[number] = rows
    return distinct, number.reshape(-1, 3)


def pack_look(thing: Thing, number: int, chosen: Tensor, packed: Packed) -> dict[str, Any]:
    """Textures and transparency of one material."""
    if not isinstance(thing, PaintedMesh):
        return {"base": None, "surface": None, "alpha": 0, "cutoff": 0.5}
    material: Material = thing.materials[number]
    mesh = thing.mesh
    assert mesh.uvs is not None
    uv = mesh.uvs.cpu()[mesh.faces.long().cpu()[chosen]]
    table = bool((uv == uv[:, :1]).all())  # one texel a face: colors of faces, which must not be mixed
    return {
        "base": {"data": packed.add(encode(material.base_color, table)), "table": table},
        "surface": {"data": packed.add(encode(material.metallic_roughness, table)), "table": table},
        "alpha": ALPHA_MODES.get(material.alpha_mode, 0),
        "cutoff": material.alpha_cutoff,
    }


def encode(texture: Tensor, table: bool) -> bytes:
    """uint8 [H, W, 3 or 4] as WebP."""
    image = Image.fromarray(np.ascontiguousarray(texture.cpu().numpy()))
    side = max(image.size)
    if side > LARGEST_TEXTURE and not table:
        scale = LARGEST_TEXTURE / side
        size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
        image = image.resize(size, Image.Resampling.BOX)
    file = BytesIO()
    image.save(file, "WEBP", lossless=table or side <= LOSSLESS, quality=QUALITY, method=2, exact=True)
    return file.getvalue()


def raw(values: Tensor, kind: str) -> bytes:
    return bytes(values.contiguous().numpy().astype(kind).tobytes())
