"""What a training run leaves to read: one JSON line per log entry, TensorBoard events, curves as PNG.

`matplotlib` and `tensorboard` come with the extra `train`; they are imported when they are asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trellis_core.errors import BackendUnavailable
from trellis_core.training.loop import Log, LogEntry

HINT = "install it with `pip install trellis-cli[train]`"


def write_lines(path: Path) -> Log:
    """Append every entry to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(entry: LogEntry) -> None:
        line = {"step": entry.step, "elapsed": round(entry.elapsed, 2), **entry.values}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return log


def write_events(folder: Path) -> Log:
    """TensorBoard scalars. Raises `BackendUnavailable` without the package."""
    writer = _summary(folder)

    def log(entry: LogEntry) -> None:
        for name, value in entry.values.items():
            writer.add_scalar(name, value, entry.step)
        writer.flush()

    return log


def write_picture(folder: Path, name: str, picture: Tensor, step: int) -> None:
    """A picture uint8 [H, W, 3] for TensorBoard. Raises `BackendUnavailable` without the package."""
    with _summary(folder) as writer:
        writer.add_image(name, picture, step, dataformats="HWC")


def all_of(*logs: Log) -> Log:
    """Every entry to every log."""

    def log(entry: LogEntry) -> None:
        for one in logs:
            one(entry)

    return log


def read_lines(path: Path) -> list[dict[str, float]]:
    """The entries of a file of JSON lines; where a run was repeated from a checkpoint, the later ones."""
    kept: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        while kept and kept[-1]["step"] >= entry["step"]:
            kept.pop()
        kept.append(entry)
    return kept


def draw_curves(
    stages: Mapping[str, list[dict[str, float]]],  # stage -> its entries
    path: Path,  # PNG
    names: Callable[[str], bool] = lambda name: True,  # which values to draw
) -> None:
    """One panel per stage: every value over the steps. Raises `BackendUnavailable` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError as error:
        raise BackendUnavailable("matplotlib is not installed", hint=HINT) from error
    columns = min(len(stages), 3) or 1
    rows = -(-len(stages) // columns) or 1
    figure: Any = Figure(figsize=(5 * columns, 3.4 * rows))  # placed by hand: a layout engine draws twice
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=0.18 / columns, right=1 - 0.05 / columns, bottom=0.15 / rows, top=1 - 0.1 / rows, hspace=0.35
    )
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (stage, entries) in zip(panels, stages.items(), strict=False):
        steps = [e["step"] for e in entries]
        for name in dict.fromkeys(name for entry in entries for name in entry):
            if name not in ("step", "elapsed", "norm") and names(name):
                panel.plot(steps, [e.get(name, math.nan) for e in entries], label=name, linewidth=1)
        panel.set(title=stage, xlabel="step", yscale="log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=8))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="x-small")
    for panel in panels[len(stages) :]:
        panel.set_visible(False)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=90)
    partial.replace(path)


def _summary(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BackendUnavailable("TensorBoard is not installed", hint=HINT) from error
    return SummaryWriter(str(folder))
