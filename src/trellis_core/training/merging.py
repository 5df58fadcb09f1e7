"""A copy of a model with what a run trained: whole networks, or an adapter merged into its network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from trellis_core.errors import ModelError, UsageError
from trellis_core.io.files import write_file
from trellis_core.training.lora import FORMAT, load_lora
from trellis_core.training.tuning import Source, stem_of
from trellis_core.weights import hub
from trellis_core.weights.load import load_model


def merge_into_model(trained: Path, model: Path, source: Source, out: Path) -> Path:
    """Copy the folder `model` to `out` with what is in `trained`, a file that `tuning.finish` wrote.

    Numbers are stored as the model stores them; a network of another repository becomes one of this folder.
    Returns `out`. Raises `ModelError` when file and model do not belong together, `UsageError` when `out`
    exists.
    """
    if out.exists():
        raise UsageError(f"`{out}` exists", hint="choose a folder that does not exist")
    about = facts_of_file(trained)
    name = about.get("network", "")
    if name not in source.stems:
        there = ", ".join(sorted(source.stems))
        raise ModelError(f"`{model}` has no network `{name}`", hint=f"it has: {there}")
    stem = stem_of(name, source)
    config = source.config_of(name, stem)
    dtypes = {k: v.dtype for k, v in load_file(hub.weights_of(stem)).items()}
    if about["format"] == FORMAT:
        network = load_model(stem, source.classes, dtype=torch.float32, config=config)
        load_lora(trained, network).merge()
        tensors = network.state_dict()
    else:
        tensors = load_file(trained)
    if set(tensors) - set(dtypes):
        raise ModelError(f"`{trained}` does not fit `{stem}`", hint="use it with the model it came from")
    stored = {k: tensors[k].to(dtype).contiguous() if k in tensors else dtype for k, dtype in dtypes.items()}
    content = save({k: v for k, v in stored.items() if isinstance(v, Tensor)})
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial)
    if stem.is_relative_to(model):
        write_file(hub.weights_of(partial / stem.relative_to(model)), [content])
    else:
        place = partial / "ckpts" / stem.name
        write_file(hub.weights_of(place), [content])
        write_file(hub.config_of(place), [json.dumps(config, indent=1).encode()])
        name_network(partial / hub.PIPELINE, name, f"ckpts/{stem.name}")
    partial.replace(out)
    return out


def name_network(pipeline: Path, name: str, reference: str) -> None:
    """Let a `pipeline.json` name a network of its own folder."""
    content = json.loads(pipeline.read_text(encoding="utf-8"))
    models = content["args"]["models"]
    if name in models:
        models[name] = reference
        write_file(pipeline, [json.dumps(content, indent=1).encode() + b"\n"])


def facts_of_file(path: Path) -> Mapping[str, str]:
    """What a trained file says about itself."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"`{path}` cannot be read: {error}", hint="check the path") from error
    adapter = json.loads(metadata["lora"]) if "lora" in metadata else {}
    return {"format": "", **metadata, **{k: str(v) for k, v in adapter.items()}}
