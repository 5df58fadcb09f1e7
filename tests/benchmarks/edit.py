"""Edits of a real object: what changed inside of the regions, what outside, and what it looks like.

    python -m tests.benchmarks.edit [--model embedded] [--picture examples/chair.png] [--seed 1] [--json FILE]
                                    [--sheet FILE.png]

Makes the picture's object once and edits it in several ways. `outside_changed_as_sampled` counts voxels of
the structure that the model itself would have changed outside of the region, before anything is put back;
`decoded` counts voxels of the result that the decoders, which look beyond the region, would have changed
there, and those that differ in the end. `drift` is how far the model's own latents are from the kept ones
(1 is their spread).
The sheet shows each edit as before, region (orange), after from the front and from behind.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import trellis2
from trellis2.pipeline import Pipeline
from trellis_core.geometry.camera import FRONT, orbit_camera
from trellis_core.geometry.region import Box, Region, Sphere, cells_inside
from trellis_core.geometry.types import PBRVoxels, VoxelMesh
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.render.sheet import picture_sheet
from trellis_core.render.subject import before_backdrop, draw_subject
from trellis_core.runtime import Runtime
from trellis_core.weights.bundle import Bundle

ORANGE = torch.tensor([0.95, 0.5, 0.1, 0.0, 0.6, 1.0])  # base color, metallic, roughness, alpha
UPPER = Box((-0.5, -0.5, 0.07), (0.5, 0.5, 0.5))  # of a chair: what is above the seat
SIDES = (Box((-0.5, -0.5, 0.07), (-0.15, 0.15, 0.35)), Box((0.15, -0.5, 0.07), (0.5, 0.15, 0.35)))
BALL = Sphere((0.25, 0.2, 0.4), 0.22)
VIEWS = ((FRONT + 0.5, 0.35), (FRONT + 0.5 + math.pi, 0.35))  # yaw, pitch


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    regions: Sequence[Region]
    prompt: str
    preserve_texture: bool = False
    freedom: float = 0.0


CASES: Mapping[str, Case] = {
    "back": Case(regions=(UPPER,), prompt="a red chair with armrests"),
    "back, texture preserved": Case(
        regions=(UPPER,), prompt="a red chair with armrests", preserve_texture=True
    ),
    "armrests in free space": Case(regions=SIDES, prompt="a red chair with armrests"),
    "a sphere at a corner": Case(regions=(BALL,), prompt="a yellow chair"),
    "the same, following the prompt alone": Case(regions=(BALL,), prompt="a yellow chair", freedom=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--picture", type=Path, default=Path("examples/chair.png"))
    parser.add_argument("--bundle", type=Path, help="edit this saved run instead of making one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    device = select_device("auto")
    runtime = Runtime(device=device, kernels=resolve_kernels(describe_device(device)))
    pipeline = trellis2.load(options.model, runtime)
    base = Bundle.load(options.bundle) if options.bundle else pipeline.sample(options.picture)
    before = pipeline.decode(base)[0]
    found: dict[str, Any] = {}
    rows = []
    for name, case in CASES.items():
        started = monotonic()
        edited = pipeline.edit(
            base,
            case.regions,
            prompt=case.prompt,
            preserve_texture=case.preserve_texture,
            freedom=case.freedom,
            seed=options.seed,
            repeats=options.repeats,
        )
        seconds = monotonic() - started
        after = pipeline.decode(edited)[0]
        found[name] = {"seconds": round(seconds, 1), **numbers(pipeline, base, edited, before, after, case)}
        print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)
        rows.append(
            [
                *(drawn(before, view, runtime) for view in VIEWS),
                drawn(marked(before, case.regions), VIEWS[0], runtime),
                *(drawn(after, view, runtime) for view in VIEWS),
            ]
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.sheet:
        columns = ("before", "from behind", "region", "after", "from behind")
        sheet = picture_sheet(rows, list(CASES), columns=columns)
        Image.fromarray(sheet.numpy()).save(options.sheet)


def numbers(
    pipeline: Pipeline, base: Bundle, edited: Bundle, before: VoxelMesh, after: VoxelMesh, case: Case
) -> dict[str, Any]:
    facts = edited.info["edit"]
    flat = {name: tensor for name, tensor in edited.tensors.items() if not name.startswith("before")}
    joint = pipeline.decode(Bundle(flat, edited.info))[0]
    inside = cells_inside(
        case.regions, pipeline.settings.pipeline_type(base.info["pipeline_type"]).resolution
    )
    return {
        "structure": facts["voxels"],
        "tokens": facts["tokens"],
        "drift": {stage: round(value, 3) for stage, value in facts["drift"].items()},
        "decoded": {
            "voxels outside": int((~held(before.voxels, inside)).sum()),
            "changed outside by decoding": differing(before.voxels, joint.voxels, ~inside),
            "changed outside in the result": differing(before.voxels, after.voxels, ~inside),
            "largest change of material outside": largest_change(before.voxels, after.voxels, ~inside),
            "changed inside": differing(before.voxels, after.voxels, inside),
        },
    }


def held(voxels: PBRVoxels, cells: Tensor) -> Tensor:  # bool [N]
    x, y, z = voxels.coords.long().unbind(1)
    return cells[x, y, z]


def occupied(voxels: PBRVoxels, cells: Tensor) -> Tensor:  # bool [R, R, R]
    grid = torch.zeros_like(cells)
    grid[tuple(voxels.coords.long().unbind(1))] = True
    return grid & cells


def differing(a: PBRVoxels, b: PBRVoxels, cells: Tensor) -> int:
    """Voxels that exist in one of the two only."""
    return int((occupied(a, cells) ^ occupied(b, cells)).sum())


def largest_change(a: PBRVoxels, b: PBRVoxels, cells: Tensor) -> float:
    dense = [torch.zeros(*cells.shape, 6) for _ in range(2)]
    for grid, voxels in zip(dense, (a, b), strict=True):
        grid[tuple(voxels.coords.long().unbind(1))] = voxels.attrs.float()
    both = occupied(a, cells) & occupied(b, cells)
    return float((dense[0][both] - dense[1][both]).abs().max()) if both.any() else 0.0


def marked(shape: VoxelMesh, regions: Sequence[Region]) -> VoxelMesh:
    """What lies in the regions in another color."""
    inside = held(shape.voxels, cells_inside(regions, shape.voxels.resolution))
    attrs = torch.where(inside[:, None], ORANGE, shape.voxels.attrs)
    return VoxelMesh(shape.mesh, PBRVoxels(shape.voxels.coords, attrs, shape.voxels.resolution))


def drawn(shape: VoxelMesh, view: tuple[float, float], runtime: Runtime) -> Tensor:
    return before_backdrop(draw_subject(shape, orbit_camera(*view, radius=2.2), 256, runtime))


if __name__ == "__main__":
    main()
