"""The stages of a TRELLIS.2 run, one function each: inputs in, outputs out.

    encode_picture or encode_prompt -> sample_structure -> sample_flow (shape, texture) -> decode

Order of random draws, samplers and thresholds: "Native and Compact Structured Latents for 3D
Generation" (TRELLIS.2, 2025) as released. Letters: B samples, M condition tokens, N latent tokens
or voxels, C channels, R token grid, f voxels per token along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trellis2.dual_grid import extract_mesh
from trellis2.models.sparse_vae import FlexiDualGridVaeDecoder
from trellis2.settings import Normalization
from trellis_core.errors import InputError
from trellis_core.geometry.types import PBRVoxels, VoxelMesh
from trellis_core.models.image_encoder import prepare_images
from trellis_core.nn.transformer import FlowTransformer
from trellis_core.runtime import Runtime
from trellis_core.sampling import multi_image
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sampling.state import State
from trellis_core.sparse.tensor import SparseTensor


def encode_picture(
    encoder: nn.Module,
    pictures: list[Image.Image],  # square RGB, object on black
    image_size: int,  # pixels
    runtime: Runtime,
) -> Tensor:  # float32 [B, M, C]
    """Picture tokens: all encoder tokens, layer-normed without affine parameters."""
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
    cond: Tensor | Sequence[Tensor],  # [B, M, C]; one for each of several pictures
    settings: SamplerSettings,
    runtime: Runtime,
    stage: str,
    *,
    mode: str = multi_image.STOCHASTIC,  # how several pictures are combined
    **inputs: SparseTensor,  # `concat_cond` of the texture flow
) -> State:
    """Integrate one flow from noise to a (normalised) latent, reporting every step.

    Unconditional velocities, for guidance, see a context of zeros.
    """
    conds = [cond] if isinstance(cond, Tensor) else cond
    contexts = [flow.precompute_context(c) for c in conds] if runtime.cache_condition else conds
    runtime.report(stage, 0, settings.steps)
    return multi_image.sample_flow(
        flow,
        noise,
        contexts,
        settings,
        mode=mode,
        on_step=lambda step, _: runtime.report(stage, step + 1, settings.steps),
        **inputs,
    )


def sample_structure(
    flow: FlowTransformer,
    decoder: nn.Module,
    cond: Tensor | Sequence[Tensor],
    noise: Tensor,  # float32 [B, C, r, r, r]
    settings: SamplerSettings,
    resolution: int,  # R, token grid of the shape flow
    runtime: Runtime,
    mode: str = multi_image.STOCHASTIC,
) -> Tensor:  # int32 [N, 4]  batch, x, y, z, sorted
    """Sample the coarse occupancy and list the occupied cells."""
    latent = sample_flow(flow, noise, cond, settings, runtime, "structure", mode=mode)
    return occupied_cells(decoder(latent), resolution)


def occupied_cells(
    logits: Tensor,  # [B, 1, D, D, D]  occupied where > 0
    resolution: int,
) -> Tensor:  # int32 [N, 4]
    """Cells of a `resolution` grid that contain an occupied cell of the decoded grid."""
    occupied = logits > 0
    decoded = occupied.shape[-1]
    if decoded != resolution:
        if decoded % resolution:
            raise InputError(
                f"a structure grid of {resolution} cannot be taken from a decoded grid of {decoded}",
                hint="choose another --pipeline",
            )
        ratio = decoded // resolution
        occupied = F.max_pool3d(occupied.float(), ratio, ratio) > 0.5
    coords = torch.argwhere(occupied)[:, [0, 2, 3, 4]].int()
    if len(coords) == 0:
        raise InputError(
            "the model found no object to make",
            hint="check the background removal or the prompt, use another --seed or raise "
            "--structure-guidance",
        )
    return coords


def normalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Raw latents -> the space the flows work in."""
    mean, std = _vectors(normalization, latent.feats)
    return latent.replace((latent.feats - mean) / std)


def denormalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Flow space -> raw latents, which the decoders expect."""
    mean, std = _vectors(normalization, latent.feats)
    return latent.replace(latent.feats * std + mean)


def _vectors(normalization: Normalization, like: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(normalization.mean, dtype=like.dtype, device=like.device)
    std = torch.tensor(normalization.std, dtype=like.dtype, device=like.device)
    return mean, std


@dataclass(frozen=True, slots=True)
class CascadeTokens:
    """Token coordinates of the second shape pass, and the voxel grid they allow."""

    coords: Tensor  # int32 [N, 4] sorted
    resolution: int


def cascade_tokens(
    coords: Tensor,  # int32 [V, 4]  voxels that the draft's decoder would create
    draft_resolution: int,  # voxel grid of `coords`
    resolution: int,  # requested voxel grid
    max_tokens: int,
    factor: int = 16,  # f
) -> CascadeTokens:
    """Quantise the draft's voxels to the token grid, lowering the resolution until few enough remain.

    Steps of a quarter of the draft's grid down to twice the draft's grid, where the limit is no
    longer enforced (released behaviour: 1536, 1408, 1280, 1152, 1024 for a draft of 512).
    """
    step, lowest = draft_resolution // 4, 2 * draft_resolution
    while True:
        grid = resolution // factor
        xyz = ((coords[:, 1:].float() + 0.5) / draft_resolution * grid).int()
        tokens = torch.unique(torch.cat([coords[:, :1], xyz], dim=1), dim=0)
        if len(tokens) < max_tokens or resolution - step < lowest:
            return CascadeTokens(tokens, resolution)
        resolution -= step


@dataclass(frozen=True, slots=True)
class DecodedVoxels:
    """Both decoders' output on the same voxels."""

    shape: SparseTensor  # [V, 7] raw shape decoder output
    attrs: SparseTensor  # [V, 6] material, about [0, 1]
    subdivisions: tuple[SparseTensor, ...]  # logits [P, 8] per level, coarse to fine


def decode_latents(
    shape_decoder: FlexiDualGridVaeDecoder,
    texture_decoder: nn.Module,
    shape_latent: SparseTensor,  # raw
    texture_latent: SparseTensor,  # raw, on the same tokens
    runtime: Runtime,
) -> DecodedVoxels:
    """Latents -> voxels. The texture decoder follows the shape decoder's subdivisions."""
    runtime.report("decode", 0, 2)
    shape, subdivisions = shape_decoder(shape_latent)
    runtime.report("decode", 1, 2)
    attrs = decode_texture(texture_decoder, texture_latent, subdivisions)
    runtime.report("decode", 2, 2)
    return DecodedVoxels(shape, attrs, subdivisions)


def decode_texture(
    decoder: nn.Module,
    latent: SparseTensor,  # raw
    subdivisions: Sequence[
        SparseTensor
    ] = (),  # of the shape decoder; () when the latent remembers its voxels
) -> SparseTensor:  # float32 [V, 6] about [0, 1], not clamped
    """Material attributes on the voxels below the latent's tokens."""
    raw, _ = decoder(latent, subdivisions)
    return raw.replace(raw.feats * 0.5 + 0.5)


def voxel_meshes(
    decoded: DecodedVoxels, shape_decoder: FlexiDualGridVaeDecoder, resolution: int
) -> list[VoxelMesh]:
    """One dual-grid mesh with its material voxels per sample."""
    meshes = []
    for sample in range(decoded.shape.batch_size):
        rows = decoded.shape.layout.rows(sample)
        coords = decoded.shape.coords[rows, 1:]
        grid = shape_decoder.dual_grid(decoded.shape.feats[rows])
        mesh = extract_mesh(coords, grid.dual_vertices, grid.crossings, grid.split_weight[:, 0], resolution)
        meshes.append(VoxelMesh(mesh, PBRVoxels(coords, decoded.attrs.feats[rows].float(), resolution)))
    return meshes
