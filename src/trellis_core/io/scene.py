"""Opening users' mesh files with trimesh, USDZ, and the glTF files that trimesh alone misreads.

Numbers of KHR_mesh_quantization are turned into floats first; compressed files that need a package or a
program to unpack them are refused with its name, rather than read as garbage.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from trellis_core.errors import InputError

GLTF = (".glb", ".gltf")
QUANTIZED, DRACO = "KHR_mesh_quantization", "KHR_draco_mesh_compression"
PACKED = ("EXT_meshopt_compression", "KHR_meshopt_compression")
TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
FLOAT = 5126
LARGEST: Mapping[str, int] = {"i1": 127, "u1": 255, "<i2": 32767, "<u2": 65535}


def open_scene(path: Path, **options: Any) -> Any:
    """A `trimesh.Scene`. Raises `InputError` for what cannot be unpacked here, else what trimesh raises."""
    import trimesh

    if path.suffix.lower() == ".usdz":
        from trellis_core.io.usd_scene import open_usd

        return open_usd(path)
    if path.suffix.lower() not in GLTF:
        return trimesh.load_scene(path, **options)
    document, binary = read_document(path)
    required = document.get("extensionsRequired", ())
    for name in PACKED:
        if name in required:
            raise InputError(
                f"`{path.name}` is packed with {name}, which is not read here",
                hint="unpack it first, for example by opening and saving it in Blender",
            )
    if DRACO in required and find_spec("DracoPy") is None:
        raise InputError(
            f"`{path.name}` is compressed with Draco, which needs the package `DracoPy`",
            hint="install it with `pip install 'trellis-cli[draco]'`",
        )
    if QUANTIZED not in document.get("extensionsUsed", ()):
        return trimesh.load_scene(path, **options)
    return trimesh.load_scene(
        BytesIO(plain_glb(document, binary, path)),
        file_type="glb",
        resolver=trimesh.resolvers.FilePathResolver(str(path)),
        **options,
    )


def scene_parts(path: Path, **options: Any) -> list[Any]:
    """The triangle meshes of a file as `trimesh.Trimesh`, in their places. Raises as `open_scene`."""
    import trimesh

    scene = open_scene(path, **options)
    parts = []
    for node in scene.graph.nodes_geometry:
        place, name = scene.graph[node]
        shape = scene.geometry[name]
        if isinstance(shape, trimesh.Trimesh) and len(shape.faces):
            part = shape.copy(include_cache=True)  # `Scene.dump` forgets the file's normals
            part.apply_transform(place)
            parts.append(part)
    return parts


def file_normals(part: Any) -> NDArray[np.float32] | None:  # [V, 3]
    """Normals at the vertices of a part as its file has them; None if any is missing or no direction."""
    known = part._cache.cache.get("vertex_normals")  # asked openly, trimesh would make up smooth ones
    if known is None or len(known) != len(part.vertices):
        return None
    length = np.linalg.norm(known, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        return None
    return np.asarray(known / length, np.float32)


def read_document(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a GLB or glTF file, and the binary chunk of a GLB."""
    content = path.read_bytes()
    if path.suffix.lower() == ".gltf":
        document, binary = json.loads(content), b""
    else:
        (size,) = struct.unpack("<I", content[12:16])
        document, binary = json.loads(content[20 : 20 + size]), content[28 + size :]
    if not isinstance(document, dict):
        raise ValueError("it is no glTF document")
    return document, binary


def plain_glb(document: dict[str, Any], binary: bytes, path: Path) -> bytes:
    """The same file as a GLB with one buffer, its quantized attributes as floats."""
    data = bytearray()
    starts = []
    for buffer in document.get("buffers", ()):
        data.extend(b"\0" * (-len(data) % 4))
        starts.append(len(data))
        data.extend(buffer_bytes(buffer, binary, path))
    for view in document["bufferViews"]:
        view["byteOffset"] = view.get("byteOffset", 0) + starts[view.get("buffer", 0)]
        view["buffer"] = 0
    attributes = {
        accessor
        for mesh in document.get("meshes", ())
        for primitive in mesh["primitives"]
        for name, accessor in primitive["attributes"].items()
        if name.startswith(("POSITION", "NORMAL", "TANGENT", "TEXCOORD"))
    }
    for number in sorted(attributes):
        accessor = document["accessors"][number]
        if accessor["componentType"] == FLOAT or "bufferView" not in accessor:
            continue
        values = floats_of(accessor, document["bufferViews"][accessor["bufferView"]], data)
        data.extend(b"\0" * (-len(data) % 4))
        document["bufferViews"].append({"buffer": 0, "byteOffset": len(data), "byteLength": values.nbytes})
        data.extend(values.tobytes())
        accessor.update(
            bufferView=len(document["bufferViews"]) - 1, byteOffset=0, componentType=FLOAT, normalized=False
        )
        for name in ("min", "max"):
            accessor.pop(name, None)
    data.extend(b"\0" * (-len(data) % 4))
    document["buffers"] = [{"byteLength": len(data)}]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(data))
    return b"".join(
        [head, struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", len(data), b"BIN\0"), data]
    )


def buffer_bytes(buffer: Mapping[str, Any], binary: bytes, path: Path) -> bytes:
    uri = buffer.get("uri", "")
    if not uri:
        return binary[: buffer["byteLength"]]
    if uri.startswith("data:"):
        return b64decode(uri.partition(",")[2])
    return (path.parent / unquote(uri)).read_bytes()


def floats_of(
    accessor: Mapping[str, Any], view: Mapping[str, Any], data: bytearray
) -> NDArray[np.float32]:  # [count, columns]
    """The numbers of an accessor; normalized integers mean [0, 1] or [-1, 1]."""
    kind, columns = TYPES[accessor["componentType"]], COLUMNS[accessor["type"]]
    width = np.dtype(kind).itemsize
    stride = view.get("byteStride", width * columns)
    rows: NDArray[Any] = np.ndarray(
        (accessor["count"], columns),
        kind,
        bytes(data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]),
        accessor.get("byteOffset", 0),
        (stride, width),
    )
    if accessor.get("normalized") and kind in LARGEST:
        return np.maximum(rows / np.float32(LARGEST[kind]), np.float32(-1)).astype("<f4")
    return rows.astype("<f4")
