"""Run as a program by the tests: the Triton convolution in Triton's interpreter, or compiled for real GPUs.

`interpret` prints one JSON object per dtype with the worst error against the torch path; `compile` prints
one per GPU. The interpreter has to be switched on before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import json
import sys

import torch

from trellis_core.kernels import triton_sparse_conv
from trellis_core.kernels.neighbor_map import kernel_offsets, neighbor_map
from trellis_core.kernels.sparse_conv import apply_im2col


def interpret() -> None:
    generator = torch.Generator().manual_seed(0)
    coords = torch.randint(0, 8, (200, 4), generator=generator, dtype=torch.int32)
    coords[:, 0] %= 2
    neighbors = neighbor_map(torch.unique(coords, dim=0), kernel_offsets(3))
    for dtype, channels, outputs, with_bias in (
        (torch.float32, 24, 20, True),
        (torch.float16, 40, 16, False),
        (torch.bfloat16, 16, 8, True),
    ):
        feats = torch.randn(len(neighbors), channels, generator=generator).to(dtype)
        weight = (torch.randn(outputs, 27, channels, generator=generator) / 30).to(dtype)
        bias = torch.randn(outputs, generator=generator).to(dtype) if with_bias else None
        got = triton_sparse_conv.apply_triton(feats, neighbors, weight, bias, widen=dtype == torch.bfloat16)
        want = apply_im2col(feats.float(), neighbors, weight.float(), bias.float() if with_bias else None)
        report = {"dtype": str(dtype), "error": (got.float() - want).abs().max().item()}
        print(json.dumps(report | {"same dtype": got.dtype == dtype}))


def compile_for_gpus() -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("feats", "weight", "bias", "out"), "*fp16") | {"neighbors": "*i32"}
    signature = pointers | dict.fromkeys(("count", "channels", "outputs", "taps"), "i32")
    constants = {"HAS_BIAS": True, "WIDEN": False, "BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32}
    signature = {name: signature.get(name, "constexpr") for name in triton_sparse_conv._convolve.arg_names}
    for capability in (80, 90):
        source = ASTSource(triton_sparse_conv._convolve, signature, constants)
        code = compile_kernel(source, target=GPUTarget("cuda", capability, 32)).asm
        tensor_cores = any(word in code["ptx"] for word in ("mma.sync", "wgmma", "tcgen05"))
        print(json.dumps({"capability": capability, "tensor cores": tensor_cores}))


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_gpus}[sys.argv[1]]()
