"""What GPU is this: name, compute capability, memory.

Knows nothing about models or plans.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One compute device as kernels and memory plans see it."""

    kind: str                                  # "cpu", "cuda" or "mps" (torch device type)
    index: int = 0
    name: str = ""
    capability: tuple[int, int] | None = None  # CUDA compute capability, e.g. (8, 9); None elsewhere
    total_memory: int = 0                      # bytes
    free_memory: int = 0                       # bytes
    driver: str | None = None
