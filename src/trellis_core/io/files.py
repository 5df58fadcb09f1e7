"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trellis_core.errors import OutputError

File = tuple[Path, Iterable[bytes]]  # where to, and what


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write `parts` to a temporary file beside `path`, then rename it. Leaves nothing behind on failure."""
    write_files([(path, parts)])


def write_files(files: Sequence[File]) -> None:
    """Write files that belong together: none takes its place before all are written.

    They are renamed in their order: the one that names the others comes last.
    """
    written: list[tuple[Path, str]] = []
    try:
        for path, parts in files:
            with _explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
                written.append((path, temporary))
                with os.fdopen(handle, "wb") as file:
                    for part in parts:
                        file.write(part)
                os.chmod(temporary, 0o666 & ~_umask())
        while written:
            path, temporary = written[0]
            with _explained(path):
                os.replace(temporary, path)
            del written[0]
    finally:
        for _, temporary in written:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns `OSError` into `OutputError`."""
    try:
        yield
    except OSError as error:
        said = f"cannot write `{path}`: {error.strerror or error}"
        raise OutputError(said, hint=_hint(error, path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _hint(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, or write to another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"you may not write into `{path.parent}`: choose another folder"
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return "a file and a folder have the same name: choose another name"
    return "choose another place to write to"
