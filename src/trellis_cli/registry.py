"""The models by name, and how one becomes an engine here. The only module that knows model versions.

    --model NAME -> find_model or choose_model -> Found -> load_engine -> trellis2.Pipeline

Finding a model imports no torch; nothing here downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_cli.console import Console
from trellis_cli.options import Precision, Tier, parse_kernels
from trellis_core.errors import ModelError, UsageError
from trellis_core.weights import hub

if TYPE_CHECKING:
    import torch

    from trellis2.pipeline import Pipeline
    from trellis_core.kernels.table import Kernels
    from trellis_core.memory.budget import MemoryPlan, MemoryRequest
    from trellis_core.memory.devices import DeviceInfo
    from trellis_core.runtime import Runtime
    from trellis_core.weights.bundle import Bundle

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that has a name here."""

    summary: str
    licence: str
    repository: str | None = None  # on the hub; None travels in the package
    needs_gpu: bool = False  # `--model auto` takes it on a GPU only
    text: bool = False  # it takes prompts, too


MODELS: Mapping[str, Model] = {  # best first: the order of `--model auto`
    "trellis2-4b": Model(
        summary="TRELLIS.2, 4 billion parameters: 512 to 1536 voxels, PBR materials",
        licence="MIT",
        repository="microsoft/TRELLIS.2-4B",
        needs_gpu=True,
    ),
    hub.EMBEDDED: Model(
        summary="small model in the package: runs anywhere, simple objects", licence="MIT", text=True
    ),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine."""

    name: str
    folder: Path  # holds pipeline.json
    reason: str  # why this one


def embedded_folder() -> Path:
    """Where the model lies that travels in the package. Imports nothing of it."""
    spec = find_spec("trellis2")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0] if places else "trellis2") / "_embedded"


def find_model(name: str) -> Found:
    """The model called `name`: one of MODELS, a folder, or a cached hub repository `owner/name`.

    Raises `ModelError` with the command that gets it when it is not on this machine.
    """
    repositories = {key: model.repository for key, model in MODELS.items() if model.repository}
    folder = hub.find_model(name, embedded=embedded_folder(), repositories=repositories)
    return Found(name, folder, "asked for")


def missing_checkpoints(folder: Path) -> list[str]:
    """The checkpoints that a model's `pipeline.json` names and this machine does not have."""
    missing = []
    for reference in references(folder).values():
        try:
            hub.find_checkpoint(reference, folder)
        except ModelError:
            missing.append(reference)
    return missing


def references(folder: Path) -> dict[str, str]:
    """Network name -> checkpoint as written in `pipeline.json`, the encoders among them."""
    path = folder / hub.PIPELINE
    try:
        args = json.loads(path.read_text(encoding="utf-8"))["args"]
        encoder = args["image_cond_model"]["args"]
        found = {**args["models"], "image_encoder": encoder.get("model_name") or encoder["model"]}
        if "text_cond_model" in args:
            found["text_encoder"] = args["text_cond_model"]["args"]["model"]
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="download the model again") from error


def has_text(folder: Path) -> bool:
    """Whether a model takes prompts."""
    return "text_encoder" in references(folder)


def require_text(found: Found) -> None:
    """`UsageError` for a model without text encoder, naming those here that have one."""
    if has_text(found.folder):
        return
    others = [name for name in MODELS if is_here(name) and has_text(find_model(name).folder)]
    advice = f"pass {' or '.join(f'`--model {name}`' for name in others)}, or start" if others else "start"
    raise UsageError(
        f"the model `{found.name}` takes pictures only: it has no text encoder",
        hint=f"{advice} from a picture with `trellis generate`",
    )


