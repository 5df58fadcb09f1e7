"""Pictures of surroundings, for light: Radiance `.hdr`, or any other picture.

Ward, "Real Pixels", Graphics Gems II (1991): red, green, blue and a common exponent.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.io.images import MAX_PIXELS, read_picture

HDR = (".hdr", ".pic", ".rgbe")
SIZE = re.compile(rb"-Y (\d+) \+X (\d+)\n")
SHORT, LONG = 8, 0x7FFF  # widths that the run-length coding of whole rows is for


def read_environment(path: str | Path) -> Tensor:  # float32 [H, W, 3]  linear radiance
    """Read a latitude-longitude picture, twice as wide as high, up at the top. Raises `InputError`."""
    path = Path(path)
    if path.suffix.lower() in HDR:
        radiance = read_hdr(path)
    else:
        coded = np.asarray(read_picture(path).convert("RGB"), np.float32) / 255
        low, high = coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
        radiance = torch.from_numpy(np.where(coded <= 0.04045, low, high).astype(np.float32))
    height, width = radiance.shape[:2]
    if not 1.8 < width / height < 2.2:
        raise InputError(
            f"`{path.name}` is {width} x {height} pixels: surroundings must be twice as wide as high",
            hint="give a latitude-longitude (equirectangular) picture",
        )
    if not bool(torch.isfinite(radiance).all()) or float(radiance.max()) <= 0:
        raise InputError(f"`{path.name}` gives no light", hint="give a picture that is not all black")
    return radiance


def read_hdr(path: Path) -> Tensor:  # float32 [H, W, 3]
    """Read a Radiance picture, run-length coded or not. Raises `InputError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror or error}", hint="check the path") from error
    header, blank, _ = content.partition(b"\n\n")
    size = SIZE.match(content, len(header) + len(blank))
    if not content.startswith(b"#?") or b"32-bit_rle_rgbe" not in header or size is None:
        raise InputError(f"`{path.name}` is not a Radiance picture", hint="save it as `.hdr` again")
    height, width = int(size[1]), int(size[2])
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(f"`{path.name}` is too large: {width} x {height} pixels", hint="shrink it first")
    try:
        pixels = decode_rows(content, size.end(), height, width)
    except (IndexError, ValueError) as error:
        raise InputError(f"`{path.name}` is damaged or cut short", hint="download it again") from error
    exponent = pixels[..., 3:].astype(np.int32)
    scale = np.where(exponent > 0, np.ldexp(np.float32(1), exponent - 136), 0)
    return torch.from_numpy((pixels[..., :3] * scale).astype(np.float32))


def decode_rows(data: bytes, at: int, height: int, width: int) -> NDArray[np.uint8]:  # [H, W, 4]
    if not SHORT <= width <= LONG or data[at : at + 2] != b"\x02\x02":
        return np.frombuffer(data, np.uint8, height * width * 4, at).reshape(height, width, 4)
    pixels = np.empty((height, width, 4), np.uint8)
    for row in pixels:
        if data[at : at + 2] != b"\x02\x02" or int.from_bytes(data[at + 2 : at + 4], "big") != width:
            raise ValueError("a row starts with something else than its width")
        at += 4
        for channel in range(4):
            x = 0
            while x < width:
                count = data[at]
                if count > 128:  # a run of one value
                    count -= 128
                    row[x : x + count, channel] = data[at + 1]
                    at += 2
                else:
                    row[x : x + count, channel] = np.frombuffer(data, np.uint8, count, at + 1)
                    at += 1 + count
                x += count
            if x != width:
                raise ValueError("a row is longer than the picture is wide")
    return pixels
