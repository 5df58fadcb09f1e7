"""The stages of a TRELLIS v1 run, one function each: inputs in, outputs out.

    encode_picture or encode_prompt -> sample_flow -> occupied_voxels -> sample_flow -> decode_*

Order of random draws, samplers and thresholds: TRELLIS (Xiang et al., 2024) as released.
Letters: B samples, M condition tokens, N voxels, C channels, R voxel grid, r grid of the structure latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from trellis.flexicubes import CubeMesh, cube_meshes
from trellis.models.latent_vae import SLatGaussianDecoder, SLatMeshDecoder, SLatRadianceFieldDecoder
from trellis.representations import gaussians, radiance_fields
from trellis.settings import Normalization
from trellis_core.errors import InputError
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.models.image_encoder import prepare_images
from trellis_core.nn.transformer import FlowTransformer
from trellis_core.runtime import Runtime
from trellis_core.sampling import multi_image
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sampling.state import State
from trellis_core.sparse.tensor import SparseTensor


def encode_picture(
    encoder: nn.Module,
    pictures: Sequence[Image.Image],  # square RGB, object on black
    image_size: int,  # pixels
    runtime: Runtime,
) -> Tensor:  # float32 [B, M, C]
    """Picture tokens: class, registers and patches, layer-normed without affine parameters."""
    tokens: Tensor = encoder(prepare_images(pictures, image_size).to(runtime.device))
    return tokens


def encode_prompt(
    encoder: nn.Module,
    ids: Sequence[int],  # M token ids of one prompt
    runtime: Runtime,
) -> Tensor:  # float32 [1, M, C]
    """Text tokens: all of them, the end tokens that fill the prompt among them."""
    tokens: Tensor = encoder(torch.tensor([list(ids)], device=runtime.device))
    return tokens


def sample_flow(
    flow: FlowTransformer,
    noise: State,
    conds: Sequence[Tensor],  # [1 or B, M, C] for each of several pictures
    settings: SamplerSettings,
    runtime: Runtime,
    stage: str,
    *,
    uncond: Tensor | None = None,  # [1, M, C] of the empty prompt; None is a context of zeros
    mode: str = multi_image.STOCHASTIC,  # how several pictures are combined
) -> State:
    """Integrate one flow from noise to a latent, reporting every step."""
    contexts, empty = list(conds), uncond
    if runtime.cache_condition:
        contexts = [flow.precompute_context(cond) for cond in conds]  # type: ignore[misc]
        empty = None if uncond is None else flow.precompute_context(uncond)  # type: ignore[assignment]
    runtime.report(stage, 0, settings.steps)
    return multi_image.sample_flow(
        flow,
        noise,
        contexts,
        settings,
        mode=mode,
        uncond=empty,
        on_step=lambda step, _: runtime.report(stage, step + 1, settings.steps),
    )


def occupied_voxels(
    logits: Tensor,  # [B, 1, R, R, R]  occupied where > 0
) -> Tensor:  # int32 [N, 4]  batch, x, y, z, sorted
    """Raises `InputError` when a sample has none: nothing can follow."""
    coords = torch.argwhere(logits > 0)[:, [0, 2, 3, 4]].int()
    if len(coords[:, 0].unique()) < len(logits):
        raise InputError(
            "the structure stage produced no voxels",
            hint="check the background removal or the prompt, use another --seed or raise "
            "--structure-guidance",
        )
    return coords


def repeated(
    voxels: Tensor,  # int32 [N, 3]
    samples: int,  # B
) -> Tensor:  # int32 [B * N, 4]
    """The same voxels for every sample."""
    batch = torch.arange(samples, dtype=torch.int32, device=voxels.device)
    return torch.cat([batch.repeat_interleave(len(voxels))[:, None], voxels.repeat(samples, 1)], dim=1)


def normalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Raw latents -> the space the flow works in."""
    mean, std = vectors(normalization, latent.feats)
    return latent.replace((latent.feats - mean) / std)


def denormalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Flow space -> raw latents, which the decoders expect."""
    mean, std = vectors(normalization, latent.feats)
    return latent.replace(latent.feats * std + mean)


def vectors(normalization: Normalization, like: Tensor) -> tuple[Tensor, Tensor]:
    return like.new_tensor(normalization.mean), like.new_tensor(normalization.std)


def decode_gaussians(decoder: SLatGaussianDecoder, latent: SparseTensor) -> list[Gaussians]:
    """Raw latents to one cloud per sample."""
    return gaussians(decoder(latent), decoder.layout, decoder.offset_perturbation, decoder.resolution)


def decode_fields(decoder: SLatRadianceFieldDecoder, latent: SparseTensor) -> list[RadianceField]:
    """Raw latents to one field per sample."""
    return radiance_fields(decoder(latent), decoder.layout, decoder.resolution)


def decode_meshes(decoder: SLatMeshDecoder, latent: SparseTensor) -> list[CubeMesh]:
    """Raw latents to one mesh per sample."""
    return cube_meshes(decoder(latent), decoder.layout, decoder.mesh_resolution)


DECODE: Mapping[str, Callable[[Any, SparseTensor], list[Any]]] = {
    "mesh": decode_meshes,
    "gaussians": decode_gaussians,
    "radiance_field": decode_fields,
}
