"""Train the embedded model where only torch is installed, one stage and one piece of time after the other.

`trellis train --recipe embedded` does the same with more comfort: several processes, curves, sample sheets.

    python -m trellis2.train_embedded data --data runs/train --objects 40000
    python -m trellis2.train_embedded encoders --data runs/train --run runs/m2 --seconds 1200
    python -m trellis2.train_embedded structure_vae ...     then structure_flow
    python -m trellis2.train_embedded shape_vae ...         then shape_flow
    python -m trellis2.train_embedded texture_vae ...       then texture_flow
    python -m trellis2.train_embedded weights --output FOLDER ...   weights alone, to start from elsewhere
    python -m trellis2.train_embedded encode ...            once before several flows are trained at a time;
                                                            encode:shape and so on for one part on each GPU
    python -m trellis2.train_embedded release --output trellis2/_embedded ...

The recipe is `configs/trellis2/embedded/recipe.json`. A stage that is run again continues from its
checkpoint, up to the length that is asked for; SIGINT and SIGTERM end it with a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from trellis2.training import ENCODINGS, STAGES, encode_data, release, train_and_store
from trellis2.workshop import Workshop
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import describe_device
from trellis_core.training.checkpoints import save_weights
from trellis_core.training.loop import LogEntry, LoopSettings
from trellis_core.training.precision import Float32Attention, LoadedKernels
from trellis_core.training.records import all_of, write_lines
from trellis_core.training.synthetic.shards import DatasetSettings, write_shards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", help=f"data, encode, weights, release, or, joined by commas: {', '.join(STAGES)}"
    )
    parser.add_argument("--recipe", type=Path, default=Path("configs/trellis2/embedded/recipe.json"))
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--objects", type=int, default=40_000, help="how many to make, or to use")
    parser.add_argument("--first", type=int, default=0, help="first seed, for `data`")
    parser.add_argument("--workers", type=int, default=1, help="processes, for `data`")
    parser.add_argument("--run", type=Path, default=Path("runs/embedded"), help="folder of checkpoints")
    parser.add_argument("--seconds", type=float, help="length of each stage, all pieces together")
    parser.add_argument("--steps", type=int, help="length of each stage in steps instead")
    parser.add_argument("--output", type=Path, help="model folder, for `release`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the transformers' blocks")
    parser.add_argument("--no-cache", action="store_true", help="encode the data anew at every start")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = json.loads(options.recipe.read_text(encoding="utf-8"))
    if options.stages == "data":
        data = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"])
        seeds = range(options.first, options.first + options.objects)
        write_shards(options.data, seeds, data, options.device, options.workers, lambda path: say(str(path)))
        return
    if options.stages == "weights":
        for path in sorted(options.run.glob("*.safetensors")):
            if path.stem in STAGES:
                save_weights(options.output / path.name, path)
        return
    shop = open_workshop(options, recipe)
    if options.stages.split(":")[0] == "encode":
        encode_data(shop, options.stages.split(":")[1:] or ENCODINGS)
        return
    if options.stages == "release":
        release(shop, options.output)
        return
    asked: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, frame: asked.append(number))
    settings = LoopSettings(
        stop=lambda: bool(asked),
        steps=options.steps,
        seconds=options.seconds,
        device=options.device,
        dtype=shop.dtype,
        log_every=options.log_every,
    )
    for stage in options.stages.split(","):
        if not asked:
            log = all_of(partial(tell, stage), write_lines(shop.run / f"{stage}.jsonl"))
            train_and_store(shop, stage, settings, log)


def open_workshop(options: argparse.Namespace, recipe: dict[str, object]) -> Workshop:
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    paths = sorted(options.data.glob("*.safetensors"))[: -(-options.objects // DatasetSettings().shard)]
    kernels: Kernels = Float32Attention()
    if options.device != "cpu":
        kernels = LoadedKernels.of(resolve_kernels(describe_device(options.device)))
    return Workshop(
        recipe,
        paths,
        options.run,
        torch.device(options.device),
        torch.Generator(options.device).manual_seed(options.seed),
        torch.Generator().manual_seed(options.seed),
        kernels,
        torch.bfloat16 if options.bfloat16 else None,
        not options.no_cache,
        options.compile,
    )


def tell(stage: str, entry: LogEntry) -> None:
    say(f"{stage} {entry}")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
