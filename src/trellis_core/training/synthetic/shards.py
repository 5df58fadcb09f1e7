"""The dataset on disk and in memory: quantised voxels, pictures and captions, made seed by seed, resumable.

A shard of `n` consecutive seeds is a safetensors file with the tensors of `Dataset`, except that `lengths`
int64 [n] stands for `starts`. Everything about an object follows from its seed: the object from
`default_rng(seed)`, its views from `default_rng((seed, 1))`, its captions from `default_rng((seed, 3))`.

Letters: T voxels of all objects, n objects, V views, S picture size, K captions.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trellis_core.training.synthetic.captions import make_captions
from trellis_core.training.synthetic.objects import CATEGORIES, ROLES, SyntheticObject, make_object
from trellis_core.training.synthetic.shapes import Solids, pack_solids
from trellis_core.training.synthetic.views import on_black, render_views, sample_view
from trellis_core.training.synthetic.voxels import VoxelSample, surface_points, voxelize_batch

CAPTION_BYTES = 160
AT_A_TIME = {"cpu": 4, "cuda": 100}  # objects


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSettings:
    resolution: int = 128
    image_size: int = 128
    supersample: int = 2  # rays per pixel and axis
    views: int = 3  # of each object
    captions: int = 4  # of each object
    shard: int = 500  # objects per file


@dataclass(frozen=True, eq=False)
class Dataset:
    """All objects of some shards, on one device."""

    coords: Tensor  # uint8 [T, 3]
    position: Tensor  # uint8 [T, 3]
    flags: Tensor  # uint8 [T]
    attrs: Tensor  # uint8 [T, 6]
    roles: Tensor  # uint8 [T]            index into objects.ROLES
    starts: Tensor  # int64 [n + 1]
    seeds: Tensor  # int64 [n]
    category: Tensor  # uint8 [n]         index into objects.CATEGORIES
    pictures: Tensor  # uint8 [n, V, S, S, 3]  on black
    captions: Tensor  # uint8 [n, K, 160]  UTF-8, padded with zeros

    def __len__(self) -> int:
        return len(self.seeds)

    def to(self, device: torch.device | str) -> Dataset:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def voxels(self, index: int) -> VoxelSample:
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return VoxelSample(self.coords, self.position, self.flags, self.attrs, self.roles).rows(rows)

    def caption_strings(self, index: int) -> list[str]:
        return [bytes(row).rstrip(b"\0").decode() for row in self.captions[index].cpu().numpy()]


def make_shard(
    seeds: Sequence[int], settings: DatasetSettings, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The objects of `seeds`, made on `device`: the tensors of a shard, on the CPU."""
    step = AT_A_TIME[torch.device(device).type]
    parts = [_make_objects(seeds[i : i + step], settings, device) for i in range(0, len(seeds), step)]
    return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}


def write_shards(
    folder: Path,
    seeds: range,
    settings: DatasetSettings,
    device: str = "cpu",
    workers: int = 1,
    on_shard: Callable[[Path], None] = lambda path: None,
) -> None:
    """Make every shard of `seeds` that is not in `folder` yet, or was made with other settings; a file
    appears when it is complete.

    More than one worker means spawned processes that share the device: the calling script must be importable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        range(first, min(first + settings.shard, seeds.stop))
        for first in range(seeds.start, seeds.stop, settings.shard)
    ]
    for path in _made(folder, shards, settings, device, workers):
        on_shard(path)


def load_shards(
    paths: Sequence[Path], device: torch.device | str = "cpu", only: Collection[str] | None = None
) -> Dataset:
    """Join shards into one dataset, in the order given. With `only`, all other tensors but `starts` and
    `seeds` stay empty."""
    keep = {f.name for f in fields(Dataset)} if only is None else {"seeds", *only}
    joined: dict[str, list[Tensor]] = {f.name: [] for f in fields(Dataset)}
    for path in paths:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name, parts in joined.items():
                if name == "starts":
                    parts.append(file.get_tensor("lengths"))
                elif name in keep:
                    parts.append(file.get_tensor(name))
    whole = {n: torch.cat(p) if p else torch.empty(0, device=device) for n, p in joined.items()}
    lengths = whole.pop("starts")
    return Dataset(starts=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), **whole)


def _made(
    folder: Path, shards: Sequence[range], settings: DatasetSettings, device: str, workers: int
) -> Iterator[Path]:
    """The shards' files as they are ready."""
    if workers == 1:
        yield from (_write_shard(folder, seeds, settings, device) for seeds in shards)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        jobs = [pool.submit(_write_shard, folder, seeds, settings, device) for seeds in shards]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)  # when a shard failed or nobody waits any more


def _write_shard(folder: Path, seeds: range, settings: DatasetSettings, device: str) -> Path:
    path = folder / f"{seeds.start:07d}.safetensors"
    mark = {"made": f"{seeds.start}:{seeds.stop} {settings}"}
    if not path.exists() or _metadata(path) != mark:
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(make_shard(seeds, settings, device), partial, mark)
        partial.replace(path)
    return path


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@torch.no_grad()
def _make_objects(
    seeds: Sequence[int], settings: DatasetSettings, device: torch.device | str
) -> dict[str, Tensor]:
    objects = [make_object(seed) for seed in seeds]
    solids = pack_solids([o.parts for o in objects], ROLES).to(device)
    voxels, starts = voxelize_batch(solids, settings.resolution)
    categories = list(CATEGORIES)
    made = {
        "coords": voxels.coords,
        "position": voxels.position,
        "flags": voxels.flags,
        "attrs": voxels.attrs,
        "roles": voxels.roles,
        "lengths": starts.diff(),
        "seeds": torch.tensor(seeds),
        "category": torch.tensor([categories.index(o.category) for o in objects], dtype=torch.uint8),
        "pictures": make_views(solids, voxels, starts, seeds, settings),
        "captions": torch.stack(
            [_caption_rows(o, seed, settings.captions) for o, seed in zip(objects, seeds, strict=True)]
        ),
    }
    return {key: value.cpu() for key, value in made.items()}


def make_views(
    solids: Solids, voxels: VoxelSample, starts: Tensor, seeds: Sequence[int], settings: DatasetSettings
) -> Tensor:  # uint8 [n, V, S, S, 3] on black
    """The training pictures of some objects."""
    points = surface_points(voxels, settings.resolution).split(starts.diff().tolist())
    views = []
    for seed, surface in zip(seeds, points, strict=True):
        rng = np.random.default_rng((seed, 1))
        views += [sample_view(rng, surface) for _ in range(settings.views)]
    owner = [i for i in range(len(seeds)) for _ in range(settings.views)]
    pictures = render_views(solids, owner, views, settings.image_size, settings.supersample)
    return on_black(pictures).unflatten(0, (len(seeds), settings.views))


def _caption_rows(made: SyntheticObject, seed: int, count: int) -> Tensor:  # uint8 [K, CAPTION_BYTES]
    captions = make_captions(made, count, np.random.default_rng((seed, 3)))
    rows = [text.encode().ljust(CAPTION_BYTES, b"\0") for text in captions]
    if any(len(row) > CAPTION_BYTES for row in rows):
        raise ValueError(f"a caption is longer than {CAPTION_BYTES} bytes: {max(captions, key=len)}")
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(count, CAPTION_BYTES)
