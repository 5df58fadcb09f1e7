"""`trellis batch FOLDER|LIST --out DIR`: many assets with one loaded model, resumable."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import delivery, files
from trellis_cli import options as o
from trellis_cli.batch import Item, fold, named, read_items
from trellis_cli.console import Beginning, Console, Stages
from trellis_cli.journal import Claim, Entry, Report, open_report
from trellis_cli.maker import Job, Maker
from trellis_cli.sampling import order_of
from trellis_core import __version__
from trellis_core.errors import InputError, ModelError, OutputError, TrellisError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from trellis_core.runtime import Step

app = typer.Typer()

SOME_FAILED = 8  # exit code
ENDING = (UsageError, ModelError, OutputError)  # would come again with every item
OWN = ("output", "save_bundle", "preview")  # options that name one file
LONGEST_LABEL = 60  # characters
# options that say how and where, not what is made
ASIDE = {
    *OWN,
    *("force", "strict", "seed", "device", "vram_tier", "kernel", "offline"),
    *("json", "json_events", "quiet", "debug"),
}

EXAMPLES = """\
[bold]Examples[/bold]
  trellis batch photos --out assets
  trellis batch photos --recursive --out assets --preset game --previews
  trellis batch prompts.txt --out assets --format obj
  trellis batch a.png b.png --out assets --limit 1

[bold]A list[/bold] has a picture or a prompt on each line, or JSON:
  photos/chair.png
  a tall red chair with armrests
  {"pictures": ["front.png", "back.png"], "seed": 7, "name": "shoe"}

