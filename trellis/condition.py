"""From what a run starts with to what its encoders take.

Checks and prepares; the networks that encode it are the pipeline's business.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trellis_core.errors import InputError, TrellisError
from trellis_core.image.preprocess import (
    MASK_HINT,
    OPAQUE,
    BackgroundRemover,
    has_transparency,
    premultiply,
    shrink,
    to_8bit,
)
from trellis_core.io.images import read_picture
from trellis_core.models.matting import background_remover
from trellis_core.models.tokenizer import Tokenizer, split
from trellis_core.runtime import Runtime
from trellis_core.sampling.condition import Condition, Picture

MARGIN = 1.2  # side of the crop in units of the object's
MAX_SIDE = 1024  # pixels; larger pictures without transparency are shrunk before they are cut out


def prepare_pictures(condition: Condition, size: int, runtime: Runtime) -> list[Image.Image]:
    """Read, cut out and crop every picture by itself: RGB, `size` pixels square, object on black."""
    prepared: list[Image.Image] = []
    count = len(condition.pictures)
    if count:
        runtime.report("picture", 0, count)
    remover, chosen = background_remover(condition.background, runtime)
    for number, picture in enumerate(condition.pictures, start=1):
        which = f"picture {number}: " if count > 1 else ""
        try:
            image, notice = prepare_picture(picture, size, remover, chosen)
        except TrellisError as error:
            raise type(error)(which + error.message, error.hint) from error
        prepared.append(image)
        runtime.report("picture", number, count, notice and which + notice)
    return prepared


def prepare_picture(
    picture: Picture,
    size: int,
    remover: BackgroundRemover | None,  # None keeps the whole picture
    chosen: str = "",  # what to say when the remover was needed
) -> tuple[Image.Image, str]:
    """The prepared picture, and what there is to say about it."""
    image = picture if isinstance(picture, Image.Image) else read_picture(Path(picture))
    notices = [image.info.get("notice", ""), "" if has_transparency(image) else chosen]
    return crop_object(image, remover, size), "; ".join(filter(None, notices))


def crop_object(
    image: Image.Image,
    remove_background: BackgroundRemover | None,  # None keeps the whole picture
    size: int,
) -> Image.Image:
    """RGB, `size` pixels square: the object with a margin, on black, as released.

    Transparency in the picture is the mask, and then the picture is not shrunk first. Raises `InputError`
    when the mask is empty or the object is smaller than 2 pixels.
    """
    image = to_8bit(image)
    if not has_transparency(image):
        rgb = shrink(image.convert("RGB"), MAX_SIDE)
        mask = Image.new("L", rgb.size, 255) if remove_background is None else remove_background(rgb.copy())
        if mask.size != rgb.size:
            raise ValueError(f"the background mask is {mask.size}, the picture {rgb.size}")
        image = rgb.convert("RGBA")
        image.putalpha(mask.convert("L"))
    square = image.crop(object_square(image))
    return premultiply(square.resize((size, size), Image.Resampling.LANCZOS))


def object_square(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the square around the opaque pixels; may reach beyond the picture."""
    x0, y0, x1, y1 = object_box(image)
    half = int(MARGIN * max(x1 - x0, y1 - y0)) // 2
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


def read_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    length: int,  # tokens, start and end among them
) -> tuple[tuple[int, ...], str]:  # ids, note
    """A prompt as the text encoder takes it, and what there is to say: where it was cut.

    Raises `InputError` for a prompt without a word.
    """
    if not any(any(map(str.isalnum, word)) for word in split(prompt)):
        raise InputError("the prompt is empty", hint='say what to make, for example "a tall red chair"')
    encoded = tokenizer.encode(prompt, length)
    if not encoded.dropped:
        return encoded.ids, ""
    return (
        encoded.ids,
        f"the prompt was cut to its first {len(encoded.words)} words ({length - 2} tokens fit)",
    )
