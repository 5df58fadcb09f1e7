"""What TRELLIS v1 decodes besides meshes: clouds of Gaussians, and radiance fields in voxels.

World space is the unit cube [-0.5, 0.5]^3, z up. Colors are stored as spherical harmonics of degree 0.
Letters: N Gaussians or voxels, G Gaussians per voxel, K ranks, D samples per vector, R grid resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SH0 = 0.28209479177387814  # 1 / (2 sqrt(pi)), the spherical harmonic of degree 0


@dataclass(frozen=True, slots=True)
class Gaussians:
    """Fuzzy ellipsoids.

    Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (2023).
    """

    positions: Tensor  # float32 [N, 3]    world space
    scales: Tensor  # float32 [N, 3]    standard deviations along the own axes, world units
    quaternions: Tensor  # float32 [N, 4]    w, x, y, z; of any length but 0
    opacities: Tensor  # float32 [N, 1]    in [0, 1]
    features: Tensor  # float32 [N, 3]    sRGB-coded color = 0.5 + SH0 * feature, not below 0
    kernel_size: float = 0.1  # variance in pixels^2 of the screen filter they were made for

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def rotations(self) -> Tensor:  # float32 [N, 4]  unit quaternions
        return F.normalize(self.quaternions, dim=1)

    @property
    def colors(self) -> Tensor:  # float32 [N, 3]  at least 0
        return (0.5 + SH0 * self.features).clamp(min=0)

    def to(self, device: torch.device | str) -> Gaussians:
        return replace(
            self,
            positions=self.positions.to(device),
            scales=self.scales.to(device),
            quaternions=self.quaternions.to(device),
            opacities=self.opacities.to(device),
            features=self.features.to(device),
        )


@dataclass(frozen=True, slots=True)
class RadianceField:
    """Density and color inside occupied voxels, each a sum of products of three vectors.

    Gao et al., "Strivec: Sparse Tri-Vector Radiance Fields" (2023).
    """

    coords: Tensor  # int32 [N, 3]            voxels of the grid
    vectors: Tensor  # float32 [N, K, 3, D]    along x, y and z; sample d lies at (d + 0.5) / D of the voxel
    densities: Tensor  # float32 [N, K]          weights of the ranks in the density, before softplus
    features: Tensor  # float32 [N, K, 3]       weights of the ranks in the color, times SH0, before sigmoid
    resolution: int  # R

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def positions(self) -> Tensor:  # float32 [N, 3]  centres, world space
        return (self.coords.float() + 0.5) / self.resolution - 0.5

    def to(self, device: torch.device | str) -> RadianceField:
        return replace(
            self,
            coords=self.coords.to(device),
            vectors=self.vectors.to(device),
            densities=self.densities.to(device),
            features=self.features.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianActivation:
    """How a network's numbers become Gaussians; zeros become the `*_bias` values."""

    scale_activation: Literal["softplus", "exp"] = "softplus"
    scale_bias: float = 0.004  # world units
    min_scale: float = 9e-4  # world units; the 3D filter of Yu et al., "Mip-Splatting" (2024)
    opacity_bias: float = 0.1

    def __post_init__(self) -> None:
        if self.scale_activation not in ("softplus", "exp"):
            raise ValueError(f"scale_activation must be softplus or exp, got {self.scale_activation!r}")
        if self.scale_bias <= 0 or not 0 < self.opacity_bias < 1:
            raise ValueError("scale_bias must be positive and opacity_bias between 0 and 1")

    @property
    def scale_shift(self) -> float:
        """What is added to a raw scale: the activation's inverse of the bias."""
        if self.scale_activation == "exp":
            return math.log(self.scale_bias)
        return self.scale_bias + math.log(-math.expm1(-self.scale_bias))

    @property
    def opacity_shift(self) -> float:
        """What is added to a raw opacity: the logit of the bias."""
        return math.log(self.opacity_bias / (1 - self.opacity_bias))


def activate_gaussians(
    positions: Tensor,  # float32 [N, 3]  inside the unit cube [0, 1]^3, but for offsets
    scales: Tensor,  # float32 [N, 3]  raw
    rotations: Tensor,  # float32 [N, 4]  raw, difference from the identity
    opacities: Tensor,  # float32 [N, 1]  raw
    features: Tensor,  # float32 [N, 3]
    activation: GaussianActivation,
    *,
    kernel_size: float = 0.1,
) -> Gaussians:
    """Gaussians from the raw values of a decoder; differentiable."""
    activate = F.softplus if activation.scale_activation == "softplus" else torch.exp
    spread = activate(scales + activation.scale_shift)
    return Gaussians(
        positions - 0.5,
        (spread.square() + activation.min_scale**2).sqrt(),
        rotations + rotations.new_tensor([1.0, 0.0, 0.0, 0.0]),
        torch.sigmoid(opacities + activation.opacity_shift),
        features,
        kernel_size,
    )


def covariances(gaussians: Gaussians) -> Tensor:  # float32 [N, 3, 3]  world units squared
    axes = principal_axes(gaussians)
    return axes @ axes.mT


def principal_axes(gaussians: Gaussians) -> Tensor:  # float32 [N, 3, 3]  columns, as long as the scales
    return rotation_matrices(gaussians.quaternions) * gaussians.scales[:, None]


def rotation_matrices(
    quaternions: Tensor,  # float [N, 4]  w, x, y, z; of any length but 0
) -> Tensor:  # float [N, 3, 3]
    w, x, y, z = F.normalize(quaternions, dim=1).unbind(1)
    entries = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(entries, 1).view(-1, 3, 3)


def multiply_quaternions(a: Tensor, b: Tensor) -> Tensor:  # [..., 4] w, x, y, z: first b, then a
    aw, bw, av, bv = a[..., :1], b[..., :1], a[..., 1:], b[..., 1:]
    real = aw * bw - (av * bv).sum(-1, keepdim=True)
    return torch.cat([real, aw * bv + bw * av + torch.linalg.cross(*torch.broadcast_tensors(av, bv))], -1)


def offset_perturbation(
    count: int,  # G
    voxel_size: float,  # how far offsets reach, in voxels
) -> Tensor:  # float32 [G, 3]
    """What to add to raw offsets, before tanh, so that zeros spread evenly over a voxel."""
    if voxel_size <= 1:
        raise ValueError(f"voxel_size must be more than 1, or corners are infinitely far, got {voxel_size}")
    return torch.atanh((2 * hammersley_points(count) - 1) / voxel_size).float()


def hammersley_points(count: int) -> Tensor:  # float64 [count, 3]  in [0, 1)
    """Evenly spread points: i / count, and the radical inverses of i in bases 2 and 3."""
    points = [(i / count, radical_inverse(i, 2), radical_inverse(i, 3)) for i in range(count)]
    return torch.tensor(points, dtype=torch.float64).reshape(count, 3)


def radical_inverse(number: int, base: int) -> float:
    """The digits of `number` in `base`, mirrored at the point."""
    value, weight = 0.0, 1 / base
    while number:
        number, digit = divmod(number, base)
        value += digit * weight
        weight /= base
    return value
