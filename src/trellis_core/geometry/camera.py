"""Cameras: where they stand, and the matrices that renderers use.

World space is right-handed, z up; camera space is x right, y down, z forward (OpenCV). Angles are radians.
An orbit's eye is r (sin yaw cos pitch, cos yaw cos pitch, sin pitch): objects face -y, so the front is seen
from yaw = pi. Matrices are float64 on the CPU, so that float32 renderers round once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FRONT = math.pi  # yaw from which the front of an object is seen


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera."""

    extrinsics: Tensor  # float64 [4, 4]  world to camera
    intrinsics: Tensor  # float64 [3, 3]  of the unit image: focal lengths and centre as fractions of its side

    @property
    def eye(self) -> Tensor:  # float64 [3]
        return -self.extrinsics[:3, :3].T @ self.extrinsics[:3, 3]


def orbit_camera(
    yaw: float,
    pitch: float,
    *,
    radius: float = 2.0,
    fov: float = math.radians(40),
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Camera:
    """A camera on a sphere around `target`, looking at it."""
    return Camera(orbit_extrinsics(yaw, pitch, radius, target), perspective_intrinsics(fov))


def orbit_extrinsics(
    yaw: float,
    pitch: float,
    radius: float,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tensor:  # float64 [4, 4]
    direction = (math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch))
    center = torch.tensor(target, dtype=torch.float64)
    return look_at(center + torch.tensor(direction, dtype=torch.float64) * radius, center)


def look_at(
    eye: Tensor,  # [3]
    target: Tensor,  # [3]
) -> Tensor:  # [4, 4]  world to camera
    """Extrinsics of a camera at `eye` looking at `target` with +z up."""
    z = torch.nn.functional.normalize(target - eye, dim=0)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=eye.dtype)
    if torch.linalg.vector_norm(torch.linalg.cross(-up, z)) < 1e-9:
        up[1] = 1e-6  # straight up or down there is no right vector
    x = torch.nn.functional.normalize(torch.linalg.cross(-up, z), dim=0)
    rotation = torch.stack([x, torch.linalg.cross(z, x), z])
    extrinsics = torch.eye(4, dtype=eye.dtype)
    extrinsics[:3, :3] = rotation
    extrinsics[:3, 3] = -rotation @ eye
    return extrinsics


def perspective_intrinsics(fov: float) -> Tensor:  # float64 [3, 3]
    """Intrinsics of a square view with the opening angle `fov`."""
    focal = 0.5 / math.tan(fov / 2)
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)


def projection_matrix(
    intrinsics: Tensor,  # [3, 3]
    near: float,
    far: float,
    *,
    depth_from_zero: bool,
) -> Tensor:  # [4, 4]
    """Camera space to clip space, y still down; depth goes from 0 (or -1) at `near` to 1 at `far`."""
    projection = torch.zeros(4, 4, dtype=intrinsics.dtype)
    projection[0, 0], projection[1, 1] = 2 * intrinsics[0, 0], 2 * intrinsics[1, 1]
    projection[0, 2], projection[1, 2] = 2 * intrinsics[0, 2] - 1, 1 - 2 * intrinsics[1, 2]
    projection[3, 2] = 1
    if depth_from_zero:
        projection[2, 2], projection[2, 3] = far / (far - near), near * far / (near - far)
    else:
        projection[2, 2], projection[2, 3] = (far + near) / (far - near), 2 * near * far / (near - far)
    return projection


def hammersley_view(
    view: int,
    views: int,
    offset: tuple[float, float] = (0.0, 0.0),
    remap: bool = False,
) -> tuple[float, float]:  # yaw, pitch
    """View number `view` of `views` spread evenly over the sphere; `remap` moves some to the lower half.

    Hammersley points: Niederreiter, "Random Number Generation and Quasi-Monte Carlo Methods" (1992).
    """
    u = (view + offset[0]) / views
    v = radical_inverse(view) + offset[1]
    if remap:
        u = 2 * u if u < 0.25 else 2 * u / 3 + 1 / 3
    return 2 * math.pi * v, math.acos(1 - 2 * u) - math.pi / 2


def radical_inverse(number: int) -> float:
    """The binary digits of `number`, mirrored at the point: 1, 2, 3 become 1/2, 1/4, 3/4."""
    value, weight = 0.0, 0.5
    while number:
        value += weight * (number & 1)
        number >>= 1
        weight /= 2
    return value


def turntable_views(
    frames: int,
    start: float = FRONT,
    turn: float = 2 * math.pi,
) -> list[tuple[float, float]]:  # yaw, pitch
    """One turn around the object with the camera bobbing; the last frame equals the first."""
    angles = [turn * i / max(frames - 1, 1) for i in range(frames)]
    return [(start - angle, 0.25 + 0.5 * math.sin(angle)) for angle in angles]


def snapshot_views(views: int, start: float, pitch: float) -> list[tuple[float, float]]:  # yaw, pitch
    """Views at equal angles around the object, all at one height."""
    return [(start + 2 * math.pi * i / views, pitch) for i in range(views)]
