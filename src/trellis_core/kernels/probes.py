"""Can Triton kernels run on a device? Looks, but launches nothing."""

from __future__ import annotations

import platform
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from trellis_core.memory.devices import DeviceInfo

TRITON_HINT = "choose `--kernel sparse_conv=torch`, or install `triton` and a C compiler (`gcc` or `clang`)"


def triton_runs(device: DeviceInfo) -> str | None:
    """None when a Triton kernel can be compiled and launched on `device`, else the reason it cannot."""
    if device.kind != "cuda":
        return "needs a CUDA device"
    if device.capability is not None and device.capability < (8, 0):
        major, minor = device.capability
        return f"compute capability {major}.{minor}: Triton has no tensor cores below 8.0"
    if find_spec("triton") is None:
        return "the package `triton` is not installed"
    if platform.system() == "Linux":
        return _launcher_problem()
    return None


def _launcher_problem() -> str | None:
    """Stock Triton compiles a small C module when it first launches a kernel on Linux."""
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton needs a C compiler to launch kernels on Linux, and there is no `gcc` or `clang`"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Triton needs `Python.h` to launch kernels on Linux (install the Python development package)"
    return None
