"""Films: MP4, WebP and GIF.

Properties: independent readers find the frames in order, their number, speed and colors; transparency is kept
where the format has it and refused where not; what cannot be written leaves no file; MP4 without its package
says how to get it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import OutputError, UsageError
from trellis_core.io.video import FILM_ENCODERS, write_film

needs_av = pytest.mark.skipif(find_spec("av") is None, reason="MP4 needs the package `av`")
EVERY_SUFFIX = [pytest.param(s, marks=needs_av if s == ".mp4" else ()) for s in FILM_ENCODERS]
COLORS = [(200, 60, 50), (30, 180, 220), (240, 240, 240), (10, 12, 14), (90, 200, 40)]


def plain_frames(channels: int = 3, side: int = 32) -> list[Tensor]:
    return [
        torch.tensor([*color, 255][:channels], dtype=torch.uint8).expand(side, side, channels)
        for color in COLORS
    ]


def decoded(path) -> list[np.ndarray]:
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as film:
            return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    with Image.open(path) as film:
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.array(film.convert("RGB")))
        return frames


@pytest.mark.parametrize("suffix", EVERY_SUFFIX)
def test_independent_readers_find_the_frames_and_their_colors(tmp_path, suffix):
    path = write_film(plain_frames(), tmp_path / f"a{suffix}", fps=10)
    frames = decoded(path)
    assert len(frames) == len(COLORS)
    for frame, color in zip(frames, COLORS, strict=True):
        assert np.abs(frame[16, 16].astype(int) - color).max() <= 4


@needs_av
def test_opencv_plays_the_mp4_at_its_speed(tmp_path):
    film = cv2.VideoCapture(str(write_film(plain_frames(), tmp_path / "a.mp4", fps=12.5)))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == len(COLORS)
    found, first = film.read()
    assert found and np.abs(first[16, 16, ::-1].astype(int) - COLORS[0]).max() <= 4


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_repeat_for_ever_at_their_speed(tmp_path, suffix):
    with Image.open(write_film(plain_frames(), tmp_path / f"a{suffix}", fps=10)) as film:
        assert film.info["loop"] == 0
        film.seek(1)
        film.load()
        assert film.info["duration"] == 100


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_transparency_is_kept(tmp_path, suffix):
    frames = [frame.clone() for frame in plain_frames(channels=4)]
    for frame in frames:
        frame[:16] = 0
    with Image.open(write_film(frames, tmp_path / f"a{suffix}", fps=10)) as film:
        for number in range(film.n_frames):
            film.seek(number)
            alpha = np.array(film.convert("RGBA"))[..., 3]
            assert alpha[4, 4] == 0 and alpha[28, 28] == 255


@needs_av
def test_mp4_refuses_what_it_cannot_hold_and_leaves_no_file(tmp_path):
    with pytest.raises(UsageError, match="transparent"):
        write_film(plain_frames(channels=4), tmp_path / "a.mp4", fps=10)
    with pytest.raises(UsageError, match="33 x 33"):
        write_film(plain_frames(side=33), tmp_path / "a.mp4", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_film_of_another_kind_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(OutputError) as refused:
        write_film(plain_frames(), tmp_path / "a.avi", fps=10)
    assert ".webp" in refused.value.hint


def test_mp4_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OutputError) as refused:
        write_film(plain_frames(), tmp_path / "a.mp4", fps=10)
    assert "pip install" in refused.value.hint and ".webp" in refused.value.hint


@pytest.mark.parametrize("suffix", EVERY_SUFFIX)
def test_a_film_that_stops_half_way_leaves_no_file(tmp_path, suffix):
    def frames():
        yield from plain_frames()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_film(frames(), tmp_path / f"a{suffix}", fps=10)
    assert list(tmp_path.iterdir()) == []
