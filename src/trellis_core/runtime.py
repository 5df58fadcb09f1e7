"""How a run executes: device, precision, kernels, residency, progress. Frozen, passed, never global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from trellis_core.errors import Cancelled
from trellis_core.kernels.table import Kernels
from trellis_core.memory.budget import MemoryPlan


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of a stage: `step` of `steps`; step 0 announces the stage."""

    stage: str
    step: int
    steps: int
    note: str = ""
    warning: str = ""  # the result may not be what was asked for


Progress = Callable[[Step], None]  # may raise Cancelled


def silent(step: Step) -> None:
    """Report nothing."""


def cancellable(on_progress: Progress | None, cancel: Callable[[], bool] | None) -> Progress:
    """One callable that stops the run when `cancel()` is true, then reports to `on_progress`."""

    def report(step: Step) -> None:
        if cancel is not None and cancel():
            raise Cancelled(f"stopped in stage `{step.stage}`")
        if on_progress is not None:
            on_progress(step)

    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32  # of the networks' torsos
    kernels: Kernels = field(default_factory=Kernels)
    keep_resident: bool = True  # False: a network is on the device only while it runs
    cache_condition: bool = True  # keep the conditioning keys and values of a stage
    progress: Progress = silent

    def report(self, stage: str, step: int, steps: int, note: str = "", warning: str = "") -> None:
        self.progress(Step(stage, step, steps, note, warning))

    @classmethod
    def of_plan(cls, plan: MemoryPlan, device: torch.device, kernels: Kernels) -> Runtime:
        """The runtime that a memory plan describes."""
        return cls(
            device=device,
            dtype=plan.dtype,
            kernels=kernels,
            keep_resident=plan.keep_resident,
            cache_condition=plan.cache_condition,
        )

    def reporting(self, progress: Progress) -> Runtime:
        return replace(self, progress=progress)
