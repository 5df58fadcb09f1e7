"""What the numbers of the Gaussian and radiance-field decoders mean, and how cube features are laid out.

Layouts come from the `representation_config` of the released configurations.
TRELLIS (Xiang et al., 2024), section 3.2. Letters: T voxels, N Gaussians of a sample, G Gaussians per voxel,
K ranks, D samples per vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from trellis_core.geometry.fields import (
    GaussianActivation,
    Gaussians,
    RadianceField,
    activate_gaussians,
    offset_perturbation,
)
from trellis_core.sparse.tensor import SparseTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianLayout:
    """Channels of the Gaussian decoder: offsets 3 G, colors 3 G, scales 3 G, rotations 4 G, opacities G."""

    count: int  # G
    position_gain: float = 1.0  # the network's numbers are multiplied by these gains
    color_gain: float = 1.0
    scale_gain: float = 1.0
    rotation_gain: float = 0.1
    opacity_gain: float = 1.0
    perturb_offset: bool = True  # zeros spread the centres over the voxel
    reach: float = 1.5  # how far a centre may leave the voxel's: this times half a voxel
    kernel_size: float = 0.1  # pixels^2
    activation: GaussianActivation = field(default_factory=GaussianActivation)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GaussianLayout:
        """Translate a released `representation_config`."""
        gains: Mapping[str, float] = config["lr"]
        activation: Literal["softplus", "exp"] = config["scaling_activation"]
        return cls(
            count=config["num_gaussians"],
            position_gain=gains["_xyz"],
            color_gain=gains["_features_dc"],
            scale_gain=gains["_scaling"],
            rotation_gain=gains["_rotation"],
            opacity_gain=gains["_opacity"],
            perturb_offset=config["perturb_offset"],
            reach=config["voxel_size"],
            kernel_size=config["2d_filter_kernel_size"],
            activation=GaussianActivation(
                scale_activation=activation,
                scale_bias=config["scaling_bias"],
                min_scale=config["3d_filter_kernel_size"],
                opacity_bias=config["opacity_bias"],
            ),
        )

    @property
    def channels(self) -> int:
        return 14 * self.count

    @property
    def perturbation(self) -> Tensor:  # float32 [G, 3]
        return offset_perturbation(self.count, self.reach)


@dataclass(frozen=True, slots=True)
class RawGaussians:
    """Gaussians of one sample before their activations, voxel by voxel."""

    positions: Tensor  # float32 [N, 3]  in the unit cube [0, 1]^3
    features: Tensor  # float32 [N, 3]
    scales: Tensor  # float32 [N, 3]
    rotations: Tensor  # float32 [N, 4]
    opacities: Tensor  # float32 [N, 1]


def raw_gaussians(
    decoded: SparseTensor,  # float32 [T, 14 G]
    layout: GaussianLayout,
    perturbation: Tensor,  # float32 [G, 3], the decoder's buffer
    resolution: int,
) -> list[RawGaussians]:
    """One value per sample; differentiable."""
    widths = [width * layout.count for width in (3, 3, 3, 4, 1)]
    parts = [part.unflatten(1, (layout.count, -1)) for part in decoded.feats.float().split(widths, dim=1)]
    gains = (
        layout.position_gain,
        layout.color_gain,
        layout.scale_gain,
        layout.rotation_gain,
        layout.opacity_gain,
    )
    offsets, *rest = (part * gain for part, gain in zip(parts, gains, strict=True))
    if layout.perturb_offset:
        offsets = offsets + perturbation
    centres = (decoded.coords[:, None, 1:].float() + 0.5) / resolution
    positions = centres + torch.tanh(offsets) / resolution * 0.5 * layout.reach
    values = [positions, *rest]
    return [
        RawGaussians(*(value[decoded.layout.rows(sample)].flatten(0, 1) for value in values))
        for sample in range(decoded.batch_size)
    ]


def gaussians(
    decoded: SparseTensor, layout: GaussianLayout, perturbation: Tensor, resolution: int
) -> list[Gaussians]:
    """The decoder's numbers as Gaussians in world space, one cloud per sample; differentiable."""
    return [
        activate_gaussians(
            raw.positions,
            raw.scales,
            raw.rotations,
            raw.opacities,
            raw.features,
            layout.activation,
            kernel_size=layout.kernel_size,
        )
        for raw in raw_gaussians(decoded, layout, perturbation, resolution)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLayout:
    """Channels of the radiance-field decoder: vectors [K, 3, D], densities [K], colors [K, 3]."""

    rank: int  # K
    dim: int  # D

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FieldLayout:
        return cls(rank=config["rank"], dim=config["dim"])

    @property
    def channels(self) -> int:
        return 3 * self.rank * self.dim + 4 * self.rank


def radiance_fields(
    decoded: SparseTensor,  # float32 [T, channels]
    layout: FieldLayout,
    resolution: int,
) -> list[RadianceField]:
    """The decoder's numbers as tri-vector fields, one per sample. Zeros are vectors of ones."""
    rank, dim = layout.rank, layout.dim
    vectors, densities, colors = decoded.feats.float().split([3 * rank * dim, rank, 3 * rank], dim=1)
    vectors = vectors.unflatten(1, (rank, 3, dim)) + 1
    colors = colors.unflatten(1, (rank, 3))
    return [
        RadianceField(decoded.coords[rows, 1:], vectors[rows], densities[rows], colors[rows], resolution)
        for rows in map(decoded.layout.rows, range(decoded.batch_size))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeLayout:
    """Channels of the mesh decoder: sdf 8, deformation 8 x 3, FlexiCubes weights 21, attributes 8 x 6."""

    use_color: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CubeLayout:
        return cls(use_color=config.get("use_color", False))

    @property
    def channels(self) -> int:
        return 8 + 24 + 21 + (48 if self.use_color else 0)
