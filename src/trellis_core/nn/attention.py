"""Multi-head self- and cross-attention over dense `[B, L, C]` or packed `[T, C]` tokens.

One module serves both: with a `Packing` the tokens are packed, without one they are dense.
Knows nothing about voxels or coordinates: rotary phases and packings are handed in.

Letters: B batch, L tokens, M context tokens, T packed tokens, S sequences, H heads, D head width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis_core.kernels.table import Kernels
from trellis_core.nn.embed import rotate
from trellis_core.nn.norm import MultiHeadRMSNorm

REFERENCE = Kernels()


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How packed tokens divide into sequences that attend within themselves."""

    cu_seqlens: Tensor  # int32 [S + 1]  first token of each sequence, and T
    max_seqlen: int
    sequence: Tensor  # int64 [T]  sequence of each token
    order: Tensor | None = None  # int64 [T]  tokens in sequence order; None when they lie so already

    @property
    def count(self) -> int:
        return len(self.cu_seqlens) - 1

    @classmethod
    def of(cls, lengths: Sequence[int] | Tensor, device: torch.device | None = None) -> Packing:
        """Sequences of the given lengths, one after the other."""
        lengths = torch.as_tensor(lengths, dtype=torch.int64).cpu()
        cu_seqlens = nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(device)
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        return cls(cu_seqlens, max(lengths.tolist(), default=0), sequence)

    @classmethod
    def uniform(cls, count: int, length: int, device: torch.device | None = None) -> Packing:
        """`count` sequences of one length."""
        starts = torch.arange(count + 1, dtype=torch.int32, device=device) * length
        rows = torch.arange(count * length, device=device)
        return cls(starts, length, rows // max(length, 1))

    @classmethod
    def grouped(cls, group: Tensor) -> Packing:
        """Tokens with equal `group` int64 [T] form a sequence, wherever they lie."""
        _, sequence, lengths = group.unique(return_inverse=True, return_counts=True)
        packing = cls.of(lengths, group.device)
        return cls(packing.cu_seqlens, packing.max_seqlen, sequence, sequence.argsort(stable=True))


@dataclass(frozen=True, slots=True, eq=False)
class KeyValue:
    """Keys and values of a context: `[B, M, H, D]`, or `[S, H, D]` with a packing."""

    k: Tensor
    v: Tensor
    packing: Packing | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ContextTokens:
    """What cross-attention looks at: `[B, M, C]`, or packed `[S, C]` with a packing."""

    tokens: Tensor
    packing: Packing | None = None


class SelfAttention(nn.Module):
    """Softmax attention among the tokens of a sequence, with optional QK norm and rotary phases."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.q_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads) if qk_rms_norm else None
        self.k_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads) if qk_rms_norm else None
        self.to_out = nn.Linear(channels, channels)
        self.kernels = kernels

    def forward(
        self,
        x: Tensor,  # [B, L, C] or [T, C]
        phases: Tensor | None = None,  # complex64 [L or T, D / 2]
        packing: Packing | tuple[Packing, Packing] | None = None,
    ) -> Tensor:  # like x
        """Two packings split the heads: the second half attends in the first packing and comes out
        first, the first half attends in the second packing (the double windows of TRELLIS)."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = prepared(q, self.q_rms_norm, phases), prepared(k, self.k_rms_norm, phases)
        if isinstance(packing, tuple):
            half = self.num_heads // 2
            plain, shifted = packing
            out = torch.cat(
                [
                    attend(q[:, half:], k[:, half:], v[:, half:], plain, plain, self.kernels),
                    attend(q[:, :half], k[:, :half], v[:, :half], shifted, shifted, self.kernels),
                ],
                dim=1,
            )
        else:
            out = attend(q, k, v, packing, packing, self.kernels)
        return self.to_out(out.flatten(-2))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Softmax attention from tokens to a context, whose keys and values can be computed once."""

    def __init__(
        self,
        channels: int,
        ctx_channels: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_rms_norm: bool = False,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_kv = nn.Linear(ctx_channels, 2 * channels, bias=qkv_bias)
        self.q_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads) if qk_rms_norm else None
        self.k_rms_norm = MultiHeadRMSNorm(channels // num_heads, num_heads) if qk_rms_norm else None
        self.to_out = nn.Linear(channels, channels)
        self.kernels = kernels

    def forward(
        self,
        x: Tensor,  # [B, L, C] or [T, C]
        context: ContextTokens | KeyValue | None,  # None: the unconditional context of zeros
        packing: Packing | None = None,
    ) -> Tensor:  # like x, or [C] without a context
        if context is None:
            return self.zero_context()
        if isinstance(context, ContextTokens):
            context = self.project(context)
        q = prepared(self.to_q(x).unflatten(-1, (self.num_heads, -1)), self.q_rms_norm)
        out = attend(q, context.k, context.v, packing, context.packing, self.kernels)
        return self.to_out(out.flatten(-2))  # type: ignore[no-any-return]

    def project(self, context: ContextTokens) -> KeyValue:
        """Keys and values of a context; they depend on nothing else."""
        k, v = self.to_kv(context.tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return KeyValue(prepared(k, self.k_rms_norm), v, context.packing)

    def zero_context(self) -> Tensor:
        """The result [C] for a context of zeros: every value is the bias, however attention weighs."""
        if self.to_kv.bias is None:
            return self.to_out(self.to_q.weight.new_zeros(self.channels))  # type: ignore[no-any-return]
        return self.to_out(self.to_kv.bias[self.channels :])  # type: ignore[no-any-return]


def prepared(x: Tensor, norm: MultiHeadRMSNorm | None, phases: Tensor | None = None) -> Tensor:
    """Normalise, then rotate queries or keys [..., H, D] in float32, and cast back."""
    y = x.float()
    if norm is not None:
        y = norm(y)
    if phases is not None:
        y = rotate(y, phases)
    return y.to(x.dtype)


def attend(
    q: Tensor,  # [B, L, H, D], or [T, H, D] with a packing
    k: Tensor,  # [B or 1, M, H, D], or [S, H, D] with a packing
    v: Tensor,
    packing_q: Packing | None,
    packing_k: Packing | None,
    kernels: Kernels,
) -> Tensor:  # like q
    """Attend within samples, whichever side is packed."""
    if packing_q is None and packing_k is None:
        if k.shape[0] != q.shape[0]:
            k, v = (x.expand(q.shape[0], -1, -1, -1) for x in (k, v))
        return kernels["attention"](q, k, v)  # type: ignore[return-value]
    if packing_q is None:
        batch, length = q.shape[:2]
        packing = Packing.uniform(batch, length, q.device)
        return attend(q.flatten(0, 1), k, v, packing, packing_k, kernels).unflatten(0, (batch, length))
    if packing_k is None:
        k, v = (x.expand(packing_q.count, -1, -1, -1) for x in (k, v))
        packing_k = Packing.uniform(packing_q.count, k.shape[1], k.device)
        k, v = k.flatten(0, 1), v.flatten(0, 1)
    if packing_q.order is not None:
        q = q[packing_q.order]
    if packing_k.order is not None:
        k, v = k[packing_k.order], v[packing_k.order]
    out: Tensor = kernels["packed_attention"](  # type: ignore[assignment]
        q, k, v, packing_q.cu_seqlens, packing_k.cu_seqlens, packing_q.max_seqlen, packing_k.max_seqlen
    )
    if packing_q.order is not None:
        out = torch.empty_like(out).index_copy(0, packing_q.order, out)
    return out
