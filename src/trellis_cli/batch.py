"""The items of a batch one after the other: claim, make, report; what ends the whole and what does not.

worklist.Item -> journal.Report.claim -> maker.Maker.make -> a line of the report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from time import monotonic
from typing import Any

from trellis_cli import files
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_cli.itemline import ItemConsole, watching
from trellis_cli.journal import Claim, Entry, Report
from trellis_cli.maker import Job, Maker
from trellis_cli.sampling import order_of
from trellis_cli.worklist import Item, fold, named
from trellis_core import __version__
from trellis_core.errors import InputError, ModelError, OutputError

OWN = ("output", "save_bundle", "preview")  # options that name one file
# options that say how and where, not what is made
ASIDE = {
    *OWN,
    *("force", "strict", "seed", "device", "vram_tier", "kernel", "offline"),
    *("json", "json_events", "quiet", "debug"),
}
LONGEST_LABEL = 60  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be made of every item."""

    run: o.RunOptions
    out: Path
    suffix: str
    save_bundles: bool
    previews: bool
    mode: str
    background: str

    def options(self, item: Item, force: bool) -> o.RunOptions:
        """Those of one run, with its own files and seed."""
        return replace(
            self.run,
            output=self.place(item, self.suffix),
            save_bundle=self.bundle(item) if self.save_bundles else None,
            preview=self.place(item, "-preview.png") if self.previews else None,
            seed=self.seed(item),
            force=force,
        )

    def seed(self, item: Item) -> int:
        return self.run.seed if item.seed is None else item.seed

    def bundle(self, item: Item) -> Path:
        """Where the run is saved; a radiance field has the usual ending itself."""
        ending = files.BUNDLES[0]
        return self.place(item, f"-run{ending}" if self.suffix == ending else ending)

    def place(self, item: Item, ending: str) -> Path:
        return self.out / f"{item.name}{ending}"

    def settings(self, item: Item) -> dict[str, Any]:
        """All that the result depends on besides the input; what is left at its default is not named."""
        given = {f.name: getattr(self.run, f.name) for f in fields(self.run) if f.name not in ASIDE}
        defaults = {f.name: f.default for f in fields(self.run)}
        settings = {name: _plain(value) for name, value in given.items() if value != defaults[name]}
        if item.pictures and self.background != o.Background.auto.value:
            settings["background"] = self.background
        if len(item.pictures) > 1:
            settings["mode"] = self.mode
        return {**settings, "seed": self.seed(item), "format": self.suffix[1:]}


