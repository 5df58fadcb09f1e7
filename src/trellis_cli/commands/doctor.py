"""`trellis doctor`: look at this machine, say what is wrong and the command that fixes it.

Each check is a function that yields findings. `--quick` leaves out what needs torch.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import options as o
from trellis_cli import registry, released
from trellis_cli.commands import models
from trellis_cli.console import Console
from trellis_core.errors import ModelError, TrellisError
from trellis_core.memory.devices import (
    DeviceInfo,
    carries_code_for,
    describe_device,
    describe_processor,
    detect_devices,
    select_device,
    try_kernel,
)

if TYPE_CHECKING:
    from trellis_core.memory.budget import MemoryPlan

app = typer.Typer()

GIB = 1 << 30
OK, WARNING, PROBLEM = "ok", "warning", "problem"
SETUP = "python install.py"
REINSTALL = "git checkout -- trellis2/_embedded, or install the package again"
NEEDED_MEMORY, NEEDED_DISK = 3 * GIB, 2 * GIB
OLDEST_DRIVER = 525
PLACEHOLDERS = ("cumesh", "drtk", "kaolin")  # names on the package index that are not the real projects
PLACEHOLDER_BYTES = 100_000  # the real ones are thousands of times larger
ONLY = "default"  # the pipeline type of models that have one
TESTED_TORCH = ((2, 7), (2, 15))
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="Look at these models or folders, too.", show_default=False),
]
Fix = Annotated[
    bool,
    typer.Option("--fix", help="Repair what can be repaired: a `pipeline.json` that was edited wrongly."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Leave out everything that needs torch.")]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `fix` is the command, or the act, that helps."""

    check: str
    status: str
    text: str
    fix: str = ""


Findings = Iterator[Finding]


