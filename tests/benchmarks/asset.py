"""Seconds and peak memory per stage of making an asset, at real sizes.

    python -m tests.benchmarks.asset --case bumps --resolution 512 --faces 100000 --texture 2048

The shapes are formulas, so grids of a thousand cells per side need no data and no network: a sphere with
bumps, a torus knot, and a cloud of fragments as an untrained model makes them. `cpu` is processor time of all
threads, which a busy machine does not spoil.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.spatial import cKDTree

from tests.benchmarks.generate import peak_resident
from tests.shapes import rainbow
from trellis2.dual_grid import extract_mesh
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.types import PBRVoxels, VoxelMesh
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.runtime import Runtime, Step

Distance = Callable[[np.ndarray], np.ndarray]  # [N, 3] -> [N]

STEEPEST = 2.0  # no distance function below changes faster than this
COARSEST = 32  # cells per side where the search for the surface starts
CORNERS = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(8, 3)
EDGES = [(a, a + (4, 2, 1)[axis]) for axis in range(3) for a in range(8) if not CORNERS[a, axis]]


def bumps(points: np.ndarray) -> np.ndarray:
    wave = np.sin(25 * points).prod(1)
    return np.linalg.norm(points, axis=1) - 0.4 - 0.03 * wave


def torus_knot(points: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    ring = 0.27 + 0.13 * np.cos(3 * t)
    curve = cKDTree(np.stack([ring * np.cos(2 * t), ring * np.sin(2 * t), 0.2 * np.sin(3 * t)], axis=1))
    return curve.query(points, workers=-1)[0] - 0.075


SURFACES: dict[str, Distance] = {"bumps": bumps, "knot": torus_knot}


def surface_cells(distance: Distance, resolution: int) -> np.ndarray:
    """int64 [N, 3]: cells that the surface may pass through, halved from coarse to fine."""
    side = resolution
    while side % 2 == 0 and side > COARSEST:
        side //= 2
    cells = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    while True:
        reach = STEEPEST * 0.5 * 3**0.5 / side
        cells = cells[np.abs(distance((cells + 0.5) / side - 0.5)) < reach]
        if side == resolution:
            return cells
        cells, side = (2 * cells[:, None] + CORNERS).reshape(-1, 3), side * 2


def dual_grid(distance: Distance, resolution: int, noise: float = 0.0) -> VoxelMesh:
    """The surface as the decoder would hand it over: one vertex per cell, no consistent winding.

    `noise` is the share of flags that are wrong: quads that are missing, and quads where there is no surface.
    """
    cells = surface_cells(distance, resolution)
    keys = ((cells[:, None] + CORNERS) @ [(resolution + 1) ** 2, resolution + 1, 1]).reshape(-1)
    unique, inverse = np.unique(keys, return_inverse=True)
    place = np.stack(np.unravel_index(unique, (resolution + 1,) * 3), axis=1)
    value = distance(place / resolution - 0.5)[inverse].reshape(-1, 8)
    crossed = ((value < 0).any(1)) & ((value >= 0).any(1))
    cells, value = cells[crossed], value[crossed]
    total, count = np.zeros((len(cells), 3)), np.zeros(len(cells))
    for a, b in EDGES:
        crosses = (value[:, a] < 0) != (value[:, b] < 0)
        share = np.where(crosses, value[:, a] / np.where(crosses, value[:, a] - value[:, b], 1), 0)
        total += crosses[:, None] * (CORNERS[a] + share[:, None] * (CORNERS[b] - CORNERS[a]))
        count += crosses
    local = total / count[:, None]
    before = [3, 5, 6]  # the edges that end in the last corner (7) start here: along x, y, z
    flags = (value[:, before] < 0) != (value[:, 7:] < 0)
    flags ^= np.random.default_rng(0).random(flags.shape) < noise
    return finish(cells, local, flags, resolution)


def fragments(resolution: int, blocks: int = 100, side: int = 3) -> VoxelMesh:
    """Small scattered blocks of cells with random vertices and flags."""
    random = np.random.default_rng(0)
    origin = random.integers(0, resolution - side, (blocks, 1, 3))
    cells = (origin + random.integers(0, side, (blocks, side**3, 3))).reshape(-1, 3)
    cells = np.unique(cells, axis=0)
    return finish(cells, random.random((len(cells), 3)), random.random((len(cells), 3)) < 0.5, resolution)


def finish(cells: np.ndarray, local: np.ndarray, flags: np.ndarray, resolution: int) -> VoxelMesh:
    coords = torch.from_numpy(cells.astype(np.int32))
    mesh = extract_mesh(
        coords, torch.from_numpy(local.astype(np.float32)), torch.from_numpy(flags), None, resolution
    )
    attrs = torch.from_numpy(rainbow((cells + 0.5) / resolution - 0.5).astype(np.float32))
    return VoxelMesh(mesh, PBRVoxels(coords, attrs, resolution))


class Stages:
    """Seconds, processor seconds and peak resident memory between one report and the next."""

    def __init__(self, peak: list[int]) -> None:
        self.peak = peak
        self.rows: list[dict[str, float | str]] = []
        self.start("begin")

    def start(self, name: str) -> None:
        self.name, self.wall, self.cpu, self.peak[0] = name, time.perf_counter(), time.process_time(), 0

    def report(self, step: Step) -> None:
        self.stop()
        self.start(f"{step.stage} {step.step + 1}" if step.step < step.steps else "")

    def stop(self) -> None:
        if self.name:
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            peak = max(self.peak[0], psutil.Process().memory_info().rss)
            row = {"stage": self.name, "seconds": wall, "cpu": cpu, "peak_mib": peak >> 20}
            self.rows.append(row)
            print(f"{self.name:12}{wall:8.2f} s{cpu:8.2f} s cpu{peak >> 20:9,} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="bumps", choices=(*SURFACES, "fragments"))
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.0, help="share of wrong quads")
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--texture", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--save", type=Path, help="also write the asset, to look at")
    options = parser.parse_args()

    device = select_device(options.device)
    info = describe_device(device)
    if options.case == "fragments":
        shape = fragments(options.resolution)
    else:
        shape = dual_grid(SURFACES[options.case], options.resolution, options.noise)
    what = {
        **vars(options),
        "voxels": len(shape.voxels.coords),
        "raw_faces": len(shape.mesh.faces),
        "device": info.name or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(what, default=str), flush=True)
    before = psutil.Process().memory_info().rss
    with peak_resident() as peak:
        stages = Stages(peak)
        runtime = Runtime(device=device, kernels=resolve_kernels(info), progress=stages.report)
        wall, cpu = time.perf_counter(), time.process_time()
        settings = ExportSettings(faces=options.faces, texture_size=options.texture)
        asset = build_asset(shape, settings, runtime=runtime)
        stages.stop()
    total = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "before_mib": before >> 20,
        "peak_mib": max(row["peak_mib"] for row in stages.rows),
        "faces": len(asset.mesh.faces),
        "problems": asset.quality.problems,
        "unclear_orientation": asset.quality.metrics["unclear_orientation"],
        "components": asset.quality.metrics["components"],
        "watertight": asset.quality.metrics["watertight"],
    }
    print(json.dumps(total))
    if options.json:
        result = {"what": what, "total": total, "stages": stages.rows}
        options.json.write_text(json.dumps(result, indent=1, default=str))
    if options.save:
        from trellis_core.io import WRITERS

        WRITERS[options.save.suffix](asset, options.save)


if __name__ == "__main__":
    main()
