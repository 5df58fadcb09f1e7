"""From any picture to what the image encoders see: the object, cropped to a square, on black.

Follows the released preprocessing of TRELLIS.2 to the last bit (its alpha threshold, its crop without margin,
its rounding), but refuses empty masks in words and never changes the picture it is given. The background
remover is any callable from an RGB picture to an "L" mask of the same size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import InputError

OPAQUE = 204  # 0.8 * 255: alpha above this belongs to the object
MASK_HINT = "give a picture with transparency around the object, or choose another `--background`"
THUMBNAIL_SIDE = 128
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

BackgroundRemover = Callable[[Image.Image], Image.Image]


def preprocess_picture(
    image: Image.Image,
    remove_background: BackgroundRemover | None,
    max_side: int = 1024,
) -> Image.Image:
    """Crop `image` to its object: RGB, square, premultiplied on black, shrunk to `max_side` before the crop.

    Transparency in the picture is the mask. Without any, `remove_background` makes one; None keeps the
    whole picture. Raises `InputError` when the mask is empty or the object is smaller than 2 pixels.
    """
    image = shrink(to_8bit(image), max_side)
    if not has_transparency(image):
        image = cut_out(image.convert("RGB"), remove_background)
    return premultiply(image.crop(object_square(image)))


def cut_out(
    rgb: Image.Image,
    remove_background: BackgroundRemover | None,  # None keeps the whole picture
) -> Image.Image:
    """RGBA: the picture with its object's mask as transparency."""
    mask = Image.new("L", rgb.size, 255) if remove_background is None else remove_background(rgb.copy())
    if mask.size != rgb.size:
        raise ValueError(f"the background mask is {mask.size}, the picture {rgb.size}")
    image = rgb.convert("RGBA")
    image.putalpha(mask.convert("L"))
    return image


def to_8bit(image: Image.Image) -> Image.Image:
    """RGBA when the picture carries transparency of any kind, else RGB; deep samples are scaled to 8 bits."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(scale_samples(np.asarray(image))).convert("RGB")
    mode = "RGBA" if image.mode in ALPHA_MODES or "transparency" in image.info else "RGB"
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way
    return image if image.mode == mode else image.convert(mode)


def scale_samples(samples: np.ndarray) -> np.ndarray:
    """uint8 [H, W] from integers (white is 65,535 or the maximum) or floats (white is 1, 255 or 65,535)."""
    finite = np.nan_to_num(samples.astype(np.float64))
    top = float(finite.max(initial=0))
    whites = (1.0, 255.0, 65535.0) if samples.dtype.kind == "f" else (65535.0,)
    white = next((w for w in whites if top <= w), top)
    return np.clip(finite / white * 255 + 0.5, 0, 255).astype(np.uint8)


def has_transparency(image: Image.Image) -> bool:
    return image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255  # type: ignore[operator]


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    width, height = image.size
    scale = max_side / max(width, height)
    if scale >= 1:
        return image
    size = int(width * scale), int(height * scale)
    if min(size) < 1:
        raise InputError(
            f"the picture is {width} x {height} pixels, too thin to show an object",
            hint="give a picture whose sides are less different",
        )
    return image.resize(size, Image.Resampling.LANCZOS)


def object_square(
    image: Image.Image,
    margin: float = 1.0,  # side of the square in units of the object's
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the square around the opaque pixels; may reach beyond the picture."""
    x0, y0, x1, y1 = object_box(image)
    half = int(margin * max(x1 - x0, y1 - y0)) // 2  # the released box leaves out the last row and column
    if half < 1:
        raise InputError(
            f"the object in the picture is only {x1 - x0 + 1} x {y1 - y0 + 1} pixels", hint=MASK_HINT
        )
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return round(cx - half), round(cy - half), round(cx + half), round(cy + half)  # half to even


def object_box(image: Image.Image) -> tuple[int, int, int, int]:
    """First and last column and row of the opaque pixels: left, top, right, bottom."""
    ys, xs = np.nonzero(np.asarray(image.getchannel("A")) > OPAQUE)
    if len(xs) == 0:
        raise InputError("there is no object in the picture: its mask is empty", hint=MASK_HINT)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def premultiply(image: Image.Image) -> Image.Image:
    """RGB on black from RGBA: float32, truncated."""
    pixels = np.asarray(image).astype(np.float32) / 255
    return Image.fromarray((pixels[:, :, :3] * pixels[:, :, 3:] * 255).astype(np.uint8))


def thumbnail(image: Image.Image) -> Tensor:
    """uint8 [h, w, 3], longest side at most THUMBNAIL_SIDE."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return torch.from_numpy(np.array(small.convert("RGB")))
