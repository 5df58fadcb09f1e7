"""The work list of a batch: what is to be made, and what each result is called.

    folders, lists, pictures -> read_items -> named -> Item, one per asset

Knows nothing about models or about what has been made already; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from trellis_cli import dispatch, files
from trellis_cli.commands.text import slug
from trellis_core.errors import InputError, UsageError

STANDARD_INPUT = "-"
LONGEST_NAME = 160  # bytes of a result's name; endings and temporary names come on top
LARGEST_SEED = 2**63 - 1
KEYS = ("picture", "pictures", "prompt", "seed", "name")  # of a line in JSON
EXAMPLE = 'for example {"picture": "chair.png", "seed": 7}'
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')  # in names of files, on one system or another


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One asset to make."""

    pictures: tuple[Path, ...] = ()  # one, or several of one object
    prompt: str | None = None
    seed: int | None = None  # None: that of the whole batch
    name: str  # of the result below the output folder, without ending
    wish: str | None = None  # the name that a list asks for

    @property
    def input(self) -> dict[str, Any]:
        """What it is made from, as a line of a list says it; pictures by absolute path."""
        asked = {"seed": self.seed, "name": self.wish}
        rest = {name: value for name, value in asked.items() if value is not None}
        if self.prompt is not None:
            return {"prompt": self.prompt, **rest}
        paths = [os.path.abspath(path) for path in self.pictures]
        return {"picture": paths[0], **rest} if len(paths) == 1 else {"pictures": paths, **rest}

    @property
    def key(self) -> str:
        """Tells items apart."""
        return key_of(self.input)

    @property
    def label(self) -> str:
        """For people."""
        return f'"{self.prompt}"' if self.prompt is not None else ", ".join(map(str, self.pictures))

    def start(self, mode: str, background: str) -> dict[str, Any]:
        """The arguments of `Pipeline.sample` that say what to make."""
        if self.prompt is not None:
            return {"prompt": self.prompt}
        if len(self.pictures) == 1:
            return {"picture": self.pictures[0], "background": background}
        return {"pictures": list(self.pictures), "mode": mode, "background": background}

    def check(self) -> None:
        """`InputError` for a picture that is not there, and for an empty prompt."""
        for picture in self.pictures:
            files.check_input(picture, "picture", files.PICTURES)
        if self.prompt is not None and not any(map(str.isalnum, self.prompt)):
            raise InputError("the prompt is empty", hint='say what to make, as in "a red chair"')

    def digest(self) -> str:
        """SHA-256 of the pictures' bytes, or of the prompt; empty when a picture cannot be read."""
        digest = hashlib.sha256((self.prompt or "").encode("utf-8", "surrogateescape"))
        try:
            for picture in self.pictures:
                digest.update(hashlib.sha256(picture.read_bytes()).digest())
        except (OSError, ValueError):
            return ""
        return digest.hexdigest()


def key_of(given: Mapping[str, Any]) -> str:
    return json.dumps(given, sort_keys=True)


def read_items(sources: Sequence[Path], *, recursive: bool, leave_out: Path) -> list[Item]:
    """All that is to be made: pictures in folders, lines of lists, pictures that were named themselves.

    Folders are read in the order of their names; hidden files are no pictures, and with `recursive` the
    folder `leave_out` (where results go) is not searched. What was said twice is made once. Names may still
    clash. Raises `InputError` when there is nothing, or when a list cannot be understood.
    """
    items: dict[str, Item] = {}
    for source in sources:
        for item in _items_of(source, recursive, leave_out):
            items.setdefault(item.key, item)
    return list(items.values())


def named(items: Sequence[Item], taken: Mapping[str, str]) -> list[Item]:
    """The items with names that differ from each other and from those `taken` by others (key -> name).

    An item that has a name keeps it, so that names do not depend on what is added to a folder later.
    """
    names = {item.key: taken[item.key] for item in items if item.key in taken}
    used = set(map(fold, taken.values()))
    for item in items:  # a name goes to the first that asks, before others are numbered
        if item.key not in names and fold(item.name) not in used:
            names[item.key] = item.name
            used.add(fold(item.name))
    for item in items:
        if item.key not in names:
            numbered = (f"{item.name}-{number}" for number in count(2))
            names[item.key] = next(name for name in numbered if fold(name) not in used)
            used.add(fold(names[item.key]))
    return [replace(item, name=names[item.key]) for item in items]


def fold(name: str) -> str:
    """Names that some file system takes for the same have the same folded form."""
    return unicodedata.normalize("NFC", name).casefold()


