"""An asset as a glTF 2.0 document and its binary buffer; glTF in separate files.

glTF is y up, in meters: (x, y, z) becomes (x, z, -y). Texture coordinates are the asset's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.errors import UsageError
from trellis_core.geometry.tangents import with_tangents
from trellis_core.geometry.types import Asset, Material
from trellis_core.io.draco import encode_draco
from trellis_core.io.files import write_files
from trellis_core.io.frame import from_y_up, in_meters, to_y_up
from trellis_core.io.textures import (
    MIME,
    SUFFIX,
    WEBP_QUALITY,
    EncodedImage,
    encode_images,
    with_occlusion,
)

__all__ = ["WEBP_QUALITY", "GltfSettings", "build_gltf", "from_y_up", "to_y_up", "write_gltf"]

BYTE, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5120, 5121, 5123, 5125, 5126
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE, REPEAT = 9729, 9987, 33071, 10497
STEPS = 65535  # of a quantised coordinate
SCREEN_SHARE = 0.5  # of the picture's height that an object fills when its next coarser level takes over


@dataclass(frozen=True, slots=True, kw_only=True)
class GltfSettings:
    """How a glTF file is written."""

    texture_format: str | None = None  # webp, png or jpeg; None takes the asset's export settings
    quality: int | None = WEBP_QUALITY  # of a WebP base color; None is lossless
    quantize: bool = False  # 16-bit positions and texture coordinates, 8-bit normals (KHR_mesh_quantization)
    draco: bool = False  # compressed by the package DracoPy (KHR_draco_mesh_compression)

    def __post_init__(self) -> None:
        if self.quantize and self.draco:
            raise UsageError("Draco quantises by itself", hint="give `--quantize` or `--draco`, not both")


@dataclass(slots=True)
class Buffer:
    """A growing binary buffer with its views, each aligned to four bytes."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, int]] = field(default_factory=list)

    def add(self, content: bytes, target: int | None = None, stride: int | None = None) -> int:
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        view |= {} if stride is None else {"byteStride": stride}
        view |= {} if target is None else {"target": target}
        self.views.append(view)
        self.data.extend(content)
        return len(self.views) - 1


@dataclass(slots=True)
class Document:
    """A glTF document in the making."""

    settings: GltfSettings
    buffer: Buffer = field(default_factory=Buffer)
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)

    def add(self, name: str, entry: dict[str, Any]) -> int:
        self.lists.setdefault(name, []).append(entry)
        return len(self.lists[name]) - 1

    def require(self, extension: str) -> None:
        self.used.add(extension)
        self.required.add(extension)


def write_gltf(
    asset: Asset, path: Path, *, settings: GltfSettings | None = None, lods: Sequence[Asset] = ()
) -> None:
    """Write `NAME.gltf`, `NAME.bin` and `NAME_*.webp`; the first comes last, so that what it names exists."""
    path = Path(path)
    stem = path.stem.replace(" ", "_")
    images: list[EncodedImage] = []
    document, binary = build_gltf(asset, settings or GltfSettings(), lods, images)
    document["buffers"][0]["uri"] = quote(f"{stem}.bin")
    names = [f"{stem}_{image.name}{SUFFIX[image.kind]}" for image in images]
    for entry, name in zip(document.get("images", ()), names, strict=True):
        entry["uri"] = quote(name)
    parts = [(path.with_name(name), [image.data]) for name, image in zip(names, images, strict=True)]
    text = json.dumps(document, indent=1, allow_nan=False).encode()
    write_files([*parts, (path.with_name(f"{stem}.bin"), [bytes(binary)]), (path, [text])])


def build_gltf(
    asset: Asset,
    settings: GltfSettings,
    lods: Sequence[Asset] = (),  # the same object, coarser and coarser
    images: list[EncodedImage] | None = None,  # gets the images, which are then not in the buffer
) -> tuple[dict[str, Any], bytearray]:
    """The JSON document (one buffer, without uri) and the buffer's bytes."""
    document = Document(settings)
    levels = (asset, *lods)
    nodes = []
    for number, level in enumerate(levels):
        name = "asset" if number == 0 else f"asset_lod{number}"
        primitive, transform = add_primitive(document, level)
        mesh = document.add("meshes", {"name": name, "primitives": [primitive]})
        nodes.append(document.add("nodes", {"mesh": mesh, "name": name, **transform}))
    add_materials(document, levels, images)
    if lods:
        first = document.lists["nodes"][0]
        first["extensions"] = {"MSFT_lod": {"ids": nodes[1:]}}
        first["extras"] = {"MSFT_screencoverage": [SCREEN_SHARE / 4**n for n in range(len(levels))]}
        document.used.add("MSFT_lod")

    result: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "trellis"},
        "scene": 0,
        "scenes": [{"nodes": nodes[:1]}],
        **document.lists,
        "bufferViews": document.buffer.views,
    }
    if asset.facts:
        result["asset"]["extras"] = plain(asset.facts)
    if document.used:
        result["extensionsUsed"] = sorted(document.used)
    if document.required:
        result["extensionsRequired"] = sorted(document.required)
    data = document.buffer.data
    data.extend(b"\0" * (-len(data) % 4))
    result["buffers"] = [{"byteLength": len(data)}]
    return result, data


