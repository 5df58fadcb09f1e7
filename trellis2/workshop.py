"""What the training stages share: recipe, data, random numbers and the networks that are finished.

Everything lies on the data's device. Letters: B batch, T packed tokens or voxels, M condition tokens, C
channels, n objects, V views, K captions, L words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trellis2.models import MODELS
from trellis_core.errors import ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.models import image_encoder, text_encoder
from trellis_core.models.image_encoder import prepare_images
from trellis_core.models.tokenizer import Tokenizer, word_vocabulary
from trellis_core.nn.blocks import TransformerCrossBlock
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.checkpoints import averaged_weights
from trellis_core.training.objectives import logit_normal_times, posterior_sample
from trellis_core.training.precision import compile_blocks, mixed_precision
from trellis_core.training.synthetic.captions import WORDS
from trellis_core.training.synthetic.grids import occupancy_grids
from trellis_core.training.synthetic.shards import Dataset, load_shards

ENCODE_ROWS = 600_000  # voxels that an encoder takes at a time
ENCODERS = {"shape": "shape_slat_encoder", "texture": "tex_slat_encoder"}
COMPILED = (TransformerCrossBlock, image_encoder.Layer, text_encoder.Layer)


@dataclass(frozen=True, eq=False)
class Workshop:
    """Everything a stage may need."""

    recipe: Mapping[str, Any]
    shards: Sequence[Path]
    run: Path  # where checkpoints of stages lie
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    generator: torch.Generator = field(default_factory=torch.Generator)  # on the data's device
    host: torch.Generator = field(default_factory=torch.Generator)  # of decisions that the host takes
    kernels: Kernels = field(default_factory=Kernels)
    dtype: torch.dtype | None = None  # of matrix products when finished networks encode data
    keep_caches: bool = True  # store encoded data in the run folder for the next start
    compiled: bool = False  # let torch compile the blocks of what is trained

    @cached_property
    def dataset(self) -> Dataset:
        """Everything, on the device."""
        return load_shards(self.shards, self.device)

    @cached_property
    def index(self) -> Dataset:
        """The dataset without voxels and pictures: what is left to know when those are encoded."""
        return load_shards(self.shards, self.device, only=("category", "captions"))

    def settings(self, stage: str) -> Mapping[str, Any]:
        return self.recipe["stages"][stage]  # type: ignore[no-any-return]

    def config(self, name: str) -> dict[str, Any]:
        """`{"name", "args"}` of a network; a text encoder's vocabulary follows from the captions' words."""
        entry = self.recipe["models"][name]
        if name == "text_encoder":
            text = {
                "vocab_size": self.tokenizer.size,
                "max_position_embeddings": self.recipe["text"]["max_length"],
            }
            return {"name": entry["name"], "args": {**entry["args"], **text}}
        return dict(entry)

    def build(self, name: str) -> nn.Module:
        """A network of the recipe with random weights."""
        entry = self.config(name)
        network = MODELS[entry["name"]](**entry["args"], kernels=self.kernels)
        network.initialize()  # type: ignore[operator]
        return network.to(self.device)

    def checkpoint(self, stage: str) -> Path:
        """The file of a stage that has been trained. Raises `ModelError` when there is none."""
        path = self.run / f"{stage}.safetensors"
        if not path.exists():
            raise ModelError(f"the stage `{stage}` is not trained yet", hint=f"train `{stage}` first")
        return path

    def finished(self, stage: str, name: str) -> nn.Module:
        """A network of an earlier stage, frozen, with its averaged weights."""
        network = self.build(name)
        network.load_state_dict(averaged_weights(self.checkpoint(stage), f"{name}."))
        return network.eval().requires_grad_(False)

    def learning(self, **networks: nn.Module) -> nn.ModuleDict:
        """The networks that a stage trains, as one module."""
        model = nn.ModuleDict(networks)
        if self.compiled:
            compile_blocks(model, COMPILED)
        return model

    def fingerprint(self, stage: str, network: str) -> str:
        """Of the averaged weights of a finished network and the data: caches made from them carry it."""
        digest = hashlib.sha256()
        for name, value in sorted(averaged_weights(self.checkpoint(stage), f"{network}.").items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        digest.update(self.index.seeds.cpu().numpy().tobytes())
        return digest.hexdigest()

    def cached(
        self, name: str, stage: str, network: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `make` gives, stored under `name` for as long as the network's weights and the data stay."""
        if not self.keep_caches:
            return make()
        path, mark = self.run / f"{name}.safetensors", self.fingerprint(stage, network)
        if path.exists():
            with safe_open(path, framework="pt") as file:
                current = (file.metadata() or {}).get("fingerprint") == mark
            if current:
                return load_file(path, device=str(self.device))
        made = make()
        save_file({k: v.contiguous() for k, v in made.items()}, path, {"fingerprint": mark})
        return made

    # ---- random numbers

    def choose(self, count: int) -> Tensor:  # int64 [B]
        """Random objects of the dataset."""
        return self.integers(len(self.index), count)

    def integers(self, end: int, count: int) -> Tensor:  # int64 [count], below `end`
        return torch.randint(end, (count,), generator=self.generator, device=self.device)

    def noise(self, *shape: int) -> Tensor:  # float32, standard normal
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:  # float32 in [0, 1)
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def chance(self, probability: float) -> bool:
        return bool(torch.rand((), generator=self.host) < probability)

    def times(self, settings: Mapping[str, Any], count: int) -> Tensor:  # float32 [B]
        """Times of a batch, logit-normal."""
        mean, std = settings["times"]
        return logit_normal_times(count, mean, std, self.generator)

    # ---- voxels and latents

    def voxel_batch(self, chosen: Tensor) -> VoxelBatch:
        """The voxels of the chosen objects."""
        sample, rows = stacked(self.dataset.starts, chosen)
        d = self.dataset
        coords = torch.cat([sample, d.coords[rows].int()], dim=1)
        position = SparseTensor(d.position[rows].float() / 255, coords, len(chosen))
        bits = d.flags[rows, None] >> torch.arange(3, dtype=torch.uint8, device=rows.device)
        return VoxelBatch(position, (bits & 1).bool(), position.replace(d.attrs[rows].float() / 127.5 - 1))

    def noisy_latent(self, mean: Tensor, logvar: Tensor, settings: Mapping[str, Any]) -> Tensor:
        """A posterior sample with a little noise on top, as a flow's samples have."""
        latent = posterior_sample(mean, logvar, self.generator)
        return latent + settings["latent_noise"] * self.noise(*latent.shape)

    def rough_latent(self, mean: SparseTensor, settings: Mapping[str, Any]) -> SparseTensor:
        """A latent about as far off as a flow's samples, by a random amount for each object."""
        amount = mean.broadcast(settings["latent_noise"] * self.uniform(mean.batch_size, 1))
        return mean.replace(mean.feats.float() + amount * self.noise(*mean.feats.shape))

    def latents(self, kind: Literal["shape", "texture"]) -> Latents:
        """Normalised posterior means of all objects."""
        stored = self.cached(f"{kind}_latents", f"{kind}_vae", ENCODERS[kind], lambda: self._encode(kind))
        feats = stored["feats"].float()
        mean, std = feats.mean(dim=0), feats.std(dim=0)
        return Latents(stored["coords"], (feats - mean) / std, stored["starts"], mean, std)

    @torch.no_grad()
    def _encode(self, kind: Literal["shape", "texture"]) -> dict[str, Tensor]:
        encoder = self.finished(f"{kind}_vae", ENCODERS[kind])
        parts = []
        for chosen in spans(self.dataset.starts, ENCODE_ROWS):
            voxels = self.voxel_batch(chosen)
            with mixed_precision(self.device.type, self.dtype):
                mean, _ = encoder(*((voxels.position, voxels.flags) if kind == "shape" else (voxels.attrs,)))
            parts.append((mean.coords[:, 1:].byte(), mean.feats.half(), mean.seqlens))
        lengths = torch.tensor([0, *(n for part in parts for n in part[2])], device=self.device)
        return {
            "coords": torch.cat([p[0] for p in parts]),
            "feats": torch.cat([p[1] for p in parts]),
            "starts": lengths.cumsum(0),
        }

    @cached_property
    def tokens(self) -> Tensor:  # bool [n, R, R, R]  token grid
        return occupancy_grids(self.dataset, self.recipe["resolution"], self.recipe["token_resolution"])

    @cached_property
    def structure_latents(self) -> Tensor:  # float16 [n, C, r, r, r]
        """Posterior means of all token grids."""
        return self.cached(
            "structure_latents", "structure_vae", "sparse_structure_encoder", self._encode_structures
        )["latents"]

    @torch.no_grad()
    def _encode_structures(self) -> dict[str, Tensor]:
        encoder = self.finished("structure_vae", "sparse_structure_encoder")
        parts = [encoder(part.float()[:, None])[0].half() for part in self.tokens.split(256)]
        return {"latents": torch.cat(parts)}

    # ---- conditions

    @property
    def has_text(self) -> bool:
        return "text" in self.recipe

    def pictures(self, chosen: Tensor) -> Tensor:  # float32 [B, 3, S, S]
        """One random view of each object, normalised for the encoder."""
        views = self.integers(self.dataset.pictures.shape[1], len(chosen))
        return self._prepared(self.dataset.pictures[chosen, views])

    def _prepared(self, pictures: Tensor) -> Tensor:  # uint8 [B, S, S, 3] -> float32 [B, 3, S, S]
        return prepare_images(pictures.permute(0, 3, 1, 2).float() / 255, self.recipe["image_size"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(*word_vocabulary(WORDS))

    @cached_property
    def captions(self) -> Tensor:  # int64 [n, K, L]
        d, length = self.index, self.recipe["text"]["max_length"]
        texts = [c for i in range(len(d)) for c in d.caption_strings(i)]
        ids = torch.tensor([self.tokenizer.encode(text, length).ids for text in texts])
        return ids.view(len(d), -1, length).to(self.device)

    def prompts(self, chosen: Tensor) -> Tensor:  # int64 [B, L]
        """One random caption of each object."""
        return self.captions[chosen, self.integers(self.captions.shape[1], len(chosen))]

    @cached_property
    def picture_tokens(self) -> Tensor:  # float16 [n, V, M, C]
        """Of every view, by the finished encoder."""
        return self.cached("picture_tokens", "encoders", "image_encoder", self._encode_pictures)["tokens"]

    @torch.no_grad()
    def _encode_pictures(self) -> dict[str, Tensor]:
        encoder = self.finished("encoders", "image_encoder")
        views = self.dataset.pictures.flatten(0, 1)
        with mixed_precision(self.device.type, self.dtype):
            parts = [encoder(self._prepared(part)).half() for part in views.split(1024)]
        return {"tokens": torch.cat(parts).unflatten(0, self.dataset.pictures.shape[:2])}

    @cached_property
    def text_encoder(self) -> nn.Module:
        return self.finished("encoders", "text_encoder")

    @torch.no_grad()
    def conditions(self, chosen: Tensor, drop: float = 0.1) -> Tensor:  # float32 [B, M, C]
        """A random view of each object, or for a share of the batches a random caption; zeros with
        probability `drop`."""
        if self.has_text and self.chance(self.recipe["text"]["share"]):
            tokens = self.text_encoder(self.prompts(chosen))
        else:
            views = self.integers(self.picture_tokens.shape[1], len(chosen))
            tokens = self.picture_tokens[chosen, views]
        return tokens.float() * (self.uniform(len(chosen)) >= drop)[:, None, None]


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
    starts: Tensor  # int64 [n + 1]
    mean: Tensor  # float32 [C]  of the raw latents
    std: Tensor  # float32 [C]

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:  # int32 [T, 4], float32 [T, C]
        """Coordinates with their sample number, and features, of the chosen objects."""
        sample, rows = stacked(self.starts, chosen)
        return torch.cat([sample, self.coords[rows].int()], dim=1), self.feats[rows]


def stacked(starts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:  # int32 [T, 1], int64 [T]
    """The rows of the chosen objects one after the other, and which object of the choice each belongs to."""
    first = starts[chosen]
    lengths = starts[chosen + 1] - first
    sample = torch.repeat_interleave(lengths)
    shift = first - (lengths.cumsum(0) - lengths)
    return sample.int()[:, None], torch.arange(len(sample), device=starts.device) + shift[sample]


def spans(starts: Tensor, rows: int) -> Iterator[Tensor]:
    """Consecutive objects int64 [B] that have about `rows` rows together."""
    group = (starts[1:] - 1).clamp_min(0) // rows
    counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
    yield from torch.arange(len(starts) - 1, device=starts.device).split(counts)
