"""Several views of a subject: contact sheets, and the frames of a film that turns around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera
from trellis_core.geometry.types import Asset
from trellis_core.render.subject import (
    Look,
    Subject,
    as_subject,
    before_backdrop,
    draw_subject,
    on_device,
    outline,
)
from trellis_core.render.views import PITCH, around, cameras_around
from trellis_core.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to be drawn."""

    subject: Subject
    camera: Camera
    look: Look


def contact_sheet(
    subject: Subject | Asset,
    runtime: Runtime,
    *,
    views: int = 4,
    size: int = 512,
    looks: Sequence[Look] = (),
    pitch: float = PITCH,
) -> Tensor:  # uint8 [rows * size, columns * size, 3 or 4]
    """`views` pictures around a subject, from the front on; one block of them per look."""
    subject = on_device(as_subject(subject), runtime.device)
    cameras = framed_cameras(subject, around(views, pitch=pitch))
    shots = [Shot(subject, camera, look) for look in looks or (Look(),) for camera in cameras]
    return arrange(list(draw_shots(shots, size, runtime)), views)


def turntable(
    subject: Subject | Asset,
    runtime: Runtime,
    *,
    frames: int = 60,
    size: int = 512,
    look: Look | None = None,
    pitch: float = PITCH,
) -> Iterator[Tensor]:  # uint8 [size, size, 3 or 4] each
    """One turn around a subject, from the front on; the frame after the last one is the first one."""
    subject = on_device(as_subject(subject), runtime.device)
    cameras = framed_cameras(subject, around(frames, start=FRONT, pitch=pitch))
    return draw_shots([Shot(subject, camera, look or Look()) for camera in cameras], size, runtime)


def draw_shots(
    shots: Sequence[Shot], size: int, runtime: Runtime
) -> Iterator[Tensor]:  # uint8 [size, size, 3], or [size, size, 4] without a backdrop; on the CPU
    """Draw one picture after the other, reporting progress as stage `render`."""
    for number, shot in enumerate(shots):
        runtime.report("render", number, len(shots))
        picture = draw_subject(shot.subject, shot.camera, size, runtime, shot.look)
        yield before_backdrop(picture.cpu(), shot.look.backdrop)
    runtime.report("render", len(shots), len(shots))


def framed_cameras(subject: Subject, views: Sequence[tuple[float, float]]) -> list[Camera]:
    """Cameras for (yaw, pitch) pairs, at one distance from which all of the subject is in the picture."""
    points, reach = outline(subject)
    return cameras_around(points, views, reach)


def arrange(
    pictures: Sequence[Tensor],  # uint8 [H, W, C] each
    block: int,  # so many belong together
) -> Tensor:  # uint8 [rows * H, columns * W, C]
    """Blocks one below the other: up to four pictures in a row, more in two rows."""
    columns = block if block <= 4 else math.ceil(block / 2)
    blank = [torch.full_like(pictures[0], 255)] * (-block % columns)
    rows = []
    for start in range(0, len(pictures), block):
        cells = [*pictures[start : start + block], *blank]
        rows += [torch.cat(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return torch.cat(rows)
