"""Reading the pictures of a run and preparing each by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trellis_core.errors import TrellisError
from trellis_core.image.preprocess import BackgroundRemover, has_transparency
from trellis_core.io.images import read_picture
from trellis_core.runtime import Runtime
from trellis_core.sampling.condition import Condition, Picture

Crop = Callable[[Image.Image, BackgroundRemover | None], Image.Image]
"""(picture, remover; None keeps the whole picture) -> the object on black, as an image encoder takes it."""


def prepare_pictures(
    condition: Condition,
    crop: Crop,
    remover: BackgroundRemover | None,
    chosen: str,  # what to say when the remover was needed
    runtime: Runtime,
) -> list[Image.Image]:
    """Read, cut out and crop every picture; errors name the picture when there are several."""
    prepared: list[Image.Image] = []
    count = len(condition.pictures)
    if count:
        runtime.report("picture", 0, count)
    for number, picture in enumerate(condition.pictures, start=1):
        which = f"picture {number}: " if count > 1 else ""
        try:
            image, notice = prepare_picture(picture, crop, remover, chosen)
        except TrellisError as error:
            raise type(error)(which + error.message, error.hint) from error
        prepared.append(image)
        runtime.report("picture", number, count, notice and which + notice)
    return prepared


def prepare_picture(
    picture: Picture, crop: Crop, remover: BackgroundRemover | None, chosen: str = ""
) -> tuple[Image.Image, str]:
    """The prepared picture, and what there is to say about it."""
    image = picture if isinstance(picture, Image.Image) else read_picture(Path(picture))
    notices = [image.info.get("notice", ""), "" if has_transparency(image) else chosen]
    return crop(image, remover), "; ".join(filter(None, notices))
