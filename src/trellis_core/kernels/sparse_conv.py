"""Submanifold sparse convolution: the plain torch path, and the gradient that all paths share.

A convolution is a matrix product of gathered rows: `out[n] = sum_k W[:, k] @ feats[neighbors[n, k]] + bias`.
Rows are gathered in chunks (im2col) into one buffer, so that memory stays bounded; products accumulate
in float32. Submanifold convolution: Graham & van der Maaten, "Submanifold Sparse Convolutional
Networks" (2017).

Letters: N voxels, K kernel taps, I input channels, O output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_ELEMENTS = 16_384 * 27 * 64  # most that the gather buffer may hold, whatever the width

Apply = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sparse_conv(
    feats: Tensor,  # [N, I]
    neighbors: Tensor,  # int32 [N, K]   -1 where absent; tap k is the opposite of tap K - 1 - k
    weight: Tensor,  # [O, *kernel, I]   as many taps as `neighbors` has
    bias: Tensor | None,  # [O]
) -> Tensor:  # [N, O]   dtype of `feats`
    """Convolve on the given voxels. Differentiable in feats, weight and bias."""
    return differentiable(apply_im2col, feats, neighbors, weight, bias)


def differentiable(
    apply: Apply, feats: Tensor, neighbors: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Run `apply(feats [N, I], neighbors [N, K], weight [O, K, I], bias)` with gradients."""
    weight = weight.reshape(weight.shape[0], -1, weight.shape[-1])
    if weight.shape[1:] != (neighbors.shape[1], feats.shape[1]) or len(neighbors) != len(feats):
        raise ValueError(
            f"weight {list(weight.shape)} (output, taps, input) does not fit "
            f"features {list(feats.shape)} and neighbours {list(neighbors.shape)}"
        )
    return _SparseConv.apply(feats, weight, bias, neighbors, apply)  # type: ignore[no-any-return]


def apply_im2col(feats: Tensor, neighbors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Gather rows of all taps side by side, then multiply."""
    # no float16 matrix product on a processor: it is ten times slower there and rounds on the way
    compute = torch.float32 if feats.device.type == "cpu" and feats.dtype == torch.float16 else feats.dtype
    matrix = weight.to(compute).reshape(weight.shape[0], -1).t()
    shift = None if bias is None else bias.to(compute)
    out = feats.new_empty(len(feats), weight.shape[0])
    for rows, columns in gathered(feats, neighbors):
        wide = columns.to(compute)
        out[rows] = wide @ matrix if shift is None else torch.addmm(shift, wide, matrix)
    return out


def gathered(feats: Tensor, neighbors: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, [n, K * I]): the features at all taps, chunk by chunk. The buffer is used again."""
    count, taps = neighbors.shape
    width = taps * feats.shape[1]
    padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])  # misses read the zero row
    chunk = max(1, min(_chunk_rows(feats), CHUNK_ELEMENTS // width, count))
    buffer = feats.new_empty(chunk * taps, feats.shape[1])
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        index = neighbors[rows].reshape(-1)
        index = torch.where(index < 0, count, index)
        columns = torch.index_select(padded, 0, index, out=buffer[: len(index)])
        yield rows, columns.view(-1, width)


def _chunk_rows(feats: Tensor) -> int:
    """On a processor a narrow layer's chunk stays in the cache, a wide layer's must outweigh its kernel; a
    GPU wants few large chunks."""
    return min(16_384, max(512, 16 * feats.shape[1])) if feats.device.type == "cpu" else 262_144


class _SparseConv(torch.autograd.Function):
    """The map is symmetric, so the gradient of the features is a convolution of the output's gradient with
    the mirrored, transposed kernel: the same gather, no scatter, bit-repeatable."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, feats: Tensor, weight: Tensor, bias: Tensor | None, neighbors: Tensor, apply: Apply
    ) -> Tensor:
        ctx.save_for_backward(feats, weight, neighbors)
        ctx.product = apply  # type: ignore[attr-defined]
        return apply(feats, neighbors, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, neighbors = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_feats, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        grad = grad.contiguous()
        grad_feats = grad_weight = grad_bias = None
        if needs_feats:
            mirrored = weight.flip(1).permute(2, 1, 0).contiguous()
            grad_feats = ctx.product(grad, neighbors, mirrored, None)  # type: ignore[attr-defined]
        if needs_weight:
            wide = torch.promote_types(grad.dtype, torch.float32)
            total = torch.zeros(grad.shape[1], weight[0].numel(), dtype=wide, device=grad.device)
            for rows, columns in gathered(feats, neighbors):
                total.addmm_(grad[rows].to(wide).t(), columns.to(wide))
            grad_weight = total.view_as(weight).to(weight.dtype)
        if needs_bias:
            grad_bias = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(weight.dtype)
        return grad_feats, grad_weight, grad_bias, None, None
