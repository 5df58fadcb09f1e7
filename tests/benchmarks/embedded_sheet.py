"""Sheets to look at: held-out pictures, fixed prompts and pictures of other things, and what the model makes.

    python -m tests.benchmarks.embedded_sheet --output sheet.png [--count 24] [--model PATH] [--surface raw]
    python -m tests.benchmarks.embedded_sheet --prompts prompts.png [--count 24]
    python -m tests.benchmarks.embedded_sheet --strange strange.png
    python -m tests.benchmarks.embedded_sheet --pictures examples

Seeds and prompts are taken in order, none is left out. Columns: picture, truth, result, result from behind;
for prompts the results of seeds 0 and 1. Numbers above an object: IoU of occupied structure cells, F-scores
of surface points at 0.05 and 0.02 of the unit cube.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.quality.generate import Model, generate, open_model, picture_tokens
from tests.benchmarks.quality.pictures import cameras_around, draw
from tests.benchmarks.quality.strange import judge_strange
from tests.benchmarks.quality.table import score
from tests.benchmarks.quality.text import prompt_tokens
from tests.benchmarks.quality.truth import make_truths
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import VoxelMesh
from trellis_core.render.pbr import render_pbr
from trellis_core.render.sheet import Picture, picture_sheet
from trellis_core.training.synthetic.captions import prompt_cases
from trellis_core.training.synthetic.objects import HELD_OUT, make_object
from trellis_core.training.synthetic.views import View

EXAMPLES = ("chair", "mug", "rocket", "snowman")
ACROSS = 2  # objects, or prompts, side by side


@dataclass(frozen=True, slots=True)
class Artist:
    """Draws results as they leave the decoder, or as finished assets."""

    model: Model
    surface: str  # raw or asset
    size: int  # pixels

    def views(self, shape: VoxelMesh | None, cameras: Sequence[Camera] = ()) -> list[np.ndarray]:
        """The shape from each camera, else from the front and from behind; nothing is an empty picture."""
        if shape is None or len(shape.mesh.faces) == 0:
            return [np.zeros((self.size, self.size, 4), np.uint8) for _ in cameras or (1, 2)]
        cameras, runtime = cameras or cameras_around(shape, 30, 210), self.model.runtime
        if self.surface == "raw":
            return [draw(shape, camera, self.size, runtime) for camera in cameras]
        asset = self.model.pipeline.export(shape)
        return [render_pbr(asset, camera, self.size, runtime).cpu().numpy() for camera in cameras]


def yaw_of(view: View) -> float:
    """Degrees from the front."""
    return math.degrees(math.atan2(view.origin[0], -view.origin[1]))


def picture_rows(artist: Artist, first: int, number: int) -> tuple[list[list[Picture]], list[str]]:
    model = artist.model
    objects = [make_object(seed) for seed in range(first, first + number)]
    truths = make_truths(objects, model.resolution, model.tokens, model.runtime.device)
    cond = picture_tokens(model, [t.picture for t in truths])
    results = generate(model, cond, [t.seed for t in truths])
    scores = score(results, truths, None)["objects"]
    rows, labels = [], []
    for truth, result, entry in zip(truths, results, scores, strict=True):
        yaw = yaw_of(truth.view)
        cameras = cameras_around(truth.shape, yaw, yaw + 180)
        shown = draw(truth.shape, cameras[0], artist.size, model.runtime)
        rows.append([truth.picture, shown, *artist.views(result.shape, cameras)])
        numbers = f"IoU {entry['IoU']:.2f}  F.05 {entry['F@0.05']:.2f}  F.02 {entry['F@0.02']:.2f}"
        labels.append(f"{truth.category}  {numbers}")
    return rows, labels


def prompt_rows(artist: Artist, number: int) -> tuple[list[list[Picture]], list[str]]:
    """Every so many-th of the fixed prompts, so that all kinds of prompts are seen."""
    cases = prompt_cases()
    cases = cases[:: max(len(cases) // number, 1)][:number]
    cond = prompt_tokens(artist.model, [case.prompt for case in cases])
    by_seed = [generate(artist.model, cond, [seed] * len(cases)) for seed in (0, 1)]
    rows = [
        [picture for result in pair for picture in artist.views(result.shape)]
        for pair in zip(*by_seed, strict=True)
    ]
    return rows, [case.prompt for case in cases]


def strange_rows(artist: Artist) -> tuple[list[list[Picture]], list[str]]:
    entries, seen, results = judge_strange(artist.model, None, None)
    rows = [[picture, *artist.views(result.shape)] for picture, result in zip(seen, results, strict=True)]
    return rows, [f"{e['picture']}: {e['said']}" for e in entries]


def side_by_side(
    rows: Sequence[Sequence[Picture]], labels: Sequence[str], columns: Sequence[str], size: int
) -> Image.Image:
    """A sheet with several rows in one line."""
    lines = [[p for row in rows[i : i + ACROSS] for p in row] for i in range(0, len(rows), ACROSS)]
    titles = ["   |   ".join(labels[i : i + ACROSS]) for i in range(0, len(rows), ACROSS)]
    return Image.fromarray(picture_sheet(lines, titles, columns=[*columns] * ACROSS, cell=size).numpy())


def write_examples(folder: Path) -> None:
    """The picture of the first held-out object of each example category, large."""
    for name in EXAMPLES:
        seed = next(s for s in count(HELD_OUT) if make_object(s).category == name)
        truth = make_truths([make_object(seed)], 128, 16, torch.device("cpu"), 512)[0]
        truth.picture.save(folder / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="sheet of held-out pictures")
    parser.add_argument("--prompts", type=Path, help="sheet of prompts")
    parser.add_argument("--strange", type=Path, help="sheet of pictures of other things")
    parser.add_argument("--pictures", type=Path, help="write the example pictures into this folder")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--first", type=int, default=HELD_OUT)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--surface", choices=("raw", "asset"), default="asset")
    parser.add_argument("--size", type=int, default=192)
    options = parser.parse_args()
    if options.pictures:
        write_examples(options.pictures)
    if not (options.output or options.prompts or options.strange):
        return
    artist = Artist(open_model(options.model, options.device), options.surface, options.size)
    if options.output:
        rows, labels = picture_rows(artist, options.first, options.count)
        side_by_side(rows, labels, ("picture", "truth", "result", "behind"), options.size).save(
            options.output
        )
    if options.prompts:
        rows, labels = prompt_rows(artist, options.count)
        columns = ("seed 0", "behind", "seed 1", "behind")
        side_by_side(rows, labels, columns, options.size).save(options.prompts)
    if options.strange:
        rows, labels = strange_rows(artist)
        side_by_side(rows, labels, ("picture", "result", "behind"), options.size).save(options.strange)


if __name__ == "__main__":
    main()
