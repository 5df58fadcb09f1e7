"""How many synthetic objects a second: voxels and views apart.

python -m tests.benchmarks.synthetic_data --device cuda --objects 512
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trellis_core.training.synthetic.objects import ROLES, make_object
from trellis_core.training.synthetic.shapes import pack_solids
from trellis_core.training.synthetic.shards import AT_A_TIME, DatasetSettings, make_shard, make_views
from trellis_core.training.synthetic.voxels import voxelize_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = DatasetSettings(resolution=args.resolution, image_size=args.image_size)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} threads"
    print(f"torch {torch.__version__}, {device.type}: {name}, {args.objects} objects")
    step = min(AT_A_TIME[device.type], args.objects)
    make_shard(range(step), settings, device)  # warm up
    spent = dict.fromkeys(("objects", "voxels", "views"), 0.0)
    rows = 0
    for first in range(0, args.objects, step):
        seeds = range(first, first + step)
        with timed("objects", spent):
            solids = pack_solids([make_object(s).parts for s in seeds], ROLES).to(device)
        with timed("voxels", spent):
            voxels, starts = voxelize_batch(solids, settings.resolution)
        with timed("views", spent):
            make_views(solids, voxels, starts, seeds, settings)
        rows += len(voxels)
    count = -(-args.objects // step) * step
    for stage, seconds in spent.items():
        print(f"{stage:8} {count / seconds:9.1f} objects/s  {1e3 * seconds / count:8.2f} ms")
    print(f"{'all':8} {count / sum(spent.values()):9.1f} objects/s, {rows / count:.0f} voxels an object")
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


@contextmanager
def timed(stage: str, spent: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    spent[stage] += time.perf_counter() - start


if __name__ == "__main__":
    main()
