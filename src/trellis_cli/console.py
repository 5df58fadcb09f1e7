"""What a person or a script sees of a run: progress and notes on stderr, results on stdout.

Knows nothing about models or commands. `rich` is imported when stderr is a terminal, and only then.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import takewhile
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from trellis_core.runtime import Step

LINE_EVERY = 10.0  # seconds between lines of one long stage when stderr is not a terminal
COLORS = {"error": "1;31", "hint": "36", "warning": "33", "note": "2"}  # terminal codes
LABEL = 11  # columns of stage names and summary labels


@dataclass(slots=True)
class Console:
    """The reporting side of one command. `facts` is what the final JSON object says about the run."""

    json: bool = False  # one final object on stdout
    events: bool = False  # a JSON line per event on stdout, the last one is the result
    quiet: bool = False  # nothing on stderr but errors
    debug: bool = False  # tracebacks
    interrupted: bool = False  # set by the first Ctrl-C
    facts: dict[str, Any] = field(default_factory=dict)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    def is_interrupted(self) -> bool:
        """For `cancel=`: true after Ctrl-C, should a library have swallowed the exception."""
        return self.interrupted

    def note(self, text: str) -> None:
        """Something worth knowing: a fallback, a lowered resolution."""
        self._remark("note", text)

    def warn(self, text: str) -> None:
        self._remark("warning", text)

    def say(self, label: str, text: str) -> None:
        """A line of the summary: `model      embedded, the only model present`."""
        if not (self.quiet or self.events):
            print(f"{label:<{LABEL}}{text}", file=sys.stderr, flush=True)

    def event(self, event: str, **facts: Any) -> None:
        if self.events:
            self.out(_dumps({"event": event, **facts}))

    def out(self, text: str) -> None:
        """One line of results. A reader that went away early (`| head`) is not an error."""
        try:
            print(text, file=self.stdout, flush=True)
        except BrokenPipeError:
            discard_stdout(self.stdout)
        except OSError:
            discard_stdout(self.stdout)
            raise

    def result(self, lines: Sequence[str]) -> None:
        """The results for a person, one per line; a script gets `facts` instead, from `finish`."""
        if not (self.json or self.events):
            for line in lines:
                self.out(line)

    def finish(self, failure: Mapping[str, Any] | None = None) -> None:
        """Print the final object when a script asked for one: how it ended, and the facts so far."""
        if not (self.facts or failure):
            return
        final = {"ok": failure is None, "exit_code": 0, **(failure or {}), **self.facts}
        if self.events:
            self.event("result" if failure is None else "error", **final)
        elif self.json:
            self.out(_dumps(final))

    @contextmanager
    def working(self) -> Iterator[Stages]:
        """While the block runs: shows the stages it reports, and keeps libraries from printing to stdout."""
        with redirect_stdout(sys.stderr):
            if self.events or self.quiet:
                stages = Stages(self)
                yield stages
            elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
                with _live_progress() as live:
                    stages = Bars(self, live)
                    yield stages
                    stages.close()
            else:
                stages = Lines(self)
                yield stages
            stages.close()

    def _remark(self, kind: str, text: str) -> None:
        self.event(kind, text=text)
        self.facts.setdefault(f"{kind}s", []).append(text)
        if not (self.quiet or self.events):
            print(f"{paint(kind)}: {text}", file=sys.stderr, flush=True)


def console_for(arguments: Sequence[str]) -> Console:
    """Read the reporting options from the raw arguments, so that even a usage error honours them."""
    options = set(takewhile(lambda a: a != "--", arguments))
    return Console(
        json="--json" in options,
        events="--json-events" in options,
        quiet="--quiet" in options or "-q" in options,
        debug="--debug" in options,
    )


class Beginning(NamedTuple):
    """A step as `trellis_core.runtime.Step`, which cannot be imported without torch."""

    stage: str
    step: int = 0
    steps: int = 1
    note: str = ""
    warning: str = ""


class Stages:
    """Receives progress steps and keeps the seconds and the peak memory of each stage; shows nothing."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.current: Step | Beginning | None = None
        self.label = ""
        self.started = monotonic()

    def __call__(self, step: Step | Beginning) -> None:
        if self.current is None or step.stage != self.current.stage or step.step < self.current.step:
            self.close()
            self.label = self._label_for(step.stage)
            self.started = monotonic()
        self.current = step
        more = {"note": step.note} if step.note else {}
        self.console.event(
            "progress",
            stage=self.label,
            step=step.step,
            steps=step.steps,
            seconds=round(self.seconds, 3),
            **more,
        )
        self.show(step)
        if step.note:
            self.console.note(step.note)
        if step.warning:
            self.console.warn(step.warning)

    def begin(self, stage: str) -> None:
        """Announce a stage of the command's own: `start`, until the engine reports its first one."""
        self(Beginning(stage))

    @property
    def seconds(self) -> float:
        """Of the current stage."""
        return monotonic() - self.started

    def close(self) -> None:
        """The current stage is over."""
        if self.current is not None:
            facts = {"stage": self.label, "seconds": round(self.seconds, 3), "peak_memory": peak_memory()}
            self.console.facts.setdefault("stages", []).append(facts)
            self.ended(self.current)
            self.current = None

    def show(self, step: Step | Beginning) -> None: ...

    def ended(self, step: Step | Beginning) -> None: ...

    def _label_for(self, stage: str) -> str:
        """A stage that runs again, as the passes of a cascade do, gets a number."""
        before = [s["stage"] for s in self.console.facts.get("stages", ())]
        again = sum(name == stage or name.startswith(f"{stage} ") for name in before)
        return f"{stage} {again + 1}" if again else stage


