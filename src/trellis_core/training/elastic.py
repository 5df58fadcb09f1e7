"""Memory that adapts to the batch: how many blocks recompute their activations, so that a step just fits.

The peak of a step is taken to be linear in (tokens x kept share); the line is fitted while training. The
kept share becomes a number of checkpointed blocks (Chen et al., "Training Deep Nets with Sublinear Memory
Cost", 2016). Knows nothing about models beyond an attribute that holds that number.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

GIB = 1024**3


class Checkpointable(Protocol):
    """A network whose first `checkpointed` blocks keep no activations."""

    blocks: Any
    checkpointed: int


class CheckpointedTogether:
    """Networks of one step as one: each checkpoints the same share of its blocks."""

    def __init__(self, networks: Sequence[Checkpointable]) -> None:
        self.networks = networks
        self.blocks = max((network.blocks for network in networks), key=len)

    @property
    def checkpointed(self) -> int:
        return max(network.checkpointed for network in self.networks)

    @checkpointed.setter
    def checkpointed(self, count: int) -> None:
        for network in self.networks:
            network.checkpointed = math.ceil(count * len(network.blocks) / len(self.blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticSettings:
    available: float  # GiB of the device
    target: float = 0.75  # share of it that a step may take
    start: float = 0.5  # highest kept share before the first fit
    rise: float = 0.1  # of that cap with every fit, up to 1
    fit_every: int = 500  # steps
    history: int = 1000  # steps that a fit looks at
    seed: int = 0  # of the shares tried before the first fit


class ElasticMemory:
    """Chooses the share of activations to keep, and learns from what each step took."""

    def __init__(self, settings: ElasticSettings) -> None:
        self.settings = settings
        self.cap = settings.start
        self.line: tuple[float, float] | None = None  # GiB per kept token, GiB besides
        self.seen: deque[tuple[float, float]] = deque(maxlen=settings.history)  # kept tokens, GiB
        self.steps = 0
        self.random = random.Random(settings.seed)

    def ratio(self, tokens: int) -> float:
        """The share of activations to keep for a batch of `tokens`, in [0, cap]."""
        if self.line is None:
            return self.random.uniform(0, self.cap)
        slope, base = self.line
        room = self.settings.target * self.settings.available - base
        wanted = room / (slope * tokens) if slope > 0 else math.copysign(math.inf, room)
        return min(max(wanted, 0.0), self.cap)

    def record(self, tokens: int, ratio: float, memory: float) -> None:
        """What a step with this share took, in GiB; every `fit_every` steps the line is fitted again."""
        self.seen.append((tokens * ratio, memory))
        self.steps += 1
        if self.steps % self.settings.fit_every == 0:
            self.fit()
            self.cap = min(self.cap + self.settings.rise, 1.0)

    def fit(self) -> None:
        """Least squares over the remembered steps."""
        kept = torch.tensor([k for k, _ in self.seen], dtype=torch.float64)
        memory = torch.tensor([m for _, m in self.seen], dtype=torch.float64)
        design = torch.stack([kept, torch.ones_like(kept)], dim=1)
        slope, base = torch.linalg.lstsq(design, memory[:, None], driver="gelsd").solution[:, 0].tolist()
        self.line = (slope, base)

    @contextmanager
    def step(
        self,
        model: Checkpointable,
        tokens: int,
        peak: Callable[[], float],  # GiB taken at most since the step began
    ) -> Iterator[float]:
        """Around forward and backward of one micro-batch: checkpoints blocks, then records the peak.

        Yields the share of blocks that really keep their activations. A step that raises is not recorded.
        """
        before = model.checkpointed
        model.checkpointed, kept = checkpointed_blocks(len(model.blocks), self.ratio(tokens))
        try:
            yield kept
        finally:
            model.checkpointed = before
        self.record(tokens, kept, peak())

    def state_dict(self) -> dict[str, Any]:
        return {"cap": self.cap, "line": self.line, "seen": list(self.seen), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cap, self.line, self.steps = state["cap"], state["line"], int(state["steps"])
        self.seen.clear()
        self.seen.extend((kept, memory) for kept, memory in state["seen"])


def checkpointed_blocks(blocks: int, ratio: float) -> tuple[int, float]:
    """How many of the first blocks to checkpoint to keep about `ratio` of the activations, and the share
    that is really kept: a checkpointed block is recomputed whole, so one block's activations always exist."""
    if ratio >= 1:
        return 0, 1.0
    count = min(math.ceil((1 - ratio) * blocks) + 1, blocks)
    return count, 1 - (count - 1) / blocks


def cuda_peak(device: torch.device) -> Callable[[], float]:
    """Start measuring a CUDA device; the result tells the GiB allocated at most since then."""
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device) / GIB
