"""What GPU is this: name, compute capability, memory, driver.

`detect_devices` asks the driver and never imports torch; `describe_device` asks torch about a device
that torch will run on. Knows nothing about models or plans.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from trellis_core.errors import UsageError

if TYPE_CHECKING:
    import torch

Capability = tuple[int, int]

# CUDA compute capability -> architecture. 10.x is Blackwell in data centres, 12.x Blackwell at home.
ARCHITECTURES: dict[Capability, str] = {
    (5, 0): "Maxwell",
    (5, 2): "Maxwell",
    (6, 0): "Pascal",
    (6, 1): "Pascal",
    (7, 0): "Volta",
    (7, 5): "Turing",
    (8, 0): "Ampere (data centre)",
    (8, 6): "Ampere",
    (8, 7): "Ampere (Jetson)",
    (8, 9): "Ada",
    (9, 0): "Hopper",
    (10, 0): "Blackwell (data centre)",
    (10, 3): "Blackwell Ultra (data centre)",
    (11, 0): "Blackwell (Jetson)",
    (12, 0): "Blackwell (consumer)",
    (12, 1): "Blackwell (DGX Spark)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One compute device as kernels and memory plans see it."""

    kind: str  # "cpu", "cuda" or "mps" (torch device type)
    index: int = 0
    name: str = ""
    capability: Capability | None = None  # CUDA compute capability, e.g. (8, 9); None elsewhere
    total_memory: int = 0  # bytes
    free_memory: int = 0  # bytes
    driver: str | None = None
    native_bf16: bool = False  # bfloat16 arithmetic in hardware

    @property
    def architecture(self) -> str:
        if self.capability is None:
            return ""
        return ARCHITECTURES[known_capability(self.capability)]


def known_capability(capability: Capability) -> Capability:
    """The table's nearest entry that is not newer: an unknown newer GPU counts as the newest known one."""
    older = [known for known in ARCHITECTURES if known <= tuple(capability)]
    return max(older, default=min(ARCHITECTURES))


def carries_code_for(arch_list: Iterable[str], capability: Capability) -> bool:
    """Whether a torch build with `torch.cuda.get_arch_list()` can run on a GPU of this capability.

    Machine code (`sm_86`) runs on its own major version from its minor version upwards, portable code
    (`compute_90`) on everything newer; `sm_90a` runs on exactly 9.0, `sm_100f` on its family.
    """
    for arch in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        kind, major, minor, suffix = match.groups()
        built_for = (int(major), int(minor))
        if suffix == "a":
            fits = built_for == capability
        elif kind == "compute" and not suffix:
            fits = built_for <= capability
        else:
            fits = built_for[0] == capability[0] and built_for[1] <= capability[1]
        if fits:
            return True
    return False


def detect_devices() -> tuple[DeviceInfo, ...]:
    """Every device of this machine, the processor last. Works without a driver and without torch."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    metal = (_apple_gpu(),) if apple else ()
    return (*_nvidia_gpus(), *metal, describe_processor())


def describe_device(device: torch.device | str) -> DeviceInfo:
    """The torch device `device` ("cpu", "cuda:1", "mps"). Raises `UsageError` when torch has none such."""
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        return describe_processor()
    if device.type == "mps" and torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        used = torch.mps.driver_allocated_memory()
        free = max(0, min(total - used, psutil.virtual_memory().available))
        return DeviceInfo(
            kind="mps", name=_processor_name(), total_memory=total, free_memory=free, native_bf16=True
        )
    if (
        device.type == "cuda"
        and torch.cuda.is_available()
        and (device.index or 0) < torch.cuda.device_count()
    ):
        return _describe_cuda(device)
    raise UsageError(
        f"torch {torch.__version__} cannot use the device `{device}`",
        hint="see `trellis doctor`, or choose `--device cpu`",
    )


def select_device(name: str = "auto") -> torch.device:
    """The torch device to run on: the one that was asked for, or the best that runs a real kernel.

    Raises `UsageError` when a device was asked for by name and cannot run.
    """
    import torch

    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UsageError(
                f"unknown device `{name}`", hint="choose `auto`, `cpu`, `cuda`, `cuda:1` or `mps`"
            ) from error
        describe_device(device)
        problem = try_kernel(device)
        if problem is not None:
            raise UsageError(f"the device `{name}` cannot run: {problem}", hint="run `trellis doctor`")
        return device
    for kind, present in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if present and try_kernel(torch.device(kind)) is None:
            return torch.device(kind)
    return torch.device("cpu")


def try_kernel(device: torch.device | str) -> str | None:
    """Run a real kernel: None when it works, else the reason. `is_available()` alone proves nothing."""
    import torch

    try:
        two = torch.ones(8, 8, device=device) + 1
        return None if (two @ two).sum().item() == 8 * 8 * 32 else "a matrix product came out wrong"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0]


def describe_processor() -> DeviceInfo:
    """The CPU, with the memory limit of the container when there is one."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _container_limits():
        if limit < total:
            total, free = limit, min(free, max(0, limit - used))
    return DeviceInfo(
        kind="cpu",
        name=_processor_name(),
        total_memory=total,
        free_memory=free,
        native_bf16=bool({"avx512_bf16", "amx_bf16"} & _processor_flags()),
    )


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVIDIA management library, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpus() -> tuple[DeviceInfo, ...]:
    found = []
    with _nvml() as nvml:
        if nvml is None:
            return ()
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
                name = _text(nvml.nvmlDeviceGetName(handle))
                total, free = _nvml_memory(nvml, handle)
            except nvml.NVMLError:  # a lost or forbidden GPU must not hide the others
                continue
            found.append(
                DeviceInfo(
                    kind="cuda",
                    index=index,
                    name=name,
                    capability=(major, minor),
                    total_memory=total,
                    free_memory=free,
                    driver=driver,
                    native_bf16=(major, minor) >= (8, 0),
                )
            )
    return tuple(found)


def _nvml_memory(nvml: Any, handle: Any) -> tuple[int, int]:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # GPUs that share the machine's memory
        shared = psutil.virtual_memory()
        return shared.total, shared.available


def _describe_cuda(device: torch.device) -> DeviceInfo:
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    free += torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)  # torch's cache is ours
    nvidia = torch.version.hip is None
    with _nvml() as nvml:
        driver = None if nvml is None else _text(nvml.nvmlSystemGetDriverVersion())
    capability = (properties.major, properties.minor) if nvidia else None
    return DeviceInfo(
        kind="cuda",
        index=index,
        name=properties.name,
        capability=capability,
        total_memory=total,
        free_memory=free,
        driver=driver,
        native_bf16=capability is None or capability >= (8, 0),
    )


def _apple_gpu() -> DeviceInfo:
    memory = psutil.virtual_memory()
    total = memory.total * 3 // 4  # what Metal grants one process by default
    return DeviceInfo(
        kind="mps",
        name=_processor_name(),
        total_memory=total,
        free_memory=min(total, memory.available),
        native_bf16=True,
    )


def _container_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of control groups, version 2 and 1; droppable page cache counts as free."""
    for folder, limit_name, used_name, cache_key in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int(Path(folder, limit_name).read_text())
            used = int(Path(folder, used_name).read_text())
            statistics = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        yield limit, used - int(statistics.get(cache_key, 0))


def _processor_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _processor_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
