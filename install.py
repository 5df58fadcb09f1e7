#!/usr/bin/env python3
"""Set this repository up: `.venv`, the torch build that fits this machine, the project itself.

    python install.py                    what `trellis` needs
    python install.py --extras dev,image what the tests need as well
    python install.py --with xformers    an optional kernel package
    python install.py --dry-run          say what would be done

Standard library only, Python 3.10 to 3.13. Running it again does nothing when nothing changed.
Reads the machine (`detect`), picks a torch build (`choose_torch`, a pure function), then acts (`set_up`).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
STAMP = ".trellis-install.json"

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_TORCH, FIRST_UNTRIED_TORCH = (2, 7), (2, 15)
TESTED = "torch==2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl/"
REACH_SECONDS = 3.0
GIGABYTES = {"cpu": 3, "gpu": 10}  # disk space that an installation from nothing takes

# torch minor version -> the Triton that belongs to it; on Windows torch does not say so itself
TRITON_OF_TORCH = {7: "3.3", 8: "3.4", 9: "3.5", 10: "3.6", 11: "3.6", 12: "3.7", 13: "3.7", 14: "3.8"}

# optional kernel packages; none is needed for anything
ADAPTERS = {
    "xformers": ["xformers"],
    "flash-attn": ["flash-attn", "--no-build-isolation"],  # source only: compiles for many minutes
}

# runs in the new environment, and prints one JSON object
PROBE = """
import json, sys
facts = {}
try:
    import torch
    facts["version"] = torch.__version__
    facts["device"] = device = sys.argv[1]
    two = torch.ones(8, 8, device=device) + 1
    facts["works"] = (two @ two).sum().item() == 2048
