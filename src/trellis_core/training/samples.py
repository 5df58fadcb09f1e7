"""What a sheet shows of a run in training: one value per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh, PBRVoxels

Draw = Callable[[Camera, int], Tensor]
"""Camera and side in pixels -> float32 [side, side, 3] before a white background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSample:
    """What became of one picture or caption."""

    label: str
    grid: int  # structure cells along an axis
    picture: Tensor | None = None  # uint8 [S, S, 3]; None for a caption
    cells: Tensor | None = None  # int32 [N, 3]; None when nothing was found
    mesh: Mesh | None = None
    materials: PBRVoxels | None = None
    draw: Draw | None = None  # of something else that can be seen
