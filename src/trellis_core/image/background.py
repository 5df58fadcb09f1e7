"""Find the object in a picture without transparency: who does it, and two ways that need no network.

Networks are given by the caller; `rembg` is used when its package and weights are there. The two offline ways
model the background as a color that changes slowly over the picture, fitted to the border; colors that differ
are the object. GrabCut (Rother et al., "GrabCut: Interactive Foreground Extraction using Iterated Graph
Cuts", 2004) then refines the border of the object; it needs OpenCV. Good for objects before a plain
background, not for busy scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from trellis_core.errors import BackendUnavailable, InputError, ModelError, UsageError
from trellis_core.image.components import label_components
from trellis_core.image.preprocess import MASK_HINT, OPAQUE, BackgroundRemover

METHODS = ("auto", "keep", "rembg", "grabcut", "threshold")
WORKING_SIDE = 512  # pixels; masks are found at this size and enlarged
BORDER = 0.02  # of the shorter side: pixels taken to be background
HOLE = 0.005  # of the picture: smaller enclosed spots of background color belong to the object
SPECK = 0.03  # of the largest region: smaller regions are dropped
PLAIN = 6.0  # gray levels: border colors stray less than this from a plain background
BUSY = 0.001  # of the picture: if less than this differs from a busy border, only colors can tell
SMALLEST, LARGEST = 0.005, 0.95  # of the picture: what a network calls the object and is refused outside
PLAIN_HINT = "give a picture with a transparent background for the cleanest result"
REMBG_NETWORK = "u2net"  # the package's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network for background removal that this machine may have."""

    name: str
    remover: BackgroundRemover | None  # reads its weights at the first picture; None: they are not here
    automatic: bool = True  # "auto" may take it


def choose_background_remover(
    name: str = "auto",
    networks: Sequence[Network] = (),  # best first
) -> tuple[BackgroundRemover | None, str]:
    """The background remover called `name` and a notice of what was chosen, for the user (may be empty).

    "auto" takes the first network whose weights are here, else rembg if it is installed and has its weights,
    else GrabCut if OpenCV is installed, else the threshold; "keep" gives None: the whole picture is the
    object. Nothing is downloaded unless `rembg` is asked for by name. Raises `UsageError` for other names,
    `ModelError` for a network without weights and `BackendUnavailable` when a package is missing.
    """
    ours = {network.name: network for network in networks}
    if name == "keep":
        return None, ""
    if name in ours:
        return remover_of(ours[name]), f"the background is removed by `{name}`"
    if name != "auto":
        return method_named(name, ours), NOTICES[name]
    for network in networks:
        if network.automatic and network.remover is not None:
            return network.remover, f"the background is removed by `{network.name}`"
    if find_spec("rembg") is not None and rembg_weights().is_file():
        return open_rembg(), NOTICES["rembg"]
    name = "grabcut" if find_spec("cv2") is not None else "threshold"
    pull = f", or run `trellis models pull {networks[0].name}`" if networks else ""
    return METHODS_BY_COLOR[name], NOTICES[name] + pull


def remover_of(network: Network) -> BackgroundRemover:
    if network.remover is None:
        raise ModelError(
            f"the background remover `{network.name}` is not on this machine",
            hint=f"run `trellis models pull {network.name}`",
        )
    return network.remover


def method_named(name: str, others: Mapping[str, Network]) -> BackgroundRemover:
    """One of METHODS that needs no network of ours, checked for the package that it needs."""
    if name not in NOTICES:
        names = ", ".join([*METHODS, *others])
        raise UsageError(f"unknown background remover `{name}`", hint=f"choose one of: {names}")
    if name == "rembg" and find_spec("rembg") is None:
        raise BackendUnavailable(
            "background remover `rembg` needs the package `rembg`, which is not installed",
            hint="install it with `pip install 'rembg[cpu]'`, or pass `--background auto`",
        )
    if name == "grabcut" and find_spec("cv2") is None:
        raise BackendUnavailable(
            "background remover `grabcut` needs OpenCV, which is not installed",
            hint="install it with `pip install 'trellis-cli[image]'`, or pass `--background threshold`",
        )
    return open_rembg() if name == "rembg" else METHODS_BY_COLOR[name]


def require_object(mask: Image.Image) -> Image.Image:
    """`mask` itself. Raises `InputError` when next to nothing or nearly everything in it is opaque."""
    share = np.count_nonzero(np.asarray(mask) > OPAQUE) / (mask.width * mask.height)
    if share < SMALLEST:
        raise InputError("no object was found in the picture", hint=MASK_HINT)
    if share > LARGEST:
        raise InputError(
            f"no background was found in the picture: {share:.0%} of it would be the object",
            hint="give a picture that shows the whole object, or pass `--background keep`",
        )
    return mask


def open_rembg() -> BackgroundRemover:
    """A remover by the package `rembg`. It downloads its network (U2-Net) when it is not there yet."""

    @cache
    def network() -> Callable[[Image.Image], Image.Image]:
        import rembg  # type: ignore[import-not-found, unused-ignore]

        return partial(rembg.remove, session=rembg.new_session(REMBG_NETWORK), only_mask=True)

    def remove(image: Image.Image) -> Image.Image:
        return require_object(network()(image).convert("L"))

    return remove


def rembg_weights() -> Path:
    """Where the package keeps its network, unless it was told otherwise."""
    return Path.home() / ".u2net" / f"{REMBG_NETWORK}.onnx"


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


METHODS_BY_COLOR: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "grabcut": mask_by_grabcut,
    "threshold": mask_by_threshold,
}
NOTICES: Mapping[str, str] = {
    "rembg": "the background is removed by `rembg`",
    "grabcut": f"the background is found by color (GrabCut); {PLAIN_HINT}",
    "threshold": f"the background is found by color (threshold); {PLAIN_HINT}",
}
