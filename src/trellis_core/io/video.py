"""Films: one dictionary from suffix to encoder.

MP4 (H.264) needs the package `av`, an extra; WebP and GIF are written by Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from trellis_core.errors import OutputError, UsageError
from trellis_core.io.files import write_file

INSTALL_HINT = "install it with `pip install 'trellis-cli[video]'`, or write an animated `.webp`"
QUALITY = {"crf": "18", "preset": "medium"}  # of H.264: no loss that one sees
BT709, LIMITED = 1, 1  # as numbered in ITU-T H.273, and by FFmpeg
CENTISECOND = 10  # milliseconds, the clock of GIF

Frames = Iterable[Tensor]  # uint8 [H, W, 3 or 4] each, of one size


def write_film(frames: Frames, path: str | Path, *, fps: float) -> Path:
    """Write a film, whole or not at all; the suffix says how. WebP and GIF repeat for ever.

    Frames are taken one by one. Raises `OutputError` for an unknown suffix or without the needed package,
    `UsageError` for frames that the format cannot hold.
    """
    path = Path(path)
    encode = FILM_ENCODERS.get(path.suffix.lower())
    if encode is None:
        known = ", ".join(FILM_ENCODERS)
        raise OutputError(f"cannot write a film as `{path.name}`", hint=f"use one of: {known}")
    write_file(path, [encode(frames, fps)])
    return path


def encode_mp4(frames: Frames, fps: float) -> bytes:
    try:
        import av
    except ImportError as error:
        raise OutputError("MP4 needs the package `av`, which is not installed", hint=INSTALL_HINT) from error
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as film:
        stream: Any = None
        for frame in frames:
            if stream is None:
                height, width = check_mp4(frame)
                stream = film.add_stream("h264", rate=Fraction(fps).limit_denominator(1000), options=QUALITY)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                context = stream.codec_context  # say what the numbers mean, or players guess
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = LIMITED
            picture = av.VideoFrame.from_ndarray(frame.cpu().contiguous().numpy(), format="rgb24")
            coded = picture.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
            film.mux(stream.encode(coded))
        if stream is not None:
            film.mux(stream.encode(None))
    return buffer.getvalue()


def check_mp4(frame: Tensor) -> tuple[int, int]:
    height, width, channels = frame.shape
    if channels != 3:
        raise UsageError("MP4 cannot be transparent", hint="choose a background, or write `.webp`")
    if height % 2 or width % 2:
        raise UsageError(f"MP4 cannot be {width} x {height} pixels", hint="choose an even size")
    return height, width


def encode_webp(frames: Frames, fps: float) -> bytes:
    return encode_animation(frames, round(1000 / fps), format="WEBP", quality=85)


def encode_gif(frames: Frames, fps: float) -> bytes:
    duration = max(2, round(1000 / fps / CENTISECOND)) * CENTISECOND
    return encode_animation(frames, duration, format="GIF", disposal=2)


def encode_animation(frames: Frames, duration: int, **options: Any) -> bytes:
    first, *others = (Image.fromarray(frame.cpu().numpy()) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, save_all=True, append_images=others, duration=duration, loop=0, **options)
    return buffer.getvalue()


FILM_ENCODERS: Mapping[str, Callable[[Frames, float], bytes]] = {
    ".mp4": encode_mp4,
    ".webp": encode_webp,
    ".gif": encode_gif,
}
