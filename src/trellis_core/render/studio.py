"""A photographer's studio as analytic light: soft boxes before a ground and a sky.

Soft boxes are spherical Gaussians a exp(s (d.l - 1)), which blur in closed form: Wang et al., "All-Frequency
Rendering of Dynamic, Spatially-Varying Reflectance" (2009). Colors are linear. Knows nothing about meshes.
Directions are seen from the camera's side: x right, y away from the camera, z up; P points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera

Color = tuple[float, float, float]


class Light(Protocol):
    """What lights an object from all sides. Directions are in the light's own frame."""

    def frame(self, camera: Camera) -> Tensor:
        """Rotation float64 [3, 3] from world space to the frame of the light."""

    def reflected(self, direction: Tensor, roughness: Tensor) -> Tensor:
        """Radiance float32 [P, 3] around unit directions [P, 3], blurred by roughness [P, 1]."""

    def diffuse(self, normal: Tensor) -> Tensor:
        """Light float32 [P, 3] that white matt surfaces with normals [P, 3] send back: irradiance / pi."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftBox:
    direction: tuple[float, float, float]  # towards the light, any length
    color: Color  # radiance at the centre
    sharpness: float  # larger is smaller: about 1 / radius squared, in radians


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio:
    """Lights that stand around the object and turn with the camera."""

    boxes: tuple[SoftBox, ...] = (
        SoftBox(direction=(-0.75, -0.75, 0.85), color=(6.4, 6.2, 5.9), sharpness=10.0),  # key
        SoftBox(direction=(1.0, -0.55, 0.15), color=(1.5, 1.6, 1.75), sharpness=5.0),  # fill
        SoftBox(direction=(0.45, 0.9, 0.65), color=(5.5, 5.7, 6.0), sharpness=14.0),  # rim
    )
    sky: Color = (0.62, 0.66, 0.72)
    horizon: Color = (0.34, 0.35, 0.37)
    ground: Color = (0.14, 0.13, 0.12)
    exposure: float = 0.7

    def frame(self, camera: Camera) -> Tensor:  # float64 [3, 3]
        """Rows: the camera's right (level), away from it (level), up."""
        right = camera.extrinsics[0, :3]
        up = torch.tensor([0, 0, 1], dtype=right.dtype)
        away = torch.nn.functional.normalize(torch.linalg.cross(up, right), dim=0)
        return torch.stack([torch.linalg.cross(away, up), away, up])

    def reflected(
        self,
        direction: Tensor,  # float32 [P, 3]  unit
        roughness: Tensor,  # float32 [P, 1]
    ) -> Tensor:  # float32 [P, 3]
        """Radiance around `direction`, blurred as a GGX lobe of this roughness blurs it."""
        alpha = (roughness * roughness).clamp(min=1e-3)
        lobe = 0.5 / (alpha * alpha)  # sharpness of the reflected lobe, Wang et al. section 3
        light = self.surroundings(direction[:, 2:], (0.06**2 + alpha * alpha).sqrt())
        for box in self.boxes:
            blurred = box.sharpness * lobe / (box.sharpness + lobe)
            cosine = direction @ unit(box.direction, direction)
            peak = direction.new_tensor(box.color) * (lobe / (box.sharpness + lobe))
            light = light + peak * (blurred * (cosine[:, None] - 1)).exp()
        return light * self.exposure

    def diffuse(self, normal: Tensor) -> Tensor:  # float32 [P, 3] -> [P, 3]
        """Light that a white matt surface sends back: irradiance / pi."""
        light = self.surroundings(normal[:, 2:], torch.ones_like(normal[:, 2:]))
        for box in self.boxes:
            cosine = normal @ unit(box.direction, normal)
            # the light is wide, so it fades around the terminator instead of ending there
            softness = 0.5 / math.sqrt(box.sharpness)
            lit = 0.5 * (cosine + (cosine * cosine + softness * softness).sqrt())
            light = light + normal.new_tensor(box.color) * (2 / box.sharpness) * lit[:, None]
        return light * self.exposure

    def surroundings(self, up: Tensor, width: Tensor) -> Tensor:  # float32 [P, 1] each -> [P, 3]
        """Ground below, sky above, a band between them; blurred over `width` (1 is a hemisphere)."""
        ground, horizon, sky = (up.new_tensor(c) for c in (self.ground, self.horizon, self.sky))
        below, above = smoothstep((up + 0.15) / width), smoothstep((up - 0.25) / (width + 0.25))
        return ground + (horizon - ground) * below + (sky - horizon) * above


def unit(direction: tuple[float, float, float], like: Tensor) -> Tensor:  # float32 [3]
    return torch.nn.functional.normalize(like.new_tensor(direction), dim=0)


def smoothstep(x: Tensor) -> Tensor:
    """From 0 at -1 to 1 at 1."""
    t = (0.5 * x + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)
