"""Held-out pictures and what the embedded model makes of them: a sheet to look at, and a few numbers.

    python -m tests.benchmarks.embedded_sheet --output sheet.png [--count 12] [--first 900000] [--model PATH]
    python -m tests.benchmarks.embedded_sheet --pictures examples

Seeds are taken in order, none is left out. Columns: picture, truth, result, result from behind. Numbers per
object: IoU of occupied tokens, F-score of surface points at 0.05 and 0.02 of the unit cube, mean color
difference of the nearest points, seconds of sampling and decoding and of the export.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import trellis2
from trellis_core.geometry.camera import FRONT
from trellis_core.geometry.types import PBRVoxels
from trellis_core.render.pbr import RenderSettings
from trellis_core.render.sheet import picture_sheet
from trellis_core.render.turntable import framed_cameras, render_views
from trellis_core.training.synthetic.objects import HELD_OUT, make_object
from trellis_core.training.synthetic.shapes import Solids, pack_solids
from trellis_core.training.synthetic.shards import surface_points
from trellis_core.training.synthetic.views import View, crop_window, look_at, sample_view
from trellis_core.training.synthetic.views import render_views as trace
from trellis_core.training.synthetic.voxels import VoxelSample, voxelize

EXAMPLES = {"chair": 900_005, "mug": 900_037, "rocket": 900_032, "snowman": 900_007}


def held_out_picture(
    seed: int, size: int = 512, margin: float = 1.15
) -> tuple[Image.Image, View, Solids, VoxelSample]:
    """A picture RGBA of a seed's object with some room around it, and what it shows."""
    solids = pack_solids([make_object(seed).parts])
    voxels = voxelize(solids, 0)
    view = sample_view(np.random.default_rng((seed, 2)), surface_points(voxels, 64), (margin, margin))
    return Image.fromarray(trace(solids, np.zeros(1), [view], size, 3)[0]), view, solids, voxels


def truth_view(solids: Solids, voxels: VoxelSample, view: View, yaw: float, size: int) -> np.ndarray:
    """The object itself from a yaw in degrees, lit as in the picture."""
    origin, axes = look_at(yaw, 20.0, 3.0)
    window = crop_window(origin, axes, surface_points(voxels, 64), 1.1)
    light = axes.T @ np.array([-0.4, 0.6, -0.7], np.float32)
    turned = View(origin, axes, window, light / np.linalg.norm(light), np.array([0.6, 0.5, 0.2], np.float32))
    return trace(solids, np.zeros(1), [turned], size, 2)[0]


def yaw_of(view: View) -> float:
    """Degrees from the front."""
    return math.degrees(math.atan2(view.origin[0], -view.origin[1]))


def score(
    vertices: Tensor, colors: Tensor, voxels: VoxelSample, generator: torch.Generator
) -> tuple[float, ...]:
    """F-score at 0.05 and 0.02, and mean color difference of nearest points."""
    truth = torch.from_numpy(surface_points(voxels, 64))
    paint = torch.from_numpy(voxels.attrs[:, :3]).float() / 255
    a = torch.randint(len(vertices), (3000,), generator=generator)
    b = torch.randint(len(truth), (3000,), generator=generator)
    distances = torch.cdist(vertices[a], truth[b])
    there, nearest = distances.min(dim=1)
    back = distances.min(dim=0).values
    difference = (colors[a].clamp(0, 1) - paint[b][nearest]).abs().mean()

    def f_score(limit: float) -> float:
        precision, recall = (there < limit).float().mean(), (back < limit).float().mean()
        return float(2 * precision * recall / (precision + recall).clamp_min(1e-9))

    return f_score(0.05), f_score(0.02), float(difference)


def voxel_points(voxels: PBRVoxels) -> Tensor:
    return (voxels.coords.float() + 0.5) / voxels.resolution - 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pictures", type=Path, help="write the example pictures into this folder instead")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--first", type=int, default=HELD_OUT)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--size", type=int, default=192)
    options = parser.parse_args()
    if options.pictures:
        for name, seed in EXAMPLES.items():
            held_out_picture(seed)[0].save(options.pictures / f"{name}.png", optimize=True)
        return
    pipeline = trellis2.load(options.model)
    rows, labels, numbers = [], [], []
    for seed in range(options.first, options.first + options.count):
        picture, view, solids, voxels = held_out_picture(seed)
        began = time.perf_counter()
        bundle = pipeline.sample(picture, seed=seed)
        shape = pipeline.decode(bundle)[0]
        decoded = time.perf_counter()
        asset = pipeline.export(shape)
        exported = time.perf_counter()
        truth = {tuple(c) for c in np.unique(voxels.coords // 8, axis=0).tolist()}
        found = {tuple(c) for c in bundle.tensors["structure_coords"][:, 1:].tolist()}
        iou = len(truth & found) / len(truth | found)
        scores = score(
            voxel_points(shape.voxels), shape.voxels.attrs[:, :3], voxels, torch.Generator().manual_seed(0)
        )
        yaw = yaw_of(view)
        cameras = framed_cameras(
            asset.mesh, [(FRONT - math.radians(y), math.radians(20)) for y in (yaw, yaw + 180)]
        )
        result = render_views(asset, cameras, options.size, pipeline.runtime, RenderSettings())
        rows.append([picture, truth_view(solids, voxels, view, yaw, options.size), *result])
        labels.append(
            f"{make_object(seed).category}  IoU {iou:.2f}  F.05 {scores[0]:.2f}  F.02 {scores[1]:.2f}"
        )
        numbers.append([iou, *scores, decoded - began, exported - decoded])
        print(seed, labels[-1], " ".join(f"{n:.3f}" for n in numbers[-1]), flush=True)
    pairs = [[*rows[i], *(rows[i + 1] if i + 1 < len(rows) else [])] for i in range(0, len(rows), 2)]
    titles = ["   |   ".join(labels[i : i + 2]) for i in range(0, len(rows), 2)]
    sheet = picture_sheet(
        pairs, titles, columns=("picture", "truth", "result", "behind") * 2, cell=options.size
    )
    Image.fromarray(sheet.numpy()).save(options.output)
    for name, values in zip(
        ("IoU", "F.05", "F.02", "color", "sample+decode s", "export s"), np.array(numbers).T, strict=True
    ):
        print(f"{name}: mean {values.mean():.3f} median {np.median(values):.3f}")


if __name__ == "__main__":
    main()
