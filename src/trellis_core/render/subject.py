"""Pictures of what is not a mesh: Gaussians, radiance fields and voxels, as color, depth or normals.

Letters: N Gaussians or voxels, H height, W width (equal here).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.camera import FRONT, Camera, snapshot_views
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import BASE_COLOR, PBRVoxels
from trellis_core.render.field_image import FieldImage, depth_normals
from trellis_core.render.gaussian import render_gaussians
from trellis_core.render.radiance import render_radiance
from trellis_core.render.turntable import PITCH, arrange, before_backdrop, cameras_around, write_animation
from trellis_core.render.voxel import pixel_rays, render_voxels
from trellis_core.runtime import Runtime

Subject = Gaussians | RadianceField | PBRVoxels
Channel = Literal["color", "depth", "normal"]

VISIBLE = 0.05  # opacity of Gaussians that count for the framing
SOLID = 0.5  # alpha of pixels that have a normal
NEAREST, FARTHEST = 1.0, 0.25  # brightness of depth across the object


def draw_subject(
    subject: Subject,
    camera: Camera,
    size: int,
    runtime: Runtime,
    channel: Channel = "color",
    *,
    supersampling: int = 2,
) -> Tensor:  # uint8 [size, size, 4]  straight alpha
    """One picture on a transparent background.

    Colors are sRGB. Depth is brighter where nearer, over the range of depths in the picture. Normals are
    (n + 1) / 2 in world space.
    """
    image, normals = view_subject(subject, camera, size, runtime, supersampling)
    if channel == "color":
        color, alpha = image.color / image.alpha.clamp(min=1e-6)[..., None], image.alpha
    elif channel == "depth":
        alpha = (image.depth > 0).float()
        color = brightness(image.depth)[..., None].expand(-1, -1, 3)
    elif channel == "normal":
        alpha = (normals.square().sum(2) > 0).float()
        color = (normals + 1) / 2
    else:
        raise ValueError(f"channel must be color, depth or normal, got `{channel}`")
    picture = torch.cat([color, alpha[..., None]], 2) * (alpha > 0)[..., None]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def view_subject(
    subject: Subject, camera: Camera, size: int, runtime: Runtime, supersampling: int = 1
) -> tuple[FieldImage, Tensor]:  # and float32 [H, W, 3] normals in world space, 0 where unknown
    """Color, alpha, depth and normals of anything."""
    if isinstance(subject, PBRVoxels):
        return view_voxels(subject, camera, size, runtime, supersampling)
    if isinstance(subject, Gaussians):
        image = render_gaussians(subject, camera, size, runtime, supersampling=supersampling)
    else:
        image = render_radiance(subject, camera, size, runtime, supersampling=supersampling)
    return image, depth_normals(image.depth, image.alpha >= SOLID, camera)


def view_voxels(
    voxels: PBRVoxels, camera: Camera, size: int, runtime: Runtime, supersampling: int
) -> tuple[FieldImage, Tensor]:
    """Voxels as cubes in their base color; normals are those of the sides that are seen."""
    edge = 1 / voxels.resolution
    positions = ((voxels.coords.float() + 0.5) * edge - 0.5).to(runtime.device)
    side = size * supersampling
    seen = render_voxels(
        positions, voxels.attrs[:, BASE_COLOR].float(), camera, side, runtime, voxel_size=edge
    )
    y, x = torch.nonzero(seen.voxel >= 0, as_tuple=True)
    rays = pixel_rays(camera, side, x, y)
    hit = camera.eye.to(rays) + rays * seen.depth[y, x, None] - positions[seen.voxel[y, x].long()]
    axis = hit.abs().argmax(1, keepdim=True)
    normals = torch.zeros(side, side, 3, device=runtime.device)
    normals[y, x] = torch.zeros_like(hit).scatter(1, axis, hit.gather(1, axis).sign())
    depth = torch.zeros_like(seen.depth)
    depth[y, x] = seen.depth[y, x] * (rays @ camera.extrinsics[2, :3].to(rays))
    sums = torch.cat([seen.attrs.clamp(0, 1), depth[..., None], seen.mask[..., None], normals], 2)
    sums = sums.view(size, supersampling, size, supersampling, 8).mean((1, 3))
    return FieldImage.of_sums(sums[..., :5]), torch.nn.functional.normalize(sums[..., 5:], dim=2)


def brightness(depth: Tensor) -> Tensor:  # float32 [H, W] -> [H, W]
    """From `NEAREST` at the nearest pixel to `FARTHEST` at the farthest; 0 where nothing is seen."""
    known = depth[depth > 0]
    if not len(known):
        return torch.zeros_like(depth)
    near, far = known.min(), known.max()
    share = (depth - near) / (far - near).clamp(min=1e-6)
    return torch.where(
        depth > 0, torch.lerp(depth.new_tensor(NEAREST), depth.new_tensor(FARTHEST), share), 0.0
    )


def framed_subject(subject: Subject, views: Sequence[tuple[float, float]]) -> list[Camera]:
    """Cameras for (yaw, pitch) pairs, at one distance from which all of it is in the picture.

    Raises `InputError` when there is nothing to see.
    """
    if isinstance(subject, Gaussians):
        shown = subject.opacities[:, 0] > VISIBLE
        reach = 2 * subject.scales[shown].amax(1, keepdim=True)
        points = torch.cat([subject.positions[shown] - reach, subject.positions[shown] + reach])
    else:
        low = subject.coords.float() / subject.resolution - 0.5
        points = torch.cat([low, low + 1 / subject.resolution])
    if not len(points) or not bool(torch.isfinite(points).all()):
        raise InputError("there is nothing to draw", hint="try another seed or another picture")
    return cameras_around(points.detach(), views)


def subject_sheet(
    subject: Subject,
    runtime: Runtime,
    *,
    views: int = 4,
    size: int = 512,
    channels: Sequence[Channel] = ("color",),
) -> Tensor:  # uint8 [H, W, 3]
    """Pictures around the object, from the front on; one block per channel, one below the other."""
    cameras = framed_subject(subject, snapshot_views(views, FRONT, PITCH))
    blocks = [arrange(draw_views(subject, cameras, size, runtime, channel)) for channel in channels]
    return torch.cat(blocks)


def write_subject_turntable(
    subject: Subject,
    path: str | Path,
    runtime: Runtime,
    *,
    frames: int = 48,
    size: int = 512,
    seconds: float = 4.0,
    channel: Channel = "color",
) -> Path:
    """One turn around the object as an animated WebP that repeats for ever."""
    cameras = framed_subject(subject, snapshot_views(frames, FRONT, PITCH))
    return write_animation(draw_views(subject, cameras, size, runtime, channel), path, seconds)


def draw_views(
    subject: Subject, cameras: Sequence[Camera], size: int, runtime: Runtime, channel: Channel
) -> list[Tensor]:  # uint8 [size, size, 3] each
    """Draw every view before the backdrop, reporting progress as stage `render`."""
    pictures = []
    for number, camera in enumerate(cameras):
        runtime.report("render", number, len(cameras))
        pictures.append(before_backdrop(draw_subject(subject, camera, size, runtime, channel)))
    runtime.report("render", len(cameras), len(cameras))
    return pictures
