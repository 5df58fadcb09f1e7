"""What a user gave: one picture, several, a folder, a saved run, or words.

Looks at names and at what is on the disk, never into a file; imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path

from trellis_cli import files
from trellis_core.errors import InputError, UsageError

LISTS = (".txt", ".jsonl", ".json", ".csv", ".lst", ".list")
KNOWN = (*files.PICTURES, *files.BUNDLES, *files.MESHES, *LISTS)  # endings that no sentence has
LONGEST_SUFFIX = 12  # characters, the dot among them
ALIKE = 0.75  # of `difflib`: `chiar` and `chair` are, `chair` and `stair` are not


class Kind(str, Enum):
    picture = "a picture"
    pictures = "several pictures"
    folder = "a folder"
    bundle = "a saved run"
    prompt = "a prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a run starts from; `prompt` is empty unless it starts from words."""

    kind: Kind
    paths: tuple[Path, ...] = ()
    prompt: str = ""


def recognise(words: Sequence[str]) -> Given:
    """What the arguments of a command are.

    A word is a file when it is there or looks like a file's name: then a missing file is reported as such
    instead of being made as a prompt. Raises `UsageError` for what is neither, or could be both.
    """
    if len(words) == 1:
        return _one(words[0])
    known = [word for word in words if os.path.lexists(word) or has_known_suffix(word)]
    if not known:
        return Given(kind=Kind.prompt, prompt=" ".join(words))
    stray = next((word for word in words if word not in known and not is_file_name(word)), None)
    if stray is not None:
        quoted = " ".join(words).replace('"', "'")
        raise UsageError(
            f"`{known[0]}` is a file, `{stray}` is not: a run starts from files or from words",
            hint=f'give pictures only, or put the words in quotes: `trellis text "{quoted}"`',
        )
    return _several([Path(word) for word in words])


def is_file_name(text: str, folder: Path | None = None) -> bool:
    """Whether `text` is meant as a file: it is there (seen from `folder`), or it looks like a file's name."""
    if not text.strip():
        return False
    if os.path.lexists(text) or (folder is not None and os.path.lexists(folder / text)):
        return True
    if has_known_suffix(text) or text.startswith(("~", "./", "../")):
        return True
    one_word = not any(character.isspace() for character in text)
    if "/" in text or os.sep in text:
        return one_word or os.path.isdir(os.path.dirname(text))
    suffix = Path(text).suffix[1:]
    return one_word and suffix.isalnum() and len(suffix) < LONGEST_SUFFIX and not suffix.isdigit()


def has_known_suffix(text: str) -> bool:
    return Path(text).suffix.lower() in KNOWN


def _one(word: str) -> Given:
    path, suffix = Path(word), Path(word).suffix.lower()
    if word and os.path.isdir(word):
        return Given(kind=Kind.folder, paths=(path,))
    if not is_file_name(word):
        _refuse_doubt(word)
        return Given(kind=Kind.prompt, prompt=word)
    if "://" in word:
        raise InputError(f"`{word}` is an address, not a file", hint=f"download it first: `curl -LO {word}`")
    if suffix in files.BUNDLES:
        return Given(kind=Kind.bundle, paths=(path,))
    if suffix in files.MESHES:
        files.check_input(path, "mesh", files.MESHES)
        raise UsageError(
            f"`{word}` is a mesh: there is nothing to generate from it",
            hint=f"`trellis texture {word} PICTURE` paints it, `trellis render {word}` draws it",
        )
    if suffix in LISTS:
        files.check_input(path, "list", LISTS)
        raise UsageError(f"`{word}` is a list", hint=f"try `trellis batch {word} --out assets`")
    return Given(kind=Kind.picture, paths=(path,))


def _several(paths: list[Path]) -> Given:
    """Pictures of one object: nothing else can be combined."""
    for path in paths:
        if os.path.isdir(path):
            everything = " ".join(map(str, paths))
            raise UsageError(
                f"`{path}` is a folder, and folders are not combined",
                hint=f"one asset for each picture: `trellis batch {everything} --out assets`",
            )
        if path.suffix.lower() not in files.PICTURES and has_known_suffix(str(path)):
            raise UsageError(
                f"`{path}` is no picture, and only pictures are combined", hint="give one thing at a time"
            )
    return Given(kind=Kind.pictures, paths=tuple(paths))


def _refuse_doubt(word: str) -> None:
    """`UsageError` for one bare word that is nearly the name of a file here: `chair` beside `chair.png`."""
    if any(character.isspace() for character in word) or not word.isprintable():
        return
    usable = (*files.PICTURES, *files.BUNDLES)
    here = [p.name for p in Path().iterdir() if p.suffix.lower() in usable or p.is_dir()]
    stems = {Path(name).stem.casefold(): name for name in sorted(here)}
    close = get_close_matches(word.casefold(), stems, n=1, cutoff=ALIKE)
    if close:
        name = stems[close[0]]
        raise UsageError(
            f"`{word}` is no file here, but `{name}` is",
            hint=f"say which you mean: `trellis generate {name}` or `trellis text {word}`",
        )
