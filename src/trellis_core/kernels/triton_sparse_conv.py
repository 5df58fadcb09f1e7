"""Submanifold sparse convolution as one implicit matrix product in Triton, for CUDA from 8.0 and ROCm.

Nothing is gathered into memory: a program owns a block of output rows and channels, walks over the
taps, and reads the neighbours' rows straight into the product. Accumulates in float32. The torch twin
is `sparse_conv.apply_im2col`; the weight's gradient uses its gather.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from trellis_core.kernels.sparse_conv import differentiable


def sparse_conv(
    feats: Tensor,  # [N, I]
    neighbors: Tensor,  # int32 [N, K]
    weight: Tensor,  # [O, *kernel, I]
    bias: Tensor | None,  # [O]
) -> Tensor:  # [N, O]
    """Convolve on the given voxels. Differentiable in feats, weight and bias."""
    return differentiable(apply_triton, feats, neighbors, weight, bias)


def apply_triton(
    feats: Tensor,  # [N, I]
    neighbors: Tensor,  # int32 [N, K]
    weight: Tensor,  # [O, K, I]
    bias: Tensor | None,  # [O]
    widen: bool = False,
) -> Tensor:
    """`widen` multiplies in float32: the interpreter's 16-bit brain floats are integers to it."""
    count, channels = feats.shape
    outputs, taps = weight.shape[:2]
    out = feats.new_empty(count, outputs)
    if count == 0:
        return out
    block_n = 128 if outputs >= 128 else max(16, triton.next_power_of_2(outputs))
    block_k = min(64 if feats.element_size() == 2 else 32, max(16, triton.next_power_of_2(channels)))
    grid = (triton.cdiv(count, 128), triton.cdiv(outputs, block_n))
    kernel: Any = _convolve
    kernel[grid](
        feats.contiguous(), neighbors.contiguous(), weight.to(feats.dtype).permute(1, 2, 0).contiguous(),
        feats if bias is None else bias.to(feats.dtype), out,
        count, channels, outputs, taps,
        HAS_BIAS=bias is not None, WIDEN=widen,
        BLOCK_M=128, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=8 if block_n == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out


@triton.jit
def _convolve(
    feats, neighbors, weight, bias, out,
    count, channels, outputs, taps,
    HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    taken = neighbors + rows.to(tl.int64) * taps
    for tap in range(taps):
        found = tl.load(taken, mask=rows < count, other=-1)
        taken += 1
        if tl.max(found, 0) >= 0:  # some row of the block has this neighbour
            starts = found.to(tl.int64) * channels
            for start in range(0, channels, BLOCK_K):
                depth = start + inner
                a = tl.load(
                    feats + starts[:, None] + depth[None, :],
                    mask=(found[:, None] >= 0) & (depth[None, :] < channels),
                    other=0.0,
                )
                b = tl.load(
                    weight + (tap * channels + depth[:, None]) * outputs + columns[None, :],
                    mask=(depth[:, None] < channels) & (columns[None, :] < outputs),
                    other=0.0,
                )
                if WIDEN:
                    a = a.to(tl.float32)
                    b = b.to(tl.float32)
                total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + rows[:, None].to(tl.int64) * outputs + columns[None, :],
        total.to(out.dtype.element_ty),
        mask=(rows[:, None] < count) & (columns[None, :] < outputs),
    )
