"""Several views of an asset: contact sheets and turning animations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera, orbit_camera, snapshot_views
from trellis_core.geometry.types import Asset, Mesh
from trellis_core.io.images import write_image
from trellis_core.render.pbr import STANDARD, RenderSettings, render_pbr
from trellis_core.runtime import Runtime

FOV = math.radians(30)
PITCH = math.radians(20)
MARGIN = 1.05  # empty space around the object
BACKDROP = (0.93, 0.93, 0.94), (0.78, 0.79, 0.81)  # sRGB at the top and at the bottom


def contact_sheet(
    asset: Asset,
    runtime: Runtime,
    *,
    views: int = 4,
    size: int = 512,
    settings: RenderSettings = STANDARD,
) -> Tensor:  # uint8 [rows * size, columns * size, 3]
    """`views` pictures around the asset, from the front on, in one or two rows before a gray backdrop."""
    cameras = framed_cameras(asset.mesh, snapshot_views(views, FRONT, PITCH))
    return arrange(render_views(asset, cameras, size, runtime, settings))


def arrange(pictures: Sequence[Tensor]) -> Tensor:  # uint8 [H, W, 3] each -> one picture
    """Up to four pictures in a row, more in two rows."""
    columns = len(pictures) if len(pictures) <= 4 else math.ceil(len(pictures) / 2)
    blank = [torch.full_like(pictures[0], 255)] * (-len(pictures) % columns)
    cells = [*pictures, *blank]
    return torch.cat([torch.cat(cells[i : i + columns], 1) for i in range(0, len(cells), columns)])


def write_turntable(
    asset: Asset,
    path: str | Path,
    runtime: Runtime,
    *,
    frames: int = 48,
    size: int = 512,
    seconds: float = 4.0,
    settings: RenderSettings = STANDARD,
) -> Path:
    """One turn around the asset as an animated WebP that repeats for ever."""
    cameras = framed_cameras(asset.mesh, snapshot_views(frames, FRONT, PITCH))
    return write_animation(render_views(asset, cameras, size, runtime, settings), path, seconds)


def write_animation(
    pictures: Sequence[Tensor],  # uint8 [H, W, 3] each
    path: str | Path,
    seconds: float,
) -> Path:
    """An animated WebP that repeats for ever."""
    first, *others = (Image.fromarray(picture.cpu().numpy()) for picture in pictures)
    duration = round(1000 * seconds / len(pictures))
    return write_image(
        path, first, format="WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=85
    )


def render_views(
    asset: Asset,
    cameras: Sequence[Camera],
    size: int,
    runtime: Runtime,
    settings: RenderSettings,
) -> list[Tensor]:  # uint8 [size, size, 3] each
    """Draw every view before the backdrop, reporting progress as stage `render`."""
    pictures = []
    for number, camera in enumerate(cameras):
        runtime.report("render", number, len(cameras))
        pictures.append(before_backdrop(render_pbr(asset, camera, size, runtime, settings)))
    runtime.report("render", len(cameras), len(cameras))
    return pictures


def framed_cameras(mesh: Mesh, views: Sequence[tuple[float, float]]) -> list[Camera]:
    """Cameras for (yaw, pitch) pairs, at one distance from which the whole mesh is in the picture."""
    return cameras_around(mesh.vertices, views)


def cameras_around(points: Tensor, views: Sequence[tuple[float, float]]) -> list[Camera]:
    """Cameras for (yaw, pitch) pairs, at one distance from which all points [N, 3] are in the picture."""
    points = points.double().cpu()
    center = (points.amin(0) + points.amax(0)) / 2
    reach = (points - center).norm(dim=1).max().item()
    radius = max(reach, 1e-3) * MARGIN / math.sin(FOV / 2)
    x, y, z = center.tolist()
    return [orbit_camera(yaw, pitch, radius=radius, fov=FOV, target=(x, y, z)) for yaw, pitch in views]


def before_backdrop(picture: Tensor) -> Tensor:  # uint8 [H, W, 4] -> [H, W, 3]
    top, bottom = (torch.tensor(c, device=picture.device) * 255 for c in BACKDROP)
    share = torch.linspace(0, 1, len(picture), device=picture.device)[:, None, None]
    alpha = picture[..., 3:] / 255
    return torch.lerp(torch.lerp(top, bottom, share), picture[..., :3].float(), alpha).round().to(torch.uint8)
