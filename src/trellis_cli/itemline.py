"""What a person sees of a batch while it works: the item and its stage, on one line that goes with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trellis_cli.console import Beginning, Console, Stages
from trellis_cli.journal import Claim

if TYPE_CHECKING:
    from rich.progress import Progress

    from trellis_core.runtime import Step


@contextmanager
def watching(console: ItemConsole, claim: Claim, title: str) -> Iterator[Stages]:
    """While the block runs: shows the stage an item is in, and keeps libraries from printing to stdout."""
    whole = console.whole
    shown = not (whole.quiet or whole.events) and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with redirect_stdout(sys.stderr):
        if not shown:
            progress = ItemStages(console, claim)
            yield progress
            progress.close()
            return
        with _one_line() as live:
            progress = ItemStages(console, claim, live, title)
            yield progress
            progress.close()


@dataclass(slots=True)
class ItemConsole(Console):
    """The facts of one item, apart from those of the whole call; its notes go into the report alone."""

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
