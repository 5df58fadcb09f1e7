"""Find the object in a picture without transparency, offline and without a network.

Both methods model the background as a color that changes slowly over the picture, fitted to the border;
colors that differ are the object. GrabCut (Rother et al., "GrabCut: Interactive Foreground Extraction using
Iterated Graph Cuts", 2004) then refines the border of the object; it needs OpenCV. Good for objects before a
plain background, not for busy scenes.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageFilter

from trellis_core.errors import BackendUnavailable, UsageError
from trellis_core.image.components import label_components
from trellis_core.image.preprocess import BackgroundRemover

METHODS = ("auto", "grabcut", "threshold", "keep")
WORKING_SIDE = 512  # pixels; masks are found at this size and enlarged
BORDER = 0.02  # of the shorter side: pixels taken to be background
HOLE = 0.005  # of the picture: smaller enclosed spots of background color belong to the object
SPECK = 0.03  # of the largest region: smaller regions are dropped
PLAIN = 6.0  # gray levels: border colors stray less than this from a plain background
BUSY = 0.001  # of the picture: if less than this differs from a busy border, only colors can tell
PLAIN_HINT = "give a picture with a transparent background for the cleanest result"


def choose_background_remover(name: str = "auto") -> tuple[BackgroundRemover | None, str]:
    """The background remover called `name` and a notice for the user (may be empty).

    "auto" takes GrabCut if OpenCV is installed, else the threshold; "keep" gives None: the whole picture is
    the object. Raises `UsageError` for other names and `BackendUnavailable` when OpenCV is missing.
    """
    if name not in METHODS:
        raise UsageError(f"unknown background remover `{name}`", hint=f"choose one of: {', '.join(METHODS)}")
    has_opencv = find_spec("cv2") is not None
    if name == "grabcut" and not has_opencv:
        raise BackendUnavailable(
            "background remover `grabcut` needs OpenCV, which is not installed",
            hint="install it with `pip install 'trellis-cli[image]'`, or pass `--background threshold`",
        )
    if name == "keep":
        return None, ""
    if name == "grabcut" or (name == "auto" and has_opencv):
        return mask_by_grabcut, f"the background is found by color (GrabCut); {PLAIN_HINT}"
    return mask_by_threshold, f"the background is found by color (threshold); {PLAIN_HINT}"


def mask_by_threshold(image: Image.Image) -> Image.Image:
    """The object in an RGB picture, as an "L" mask of the same size."""
    difference, _ = background_difference(shrunk(image))
    # blurred borders belong to the side whose color is nearer
    found = (difference > 1) & (difference > 0.5 * highest_nearby(difference))
    return enlarge(object_regions(found, difference < 0.5), image)


def mask_by_grabcut(image: Image.Image) -> Image.Image:
    """The object in an RGB picture, as an "L" mask of the same size. Needs OpenCV."""
    import cv2

    small = shrunk(image)
    difference, noise = background_difference(small)
    differs = difference > 1
    border = border_pixels(difference.shape)
    labels = np.where(differs, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[difference > 3] = cv2.GC_FGD
    if noise >= PLAIN and differs.mean() < BUSY:  # the border says nothing about the inside
        labels[~border] = cv2.GC_PR_FGD
    else:
        labels[difference < 0.25] = cv2.GC_BGD
    labels[border & ~differs] = cv2.GC_BGD
    if not (labels & cv2.GC_FGD).any():  # the bit that sure and probable foreground share
        return enlarge(differs, image)
    cv2.setRNGSeed(0)
    pixels = np.ascontiguousarray(np.asarray(small)[:, :, ::-1])
    cv2.grabCut(pixels, labels, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return enlarge(object_regions(found, ~found), image)


def shrunk(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    return small


def background_difference(image: Image.Image) -> tuple[np.ndarray, float]:  # float64 [H, W], gray levels
    """How much each pixel differs from the fitted background, 1 at the threshold, and the border's noise."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1))).astype(np.float64)
    height, width = pixels.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    border = border_pixels((height, width))
    kept = border
    for _ in range(5):  # least squares, then again without what the object covers of the border
        solution = np.linalg.lstsq(terms[kept], pixels[kept], rcond=None)[0]
        residual = np.linalg.norm(pixels - terms @ solution, axis=-1)
        noise = float(np.median(residual[border]))
        kept = border & (residual <= max(3 * noise, 4))
    return residual / max(5 * noise, 14), noise


def highest_nearby(difference: np.ndarray) -> np.ndarray:
    """The largest value within 3 pixels, up to 8."""
    limit = 8.0
    levels = Image.fromarray((np.clip(difference / limit, 0, 1) * 255).astype(np.uint8))
    return np.asarray(levels.filter(ImageFilter.MaxFilter(7))) / 255 * limit


def border_pixels(shape: tuple[int, ...]) -> np.ndarray:
    thickness = max(1, round(BORDER * min(shape[:2])))
    border = np.ones(shape[:2], bool)
    border[thickness:-thickness, thickness:-thickness] = False
    return border


def object_regions(found: np.ndarray, surely_background: np.ndarray) -> np.ndarray:
    """Drop specks, fill holes except large ones that surely show the background. bool [H, W]."""
    labels = label_components(found)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    result = (sizes > SPECK * sizes.max(initial=1))[labels] & found
    outside = label_components(np.pad(~result, 1, constant_values=True))
    enclosed = (outside != outside[0, 0])[1:-1, 1:-1] & ~result
    holes = label_components(enclosed)
    area = np.bincount(holes.reshape(-1))
    clear = np.bincount(holes.reshape(-1), weights=surely_background.reshape(-1)) > 0.7 * area
    keep_open = clear & (area > HOLE * found.size)
    keep_open[0] = False
    return result | (enclosed & ~keep_open[holes])


def enlarge(mask: np.ndarray, image: Image.Image) -> Image.Image:
    """To the size of `image`, with a border one working pixel soft."""
    small = Image.fromarray(mask.astype(np.uint8) * 255)
    return small.filter(ImageFilter.GaussianBlur(0.7)).resize(image.size, Image.Resampling.BICUBIC)
