"""Background removal without a network.

Properties: objects before plain, dark and softly shaded backgrounds are found with an IoU above 0.9; large
holes stay open, small spots of background color inside the object are filled; the method is chosen by name.
Not tested: busy scenes, which these methods do not promise.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from trellis_core.errors import UsageError
from trellis_core.image.background import choose_background_remover, mask_by_grabcut, mask_by_threshold
from trellis_core.image.components import label_components

SIDE = 160
Y, X = np.mgrid[:SIDE, :SIDE] / SIDE
RADIUS = np.hypot(X - 0.5, Y - 0.45)
every_method = pytest.mark.parametrize("method", [mask_by_threshold, mask_by_grabcut])

BACKGROUNDS = {
    "white": np.ones((SIDE, SIDE, 3)),
    "black": np.zeros((SIDE, SIDE, 3)),
    "gradient": np.stack([0.9 - 0.3 * Y, 0.9 - 0.2 * X, 0.7 + 0.2 * Y * X], -1),
    "noisy": np.random.default_rng(0).normal(0.6, 0.02, (SIDE, SIDE, 3)),
}


def picture(mask: np.ndarray, background: str) -> Image.Image:
    color = np.stack([0.7 - 0.3 * Y, 0.3 + 0.2 * X, 0.25 + 0 * X], -1)
    pixels = np.where(mask[..., None], color, BACKGROUNDS[background])
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def overlap(mask: Image.Image, truth: np.ndarray) -> float:
    found = np.asarray(mask) > 127
    return (found & truth).sum() / (found | truth).sum()


@every_method
@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_a_ring_is_found_and_its_hole_stays_open(method, background):
    ring = (RADIUS < 0.36) & (RADIUS > 0.15)
    mask = method(picture(ring, background))
    assert mask.mode == "L"
    assert mask.size == (SIDE, SIDE)
    assert overlap(mask, ring) > 0.9


@every_method
def test_a_small_spot_of_background_color_belongs_to_the_object(method):
    disc = RADIUS < 0.36
    spotted = disc & (np.hypot(X - 0.45, Y - 0.4) > 0.02)
    assert overlap(method(picture(spotted, "white")), disc) > 0.95


@every_method
def test_specks_are_dropped(method):
    disc = RADIUS < 0.3
    dusty = disc | (np.hypot(X - 0.9, Y - 0.9) < 0.015)
    assert not np.asarray(method(picture(dusty, "white")))[-24:, -24:].any()


@every_method
def test_an_object_may_touch_the_border(method):
    standing = (abs(X - 0.5) < 0.2) & (Y > 0.4)
    assert overlap(method(picture(standing, "gradient")), standing) > 0.9


@every_method
@pytest.mark.parametrize("size", [(64, 64), (8, 8), (9, 300)])
def test_a_picture_of_nothing_has_an_empty_mask(method, size):
    mask = method(Image.new("RGB", size, (130, 140, 150)))
    assert mask.size == size
    assert mask.getextrema() == (0, 0)


@every_method
def test_large_pictures_get_masks_of_their_own_size(method):
    disc = RADIUS < 0.3
    large = picture(disc, "white").resize((1000, 1000), Image.Resampling.NEAREST)
    mask = method(large)
    assert mask.size == (1000, 1000)
    assert overlap(mask.resize((SIDE, SIDE)), disc) > 0.95


def test_keep_means_no_remover_and_no_notice():
    assert choose_background_remover("keep") == (None, "")


def test_threshold_and_grabcut_are_taken_when_asked_for():
    assert choose_background_remover("threshold")[0] is mask_by_threshold
    assert choose_background_remover("grabcut")[0] is mask_by_grabcut


def test_auto_prefers_grabcut_and_says_what_it_does():
    remover, notice = choose_background_remover("auto")
    assert remover is mask_by_grabcut
    assert "GrabCut" in notice


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown background remover `magic`") as caught:
        choose_background_remover("magic")
    assert "threshold" in caught.value.hint


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_components_are_those_of_scipy(mask):
    ours, theirs = label_components(mask), ndimage.label(mask)[0]
    assert ours.max(initial=0) == theirs.max(initial=0)
    assert len(set(zip(ours.reshape(-1), theirs.reshape(-1), strict=True))) == len(np.unique(ours))
