"""GLB: glTF 2.0 in one binary file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.gltf import WEBP_QUALITY, build_gltf, texture_format_of

MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"


def write_glb(
    asset: Asset,
    path: Path,
    *,
    texture_format: str | None = None,  # webp or png; None takes the asset's export settings
    quality: int | None = WEBP_QUALITY,  # of a WebP base color; None is lossless
) -> None:
    """Write an asset as GLB. Raises `OutputError` when the file cannot be written."""
    write_file(Path(path), glb_parts(asset, texture_format or texture_format_of(asset), quality))


def glb_parts(asset: Asset, texture_format: str, quality: int | None) -> list[bytes]:
    document, binary = build_gltf(asset, texture_format, quality)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return [
        struct.pack("<4sII", MAGIC, VERSION, length),
        struct.pack("<I4s", len(text), JSON_CHUNK),
        text,
        struct.pack("<I4s", len(binary), BINARY_CHUNK),
        binary,
    ]
