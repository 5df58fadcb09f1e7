"""Where cameras stand: named views, views around an object, and how far away.

A named view always shows the same part of space, the unit cube, so that what is painted on one picture can be
found again in another program run. Letters: N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trellis_core.geometry.camera import FRONT, Camera, orbit_camera
from trellis_core.render.view_names import VIEWS, parse_view

__all__ = ["VIEWS", "around", "cameras_around", "fitted_camera", "named_view", "parse_view"]

FOV = math.radians(30)
PITCH = math.radians(20)
START = FRONT - math.radians(
    30
)  # yaw of the first of several views: the front, seen from a little to its right
MARGIN = 1.05  # empty space around the object
CUBE = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)

View = str | tuple[float, float]  # a name, or yaw and pitch in degrees


def named_view(view: View) -> Camera:
    """The camera of a view, which has the whole unit cube in its picture.

    `view` is `front`, `back`, `left`, `right`, `top`, `bottom`, `orbit`, "YAW,PITCH", or such a pair.
    Raises `UsageError` for an unknown one.
    """
    return fitted_camera(CUBE, view)


def fitted_camera(
    points: Tensor,  # float [N, 3]  world space
    view: View,
    reach: Tensor | float = 0.0,  # float [N]  radii of balls around the points
) -> Camera:
    """The camera of a view, as near as possible with all points in its picture."""
    yaw, pitch = parse_view(view) if isinstance(view, str) else view
    points, spread = points.double().cpu(), torch.as_tensor(reach).double().cpu()
    center = (points.amin(0) + points.amax(0)) / 2
    target = tuple(center.tolist())
    turn = FRONT - math.radians(yaw)
    start = orbit_camera(turn, math.radians(pitch), fov=FOV, target=target)
    local = (points - center) @ start.extrinsics[:3, :3].T
    # a ball beside the axis is in the picture when |x| cos - z sin + reach is at most radius sin
    sine, cosine = math.sin(FOV / 2), math.cos(FOV / 2)
    needed = local[:, :2].abs().amax(1) * cosine - local[:, 2] * sine + spread
    behind = (spread - local[:, 2]).max().item()
    radius = max(needed.max().item() / sine * MARGIN, behind * MARGIN, 1e-3)
    return orbit_camera(turn, math.radians(pitch), radius=radius, fov=FOV, target=target)


def around(count: int, *, start: float = START, pitch: float = PITCH) -> list[tuple[float, float]]:
    """(yaw, pitch) in radians of `count` views at equal angles around an object, all at one height."""
    return [(start + 2 * math.pi * i / count, pitch) for i in range(count)]


def cameras_around(
    points: Tensor,  # float [N, 3]  world space
    views: Sequence[tuple[float, float]],  # yaw and pitch in radians
    reach: Tensor | float = 0.0,  # float [N]  radii of balls around the points
) -> list[Camera]:
    """Cameras at one distance from which all points are in every picture."""
    points, spread = points.double().cpu(), torch.as_tensor(reach).double().cpu()
    center = (points.amin(0) + points.amax(0)) / 2
    farthest = ((points - center).norm(dim=1) + spread).max().item()
    radius = max(farthest, 1e-3) * MARGIN / math.sin(FOV / 2)
    x, y, z = center.tolist()
    return [orbit_camera(yaw, pitch, radius=radius, fov=FOV, target=(x, y, z)) for yaw, pitch in views]
