"""An asset as a glTF 2.0 document and its binary buffer.

glTF is y up: (x, y, z) becomes (x, z, -y). Texture coordinates are the asset's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trellis_core.errors import OutputError
from trellis_core.geometry.types import Asset

UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5123, 5125, 5126
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071

WEBP_QUALITY = 90  # of the base color; the metallic-roughness texture holds numbers and is always lossless
WEBP_EFFORT = 1  # 0 .. 6; more effort costs seconds and saves a few per cent
PNG_LEVEL = 4


@dataclass(slots=True)
class Buffer:
    """A growing binary buffer with its views, each aligned to four bytes."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, int]] = field(default_factory=list)

    def add(self, content: bytes, target: int | None = None) -> int:
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self.views.append(view)
        self.data.extend(content)
        return len(self.views) - 1


def build_gltf(
    asset: Asset,
    texture_format: str = "webp",  # webp or png
    quality: int | None = WEBP_QUALITY,  # of the WebP base color; None is lossless
) -> tuple[dict[str, Any], bytes]:
    """The JSON document (one buffer, without uri) and the buffer's bytes."""
    mesh, material = asset.mesh, asset.material
    buffer = Buffer()
    accessors: list[dict[str, Any]] = []

    def attribute(values: Tensor, kind: str, **more: Any) -> int:
        array = values.detach().cpu().numpy().astype("<f4")
        view = buffer.add(array.tobytes(), ARRAY_BUFFER)
        accessors.append(
            {"bufferView": view, "componentType": FLOAT, "count": len(array), "type": kind, **more}
        )
        return len(accessors) - 1

    indices, component = index_array(mesh.faces, len(mesh.vertices))
    accessors.append(
        {
            "bufferView": buffer.add(indices.tobytes(), ELEMENT_ARRAY_BUFFER),
            "componentType": component,
            "count": int(indices.size),
            "type": "SCALAR",
        }
    )
    points = to_y_up(mesh.vertices)
    attributes = {
        "POSITION": attribute(points, "VEC3", min=points.amin(0).tolist(), max=points.amax(0).tolist())
    }
    if mesh.normals is not None:
        attributes["NORMAL"] = attribute(to_y_up(mesh.normals), "VEC3")
    if mesh.uvs is not None:
        attributes["TEXCOORD_0"] = attribute(mesh.uvs, "VEC2")

    with ThreadPoolExecutor(2) as pool:  # the encoders release the interpreter lock
        images = list(
            pool.map(
                lambda job: encode_image(*job),
                [
                    (material.base_color, texture_format, quality),
                    (material.metallic_roughness, texture_format, None),
                ],
            )
        )
    mime = f"image/{texture_format}"
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "trellis"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "meshes": [
            {"name": "asset", "primitives": [{"attributes": attributes, "indices": 0, "material": 0}]}
        ],
        "materials": [gltf_material(asset)],
        "samplers": [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": CLAMP_TO_EDGE,
                "wrapT": CLAMP_TO_EDGE,
            }
        ],
        "images": [
            {"bufferView": buffer.add(image), "mimeType": mime, "name": name}
            for image, name in zip(images, ("base_color", "metallic_roughness"), strict=True)
        ],
        "textures": [gltf_texture(number, texture_format) for number in (0, 1)],
        "accessors": accessors,
        "bufferViews": buffer.views,
    }
    if asset.extras:
        document["asset"]["extras"] = plain(asset.extras)
    if texture_format == "webp":
        document["extensionsUsed"] = document["extensionsRequired"] = ["EXT_texture_webp"]
    buffer.data.extend(b"\0" * (-len(buffer.data) % 4))
    document["buffers"] = [{"byteLength": len(buffer.data)}]
    return document, bytes(buffer.data)


def texture_format_of(asset: Asset) -> str:
    """The format its export settings ask for."""
    export = asset.extras.get("export")
    return str(export.get("texture_format", "webp")) if isinstance(export, Mapping) else "webp"


def to_y_up(vectors: Tensor) -> Tensor:
    """(x, y, z) with z up -> (x, z, -y) with y up; positions or normals [V, 3]."""
    x, y, z = vectors.detach().cpu().float().unbind(1)
    return torch.stack([x, z, -y + 0.0], dim=1)


def from_y_up(vectors: Tensor) -> Tensor:
    """The inverse of `to_y_up`."""
    x, y, z = vectors.unbind(1)
    return torch.stack([x, -z + 0.0, y], dim=1)


def index_array(faces: Tensor, vertex_count: int) -> tuple[NDArray[Any], int]:
    """Vertex indices in the smallest type that holds them (65,535 is reserved)."""
    if vertex_count <= 65535:
        return faces.cpu().numpy().astype("<u2"), UNSIGNED_SHORT
    return faces.cpu().numpy().astype("<u4"), UNSIGNED_INT


def gltf_material(asset: Asset) -> dict[str, Any]:
    material = asset.material
    result: dict[str, Any] = {
        "name": "material",
        "pbrMetallicRoughness": {
            "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
            "baseColorTexture": {"index": 0},
            "metallicFactor": 1.0,
            "roughnessFactor": 1.0,
            "metallicRoughnessTexture": {"index": 1},
        },
        "alphaMode": material.alpha_mode,
        "doubleSided": material.double_sided,
    }
    if material.alpha_mode == "MASK":
        result["alphaCutoff"] = material.alpha_cutoff
    return result


def gltf_texture(image: int, texture_format: str) -> dict[str, Any]:
    if texture_format == "webp":
        return {"sampler": 0, "extensions": {"EXT_texture_webp": {"source": image}}}
    return {"sampler": 0, "source": image}


def encode_image(image: Tensor, texture_format: str, quality: int | None = None) -> bytes:
    """Encode uint8 [H, W, 3 or 4] as PNG or WebP (`quality` None: lossless); opaque images as RGB."""
    array = image.cpu().numpy()
    if array.shape[2] == 4 and bool(np.all(array[:, :, 3] == 255)):
        array = array[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(array))
    file = BytesIO()
    if texture_format == "png":
        picture.save(file, "PNG", compress_level=PNG_LEVEL)
    elif texture_format == "webp" and quality is None:
        picture.save(file, "WEBP", lossless=True, method=WEBP_EFFORT, quality=20, exact=True)
    elif texture_format == "webp":
        picture.save(file, "WEBP", quality=quality, method=WEBP_EFFORT, exact=True)
    else:
        raise OutputError(f"unknown texture format `{texture_format}`", hint="use `webp` or `png`")
    return file.getvalue()


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
