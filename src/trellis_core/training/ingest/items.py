"""From a folder of the user's meshes to training data: one file after the other, resumable, in processes.

    DATA/records/SHA.json     what is done for one file; makes the work resumable
    DATA/...                  what the steps of a model version make, and its tables

A version says which steps there are, how its networks are loaded and what its tables say (`Layout`). A step
that is recorded and whose result exists is not made again, unless something that it depends on has changed.
Knows no model version.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from trellis_core.errors import InputError, OutOfMemory, TrellisError
from trellis_core.io.files import write_file
from trellis_core.io.meshes import SUFFIXES
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device
from trellis_core.runtime import Runtime
from trellis_core.training.crew import Lost, run_tasks
from trellis_core.training.ingest.materials import IngestedMesh, read_ingested

RECORDS = "records"
SETTINGS_NOTE = "made_by"  # of a step's record: what the result depends on beside the file

Facts = dict[str, Any]


class WorkSettings(Protocol):
    """What is asked of every version's settings; they must be picklable."""

    @property
    def max_faces(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the user."""

    sha256: str
    path: Path
    name: str  # relative to the user's folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one file."""

    name: str
    sha256: str
    rejected: str = ""  # why; empty: everything asked for is there
    made: tuple[str, ...] = ()  # steps of this run; the others were there before
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is made of a file. Returns what the tables say about it."""

    make: Callable[[Job], Facts]
    result: str = ""  # file below the data folder, SHA standing for the item; empty: only what is returned
    made_by: str = ""  # what it depends on beside the file


@dataclass(frozen=True, slots=True)
class Layout:
    """How one model version turns files into data: module-level functions, which processes can be sent."""

    steps: Callable[[Any], dict[str, Step]]  # settings -> folder of the result -> step, in order
    load: Callable[[str, Any, Runtime], Any]  # role, settings -> a network that steps use
    write_tables: Callable[[Path, list[Facts], Any], None]  # data folder, records, settings


def ingest(
    folder: Path,
    data: Path,
    settings: WorkSettings,
    layout: Layout,
    *,
    workers: int = 1,  # processes; 0: this one
    seconds: float = 1800.0,  # limit of one file
    on_outcome: Callable[[Outcome, int, int], None] = lambda outcome, done, count: None,
) -> list[Outcome]:
    """Ingest every mesh below `folder` into `data`; files that cannot be used are reported, not raised.

    The tables are written at the end, also when it is interrupted. Raises `InputError` for a folder without
    meshes, `OutputError` when `data` cannot be written.
    """
    items, outcomes = find_items(folder)
    count = len(items) + len(outcomes)

    def done(item: Item, result: Outcome | Lost) -> None:
        if isinstance(result, Lost):
            result = Outcome(item.name, item.sha256, result.reason)
            save_record(data, item, {**read_record(data, item.sha256), "rejected": result.rejected})
        outcomes.append(result)
        on_outcome(result, len(outcomes), count)

    start = partial(Ingester, data, settings, layout)
    try:
        run_tasks(items, start, workers=workers, seconds=seconds, on_result=done)
    finally:
        layout.write_tables(data, read_records(data), settings)
    return sorted(outcomes, key=lambda outcome: outcome.name)


class Ingester:
    """The work of one process: its networks are loaded once, when first needed."""

    def __init__(self, data: Path, settings: WorkSettings, layout: Layout) -> None:
        self.data, self.settings, self.layout = data, settings, layout
        self.steps = layout.steps(settings)
        torch.set_num_threads(settings.threads)
        device = torch.device(settings.device)
        self.runtime = Runtime(device=device, kernels=resolve_kernels(describe_device(device), {}))
        self.networks: dict[str, Any] = {}

    def __call__(self, item: Item) -> Outcome:
        began = time.monotonic()
        job = Job(self, item, read_record(self.data, item.sha256))
        made: list[str] = []
        problem = ""
        try:
            with torch.inference_mode():
                for name, step in self.steps.items():
                    if not job.has(name, step):
                        job.finish(name, step, step.make(job))
                        made.append(name)
        except InputError as error:
            problem = error.message
        except (OutOfMemory, MemoryError, torch.OutOfMemoryError):
            problem = "memory ran out"
        except TrellisError:
            raise  # the model or the disk: no fault of this file
        except Exception as error:  # whatever a strange mesh makes fail: it must not end the others
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        save_record(self.data, item, {**job.record, "rejected": problem})
        return Outcome(item.name, item.sha256, problem, tuple(made), round(time.monotonic() - began, 2))

    def network(self, role: str) -> Any:
        if role not in self.networks:
            network = self.layout.load(role, self.settings, self.runtime)
            self.networks[role] = network.to(self.runtime.device)
        return self.networks[role]


@dataclass
class Job:
    """One file on its way; the mesh is read when a step needs it."""

    worker: Ingester
    item: Item
    record: Facts

    @property
    def settings(self) -> Any:
        """The version's."""
        return self.worker.settings

    @property
    def runtime(self) -> Runtime:
        return self.worker.runtime

    @cached_property
    def mesh(self) -> IngestedMesh:
        return read_ingested(self.item.path, self.settings.max_faces)

    def place(self, step: str, suffix: str = "") -> Path:
        return self.worker.data / step / f"{self.item.sha256}{suffix}"

    def rng(self, seed: int) -> np.random.Generator:
        """The file's own random numbers."""
        return np.random.default_rng(int(self.item.sha256[:8], 16) + seed)

    def has(self, name: str, step: Step) -> bool:
        facts = self.record.get("steps", {}).get(name)
        if facts is None or facts.get(SETTINGS_NOTE) != step.made_by:
            return False
        return not step.result or (self.worker.data / step.result.replace("SHA", self.item.sha256)).is_file()

    def finish(self, name: str, step: Step, facts: Facts) -> None:
        done = {name: {**facts, SETTINGS_NOTE: step.made_by}}
        self.record = {**self.record, "steps": {**self.record.get("steps", {}), **done}}
        save_record(self.worker.data, self.item, self.record)


def save_arrays(path: Path, **arrays: np.ndarray | np.generic) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    write_file(path, [packed.getvalue()])


# --- files -------------------------------------------------------------------------------------------


def find_items(folder: Path) -> tuple[list[Item], list[Outcome]]:
    """Every mesh file below `folder`, by name, and those that are left out: unreadable, or there twice.

    Raises `InputError` when there is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise InputError(
            f"`{folder}` holds no mesh",
            hint=f"give a folder with files of these kinds: {', '.join(SUFFIXES)}",
        )
    items: dict[str, Item] = {}
    left_out = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            sha256 = hash_of(path)
        except OSError as error:
            left_out.append(Outcome(name, "", f"it cannot be read: {error.strerror}"))
            continue
        if sha256 in items:
            left_out.append(Outcome(name, sha256, f"the same file as {items[sha256].name}"))
        else:
            items[sha256] = Item(sha256, path.resolve(), name)
    return list(items.values()), left_out


def hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def captions_of(path: Path) -> list[str]:
    """The lines of a text file beside the mesh: NAME.txt."""
    try:
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in lines if line.strip()]


# --- records and tables ------------------------------------------------------------------------------


def read_records(data: Path) -> list[Facts]:
    """All records that can be read, by hash."""
    paths = sorted((data / RECORDS).glob("*.json"))
    return [record for path in paths if (record := read_record(data, path.stem))]


def read_record(data: Path, sha256: str) -> Facts:
    """What is known of a file; nothing when there is no record or it is damaged."""
    try:
        record = json.loads((data / RECORDS / f"{sha256}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def save_record(data: Path, item: Item, record: Facts) -> None:
    about = {
        "sha256": item.sha256,
        "file_identifier": item.name,
        "local_path": str(item.path),
        "captions": captions_of(item.path),
    }
    content = json.dumps({**record, **about}, indent=1).encode()
    write_file(data / RECORDS / f"{item.sha256}.json", [content])


def root_row(record: Facts) -> Facts:
    """What a root table says about one asset, whatever was made of it."""
    return {
        "sha256": record["sha256"],
        "file_identifier": record["file_identifier"],
        "local_path": record["local_path"],
        "aesthetic_score": "",
        "captions": json.dumps(record.get("captions", [])),
    }


def facts_of_step(record: Facts, step: str) -> Facts:
    """The columns that a finished step has in a table; empty when it is not done."""
    facts = record.get("steps", {}).get(step, {})
    return {name: value for name, value in facts.items() if name != SETTINGS_NOTE}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["sha256"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, [text.getvalue().encode()])


def summary(outcomes: Iterable[Outcome]) -> Facts:
    """The report as JSON-serialisable facts."""
    outcomes = list(outcomes)
    rejected = [o for o in outcomes if o.rejected]
    return {
        "meshes": len(outcomes),
        "complete": len(outcomes) - len(rejected),
        "made": sum(bool(o.made) and not o.rejected for o in outcomes),
        "there_before": sum(not o.made and not o.rejected for o in outcomes),
        "rejected": [{"file": o.name, "sha256": o.sha256, "reason": o.rejected} for o in rejected],
        "steps": {
            s: sum(s in o.made for o in outcomes) for s in sorted({s for o in outcomes for s in o.made})
        },
    }