except Exception as error:
    facts["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(facts))
"""


class SetupError(Exception):
    """What is wrong, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Machine:
    system: str  # "Linux", "Windows" or "Darwin"
    arch: str  # "x86_64" or "aarch64"
    gpus: tuple[Gpu, ...] = ()
    driver: tuple[int, ...] | None = None  # NVIDIA driver
    rocm: tuple[int, int] | None = None


@dataclass(frozen=True)
class TorchBuild:
    """Which torch, and why. `tag` names PyTorch's own index; None is the default index."""

    tag: str | None
    requirement: str
    fallback: str  # requirement on the default index, when PyTorch's own cannot be reached
    reason: str
    device: str = "cuda"  # what the build is meant to run on

    @property
    def index(self) -> str | None:
        return None if self.tag is None else PYTORCH_INDEX + self.tag


def choose_torch(machine: Machine) -> TorchBuild:
    """The torch build for a machine, by driver and compute capability.

    Wheels of CUDA 13 need driver 580 and capability 7.5; those of 12.8 (up to torch 2.11) need 570 for
    capability 10 and newer; those of 12.6 carry code for 5.0 to 9.0 and need 525.
    """
    if machine.system == "Darwin":
        if machine.arch != "aarch64":
            raise SetupError(
                "there is no torch 2.7 or newer for Macs with Intel processors",
                "use a Mac with Apple silicon, Linux or Windows",
            )
        newest = "torch>=2.7,<2.14"  # 2.13 on macOS 14 and newer, 2.11 before
        return TorchBuild(None, newest, newest, "Apple silicon: the ordinary wheel runs on Metal", "mps")
    if machine.gpus and machine.driver is not None:
        return _choose_cuda(machine, machine.driver)
    if machine.rocm is not None and machine.system == "Linux":
        # AMD was not at hand: tags of PyTorch's index by installed ROCm, newest first
        tags = {(7, 2): "rocm7.2", (7, 0): "rocm7.0", (6, 4): "rocm6.4", (0, 0): "rocm6.3"}
        tag = next(tag for version, tag in tags.items() if machine.rocm >= version)
        found = ".".join(map(str, machine.rocm))
        return TorchBuild(tag, "torch>=2.7,<2.15", TESTED, f"ROCm {found} (not tested)")
    return _cpu(machine, "no GPU found")


def _choose_cuda(machine: Machine, driver: tuple[int, ...]) -> TorchBuild:
    known = [gpu.capability for gpu in machine.gpus if gpu.capability is not None]
    oldest, newest = min(known, default=None), max(known, default=None)
    shown = ".".join(map(str, driver))
    if newest is not None and oldest is not None and newest >= (10, 0):
        oldest = max(oldest, (7, 5))  # no build serves both ends: the newer GPU counts
    names = ", ".join(sorted({gpu.name for gpu in machine.gpus}))
    said = f"{names}, capability {oldest[0]}.{oldest[1]}" if oldest else names
    reason = f"{said}, driver {shown}"
    old = oldest is not None and oldest < (7, 5)
    windows = machine.system == "Windows"  # where the default index has CPU builds only
    if driver[0] >= 580 and not old:
        return TorchBuild("cu130", TESTED, TESTED, reason)
    if driver[0] >= 570 and (newest is None or newest >= (10, 0)):
        return TorchBuild("cu128", "torch>=2.8,<2.12", TESTED if windows else "torch>=2.8,<2.11", reason)
    if newest is not None and newest >= (10, 0):
        return _cpu(machine, f"{reason}: this GPU needs driver 570 or newer, update it and run this again")
    if machine.arch != "x86_64":
        return _cpu(
            machine, f"{reason}: this processor needs driver 580 or newer, update it and run this again"
        )
    if driver[0] >= 525:
        default = "torch>=2.7,<2.8" if old else "torch>=2.8,<2.11"
        return TorchBuild("cu126", TESTED, TESTED if windows else default, reason)
    return _cpu(machine, f"{reason}: torch needs driver 525 or newer, update it and run this again")


def _cpu(machine: Machine, reason: str) -> TorchBuild:
    # the default index has the small CPU wheel on Windows only; on Linux it brings CUDA, some gigabytes
    return TorchBuild("cpu", TESTED, TESTED, reason, "cpu")


def detect() -> Machine:
    """This machine. Takes the driver's word for GPUs, from `nvidia-smi` or its library."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    gpus, driver = ask_nvidia_smi() or ask_nvml() or ((), None)
    return Machine(platform.system(), arch, gpus, driver, installed_rocm())


def ask_nvidia_smi() -> tuple[tuple[Gpu, ...], tuple[int, ...]] | None:
    windows = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
    for place in (
        shutil.which("nvidia-smi"),
        "/usr/lib/wsl/lib/nvidia-smi",
        windows / "System32" / "nvidia-smi.exe",
        Path(
            os.environ.get("PROGRAMFILES", r"C:\Program Files"),
            "NVIDIA Corporation",
            "NVSMI",
            "nvidia-smi.exe",
        ),
    ):
        if place is None or not Path(place).is_file():
            continue
        query = "--query-gpu=name,compute_cap,driver_version"
        try:
            answer = run(place, query, "--format=csv,noheader", timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = parse_nvidia_smi(answer.stdout) if answer.returncode == 0 else None
        if found is not None:
            return found
    return None


def parse_nvidia_smi(text: str) -> tuple[tuple[Gpu, ...], tuple[int, ...]] | None:
    """Lines of `name, compute_cap, driver_version`; None when there is no GPU in them."""
    gpus, driver = [], None
    for line in text.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) != 3 or not re.fullmatch(r"\d+(\.\d+)*", fields[2]):
            continue
        capability = re.fullmatch(r"(\d+)\.(\d+)", fields[1])
        gpus.append(Gpu(fields[0], (int(capability[1]), int(capability[2])) if capability else None))
        driver = tuple(map(int, fields[2].split(".")))
    return (tuple(gpus), driver) if driver else None


def ask_nvml() -> tuple[tuple[Gpu, ...], tuple[int, ...]] | None:
    """The same facts from the driver's library, where `nvidia-smi` is not on the path."""
    for name in ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1", "nvml.dll"):
        try:
            nvml = ctypes.CDLL(name)
        except OSError:
            continue
        if nvml.nvmlInit_v2() != 0:
            continue
        text = ctypes.create_string_buffer(96)
        nvml.nvmlSystemGetDriverVersion(text, 96)
        driver = tuple(map(int, re.findall(r"\d+", text.value.decode())))
        count, gpus = ctypes.c_uint(), []
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
                continue
            nvml.nvmlDeviceGetName(handle, text, 96)
            failed = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
            gpus.append(Gpu(text.value.decode(), None if failed else (major.value, minor.value)))
        nvml.nvmlShutdown()
        if driver and gpus:
            return tuple(gpus), driver
    return None


def installed_rocm() -> tuple[int, int] | None:
    if not Path("/dev/kfd").exists():  # the kernel driver's device
        return None
    try:
        numbers = re.findall(r"\d+", Path("/opt/rocm/.info/version").read_text())
    except OSError:
        return (0, 0)
    return int(numbers[0]), int(numbers[1])


def check_python(version: tuple[int, int], bits: int = 64, where: str = "this is") -> None:
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON or bits != 64:
        raise SetupError(
            f"{where} Python {version[0]}.{version[1]} ({bits} bit); 3.10 to 3.13 (64 bit) is needed",
            "install Python 3.12 and run `python3.12 install.py`; remove an old `.venv` first",
        )


def check_platform(machine: Machine, libc: str) -> None:
    if machine.system == "Linux" and libc != "glibc":
        raise SetupError(
            "torch has wheels for Linux with glibc only, this one has another C library",
            "use Debian, Ubuntu, Fedora or another distribution with glibc",
        )


def reachable(url: str) -> bool:
    """Whether the server answers soon. A proxy from the environment is used, as pip does."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):
            return True
    except OSError:  # URLError is one
        return False


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(venv: Path) -> None:
    """Create the environment, or accept one that works; a broken one is replaced, other folders are not."""
    python = venv_python(venv)
    if python.exists():
        answer = run(python, "-c", "import sys; print(*sys.version_info[:2])")
        if answer.returncode == 0:
            major, minor = map(int, answer.stdout.split())
            check_python((major, minor), where=f"`{venv}` has")
            if run(python, "-m", "pip", "-V").returncode != 0:
                run(python, "-m", "ensurepip")
            return
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        raise SetupError(
            f"`{venv}` exists and is no Python environment", "move it away, or pass `--venv PATH`"
        )
    say(f"creating {venv}")
    made = run(sys.executable, "-m", "venv", "--clear", venv)
    if made.returncode == 0:
        return
    said = (made.stdout + made.stderr).strip()
    if "ensurepip" in said or "No module named venv" in said:
        raise SetupError(
            "this Python cannot make environments: its venv module is missing",
            "install it, on Debian and Ubuntu with `sudo apt install python3-venv`",
        )
    raise SetupError(
        f"could not create `{venv}`: {said.splitlines()[-1] if said else 'no reason given'}",
        "check the folder's permissions and the free space, or pass `--venv PATH`",
    )


def run(*command: object, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in silence and return what it said."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout)


def free_gigabytes(path: Path) -> float:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e9


def pip(venv: Path, *arguments: str) -> bool:
    """Run `pip install`: on a terminal with its progress, elsewhere in silence unless it fails."""
    command = [str(venv_python(venv)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["install", "--no-compile", *arguments]
    if sys.stderr.isatty():
        return subprocess.run(command, check=False, stdout=sys.stderr, cwd=ROOT).returncode == 0
    answer = subprocess.run(
        command, check=False, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if answer.returncode != 0:
        print(*answer.stdout.splitlines()[-20:], sep="\n", file=sys.stderr)
    return answer.returncode == 0


def pip_or_explain(venv: Path, *arguments: str) -> None:
    if pip(venv, *arguments):
        return
    if free_gigabytes(venv) < 0.5:
        raise SetupError(
            "there is no space left on the disk", f"free some space for `{venv}`, then run this again"
        )
    if not reachable("https://pypi.org/simple/pip/"):
        raise SetupError(
            "pip could not install, and the package index cannot be reached",
            "check the network, or name a proxy (HTTPS_PROXY) or a mirror (`pip config`)",
        )
    raise SetupError("pip could not install; it says why above", "fix that, then run this again")


def probe_torch(venv: Path, device: str) -> dict[str, object]:
    """Import torch and run a real kernel on `device`; `is_available()` alone proves nothing."""
    answer = run(venv_python(venv), "-c", PROBE, device)
    lines = answer.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {"error": f"Python ended with {answer.returncode}"}


def is_good(facts: dict[str, object]) -> bool:
    """Whether the torch that `probe_torch` found can stay."""
    version = tuple(map(int, re.findall(r"\d+", str(facts.get("version", "0")))[:2]))
    return bool(facts.get("works")) and OLDEST_TORCH <= version < FIRST_UNTRIED_TORCH


def install_torch(venv: Path, build: TorchBuild) -> dict[str, object]:
    """Install the build unless a torch that works is there. Returns what `probe_torch` found."""
    facts = probe_torch(venv, build.device)
    if is_good(facts):
        return facts
    needed = GIGABYTES["gpu" if build.device == "cuda" else "cpu"]
    free = free_gigabytes(venv)
    if free < needed:
        raise SetupError(
            f"an installation takes about {needed} GB, `{venv.parent}` has {free:.1f} GB free",
            "free some space, or pass `--venv PATH` on another disk",
        )
    if "version" in facts:  # pip would take any build of the same version for this one
        say(f"replacing torch {facts['version']}: {facts.get('error', 'not a version that was tested')}")
        run(venv_python(venv), "-m", "pip", "uninstall", "-y", "torch")
    done = False
    if build.index is not None:
        if reachable(f"{build.index}/torch/"):
            say(f"installing {build.requirement} from {build.index}")
            done = pip(venv, build.requirement, "--index-url", build.index)
        else:
            say(f"{build.index} cannot be reached, using the default package index")
    if not done:
        if build.device == "cpu" and platform.system() == "Linux" and build.index is not None:
            say("note: the default index may bring a torch with CUDA, some gigabytes; it runs on a CPU too")
        say(f"installing {build.fallback}")
        pip_or_explain(venv, build.fallback)
    facts = probe_torch(venv, build.device)
    if not is_good(facts):
        raise SetupError(
            f"torch does not run on `{build.device}`: {facts.get('error', facts)}",
            "update the GPU driver and run this again, or pass `--cpu`",
        )
    return facts


def install_project(venv: Path, extras: list[str], torch: str) -> None:
    """The project, editable, without touching torch."""
    what = f".[{','.join(extras)}]" if extras else "."
    say(f"installing trellis: {what}")
    pip_or_explain(venv, "-e", what, "-c", str(write_constraints(venv, torch)))


def write_constraints(venv: Path, torch: str) -> Path:
    """Hold torch, and the Triton that belongs to it, where they are.

    Only the public version: torch calls itself `2.13.0+cu130` where its package is called `2.13.0`.
    """
    public = torch.partition("+")[0]
    path = venv / "constraints.txt"
    path.write_text(f"torch=={public}\ntriton-windows=={TRITON_OF_TORCH[int(public.split('.')[1])]}.*\n")
    return path


def install_adapter(venv: Path, name: str, torch: str, device: str) -> None:
    if device != "cuda":
        raise SetupError(f"`{name}` needs a GPU, this torch runs on `{device}`", "leave out `--with`")
    if name == "flash-attn" and shutil.which("nvcc") is None:
        raise SetupError(
            "`flash-attn` is compiled on this machine, which needs the CUDA toolkit (`nvcc`)",
            "leave it out: torch's own attention is used instead",
        )
    say(f"installing {name}")
    pip_or_explain(venv, *ADAPTERS[name], "-c", str(write_constraints(venv, torch)))


def signature(machine: Machine, venv: Path) -> str:
    """Changes when anything that an installation depends on changes."""
    parts = [repr(machine), sys.version, str(ROOT), str(venv)]
    parts += [(ROOT / name).read_text(encoding="utf-8") for name in ("install.py", "pyproject.toml")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_stamp(venv: Path) -> dict[str, object]:
    try:
        return dict(json.loads((venv / STAMP).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def set_up(options: argparse.Namespace) -> None:
    check_python(sys.version_info[:2], 64 if sys.maxsize > 2**32 else 32)
    machine, venv = detect(), options.venv.resolve()
    check_platform(machine, platform.libc_ver()[0])
    build = _cpu(machine, "asked for") if options.cpu else choose_torch(machine)
    stamp = read_stamp(venv)
    mark = signature(machine, venv) + (" cpu" if options.cpu else "")
    current = stamp.get("signature") == mark and venv_python(venv).exists()
    done = set(map(str, stamp.get("done", []))) if current else set()  # type: ignore[call-overload]
    wanted = {"torch"} if options.torch_only else {"torch", "project", *options.extras}
    wanted |= {f"with {name}" for name in options.adapters}
    if options.dry_run:
        print_plan(machine, build, venv, sorted(wanted - done))
        return
    if wanted <= done:
        return
    started = time.monotonic()
    say(f"{build.reason}: {build.requirement} for {build.device}")
    make_venv(venv)
    facts = install_torch(venv, build)
    (venv / STAMP).write_text(json.dumps({"signature": "unfinished", "done": []}))
    if not options.torch_only:
        extras = sorted(set(options.extras) | {x for x in done if x in known_extras()})
        install_project(venv, extras, str(facts["version"]))
        done |= {"project", *extras}
    for name in options.adapters:
        install_adapter(venv, name, str(facts["version"]), build.device)
    facts = probe_torch(venv, build.device)
    if not is_good(facts):
        raise SetupError(
            f"torch stopped working: {facts.get('error', facts)}", f"remove `{venv}` and run this again"
        )
    done |= wanted
    (venv / STAMP).write_text(json.dumps({"signature": mark, "done": sorted(done)}))
    say(f"torch {facts['version']} runs on {facts['device']}; ready after {time.monotonic() - started:.0f} s")


def known_extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([a-z]+) = ", section, re.MULTILINE))


def print_plan(machine: Machine, build: TorchBuild, venv: Path, steps: list[str]) -> None:
    gpus = ", ".join(gpu.name for gpu in machine.gpus) or "none"
    print(f"machine   {machine.system} {machine.arch}, Python {platform.python_version()}, GPU: {gpus}")
    print(f"torch     {build.requirement} from {build.index or 'the default index'} ({build.reason})")
    print(f"otherwise {build.fallback} from the default index")
    print(f"place     {venv}")
    print(f"to do     {', '.join(steps) or 'nothing'}")


def say(text: str) -> None:
    print(f"install: {text}", file=sys.stderr, flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Set this repository up in a virtual environment.")
    parser.add_argument(
        "--extras", default="image", help="comma-separated extras of pyproject.toml [default: image]"
    )
    parser.add_argument(
        "--with",
        dest="adapters",
        action="append",
        default=[],
        choices=sorted(ADAPTERS),
        help="kernel package",
    )
    parser.add_argument("--torch-only", action="store_true", help="install torch and nothing else")
    parser.add_argument("--cpu", action="store_true", help="install the CPU build even if there is a GPU")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment [default: .venv]")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    options = parser.parse_args(argv)
    options.extras = [extra.strip() for extra in options.extras.split(",") if extra.strip()]
    unknown = set(options.extras) - known_extras()
    if unknown:
        parser.error(f"unknown extra {sorted(unknown)[0]!r}, choose from {', '.join(sorted(known_extras()))}")
    return options


def main(argv: list[str] | None = None) -> int:
    try:
        set_up(arguments(argv))
    except SetupError as error:
        print(f"error: {error}\n\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run this again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
