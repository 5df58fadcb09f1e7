"""The stages of a TRELLIS v1 run, one function each: inputs in, outputs out.

    encode_picture or encode_prompt -> sample_flow -> occupied_voxels -> sample_flow -> decode_*

Order of random draws, samplers and thresholds: TRELLIS (Xiang et al., 2024) as released.
Letters: B samples, M condition tokens, N voxels, C channels, R voxel grid, r grid of the structure latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trellis.flexicubes import CubeMesh, cube_meshes
from trellis.models.latent_vae import SLatGaussianDecoder, SLatMeshDecoder, SLatRadianceFieldDecoder
from trellis.representations import gaussians, radiance_fields
from trellis_core.errors import InputError
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.models.flow import encode_picture, encode_prompt, sample_flow  # noqa: F401
from trellis_core.models.structure_vae import occupied_cells
from trellis_core.sampling.normalization import denormalize, normalize  # noqa: F401
from trellis_core.sparse.ops import repeated  # noqa: F401
from trellis_core.sparse.tensor import SparseTensor


def occupied_voxels(
    logits: Tensor,  # [B, 1, R, R, R]  occupied where > 0
) -> Tensor:  # int32 [N, 4]  batch, x, y, z, sorted
    """Raises `InputError` when a sample has none: nothing can follow."""
    coords = occupied_cells(logits, logits.shape[-1])
    if len(coords[:, 0].unique()) < len(logits):
        raise InputError(
            "the structure stage produced no voxels",
            hint="check the background removal or the prompt, use another --seed or raise "
            "--structure-guidance",
        )
    return coords


def decode_gaussians(decoder: SLatGaussianDecoder, latent: SparseTensor) -> list[Gaussians]:
    """Raw latents to one cloud per sample."""
    return read_gaussians(decoder, decoder(latent))


def decode_fields(decoder: SLatRadianceFieldDecoder, latent: SparseTensor) -> list[RadianceField]:
    """Raw latents to one field per sample."""
    return read_fields(decoder, decoder(latent))


def read_gaussians(decoder: SLatGaussianDecoder, decoded: SparseTensor) -> list[Gaussians]:
    """What the numbers of a decoder mean, one value per sample."""
    return gaussians(decoded, decoder.layout, decoder.offset_perturbation, decoder.resolution)


def read_fields(decoder: SLatRadianceFieldDecoder, decoded: SparseTensor) -> list[RadianceField]:
    return radiance_fields(decoded, decoder.layout, decoder.resolution)


def read_meshes(decoder: SLatMeshDecoder, decoded: SparseTensor) -> list[CubeMesh]:
    return cube_meshes(decoded, decoder.layout, decoder.mesh_resolution)


READ: Mapping[str, Callable[[Any, SparseTensor], list[Any]]] = {
    "mesh": read_meshes,
    "gaussians": read_gaussians,
    "radiance_field": read_fields,
}


def cells_per_voxel(decoder: nn.Module) -> int:
    """How finely a decoder cuts the voxels of the latent, along an axis."""
    return decoder.mesh_resolution // decoder.resolution if isinstance(decoder, SLatMeshDecoder) else 1
