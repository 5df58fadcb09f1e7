"""Pictures of finished assets: metallic-roughness shading under studio light.

Light that materials reflect: Karis, "Physically Based Shading on Mobile" (2014), an analytic fit of the
split-sum approximation for GGX, with the energy of further bounces added as in Turquin, "Practical Multiple
Scattering Compensation for Microfacet Models" (2019). Tone curve: Khronos PBR Neutral (2024), which leaves
base colors as they are.
Letters: P shaded points, S texture side, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Asset, Material
from trellis_core.render.mesh import MeshBuffers, interpolate, render_mesh
from trellis_core.render.studio import Studio
from trellis_core.runtime import Runtime

DIELECTRIC = 0.04  # reflectance of plastics, wood, stone seen straight on


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    studio: Studio = field(default_factory=Studio)
    supersampling: int = 2  # samples per pixel and axis
    layers: int = 8  # of transparent surface

    def __post_init__(self) -> None:
        if self.supersampling < 1:
            raise ValueError(f"supersampling must be at least 1, got {self.supersampling}")


STANDARD = RenderSettings()


@dataclass(frozen=True, slots=True)
class Surface:
    """Material at shaded points; colors linear."""

    base_color: Tensor  # float32 [P, 3]
    metallic: Tensor  # float32 [P, 1]
    roughness: Tensor  # float32 [P, 1]
    alpha: Tensor  # float32 [P, 1]


def render_pbr(
    asset: Asset,
    camera: Camera,
    size: int,
    runtime: Runtime,
    settings: RenderSettings = STANDARD,
) -> Tensor:  # uint8 [size, size, 4]  sRGB, straight alpha
    """Draw `asset` as `camera` sees it, on a transparent background.

    Opaque assets are drawn in one layer; others in up to `settings.layers`, front to back.
    """
    side = size * settings.supersampling
    color = torch.zeros(side, side, 4, device=runtime.device)  # premultiplied, linear
    front = None
    for _ in range(1 if asset.material.alpha_mode == "OPAQUE" else settings.layers):
        buffers = render_mesh(asset.mesh, camera, side, runtime, front)
        front = buffers.face
        if not buffers.mask.any():
            break
        surface = sample_surface(asset, buffers)
        shaded = tone_map(shade(surface, buffers, camera, settings.studio))
        seen = (1 - color[buffers.mask][:, 3:]) * surface.alpha
        color[buffers.mask] += torch.cat([shaded * seen, seen], 1)
    return to_srgb8(average_blocks(color, settings.supersampling))


def sample_surface(asset: Asset, buffers: MeshBuffers) -> Surface:
    """Look the material up at every pixel that shows the mesh."""
    mesh, material = asset.mesh, asset.material
    if mesh.uvs is None:
        raise ValueError("the mesh has no texture coordinates")
    face = buffers.face[buffers.mask].long()
    corners = mesh.faces.to(face.device)[face].long()
    uv = interpolate(mesh.uvs.to(face.device)[corners], buffers.barycentric[buffers.mask])
    base = sample_texture(material.base_color.to(face.device), uv, color_channels=3)
    other = sample_texture(material.metallic_roughness.to(face.device), uv, color_channels=0)
    return Surface(base[:, :3], other[:, 2:3], other[:, 1:2], opacity(base[:, 3:], material))


def opacity(alpha: Tensor, material: Material) -> Tensor:
    if material.alpha_mode == "OPAQUE":
        return torch.ones_like(alpha)
    if material.alpha_mode == "MASK":
        return (alpha >= material.alpha_cutoff).float()
    return alpha


def sample_texture(
    texture: Tensor,  # uint8 [S, S, C]
    uv: Tensor,  # float32 [P, 2]  origin top left
    color_channels: int,  # so many leading channels are decoded from sRGB before they are mixed
) -> Tensor:  # float32 [P, C]  in [0, 1]
    """Bilinear lookup, clamped at the border."""
    height, width, channels = texture.shape
    decoded = srgb_to_linear(torch.arange(256, device=texture.device) / 255)
    texels = texture.reshape(-1, channels)
    limit = uv.new_tensor([width - 1, height - 1])
    at = torch.minimum(uv * (limit + 1) - 0.5, limit).clamp(min=0)
    corner = at.floor()
    weight = at - corner
    x0, y0 = corner.long().unbind(1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)

    def texel(x: Tensor, y: Tensor) -> Tensor:
        raw = texels.index_select(0, y * width + x)
        color, other = raw[:, :color_channels], raw[:, color_channels:]
        return torch.cat([decoded[color.int()], other / 255], 1)

    wx, wy = weight[:, :1], weight[:, 1:]
    top = torch.lerp(texel(x0, y0), texel(x1, y0), wx)
    return torch.lerp(top, torch.lerp(texel(x0, y1), texel(x1, y1), wx), wy)


def shade(surface: Surface, buffers: MeshBuffers, camera: Camera, studio: Studio) -> Tensor:  # float32 [P, 3]
    """Linear radiance towards the camera."""
    normal = buffers.normal[buffers.mask]
    view = torch.nn.functional.normalize(camera.eye.to(normal) - buffers.position[buffers.mask], dim=1)
    cosine = (normal * view).sum(1, keepdim=True).clamp(min=1e-3)
    reflected = torch.nn.functional.normalize(2 * cosine * normal - view, dim=1)
    frame = studio_frame(camera).to(normal)
    reflectance = torch.lerp(
        torch.full_like(surface.base_color, DIELECTRIC), surface.base_color, surface.metallic
    )
    specular = studio.reflected(reflected @ frame.T, surface.roughness)
    share = reflected_share(reflectance, surface.roughness, cosine)
    diffuse = studio.diffuse(normal @ frame.T) * surface.base_color * (1 - surface.metallic) * (1 - share)
    return diffuse + specular * share


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


def studio_frame(camera: Camera) -> Tensor:  # float64 [3, 3]
    """Rows: the camera's right (level), away from it (level), up."""
    right = camera.extrinsics[0, :3]
    up = torch.tensor([0, 0, 1], dtype=right.dtype)
    away = torch.nn.functional.normalize(torch.linalg.cross(up, right), dim=0)
    return torch.stack([torch.linalg.cross(away, up), away, up])


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


def srgb_to_linear(value: Tensor) -> Tensor:
    """IEC 61966-2-1, exact."""
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Tensor) -> Tensor:
    return torch.where(value <= 0.0031308, value * 12.92, 1.055 * value.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