# --- geometry ---


def add_primitive(document: Document, asset: Asset) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mesh's accessors: the primitive, and the transform that its node needs."""
    mesh, tangents = asset.mesh, None
    has_frames = asset.material.normal is not None and mesh.uvs is not None and mesh.normals is not None
    if has_frames and not document.settings.draco:  # Draco keeps no tangents
        mesh, tangents = with_tangents(mesh.to("cpu"))
    attributes = {"POSITION": to_y_up(in_meters(replace(asset, mesh=mesh)))}
    if mesh.normals is not None:
        attributes["NORMAL"] = to_y_up(mesh.normals)
    if tangents is not None:
        attributes["TANGENT"] = torch.cat([to_y_up(tangents[:, :3]), tangents[:, 3:]], dim=1)
    if mesh.uvs is not None:
        attributes["TEXCOORD_0"] = mesh.uvs.detach().cpu().float()
    elif mesh.colors is not None:
        attributes["COLOR_0"] = linear_colors(mesh.colors)
    if document.settings.draco:
        return add_draco(document, attributes, mesh.faces), {}
    indices, component = index_array(mesh.faces, len(mesh.vertices))
    entry = {"componentType": component, "count": int(indices.size), "type": "SCALAR"}
    view = document.buffer.add(indices.tobytes(), ELEMENT_ARRAY_BUFFER)
    primitive: dict[str, Any] = {
        "attributes": {},
        "indices": document.add("accessors", {"bufferView": view, **entry}),
    }
    transform: dict[str, Any] = {}
    for name, values in attributes.items():
        if document.settings.quantize:
            array, more, transform_of = quantized(name, values)
            transform |= transform_of
            if name in ("POSITION", "NORMAL", "TANGENT"):
                document.require("KHR_mesh_quantization")
        else:
            array, more = values.numpy().astype("<f4"), {"componentType": FLOAT}
            more |= bounds(array) if name == "POSITION" else {}
        primitive["attributes"][name] = add_attribute(document, array, more)
    return primitive, transform