[bold]report.jsonl[/bold] in the folder has one line for each asset. The same command goes on where it
stopped: what is there is kept, unless its picture or the settings changed; what failed is tried again."""

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER|LIST|PICTURE",
        help="Folders, lists (`-`: standard input), pictures.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR", help="Folder for the results.", rich_help_panel=o.RESULT),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="Kind of file: glb (default), obj, ...", rich_help_panel=o.RESULT
    ),
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", "-r", help="Search the folders in a folder too.", rich_help_panel=o.RESULT),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        help="Stop after trying N assets.",
        show_default=False,
        rich_help_panel=o.RESULT,
    ),
]
SaveBundles = Annotated[
    bool, typer.Option("--save-bundles", help="Also save the runs, for `export`.", rich_help_panel=o.RESULT)
]
Previews = Annotated[
    bool, typer.Option("--previews", help="Also draw each asset from a few sides.", rich_help_panel=o.RESULT)
]


@app.command(epilog=EXAMPLES)
@partial(o.with_run_options, without=OWN)
def batch(
    ctx: typer.Context,
    sources: Sources,
    run: o.RunOptions,
    out: Out,
    format: Format = None,
    recursive: Recursive = False,
    limit: Limit = None,
    save_bundles: SaveBundles = False,
    previews: Previews = False,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
) -> None:
    """Make an asset of each picture in a folder, or of each line of a list.

    One that cannot be made does not end the others. When memory runs out it goes on with a lower plan.
    """
    console: Console = ctx.obj
    wishes = Wishes(
        run=run,
        out=out,
        suffix=suffix_for(format, run.form),
        save_bundles=save_bundles,
        previews=previews,
        mode=mode.value,
        background=background.value,
    )
    items = read_items(sources, recursive=recursive, leave_out=out)
    text = any(item.prompt is not None for item in items)
    pictures = any(item.pictures for item in items)
    maker = Maker(console, run, text=text, pictures=pictures)
    report = open_report(out)
    work = Work(console, wishes, maker, report, items)
    try:
        work.through(limit)
    except TrellisError as error:
        if work.made:
            kept = "what was made is kept, and the same command goes on from there"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise
    finally:
        work.conclude()
    if work.failures:
        raise typer.Exit(SOME_FAILED)


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
                if self._is_made(item):
                    self.kept += 1
                elif limit is not None and self.made + len(self.failures) >= limit:
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
            if self._is_made(item):  # by another process, a moment ago
                self.kept += 1
                return
            files.check_space(self.wishes.out, "--out DIR")
            self._make(item, claim)

    def _is_made(self, item: Item) -> bool:
        """Whether the report says so, of the same input and settings, and the files are there."""
        entry = self._entry(item)
        if entry is None or entry.get("status") != "made":
            return False
        if self.wishes.run.force and entry is self.before.get(item.key):
            return False
        outputs = entry.get("outputs", [])
        expected = [output.get("path") for output in outputs]
        if self.wishes.previews:
            expected += [output.get("preview") for output in outputs]
        if self.wishes.save_bundles:
            expected.append(entry.get("bundle"))
        there = all(name is not None and (self.wishes.out / name).is_file() for name in expected)
        same = entry.get("settings") == self.wishes.settings(item)
        return bool(outputs) and there and same and entry.get("sha256") == item.digest()

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
        job = None
        try:
            item.check()
            ours = claim.inherited or bool((self._entry(item) or {}).get("outputs"))
            options = self.wishes.options(item, self.wishes.run.force or ours)
            order = order_of(replace(options, strict=False), self.wishes.place(item, ""))
        except (InputError, OutputError) as error:
            failure: Exception | None = error
        else:
            self.maker.open(order)
            given = item.start(self.wishes.mode, self.wishes.background)
            job = Job(given=given, options=options, order=order, bundle_path=self.wishes.bundle(item))
            failure = None
            try:
                with self._watched(item, quiet, claim) as progress:
                    self.maker.make(job, quiet, progress)
            except Exception as error:
                if self.console.interrupted or isinstance(error, (UsageError, ModelError)):
                    raise
                failure = error
        entry |= self._outcome(quiet.facts, job, failure)
        entry["seconds"] = round(monotonic() - started, 3)
        entry["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry["version"] = __version__
        self._write(entry, failure if job is not None else None)
        self._tell(item, entry)

    def _outcome(self, facts: Mapping[str, Any], job: Job | None, failure: Exception | None) -> Entry:
        """What was made, or why not, with paths as seen from the report."""
        from trellis_cli.app import explain

        found: Entry = {}
        if job is not None:
            found["model"] = self.maker.facts
            found["plan"] = {**self.maker.plan, "pipeline_type": self.maker.pipeline}
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

    def _write(self, entry: Entry, failure: Exception | None) -> None:
        """Add the line to the report; a disk that takes no more ends the batch."""
        if isinstance(failure, OutputError):
            with suppress(OSError):
                self.report.append(entry)
            raise failure
        try:
            self.report.append(entry)
        except OSError as error:
            raise OutputError(
                f"cannot write `{self.report.path}`: {error.strerror}",
                hint="free some space, or pass `--out DIR`",
            ) from error

    def _tell(self, item: Item, entry: Entry) -> None:
        if entry["status"] == "made":
            self.made += 1
        else:
            self.failures.append(entry)
        where = f"{self.made + self.kept + len(self.failures)}/{len(self.items)}"
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

    @contextmanager
    def _watched(self, item: Item, quiet: Console, claim: Claim) -> Iterator[Stages]:
        """The stage that an item is in, on one line of a terminal that goes away with it."""
        shown = not (self.console.quiet or self.console.events) and sys.stderr.isatty()
        title = f"{short(item)}{self._time_left()}"
        with redirect_stdout(sys.stderr):
            if shown and os.environ.get("TERM") != "dumb":
                with _one_line() as live:
                    progress = ItemStages(quiet, claim, live, title)
                    yield progress
                    progress.close()
            else:
                progress = ItemStages(quiet, claim)
                yield progress
                progress.close()

    def _time_left(self) -> str:
        if not self.made:
            return ""
        rest = len(self.items) - self.kept - self.made - len(self.failures)
        minutes = (monotonic() - self.started) / (self.made + len(self.failures)) * rest / 60
        return f", {minutes:.0f} min left" if minutes >= 1 else ""

    def conclude(self) -> None:
        """Say what has become of all."""
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


@dataclass(slots=True)
class ItemConsole(Console):
    """The facts of one item, apart from those of the whole call."""

    whole: Console = field(default_factory=Console)

    def is_interrupted(self) -> bool:
        return self.whole.interrupted


class ItemStages(Stages):
    """Keeps what stages took, shows the current one, and shows other computers that the item is in work."""

    def __init__(self, console: Console, claim: Claim, live: Progress | None = None, title: str = "") -> None:
        super().__init__(console)
        self.claim, self.live, self.title = claim, live, title
        self.task = live.add_task(title, stage="", total=None) if live is not None else None

    def show(self, step: Step | Beginning) -> None:
        self.claim.touch()
        if self.live is not None and self.task is not None:
            self.live.update(self.task, stage=self.label, completed=step.step, total=max(step.steps, 1))


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


def suffix_for(format: str | None, form: o.Form | None) -> str:
    """The ending of results. `UsageError` for one that nothing is written to."""
    if format is None:
        return delivery.SUFFIXES[form or o.Form.mesh][0]
    suffix = f".{format.lower().removeprefix('.')}"
    form = form or delivery.form_of(Path(f"x{suffix}"))
    delivery.check_suffix(Path(f"NAME{suffix}"), form)
    known = delivery.SUFFIXES[form]
    if suffix not in known:
        raise UsageError(
            f"`--format {format}` is unknown", hint=f"known: {', '.join(each[1:] for each in known)}"
        )
    return suffix


def short(item: Item) -> str:
    label = " ".join(item.label.split())
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}..."


def _one_line() -> Progress:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
        console=Terminal(stderr=True),
        transient=True,
    )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
