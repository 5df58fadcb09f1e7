"""Read any picture people have, write PNG files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.image.preprocess import to_8bit
from trellis_core.io.files import write_file

MAX_PIXELS = 150_000_000  # below the limit at which Pillow itself refuses
MIN_SIDE = 8
FORMATS_HINT = "give a PNG, JPEG, WebP, TIFF, BMP or GIF file"
# what Pillow's decoders raise on damaged files
DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, IndexError, struct.error, zlib.error)


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB or RGBA, 8 bits, upright.

    Palette and gray transparency becomes alpha, 16-bit samples are scaled, CMYK is converted. Of several
    frames the first is used, and `image.info["notice"]` says so. Raises `InputError` for what is no usable
    picture; size is judged by the header, before anything is decoded.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no picture `{path}`", hint="check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise InputError(f"`{path}` is {kind}, not a picture", hint="give the path of one picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about damaged metadata that does not matter here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit decides
        try:
            with Image.open(path) as file:
                check_size(path, *file.size)
                notice = frames_notice(path, file)
                image = to_8bit(ImageOps.exif_transpose(file))
                image.load()
        except Image.DecompressionBombError as error:
            raise too_large(path, "") from error
        except UnidentifiedImageError as error:
            raise InputError(f"`{path}` is not a picture", hint=FORMATS_HINT) from error
        except PermissionError as error:
            raise InputError(
                f"`{path}` must not be read", hint="check the permissions of the file"
            ) from error
        except DAMAGE as error:
            raise InputError(f"`{path}` is damaged or cut short", hint="save or download it again") from error
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[1] == 0:
        raise InputError(
            f"`{path}` is fully transparent: there is nothing to see",
            hint="give a picture that shows an object",
        )
    image.info = {"notice": notice} if notice else {}
    return image


def check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise too_large(path, f"{width} x {height} pixels, ")
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"`{path}` is too small to show an object: {width} x {height} pixels",
            hint="give a picture of at least 256 x 256 pixels",
        )


def too_large(path: Path, size: str) -> InputError:
    return InputError(
        f"`{path}` is too large: {size}more than {MAX_PIXELS // 1_000_000} megapixels",
        hint="shrink it first; 1024 pixels on the longer side are enough",
    )


def frames_notice(path: Path, file: Image.Image) -> str:
    # MPO files are photographs with a preview inside
    if getattr(file, "is_animated", False) and file.format != "MPO":
        return f"`{path.name}` has several frames: the first one is used"
    return ""


def write_png(path: str | Path, array: np.ndarray | Tensor) -> Path:
    """Write uint8 [H, W], [H, W, 3] or [H, W, 4] as PNG, whole or not at all."""
    pixels = array.cpu().numpy() if isinstance(array, Tensor) else array
    if pixels.dtype != np.uint8:
        raise ValueError(f"expected uint8 pixels, got {pixels.dtype}")
    return write_image(path, Image.fromarray(pixels), format="PNG")


def write_image(path: str | Path, image: Image.Image, **options: object) -> Path:
    """Encode with Pillow's `options` and write, whole or not at all."""
    path = Path(path)
    encoded = io.BytesIO()
    image.save(encoded, **options)  # type: ignore[arg-type]
    write_file(path, [encoded.getvalue()])
    return path