@dataclass(slots=True)
class Work:
    """The items of one call, and what has become of them."""

    console: Console
    wishes: Wishes
    maker: Maker
    report: Report
    items: Sequence[Item]
    before: Mapping[str, Entry] = field(default_factory=dict)  # what the report said of the items at first
    made: int = 0
    kept: int = 0  # made by an earlier call
    failures: list[Entry] = field(default_factory=list)
    elsewhere: list[Item] = field(default_factory=list)  # another process has them
    left: int = 0  # by the limit
    started: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        self.before = recognised(self.items, self.report)
        taken = {key: entry["name"] for key, entry in self.report.entries.items()}
        moved = {key: entry["name"] for key, entry in self.before.items()}
        self.items = named(self.items, {**taken, **moved})

    def through(self, limit: int | None) -> None:
        """Make what is not made yet. Raises what would come again with every item."""
        queue = list(self.items)
        for again in (False, True):  # what another process had may have been left by it
            waiting, self.elsewhere = queue, []
            for item in waiting:
                if self._is_settled(item):
                    continue
                if limit is not None and self.made + len(self.failures) >= limit:
                    self.left += 1
                else:
                    self._claimed(item)
            queue = self.elsewhere
            if again or not queue:
                return

    def _claimed(self, item: Item) -> None:
        with self.report.claim(item.name) as claim:
            if claim is None:
                self.elsewhere.append(item)
                return
            self.report.refresh()
            if self._is_settled(item):  # by another process, a moment ago
                return
            files.check_space(self.wishes.out, "--out DIR")
            self._make(item, claim)

    def _is_settled(self, item: Item) -> bool:
        """Whether there is nothing to do for an item; it is counted then."""
        entry = self._entry(item)
        before = self.before.get(item.key)
        if entry is None or (entry is before and self.wishes.run.force) or not self._is_of(entry, item):
            return False
        if self._is_made(entry):
            self.kept += 1
            return True
        if entry["status"] == "failed" and entry is not before:  # another process tried it just now
            self.failures.append(entry)
            return True
        return False

    def _is_of(self, entry: Entry, item: Item) -> bool:
        """Whether a line of the report is about the same input and settings."""
        same = entry.get("settings") == self.wishes.settings(item)
        return same and entry.get("sha256") == item.digest()

    def _is_made(self, entry: Entry) -> bool:
        """Whether the report says so, and the files are there."""
        outputs = entry.get("outputs", [])
        expected = [output.get("path") for output in outputs]
        if self.wishes.previews:
            expected += [output.get("preview") for output in outputs]
        if self.wishes.save_bundles:
            expected.append(entry.get("bundle"))
        there = all(name is not None and (self.wishes.out / name).is_file() for name in expected)
        return entry.get("status") == "made" and bool(outputs) and there

    def _entry(self, item: Item) -> Entry | None:
        return self.report.entries.get(item.key) or self.before.get(item.key)

    def _make(self, item: Item, claim: Claim) -> None:
        """One item, and its line in the report."""
        started = monotonic()
        quiet = ItemConsole(
            events=self.console.events, quiet=True, stdout=self.console.stdout, whole=self.console
        )
        entry: Entry = {
            "name": item.name,
            "status": "failed",
            "input": item.input,
            "sha256": item.digest(),
            "settings": self.wishes.settings(item),
            "seed": self.wishes.seed(item),
        }
        job: Job | None = None
        failure: Exception | None = None
        try:
            item.check()
            ours = claim.inherited or item.name in self.report.written
            options = self.wishes.options(item, self.wishes.run.force or ours)
            order = order_of(replace(options, strict=False), self.wishes.place(item, ""))
        except (InputError, OutputError) as error:
            failure = error
        else:
            self.maker.open(order)
            given = item.start(self.wishes.mode, self.wishes.background)
            job = Job(given=given, options=options, order=order, bundle_path=self.wishes.bundle(item))
            failure = self._run(job, quiet, claim, item)
        entry |= self._outcome(quiet.facts, job, failure)
        entry["seconds"] = round(monotonic() - started, 3)
        entry["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry["version"] = __version__
        self._write(entry, failure if job is not None else None, claim)
        self._tell(item, entry)

    def _run(self, job: Job, quiet: ItemConsole, claim: Claim, item: Item) -> Exception | None:
        """Why the job failed, unless that ends the batch: then it is raised."""
        claim.settled = False
        try:
            with watching(quiet, claim, f"{self._count(1)} {short(item)}{self._time_left()}") as progress:
                self.maker.make(job, quiet, progress)
        except BaseException as error:
            # a damaged model would come again with every item
            common = self.console.interrupted or isinstance(error, ModelError)
            if isinstance(error, Exception) and not common:
                return error
            claim.settled = not any(path.exists() for path in job.order.paths)
            raise
        return None

    def _outcome(self, facts: Mapping[str, Any], job: Job | None, failure: Exception | None) -> Entry:
        """What was made, or why not, with paths as seen from the report."""
        from trellis_cli.app import explain

        found: Entry = {}
        if job is not None:
            found["model"] = self.maker.facts
            sampled = job.bundle.info if job.bundle is not None else {}
            found["plan"] = {**self.maker.plan, "pipeline_type": sampled.get("pipeline_type")}
            found["attempts"] = job.attempts
        outputs = [dict(output) for output in facts.get("outputs", ())]
        for output in outputs:
            output |= {name: self._seen(output[name]) for name in ("path", "preview") if name in output}
        found["outputs"] = outputs
        if "bundle" in facts:
            found["bundle"] = self._seen(facts["bundle"])
        found |= {name: facts[name] for name in ("notes", "warnings", "stages") if name in facts}
        bad = [output for output in outputs if not output.get("quality", {"passed": True})["passed"]]
        if failure is not None:
            code, message, hint = explain(failure)
            found |= {"error": message, "hint": hint, "exit_code": code}
        elif bad and self.wishes.run.strict:
            message = f"`{bad[0]['path']}` failed the quality check; it was written all the same"
            hint = "try another `--seed`, a higher `--resolution`, or another `--background`"
            found |= {"error": message, "hint": hint, "exit_code": 6}
        else:
            found["status"] = "made"
        return found

    def _write(self, entry: Entry, failure: Exception | None, claim: Claim) -> None:
        """Add the line to the report; a disk that takes no more ends the batch."""
        if isinstance(failure, OutputError):
            with suppress(OSError):
                self.report.append(entry)
                claim.settled = True
            raise failure
        try:
            self.report.append(entry)
        except OSError as error:
            raise OutputError(
                f"cannot write `{self.report.path}`: {error.strerror}",
                hint="free some space, or pass `--out DIR`",
            ) from error
        claim.settled = True

    def _tell(self, item: Item, entry: Entry) -> None:
        if entry["status"] == "made":
            self.made += 1
        else:
            self.failures.append(entry)
        where = self._count()
        self.console.event("item", **entry)
        paths = [str(self.wishes.out / output["path"]) for output in entry["outputs"]]
        self.console.result(paths)
        if entry["status"] == "made":
            warned = len(entry.get("warnings", ()))
            rest = f", {warned} warning{'s' if warned > 1 else ''}" if warned else ""
            self.console.say(where, f"{short(item)}: {', '.join(paths)}, {entry['seconds']:.1f} s{rest}")
        else:
            said = "; ".join(filter(None, (entry["error"], entry["hint"])))
            self.console.say(where, f"{short(item)}: FAILED: {said}")

    def _count(self, more: int = 0) -> str:
        return f"{self.made + self.kept + len(self.failures) + more}/{len(self.items)}"

    def _time_left(self) -> str:
        if not self.made:
            return ""
        rest = len(self.items) - self.kept - self.made - len(self.failures)
        minutes = (monotonic() - self.started) / (self.made + len(self.failures)) * rest / 60
        return f", {minutes:.0f} min left" if minutes >= 1 else ""

    def conclude(self) -> None:
        """Say what has become of all, unless nothing has."""
        if not (self.made or self.kept or self.failures or self.elsewhere):
            return
        facts = self.console.facts
        rest = len(self.items) - self.made - self.kept - len(self.failures) - len(self.elsewhere) - self.left
        counts = {
            "made": self.made,
            "made before": self.kept,
            "failed": len(self.failures),
            "in the hands of another process": len(self.elsewhere),
            "left by --limit": self.left,
            "not begun": rest,
        }
        facts |= {
            "report": str(self.report.path),
            "items": len(self.items),
            "made": self.made,
            "kept": self.kept,
        }
        facts |= {"failed": len(self.failures), "elsewhere": len(self.elsewhere), "left": self.left + rest}
        told = ("name", "input", "error", "hint", "exit_code")
        facts["failures"] = [{name: entry[name] for name in told} for entry in self.failures]
        facts["seconds"] = round(monotonic() - self.started, 3)
        self.console.say("batch", ", ".join(f"{n:,} {what}" for what, n in counts.items() if n))
        self.console.say("report", facts["report"])
        if self.left + rest:
            self.console.say("", "the same command goes on")

    def _seen(self, path: str) -> str:
        """As the report says it, so that the folder can be moved."""
        with suppress(ValueError):
            return Path(path).relative_to(self.wishes.out).as_posix()
        return path


def recognised(items: Sequence[Item], report: Report) -> dict[str, Entry]:
    """What the report says of the items, by key. A picture of the same name and content is the same one: its
    folder was moved."""
    entries = report.entries
    known = {item.key: entries[item.key] for item in items if item.key in entries}
    strangers = {fold(entry["name"]): entry for key, entry in entries.items() if key not in known}
    for item in items:
        entry = strangers.get(fold(item.name))
        if item.key not in known and entry is not None and entry.get("sha256") == item.digest():
            known[item.key] = entry
    return known


def short(item: Item) -> str:
    label = " ".join(item.label.split())
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}..."


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
