"""What a batch keeps beside its results: a report of what was made, and claims on what is being made.

The report has one JSON object on each line, the last one of an item counts. A claim is a small file that one
process creates for one item; it is removed with the item's last word, and one whose process is gone is void.
Both change under a lock on the report, so that several processes may work on one folder.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from time import monotonic, time
from typing import Any

import psutil

from trellis_cli.worklist import key_of
from trellis_core.errors import OutputError

NAME = "report.jsonl"
SIGN_OF_LIFE = 30.0  # seconds between two touches of a claim
SAME = 5.0  # seconds by which the start of a process may seem to differ when the clock is set
FOREIGN = 900.0  # seconds without a touch after which a claim of another computer is void

Entry = dict[str, Any]


@dataclass(slots=True)
class Report:
    """The report of one folder, as far as this process has read it."""

    folder: Path
    entries: dict[str, Entry] = field(default_factory=dict)  # an item's key -> its last line
    written: set[str] = field(default_factory=set)  # names under which this folder has results of ours
    position: int = 0  # bytes read

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def refresh(self) -> None:
        """Read what was added. Lines that are no lines of a report are passed over."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.position:
                self.entries, self.position = {}, 0
            file.seek(self.position)
            lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self.position += len(whole)
            for line in whole.splitlines():
                entry = _entry(line)
                if entry is not None:
                    self.entries[key_of(entry["input"])] = entry
                    if entry.get("outputs"):
                        self.written.add(entry["name"])

    def append(self, entry: Entry) -> None:
        """Add a line, whole or not at all. Raises `OutputError`."""
        line = json.dumps(entry, default=str).encode() + b"\n"
        with locked(self.path) as file:
            end = _whole_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                rest = line
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    @contextmanager
    def claim(self, name: str) -> Iterator[Claim | None]:
        """This process's claim on the item called `name` while the block runs; None when another has it.

        Makes the folder when it is not there. Raises `OutputError`.
        """
        place = self.folder / name
        path = place.with_name(f".{place.name}.claim")
        mine = json.dumps(_myself())
        try:
            claim = self._take(path, mine)
        except OSError as error:
            raise OutputError(
                f"cannot write to `{self.folder}`: {error.strerror}",
                hint="give another folder with `--out DIR`",
            ) from error
        if claim is None:
            yield None
            return
        try:
            if claim.inherited:
                _clear(place)
            yield claim
        finally:
            with suppress(OSError):
                if claim.settled and path.read_text() == mine:
                    path.unlink()

    def _take(self, path: Path, mine: str) -> Claim | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            inherited = path.exists()
            if inherited and _is_alive(path):
                return None
            path.write_text(mine)
            return Claim(path, inherited)


@dataclass(slots=True)
class Claim:
    """The right to make one item."""

    path: Path
    inherited: bool  # from a process that ended in the middle of it
    settled: bool = (
        True  # false: there are results that the report does not know; the next one may replace them
    )
    touched: float = field(default_factory=monotonic)

    def touch(self) -> None:
        """Show other computers that this process still works on it."""
        if monotonic() - self.touched > SIGN_OF_LIFE:
            self.touched = monotonic()
            with suppress(OSError):
                os.utime(self.path)


def open_report(folder: Path) -> Report:
    """What has been reported in `folder`; nothing is written yet. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"`{folder}` is not a folder", hint="give another one with `--out DIR`")
    report = Report(folder)
    try:
        report.refresh()
    except OSError as error:
        raise OutputError(
            f"`{report.path}` cannot be read: {error.strerror}", hint="give another folder with `--out DIR`"
        ) from None
    return report


@contextmanager
def locked(path: Path) -> Iterator[FileIO]:
    """The file at `path`, open for reading and writing, while no other process has it here."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
        _lock(file)
        try:
            yield file
        finally:
            _unlock(file)


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(entry, dict) and isinstance(entry.get("input"), dict) and type(entry.get("name")) is str
    return entry if fits else None


def _whole_lines(file: FileIO) -> int:
    """Bytes up to the end of the last whole line: a machine that stopped may have left a piece of one."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        file.seek(end - 1)
        if file.read(1) == b"\n":
            break
        end -= 1
    return end


def _myself() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _is_alive(path: Path) -> bool:
    """Whether the process that wrote a claim still runs."""
    try:
        owner = json.loads(path.read_text())
        host, pid, started = owner["host"], int(owner["pid"]), float(owner["started"])
        if host != socket.gethostname():
            return time() - path.stat().st_mtime < FOREIGN
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return False
    except psutil.AccessDenied:
        return True


def _clear(stem: Path) -> None:
    """Remove what a process that was killed left half written."""
    for part in stem.parent.glob(f".{glob.escape(stem.name)}.*.part"):
        part.unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt

    BEYOND = 1 << 40  # a byte that no report reaches: reading stays possible

    def _lock(file: FileIO) -> None:
        while True:
            file.seek(BEYOND)
            with suppress(OSError):  # it gives up after ten seconds
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                return

    def _unlock(file: FileIO) -> None:
        file.seek(BEYOND)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: FileIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: FileIO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
