"""Files: one dictionary from suffix to writer.

`Asset.save` picks from the writers it was built with; pass `WRITERS` to `build_asset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trellis_core.geometry.types import Asset
from trellis_core.io.glb import write_glb
from trellis_core.io.obj import write_obj
from trellis_core.io.ply import write_ply
from trellis_core.io.stl import write_stl

WRITERS: Mapping[str, Callable[[Asset, Path], None]] = {
    ".glb": write_glb,
    ".obj": write_obj,
    ".stl": write_stl,
    ".ply": write_ply,
}
