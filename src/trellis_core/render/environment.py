"""Light from a picture of the surroundings.

The picture is blurred on the sphere once per roughness: diffusion of its spherical harmonics, which for the
narrow lobes that matter is what the spherical Gaussians of `studio.py` do. Matt surfaces take the first nine
harmonics: Ramamoorthi & Hanrahan, "An Efficient Representation for Irradiance Environment Maps" (2001).
Directions are in world space, z up; the middle of the picture lies behind the object, towards +y.
Letters: H and W rows and columns, K levels of roughness, L degrees, M orders, P directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.camera import Camera

ROWS = 256  # of the blurred pictures
DEGREES = 128  # of the harmonics that they consist of
ROUGHNESS = (0.0, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the levels; the first one is the picture itself
MATT = (1.0, 2 / 3, 1 / 4)  # what a cosine leaves of each degree
WHITE = 0.6  # light that a white matt surface sends back on average, after exposure


@dataclass(frozen=True, slots=True)
class Environment:
    """Surroundings that stay where they are while the camera moves."""

    levels: Tensor  # float32 [K, H, W, 3]  radiance, linear, ever more blurred
    matt: Tensor  # float32 [H, W, 3]  what a white matt surface facing there sends back

    @classmethod
    def of_picture(cls, radiance: Tensor, exposure: float = 1.0) -> Environment:
        """From a latitude-longitude picture float32 [h, w, 3], linear, up at the top.

        It is made as bright as suits an object, then multiplied by `exposure`.
        """
        picture = resize(radiance.float(), ROWS)
        basis = legendre(ROWS, DEGREES)
        harmonics = analyse(picture, basis)
        mean = harmonics[0, 0].real.mean().item() / math.sqrt(4 * math.pi)
        scale = exposure * WHITE / max(mean, 1e-6)
        degree = torch.arange(DEGREES + 1, dtype=torch.float64)
        levels = [picture]
        for roughness in ROUGHNESS[1:]:
            # a lobe of sharpness 0.5 / roughness^4 has spread for the time roughness^4
            kept = torch.exp(-degree * (degree + 1) * roughness**4)
            levels.append(synthesise(harmonics * kept[:, None, None], basis, picture.shape[1]))
        cosine = torch.zeros(DEGREES + 1, dtype=torch.float64)
        cosine[: len(MATT)] = torch.tensor(MATT, dtype=torch.float64)
        matt = synthesise(harmonics * cosine[:, None, None], basis, picture.shape[1])
        return cls((torch.stack(levels) * scale).contiguous(), matt * scale)

    def frame(self, camera: Camera) -> Tensor:  # float64 [3, 3]
        return torch.eye(3, dtype=torch.float64)

    def reflected(self, direction: Tensor, roughness: Tensor) -> Tensor:
        """Radiance float32 [P, 3] around unit directions [P, 3], blurred by roughness [P, 1]."""
        steps = torch.tensor(ROUGHNESS, device=direction.device)
        upper = torch.searchsorted(steps, roughness[:, 0].contiguous()).clamp(1, len(steps) - 1)
        share = (roughness[:, 0] - steps[upper - 1]) / (steps[upper] - steps[upper - 1])
        return look(self.levels, direction, upper - 1 + share)

    def diffuse(self, normal: Tensor) -> Tensor:  # float32 [P, 3] -> [P, 3]
        return look(self.matt[None], normal, torch.zeros_like(normal[:, 0]))


def look(
    levels: Tensor,  # float32 [K, H, W, 3]
    direction: Tensor,  # float32 [P, 3]  unit
    level: Tensor,  # float32 [P]
) -> Tensor:  # float32 [P, 3]
    """Trilinear lookup; the picture goes around."""
    levels = levels.to(direction.device)
    around = torch.cat([levels[:, :, -1:], levels, levels[:, :, :1]], 2)
    count, width = len(around), around.shape[2]
    u = torch.atan2(direction[:, 0], direction[:, 1]) / (2 * math.pi) + 0.5
    v = torch.acos(direction[:, 2].clamp(-1, 1)) / math.pi
    column = (u * (width - 2) + 1) / width * 2 - 1
    depth = (level + 0.5) / count * 2 - 1
    grid = torch.stack([column, v * 2 - 1, depth], 1)[None, None, None]
    volume = around.permute(3, 0, 1, 2)[None]
    found = F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0, 0].T


def resize(picture: Tensor, rows: int) -> Tensor:  # float32 [h, w, 3] -> [rows, 2 rows, 3]
    stacked = picture.permute(2, 0, 1)[None]
    if picture.shape[0] >= rows:
        smaller = F.interpolate(stacked, size=(rows, 2 * rows), mode="area")
    else:
        smaller = F.interpolate(stacked, size=(rows, 2 * rows), mode="bilinear", align_corners=False)
    return smaller[0].permute(1, 2, 0).contiguous()


def legendre(rows: int, degrees: int) -> Tensor:  # float64 [L, M, rows]
    """Associated Legendre functions at the middles of `rows` rows, normalised as in spherical harmonics.

    Recurrences: Press et al., "Numerical Recipes" (2007), section 6.7.
    """
    theta = (torch.arange(rows, dtype=torch.float64) + 0.5) * math.pi / rows
    x, y = theta.cos(), theta.sin()
    table = torch.zeros(degrees + 1, degrees + 1, rows, dtype=torch.float64)
    table[0, 0] = math.sqrt(1 / (4 * math.pi))
    for m in range(1, degrees + 1):
        table[m, m] = -math.sqrt((2 * m + 1) / (2 * m)) * y * table[m - 1, m - 1]
    order = torch.arange(degrees + 1, dtype=torch.float64)[:, None]
    for degree in range(1, degrees + 1):
        lower = order[:degree]
        factor = ((4 * degree**2 - 1) / (degree**2 - lower**2)).sqrt()
        before = (((degree - 1) ** 2 - lower**2).clamp(min=0) / (4 * (degree - 1) ** 2 - 1)).sqrt()
        older = table[degree - 2, :degree] if degree > 1 else torch.zeros_like(table[0, :1])
        table[degree, :degree] = factor * (x * table[degree - 1, :degree] - before * older)
    return table


def analyse(picture: Tensor, basis: Tensor) -> Tensor:  # float32 [H, W, 3] -> complex128 [L, M, 3]
    """Spherical harmonics of a picture, exact for a constant."""
    rows, columns = picture.shape[:2]
    waves = torch.fft.rfft(picture.double(), dim=1)[:, : basis.shape[1]] * (2 * math.pi / columns)
    edges = torch.arange(rows + 1, dtype=torch.float64) * math.pi / rows
    area = edges[:-1].cos() - edges[1:].cos()  # of the rows
    return torch.einsum("lmh,hmc->lmc", (basis * area).to(waves.dtype), waves)


def synthesise(harmonics: Tensor, basis: Tensor, columns: int) -> Tensor:  # -> float32 [H, W, 3], at least 0
    waves = torch.einsum("lmh,lmc->hmc", basis.to(harmonics.dtype), harmonics)
    padded = torch.zeros(waves.shape[0], columns // 2 + 1, waves.shape[2], dtype=waves.dtype)
    padded[:, : waves.shape[1]] = waves
    return torch.fft.irfft(padded, n=columns, dim=1).mul(columns).clamp(min=0).float()
