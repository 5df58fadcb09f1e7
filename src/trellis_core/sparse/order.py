"""Orders of voxels: linear keys, lookups on sorted keys, Morton and Hilbert codes.

Knows nothing about features or batches. Letters: N voxels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trellis_core.kernels.keys import find_sorted, inside, key_coords, linear_keys, sort_keys

__all__ = [
    "batch_codes",
    "find_sorted",
    "hilbert_decode",
    "hilbert_encode",
    "inside",
    "key_coords",
    "linear_keys",
    "morton_decode",
    "morton_encode",
    "sort_keys",
]


# --- space-filling curves ---------------------------------------------------------------------------

MAX_BITS = 20  # per axis: 60 bits of code and three for the batch fit into 63
SPREAD = ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F),
          (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249))  # fmt: skip


def morton_encode(
    coords: Tensor,  # int [..., 3]   in [0, 2 ** bits)
    bits: int = 10,
) -> Tensor:  # int64 [...]   z-order code; x is the most significant bit of each triple
    """Interleave the bits of the three axes (Morton, 1966)."""
    return interleave(checked(coords, bits))


def morton_decode(
    codes: Tensor,  # int64 [...]
) -> Tensor:  # int32 [..., 3]
    """Inverse of `morton_encode`."""
    return torch.stack([compact(codes >> shift) for shift in (2, 1, 0)], dim=-1).int()


def hilbert_encode(
    coords: Tensor,  # int [..., 3]   in [0, 2 ** bits)
    bits: int = 10,
) -> Tensor:  # int64 [...]
    """Index along the Hilbert curve: Skilling, "Programming the Hilbert curve" (2004)."""
    axes = list(checked(coords, bits).unbind(-1))
    for level in range(bits - 1, 0, -1):
        low = (1 << level) - 1
        for i in range(3):
            turn = (axes[i] >> level & 1).bool()
            swap = torch.where(turn, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = axes[0] ^ torch.where(turn, low, swap)
            if i:
                axes[i] = axes[i] ^ swap
    axes[1] = axes[1] ^ axes[0]
    axes[2] = axes[2] ^ axes[1]
    flip = torch.zeros_like(axes[0])
    for level in range(bits - 1, 0, -1):
        flip = flip ^ torch.where((axes[2] >> level & 1).bool(), (1 << level) - 1, 0)
    return interleave(torch.stack([axis ^ flip for axis in axes], dim=-1))


def hilbert_decode(
    codes: Tensor,  # int64 [...]
    bits: int = 10,
) -> Tensor:  # int32 [..., 3]
    """Inverse of `hilbert_encode`."""
    axes = [compact(codes >> shift) for shift in (2, 1, 0)]
    last = axes[2] >> 1
    axes = [axes[0] ^ last, axes[1] ^ axes[0], axes[2] ^ axes[1]]
    for level in range(1, bits):
        low = (1 << level) - 1
        for i in (2, 1, 0):
            turn = (axes[i] >> level & 1).bool()
            swap = torch.where(turn, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = axes[0] ^ torch.where(turn, low, swap)
            if i:
                axes[i] = axes[i] ^ swap
    return torch.stack(axes, dim=-1).int()


def batch_codes(
    coords: Tensor,  # int32 [N, 4]   batch, x, y, z
    bits: int,
    curve: Literal["morton", "hilbert"] = "morton",
) -> Tensor:  # int64 [N]
    """Curve codes below the batch index: one sort groups by batch, then along the curve."""
    encode = {"morton": morton_encode, "hilbert": hilbert_encode}[curve]
    return (coords[:, 0].long() << 3 * bits) | encode(coords[:, 1:], bits)


def checked(coords: Tensor, bits: int) -> Tensor:
    """Coordinates as int64, or ValueError where they do not fit: beyond, codes would alias other voxels."""
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be between 1 and {MAX_BITS}, got {bits}")
    if coords.numel() and (int(coords.amin()) < 0 or int(coords.amax()) >> bits):
        raise ValueError(f"coordinates do not fit into {bits} bits")
    return coords.long()


def interleave(axes: Tensor) -> Tensor:
    """Three numbers of up to 21 bits [..., 3] -> one of 63 bits [...]."""
    for shift, mask in SPREAD:
        axes = (axes | axes << shift) & mask
    x, y, z = axes.unbind(-1)
    return x << 2 | y << 1 | z


def compact(codes: Tensor) -> Tensor:
    """Every third bit, starting with the lowest."""
    codes = codes & SPREAD[-1][1]
    for (shift, _), (_, mask) in zip(SPREAD[::-1], [*SPREAD[-2::-1], (0, (1 << 21) - 1)], strict=True):
        codes = (codes | codes >> shift) & mask
    return codes