def is_here(name: str) -> bool:
    try:
        find_model(name)
    except ModelError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was asked for about device, memory and kernels."""

    device: str
    precision: str
    tier: str
    kernels: Mapping[str, str]

    @classmethod
    def of(cls, device: str, precision: Precision, tier: Tier, kernels: list[str] | None) -> Machine:
        name = "cpu" if tier is Tier.cpu and device == AUTO else device
        return cls(device=name, precision=precision.value, tier=tier.value, kernels=parse_kernels(kernels))


def load_engine(
    model: str,
    machine: Machine,
    console: Console,
    *,
    pipeline_type: str | None = None,
    num_samples: int = 1,
    text: bool = False,  # it must take prompts
) -> Pipeline:
    """Choose device, model, kernels and memory plan, say what was chosen, and load the model.

    A model that was asked for and is not here is a `ModelError` before torch is imported; `auto` takes the
    best model of MODELS that is present and fits.
    """
    found = None if model == AUTO else find_model(model)
    if found is not None and text:
        require_text(found)

    import trellis2
    from trellis_core.memory.budget import MemoryRequest
    from trellis_core.runtime import Runtime

    device, info, kernels = open_device(machine)
    request = MemoryRequest(tier=machine.tier, precision=machine.precision, num_samples=num_samples)
    if found is None:
        found = choose_model(info, request, text=text)
    plan = plan_for(found.folder, info, request, pipeline_type)

    console.say("model", f"{found.name}, {found.reason}")
    console.say("device", f"{info.name or device}; {plan.describe()}")
    console.facts["model"] = {"name": found.name, "folder": str(found.folder), "reason": found.reason}
    console.facts["device"] = {
        "name": info.name,
        "device": str(device),
        "kernels": dict(kernels.choices),
    }
    console.facts["plan"] = plan.as_dict()
    if not plan.fits:
        console.warn("the memory plan does not fit this machine; the run may end for lack of memory")
    return trellis2.load(found.name, Runtime.of_plan(plan, device, kernels))


def open_device(machine: Machine) -> tuple[torch.device, DeviceInfo, Kernels]:
    """The device and its kernels. `UsageError` when what was asked for cannot run here."""
    from trellis_core.kernels.table import resolve_kernels
    from trellis_core.memory.devices import describe_device, select_device

    device = select_device(machine.device)
    info = describe_device(device)
    return device, info, resolve_kernels(info, machine.kernels)


def open_runtime(machine: Machine) -> Runtime:
    """A runtime for drawing, without a model."""
    from trellis_core.runtime import Runtime

    device, _, kernels = open_device(machine)
    return Runtime(device=device, kernels=kernels)


def load_engine_of(bundle: Bundle, model: str, machine: Machine, console: Console) -> Pipeline:
    """The engine that made `bundle`, or the `model` that was asked for."""
    if model == AUTO:
        model = str(bundle.info.get("model", {}).get("name", ""))
        try:
            find_model(model)
        except ModelError as error:
            raise ModelError(
                f"the bundle was made by the model `{model}`, which was not found",
                hint="pass its folder: `--model PATH`",
            ) from error
    return load_engine(model, machine, console, pipeline_type=bundle.info.get("pipeline_type"))


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What the finished file says about its origin."""
    from trellis2.pipeline import provenance

    return provenance(bundle)


def choose_model(device: DeviceInfo, request: MemoryRequest, *, text: bool = False) -> Found:
    """The best model that is complete here and fits, and why the better ones were passed over.

    With `text` only models that take prompts count. When none fits, the smallest is tried all the same: a
    memory plan is a prediction.
    """
    passed: list[str] = []
    smallest = None
    for name, model in MODELS.items():
        if text and not model.text and not is_here(name):
            continue
        try:
            folder = find_model(name).folder
            problem = _problem(name, model, folder, device, text)
            plan = plan_for(folder, device, request) if problem is None else None
        except ModelError as error:
            problem = error.message.replace(f"the model `{name}`", "").strip() + f" ({error.hint})"
            plan = None
        if plan is not None:
            smallest = name, folder
            if plan.fits:
                return Found(name, folder, "; ".join(["the best model here that fits", *passed]))
            problem = f"does not fit: it needs {plan.peak / 2**30:.1f} GiB"
        passed.append(f"{name} {problem}")
    if smallest is None:
        what, hint = "no model", "run `trellis models pull trellis2-4b`"
        if text:
            what, hint = "no model that takes text", "start from a picture with `trellis generate`"
        raise ModelError(f"{what} can be used: " + "; ".join(passed), hint=hint)
    return Found(*smallest, "; ".join(["the smallest model here", *passed]))


def _problem(name: str, model: Model, folder: Path, device: DeviceInfo, text: bool) -> str | None:
    """Why `auto` does not take a model, or None."""
    if text and not has_text(folder):
        return "takes pictures only"
    if missing_checkpoints(folder):
        return f"is not complete (run `trellis models pull {name}`)"
    if model.needs_gpu and device.kind == "cpu":
        return f"would take hours without a GPU (`--model {name}` runs it all the same)"
    return None


def plan_for(
    folder: Path, device: DeviceInfo, request: MemoryRequest, pipeline_type: str | None = None
) -> MemoryPlan:
    """The memory plan of the model in `folder` on one device.

    Raises `ModelError` for a damaged or incomplete model and `UsageError` for an unknown pipeline type.
    """
    from trellis2.loading import plan_for

    return plan_for(folder, device, request, pipeline_type)
