"""`--region`: from what a person types to the parts of space that `trellis edit` may change.

    box:x0,y0,z0,x1,y1,z1     between two corners
    sphere:x,y,z,r            around a point
    top, left:0.3, ...        a share of the object on one side, and the free space beyond it
    handle.glb                the inside of a closed mesh
    mask.png                  what is white in a picture of the object, seen from `--mask-view`

Space is the unit cube from -0.5 to 0.5, z up; the object's front looks to -y. `read_regions` looks at
everything that can be wrong and imports no torch; what it returns is opened when the object is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trellis_cli import files
from trellis_core.errors import InputError, UsageError
from trellis_core.render.view_names import parse_view

if TYPE_CHECKING:
    from torch import Tensor

    from trellis_core.geometry.region import Region

Point = tuple[float, float, float]

FORMS = "box:x0,y0,z0,x1,y1,z1, sphere:x,y,z,r, top, bottom, left, right, front, back, a mesh or a mask"
SIDES: Mapping[str, tuple[int, bool]] = {  # axis, and whether the side is its upper end
    "left": (0, False),  # as seen from the front
    "right": (0, True),
    "front": (1, False),
    "back": (1, True),
    "bottom": (2, False),
    "top": (2, True),
}
HALF = 0.5  # share of the object that a side takes unless it says otherwise
EDGE = 0.5  # of the cube
FRONT_VIEW = "front"
MASK_WHITE, MASK_BLACK = 0.75, 0.25  # brightness
LARGEST_GREY = 0.2  # share of a mask's pixels that may be neither black nor white


@dataclass(frozen=True, slots=True)
class WantedRegion:
    """A region as typed, and how it is opened."""

    text: str
    open: Callable[[Tensor], Region]  # from the object's points float [V, 3]; may raise `InputError`
    relative: bool = False  # its place depends on the object

    def __str__(self) -> str:
        return self.text


def read_regions(texts: Sequence[str], mask_views: Sequence[str] = ()) -> list[WantedRegion]:
    """Every `--region`, in order. `mask_views` are the cameras of the masks: one for all, or one for each.

    Raises `UsageError` for what is no region, `InputError` for files that cannot be used.
    """
    if not texts:
        raise UsageError("no region says what to change", hint=f"pass `--region REGION`: {FORMS}")
    masks = [text for text in texts if is_mask(text)]
    if mask_views and not masks:
        raise UsageError("`--mask-view` belongs to a mask", hint="pass `--region mask.png` with it")
    if len(mask_views) not in (0, 1, len(masks)):
        raise UsageError(
            f"{len(masks)} masks have {len(mask_views)} views", hint="give one `--mask-view` for each mask"
        )
    given = list(mask_views or [FRONT_VIEW])
    view_of = iter(given if len(given) == len(masks) else given * len(masks))
    return [read_mask(text, next(view_of)) if is_mask(text) else read_region(text) for text in texts]


def is_mask(text: str) -> bool:
    return kind_of(text) not in SHAPES and Path(text).suffix.lower() in files.PICTURES


def kind_of(text: str) -> str:
    return text.partition(":")[0].strip().lower()


def read_region(text: str) -> WantedRegion:
    kind, _, rest = (part.strip() for part in text.partition(":"))
    if kind.lower() in SHAPES:
        return SHAPES[kind.lower()](text, rest)
    if Path(text).suffix.lower() in files.MESHES:
        files.check_input(Path(text), "region", files.MESHES)
        return WantedRegion(text, lambda points: open_solid(Path(text)))
    raise UsageError(f"`--region {text}` is no region", hint=f"use {FORMS} (see `trellis edit --help`)")


def read_box(text: str, rest: str) -> WantedRegion:
    x0, y0, z0, x1, y1, z1 = numbers(text, rest, 6, "box:-0.5,-0.5,0,0.5,0.5,0.5")
    low, high = (min(x0, x1), min(y0, y1), min(z0, z1)), (max(x0, x1), max(y0, y1), max(z0, z1))
    if any(math.isclose(a, b) for a, b in zip(low, high, strict=True)):
        raise UsageError(f"`--region {text}` has no volume", hint="give corners that differ in x, y and z")
    return WantedRegion(text, lambda points: open_box(low, high))


def read_sphere(text: str, rest: str) -> WantedRegion:
    x, y, z, radius = numbers(text, rest, 4, "sphere:0,0,0.3,0.2")
    if radius <= 0:
        raise UsageError(f"`--region {text}` has no volume", hint="the last number, the radius, is above 0")
    return WantedRegion(text, lambda points: open_sphere((x, y, z), radius))


def read_side(text: str, rest: str) -> WantedRegion:
    """`top` or `top:0.3`, also `top:30%`."""
    side = kind_of(text)
    share = HALF
    if rest:
        (value,) = numbers(text, rest.removesuffix("%"), 1, f"{side}:0.3")
        share = value / 100 if rest.endswith("%") else value
    if not 0 < share <= 1:
        raise UsageError(
            f"`--region {text}` takes no part of the object", hint=f"give a share, for example `{side}:0.3`"
        )
    axis, upper = SIDES[side]
    return WantedRegion(text, partial(open_side, axis, upper, share), relative=True)


def read_mask(text: str, view: str) -> WantedRegion:
    files.check_input(Path(text), "mask", files.PICTURES)
    parse_view(view)
    return WantedRegion(f"{text} ({view})", lambda points: open_mask(Path(text), view))


SHAPES: Mapping[str, Callable[[str, str], WantedRegion]] = {
    "box": read_box,
    "sphere": read_sphere,
    **dict.fromkeys(SIDES, read_side),
}


def numbers(text: str, rest: str, count: int, example: str) -> list[float]:
    """`count` finite numbers."""
    try:
        values = [float(part) for part in rest.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        what = "a number" if count == 1 else f"{count} numbers"
        raise UsageError(f"`--region {text}` needs {what} after the colon", hint=f"for example `{example}`")
    return values


def open_box(low: Point, high: Point) -> Region:
    from trellis_core.geometry.region import Box

    return Box(low, high)


def open_sphere(center: Point, radius: float) -> Region:
    from trellis_core.geometry.region import Sphere

    return Sphere(center, radius)


def open_side(axis: int, upper: bool, share: float, points: Tensor) -> Region:
    """The outer `share` of the object along one axis, and all of the cube beside and beyond it."""
    start, end = float(points[:, axis].min()), float(points[:, axis].max())
    cut = end - share * (end - start) if upper else start + share * (end - start)
    low, high = [-EDGE] * 3, [EDGE] * 3
    (low if upper else high)[axis] = cut
    return open_box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def open_solid(path: Path) -> Region:
    """The inside of a mesh that lies where the exported asset lies."""
    from trellis_core.geometry.region import Solid
    from trellis_core.io.meshes import read_mesh

    return Solid(read_mesh(path).mesh)


def open_mask(path: Path, view: str) -> Region:
    """What is white, wherever along the ray it lies."""
    from trellis_core.geometry.region import Painted
    from trellis_core.render.views import named_view

    return Painted(white_pixels(path), named_view(view))


def white_pixels(path: Path) -> Tensor:  # bool [H, W]
    """Where a square mask is white; what is transparent is black."""
    import numpy as np
    import torch

    from trellis_core.io.images import read_picture

    image = read_picture(path)
    if image.width != image.height:
        raise InputError(
            f"mask `{path}` is {image.width} x {image.height} pixels",
            hint="a mask is square, as `trellis render --view` draws the object",
        )
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    bright = torch.from_numpy(pixels[..., :3].mean(2) * pixels[..., 3])
    grey = float(((bright > MASK_BLACK) & (bright < MASK_WHITE)).float().mean())
    if grey > LARGEST_GREY:
        raise InputError(
            f"`{path}` is no mask: {grey:.0%} of it is neither black nor white",
            hint="paint white what may change and black all the rest",
        )
    white = bright >= 0.5
    if not bool(white.any()):
        raise InputError(f"mask `{path}` has no white pixel", hint="paint white what may change")
    return white
