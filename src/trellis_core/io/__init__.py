"""Files: one dictionary from suffix to writer.

`Asset.save` picks from the writers it was built with; pass `WRITERS` to `build_asset`. `save_asset` writes
with settings, and several levels of detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    lods: Sequence[Asset] = (),  # the same object, coarser and coarser
) -> list[Path]:  # what was written; side files of OBJ and glTF are not listed
    """Write an asset. Levels of detail are part of a glTF file, and files NAME-lod1, ... of other formats."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in GLTF_WRITERS:
        GLTF_WRITERS[suffix](asset, path, settings=settings, lods=lods)
        return [path]
    if suffix not in WRITERS:
        raise OutputError(
            f"cannot write `{path.name}`: no writer for `{path.suffix}`",
            hint=f"use one of: {', '.join(WRITERS)}",
        )
    paths = [path, *(lod_path(path, number + 1) for number in range(len(lods)))]
    for level, place in zip((asset, *lods), paths, strict=True):
        WRITERS[suffix](level, place)
    return paths


def lod_path(path: Path, number: int) -> Path:
    """The file of a level of detail in formats that hold one."""
    return path.with_name(f"{path.stem}-lod{number}{path.suffix}")
