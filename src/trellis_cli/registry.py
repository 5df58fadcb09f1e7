"""The models by name, and how one becomes an engine here. The only module that knows model versions.

    --model NAME -> find_model or choose_model -> Found -> load_engine -> an engine

An engine is a `trellis.pipeline.Pipeline` or a `trellis2.pipeline.Pipeline`; a model's `pipeline.json` says
which. Finding a model imports no torch; nothing here downloads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis.places import find_checkpoint, find_renamed
from trellis.settings import LATENT_FLOW, misdirected, read_settings
from trellis.weights import canonical
from trellis_cli.console import Console
from trellis_cli.options import Precision, Tier, parse_kernels
from trellis_core.errors import ModelError, UsageError
from trellis_core.weights import hub

if TYPE_CHECKING:
    import torch

    from trellis_core.kernels.table import Kernels
    from trellis_core.memory.budget import MemoryPlan, MemoryRequest
    from trellis_core.memory.devices import DeviceInfo
    from trellis_core.runtime import Runtime
    from trellis_core.weights.bundle import Bundle

AUTO = "auto"
V1, V2 = "trellis", "trellis2"  # versions, by the names of their packages
Fits = Callable[[str, str], None]  # version, name of a model: raises `UsageError` when options rule it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that has a name here."""

    summary: str
    licence: str
    repository: str | None = None  # on the hub; None travels in the package
    version: str = V2
    needs_gpu: bool = False  # `--model auto` takes it on a GPU only
    text: bool = False  # it takes prompts
    pictures: bool = True  # it takes pictures


