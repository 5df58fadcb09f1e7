"""Build a network from `NAME.json` and fill it from `NAME.safetensors`, strictly.

Networks are built on the meta device, so no random numbers are drawn; every tensor of the file must be
wanted and every tensor of the network must be there. Safetensors only: nothing in a file is executed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trellis_core.errors import ModelError
from trellis_core.weights.verify import read_header

# Arguments of released configurations that say nothing about the network: precision, memory saving during
# training, and the `resolution` of some encoder files. They are dropped unless the class asks for them.
DROPPED_ARGUMENTS = ("use_fp16", "dtype", "use_checkpoint", "block_args", "resolution")
# Buffers that follow from the configuration: files may hold them or not.
COMPUTED_BUFFERS = ("rope_phases", "pos_emb", "text_model.embeddings.position_ids")
# What trainers put before the keys of networks that they wrapped or compiled.
WRAPPINGS = ("module.", "_orig_mod.")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_model(
    stem: Path,  # without suffix: `ckpts/ss_flow` means ss_flow.json, ss_flow.safetensors
    classes: Mapping[str, type[nn.Module]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,  # of the torso; None: as configured
    kernels: object = None,  # trellis_core.kernels.table.Kernels
    config: Mapping[str, Any] | None = None,  # instead of reading it from `stem.json`
) -> nn.Module:
    """A network with its weights on `device`, in evaluation mode and without gradients.

    Raises `ModelError` when a file is missing or damaged, the class is unknown, or keys or shapes do not fit.
    """
    config = config or read_config(stem)
    model = build_model(config, classes, source=_beside(stem, ".json"), kernels=kernels)
    set_torso_dtype = getattr(model, "set_torso_dtype", None)
    if set_torso_dtype is not None:
        set_torso_dtype(dtype or configured_dtype(config))
    fill_model(model, _beside(stem, ".safetensors"), device=device)
    return model.eval().requires_grad_(False)


def read_config(stem: Path) -> dict[str, Any]:
    """`{"name": class, "args": {...}}` of a checkpoint."""
    path = _beside(stem, ".json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model configuration `{path}` does not exist", hint=_hint_pull()) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model configuration `{path}` cannot be read: {error}", hint=_hint_pull()
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ModelError(f"`{path}` is not a model configuration: it has no `name`", hint=_hint_pull())
    return {"name": config["name"], "args": dict(config.get("args") or {})}


def build_model(
    config: Mapping[str, Any],
    classes: Mapping[str, type[nn.Module]],
    *,
    source: Path | str = "configuration",
    kernels: object = None,
    device: torch.device | str = "meta",
) -> nn.Module:
    """The network of a configuration, in float32; by default without memory for its weights."""
    name = config["name"]
    if name not in classes:
        raise ModelError(
            f"unknown network `{name}` in `{source}`",
            hint=f"this version knows {', '.join(sorted(classes))}; a newer one may know more",
        )
    arguments = network_arguments(classes[name], config["args"])
    if kernels is not None:
        arguments["kernels"] = kernels
    try:
        with torch.device(device):
            return classes[name](**arguments)
    except TypeError as error:
        raise ModelError(f"`{source}` does not fit `{name}`: {error}") from error


def network_arguments(network: type[nn.Module], args: Mapping[str, Any]) -> dict[str, Any]:
    """The configured arguments without those that say nothing about the network."""
    for level in args.get("block_args") or ():
        if set(level) - {"use_checkpoint"}:
            raise ModelError(f"unknown `block_args` in a model configuration: {', '.join(sorted(level))}")
    accepted = inspect.signature(network).parameters
    return {k: v for k, v in args.items() if k not in DROPPED_ARGUMENTS or k in accepted}


def configured_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The torso dtype that the released configuration asks for."""
    args = config["args"]
    name = args.get("dtype") or ("float16" if args.get("use_fp16") else "float32")
    if name not in DTYPES:
        raise ModelError(
            f"unknown dtype `{name}` in a model configuration", hint=f"known: {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def fill_model(model: nn.Module, path: Path, *, device: torch.device | str = "cpu") -> None:
    """Replace all parameters and buffers of `model` by those in the file, in the dtypes that `model` has.

    The file may store narrower numbers. A model whose published file holds other networks, too, says so in
    `other_tensors`: prefixes of keys that are not its own. Raises `ModelError`; then the model is unchanged.
    """
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored: dict[str, Tensor] = {}
    with _opened(path) as file:
        names = {unwrapped(key): key for key in file.keys()}  # noqa: SIM118
        shapes = {key: tuple(file.get_slice(name).get_shape()) for key, name in names.items()}
        problems = misfits(model, shapes)
        if problems:
            raise ModelError(f"`{path}` does not fit the network: {_first(problems)}", hint=_hint_pull())
        for key in shapes.keys() & model.state_dict().keys():
            stored[key] = file.get_tensor(names[key]).to(device).to(wanted[key].dtype)
    model.load_state_dict(stored, strict=False, assign=True)
    if hasattr(model, "reset_buffers"):  # tables that are computed, not stored
        model.reset_buffers(torch.device(device))  # type: ignore[operator]


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor in a safetensors file, as `fill_model` reads them. Raises `ModelError`."""
    with _opened(path) as file:
        return {unwrapped(key): tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def unwrapped(key: str) -> str:
    """A key without the prefixes that trainers leave."""
    while key.startswith(WRAPPINGS):
        key = key.partition(".")[2]
    return key


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises `ModelError` when it is missing, or damaged anywhere that is read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ModelError(f"weights `{path}` do not exist", hint=_missing_hint(path)) from None
    except (SafetensorError, OSError) as error:
        if isinstance(error, SafetensorError):
            read_header(path)  # knows more: cut off, a pointer, ...
        raise ModelError(f"weights `{path}` are damaged: {error}", hint=_hint_pull()) from error


def misfits(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps a file with these tensors from filling `model`: one sentence per key."""
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing = [key for key in wanted if key not in shapes and key not in COMPUTED_BUFFERS]
    others = tuple(getattr(model, "other_tensors", ()))
    foreign = [
        key
        for key in shapes
        if key not in wanted and key not in COMPUTED_BUFFERS and not key.startswith(others)
    ]
    different = [key for key in wanted if key in shapes and shapes[key] != wanted[key]]
    return [
        *(f"missing `{key}`" for key in missing),
        *(f"unexpected `{key}`" for key in foreign),
        *(f"`{key}` has shape {list(shapes[key])} instead of {list(wanted[key])}" for key in different),
    ]


def compare_manifest(model: nn.Module, manifest: Mapping[str, Any]) -> list[str]:
    """How a network differs from a published list of tensors: keys, shapes, dtypes; empty when it fits.

    `manifest["tensors"]` maps keys to `shape`, `storage_dtype` and `runtime_dtype` (names as in safetensors).
    The network must be in its configured dtype.
    """
    tensors = manifest["tensors"]
    problems = misfits(model, {key: tuple(facts["shape"]) for key, facts in tensors.items()})
    state = model.state_dict()
    for key, facts in tensors.items():
        if facts["storage_dtype"] not in STORED_DTYPES:
            problems.append(f"`{key}` is stored as {facts['storage_dtype']}, which is no floating type")
        elif key in state and state[key].dtype != STORED_DTYPES[facts["runtime_dtype"]]:
            problems.append(f"`{key}` runs in {state[key].dtype} instead of {facts['runtime_dtype']}")
    return problems


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # names may contain dots


def _first(problems: Iterable[str], count: int = 3) -> str:
    problems = list(problems)
    more = len(problems) - count
    return ", ".join(problems[:count]) + (f" and {more} more" if more > 0 else "")


def _missing_hint(path: Path) -> str:
    others = [
        path.with_suffix(s).name for s in (".pt", ".pth", ".ckpt", ".bin") if path.with_suffix(s).exists()
    ]
    if others:
        return f"`{others[0]}` is not read: only safetensors are; {_hint_pull()}"
    return _hint_pull()


def _hint_pull() -> str:
    return "download the model again with `trellis models pull NAME`"
