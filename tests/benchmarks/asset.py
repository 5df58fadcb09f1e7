"""Seconds and peak memory per step of making an asset, and how good it is, on objects of known shape.

    python tests/benchmarks/asset.py                       all five objects at 512 voxels
    python tests/benchmarks/asset.py --case knot --resolution 1024 --faces 1000000 --texture 4096
    python tests/benchmarks/asset.py --library --json report.json --pictures DIR

The objects are formulas (`objects.py`), so grids of a thousand cells per side need no data and no network.
`--library` runs the straightforward library pipeline on the same inputs. `cpu` is processor time of all
threads, which a busy machine does not spoil. Distances are in voxels. With `--device cuda` the voxels start
in the GPU's memory, as a decoder leaves them there, and the peaks of both memories are told.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch

from tests.benchmarks.fidelity import shape_fidelity, texture_fidelity
from tests.benchmarks.generate import peak_resident
from tests.benchmarks.library_export import export_with_libraries
from tests.benchmarks.objects import SHAPES, Shape, fragments, voxel_object
from tests.benchmarks.side_by_side import draw_side_by_side
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.bake import to_images
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.quality import check_mesh
from trellis_core.geometry.types import Asset, Material, PBRVoxels, QualityReport, VoxelMesh
from trellis_core.io import WRITERS
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.runtime import Runtime, Step

FIVE = ("knot", "plant", "lattice", "bowl", "shell")
MAPS = ("base_color", "metallic_roughness")
SHOWN = (
    "faces",
    "components",
    "boundary_edges",
    "non_manifold_edges",
    "mixed_edges",
    "double_shells",
    "hidden_area_share",
    "degenerate_faces",
    "duplicate_faces",
    "slivers",
    "extreme_slivers",
    "uv_charts",
    "uv_coverage",
    "uv_overlap",
    "uv_flips",
    "uv_stretch",
    "uv_density_deviation",
    "unsupported_texels",
)


class Stages:
    """Seconds, processor seconds and peak memory between one report and the next."""

    def __init__(self, peak: list[int], device: torch.device) -> None:
        self.peak = peak
        self.gpu = device.type == "cuda"
        self.rows: list[dict[str, Any]] = []
        self.start("begin")

    def start(self, name: str) -> None:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.name, self.wall, self.cpu, self.peak[0] = name, time.perf_counter(), time.process_time(), 0

    def report(self, step: Step) -> None:
        self.step(f"{step.stage} {step.step + 1}" if step.step < step.steps else "")

    def step(self, name: str) -> None:
        if name == self.name:
            return
        self.stop()
        self.start(name)

    def stop(self) -> None:
        if self.name:
            if self.gpu:
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            peak = max(self.peak[0], psutil.Process().memory_info().rss)
            row = {"stage": self.name, "seconds": wall, "cpu": cpu, "peak_mib": peak >> 20}
            words = f"  {self.name:14}{wall:8.2f} s{cpu:8.2f} s cpu{peak >> 20:9,} MiB"
            if self.gpu:
                row["gpu_mib"] = torch.cuda.max_memory_allocated() >> 20
                words += f"{row['gpu_mib']:9,} MiB on the GPU"
            self.rows.append(row)
            print(words, flush=True)

    def total(self, before: int) -> dict[str, Any]:
        slowest = max(self.rows, key=lambda row: row["seconds"])
        peak = max(row["peak_mib"] for row in self.rows)
        return {
            "seconds": sum(row["seconds"] for row in self.rows),
            "cpu": sum(row["cpu"] for row in self.rows),
            "dominates": slowest["stage"],
            "before_mib": before >> 20,
            "peak_mib": peak,
            "added_mib": peak - (before >> 20),
            **({"peak_gpu_mib": max(row["gpu_mib"] for row in self.rows)} if self.gpu else {}),
        }


def export_ours(
    shape: VoxelMesh, settings: ExportSettings, runtime: Runtime
) -> tuple[Asset, list[dict[str, Any]], dict[str, Any]]:
    """The asset, its stages and their sum; the last stage writes a GLB."""
    before = psutil.Process().memory_info().rss
    with peak_resident() as peak, tempfile.TemporaryDirectory() as folder:
        stages = Stages(peak, runtime.device)
        asset = build_asset(shape, settings, runtime=runtime.reporting(stages.report), writers=WRITERS)
        stages.step("write")
        file = asset.save(Path(folder) / "asset.glb")
        size = file.stat().st_size
        stages.stop()
    return asset, stages.rows, {**stages.total(before), "bytes": size}


def export_library(
    shape: VoxelMesh, settings: ExportSettings, kernels: Kernels, device: torch.device
) -> tuple[Asset, list[dict[str, Any]], dict[str, Any]]:
    before = psutil.Process().memory_info().rss
    with peak_resident() as peak:
        stages = Stages(peak, device)
        mesh, image = export_with_libraries(
            shape, settings.faces, settings.texture_size, kernels, lambda name: stages.step(f"lib {name}")
        )
        stages.stop()
    color, surface = to_images(image)
    color[..., 3] = 255
    report = check_mesh(mesh, kernels=kernels, texture_size=1024)
    material = Material(color, surface, double_sided=True)
    return Asset(mesh, material, report), stages.rows, stages.total(before)


def judge(asset: Asset, shape: VoxelMesh, known: Shape | None, kernels: Kernels) -> dict[str, Any]:
    """The asset's own quality report, and how far surface and texture are from shape and voxels."""
    report: QualityReport = asset.quality
    found: dict[str, Any] = {name: report.metrics[name] for name in SHOWN if name in report.metrics}
    found["problems"] = list(report.problems)
    if known is not None:
        found.update(shape_fidelity(asset.mesh, shape, known.visible, kernels))
        found.update(texture_fidelity(asset.mesh, asset.material.base_color, shape, kernels))
    return found


