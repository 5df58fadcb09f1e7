"""A material's images, encoded: several at once, as the encoders release the interpreter lock.

Colors may be lossy; roughness, metallic, occlusion and normals are numbers and never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import OutputError
from trellis_core.geometry.types import Material

WEBP_QUALITY = 90  # of the base color
# Methods 0 .. 6 of WebP. Measured on a texture of 4096^2, one core: lossy 0, 1, 2 take 0.4 s for 478, 489
# and 418 KiB; lossless 0 takes 0.8 s for 3,107 KiB, 1 takes 2.2 s for 2,651 KiB.
LOSSY_EFFORT, LOSSLESS_EFFORT = 2, 0
JPEG_QUALITY = 92
PNG_LEVEL = 4
MIME = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
SUFFIX = {"webp": ".webp", "png": ".png", "jpeg": ".jpg"}
THREADS = 8


@dataclass(frozen=True, slots=True)
class EncodedImage:
    name: str
    kind: str  # a key of MIME
    data: bytes


def encode_images(
    images: Sequence[tuple[str, Tensor, bool]],  # name, uint8 [H, W, 3 or 4], whether it may be lossy
    texture_format: str,  # webp, png or jpeg; jpeg stands for PNG where it would lose something that counts
    quality: int | None = WEBP_QUALITY,  # of lossy WebP; None is lossless
) -> list[EncodedImage]:
    """Encode images side by side."""
    if texture_format not in MIME:
        raise OutputError(f"unknown texture format `{texture_format}`", hint=f"use one of: {', '.join(MIME)}")

    def encode(image: tuple[str, Tensor, bool]) -> EncodedImage:
        name, pixels, lossy = image
        kind = texture_format
        if kind == "jpeg" and not (lossy and is_opaque(pixels)):
            kind = "png"
        return EncodedImage(name, kind, encode_image(pixels, kind, quality if lossy else None))

    with ThreadPoolExecutor(min(THREADS, max(len(images), 1))) as pool:
        return list(pool.map(encode, images))


def encode_image(image: Tensor, texture_format: str, quality: int | None = None) -> bytes:
    """Encode uint8 [H, W, 3 or 4] as PNG, JPEG or WebP (`quality` None: lossless); opaque images as RGB."""
    array = image.cpu().numpy()
    if array.shape[2] == 4 and is_opaque(image):
        array = array[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(array))
    file = BytesIO()
    if texture_format == "png":
        picture.save(file, "PNG", compress_level=PNG_LEVEL)
    elif texture_format == "jpeg":
        picture.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    elif texture_format == "webp" and quality is None:
        picture.save(file, "WEBP", lossless=True, method=LOSSLESS_EFFORT, quality=20, exact=True)
    elif texture_format == "webp":
        picture.save(file, "WEBP", quality=quality, method=LOSSY_EFFORT, exact=True)
    else:
        raise OutputError(f"unknown texture format `{texture_format}`", hint=f"use one of: {', '.join(MIME)}")
    return file.getvalue()


def is_opaque(image: Tensor) -> bool:
    return image.shape[2] < 4 or bool((image[..., 3] == 255).all())


def with_occlusion(material: Material) -> Tensor:  # uint8 [S, S, 3]  occlusion, roughness, metallic
    """The metallic-roughness image with occlusion in its red channel, where there is some."""
    if material.occlusion is None:
        return material.metallic_roughness
    return torch.cat([material.occlusion[..., None], material.metallic_roughness[..., 1:]], dim=2)
