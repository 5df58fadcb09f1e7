"""Scaled dot-product attention, dense and packed, with the softmax scale 1/sqrt(D) and no mask.

`attention_torch` and `packed_attention_torch` are the references; the others call kernels that
exist only on CUDA. The packages flash-attn and xformers and torch's varlen kernel know half
precision only: float32 tensors take the reference there, by design and not by accident.
All of them accumulate in float32, on compute capability 7.x too: there float16 goes through the
memory-efficient kernel, which multiplies in float16 and adds in float32.

Letters: B batch, L queries, M keys, T packed queries, S packed keys, H heads, D head width.
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_torch(
    q: Tensor,  # [B, L, H, D]
    k: Tensor,  # [B, M, H, D]
    v: Tensor,  # [B, M, H, D]
) -> Tensor:  # [B, L, H, D]
    """Attend every query to every key of the same sample."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def packed_attention_torch(
    q: Tensor,  # [T, H, D]
    k: Tensor,  # [S, H, D]
    v: Tensor,  # [S, H, D]
    cu_q: Tensor,  # int32 [B + 1]  first query of each sequence, and T
    cu_k: Tensor,  # int32 [B + 1]  first key of each sequence, and S
    max_q: int,
    max_k: int,
) -> Tensor:  # [T, H, D]
    """Attend within sequences that lie one after the other; equal shapes run as one batch."""
    batch = len(cu_q) - 1
    if q.shape[0] == batch * max_q and k.shape[0] == batch * max_k:
        return _equal_lengths(q, k, v, batch)
    lengths = list(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True))
    order = list(range(batch))
    if len(set(lengths)) < batch:
        order.sort(key=lengths.__getitem__)
    rows_q, rows_k = _rows(cu_q, order), _rows(cu_k, order)
    q, k, v = (x.index_select(0, rows) for x, rows in ((q, rows_q), (k, rows_k), (v, rows_k)))
    groups = [(shape, len(list(members))) for shape, members in groupby(lengths[i] for i in order)]
    parts = zip(
        q.split([shape[0] * count for shape, count in groups]),
        k.split([shape[1] * count for shape, count in groups]),
        v.split([shape[1] * count for shape, count in groups]),
        strict=True,
    )
    out = torch.cat([_equal_lengths(*part, count) for part, (_, count) in zip(parts, groups, strict=True)])
    return torch.empty_like(out).index_copy(0, rows_q, out)


def _equal_lengths(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Attend within `count` sequences of equal shape."""
    if len(q) == 0:
        return q
    q, k, v = (x.unflatten(0, (count, -1)) for x in (q, k, v))
    return attention_torch(q, k, v).flatten(0, 1)


def _rows(cu_seqlens: Tensor, order: list[int]) -> Tensor:
    """The rows int64 [T] of sequences in another order."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    chosen = torch.tensor(order, device=cu_seqlens.device)
    moved = lengths[chosen]
    shift = starts[chosen] - (moved.cumsum(0) - moved)
    return torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device) + shift.repeat_interleave(moved)


def attention_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention (Dao, 2023) from the package flash-attn."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    if not _is_half(q):
        return attention_torch(q, k, v)
    return flash_attn_func(q, k, v)  # type: ignore[no-any-return]


def packed_attention_flash(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Packed FlashAttention from the package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    if not _is_half(q):
        return packed_attention_torch(q, k, v, cu_q, cu_k, max_q, max_k)
    return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k)  # type: ignore[no-any-return]


def attention_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Memory-efficient attention (Rabe & Staats, 2021) from the package xformers."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]

    if not _is_half(q):
        return attention_torch(q, k, v)
    return memory_efficient_attention(q, k, v)  # type: ignore[no-any-return]


def packed_attention_xformers(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Block-diagonal attention from the package xformers."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask  # type: ignore[import-not-found]

    if not _is_half(q):
        return packed_attention_torch(q, k, v, cu_q, cu_k, max_q, max_k)
    mask = BlockDiagonalMask.from_seqlens(cu_q.diff().tolist(), cu_k.diff().tolist())
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]  # type: ignore[no-any-return]


def packed_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Torch's own packed attention (2.10 and later, compute capability 8.0 and later)."""
    from torch.nn.attention.varlen import varlen_attn

    if not _is_half(q):
        return packed_attention_torch(q, k, v, cu_q, cu_k, max_q, max_k)
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k)  # type: ignore[return-value]


def packed_attention_aten_efficient(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """The packed kernel behind torch's memory-efficient attention: Turing, Windows, float32.

    A private operator of torch; the probe runs it once before it is chosen.
    """
    for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    out = torch.ops.aten._efficient_attention_forward(
        q[None], k[None], v[None], None, cu_q, cu_k, max_q, max_k, 0.0, 0, for_backward
    )
    return out[0][0]  # type: ignore[no-any-return]


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)