def show(found: dict[str, Any]) -> None:
    words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()]
    for start in range(0, len(words), 6):
        print("    " + "  ".join(words[start : start + 6]), flush=True)


def run_case(name: str, options: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    if name == "fragments":
        known, shape = None, fragments(options.resolution)
    else:
        known = SHAPES[name]()
        shape = voxel_object(known, options.resolution, options.noise)
    raw = topology_metrics(shape.mesh)
    facts = {
        "case": name,
        "resolution": options.resolution,
        "voxels": len(shape.voxels.coords),
        "raw_faces": len(shape.mesh.faces),
        "raw_boundary_edges": raw["boundary_edges"],
        "raw_non_manifold_edges": raw["non_manifold_edges"],
        "raw_components": raw["components"],
    }
    print(json.dumps(facts), flush=True)
    settings = ExportSettings(faces=options.faces, texture_size=options.texture)
    asset, rows, total = export_ours(on_device(shape, runtime.device), settings, runtime)
    if options.twice:
        again, _, _ = export_ours(on_device(shape, runtime.device), settings, runtime)
        total["same_twice"] = same(asset, again)
    quality = judge(asset, shape, known, runtime.kernels)
    show(total)
    show(quality)
    result = {**facts, "ours": {"stages": rows, "total": total, "quality": quality}}
    assets = {"ours": asset}
    if options.library:
        other, rows, total = export_library(shape, settings, runtime.kernels, runtime.device)
        quality = judge(other, shape, known, runtime.kernels)
        show(total)
        show(quality)
        assets = {"library": other, **assets}
        result["library"] = {"stages": rows, "total": total, "quality": quality}
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        draw_side_by_side(shape, assets, runtime, options.pictures / f"{name}.png")
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        asset.save(options.save / f"{name}.glb")
    return result


def on_device(shape: VoxelMesh, device: torch.device) -> VoxelMesh:
    voxels = shape.voxels
    moved = PBRVoxels(voxels.coords.to(device), voxels.attrs.to(device), voxels.resolution)
    return VoxelMesh(shape.mesh.to(device), moved)


def same(one: Asset, other: Asset) -> bool:
    """Whether two assets are equal to the last bit."""
    pairs = [(getattr(one.mesh, name), getattr(other.mesh, name)) for name in ("vertices", "faces", "uvs")]
    pairs += [(getattr(one.material, name), getattr(other.material, name)) for name in MAPS]
    return all(torch.equal(a, b) for a, b in pairs)


COLUMNS = (
    ("seconds", "total", "seconds", "{:.1f}"),
    ("memory added, MiB", "total", "added_mib", "{:,}"),
    ("GPU memory, MiB", "total", "peak_gpu_mib", "{:,}"),
    ("slowest step", "total", "dominates", "{}"),
    ("Chamfer", "quality", "chamfer", "{:.3f}"),
    ("farthest", "quality", "farthest", "{:.2f}"),
    ("slivers", "quality", "slivers", "{:,}"),
    ("open edges", "quality", "boundary_edges", "{:,}"),
    ("mixed edges", "quality", "mixed_edges", "{:,}"),
    ("charts", "quality", "uv_charts", "{:,}"),
    ("covered", "quality", "uv_coverage", "{:.0%}"),
    ("stretch", "quality", "uv_stretch", "{:.2f}"),
    ("PSNR, dB", "quality", "psnr", "{:.1f}"),
)


def table(cases: list[dict[str, Any]]) -> list[str]:
    """The results as a table in Markdown, one row for each export; lengths in voxels."""
    columns = [c for c in COLUMNS if any(c[2] in case["ours"][c[1]] for case in cases)]
    lines = ["| object | voxels | raw faces | by | " + " | ".join(c[0] for c in columns) + " |"]
    lines.append("|" + "---|" * (4 + len(columns)))
    for case in cases:
        for by in ("ours", "library"):
            if by in case:
                values = [case[by][part].get(name) for _, part, name, _ in columns]
                shown = ["-" if v is None else c[3].format(v) for c, v in zip(columns, values, strict=True)]
                head = [case["case"], f"{case['voxels']:,}", f"{case['raw_faces']:,}", by]
                lines.append("| " + " | ".join([*head, *shown]) + " |")
    return lines


def warm_up(runtime: Runtime) -> None:
    """Compile the kernels on a tiny object, so that no step is charged for it."""
    tiny = voxel_object(SHAPES["bumps"](), 32)
    asset = build_asset(
        on_device(tiny, runtime.device), ExportSettings(faces=1000, texture_size=64), runtime=runtime
    )
    texture_fidelity(asset.mesh, asset.material.base_color, tiny, runtime.kernels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", action="append", choices=(*SHAPES, "fragments"), help="default: five objects"
    )
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--noise", type=float, default=0.0, help="share of wrong quads")
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--texture", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--twice", action="store_true", help="also check that a second run gives the same")
    parser.add_argument("--library", action="store_true", help="also run the library pipeline")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the assets, to look at")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of original and exports")
    options = parser.parse_args()

    device = select_device(options.device)
    info = describe_device(device)
    what = {
        "faces": options.faces,
        "texture": options.texture,
        "noise": options.noise,
        "device": info.name or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(what), flush=True)
    runtime = Runtime(device=device, kernels=resolve_kernels(info))
    warm_up(runtime)
    cases = [run_case(name, options, runtime) for name in options.case or FIVE]
    print("\n".join(table(cases)))
    if options.json:
        options.json.write_text(json.dumps({"what": what, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
