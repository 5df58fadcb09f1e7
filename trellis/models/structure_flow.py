"""The structure flow of TRELLIS v1: the shared one with absolute positions."""

from __future__ import annotations

from typing import Any, Literal

from trellis.models.modulation import own_offsets_removed, require_absolute_positions
from trellis_core.models import structure_flow


class SparseStructureFlowModel(structure_flow.SparseStructureFlowModel):
    """Velocity of a structure latent float32 [B, C, R, R, R]; arguments as released."""

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        patch_size: int = 2,
        pe_mode: Literal["ape"] = "ape",
        **arguments: Any,
    ) -> None:
        require_absolute_positions(pe_mode)
        super().__init__(
            resolution=resolution,
            in_channels=in_channels,
            patch_size=patch_size,
            pe_mode=pe_mode,
            **arguments,
        )
        self.latent_channels = in_channels  # `in_channels` are those of a patch
        own_offsets_removed(self)
