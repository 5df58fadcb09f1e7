"""What `trellis render` was asked to draw: checked without torch, then drawn.

options -> Drawing -> shots -> sheet or film -> file
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_cli import files
from trellis_core.errors import OutOfMemory, OutputError, UsageError
from trellis_core.render.view_names import parse_view

if TYPE_CHECKING:
    from torch import Tensor

    from trellis_core.render.studio import Light
    from trellis_core.render.subject import Backdrop, Subject
    from trellis_core.render.turntable import Shot
    from trellis_core.runtime import Runtime

STILLS = (".png", ".jpg", ".jpeg")
FILMS = (".mp4", ".webp", ".gif")
VOXELS = "voxels"  # a mode here: the voxels that a run decodes to, in their colors
MAPS = ("normal", "depth", "mask")  # drawn on black
MODES = ("color", "base-color", "metallic", "roughness", "clay", "wireframe", *MAPS, VOXELS)
STUDIO, EVEN = "studio", "even"  # environments that are no pictures
AUTO, TRANSPARENT = "auto", "transparent"
WHOLE_CUBE, WHOLE_OBJECT = "cube", "object"
FRAMES, SECONDS, VIEWS = 60, 4.0, 4
SIZE, SHEET_SIZE = 512, 384  # pixels of a picture, and of one in a sheet
WORKING = 1_300_000_000  # bytes that drawing itself takes, measured at the largest part of a picture
COPIES = 12  # bytes per pixel of a sheet: picture, sheet, and what is handed to the encoder
SPLATTED = 180  # bytes per pixel of a picture of Gaussians, which is not drawn in parts; measured
AV_HINT = "install it with `pip install 'trellis-cli[video]'`, or write an animated `.webp`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One still, sheet or film."""

    film: bool
    modes: tuple[str, ...]  # none: what suits the subject
    views: tuple[str, ...]  # named ones; else `count` around the object
    count: int
    size: int
    frame: str  # what a named view shows: `object` or `cube`
    background: str
    environment: str
    exposure: float
    pitch: float  # degrees
    frames: int
    seconds: float

    @classmethod
    def check(
        cls,
        path: Path,
        *,
        modes: Sequence[str],
        views: Sequence[str],
        count: int | None,
        size: int | None,
        frame: str,
        background: str,
        environment: str,
        exposure: float,
        pitch: float | None,
        frames: int | None,
        seconds: float | None,
    ) -> Drawing:
        """Raises `UsageError`, `InputError` or `OutOfMemory` for what cannot be drawn."""
        film = path.suffix.lower() in FILMS
        for mode in modes:
            if mode not in MODES:
                raise UsageError(f"unknown mode `{mode}`", hint=f"choose from: {', '.join(MODES)}")
        for view in views:
            parse_view(view)
        if views and count is not None:
            raise UsageError("`--views` counts views, `--view` names them", hint="give only one of them")
        if views and pitch is not None:
            raise UsageError("a named view has its own pitch", hint="give it as `--view YAW,PITCH`")
        if film:
            check_film(path, modes, views, count, background)
        elif frames is not None or seconds is not None:
            hint = f"name a film with `-o`, for example `-o {path.with_suffix('.webp').name}`"
            raise UsageError("`--frames` and `--seconds` are for films", hint=hint)
        if background == TRANSPARENT and path.suffix.lower() in (".jpg", ".jpeg"):
            raise UsageError("JPEG cannot be transparent", hint="write a `.png`")
        if background not in (AUTO, STUDIO, TRANSPARENT):
            plain_color(background)
        if environment not in (STUDIO, EVEN):
            files.check_input(Path(environment), "environment")
        count = len(views) or count or VIEWS
        pictures = frames or FRAMES if film else count * max(len(modes), 2)
        size = size or (SIZE if film or count * max(len(modes), 1) == 1 else SHEET_SIZE)
        if path.suffix.lower() == ".mp4" and size % 2:
            raise UsageError(f"MP4 cannot be {size} pixels wide", hint=f"choose an even `--size`: {size + 1}")
        check_memory(pictures if path.suffix.lower() != ".mp4" else 1, size)
        return cls(
            film=film,
            modes=tuple(modes),
            views=tuple(views),
            count=count,
            size=size,
            frame=frame,
            background=background,
            environment=environment,
            exposure=exposure,
            pitch=20.0 if pitch is None else pitch,
            frames=frames or FRAMES,
            seconds=seconds or SECONDS,
        )


def check_film(
    path: Path, modes: Sequence[str], views: Sequence[str], count: int | None, background: str
) -> None:
    if views or count is not None:
        raise UsageError(
            "a film turns around the object: it has no `--view` and no `--views`",
            hint="choose the height with `--pitch`, or write a `.png`",
        )
    if len(modes) > 1:
        raise UsageError("a film shows one mode", hint="write one film per `--mode`, or a sheet as `.png`")
    if background == TRANSPARENT and path.suffix.lower() == ".mp4":
        raise UsageError("MP4 cannot be transparent", hint="write a `.webp`")
    if path.suffix.lower() == ".mp4" and find_spec("av") is None:
        raise OutputError("MP4 needs the package `av`, which is not installed", hint=AV_HINT)


def check_memory(pictures: int, size: int, copies: int | None = None) -> None:
    from trellis_core.memory.devices import describe_processor

    needed = WORKING + pictures * size * size * (COPIES if copies is None else copies)
    free = describe_processor().free_memory
    if needed > free:
        raise OutOfMemory(
            f"this takes about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free",
            hint="choose a smaller `--size`, or fewer `--views` or `--frames`",
        )