MODELS: Mapping[str, Model] = {  # best first: the order of `--model auto`
    "trellis2-4b": Model(
        summary="TRELLIS.2, 4 billion parameters: 512 to 1536 voxels, PBR materials",
        licence="MIT",
        repository="microsoft/TRELLIS.2-4B",
        needs_gpu=True,
    ),
    "image-large": Model(
        summary="TRELLIS v1, pictures, 1.2 billion parameters: meshes, Gaussians, radiance fields",
        licence="MIT",
        repository="microsoft/TRELLIS-image-large",
        version=V1,
        needs_gpu=True,
    ),
    "text-xlarge": Model(
        summary="TRELLIS v1, any English prompt, 2 billion parameters: the same",
        licence="MIT",
        repository="microsoft/TRELLIS-text-xlarge",
        version=V1,
        needs_gpu=True,
        text=True,
        pictures=False,
    ),
    "text-large": Model(
        summary="TRELLIS v1, any English prompt, 1.1 billion parameters: the same",
        licence="MIT",
        repository="microsoft/TRELLIS-text-large",
        version=V1,
        needs_gpu=True,
        text=True,
        pictures=False,
    ),
    "text-base": Model(
        summary="TRELLIS v1, any English prompt, 0.3 billion parameters: the same",
        licence="MIT",
        repository="microsoft/TRELLIS-text-base",
        version=V1,
        needs_gpu=True,
        text=True,
        pictures=False,
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
    wanted = name if Path(name).exists() else canonical(name)
    folder = find_renamed(repositories.get(wanted, wanted))
    if folder is None:
        folder = hub.find_model(wanted, embedded=embedded_folder(), repositories=repositories)
    return Found(wanted, folder, "asked for")


def missing_checkpoints(folder: Path) -> list[str]:
    """The checkpoints that a model's `pipeline.json` names and this machine does not have."""
    return [reference for reference in references(folder).values() if checkpoint(reference, folder) is None]


def checkpoint(reference: str, folder: Path) -> Path | None:
    """The stem of a checkpoint's files, of the model in `folder`; None when they are not here."""
    try:
        return find_checkpoint(reference, folder)
    except ModelError:
        return None


def references(folder: Path) -> dict[str, str]:
    """Network name -> checkpoint as written in `pipeline.json`, the encoders among them."""
    if version_of(folder) == V1:
        return read_settings(folder / hub.PIPELINE).references
    args = pipeline_args(folder)
    try:
        encoder = args["image_cond_model"]["args"]
        found = {**args["models"], "image_encoder": encoder.get("model_name") or encoder["model"]}
        if "text_cond_model" in args:
            found["text_encoder"] = args["text_cond_model"]["args"]["model"]
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"`{folder / hub.PIPELINE}` lacks or misspells an entry: {error}", hint="download the model again"
        ) from error


def version_of(folder: Path) -> str:
    """Which version of TRELLIS the model in `folder` is: `V1` or `V2`. Raises `ModelError` for neither."""
    args = pipeline_args(folder)
    models = args.get("models")
    if not isinstance(models, dict):
        raise ModelError(
            f"`{folder / hub.PIPELINE}` is no pipeline of TRELLIS: it lists no models",
            hint="give a folder that holds `pipeline.json` and `ckpts/` in the released layout",
        )
    return V1 if LATENT_FLOW in models or "slat_normalization" in args else V2


def is_misdirected(folder: Path) -> bool:
    """Whether a model's `pipeline.json` was edited by the advice that `trellis.repair` undoes."""
    return version_of(folder) == V1 and misdirected(pipeline_args(folder)["models"])


def pipeline_args(folder: Path) -> Mapping[str, Any]:
    """The `args` of a model's `pipeline.json`."""
    path = folder / hub.PIPELINE
    try:
        args = json.loads(path.read_text(encoding="utf-8"))["args"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="download the model again") from error
    return args if isinstance(args, dict) else {}


def has_text(folder: Path) -> bool:
    """Whether a model takes prompts."""
    return "text_encoder" in references(folder)


def has_pictures(folder: Path) -> bool:
    """Whether a model takes pictures."""
    return "image_encoder" in references(folder)


def require_text(found: Found) -> None:
    """`UsageError` for a model without text encoder, naming those here that have one."""
    if has_text(found.folder):
        return
    others = _named(name for name in MODELS if is_here(name) and has_text(find_model(name).folder))
    raise UsageError(
        f"the model `{found.name}` takes pictures only: it has no text encoder",
        hint=f"{others}start from a picture with `trellis generate`",
    )


def require_pictures(found: Found) -> None:
    """`UsageError` for a model without picture encoder, naming those here that have one."""
    if has_pictures(found.folder):
        return
    others = _named(name for name in MODELS if is_here(name) and has_pictures(find_model(name).folder))
    raise UsageError(
        f"the model `{found.name}` takes prompts only: it has no picture encoder",
        hint=f"{others}start from words with `trellis text`",
    )


def _named(models: Iterable[str]) -> str:
    options = " or ".join(f"`--model {name}`" for name in models)
    return f"pass {options}, or " if options else ""


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
    pictures: bool = False,  # it must take pictures
    fits: Fits | None = None,
) -> Any:  # an engine
    """Choose device, model, kernels and memory plan, say what was chosen, and load the model.

    A model that was asked for and is not here is a `ModelError` before torch is imported, one that does not
    take or make what is wanted a `UsageError`; `auto` takes the best model of MODELS that is present and
    fits.
    """
    found = None if model == AUTO else find_model(model)
    if found is not None:
        if fits is not None:
            fits(version_of(found.folder), found.name)
        if text:
            require_text(found)
        if pictures:
            require_pictures(found)

    from trellis_core.memory.budget import MemoryRequest
    from trellis_core.runtime import Runtime

    device, info, kernels = open_device(machine)
    request = MemoryRequest(tier=machine.tier, precision=machine.precision, num_samples=num_samples)
    if found is None:
        found = choose_model(info, request, text=text, fits=fits)
    plan = plan_for(found.folder, info, request, pipeline_type)

    console.say("model", f"{found.name}, {found.reason}")
    console.say("device", f"{info.name or device}; {plan.describe()}")
    console.facts["model"] = {
        "name": found.name,
        "version": version_of(found.folder),
        "folder": str(found.folder),
        "reason": found.reason,
    }
    console.facts["device"] = {
        "name": info.name,
        "device": str(device),
        "kernels": dict(kernels.choices),
    }
    console.facts["plan"] = plan.as_dict()
    if not plan.fits:
        console.warn("the memory plan does not fit this machine; the run may end for lack of memory")
    return open_engine(found, Runtime.of_plan(plan, device, kernels))


