"""Files: one dictionary from suffix to writer.

`Asset.save` picks from the writers it was built with; pass `WRITERS` to `build_asset`. `save_asset` writes
with settings, and several levels of detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trellis_core.errors import OutputError
from trellis_core.geometry.types import Asset
from trellis_core.io.glb import write_glb
from trellis_core.io.gltf import GltfSettings, write_gltf
from trellis_core.io.obj import write_obj
from trellis_core.io.ply import write_ply
from trellis_core.io.stl import write_stl
from trellis_core.io.threemf import write_3mf
from trellis_core.io.usdz import write_usdz

WRITERS: Mapping[str, Callable[[Asset, Path], None]] = {
    ".glb": write_glb,
    ".gltf": write_gltf,
    ".obj": write_obj,
    ".stl": write_stl,
    ".ply": write_ply,
    ".3mf": write_3mf,
    ".usdz": write_usdz,
}
GLTF_WRITERS = {".glb": write_glb, ".gltf": write_gltf}


def save_asset(
    asset: Asset,
    path: str | Path,
    settings: GltfSettings | None = None,  # of glTF; the other formats have one way only
    lods: Sequence[Asset] = (),  # the same object, coarser and coarser; in glTF files only
) -> Path:
    """Write an asset by its suffix. Raises `OutputError` for an unknown one."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in GLTF_WRITERS:
        GLTF_WRITERS[suffix](asset, path, settings=settings, lods=lods)
        return path
    if lods:
        raise OutputError(f"`{suffix}` files hold one level of detail", hint="use `.glb` or `.gltf`")
    return replace(asset, writers=WRITERS).save(path)
