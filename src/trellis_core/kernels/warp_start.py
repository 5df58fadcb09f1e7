"""Start Warp quietly, and say whether it can run.

Every module with Warp kernels calls `start_warp()` when it is imported, which happens when it is chosen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from trellis_core.memory.devices import DeviceInfo

HINT = "install it with `pip install warp-lang`, or choose the `torch` backend"


def warp_is_installed(device: DeviceInfo) -> str | None:
    """Probe of kernels that run on the processor, whatever the device: None, or the reason they cannot."""
    return None if find_spec("warp") else "the package `warp-lang` is not installed"


def warp_runs(device: DeviceInfo) -> str | None:
    """Probe: None when Warp kernels can run on `device`, else the reason they cannot."""
    if missing := warp_is_installed(device):
        return missing
    if device.kind not in ("cpu", "cuda"):
        return f"Warp does not run on `{device.kind}`"
    return None


def start_warp() -> None:
    """Initialise Warp without its banner; without a GPU also without its remark that there is none."""
    import warp as wp

    wp.config.log_level = wp.LOG_ERROR
    if torch.cuda.is_available():
        wp.init()
        return
    with silent_stderr():
        wp.init()


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere: Warp's native library writes to it directly."""
    if sys.stderr is None:  # a windowed Python has no such descriptor
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
