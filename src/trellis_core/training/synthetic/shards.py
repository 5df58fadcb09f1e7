"""The dataset on disk: safetensors shards of quantised voxels and pictures, made seed by seed, resumable.

A shard of `n` consecutive seeds holds `coords`, `position`, `flags`, `attrs` (rows of all objects, one
after the other), `lengths` int32 [n], `category` uint8 [n] and `pictures` uint8 [n, views, size, size, 3]
(RGB on black).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from trellis_core.training.synthetic.objects import CATEGORIES, make_object
from trellis_core.training.synthetic.shapes import Solids, pack_solids
from trellis_core.training.synthetic.views import on_black, render_views, sample_view
from trellis_core.training.synthetic.voxels import VoxelSample, voxelize


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSettings:
    resolution: int = 64
    image_size: int = 96
    views: int = 2
    shard: int = 250  # objects per file


@dataclass(frozen=True, slots=True)
class Dataset:
    """All objects of a seed range in memory."""

    coords: np.ndarray  # uint8 [T, 3]
    position: np.ndarray  # uint8 [T, 3]
    flags: np.ndarray  # uint8 [T]
    attrs: np.ndarray  # uint8 [T, 6]
    starts: np.ndarray  # int64 [n + 1]
    category: np.ndarray  # uint8 [n]
    pictures: np.ndarray  # uint8 [n, V, S, S, 3]

    def __len__(self) -> int:
        return len(self.category)

    def voxels(self, index: int) -> VoxelSample:
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return VoxelSample(self.coords[rows], self.position[rows], self.flags[rows], self.attrs[rows])


def surface_points(voxels: VoxelSample, resolution: int) -> np.ndarray:  # float32 [N, 3]
    """The dual vertices in the unit cube."""
    return ((voxels.coords + voxels.position / 255) / resolution - 0.5).astype(np.float32)


def make_views(
    solids: Solids, index: int, voxels: VoxelSample, seed: int, settings: DatasetSettings
) -> np.ndarray:
    """The training pictures of one object: uint8 [V, S, S, 3] on black."""
    rng = np.random.default_rng((seed, 1))
    points = surface_points(voxels, settings.resolution)
    views = [sample_view(rng, points) for _ in range(settings.views)]
    return on_black(render_views(solids, np.full(len(views), index), views, settings.image_size))


def write_shards(
    folder: Path,
    seeds: range,
    settings: DatasetSettings,
    on_shard: Callable[[Path], None] = lambda path: None,
) -> None:
    """Make every shard of `seeds` that is not in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(seeds.start, seeds.stop, settings.shard):
        path = folder / f"{first:07d}.safetensors"
        if not path.exists():
            partial = path.with_suffix(".partial")
            save_file(make_shard(range(first, min(first + settings.shard, seeds.stop)), settings), partial)
            partial.rename(path)
        on_shard(path)


def make_shard(seeds: range, settings: DatasetSettings) -> dict[str, np.ndarray]:
    """The objects of `seeds` as one dictionary of arrays."""
    names = list(CATEGORIES)
    objects = [make_object(seed) for seed in seeds]
    solids = pack_solids([o.parts for o in objects])
    voxels = [voxelize(solids, i, settings.resolution) for i in range(len(objects))]
    pictures = [
        make_views(solids, i, v, seed, settings)
        for i, (v, seed) in enumerate(zip(voxels, seeds, strict=True))
    ]
    return {
        "coords": np.concatenate([v.coords for v in voxels]),
        "position": np.concatenate([v.position for v in voxels]),
        "flags": np.concatenate([v.flags for v in voxels]),
        "attrs": np.concatenate([v.attrs for v in voxels]),
        "lengths": np.array([len(v.coords) for v in voxels], np.int32),
        "category": np.array([names.index(o.category) for o in objects], np.uint8),
        "pictures": np.stack(pictures),
    }


def load_shards(paths: Sequence[Path]) -> Dataset:
    """Join shards into one dataset, in the order given."""
    shards = [load_file(p) for p in paths]
    joined = {key: np.concatenate([s[key] for s in shards]) for key in shards[0]}
    starts = np.concatenate([[0], np.cumsum(joined.pop("lengths"), dtype=np.int64)])
    return Dataset(starts=starts, **joined)
