"""Pictures of finished assets: metallic-roughness shading under studio light.

Light that materials reflect: Karis, "Physically Based Shading on Mobile" (2014), an analytic fit of the
split-sum approximation for GGX, with the energy of further bounces added as in Turquin, "Practical Multiple
Scattering Compensation for Microfacet Models" (2019). Tone curve: Khronos PBR Neutral (2024), which leaves
base colors as they are.
Letters: P shaded points, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Asset
from trellis_core.render.mesh import MeshBuffers, render_mesh
from trellis_core.render.studio import Light, Studio
from trellis_core.render.surface import (
    Painted,
    PaintedMesh,
    Surface,
    is_opaque,
    linear_to_srgb,
    sample_surface,
    srgb_to_linear,
)
from trellis_core.runtime import Runtime

DIELECTRIC = 0.04  # reflectance of plastics, wood, stone seen straight on


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    light: Light = field(default_factory=Studio)
    supersampling: int = 2  # samples per pixel and axis
    layers: int = 8  # of transparent surface

    def __post_init__(self) -> None:
        if self.supersampling < 1:
            raise ValueError(f"supersampling must be at least 1, got {self.supersampling}")


STANDARD = RenderSettings()

Shader = Callable[[Surface, MeshBuffers, Camera, "RenderSettings"], Tensor]  # -> float32 [P, 3] linear


def render_pbr(
    painted: Painted | Asset,
    camera: Camera,
    size: int,
    runtime: Runtime,
    settings: RenderSettings = STANDARD,
    show: str = "color",
) -> Tensor:  # uint8 [size, size, 4]  sRGB, straight alpha
    """Draw a mesh with its material as `camera` sees it, on a transparent background.

    `show` is a key of `SHADERS`. Opaque meshes are drawn in one layer; others in up to `settings.layers`,
    front to back.
    """
    painted = PaintedMesh.of(painted) if isinstance(painted, Asset) else painted
    side = size * settings.supersampling
    color = torch.zeros(side, side, 4, device=runtime.device)  # premultiplied, linear
    opaque, front = is_opaque(painted), None
    for _ in range(1 if opaque else settings.layers):
        buffers = render_mesh(painted.mesh, camera, side, runtime, front)
        front = buffers.face
        if not buffers.mask.any():
            break
        surface = sample_surface(painted, buffers, opaque)
        shaded = SHADERS[show](surface, buffers, camera, settings)
        seen = (1 - color[buffers.mask][:, 3:]) * surface.alpha
        color[buffers.mask] += torch.cat([shaded * seen, seen], 1)
    return to_srgb8(average_blocks(color, settings.supersampling))


def as_lit(surface: Surface, buffers: MeshBuffers, camera: Camera, settings: RenderSettings) -> Tensor:
    return tone_map(shade(surface, buffers, camera, settings.light))


def as_gray(value: Tensor) -> Tensor:  # float32 [P, 1] -> [P, 3] that is coded as the value itself
    return srgb_to_linear(value).expand(-1, 3)


SHADERS: Mapping[str, Shader] = {
    "color": as_lit,
    "base-color": lambda surface, buffers, camera, settings: surface.base_color,
    "metallic": lambda surface, buffers, camera, settings: as_gray(surface.metallic),
    "roughness": lambda surface, buffers, camera, settings: as_gray(surface.roughness),
}


def shade(surface: Surface, buffers: MeshBuffers, camera: Camera, light: Light) -> Tensor:  # float32 [P, 3]
    """Linear radiance towards the camera."""
    normal = buffers.normal[buffers.mask] if surface.normal is None else surface.normal
    view = torch.nn.functional.normalize(camera.eye.to(normal) - buffers.position[buffers.mask], dim=1)
    cosine = (normal * view).sum(1, keepdim=True).clamp(min=1e-3)
    reflected = torch.nn.functional.normalize(2 * cosine * normal - view, dim=1)
    frame = light.frame(camera).to(normal)
    reflectance = torch.lerp(
        torch.full_like(surface.base_color, DIELECTRIC), surface.base_color, surface.metallic
    )
    specular = light.reflected(reflected @ frame.T, surface.roughness)
    share = reflected_share(reflectance, surface.roughness, cosine)
    diffuse = light.diffuse(normal @ frame.T) * surface.base_color * (1 - surface.metallic) * (1 - share)
    arriving = 1.0 if surface.occlusion is None else surface.occlusion
    return (diffuse + specular * share) * arriving


def reflected_share(
    reflectance: Tensor,  # float32 [P, 3]  seen straight on
    roughness: Tensor,  # float32 [P, 1]
    cosine: Tensor,  # float32 [P, 1]  between normal and viewer
) -> Tensor:  # float32 [P, 3]
    """Integral of the GGX lobe with Schlick's Fresnel term; constants by Karis (2014)."""
    r = [roughness * a + b for a, b in ((-1.0, 1.0), (-0.0275, 0.0425), (-0.572, 1.04), (0.022, -0.04))]
    grazing = torch.minimum(r[0] * r[0], torch.exp2(-9.28 * cosine)) * r[0] + r[1]
    scale, bias = r[2] - 1.04 * grazing, (r[3] + 1.04 * grazing).clamp(min=0)
    lost = 1 / (scale + bias) - 1  # to further bounces, relative to the first one
    return ((reflectance * scale + bias) * (1 + reflectance * lost)).clamp(max=1)


def tone_map(color: Tensor) -> Tensor:  # float32 [P, 3] -> [P, 3] in [0, 1]
    """Khronos PBR Neutral: identity but for highlights, which roll off and fade to white."""
    start, fade = 0.8 - DIELECTRIC, 0.15
    low = color.amin(1, keepdim=True)
    color = color - torch.where(low < 2 * DIELECTRIC, low - low * low / (4 * DIELECTRIC), DIELECTRIC)
    peak = color.amax(1, keepdim=True)
    rolled = 1 - (1 - start) ** 2 / (peak + 1 - 2 * start)
    share = 1 / (fade * (peak - rolled) + 1)
    bright = torch.lerp(rolled.expand_as(color), color * (rolled / peak.clamp(min=1e-6)), share)
    return torch.where(peak < start, color, bright).clamp(0, 1)


def average_blocks(image: Tensor, side: int) -> Tensor:  # [H * side, W * side, C] -> [H, W, C]
    height, width, channels = image.shape
    return image.view(height // side, side, width // side, side, channels).mean((1, 3))


def to_srgb8(image: Tensor) -> Tensor:  # float32 [H, W, 4] premultiplied linear -> uint8 straight sRGB
    alpha = image[..., 3:]
    color = linear_to_srgb((image[..., :3] / alpha.clamp(min=1e-6)).clamp(0, 1))
    return (torch.cat([color, alpha.clamp(0, 1)], 2) * 255).round().to(torch.uint8)
