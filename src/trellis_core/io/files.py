"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trellis_core.errors import OutputError


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write `parts` to a temporary file beside `path`, then rename it. Leaves nothing behind on failure."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}", hint=_hint(error, path)
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


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
