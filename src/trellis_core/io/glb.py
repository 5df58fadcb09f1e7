"""GLB: glTF 2.0 in one binary file."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.gltf import WEBP_QUALITY, GltfSettings, build_gltf

MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"


def write_glb(
    asset: Asset,
    path: Path,
    *,
    texture_format: str | None = None,  # webp, png or jpeg; None takes the asset's export settings
    quality: int | None = WEBP_QUALITY,  # of a WebP base color; None is lossless
    settings: GltfSettings | None = None,
    lods: Sequence[Asset] = (),  # coarser and coarser (MSFT_lod)
) -> None:
    """Write an asset as GLB. Raises `OutputError` when the file cannot be written."""
    settings = settings or GltfSettings(texture_format=texture_format, quality=quality)
    write_file(Path(path), glb_parts(asset, settings, lods))


def glb_parts(asset: Asset, settings: GltfSettings, lods: Sequence[Asset] = ()) -> list[bytes]:
    """The file's bytes, in pieces."""
    document, buffer = build_gltf(asset, settings, lods)
    binary = bytes(buffer)
    text = json_text(document)
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return [
        struct.pack("<4sII", MAGIC, VERSION, length),
        struct.pack("<I4s", len(text), JSON_CHUNK),
        text,
        struct.pack("<I4s", len(binary), BINARY_CHUNK),
        binary,
    ]


def json_text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
