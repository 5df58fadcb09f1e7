"""Run a model on many inputs at once. Every object gets the random numbers that `Pipeline.sample` would draw
for its seed, so a batch makes what single runs make (up to the rounding of batched arithmetic).

Letters: B samples, M condition tokens, N latent tokens, V voxels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import trellis2
from trellis2 import stages
from trellis2.loading import load_network
from trellis2.pipeline import Pipeline
from trellis_core.geometry.types import VoxelMesh
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.budget import choose_dtype
from trellis_core.memory.devices import DeviceInfo, describe_processor
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor


@dataclass(frozen=True, slots=True)
class Model:
    """A pipeline and where its files lie."""

    pipeline: Pipeline
    folder: Path
    batch: int  # objects that run together

    @property
    def runtime(self) -> Runtime:
        return self.pipeline.runtime

    @property
    def resolution(self) -> int:
        """Voxels along an axis."""
        return self.pipeline.settings.pipeline_type(None).resolution

    @property
    def tokens(self) -> int:
        """Structure cells along an axis."""
        return self.pipeline.settings.pipeline_type(None).structure_resolution

    def network(self, name: str) -> nn.Module:
        """A network that only training and this benchmark use, such as an encoder."""
        return load_network(self.folder / "ckpts" / name, self.runtime).to(self.runtime.device)


@dataclass(frozen=True, slots=True)
class Result:
    """What came out for one input; None where the model found no object."""

    shape: VoxelMesh | None
    cells: Tensor  # int [N, 3]  occupied structure cells


NOTHING = Result(None, torch.zeros(0, 3, dtype=torch.int32))


def open_model(name: str, device: str, batch: int | None = None) -> Model:
    """The model `embedded` or a folder, in the precision that the tool would choose for the device."""
    info = describe_processor() if device == "cpu" else describe_cuda()
    runtime = Runtime(
        device=torch.device(device),
        dtype=choose_dtype(info),
        kernels=resolve_kernels(info),
        keep_resident=True,
    )
    folder = trellis2.EMBEDDED_FOLDER if name == "embedded" else Path(name)
    return Model(trellis2.load(name, runtime), folder, batch or (4 if device == "cpu" else 32))


def describe_cuda() -> DeviceInfo:
    """The first GPU as torch sees it: NVIDIA's management library may be missing here."""
    facts = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    capability = (facts.major, facts.minor)
    return DeviceInfo(
        kind="cuda",
        name=facts.name,
        capability=capability,
        total_memory=total,
        free_memory=free,
        native_bf16=capability >= (8, 0),
    )


def picture_tokens(model: Model, pictures: Sequence[Image.Image]) -> Tensor:  # float32 [B, M, C]
    """Tokens of pictures as a user gives them; without transparency the whole picture counts."""
    size = model.pipeline.settings.pipeline_type(None).structure_image_size
    squares = [preprocess_picture(p, None) for p in pictures]
    with torch.inference_mode(), model.pipeline.networks.use("image_encoder", model.runtime) as encoder:
        return torch.cat(
            [
                stages.encode_picture(encoder, squares[i : i + 64], size, model.runtime)
                for i in range(0, len(squares), 64)
            ]
        )


def generate(
    model: Model,
    cond: Tensor,  # float32 [B, M, C]
    seeds: Sequence[int],
    cells: Sequence[Tensor] | None = None,  # int [N, 3] each: the structure, instead of sampling it
) -> list[Result]:
    """One object for each condition and seed."""
    results: list[Result] = []
    for part in batches(len(seeds), model.batch):
        given = None if cells is None else cells[part]
        results += _generate(model, cond[part], seeds[part], given)
    return results


