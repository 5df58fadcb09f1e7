"""Seconds and peak memory per stage of a run.

    python -m tests.benchmarks.generate                                    # embedded model, best device
    python -m tests.benchmarks.generate --networks configs/trellis2/trellis2-4b  # random weights

With `--networks` the released configuration is filled with random weights and run on the tokens of a
sphere, so that sizes and times are real although the result is not. Warm-up: one step per flow.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from torch import nn

from trellis2 import stages
from trellis2.loading import network_config
from trellis2.models import MODELS
from trellis2.settings import PipelineSettings, read_settings
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.io.images import read_picture
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.runtime import Runtime, Step
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.load import build_model

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "examples").glob("*.png"))


class Meter:
    """Seconds and peak bytes per stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: list[dict[str, float | str]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        with peak_resident() as peak:
            start = time.perf_counter()
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak[0]
        self.rows.append({"stage": name, "seconds": round(seconds, 3), "peak_mib": memory >> 20})
        print(f"{name:12} {seconds:8.2f} s  {memory / 2**20:9,.0f} MiB", flush=True)


@contextmanager
def peak_resident() -> Iterator[list[int]]:
    """Largest resident set of this process inside the block, sampled every 10 ms."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], process.memory_info().rss)


def measure_run(picture: Path, meter: Meter, runtime: Runtime, model: str) -> None:
    """A real run of a model that is present; stages as the pipeline reports them."""
    import trellis2

    with meter.stage("load"):
        pipeline = trellis2.load(model, runtime)
    marks: list[tuple[str, float]] = []

    def note(step: Step) -> None:
        if not marks or marks[-1][0] != step.stage:
            marks.append((step.stage, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder, meter.stage("run"):
        asset = pipeline.run(picture, on_progress=note)
        marks.append(("write", time.perf_counter()))
        asset.save(Path(folder) / "asset.glb")
        marks.append(("end", time.perf_counter()))
    for (name, start), (_, end) in pairwise(marks):
        meter.rows.append({"stage": f"run/{name}", "seconds": round(end - start, 3)})
        print(f"  {name:10} {end - start:8.2f} s")


def measure_networks(folder: Path, grid: int, meter: Meter, runtime: Runtime) -> None:
    """Released sizes with random weights on the tokens of a sphere of `grid` voxels."""
    settings = read_settings(folder / "pipeline.json")
    kind = settings.pipeline_types["512" if grid == 512 else "1024"]
    picture = preprocess_picture(read_picture(PICTURES[0]), None)

    def network(name: str) -> nn.Module:
        return random_network(folder, settings, name, runtime)

    encoder = network("image_encoder")
    with meter.stage("condition"):
        cond = stages.encode_picture(encoder, [picture], kind.texture_image_size, runtime)
    del encoder
    flow = network("sparse_structure_flow_model")
    noise = torch.randn(1, flow.in_channels, *[flow.resolution] * 3, device=runtime.device)
    timed_flow(meter, "structure", flow, noise, cond, settings.structure_sampler, runtime)
    del flow
    decoder = network("shape_slat_decoder")
    coords = sphere_tokens(grid // decoder.factor).to(runtime.device)
    print(f"{len(coords):,} tokens")
    flow = network(kind.shape_passes[-1].model)
    noise = SparseTensor(
        torch.randn(len(coords), flow.in_channels, device=runtime.device), coords, batch_size=1
    )
    latent = timed_flow(meter, "shape", flow, noise, cond, settings.shape_sampler, runtime)
    del flow
    flow = network(kind.texture_model)
    noise = latent.replace(torch.randn_like(latent.feats))
    color = timed_flow(
        meter, "texture", flow, noise, cond, settings.texture_sampler, runtime, concat_cond=latent
    )
    del flow
    texture_decoder = network("tex_slat_decoder")
    with meter.stage("decode"):
        decoded = stages.decode_latents(decoder, texture_decoder, latent, color, runtime)
    print(f"{len(decoded.shape.coords):,} voxels")
    with meter.stage("mesh"):
        stages.voxel_meshes(decoded, decoder, grid)


def timed_flow(meter, name, flow, noise, cond, settings, runtime, **inputs):
    with meter.stage(f"{name}/warm"):
        stages.sample_flow(flow, noise, cond, type(settings)(steps=1), runtime, name, **inputs)
    with meter.stage(name):
        return stages.sample_flow(flow, noise, cond, settings, runtime, name, **inputs)


def random_network(folder: Path, settings: PipelineSettings, name: str, runtime: Runtime) -> nn.Module:
    from trellis2.weights import DINOV3_VITL16

    if name != "image_encoder":
        config = network_config(folder / "ckpts" / Path(settings.models[name]).name)
    elif (folder / f"{settings.image_encoder}.json").exists():
        config = network_config(folder / settings.image_encoder)
    else:
        config = {"name": "DINOv3ViT", "args": DINOV3_VITL16}
    network = build_model(config, MODELS, kernels=runtime.kernels)
    if name != "image_encoder":
        network.set_torso_dtype(runtime.dtype)
    network = network.to_empty(device=runtime.device)
    generator = torch.Generator(runtime.device).manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    if hasattr(network, "reset_buffers"):
        network.reset_buffers(runtime.device)
    return network.eval().requires_grad_(False)


def sphere_tokens(grid: int) -> torch.Tensor:
    """int32 [N, 4]: cells of a grid that a sphere of radius 0.45 passes through."""
    axis = (torch.arange(grid) + 0.5) / grid - 0.5
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    cells = torch.argwhere((distance - 0.45).abs() < 0.87 / grid)
    return torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1).int()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--networks", type=Path, help="model folder, e.g. configs/trellis2/trellis2-4b: random weights"
    )
    parser.add_argument("--grid", type=int, default=512, choices=(512, 1024))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--picture", type=Path, default=PICTURES[0] if PICTURES else None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = select_device(options.device)
    info = describe_device(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    runtime = Runtime(device=device, dtype=dtype, kernels=resolve_kernels(info))
    machine = {
        "device": info.name or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": dict(runtime.kernels.choices),
    }
    print(json.dumps(machine), file=sys.stderr)
    meter = Meter(device)
    with torch.inference_mode():
        if options.networks:
            measure_networks(options.networks, options.grid, meter, runtime)
        else:
            measure_run(options.picture, meter, runtime, options.model)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "stages": meter.rows}, indent=1))


if __name__ == "__main__":
    main()