def add_attribute(document: Document, array: NDArray[Any], more: Mapping[str, Any]) -> int:
    """An accessor of [V, 2 .. 4]; rows are padded to four bytes, as the format demands."""
    count, width = array.shape
    size = array.itemsize * width
    stride = -(-size // 4) * 4
    if stride != size:
        padded = np.zeros((count, stride // array.itemsize), dtype=array.dtype)
        padded[:, :width] = array
        array = padded
    view = document.buffer.add(array.tobytes(), ARRAY_BUFFER, stride if stride != size else None)
    return document.add("accessors", {"bufferView": view, "count": count, "type": f"VEC{width}", **more})


def bounds(array: NDArray[Any]) -> dict[str, Any]:
    return {"min": array.min(0).tolist(), "max": array.max(0).tolist()}


def quantized(name: str, values: Tensor) -> tuple[NDArray[Any], dict[str, Any], dict[str, Any]]:
    """An attribute in small integers: the array, what its accessor says, and the node's transform."""
    array = values.double().numpy()
    if name == "POSITION":
        low, size = array.min(0), max(float((array.max(0) - array.min(0)).max()), 1e-9)
        steps = np.rint((array - low) / size * STEPS).astype("<u2")
        accessor = {"componentType": UNSIGNED_SHORT, **bounds(steps)}
        return steps, accessor, {"translation": low.tolist(), "scale": [size / STEPS] * 3}
    if name in ("NORMAL", "TANGENT"):
        return np.rint(array * 127).astype("i1"), {"componentType": BYTE, "normalized": True}, {}
    if name == "COLOR_0":
        return np.rint(array * 255).astype("u1"), {"componentType": UNSIGNED_BYTE, "normalized": True}, {}
    if array.min(initial=0) >= 0 and array.max(initial=0) <= 1:
        steps = np.rint(array * STEPS).astype("<u2")
        return steps, {"componentType": UNSIGNED_SHORT, "normalized": True}, {}
    return array.astype("<f4"), {"componentType": FLOAT}, {}


def add_draco(document: Document, attributes: Mapping[str, Tensor], faces: Tensor) -> dict[str, Any]:
    """A primitive whose accessors describe what a Draco decoder gives."""
    encoded = encode_draco(attributes, faces)
    primitive: dict[str, Any] = {"attributes": {}}
    component = UNSIGNED_SHORT if encoded.count <= STEPS else UNSIGNED_INT
    count = {"componentType": component, "count": encoded.corners, "type": "SCALAR"}
    primitive["indices"] = document.add("accessors", count)
    for name, values in encoded.attributes.items():
        entry: dict[str, Any] = {"count": encoded.count, "type": f"VEC{values.shape[1]}"}
        small = values.dtype == np.uint8
        entry |= {"componentType": UNSIGNED_BYTE, "normalized": True} if small else {"componentType": FLOAT}
        entry |= bounds(values) if name == "POSITION" else {}
        primitive["attributes"][name] = document.add("accessors", entry)
    view = document.buffer.add(encoded.data)
    extension = {"bufferView": view, "attributes": dict(encoded.ids)}
    primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    document.require("KHR_draco_mesh_compression")
    return primitive


def index_array(faces: Tensor, vertex_count: int) -> tuple[NDArray[Any], int]:
    """Vertex indices in the smallest type that holds them (65,535 is reserved)."""
    if vertex_count <= 65535:
        return faces.cpu().numpy().astype("<u2"), UNSIGNED_SHORT
    return faces.cpu().numpy().astype("<u4"), UNSIGNED_INT


def linear_colors(colors: Tensor) -> Tensor:  # float32 [V, 4]
    """Vertex colors as glTF has them: linear."""
    value = colors.cpu().float() / 255
    rgb = value[:, :3]
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return torch.cat([linear, value[:, 3:]], dim=1)


# --- material ---


def add_materials(
    document: Document, levels: Sequence[Asset], aside: list[EncodedImage] | None = None
) -> None:
    """A material per level with its textures; all images are encoded at once."""
    images: list[tuple[str, Tensor, bool]] = []
    for number, level in enumerate(levels):
        ending = f"_lod{number}" if number else ""
        primitive = document.lists["meshes"][number]["primitives"][0]
        wraps = level.mesh.uvs is not None and bool(((level.mesh.uvs < 0) | (level.mesh.uvs > 1)).any())
        material = gltf_material(level.material, len(images), textured=level.mesh.uvs is not None)
        sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR}
        sampler |= dict.fromkeys(("wrapS", "wrapT"), REPEAT if wraps else CLAMP_TO_EDGE)
        primitive["material"] = document.add("materials", material)
        if level.mesh.uvs is not None:
            if sampler not in document.lists.get("samplers", []):
                document.add("samplers", sampler)
            place = document.lists["samplers"].index(sampler)
            for name, pixels, lossy in textures_of(level.material):
                document.add("textures", {"sampler": place})
                images.append((name + ending, pixels, lossy))
    settings = document.settings
    encoded = encode_images(images, settings.texture_format or texture_format_of(levels[0]), settings.quality)
    for number, image in enumerate(encoded):
        entry: dict[str, Any] = {"mimeType": MIME[image.kind], "name": image.name}
        if aside is None:
            entry["bufferView"] = document.buffer.add(image.data)
        else:
            aside.append(image)
        document.add("images", entry)
        texture = document.lists["textures"][number]
        if image.kind == "webp":
            texture["extensions"] = {"EXT_texture_webp": {"source": number}}
            document.require("EXT_texture_webp")
        else:
            texture["source"] = number


def textures_of(material: Material) -> list[tuple[str, Tensor, bool]]:
    """Name, pixels and whether they may be lossy, in the order in which `gltf_material` counts them."""
    found = [
        ("base_color", material.base_color, True),
        ("metallic_roughness", with_occlusion(material), False),
    ]
    return found if material.normal is None else [*found, ("normal", material.normal, False)]


def gltf_material(
    material: Material,
    texture: int,  # number of its first one
    *,
    textured: bool = True,
) -> dict[str, Any]:
    """The material's entry; without texture coordinates it has the mean values."""
    surface: dict[str, Any] = {"baseColorFactor": [1.0] * 4, "metallicFactor": 1.0, "roughnessFactor": 1.0}
    result: dict[str, Any] = {"name": "material", "pbrMetallicRoughness": surface}
    result |= {"alphaMode": material.alpha_mode, "doubleSided": material.double_sided}
    if material.alpha_mode == "MASK":
        result["alphaCutoff"] = material.alpha_cutoff
    if not textured:
        color = linear_colors(material.base_color.reshape(-1, 4)).mean(0)
        numbers = material.metallic_roughness.float().mean((0, 1)) / 255
        surface["baseColorFactor"] = [round(value, 6) for value in color.tolist()]
        surface["roughnessFactor"], surface["metallicFactor"] = (round(float(n), 6) for n in numbers[1:])
        return result
    surface["baseColorTexture"] = {"index": texture}
    surface["metallicRoughnessTexture"] = {"index": texture + 1}
    if material.occlusion is not None:
        result["occlusionTexture"] = {"index": texture + 1}
    if material.normal is not None:
        result["normalTexture"] = {"index": texture + 2}
    return result


def texture_format_of(asset: Asset) -> str:
    """The format its export settings ask for."""
    export = asset.extras.get("export")
    return str(export.get("texture_format", "webp")) if isinstance(export, Mapping) else "webp"


def plain(value: Any) -> Any:
    """A copy made of JSON types only."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return str(value)
