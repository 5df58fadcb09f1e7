"""What an edit keeps and what it makes anew, cell by cell.

Local editing (TRELLIS, Xiang et al., 2024, section 3.4): the structure is sampled anew in a region, then the
latents of its cells; everything else is taken over. Knows nothing about networks or about how a region is
described: a region is a grid of booleans here.

Letters: B samples, N old cells, K cells after the edit, C channels, R grid, r grid of the structure latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.sampling.normalization import Normalization
from trellis_core.sampling.repaint import Known
from trellis_core.sparse.order import find_sorted, sort_keys
from trellis_core.sparse.tensor import SparseTensor

REPEATS = 2  # how often an edit does every step, see `Known`


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A region of a grid, and how thoroughly its inside is sampled."""

    inside: Tensor  # bool [R, R, R]
    draw: Callable[..., Tensor]  # sizes -> standard normal numbers
    repeats: int = REPEATS

    def structure(
        self,
        latent: Tensor,  # float32 [B, C, r, r, r]  of the old structure
        sigma_min: float,
    ) -> Known:
        """What of the structure latent stays: cells without a voxel of the region."""
        return Known(latent, ~touched(self.inside, latent.shape[-1]), self.draw, self.repeats, sigma_min)

    def merge(
        self,
        old: Tensor,  # int32 [N, 4]  batch, x, y, z
        new: Tensor,  # int32 [M, 4]
        samples: int,  # B
    ) -> Tensor:  # int32 [K, 4] sorted
        """Old cells outside, new ones inside. Raises `InputError` when nothing is left of a sample."""
        merged = torch.unique(torch.cat([old[~self.holds(old)], new[self.holds(new)]]), dim=0)
        if len(merged[:, 0].unique()) < samples:
            raise InputError(
                "nothing is left of the object: the region holds all of it, and nothing grew in its place",
                hint="choose a smaller region, another --seed, or sample a new object",
            )
        return merged

    def holds(
        self,
        coords: Tensor,  # int32 [N, 4]
    ) -> Tensor:  # bool [N]
        """Which cells lie inside."""
        x, y, z = coords[:, 1:].long().unbind(1)
        return self.inside.to(coords.device)[x, y, z]

    def taken_over(
        self,
        coords: Tensor,  # int32 [K, 4]  after the edit
        old: Tensor,  # int32 [N, 4]
        latents: Tensor,  # float32 [N, C]  raw, of the old cells
        *,
        survivors: bool = False,  # also cells inside that were there before
    ) -> TakenOver:
        """The latents that stay."""
        rows = rows_in(coords, old, len(self.inside))
        if not survivors:
            rows = torch.where(self.holds(coords), -1, rows)
        keep = (rows >= 0)[:, None]
        values = torch.where(keep, latents[rows.clamp_min(0)], 0)
        return TakenOver(values, keep, self.draw, self.repeats)

    def changes(
        self,
        old: Tensor,  # int32 [N, 4]
        new: Tensor,  # int32 [M, 4]  as sampled
        merged: Tensor,  # int32 [K, 4]  in the result
    ) -> Mapping[str, int]:
        """Voxels in the region and outside of it, and how many of them changed."""
        sampled, final = self.differing(old, new), self.differing(old, merged)
        return {
            "resolution": len(self.inside),
            "cells": int(self.inside.sum()),
            "inside_before": int(self.holds(old).sum()),
            "inside_after": int(self.holds(merged).sum()),
            "inside_changed": int(self.holds(final).sum()),
            "outside": int((~self.holds(old)).sum()),
            "outside_changed_as_sampled": int((~self.holds(sampled)).sum()),
            "outside_changed": int((~self.holds(final)).sum()),
        }

    def differing(self, old: Tensor, new: Tensor) -> Tensor:  # int32 [D, 4]
        """Cells that are in one of the two only."""
        size = len(self.inside)
        return torch.cat([old[rows_in(old, new, size) < 0], new[rows_in(new, old, size) < 0]])


@dataclass(frozen=True, slots=True, eq=False)
class TakenOver:
    """Raw latents on the cells of an edited object, as far as they come from the old one."""

    latents: Tensor  # float32 [K, C]  zeros where made anew
    keep: Tensor  # bool [K, 1]
    draw: Callable[..., Tensor]
    repeats: int

    @property
    def whole(self) -> bool:
        """Whether nothing is made anew."""
        return bool(self.keep.all())

    def counts(self) -> Mapping[str, int]:
        """Cells of the latents that were kept, and made anew (some of them where others were)."""
        kept = int(self.keep.sum())
        return {"kept": kept, "made": len(self.keep) - kept}

    def known(self, normalization: Normalization, sigma_min: float) -> Known:
        """The same in the flow's space."""
        mean, std = normalization.vectors(self.latents)
        values = torch.where(self.keep, (self.latents - mean) / std, 0)
        return Known(values, self.keep, self.draw, self.repeats, sigma_min)

    def put_back(self, latent: SparseTensor) -> SparseTensor:
        """`latent` with the old values where they stay, to the last bit."""
        return latent.replace(torch.where(self.keep, self.latents, latent.feats))


def touched(
    inside: Tensor,  # bool [R, R, R]
    size: int,  # r
) -> Tensor:  # bool [1, 1, r, r, r]
    """Cells of a coarser grid that hold a cell of the region."""
    return F.adaptive_max_pool3d(inside[None, None].float(), size) > 0


def rows_in(
    coords: Tensor,  # int32 [K, 4]
    table: Tensor,  # int32 [N, 4], any order
    resolution: int,
) -> Tensor:  # int64 [K]  row in `table`, -1 where it is not there
    sorted_keys, rows = sort_keys(_keys(table, resolution))
    found = find_sorted(sorted_keys, _keys(coords, resolution))
    if not len(table):
        return found
    return torch.where(found >= 0, rows[found.clamp_min(0)], -1)


def _keys(coords: Tensor, resolution: int) -> Tensor:
    batch, x, y, z = coords.long().unbind(1)
    return ((batch * resolution + x) * resolution + y) * resolution + z