def open_engine(found: Found, runtime: Runtime) -> Any:  # an engine
    """The engine of a model that is here. Raises `ModelError` when it is damaged."""
    if version_of(found.folder) == V1:
        import trellis

        return trellis.load(found.name, runtime)
    import trellis2

    return trellis2.load(found.name, runtime)


def version_of_engine(engine: object) -> str:
    """`V1` or `V2`."""
    return type(engine).__module__.partition(".")[0]


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


def load_engine_of(
    bundle: Bundle, model: str, machine: Machine, console: Console, *, fits: Fits | None = None
) -> Any:  # an engine
    """The engine that made `bundle`, or the `model` that was asked for."""
    if model == AUTO:
        model = str(bundle.info.get("model", {}).get("name", ""))
        try:
            find_model(model)
        except ModelError as error:
            raise ModelError(
                f"the bundle was made by the model `{model}`, which was not found",
                hint="pass its folder: `--model PATH`" if model not in MODELS else error.hint,
            ) from error
    return load_engine(model, machine, console, pipeline_type=bundle.info.get("pipeline_type"), fits=fits)


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What the finished file says about its origin."""
    if "shape_latent" in bundle.tensors:
        from trellis2.pipeline import provenance as facts
    else:
        from trellis.pipeline import provenance as facts
    return facts(bundle)


def choose_model(
    device: DeviceInfo, request: MemoryRequest, *, text: bool = False, fits: Fits | None = None
) -> Found:
    """The best model that is complete here and fits, and why the better ones were passed over.

    With `text` only models that take prompts count, otherwise those that take pictures. When none fits, the
    smallest is tried all the same: a memory plan is a prediction.
    """
    passed: list[str] = []
    smallest = None
    for name, model in MODELS.items():
        if not (model.text if text else model.pictures) and not is_here(name):
            continue
        try:
            folder = find_model(name).folder
            problem = _problem(name, model, folder, device, text, fits)
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
        raise ModelError(_nothing(text, fits) + "; ".join(passed), hint=_advice(text, fits))
    return Found(*smallest, "; ".join(["the smallest model here", *passed]))


def _nothing(text: bool, fits: Fits | None) -> str:
    what = "no model that takes text" if text else "no model"
    return f"{what} can be used: " if fits is None else f"{what} can do this: "


def _advice(text: bool, fits: Fits | None) -> str:
    """The command that gets a model which can."""
    for name, model in MODELS.items():
        if (
            model.repository
            and (model.text if text else model.pictures)
            and _rules_out(fits, model, name) is None
        ):
            return f"run `trellis models pull {name}`"
    return "start from a picture with `trellis generate`"


def _rules_out(fits: Fits | None, model: Model, name: str) -> str | None:
    """What options say against a model, or None."""
    if fits is None:
        return None
    try:
        fits(model.version, name)
    except UsageError as error:
        return error.message
    return None


def _problem(
    name: str, model: Model, folder: Path, device: DeviceInfo, text: bool, fits: Fits | None
) -> str | None:
    """Why `auto` does not take a model, or None."""
    ruled_out = _rules_out(fits, model, name)
    if ruled_out is not None:
        return f"is no choice: {ruled_out}"
    if text and not has_text(folder):
        return "takes pictures only"
    if not text and not has_pictures(folder):
        return "takes prompts only"
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
    if version_of(folder) == V1:
        from trellis import loading as v1

        if pipeline_type is not None:
            raise UsageError(
                f"TRELLIS v1 has no pipeline type `{pipeline_type}`",
                hint="leave out `--resolution` and `--pipeline`, or choose a TRELLIS.2 model",
            )
        return v1.plan_for(folder, device, request)
    from trellis2 import loading as v2

    return v2.plan_for(folder, device, request, pipeline_type)