def batches(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


@torch.inference_mode()
def _generate(
    model: Model, cond: Tensor, seeds: Sequence[int], cells: Sequence[Tensor] | None
) -> list[Result]:
    settings, networks, runtime = model.pipeline.settings, model.pipeline.networks, model.runtime
    kind = settings.pipeline_type(None)
    if len(kind.shape_passes) != 1:
        raise ValueError(f"the pipeline type `{kind.name}` is a cascade; this benchmark runs single passes")
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    if cells is None:
        with (
            networks.use("sparse_structure_flow_model", runtime) as flow,
            networks.use("sparse_structure_decoder", runtime) as decoder,
        ):
            shape = (1, flow.in_channels, *[flow.resolution] * 3)
            noise = torch.cat([torch.randn(shape, generator=s) for s in sources]).to(runtime.device)
            latent = stages.sample_flow(flow, noise, cond, settings.structure_sampler, runtime, "structure")
            coords = _occupied(decoder(latent), kind.structure_resolution)
    else:
        coords = stack_cells(cells, runtime.device)
    present = coords[:, 0].unique().tolist()  # samples without any cell take no part in what follows
    if not present:
        return [NOTHING] * len(seeds)
    rank = torch.full((len(seeds),), -1, dtype=torch.int32, device=coords.device)
    rank[present] = torch.arange(len(present), dtype=torch.int32, device=coords.device)
    coords = torch.cat([rank[coords[:, 0].long()][:, None], coords[:, 1:]], dim=1)
    lengths = torch.bincount(coords[:, 0], minlength=len(present)).tolist()
    cond, drawn = cond[present], [sources[i] for i in present]

    def noise_on(channels: int) -> Tensor:
        rows = [torch.randn(n, channels, generator=s) for n, s in zip(lengths, drawn, strict=True)]
        return torch.cat(rows).to(runtime.device)

    with networks.use(kind.shape_passes[0].model, runtime) as flow:
        noise = SparseTensor(noise_on(flow.in_channels), coords, len(present))
        shape = stages.sample_flow(flow, noise, cond, settings.shape_sampler, runtime, "shape")
    with networks.use(kind.texture_model, runtime) as flow:
        noise = shape.replace(noise_on(flow.in_channels - shape.feats.shape[1]))
        texture = stages.sample_flow(
            flow, noise, cond, settings.texture_sampler, runtime, "texture", concat_cond=shape
        )
    meshes = decode(
        model,
        stages.denormalize(shape, settings.shape_normalization),
        stages.denormalize(texture, settings.texture_normalization),
    )
    results = [NOTHING] * len(seeds)
    for place, (sample, mesh) in enumerate(zip(present, meshes, strict=True)):
        results[sample] = Result(mesh, coords[coords[:, 0] == place, 1:])
    return results


def _occupied(logits: Tensor, resolution: int) -> Tensor:
    """Like the pipeline's stage, but a batch may hold samples, or consist of samples, without any cell."""
    if not bool((logits > 0).any()):
        return torch.zeros(0, 4, dtype=torch.int32, device=logits.device)
    return stages.occupied_cells(logits, resolution)


def decode(model: Model, shape: SparseTensor, texture: SparseTensor) -> list[VoxelMesh]:
    """Raw latents to meshes with material voxels."""
    networks, runtime = model.pipeline.networks, model.runtime
    with (
        networks.use("shape_slat_decoder", runtime) as shape_decoder,
        networks.use("tex_slat_decoder", runtime) as texture_decoder,
    ):
        decoded = stages.decode_latents(shape_decoder, texture_decoder, shape, texture, runtime)
        return stages.voxel_meshes(decoded, shape_decoder, model.resolution)


@dataclass(frozen=True, slots=True)
class Voxels:
    """Ground-truth voxels of one object, as the encoders take them."""

    coords: Tensor  # int [V, 3]
    position: Tensor  # float32 [V, 3]  dual vertex in its voxel, [0, 1]
    flags: Tensor  # bool [V, 3]
    attrs: Tensor  # float32 [V, 6]  [0, 1]


def reconstruct(model: Model, objects: Sequence[Voxels]) -> list[Result]:
    """What the autoencoders make of the truth: the ceiling of every sample.

    The structure cells are those of the structure autoencoder; the latents stand on the true tokens, and
    the decoders have to find the voxels themselves.
    """
    encoders = [
        model.network(n) for n in ("sparse_structure_encoder", "shape_slat_encoder", "tex_slat_encoder")
    ]
    results: list[Result] = []
    for part in batches(len(objects), model.batch):
        results += _reconstruct(model, objects[part], *encoders)
    return results


@torch.inference_mode()
def _reconstruct(
    model: Model, objects: Sequence[Voxels], structure: nn.Module, shape: nn.Module, texture: nn.Module
) -> list[Result]:
    device, count = model.runtime.device, len(objects)
    coords = stack_cells([o.coords for o in objects], device)
    position = SparseTensor(torch.cat([o.position for o in objects]).to(device), coords, count)
    flags = torch.cat([o.flags for o in objects]).to(device)
    attrs = position.replace(torch.cat([o.attrs for o in objects]).to(device) * 2 - 1)
    latents = [mean for mean, _ in (shape(position, flags), texture(attrs))]
    # fresh plans: the encoders' own remember the true voxels
    raw_shape, raw_texture = (SparseTensor(x.feats.float(), x.coords, count) for x in latents)
    meshes = decode(model, raw_shape, raw_texture)
    grid = torch.zeros(count, 1, *[model.tokens] * 3, device=device)
    factor = model.resolution // model.tokens
    sample, x, y, z = torch.cat([coords[:, :1], coords[:, 1:] // factor], dim=1).long().unbind(1)
    grid[sample, 0, x, y, z] = 1
    with model.pipeline.networks.use("sparse_structure_decoder", model.runtime) as decoder:
        found = _occupied(decoder(structure(grid)[0]), model.tokens)
    return [Result(mesh, found[found[:, 0] == i, 1:]) for i, mesh in enumerate(meshes)]


def stack_cells(cells: Sequence[Tensor], device: torch.device) -> Tensor:  # int32 [N, 4]
    """Cells of several samples with their sample number in front."""
    return torch.cat(
        [torch.cat([torch.full_like(c[:, :1], i), c], dim=1).int().to(device) for i, c in enumerate(cells)]
    )