def _items_of(source: Path, recursive: bool, leave_out: Path) -> Iterator[Item]:
    suffix = source.suffix.lower()
    if str(source) == STANDARD_INPUT:
        yield from _lines(sys.stdin.buffer.read(), "standard input", Path())
    elif os.path.isdir(source):
        if os.path.realpath(source) == os.path.realpath(leave_out):
            raise UsageError(
                f"`--out {leave_out}` is the folder with the pictures",
                hint=f"give another one, for example `--out {leave_out / 'assets'}`",
            )
        yield from _pictures_in(source, recursive, leave_out)
    elif not os.path.lexists(source):
        files.check_input(source, "folder or list")
    elif suffix in files.PICTURES:
        yield Item(pictures=(source,), name=_fitting(source.stem))
    elif suffix in (*files.BUNDLES, *files.MESHES):
        raise UsageError(
            f"`{source}` is neither a folder nor a list nor a picture", hint="see `trellis batch --help`"
        )
    else:
        if source.is_file():  # looking into a pipe would take from it
            files.check_input(source, "list")
        yield from _lines(source.read_bytes(), f"`{source}`", source.parent)


def _pictures_in(folder: Path, recursive: bool, leave_out: Path) -> Iterator[Item]:
    found = False
    for path in sorted(_walk(folder, recursive, os.path.realpath(leave_out))):
        found = True
        below = path.relative_to(folder)
        yield Item(pictures=(path,), name=_fitting(below.with_suffix("").as_posix()))
    if not found:
        deeper = not recursive and next(_walk(folder, True, os.path.realpath(leave_out)), None)
        hint = (
            "pass `--recursive` to search the folders in it"
            if deeper
            else "known: " + ", ".join(files.PICTURES)
        )
        raise InputError(f"there is no picture in `{folder}`", hint=hint)


def _walk(folder: Path, recursive: bool, leave_out: str) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        inside = [name for name in folders if not name.startswith(".")]
        folders[:] = [n for n in inside if recursive and os.path.realpath(Path(place, n)) != leave_out]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in files.PICTURES:
                yield Path(place, name)


def _lines(content: bytes, where: str, folder: Path) -> Iterator[Item]:
    """Of a list: a picture, a prompt or a JSON object on each line; `#` begins a comment line."""
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{where} is no list: it is not text", hint="write one picture or prompt on each line"
        )
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as PowerShell writes it
    text = content.decode("utf-16", "replace") if wide else content.decode("utf-8-sig", "surrogateescape")
    found = False
    for number, line in enumerate(text.splitlines(), start=1):
        said = line.strip()
        if not said or said.startswith("#"):
            continue
        found = True
        if said.startswith("{"):
            yield _item_of_json(said, f"line {number} of {where}", folder)
        elif dispatch.is_file_name(said, folder):
            yield Item(pictures=(_seen_from(folder, said),), name=_fitting(Path(said).stem))
        else:
            yield Item(prompt=said, name=slug(said))
    if not found:
        raise InputError(f"{where} lists nothing", hint="write one picture or prompt on each line")


def _item_of_json(line: str, where: str, folder: Path) -> Item:
    """`{"picture"|"pictures"|"prompt": ..., "seed": ..., "name": ...}`; `InputError` for anything else."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}", hint=EXAMPLE) from None
    unknown = [key for key in said if key not in KEYS]
    if unknown:
        raise InputError(f"{where} says `{unknown[0]}`", hint=f"known: {', '.join(KEYS)}")
    given = [key for key in KEYS[:3] if key in said]
    if len(given) != 1:
        raise InputError(f"{where} must say one of: {', '.join(KEYS[:3])}", hint=EXAMPLE)
    value = said[given[0]]
    many = value if given[0] == "pictures" else [value]
    if not isinstance(many, list) or not many or not all(isinstance(each, str) for each in many):
        what = "a list of file names" if given[0] == "pictures" else "text"
        raise InputError(f"{where}: `{given[0]}` must be {what}", hint=EXAMPLE)
    seed = said.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise InputError(f"{where}: `seed` must be a whole number from 0 to {LARGEST_SEED}", hint=EXAMPLE)
    name = said.get("name")
    if name is not None:
        _check_name(name, where)
    if given[0] == "prompt":
        return Item(prompt=value, seed=seed, name=_fitting(name or slug(value)), wish=name)
    pictures = tuple(_seen_from(folder, each) for each in many)
    return Item(pictures=pictures, seed=seed, name=_fitting(name or pictures[0].stem), wish=name)


def _check_name(name: object, where: str) -> None:
    parts = name.split("/") if isinstance(name, str) else []
    if (
        not parts
        or FORBIDDEN.search(str(name))
        or any(part.strip(" .") != part or not part for part in parts)
    ):
        raise InputError(
            f"{where}: `name` cannot be {name!r}", hint='for example "red-chair" or "chairs/red"'
        )


def _seen_from(folder: Path, name: str) -> Path:
    """The file called `name`: beside the list, or seen from here when it is there only."""
    path = Path(name).expanduser()
    beside = folder / path
    return path if os.path.lexists(path) and not os.path.lexists(beside) else beside


def _fitting(name: str) -> str:
    """The name, its last part cut where it is too long for a file's name with an ending."""
    head, slash, tail = name.rpartition("/")
    while len(os.fsencode(tail)) > LONGEST_NAME:
        tail = tail[:-1]
    return head + slash + tail
