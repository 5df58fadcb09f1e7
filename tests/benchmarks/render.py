"""Seconds and peak memory of pictures and films.

    python -m tests.benchmarks.render                       # synthetic subjects, best device
    python -m tests.benchmarks.render --device cpu --size 512 --frames 60 asset.glb cloud.ply

Each picture is drawn once to warm up (kernels are compiled then) and once to be measured. Resident memory is
that of the whole process, torch included.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.generate import peak_resident
from trellis_cli.subjects import kind_of, read_subject
from trellis_core.geometry.fields import SH0, Gaussians, RadianceField
from trellis_core.geometry.types import PBRVoxels
from trellis_core.io.images import write_png
from trellis_core.io.video import FILM_ENCODERS, write_film
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.render.subject import Look, Subject, draw_subject, on_device
from trellis_core.render.turntable import contact_sheet, framed_cameras, turntable
from trellis_core.runtime import Runtime


def ring(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points float32 [N, 3] on a torus, and their colors."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(count, generator=generator) * 2 * torch.pi for _ in range(2))
    points = torch.stack(
        [a.cos() * (0.32 + 0.13 * b.cos()), a.sin() * (0.32 + 0.13 * b.cos()), 0.13 * b.sin()], 1
    )
    return points, points + 0.5


def ring_of_gaussians(count: int) -> Gaussians:
    points, colors = ring(count)
    turned = torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4)
    solid = torch.full((count, 1), 0.8)
    return Gaussians(points, torch.full((count, 3), 0.004), turned, solid, (colors - 0.5) / SH0)


def ring_of_voxels(resolution: int) -> PBRVoxels:
    points, _ = ring(40 * resolution**2)
    coords = torch.unique(((points + 0.5) * resolution).int(), dim=0)
    color = (coords + 0.5) / resolution
    rest = torch.tensor([[0.0, 0.5, 1.0]]).expand(len(coords), 3)
    return PBRVoxels(coords, torch.cat([color, rest], 1), resolution)


def ring_of_field(resolution: int) -> RadianceField:
    voxels = ring_of_voxels(resolution)
    count = len(voxels.coords)
    densities, features = torch.zeros(count, 16), torch.zeros(count, 16, 3)
    densities[:, 0] = 300
    features[:, 0] = torch.logit(voxels.attrs[:, :3].clamp(0.02, 0.98)) / SH0
    return RadianceField(voxels.coords, torch.ones(count, 16, 3, 8), densities, features, resolution)


SYNTHETIC: dict[str, Callable[[], Subject]] = {
    "300,000 Gaussians": lambda: ring_of_gaussians(300_000),
    "radiance field, 64 voxels": lambda: ring_of_field(64),
    "voxels, 256": lambda: ring_of_voxels(256),
}


def measure(name: str, what: str, work: Callable[[], object], rows: list[dict[str, object]]) -> None:
    with peak_resident() as peak:
        start, used = time.perf_counter(), time.process_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, used = time.perf_counter() - start, time.process_time() - used
    facts = {"seconds": round(seconds, 2), "processor_seconds": round(used, 2), "peak_mib": peak[0] >> 20}
    rows.append({"subject": name, "what": what, **facts})
    memory = f"{peak[0] / 2**20:8,.0f} MiB"
    print(f"{name:28} {what:18} {seconds:8.2f} s {used:8.2f} s of processor {memory}", flush=True)


def measure_subject(
    name: str, subject: Subject, size: int, frames: int, runtime: Runtime, rows: list[dict[str, object]]
) -> None:
    subject = on_device(subject, runtime.device)
    camera = framed_cameras(subject, [(2.6, 0.35)])[0]
    draw_subject(subject, camera, size, runtime)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for mode in ("color", "normal", "depth"):
            measure(
                name,
                f"still, {mode}",
                lambda mode=mode: write_png(
                    place / "still.png", draw_subject(subject, camera, size, runtime, Look(mode=mode))
                ),
                rows,
            )
        looks = (Look(), Look(mode="clay"))
        measure(
            name,
            "sheet, 2 x 4",
            lambda: write_png(place / "sheet.png", contact_sheet(subject, runtime, size=size, looks=looks)),
            rows,
        )
        for suffix in FILM_ENCODERS if frames else ():
            film = turntable(subject, runtime, frames=frames, size=size)
            measure(
                name,
                f"{frames} frames, {suffix[1:]}",
                lambda film=film, suffix=suffix: write_film(film, place / f"film{suffix}", fps=15),
                rows,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", nargs="*", type=Path, help="files to draw besides the synthetic subjects")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=60, help="0: no films")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-assets", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = select_device(options.device)
    info = describe_device(device)
    runtime = Runtime(device=device, kernels=resolve_kernels(info))
    print(
        f"{info.name or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    rows: list[dict[str, object]] = []
    subjects = {path.name: (lambda path=path: read_subject(path, kind_of(path))) for path in options.assets}
    subjects |= {} if options.only_assets else SYNTHETIC
    with torch.inference_mode():
        for name, make in subjects.items():
            measure_subject(name, make(), options.size, options.frames, runtime, rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