class Lines(Stages):
    """One line per stage, and one every ten seconds of a long stage: for logs and pipes."""

    printed = 0.0

    def show(self, step: Step | Beginning) -> None:
        if step.step == 0:
            self.printed = monotonic()
        elif step.step < step.steps and monotonic() - self.printed > LINE_EVERY:
            self._line(step, f", {self.seconds / step.step * (step.steps - step.step):.0f} s left")
            self.printed = monotonic()

    def ended(self, step: Step | Beginning) -> None:
        self._line(step)

    def _line(self, step: Step | Beginning, rest: str = "") -> None:
        print(
            f"{self.label:<{LABEL}}{_count(step):>7}{self.seconds:8.1f} s{rest}", file=sys.stderr, flush=True
        )


class Bars(Stages):
    """A bar per stage with steps, seconds and seconds left: for terminals."""

    def __init__(self, console: Console, live: Progress) -> None:
        super().__init__(console)
        self.live = live
        self.task: TaskID | None = None

    def show(self, step: Step | Beginning) -> None:
        if self.task is None:
            self.task = self.live.add_task(self.label, total=max(step.steps, 1), count="")
        self.live.update(self.task, completed=step.step, total=max(step.steps, 1), count=_count(step))

    def ended(self, step: Step | Beginning) -> None:
        if self.task is not None:
            self.live.update(self.task, completed=max(step.steps, 1))
            self.live.stop_task(self.task)
            self.task = None


def _live_progress() -> Progress:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Seconds(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{(task.finished_time if task.finished else task.elapsed) or 0.0:6.1f} s")

    class SecondsLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = None if task.finished else task.time_remaining
            return Text("" if left is None else f"{left:.0f} s left", style="dim")

    return Progress(
        TextColumn(f"{{task.description:<{LABEL - 1}}}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[count]:>5}"),
        Seconds(),
        SecondsLeft(),
        console=Terminal(stderr=True),
    )


def paint(word: str) -> str:
    """`error`, `hint`, ... in its color when stderr is a terminal that shows colors."""
    plain = not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or "NO_COLOR" in os.environ
    return word if plain or word not in COLORS else f"\x1b[{COLORS[word]}m{word}\x1b[0m"


def peak_memory() -> int | None:
    """Most resident memory this process has had so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def discard_stdout(stdout: TextIO) -> None:
    """Send what is still buffered for stdout nowhere, so that the interpreter can end in peace."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # stdout is no file, as under a test's capture
        pass


def _count(step: Step | Beginning) -> str:
    return f"{step.step}/{step.steps}" if step.steps > 1 else ""


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)  # ASCII: file names may hold bytes that are no text