@app.command()
def doctor(
    ctx: typer.Context,
    names: Names = None,
    fix: Fix = False,
    quick: Quick = False,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Check this machine and say what to fix. Exit code 1 when something is broken."""
    console: Console = ctx.obj
    for name in names or ():
        registry.find_model(name)
    findings, facts = run_doctor(quick=quick, more=names or (), fix=fix)
    console.facts.update(facts)
    console.facts["checks"] = [asdict(finding) for finding in findings]
    console.result(report(findings))
    if any(finding.status == PROBLEM for finding in findings):
        raise typer.Exit(1)


def run_doctor(
    *, quick: bool = False, more: Sequence[str] = (), fix: bool = False
) -> tuple[list[Finding], dict[str, Any]]:
    """All findings in the order of the report, and the facts behind them for scripts.

    `more` are models and folders beside the named ones; with `fix` what can be repaired is.
    """
    names = list(dict.fromkeys([*registry.MODELS, *more]))
    devices = detect_devices()
    facts: dict[str, Any] = {"devices": [describe(device) for device in devices]}
    findings = [*check_system(), *check_gpus(devices), *check_packages(devices), *check_placeholders()]
    if not quick:
        findings += [*check_torch(devices, facts), *check_kernels(facts), *check_plans(facts, names)]
    findings += [*check_pipelines(names, facts, fix=fix), *check_models(facts, names)]
    return [*findings, *check_space()], facts


def report(findings: list[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        mark = "" if finding.status == OK else f"{finding.status}: "
        lines.append(f"{finding.check:<14}{mark}{finding.text}")
        if finding.fix:
            lines.append(f"{'':<14}fix: {finding.fix}")
    broken = sum(finding.status == PROBLEM for finding in findings)
    warned = sum(finding.status == WARNING for finding in findings)
    lines.append(
        f"{broken} problem(s), {warned} warning(s)" if broken or warned else "everything is as it should be"
    )
    return lines


def check_system() -> Findings:
    yield Finding("trellis", OK, f"{metadata.version('trellis-cli')}, {Path(__file__).parents[2]}")
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}, {sys.executable}")


def check_gpus(devices: tuple[DeviceInfo, ...]) -> Findings:
    gpus = [device for device in devices if device.kind != "cpu"]
    if not gpus and nvidia_hardware():
        yield Finding(
            "gpu",
            PROBLEM,
            "an NVIDIA GPU is built in, but its driver does not answer",
            "install or repair the NVIDIA driver (580 or newer), then restart",
        )
    elif not gpus:
        yield Finding("gpu", OK, "none found: everything runs on the CPU")
    for gpu in gpus:
        capability = (
            f", {gpu.architecture}, compute capability {_dotted(gpu.capability)}" if gpu.capability else ""
        )
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        memory = f"{gpu.free_memory / GIB:.1f} of {gpu.total_memory / GIB:.1f} GiB free"
        yield Finding("gpu", OK, f"{gpu.name}{capability}{driver}, {memory}")
        if gpu.driver and _numbers(gpu.driver)[0] < OLDEST_DRIVER:
            yield Finding(
                "driver",
                PROBLEM,
                f"driver {gpu.driver} is too old for torch and Warp",
                f"install NVIDIA driver 580 or newer ({OLDEST_DRIVER} at least), then `{SETUP}`",
            )


def check_packages(devices: tuple[DeviceInfo, ...]) -> Findings:
    """What the project requires and is not installed, and versions that do not fit the driver."""
    missing = [name for name in required_packages() if not _version(name)]
    if missing:
        yield Finding("packages", PROBLEM, f"not installed: {', '.join(missing)}", f"{SETUP}")
    else:
        yield Finding("packages", OK, "everything that is required is installed")
    if not _version("opencv-python-headless") and not _version("opencv-python"):
        yield Finding(
            "background",
            WARNING,
            "OpenCV is missing: backgrounds are removed by a threshold only",
            f"{SETUP} --extras image",
        )
    drivers = [_numbers(device.driver)[0] for device in devices if device.driver]
    warp = _version("warp-lang")
    if warp and _numbers(warp) >= (1, 18) and min(drivers, default=580) < 580:
        yield Finding(
            "warp",
            PROBLEM,
            f"Warp {warp} needs driver 580, this machine has {min(drivers)}",
            "pip install 'warp-lang<1.18'",
        )


def check_placeholders() -> Findings:
    for name in PLACEHOLDERS:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        size = sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
        if size < PLACEHOLDER_BYTES:
            yield Finding(
                "packages",
                WARNING,
                f"`{name}` {_version(name)} from the package index is an empty placeholder, "
                f"not the project of that name",
                f"pip uninstall -y {name}",
            )


def check_torch(devices: tuple[DeviceInfo, ...], facts: dict[str, Any]) -> Findings:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", PROBLEM, f"cannot be imported: {error}", SETUP)
        return
    archs = torch.cuda.get_arch_list() if torch.version.cuda else []
    facts["torch"] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "arch_list": archs,
    }
    version = _numbers(torch.__version__)[:2]
    if not TESTED_TORCH[0] <= version < TESTED_TORCH[1]:
        yield Finding("torch", WARNING, f"{torch.__version__} was not tested, 2.7 to 2.14 were", SETUP)
    nvidia = [device for device in devices if device.kind == "cuda"]
    new_enough = [gpu for gpu in nvidia if gpu.driver and _numbers(gpu.driver)[0] >= OLDEST_DRIVER]
    if new_enough and not torch.version.cuda:
        yield Finding(
            "torch", PROBLEM, f"{torch.__version__} is built for the CPU, but there is a GPU", SETUP
        )
    for gpu in nvidia if torch.version.cuda else ():
        if gpu.capability and not carries_code_for(archs, gpu.capability):
            yield Finding(
                "torch",
                PROBLEM,
                f"{torch.__version__} carries no code for {gpu.name} "
                f"(compute capability {_dotted(gpu.capability)}), only for {', '.join(archs)}",
                SETUP,
            )
    device = select_device()
    facts["device"] = str(device)
    for kind in {"cuda"} if torch.cuda.is_available() else set():
        problem = try_kernel(kind)
        if problem:
            yield Finding("torch", PROBLEM, f"a kernel on `{kind}` failed: {problem}", SETUP)
    yield Finding("torch", OK, f"{torch.__version__} runs on `{device}`, {torch.get_num_threads()} threads")


def check_kernels(facts: dict[str, Any]) -> Findings:
    from trellis_core.kernels.table import resolve_kernels

    try:
        kernels = resolve_kernels(describe_device(facts.get("device", "cpu")))
    except TrellisError as error:
        yield Finding("kernels", PROBLEM, error.message, error.hint or SETUP)
        return
    facts["kernels"] = {
        op: {"backend": name, "why": kernels.reasons[op]} for op, name in kernels.choices.items()
    }
    for op, name in kernels.choices.items():
        yield Finding("kernel", OK, f"{op}: {name} ({kernels.reasons[op]})")


def check_plans(facts: dict[str, Any], names: Sequence[str] = tuple(registry.MODELS)) -> Findings:
    """Tier and memory plan of every model, also of those that are not here yet."""
    from trellis_core.memory.budget import VRAMManager

    device = describe_device(facts.get("device", "cpu"))
    facts["tier"] = VRAMManager(device).tier
    facts["plans"] = {}
    for name in names:
        try:
            plans = plans_of(name, device)
        except TrellisError:
            continue  # told by check_models
        facts["plans"][name] = {kind: plan.as_dict() for kind, plan in plans.items()}
        for kind, plan in plans.items():
            which = "" if kind == ONLY else f" {kind}"
            yield Finding("plan", OK, f"{name}{which}: {plan.describe()}")


def plans_of(name: str, device: DeviceInfo) -> dict[str, MemoryPlan]:
    """Pipeline type -> memory plan, one of a TRELLIS v1 model. Raises `ModelError` for a damaged model."""
    from trellis_core.memory.budget import MemoryRequest, VRAMManager
    from trellis_core.memory.cost import describe_networks

    status = models.status_of(name)
    folder = released.configuration_folder(name) if status.state != "ready" else status.folder
    if folder is not None and registry.version_of(folder) == registry.V1:
        if status.folder is folder:
            return {ONLY: registry.plan_for(folder, device, MemoryRequest())}
        from trellis import costs
        from trellis.settings import read_settings as read_v1

        size = read_v1(folder / registry.hub.PIPELINE).image_size
        networks = costs.describe_networks(released.released_networks(name), size)
        return {ONLY: VRAMManager(device).plan(networks)}
    if status.state == "ready" and status.folder is not None:
        from trellis2.settings import read_settings

        types = read_settings(status.folder / registry.hub.PIPELINE).pipeline_types
        return {kind: registry.plan_for(status.folder, device, MemoryRequest(), kind) for kind in types}
    described = released.released_networks(name)
    runs: Mapping[str, tuple[int, int]] = {
        "512": (512, 512),
        "1024_cascade": (1024, 1024),
        "1536_cascade": (1536, 1024),
    }
    return {
        kind: VRAMManager(device).plan(describe_networks(described, resolution=resolution, image_size=side))
        for kind, (resolution, side) in runs.items()
        if described
    }


def check_pipelines(names: Sequence[str], facts: dict[str, Any], *, fix: bool) -> Findings:
    """Whether a `pipeline.json` was edited as some documents advise, which cannot work (`trellis.repair`)."""
    from trellis.repair import repair_pipeline

    for name in names:
        path = misdirected(name)
        if path is None:
            continue
        if fix:
            right = repair_pipeline(path)
            facts.setdefault("repaired", []).append(str(path))
            yield Finding("repaired", OK, f"{name}: the latent flow in `{path}` is `{right}` again")
            continue
        yield Finding(
            "pipeline",
            PROBLEM,
            f"{name}: `{path}` names the structure flow as its latent flow, an advice that circulates and "
            "cannot work: the two predict different things on different grids",
            "trellis doctor --fix" if name in registry.MODELS else f"trellis doctor --fix {name}",
        )


def misdirected(name: str) -> Path | None:
    """The `pipeline.json` of a model if it was edited so; None where it is fine, not here or damaged."""
    try:
        folder = registry.find_model(name).folder
        return folder / registry.hub.PIPELINE if registry.is_misdirected(folder) else None
    except ModelError:
        return None


def check_models(facts: dict[str, Any], names: Sequence[str] = tuple(registry.MODELS)) -> Findings:
    """What is here and whether it is whole. Hashes of gigabytes are left to `trellis models verify`."""
    ready = 0
    facts["models"] = []
    for name in names:
        try:
            status = models.status_of(name)
            problems = [] if status.state == "absent" else models.verify_model(name, thorough=False)
        except TrellisError as error:
            facts["models"].append({"name": name, "state": "damaged", "problems": [error.message]})
            if misdirected(name) is None:  # told by check_pipelines
                yield Finding("model", PROBLEM, f"{name}: {error.message}", again(name))
            continue
        facts["models"].append({**models.describe(status), "problems": problems})
        if status.state == "absent" and name == registry.hub.EMBEDDED:
            yield Finding("model", PROBLEM, f"{name}: missing from the package", REINSTALL)
        elif status.state == "absent":
            size = f" ({status.bytes / 1e9:.1f} GB)" if status.bytes else ""
            yield Finding("model", OK, f"{name}: not here{size}; `trellis models pull {name}` gets it")
        elif problems:
            yield Finding("model", PROBLEM, f"{name}: {problems[0]}", again(name))
        else:
            ready += 1
            yield Finding("model", OK, f"{name}: ready, {status.bytes / 1e9:.2f} GB, {status.folder}")
    if not ready:
        yield Finding("model", PROBLEM, "no model can be used", REINSTALL)


def again(name: str) -> str:
    """How a damaged model becomes whole."""
    return "copy the model's folder again" if Path(name).is_dir() else f"trellis models pull {name}"


def check_space() -> Findings:
    processor = describe_processor()
    free, total = processor.free_memory, processor.total_memory
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, {processor.name}"
    if free < NEEDED_MEMORY:
        yield Finding("memory", WARNING, f"{text}: a run takes up to 3 GiB", "close other programs")
    else:
        yield Finding("memory", OK, text)
    folder = cache_folder()
    space = shutil.disk_usage(folder).free
    text = f"{space / GIB:.1f} GiB free at {folder}"
    if space < NEEDED_DISK:
        yield Finding("disk", WARNING, text, "free some space, or set HF_HOME to a folder on another disk")
    else:
        yield Finding("disk", OK, text)


def cache_folder() -> Path:
    """The part that exists of the folder where downloaded models lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.is_dir():
        folder = folder.parent
    return folder


def nvidia_hardware() -> bool:
    """Whether the PCI bus of a Linux machine has an NVIDIA display or 3D controller."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def required_packages() -> list[str]:
    """Names that the project requires on every platform; those with a condition are left out."""
    requirements = metadata.requires("trellis-cli") or []
    plain = [requirement for requirement in requirements if ";" not in requirement]
    return sorted(requirement[: _end_of_name(requirement)] for requirement in plain)


def describe(device: DeviceInfo) -> dict[str, Any]:
    return {**asdict(device), "architecture": device.architecture}


def _end_of_name(requirement: str) -> int:
    return next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit()) or (0,)


def _dotted(capability: tuple[int, int] | None) -> str:
    return ".".join(map(str, capability or ()))
