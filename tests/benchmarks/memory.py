"""Predicted against measured memory: activations of a flow and of a decoder at several sizes.

    python -m tests.benchmarks.memory [--device cuda]

Released layers, narrower and with fewer blocks so that a CPU manages; the prediction is made for the same
numbers. On a CPU the measured peak is the growth of the resident set, each size in a fresh process; on a GPU
it is what torch allocated.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from torch import nn

from tests.benchmarks.generate import peak_resident, sphere_tokens
from trellis2.models import MODELS
from trellis_core.kernels.table import Kernels, resolve_kernels
from trellis_core.memory.cost import Network, activation_bytes
from trellis_core.memory.devices import describe_device, select_device
from trellis_core.sparse.tensor import SparseTensor

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trellis2" / "trellis2-4b" / "ckpts"
WIDTH, BLOCKS, CONTEXT, LATENT = 768, 2, 1029, 8
CHANNELS = (64, 64, 64, 128, 64)  # of the decoder: the last two levels are the released ones


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = select_device(options.device)
    info = describe_device(device)
    half = ["bfloat16"] if info.native_bf16 else []
    sizes = [(name, grid) for name in ["float32", *half] for grid in (24, 32, 48)]
    cases = [("flow", *size) for size in sizes] + [("decoder", "float32", grid) for grid in (8, 12, 16)]
    print(f"{info.name}, torch {torch.__version__}, kernels {dict(resolve_kernels(info).choices)}")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for what, dtype, grid in cases:
            rows, measured, predicted = pool.apply(compare, (what, dtype, grid, str(device)))
            print(
                f"{what:<8}{dtype:<9}{rows:>9,} rows  measured {measured >> 20:7,} MiB  "
                f"predicted {predicted >> 20:7,} MiB  {predicted / measured:5.2f} x",
                flush=True,
            )


def compare(what: str, dtype: str, grid: int, device_name: str) -> tuple[int, int, int]:
    """Rows of the largest level, measured and predicted bytes."""
    device = torch.device(device_name)
    kernels = resolve_kernels(describe_device(device))
    torch.manual_seed(0)
    with torch.inference_mode():
        if what == "flow":
            return compare_flow(grid, getattr(torch, dtype), device, kernels)
        return compare_decoder(grid, device, kernels)


def compare_flow(
    grid: int, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> tuple[int, int, int]:
    args = json.loads((CONFIGS / "slat_flow_img2shape_dit_1_3B_512_bf16.json").read_text())["args"]
    args = {name: value for name, value in args.items() if name not in ("dtype", "initialization")}
    args |= {"num_blocks": BLOCKS, "model_channels": WIDTH, "num_heads": WIDTH // 128}
    flow = MODELS["SLatFlowModel"](**args, kernels=kernels).eval().to(device)
    flow.set_torso_dtype(dtype)
    context = flow.precompute_context(torch.randn(1, CONTEXT, args["cond_channels"], device=device))
    time = torch.full((1,), 500.0, device=device)
    flow(tokens(4, args["in_channels"], device), time, context)
    x = tokens(grid, args["in_channels"], device)
    measured, _ = measure(lambda: flow(x, time, context), device)
    network = Network(
        stage="shape",
        kind="transformer",
        parameters=0,
        width=WIDTH,
        hidden=int(WIDTH * args["mlp_ratio"]),
        tokens=len(x.coords),
    )
    return len(x.coords), measured, activation_bytes(network, dtype, cache_condition=True)


def compare_decoder(grid: int, device: torch.device, kernels: Kernels) -> tuple[int, int, int]:
    levels = len(CHANNELS)
    build = MODELS["FlexiDualGridVaeDecoder"]
    decoder: nn.Module = build(
        model_channels=CHANNELS,
        latent_channels=LATENT,
        num_blocks=[0] * levels,
        block_type=["SparseConvNeXtBlock3d"] * levels,
        up_block_type=["SparseResBlockC2S3d"] * (levels - 1),
        block_args=[{}] * levels,
        resolution=grid << (levels - 1),
        kernels=kernels,
    )
    decoder = decoder.eval().to(device)
    decoder(tokens(4, LATENT, device))
    x = tokens(grid, LATENT, device)
    measured, decoded = measure(lambda: decoder(x), device)
    voxels = len(decoded[0].coords)
    network = Network(stage="decode", kind="sparse", parameters=0, width=CHANNELS[-1], tokens=voxels)
    return voxels, measured, activation_bytes(network, torch.float32, cache_condition=True)


def tokens(grid: int, channels: int, device: torch.device) -> SparseTensor:
    coords = sphere_tokens(grid).to(device)
    return SparseTensor(torch.randn(len(coords), channels, device=device), coords, batch_size=1)


def measure(run, device: torch.device):
    """(bytes above what was there before, result of `run`)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        return torch.cuda.max_memory_allocated(device) - before, result
    before = psutil.Process().memory_info().rss
    with peak_resident() as peak:
        result = run()
    return peak[0] - before, result


if __name__ == "__main__":
    main()