def plain_color(name: str) -> tuple[int, int, int]:
    """A color by its name or as `#RRGGBB`. Raises `UsageError`."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UsageError(
            f"unknown background `{name}`", hint="give studio, transparent, a color such as white, or #RRGGBB"
        ) from None
    return red, green, blue


def backdrop_of(background: str, mode: str) -> Backdrop:
    """`studio`, `transparent` or a color; `auto` is black for maps, and the studio for all else."""
    from trellis_core.render.subject import STUDIO as GRADIENT

    if background == TRANSPARENT:
        return None
    if background == STUDIO or (background == AUTO and mode not in MAPS):
        return GRADIENT
    color = plain_color("black" if background == AUTO else background)
    return color, color


def open_light(drawing: Drawing) -> Light:
    """Raises `InputError` for a picture that cannot light a scene."""
    from trellis_core.render.studio import Studio

    if drawing.environment == STUDIO:
        return Studio(exposure=Studio().exposure * drawing.exposure)
    if drawing.environment == EVEN:
        gray = (1.0, 1.0, 1.0)
        return Studio(boxes=(), sky=gray, horizon=gray, ground=gray, exposure=0.8 * drawing.exposure)
    from trellis_core.io.environment import read_environment
    from trellis_core.render.environment import Environment

    return Environment.of_picture(read_environment(Path(drawing.environment)), drawing.exposure)


def shots_of(drawing: Drawing, forms: Mapping[str, Subject], light: Light) -> list[Shot]:
    """The pictures of one object; `forms` are what it can be drawn as, the main one first."""
    from trellis_core.geometry.camera import FRONT
    from trellis_core.geometry.fields import Gaussians
    from trellis_core.render.subject import Look, modes_of, outline
    from trellis_core.render.turntable import Shot, framed_cameras
    from trellis_core.render.views import around, fitted_camera, named_view

    subject = next(iter(forms.values()))
    pitch = math.radians(drawing.pitch)
    if drawing.film:
        cameras = framed_cameras(subject, around(drawing.frames, start=FRONT, pitch=pitch))
    elif not drawing.views:
        cameras = framed_cameras(subject, around(drawing.count, pitch=pitch))
    elif drawing.frame == WHOLE_CUBE:
        cameras = [named_view(view) for view in drawing.views]
    else:
        points, reach = outline(subject)
        cameras = [fitted_camera(points, view, reach) for view in drawing.views]
    if isinstance(subject, Gaussians):
        check_memory(1, drawing.size, SPLATTED)
    shots = []
    for mode in drawing.modes or default_modes(drawing, forms):
        shown, known = (forms.get(VOXELS), ("color",)) if mode == VOXELS else (subject, modes_of(subject))
        look = "color" if mode == VOXELS else mode
        if shown is None or look not in known:
            choices = [*modes_of(subject), *([VOXELS] if VOXELS in forms else [])]
            raise UsageError(f"there is no `{mode}` to show of it", hint=f"choose from: {', '.join(choices)}")
        backdrop = backdrop_of(drawing.background, mode)
        shots += [Shot(shown, camera, Look(mode=look, light=light, backdrop=backdrop)) for camera in cameras]
    return shots


def default_modes(drawing: Drawing, forms: Mapping[str, Subject]) -> list[str]:
    """Color; in a sheet also the bare shape, and the voxels of a run."""
    from trellis_core.geometry.types import Mesh

    subject = next(iter(forms.values()))
    if drawing.film or drawing.views or drawing.count == 1 or isinstance(subject, Mesh):
        return ["color"]
    return ["color", "clay", *([VOXELS] if forms.get(VOXELS) not in (None, subject) else [])]


def draw(drawing: Drawing, shots: Sequence[Shot], path: Path, runtime: Runtime) -> bytes:
    """The content of the file."""
    from trellis_core.render.turntable import arrange, draw_shots

    pictures: Iterator[Tensor] = draw_shots(shots, drawing.size, runtime)
    if drawing.film:
        from trellis_core.io.video import FILM_ENCODERS

        return FILM_ENCODERS[path.suffix.lower()](pictures, drawing.frames / drawing.seconds)
    block = drawing.count if drawing.count > 1 else len(shots)
    return encode_still(arrange(list(pictures), block), path)


def drawable(runtime: Runtime) -> Runtime:
    """Where to draw: on the processor instead of Apple's GPU, which has no 64-bit numbers for exact edges."""
    if runtime.device.type != "mps":
        return runtime
    import torch

    from trellis_core.kernels.table import resolve_kernels
    from trellis_core.memory.devices import describe_processor

    return replace(runtime, device=torch.device("cpu"), kernels=resolve_kernels(describe_processor()))


def encode_still(pixels: Tensor, path: Path) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    kind: dict[str, Any] = {"format": "PNG"}
    if path.suffix.lower() != ".png":
        kind = {"format": "JPEG", "quality": 92, "subsampling": 0}
    Image.fromarray(pixels.numpy()).save(buffer, **kind)
    return buffer.getvalue()


def depth_facts(shots: Sequence[Shot]) -> list[list[float]]:
    """Nearest and farthest depth, white and dark, of every depth picture."""
    from trellis_core.render.subject import depth_range

    return [list(depth_range(s.subject, s.camera)) for s in shots if s.look.mode == "depth"]
