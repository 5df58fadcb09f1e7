"""From what a run starts with to what its encoders take.

Checks and prepares; the networks that encode it are the pipeline's business.
"""

from __future__ import annotations

from functools import partial

from PIL import Image

from trellis_core.errors import InputError
from trellis_core.image.preprocess import (
    BackgroundRemover,
    cut_out,
    has_transparency,
    object_square,
    premultiply,
    shrink,
    to_8bit,
)
from trellis_core.io import pictures
from trellis_core.models.matting import background_remover
from trellis_core.models.tokenizer import Tokenizer, split
from trellis_core.runtime import Runtime
from trellis_core.sampling.condition import Condition

MARGIN = 1.2  # side of the crop in units of the object's
MAX_SIDE = 1024  # pixels; larger pictures without transparency are shrunk before they are cut out


def prepare_pictures(condition: Condition, size: int, runtime: Runtime) -> list[Image.Image]:
    """Read, cut out and crop every picture by itself: RGB, `size` pixels square, object on black."""
    remover, chosen = background_remover(condition.background, runtime)
    return pictures.prepare_pictures(condition, partial(crop_object, size=size), remover, chosen, runtime)


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
        image = cut_out(shrink(image.convert("RGB"), MAX_SIDE), remove_background)
    square = image.crop(object_square(image, MARGIN))
    return premultiply(square.resize((size, size), Image.Resampling.LANCZOS))


def read_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    length: int,  # tokens, start and end among them
) -> tuple[tuple[int, ...], str]:  # ids, note
    """A prompt as the text encoder takes it, and what there is to say: it was cut, it is not English.

    Raises `InputError` for a prompt without a word.
    """
    if not any(any(map(str.isalnum, word)) for word in split(prompt)):
        raise InputError("the prompt is empty", hint='say what to make, for example "a tall red chair"')
    encoded = tokenizer.encode(prompt, length)
    notes = []
    if encoded.dropped:
        notes.append(f"the prompt was cut to its first {len(encoded.words)} words ({length - 2} tokens fit)")
    letters = [letter for letter in prompt if letter.isalpha()]
    if 2 * sum(map(str.isascii, letters)) < len(letters):
        notes.append("the model was trained on English captions: other languages tell it little")
    return encoded.ids, "; ".join(notes)
