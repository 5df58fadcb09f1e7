"""Between raw latents, which decoders take, and the space that flows work in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings are read before torch is there
    from torch import Tensor

    from trellis_core.sparse.tensor import SparseTensor


@dataclass(frozen=True, slots=True)
class Normalization:
    """Per-channel mean and standard deviation of raw latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def vectors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C] on the device and in the type of `like`."""
        return like.new_tensor(self.mean), like.new_tensor(self.std)


def normalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Raw latents -> the space the flows work in."""
    mean, std = normalization.vectors(latent.feats)
    return latent.replace((latent.feats - mean) / std)


def denormalize(latent: SparseTensor, normalization: Normalization) -> SparseTensor:
    """Flow space -> raw latents, which the decoders expect."""
    mean, std = normalization.vectors(latent.feats)
    return latent.replace(latent.feats * std + mean)
