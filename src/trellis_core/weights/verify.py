"""Whether a weights file is whole: safetensors header, size, hash. Reads no tensor and needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trellis_core.errors import ModelError

AGAIN = "delete the file and run `trellis models pull` again"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
POINTER = b"version https://git-lfs"  # how the files start that `git clone` leaves without Git LFS


def check_file(path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Raise `ModelError` unless the file has this size and hash and, if safetensors, a whole header."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise ModelError(f"`{path}` has {actual:,} bytes instead of {size:,}", hint=AGAIN)
    if path.suffix == ".safetensors":
        read_header(path)
    if sha256 is not None and hash_file(path) != sha256:
        raise ModelError(f"`{path}` is damaged: its SHA-256 is not the published one", hint=AGAIN)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, without `__metadata__`, after checking it against the file's size.

    Layout: 8 bytes length, little endian; JSON; tensors without gaps up to the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER))
        if start == POINTER:
            raise ModelError(f"`{path}` is a Git LFS pointer, not the weights it stands for", hint=AGAIN)
        file.seek(8)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ModelError(f"`{path}` is damaged: no safetensors file, or cut off", hint=AGAIN)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ModelError(f"`{path}` is damaged: its header makes no sense", hint=AGAIN) from error
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise ModelError(f"`{path}` is damaged: its tensors overlap or leave gaps", hint=AGAIN)
        end = stop
    if 8 + length + end > size:
        raise ModelError(
            f"`{path}` is damaged: cut off after {size:,} of {8 + length + end:,} bytes", hint=AGAIN
        )
    if 8 + length + end != size:
        raise ModelError(
            f"`{path}` is damaged: {size:,} bytes, its header promises {8 + length + end:,}", hint=AGAIN
        )
    return header


def count_parameters(path: Path) -> int:
    """Numbers stored in a safetensors file."""
    total = 0
    for entry in read_header(path).values():
        product = 1
        for extent in entry["shape"]:
            product *= extent
        total += product
    return total


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
