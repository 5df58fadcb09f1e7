"""Train the embedded model from the command line, one stage and one piece of time after the other.

    python -m trellis2.train_embedded data --data runs/train --objects 8000
    python -m trellis2.train_embedded image_encoder --data runs/train --run runs/m1 --seconds 1200
    python -m trellis2.train_embedded structure_vae ...     then structure_flow
    python -m trellis2.train_embedded shape_vae ...         then shape_flow
    python -m trellis2.train_embedded texture_vae ...       then texture_flow
    python -m trellis2.train_embedded release --output trellis2/_embedded ...

The recipe is `configs/trellis2/embedded/recipe.json`. A stage that is run again continues from its
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from trellis2.training import STAGES, release, train_and_store
from trellis2.workshop import Workshop
from trellis_core.training.loop import LoopSettings
from trellis_core.training.synthetic.shards import DatasetSettings, load_shards, write_shards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["data", *STAGES, "release"])
    parser.add_argument("--recipe", type=Path, default=Path("configs/trellis2/embedded/recipe.json"))
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--objects", type=int, default=8000, help="how many to make, for `data`")
    parser.add_argument("--first", type=int, default=0, help="first seed, for `data`")
    parser.add_argument("--run", type=Path, default=Path("runs/embedded"), help="folder of checkpoints")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--output", type=Path, help="model folder, for `release`")
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = json.loads(options.recipe.read_text(encoding="utf-8"))
    if options.stage == "data":
        settings = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"])
        seeds = range(options.first, options.first + options.objects)
        write_shards(options.data, seeds, settings, lambda path: say(str(path)))
        return
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    shop = Workshop(recipe, load_shards(sorted(options.data.glob("*.safetensors"))), options.run, generator)
    if options.stage == "release":
        release(shop, options.output)
        return
    dtype = torch.bfloat16 if options.bfloat16 else None
    train_and_store(shop, options.stage, LoopSettings(seconds=options.seconds, dtype=dtype), log=say)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
