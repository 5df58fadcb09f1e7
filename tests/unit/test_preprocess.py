"""Preprocessing of pictures for the image encoders. Golden values are checked by the parity harness.

Properties: the result is a square RGB on black around the object; the given picture is never changed; the
background remover is asked only when there is no transparency; masks without an object are refused in words.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trellis_core.errors import InputError
from trellis_core.image.preprocess import preprocess_picture, to_8bit


def never(image: Image.Image) -> Image.Image:
    raise AssertionError("the background remover must not be called")


def object_at(
    box: tuple[int, int, int, int], size: tuple[int, int] = (60, 40), alpha: int = 255
) -> Image.Image:
    image = Image.new("RGBA", size, (255, 255, 255, 0))
    image.paste((200, 100, 50, alpha), box)
    return image


@settings(deadline=None, max_examples=50)
@given(x=st.integers(0, 40), y=st.integers(0, 20), width=st.integers(4, 20), height=st.integers(4, 20))
def test_the_result_is_a_square_as_large_as_the_object(x, y, width, height):
    image = object_at((x, y, x + width, y + height))
    result = preprocess_picture(image, never)
    side = (max(width, height) - 1) // 2 * 2
    assert result.mode == "RGB"
    assert result.size == (side, side)
    assert result.getpixel((side // 2, side // 2)) == (200, 100, 50)


def test_transparent_pixels_turn_black_and_half_transparent_ones_darker():
    image = object_at((10, 10, 30, 30))
    image.putpixel((15, 15), (200, 100, 50, 128))
    image.putpixel((16, 15), (255, 255, 255, 0))
    result = preprocess_picture(image, never)
    assert result.getpixel((5, 5)) == (100, 50, 25)
    assert result.getpixel((6, 5)) == (0, 0, 0)


def test_beyond_the_picture_is_black():
    result = preprocess_picture(object_at((0, 0, 30, 10)), never)
    assert result.size == (28, 28)
    assert result.getpixel((10, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "I;16", "F"])
def test_pictures_without_transparency_ask_the_background_remover_once(mode):
    asked = []

    def left_half(image: Image.Image) -> Image.Image:
        asked.append(image.mode)
        mask = Image.new("L", image.size)
        mask.paste(255, (0, 0, 20, 40))
        return mask

    result = preprocess_picture(Image.new(mode, (60, 40)), left_half)
    assert asked == ["RGB"]
    assert result.size == (38, 38)


def test_an_opaque_alpha_channel_does_not_count():
    with pytest.raises(AssertionError, match="must not be called"):
        preprocess_picture(Image.new("RGBA", (30, 30), (1, 2, 3, 255)), never)


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa"])
def test_every_kind_of_alpha_counts(mode):
    rgba = object_at((10, 10, 30, 30))
    image = rgba.convert("LA").convert(mode) if mode == "La" else rgba.convert(mode)
    if mode == "PA":
        image = rgba.convert("RGB").quantize(4)
        image.putalpha(rgba.getchannel("A"))
    assert image.mode == mode
    assert preprocess_picture(image, never).size == (18, 18)


def test_keeping_the_background_keeps_the_whole_picture():
    result = preprocess_picture(Image.new("RGB", (50, 31), (9, 9, 9)), None)
    assert result.size == (48, 48)
    assert result.getpixel((24, 24)) == (9, 9, 9)
    assert result.getpixel((24, 2)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_given_picture_is_never_changed(mode):
    image = Image.new(mode, (40, 40), (5, 6, 7))
    before = image.tobytes()

    def vandal(picture: Image.Image) -> Image.Image:
        picture.paste((0, 0, 0), (0, 0, 40, 40))
        return Image.new("L", picture.size, 255)

    preprocess_picture(image, vandal)
    assert image.tobytes() == before
    assert image.mode == mode


@pytest.mark.parametrize(("size", "max_side", "expected"), [((200, 100), 50, 48), ((100, 100), 100, 98)])
def test_large_pictures_shrink_before_the_crop(size, max_side, expected):
    assert preprocess_picture(Image.new("RGB", size), None, max_side).size == (expected, expected)


@pytest.mark.parametrize("alpha", [0, 204])
def test_an_empty_mask_is_refused(alpha):
    with pytest.raises(InputError, match="mask is empty") as caught:
        preprocess_picture(object_at((10, 10, 20, 20), alpha=alpha), never)
    assert "--background" in caught.value.hint


@pytest.mark.parametrize("side", [1, 2])
def test_an_object_of_a_pixel_or_two_is_refused(side):
    with pytest.raises(InputError, match=f"only {side} x {side}"):
        preprocess_picture(object_at((10, 10, 10 + side, 10 + side)), never)


def test_a_picture_that_shrinks_to_nothing_is_refused():
    with pytest.raises(InputError, match="too thin"):
        preprocess_picture(Image.new("RGB", (4000, 1)), None)


@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1), (np.float32, 255)]
)
def test_deep_samples_keep_their_white(dtype, white):
    samples = np.array([[0, white]] * 2).astype(dtype)
    assert np.asarray(to_8bit(Image.fromarray(samples)))[0, :, 0].tolist() == [0, 255]
