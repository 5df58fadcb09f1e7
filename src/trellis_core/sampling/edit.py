"""What an edit keeps and what it makes anew, cell by cell.

Local editing (TRELLIS, Xiang et al., 2024, section 3.4): the structure is sampled anew in a region, then the
latents of its cells; everything else is taken over. Decoders look beyond a cell, so an edited object keeps
the latents that it had before as a layer: outside of the region it is what these decode to. Knows nothing
about networks or about how a region is described: a region is a grid of booleans here.

Letters: B samples, N old cells, K cells after the edit, C channels, R grid, r grid of the structure latent,
V voxels that a decoder made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.sampling.normalization import Normalization
from trellis_core.sampling.repaint import Known, check_settings
from trellis_core.sparse.order import find_sorted, sort_keys
from trellis_core.sparse.tensor import SparseTensor

REPEATS = 2  # how often an edit does every step, see `Known`
BEFORE = "before"  # names of tensors in a bundle start with it
EXTENT = ("inside", "cells", "voxels")


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A region of a grid, and how thoroughly its inside is sampled."""

    inside: Tensor  # bool [R, R, R]
    draw: Callable[..., Tensor]  # sizes -> standard normal numbers
    repeats: int = REPEATS
    freedom: float = 0.0  # of the last latents, see `Known`

    def __post_init__(self) -> None:
        check_settings(self.repeats, self.freedom)

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
        return in_cells(coords, self.inside, 1)

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
        keep = rows >= 0
        values = latents.new_zeros(len(coords), latents.shape[1])
        values[keep] = latents[rows[keep]]
        return TakenOver(values, keep[:, None], self.draw, self.repeats)

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

    def known(self, normalization: Normalization, sigma_min: float, freedom: float = 0.0) -> Known:
        """The same in the flow's space, to sample around it."""
        mean, std = normalization.vectors(self.latents)
        values = torch.where(self.keep, (self.latents - mean) / std, 0)
        return Known(values, self.keep, self.draw, self.repeats, sigma_min, freedom)

    def put_back(self, latent: SparseTensor) -> SparseTensor:
        """`latent` with the old values where they stay, to the last bit."""
        return latent.replace(torch.where(self.keep, self.latents, latent.feats))


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """The region of an edit, as finely as decoders see it."""

    inside: Tensor  # bool [R, R, R]  in cells of the latents
    cells: Tensor  # int32 [M, 3]  those inside that its border cuts
    voxels: Tensor  # bool [M, f, f, f]  which of their voxels lie inside

    @classmethod
    def whole(cls, inside: Tensor) -> Extent:
        """A region of whole cells."""
        return cls(inside, torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 1, 1, 1, dtype=torch.bool))

    def holds(
        self,
        coords: Tensor,  # int32 [V, 4]
        factor: int,  # voxels per cell along an axis
    ) -> Tensor:  # bool [V]
        """Which voxels lie inside."""
        found = in_cells(coords, self.inside, factor)
        if not len(self.cells):
            return found
        batch = torch.zeros_like(coords[:, :1])
        cells = F.pad(self.cells.to(coords.device), (1, 0))
        row = rows_in(torch.cat([batch, coords[:, 1:] // factor], dim=1), cells, len(self.inside))
        cut = row >= 0
        x, y, z = (coords[cut, 1:] % factor).long().unbind(1)
        found[cut] &= self.voxels.to(coords.device)[row[cut], x, y, z]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Latents of an edited object after one of its edits, or before all of them."""

    tensors: Mapping[str, Tensor]
    extent: Extent | None  # where it hides the layers before; None: everywhere


def layers_of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[Layer]:
    """The layers of a bundle, oldest first; `names` are those of its latents."""
    layers: list[Layer] = []
    extent = None
    while layer_name(len(layers), "inside") in tensors:
        number = len(layers)
        found = {name: tensors[layer_name(number, name)] for name in names}
        layers.append(Layer(found, extent))
        extent = Extent(*(tensors[layer_name(number, name)] for name in EXTENT))
    return [*layers, Layer({name: tensors[name] for name in names}, extent)]


def buried(
    tensors: Mapping[str, Tensor],  # of the bundle before an edit
    names: Sequence[str],
    extent: Extent,  # of the edit
) -> dict[str, Tensor]:
    """The layers below an edit, as its bundle keeps them."""
    *earlier, last = layers_of(tensors, names)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(BEFORE)}
    region = {name: getattr(extent, name) for name in EXTENT}
    mine = {layer_name(len(earlier), name): tensor for name, tensor in {**last.tensors, **region}.items()}
    return {**kept, **mine}


def layer_name(number: int, name: str) -> str:
    """Of a tensor in a bundle."""
    return f"{BEFORE}{number}.{name}"


def overlay(
    below: SparseTensor,  # [V, X]  decoded from the latents before an edit
    above: SparseTensor,  # [W, X]  and after it
    extent: Extent,
    factor: int,  # voxels per cell along an axis
) -> SparseTensor:
    """Voxels inside from `above`, all others from `below`, to the last bit; sorted."""
    old, new = (extent.holds(x.coords, factor) for x in (below, above))
    coords = torch.cat([below.coords[~old], above.coords[new]])
    feats = torch.cat([below.feats[~old], above.feats[new]])
    order = torch.argsort(_keys(coords, len(extent.inside) * factor))
    return SparseTensor(feats[order], coords[order], below.batch_size)


def outside_changes(below: SparseTensor, above: SparseTensor, extent: Extent, factor: int) -> tuple[int, int]:
    """Voxels of `below` outside of the region, and how many there are in only one of the two."""
    old, new = (x.coords[~extent.holds(x.coords, factor)] for x in (below, above))
    size = len(extent.inside) * factor
    changed = (rows_in(old, new, size) < 0).sum() + (rows_in(new, old, size) < 0).sum()
    return len(old), int(changed)


def in_cells(
    coords: Tensor,  # int32 [V, 4]
    inside: Tensor,  # bool [R, R, R]
    factor: int,
) -> Tensor:  # bool [V]
    """Which voxels belong to a cell of the region."""
    x, y, z = (coords[:, 1:] // factor).long().unbind(1)
    return inside.to(coords.device)[x, y, z]


def said(voxels: Mapping[str, int]) -> str:
    """What to say of `Edit.changes`; empty when nothing outside of the region would have changed."""
    changed, outside = voxels["outside_changed_as_sampled"], voxels["outside"]
    if not changed:
        return ""
    return (
        f"the model would have changed {changed:,} voxels outside of the region, where there are "
        f"{outside:,}; they were kept (what is cut off at the border may fit into a larger region)"
    )


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
