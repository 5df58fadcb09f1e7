"""The user's files: looked at before the work starts, and never overwritten unasked.

Knows nothing about models; imports no torch, so that a wrong path is reported at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from trellis_cli.console import Console
from trellis_core.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MESHES = (".glb", ".gltf", ".obj", ".stl", ".ply", ".off", ".3mf", ".usdz")  # as trellis_core.io.meshes reads
ASSETS = (".glb", ".gltf", ".obj", ".stl", ".ply", ".3mf", ".usdz")  # as trellis_core.io.WRITERS writes
IMAGES = (".png",)
BUNDLES = (".safetensors",)
_IMAGES = ("_base_color", "_metallic_roughness", "_normal")
BESIDE = {  # written with it
    ".obj": (".mtl", "_base_color.png", "_roughness.png", "_metallic.png", "_alpha.png"),
    ".gltf": (".bin", *(name + end for name in _IMAGES for end in (".webp", ".png", ".jpg"))),
}
SMALLEST_SPACE = 1 << 20  # bytes; with less than this left no asset can be written


def check_input(path: Path, what: str, suffixes: Sequence[str] = ()) -> None:
    """`InputError` unless `path` is a readable, non-empty file; `what` names it, as in "picture"."""
    try:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            hint = f"pass one file, for example `{inside[0]}`" if inside else f"pass one {what} file"
            raise InputError(f"`{path}` is a directory, not {article(what)} {what}", hint=hint)
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{what} `{path}` is empty", hint="copy or export it again")
    except FileNotFoundError:
        raise InputError(f"{what} `{path}` does not exist", hint=_similar(path, suffixes)) from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what} `{path}` cannot be read: {said}", hint="check the name and its permissions"
        ) from None


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiouAEIOU" else "a"


def read_picture(path: Path, console: Console) -> Image:
    """The decoded picture; says when only its first frame is used. Imports torch."""
    from trellis_core.io.images import read_picture

    image = read_picture(path)
    if "notice" in image.info:
        console.note(image.info["notice"])
    return image


def unknown_suffix(path: Path, what: str, suffixes: Sequence[str]) -> InputError:
    return InputError(f"{what} `{path}` is of an unknown kind", hint=f"known: {', '.join(suffixes)}")


def check_output(path: Path, suffixes: Sequence[str], *, force: bool) -> None:
    """Raise unless a file with one of `suffixes` can be written to `path` now."""
    if path.suffix.lower() not in suffixes:
        known = " or ".join(f"`{s}`" for s in suffixes)
        example = f"for example `{path.with_suffix(suffixes[0])}`" if path.name else "give a file name"
        raise UsageError(f"cannot write `{path.name}`: the name must end in {known}", hint=example)
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"`{path}` exists and is not a file", hint="choose another name with `-o PATH`")
        for file in (path, *(path.with_name(path.stem + end) for end in BESIDE.get(path.suffix.lower(), ()))):
            if file.exists() and not force:
                raise OutputError(f"`{file}` exists", hint="pass `--force` to overwrite it, or `-o PATH`")
        if not path.parent.is_dir():
            raise OutputError(f"folder `{path.parent}` does not exist", hint=f"run `mkdir -p {path.parent}`")
        trial = path.with_name(f".trellis-{os.getpid()}")
        trial.touch()
        trial.unlink()
        check_space(path.parent, "-o PATH")
    except OSError as error:
        raise OutputError(
            f"cannot write to `{path.parent}`: {error.strerror}", hint="choose another place with `-o PATH`"
        ) from None


def check_space(folder: Path, option: str) -> None:
    """`OutputError` when the disk that holds `folder` is full; `option` is how to name another place."""
    if shutil.disk_usage(folder).free < SMALLEST_SPACE:
        raise OutputError(f"no space left in `{folder}`", hint=f"free some space, or pass `{option}`")


def outputs(output: Path | None, source: Path, suffix: str, number: int) -> list[Path]:
    """Where results go: `output`, or the source's name in this folder; numbered when there are several."""
    path = output if output is not None else Path(source.stem + suffix)
    if path.is_dir():
        path = path / (source.stem + suffix)
    return numbered(path, number)


def beside(source: Path, ending: str) -> Path:
    """The source's name with another ending, in this folder."""
    return Path(source.stem + ending)


def numbered(path: Path, number: int) -> list[Path]:
    """`[path]` for one, else NAME-1, NAME-2, ..."""
    if number == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(number)]


def write(path: Path, save: Callable[[Path], object], *, force: bool) -> Path:
    """Call `save`, which writes whole files or none, and return where the result is.

    A file that appeared at `path` during the run is kept, and the result takes the next free name. With
    `force` a link stays a link and its file is replaced. When the place refuses the result after all, it is
    kept in the folder for temporary files, and the `OutputError` says where.
    """
    if not force:
        path = _free_name(path)
    try:
        save(Path(os.path.realpath(path)))
    except OutputError as error:
        kept = _keep_elsewhere(path.name, save)
        raise (
            OutputError(error.message, hint=f"it was saved as `{kept}` instead") if kept else error
        ) from None
    return path


def write_sheet(path: Path, sheet: Image, *, force: bool) -> Path:
    """Write a picture as PNG."""
    from trellis_core.io.images import write_image

    return write(path, lambda place: write_image(place, sheet, format="PNG"), force=force)


def bytes_of(path: Path) -> int:
    """Of a result, with what was written beside it."""
    beside = (path.with_name(path.stem + end) for end in BESIDE.get(path.suffix.lower(), ()))
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def shown_size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _keep_elsewhere(name: str, save: Callable[[Path], object]) -> Path | None:
    folder = Path(mkdtemp(prefix="trellis-"))
    try:
        save(folder / name)
        return folder / name
    except OutputError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _similar(path: Path, suffixes: Sequence[str]) -> str:
    """Name a file that was probably meant."""
    from difflib import get_close_matches

    if not path.parent.is_dir():
        return f"folder `{path.parent}` does not exist either"
    names = [p.name for p in path.parent.iterdir() if not suffixes or p.suffix.lower() in suffixes]
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean `{path.parent / close[0]}`?" if close else "check the name and the folder"
