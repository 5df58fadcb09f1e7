"""Predicted against measured memory of TRELLIS v1: activations of the latent flow and of the mesh decoder.

    python -m tests.benchmarks.memory_trellis1 [--device cuda]

Released widths with fewer blocks, so that a CPU manages; the prediction is that of `trellis.costs` for
as many voxels. The mesh decoder's row ends with the mesh. Measured as in `memory.py`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.memory import measure, tokens
from trellis.costs import CUBES, VOXELS_PER_TOKEN, describe_networks
from trellis.flexicubes import cube_meshes
from trellis.models import MODELS
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.cost import activation_bytes
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.weights.load import network_arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trellis"
FILES = {
    "slat_flow_model": CONFIGS / "text-base" / "ckpts" / "slat_flow_txt_dit_B_64l8p2_fp16.json",
    "slat_decoder_mesh": CONFIGS / "image-large" / "ckpts" / "slat_dec_mesh_swin8_B_64l8m256c_fp16.json",
}
BLOCKS, CONTEXT = 2, 77
GRIDS = {"slat_flow_model": (32, 48, 64), "slat_decoder_mesh": (12, 20, 28)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    device = select_device(parser.parse_args().device)
    info = describe_device(device)
    dtypes = ["float32"] if device.type == "cpu" else ["float32", "float16"]
    print(f"{info.name}, torch {torch.__version__}, kernels {dict(resolve_kernels(info).choices)}")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, dtype, grid in ((n, d, g) for n in GRIDS for d in dtypes for g in GRIDS[n]):
            voxels, measured, predicted = pool.apply(compare, (name, dtype, grid, str(device)))
            print(
                f"{name:<20}{dtype:<9}{voxels:>9,} voxels  measured {measured >> 20:6,} MiB  "
                f"predicted {predicted >> 20:6,} MiB  {predicted / measured:5.2f} x",
                flush=True,
            )


def compare(name: str, dtype: str, grid: int, device_name: str) -> tuple[int, int, int]:
    """Voxels, measured and predicted bytes."""
    device = torch.device(device_name)
    kernels: Kernels = resolve_kernels(describe_device(device))
    config = json.loads(FILES[name].read_text())
    config["args"]["num_blocks"] = BLOCKS
    torch.manual_seed(0)
    kind = MODELS[config["name"]]
    network: Any = kind(**network_arguments(kind, config["args"]), kernels=kernels).eval().to(device)
    network.set_torso_dtype(getattr(torch, dtype))
    cost = describe_networks({name: (config, 0)}, image_size=518)[name]
    with torch.inference_mode():
        if name == "slat_flow_model":
            context = network.precompute_context(
                torch.randn(1, CONTEXT, config["args"]["cond_channels"], device=device)
            )
            time = torch.full((1,), 500.0, device=device)

            def run(x: Any) -> object:
                return network(x, time, context)
        else:

            def run(x: Any) -> object:
                return cube_meshes(network(x), network.layout, network.mesh_resolution)

        run(tokens(4, 8, device))
        x = tokens(grid, 8, device)
        measured, _ = measure(lambda: run(x), device)
    voxels = len(x.coords)
    flow = name == "slat_flow_model"
    rows = round(voxels / VOXELS_PER_TOKEN) if flow else voxels
    sized = replace(cost, tokens=rows, voxels=voxels if flow else CUBES * voxels)
    return voxels, measured, activation_bytes(sized, getattr(torch, dtype), cache_condition=True)


if __name__ == "__main__":
    main()
