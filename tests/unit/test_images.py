"""Reading pictures and writing PNG files.

Properties: whatever the file's mode, `read_picture` gives upright 8-bit RGB or RGBA with the right values;
what is no usable picture is an `InputError` with a hint, and huge pictures are refused before they are
decoded; writing leaves a whole file or none.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trellis_core.errors import InputError, OutputError
from trellis_core.io.images import MAX_PIXELS, read_picture, write_png

RED, BLUE = (200, 30, 40), (20, 60, 220)


def two_halves(width: int = 24, height: int = 16) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_lossless_rgb_files_are_read_as_they_are(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    two_halves().save(tmp_path / f"a.{suffix}", **options)
    image = read_picture(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert image.tobytes() == two_halves().tobytes()


def test_gray_with_alpha_becomes_rgba(tmp_path):
    image = Image.new("LA", (16, 16), (90, 0))
    image.paste((120, 255), (4, 4, 12, 12))
    image.save(tmp_path / "la.png")
    read = read_picture(tmp_path / "la.png")
    assert read.mode == "RGBA"
    assert read.getpixel((0, 0)) == (90, 90, 90, 0)
    assert read.getpixel((8, 8)) == (120, 120, 120, 255)


def test_palette_transparency_becomes_alpha(tmp_path):
    two_halves().quantize(4).save(tmp_path / "p.png", transparency=0)
    read = read_picture(tmp_path / "p.png")
    assert read.mode == "RGBA"
    assert read.getchannel("A").getextrema() == (0, 255)


def test_a_transparent_color_key_becomes_alpha(tmp_path):
    two_halves().save(tmp_path / "key.png", transparency=RED)
    read = read_picture(tmp_path / "key.png")
    assert read.getpixel((0, 0))[3] == 0
    assert read.getpixel((23, 0)) == (*BLUE, 255)


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    samples = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    Image.fromarray(samples).save(tmp_path / "deep.png")
    read = np.asarray(read_picture(tmp_path / "deep.png"))[..., 0]
    assert np.abs(read.astype(float) - samples / 257).max() <= 0.5 + 1e-6


def test_cmyk_becomes_rgb(tmp_path):
    two_halves(32, 32).convert("CMYK").save(tmp_path / "print.jpg", quality=95, subsampling=0)
    read = read_picture(tmp_path / "print.jpg")
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read)[4, 4].astype(int) - RED).max() < 12


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    two_halves(24, 16).save(tmp_path / "turned.png", exif=exif)
    read = read_picture(tmp_path / "turned.png")
    assert read.size == (16, 24)
    assert read.getpixel((8, 2)) == RED
    assert read.getpixel((8, 21)) == BLUE


def test_of_an_animation_the_first_frame_is_used_and_said_so(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    read = read_picture(tmp_path / "moving.gif")
    assert "moving.gif" in read.info["notice"]
    assert np.abs(np.asarray(read)[0, 0, :3].astype(int) - RED).max() < 4
    two_halves().save(tmp_path / "still.png")
    assert "notice" not in read_picture(tmp_path / "still.png").info


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert "there is no picture" in refusal(tmp_path / "missing.png")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is text", bytes(1000)], ids=["empty", "text", "zeros"]
)
def test_other_files_are_no_pictures(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "is not a picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_pictures_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path)
    assert "damaged" in message or "not a picture" in message


@settings(max_examples=150, deadline=None)
@given(
    suffix=st.sampled_from(["png", "jpeg", "webp", "tiff", "gif", "bmp", "ico", "tga", "ppm"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path_factory, suffix, changes):
    buffer = io.BytesIO()
    two_halves().save(buffer, format=suffix)
    data = bytearray(buffer.getvalue())
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.mktemp("damaged") / f"a.{suffix}"
    path.write_bytes(data)
    try:
        assert read_picture(path).mode in ("RGB", "RGBA")
    except InputError as error:
        assert error.hint


def test_tiny_and_invisible_pictures_are_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    assert "1 x 1" in refusal(tmp_path / "dot.png")
    assert "fully transparent" in refusal(tmp_path / "glass.png")


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 40_000])
def test_huge_pictures_are_refused_by_their_header(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    assert "megapixels" in refusal(tmp_path / "huge.png")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_png_files_keep_every_pixel(tmp_path, shape):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = write_png(tmp_path / "a.png", pixels)
    assert np.array_equal(np.asarray(Image.open(path)), pixels.numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_png_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "taken" / "a.png", np.zeros((4, 4), np.uint8))
