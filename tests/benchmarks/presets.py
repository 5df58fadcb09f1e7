"""Every preset in every format, of one saved run: does each file open, and how large is it?

    trellis generate examples/chair.png --save-bundle chair.safetensors
    python -m tests.benchmarks.presets chair.safetensors --out FOLDER

glTF files are judged by the Khronos validator, the others are read back by trimesh or Pixar's library.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.gltf_validator import complaints
from trellis_cli import files
from trellis_cli.app import main as trellis
from trellis_cli.options import Preset

VARIANTS = {"plain": (), "--quantize": ("--quantize",), "--draco": ("--draco",)}


def problem_of(path: Path) -> str:
    """What is wrong with a file; nothing when a reader of others opens it."""
    if path.suffix in (".glb", ".gltf"):
        return "; ".join(complaints(path))
    if path.suffix == ".usdz":
        from pxr import Usd, UsdGeom

        stage = Usd.Stage.Open(str(path))
        return "" if any(prim.IsA(UsdGeom.Mesh) for prim in stage.Traverse()) else "no mesh"
    import trimesh

    scene = trimesh.load_scene(path)
    return "" if sum(len(part.faces) for part in scene.dump()) else "no faces"


def export(bundle: Path, folder: Path, presets: Sequence[str], formats: Sequence[str], *more: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ("--preset", ",".join(presets), "--format", ",".join(formats))
    place = folder / f"asset.{formats[0]}"
    return trellis(["export", str(bundle), *wanted, "-o", str(place), "--force", "-q", *more])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--faces", help="instead of what the presets say, to check quickly")
    parser.add_argument("--texture")
    arguments = parser.parse_args()
    presets = [preset.value for preset in Preset]
    every = [suffix[1:] for suffix in files.ASSETS]
    few = [
        word
        for option in ("faces", "texture")
        if (value := getattr(arguments, option))
        for word in (f"--{option}", value)
    ]
    failed = 0
    for name, options in VARIANTS.items():
        formats = every if name == "plain" else ["glb", "gltf"]
        folder = arguments.out / name.strip("-")
        failed += export(arguments.bundle, folder, presets, formats, *few, *options) != 0
        for preset in presets:
            for suffix in formats:
                path = folder / f"asset-{preset}.{suffix}"
                wrong = problem_of(path) if path.is_file() else "not written"
                failed += bool(wrong)
                size = files.shown_size(files.bytes_of(path)) if path.is_file() else "-"
                print(f"{name:12}{preset:9}{suffix:6}{size:>10}  {wrong or 'opens'}", flush=True)
    if failed:
        raise SystemExit(f"{failed} failed")


if __name__ == "__main__":
    main()
