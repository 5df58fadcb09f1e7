"""What the training stages share: recipe, data, random numbers and the networks that are finished.

Letters: B batch, T packed tokens or voxels, M picture tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trellis2.models import MODELS
from trellis_core.models.image_encoder import prepare_images
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.checkpoints import averaged_weights
from trellis_core.training.objectives import logit_normal_times, posterior_sample
from trellis_core.training.precision import Float32Attention
from trellis_core.training.synthetic.grids import occupancy_grids
from trellis_core.training.synthetic.shards import Dataset


@dataclass(frozen=True, eq=False)
class Workshop:
    """Everything a stage may need."""

    recipe: Mapping[str, Any]
    dataset: Dataset
    run: Path  # where checkpoints of stages lie
    generator: torch.Generator = field(default_factory=torch.Generator)

    def settings(self, stage: str) -> Mapping[str, Any]:
        return self.recipe["stages"][stage]  # type: ignore[no-any-return]

    def build(self, name: str) -> nn.Module:
        """A network of the recipe with random weights."""
        entry = self.recipe["models"][name]
        network = MODELS[entry["name"]](**entry["args"], kernels=Float32Attention())
        network.initialize()  # type: ignore[operator]
        return network

    def finished(self, stage: str, name: str) -> nn.Module:
        """A network of an earlier stage, frozen, with its averaged weights."""
        network = self.build(name)
        network.load_state_dict(averaged_weights(self.run / f"{stage}.safetensors", f"{name}."))
        return network.eval().requires_grad_(False)

    def choose(self, count: int) -> np.ndarray:
        """Random objects of the dataset."""
        return torch.randint(len(self.dataset), (count,), generator=self.generator).numpy()

    def some(self, members: np.ndarray, count: int) -> np.ndarray:
        """Up to `count` random different members."""
        order = torch.randperm(len(members), generator=self.generator)[:count]
        return members[order.numpy()]  # type: ignore[no-any-return]

    def voxel_batch(self, chosen: np.ndarray) -> VoxelBatch:
        """The voxels of the chosen objects."""
        sample, rows = stacked(self.dataset.starts, chosen)
        d, index = self.dataset, rows.numpy()
        coords = torch.cat([sample, torch.from_numpy(d.coords[index]).int()], dim=1)
        position = SparseTensor(torch.from_numpy(d.position[index]).float() / 255, coords, len(chosen))
        bits = torch.from_numpy(d.flags[index])[:, None] >> torch.arange(3, dtype=torch.uint8)
        attrs = torch.from_numpy(d.attrs[index]).float() / 127.5 - 1
        return VoxelBatch(position, (bits & 1).bool(), position.replace(attrs))

    def noisy_latent(self, mean: Tensor, logvar: Tensor, settings: Mapping[str, Any]) -> Tensor:
        """A posterior sample with a little noise on top, as a flow's samples have."""
        latent = posterior_sample(mean, logvar, self.generator)
        return latent + settings["latent_noise"] * torch.randn(latent.shape, generator=self.generator)

    def latents(self, kind: Literal["shape", "texture"]) -> Latents:
        """Normalised posterior means of the first `latent_objects`, made once and kept in the run folder."""
        path = self.run / f"{kind}_latents.safetensors"
        if not path.exists():
            self._encode(path, kind)
        stored = load_file(path)
        mean, std = stored["feats"].float().mean(dim=0), stored["feats"].float().std(dim=0)
        return Latents(
            stored["coords"], (stored["feats"].float() - mean) / std, stored["starts"].numpy(), mean, std
        )

    @torch.no_grad()
    def _encode(self, path: Path, kind: Literal["shape", "texture"]) -> None:
        name = "shape_slat_encoder" if kind == "shape" else "tex_slat_encoder"
        encoder = self.finished(f"{kind}_vae", name)
        parts = []
        count = min(self.recipe["latent_objects"], len(self.dataset))
        for chosen in np.array_split(np.arange(count), max(count // 16, 1)):
            voxels = self.voxel_batch(chosen)
            inputs = (voxels.position, voxels.flags) if kind == "shape" else (voxels.attrs,)
            parts.append(encoder(*inputs)[0])
        lengths = [n for part in parts for n in part.seqlens]
        save_file(
            {
                "coords": torch.cat([p.coords[:, 1:].byte() for p in parts]),
                "feats": torch.cat([p.feats.half() for p in parts]),
                "starts": torch.tensor([0, *lengths]).cumsum(0),
            },
            path,
        )

    def times(self, settings: Mapping[str, Any], count: int) -> Tensor:  # float32 [B]
        """Times of a batch, logit-normal."""
        mean, std = settings["times"]
        return logit_normal_times(count, mean, std, self.generator)

    def conditions(self, features: Tensor, chosen: np.ndarray, drop: float = 0.1) -> Tensor:
        """Tokens float32 [B, M, C] of a random view of each object, zeros with probability `drop`."""
        views = torch.randint(features.shape[1], (len(chosen),), generator=self.generator)
        keep = torch.rand(len(chosen), generator=self.generator) >= drop
        return features[torch.from_numpy(chosen), views].float() * keep[:, None, None]

    @cached_property
    def features(self) -> Tensor:  # float16 [n, V, M, C]
        """Picture tokens of every view, made once by the finished encoder and kept in the run folder."""
        path = self.run / "features.safetensors"
        if path.exists():
            return load_file(path)["features"]
        encoder = self.finished("image_encoder", "image_encoder")
        pictures = torch.from_numpy(self.dataset.pictures).permute(0, 1, 4, 2, 3)
        with torch.no_grad():
            tokens = [
                encoder(prepare_images(part.float() / 255, self.recipe["image_size"])).half()
                for part in pictures.flatten(0, 1).split(64)
            ]
        features = torch.cat(tokens).unflatten(0, pictures.shape[:2])
        save_file({"features": features}, path)
        return features

    @cached_property
    def tokens(self) -> np.ndarray:  # bool [n, R, R, R]  token grid
        return occupancy_grids(self.dataset, self.recipe["resolution"], self.recipe["token_resolution"])


@dataclass(frozen=True, slots=True)
class VoxelBatch:
    """The voxels of several objects, as the encoders take them."""

    position: SparseTensor  # float32 [T, 3]  dual vertex in its voxel, [0, 1]
    flags: Tensor  # bool [T, 3]
    attrs: SparseTensor  # float32 [T, 6]  [-1, 1]


@dataclass(frozen=True, slots=True)
class Latents:
    """Normalised latents of many objects."""

    coords: Tensor  # uint8 [T, 3]
    feats: Tensor  # float32 [T, C]
    starts: np.ndarray  # int64 [n + 1]
    mean: Tensor  # float32 [C]  of the raw latents
    std: Tensor  # float32 [C]

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:  # int32 [T, 4], float32 [T, C]
        """Coordinates with their sample number, and features, of the chosen objects."""
        coords, rows = stacked(self.starts, chosen)
        return torch.cat([coords, self.coords[rows].int()], dim=1), self.feats[rows]


def stacked(starts: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:  # int32 [T, 1], int64 [T]
    """The rows of the chosen objects one after the other, and which object of the choice each belongs to."""
    rows = [np.arange(starts[i], starts[i + 1]) for i in chosen]
    sample = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(r) for r in rows])
    return torch.from_numpy(sample)[:, None], torch.from_numpy(np.concatenate(rows))
