"""What a run of the staged recipe makes so far: held-out objects through the flows that are trained.

Structure cells after the structure flow, bare meshes after the shape flow, materials after the texture flow.
The random numbers of training are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trellis2 import stages
from trellis2.dual_grid import extract_mesh
from trellis2.settings import sampler_settings
from trellis2.workshop import Workshop
from trellis_core.errors import InputError
from trellis_core.geometry.types import Mesh
from trellis_core.models.image_encoder import prepare_images
from trellis_core.runtime import Runtime
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.samples import StageSample
from trellis_core.training.synthetic.objects import HELD_OUT
from trellis_core.training.synthetic.shards import DatasetSettings, make_shard

STRUCTURE = ("encoders", "structure_vae", "structure_flow")
SHAPE = (*STRUCTURE, "shape_vae", "shape_flow")
FLOWS: Mapping[str, tuple[str, ...]] = {  # flow -> what must be trained before there is something to see
    "structure_flow": STRUCTURE,
    "shape_flow": SHAPE,
    "texture_flow": (*SHAPE, "texture_vae", "texture_flow"),
}
SAMPLER = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}}


def missing_stages(shop: Workshop, stage: str) -> list[str]:
    """Which stages that samples of this one need are not trained yet."""
    return [name for name in FLOWS[stage] if not (shop.run / f"{name}.safetensors").exists()]


def sample_stage(shop: Workshop, stage: str, count: int) -> list[StageSample]:
    """`count` held-out pictures and, when the model reads, as many captions; always the same ones.

    Raises `ModelError` when an earlier stage is not trained.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        line = Line.of(shop, stage)
        made = [line.make(start, cond, seed) for seed, (start, cond) in enumerate(conditions(shop, count))]
    return made


def conditions(shop: Workshop, count: int) -> list[tuple[StageSample, Tensor]]:
    """Held-out pictures and captions, with their tokens [1, M, C]."""
    recipe = shop.recipe
    data = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"], views=1)
    held_out = make_shard(range(HELD_OUT, HELD_OUT + count), data, shop.device)
    pictures = held_out["pictures"][:, 0]
    captions = [bytes(row.tolist()).rstrip(b"\0").decode() for row in held_out["captions"][:, 0]]
    grid, side = recipe["token_resolution"], recipe["image_size"]
    encoder = shop.finished("encoders", "image_encoder")
    found = [
        (
            StageSample(label=f"picture {number}", grid=grid, picture=picture),
            encoder(prepare_images(picture[None].to(shop.device).permute(0, 3, 1, 2).float() / 255, side)),
        )
        for number, picture in enumerate(pictures, start=1)
    ]
    if shop.has_text:
        length = recipe["text"]["max_length"]
        for caption in captions:
            ids = torch.tensor([shop.tokenizer.encode(caption, length).ids], device=shop.device)
            found.append((StageSample(label=caption, grid=grid), shop.text_encoder(ids)))
    return found


@dataclass(frozen=True, eq=False)
class Line:
    """The networks from condition to result, as far as they are trained."""

    networks: Mapping[str, nn.Module]  # flow, decoder by stage
    samplers: Mapping[str, SamplerSettings]
    scales: Mapping[str, tuple[Tensor, Tensor]]  # mean and deviation of shape and texture latents
    resolution: int
    runtime: Runtime

    @classmethod
    def of(cls, shop: Workshop, stage: str) -> Line:
        size, line = shop.recipe["resolution"], FLOWS[stage]
        networks, scales = dict[str, nn.Module](), dict[str, tuple[Tensor, Tensor]]()

        def add(kind: str, flow: str, decoder: str) -> None:
            later = f"{kind}_decoder"  # where the decoder went on alone
            trained = later if (shop.run / f"{later}.safetensors").exists() else f"{kind}_vae"
            networks[f"{kind}_flow"] = shop.finished(f"{kind}_flow", flow)
            networks[f"{kind}_decoder"] = shop.finished(trained, decoder)

        add("structure", "sparse_structure_flow_model", "sparse_structure_decoder")
        if "shape_flow" in line:
            add("shape", f"shape_slat_flow_model_{size}", "shape_slat_decoder")
            latents = shop.latents("shape")
            scales["shape"] = latents.mean, latents.std
        if "texture_flow" in line:
            add("texture", f"tex_slat_flow_model_{size}", "tex_slat_decoder")
            latents = shop.latents("texture")
            scales["texture"] = latents.mean, latents.std
        samplers = {
            kind: sampler_settings({**SAMPLER, "params": params})
            for kind, params in shop.recipe["samplers"].items()
        }
        return cls(networks, samplers, scales, size, Runtime(device=shop.device, kernels=shop.kernels))

    def make(self, start: StageSample, cond: Tensor, seed: int) -> StageSample:
        """One object, as far as the line goes."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.runtime.device)

        try:
            coords = self.structure(cond, start.grid, draw)
        except InputError:  # no cell is occupied
            return start
        found = replace(start, cells=coords[:, 1:])
        if "shape_flow" not in self.networks:
            return found
        shape = self.latent("shape", SparseTensor(draw(len(coords), self.channels("shape")), coords, 1), cond)
        if "texture_flow" not in self.networks:
            return replace(found, mesh=self.mesh(shape))
        noise = shape.replace(draw(len(coords), self.channels("texture") - shape.feats.shape[1]))
        color = self.latent("texture", noise, cond, concat_cond=shape)
        decoders = self.networks["shape_decoder"], self.networks["texture_decoder"]
        raw = self.raw("shape", shape), self.raw("texture", color)
        decoded = stages.decode_latents(*decoders, *raw, self.runtime)  # type: ignore[arg-type]
        whole = stages.voxel_meshes(decoded, decoders[0], self.resolution)[0]  # type: ignore[arg-type]
        return replace(found, mesh=whole.mesh, materials=whole.voxels)

    def channels(self, kind: str) -> int:
        return int(self.networks[f"{kind}_flow"].in_channels)  # type: ignore[arg-type]

    def structure(self, cond: Tensor, grid: int, draw: Callable[..., Tensor]) -> Tensor:  # int32 [N, 4]
        flow, decoder = self.networks["structure_flow"], self.networks["structure_decoder"]
        side = int(flow.resolution)  # type: ignore[arg-type]
        noise = draw(1, self.channels("structure"), side, side, side)
        settings = self.samplers["structure"]
        latent = stages.sample_flow(flow, noise, cond, settings, self.runtime, "structure")  # type: ignore[arg-type]
        return stages.occupied_cells(decoder(latent), grid)

    def latent(self, kind: str, noise: SparseTensor, cond: Tensor, **inputs: SparseTensor) -> SparseTensor:
        """In the space the flows work in."""
        flow, settings = self.networks[f"{kind}_flow"], self.samplers[kind]
        return stages.sample_flow(flow, noise, cond, settings, self.runtime, kind, **inputs)  # type: ignore[arg-type]

    def raw(self, kind: str, latent: SparseTensor) -> SparseTensor:
        mean, std = self.scales[kind]
        return latent.replace(latent.feats * std + mean)

    def mesh(self, shape: SparseTensor) -> Mesh:
        decoder = self.networks["shape_decoder"]
        voxels, _ = decoder(self.raw("shape", shape))
        grid = decoder.dual_grid(voxels.feats)  # type: ignore[operator]
        corners = (grid.dual_vertices, grid.crossings, grid.split_weight[:, 0])
        return extract_mesh(voxels.coords[:, 1:], *corners, self.resolution)
