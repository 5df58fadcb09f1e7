"""What every training run of the command line needs: options, devices, processes, interruption, records.

The environment that `torchrun` hands to its processes is read here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trellis_cli import options as o
from trellis_cli import registry
from trellis_cli.console import Console
from trellis_core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from trellis_core.kernels.table import Kernels
    from trellis_core.training.distributed import World
    from trellis_core.training.loop import Log

INTERRUPTED = 130  # exit code
CURVES, EVENTS = "curves.png", "events"
HINT = "install it with `pip install trellis-cli[train]`"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What a training run was asked for."""

    recipe: str | None
    data: Path | None
    run: Path | None
    stage: str | None
    model: str | None  # to start from
    lora_rank: int | None
    lora_alpha: float | None
    lpips: Path | None  # weights of the loss that looks like a viewer
    output: Path | None
    objects: int | None
    batch_share: float  # times the batch sizes of a recipe of stages
    samples: int
    steps: int | None
    seconds: float | None
    seed: int
    resume: bool
    tensorboard: bool
    compiled: bool
    device: str
    kernel: list[str] | None


def required(path: Path | None, option: str) -> Path:
    if path is None:
        raise UsageError(f"`{option}` is missing", hint=f"pass `{option} FOLDER`")
    return path


def check_run(checkpoint: Path, resume: bool) -> None:
    """A run that exists is continued when it was asked for, and never otherwise."""
    if checkpoint.exists() and not resume:
        raise UsageError(
            f"`{checkpoint}` exists", hint="pass `--resume` to continue it, or choose an empty `--run`"
        )
    if resume and not checkpoint.parent.exists():
        raise UsageError(f"there is no run in `{checkpoint.parent}`", hint="drop `--resume` to start one")


# --- devices and processes


def open_device(device: str, kernel: list[str] | None = None) -> tuple[torch.device, Kernels]:
    """The device and its kernels."""
    machine = registry.Machine.of(device, o.Precision.auto, o.Tier.auto, kernel)
    place, _, kernels = registry.open_device(machine)
    return place, kernels


def own_device(options: TrainOptions) -> tuple[torch.device, Kernels]:
    """The device of this process: a card of its own when `torchrun` started several."""
    device, number = options.device, os.environ.get("LOCAL_RANK")
    if number is not None and device in ("auto", "cuda"):
        import torch

        device = f"cuda:{number}" if torch.cuda.is_available() else device
    return open_device(device, options.kernel)


def is_first() -> bool:
    """Whether this is the process that speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """This process among those that `torchrun` started; alone when it did not."""
    from trellis_core.training.distributed import join_world, leave_world

    world = join_world(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), device)
    try:
        yield world
    finally:
        leave_world(world)


@contextmanager
def patient(console: Console) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the run after its step, with a checkpoint; the second one at once."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            before[number](number, frame)
        asked.append(number)
        console.note("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before.update({n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)})
    except ValueError:  # not the main thread: somebody else decides when to stop
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- records


def open_log(console: Console, run: Path, stage: str, tensorboard: bool) -> Log:
    """Losses as JSON lines `STAGE.jsonl`, as events for a script, and for TensorBoard when asked for.

    Raises `BackendUnavailable` without TensorBoard.
    """
    from trellis_core.training.records import all_of, write_events, write_lines

    def tell(entry: Any) -> None:
        console.event("losses", stage=stage, step=entry.step, **entry.values)

    events = [write_events(run / EVENTS / stage)] if tensorboard and is_first() else []
    return all_of(write_lines(run / f"{stage}.jsonl"), tell, *events)


def curve_drawer(console: Console, run: Path, stages: Sequence[str]) -> Callable[[], None]:
    """Draws the curves of a run's stages into `curves.png`; says once when it cannot."""
    if not is_first():
        return lambda: None
    if find_spec("matplotlib") is None:
        console.note(f"no `{CURVES}`: matplotlib is not installed; {HINT}")
        return lambda: None

    def draw() -> None:
        from trellis_core.training.records import draw_curves, read_lines

        logs = {name: run / f"{name}.jsonl" for name in stages}
        there = {name: read_lines(path) for name, path in logs.items() if path.exists()}
        if there:
            draw_curves(there, run / CURVES)

    return draw
