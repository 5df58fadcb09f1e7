"""The stages of a TRELLIS.2 run, one function each: inputs in, outputs out.

    encode_picture or encode_prompt -> sample_flow (structure) -> occupied_cells
    -> sample_flow (shape, texture) -> decode

Order of random draws, samplers and thresholds: "Native and Compact Structured Latents for 3D
Generation" (TRELLIS.2, 2025) as released. Letters: B samples, M condition tokens, N latent tokens
or voxels, C channels, R token grid, f voxels per token along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis2.dual_grid import extract_mesh
from trellis2.models.sparse_vae import FlexiDualGridVaeDecoder
from trellis_core.errors import InputError
from trellis_core.geometry.types import PBRVoxels, VoxelMesh
from trellis_core.models import structure_vae
from trellis_core.models.flow import encode_picture, encode_prompt, sample_flow  # noqa: F401
from trellis_core.runtime import Runtime
from trellis_core.sampling.edit import Layer, outside_changes, overlay
from trellis_core.sampling.normalization import denormalize, normalize  # noqa: F401
from trellis_core.sparse.tensor import SparseTensor


def occupied_cells(
    logits: Tensor,  # [B, 1, D, D, D]  occupied where > 0
    resolution: int,
) -> Tensor:  # int32 [N, 4]
    """Cells of a `resolution` grid that contain an occupied cell of the decoded grid, at least one."""
    coords = structure_vae.occupied_cells(logits, resolution)
    if len(coords) == 0:
        raise InputError(
            "the model found no object to make",
            hint="check the background removal or the prompt, use another --seed or raise "
            "--structure-guidance",
        )
    return coords


@dataclass(frozen=True, slots=True)
class CascadeTokens:
    """Token coordinates of the second shape pass, and the voxel grid they allow."""

    coords: Tensor  # int32 [N, 4] sorted
    resolution: int


def cascade_tokens(
    coords: Tensor,  # int32 [V, 4]  voxels that the draft's decoder would create
    draft_resolution: int,  # voxel grid of `coords`
    resolution: int,  # requested voxel grid
    max_tokens: int | None,  # None: at any price
    factor: int = 16,  # f
) -> CascadeTokens:
    """Quantise the draft's voxels to the token grid, lowering the resolution until few enough remain."""
    grids = cascade_resolutions(draft_resolution, resolution)
    while True:
        grid = grids[0] // factor
        xyz = ((coords[:, 1:].float() + 0.5) / draft_resolution * grid).int()
        tokens = torch.unique(torch.cat([coords[:, :1], xyz], dim=1), dim=0)
        if max_tokens is None or len(tokens) < max_tokens or len(grids) == 1:
            return CascadeTokens(tokens, grids[0])
        grids = grids[1:]


def cascade_resolutions(draft: int, resolution: int) -> Sequence[int]:
    """Voxel grids to try after a draft, finest first. For the coarsest no limit of tokens is enforced.

    Steps of a quarter of the draft's grid down to twice the draft's grid (released behaviour: 1536, 1408,
    1280, 1152, 1024 for a draft of 512).
    """
    return (resolution, *range(resolution - draft // 4, 2 * draft - 1, -(draft // 4)))


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


def overlaid(below: DecodedVoxels, above: DecodedVoxels, layer: Layer, runtime: Runtime) -> DecodedVoxels:
    """An edited object: `above` in the region of its layer, `below` outside, to the last bit.

    Says how many voxels outside the decoders would have changed, which look beyond the region.
    """
    assert layer.extent is not None  # only the first layer is everywhere
    factor = 2 ** len(above.subdivisions)
    outside, changed = outside_changes(below.shape, above.shape, layer.extent, factor)
    note = f"kept {outside:,} voxels outside of the region; decoding would have changed {changed:,} of them"
    runtime.report("decode", 2, 2, note)
    parts = ((below.shape, above.shape), (below.attrs, above.attrs))
    shape, attrs = (overlay(*pair, layer.extent, factor) for pair in parts)
    return DecodedVoxels(shape, attrs, above.subdivisions)


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
