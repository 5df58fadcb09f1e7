"""From a model folder in the released layout to networks, an identity and a memory plan.

Nothing is downloaded and no weight is read before a stage needs it. A network that cannot be loaded says why:
nothing is tried under another name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trellis.costs import describe_networks
from trellis.models import MODELS
from trellis.places import find_checkpoint
from trellis.settings import (
    DECODERS,
    IMAGE_ENCODER,
    STRUCTURE_DECODER,
    STRUCTURE_ENCODER,
    TEXT_ENCODER,
    PipelineSettings,
    read_settings,
)
from trellis_core.errors import ModelError
from trellis_core.memory.budget import MemoryPlan, MemoryRequest, VRAMManager
from trellis_core.memory.devices import DeviceInfo
from trellis_core.memory.residency import memory_errors
from trellis_core.models import image_encoder, text_encoder
from trellis_core.models.image_encoder import DINOv2ViT
from trellis_core.models.networks import Loader, Networks
from trellis_core.models.text_encoder import CLIPTextEncoder
from trellis_core.models.tokenizer import Tokenizer
from trellis_core.runtime import Runtime
from trellis_core.weights import hub
from trellis_core.weights.bundle import ModelIdentity
from trellis_core.weights.load import configured_dtype, load_model, read_config
from trellis_core.weights.verify import count_parameters

ENCODERS = (IMAGE_ENCODER, TEXT_ENCODER)  # they run in float32, as released


def find_checkpoints(folder: Path, settings: PipelineSettings, model: str) -> dict[str, Path]:
    """Network name -> stem of its files. Raises `ModelError` for the first one that is missing.

    Decoders may be missing as long as there is one: what needs them says so.
    """
    stems, absent = {}, []
    for name, reference in settings.references.items():
        try:
            stems[name] = find_checkpoint(reference, folder, model=model)
        except ModelError as error:
            if name not in DECODERS.values():
                raise
            absent.append(error)
    if absent and not stems.keys() & set(DECODERS.values()):
        raise absent[0]
    return stems


def find_structure_encoder(folder: Path, settings: PipelineSettings) -> dict[str, Path]:
    """The encoder that lies beside the structure decoder, when it is there: edits of some bundles need it."""
    decoder = settings.models[STRUCTURE_DECODER]
    reference = decoder.replace("ss_dec_", "ss_enc_").replace("_decoder", "_encoder")
    try:
        return {STRUCTURE_ENCODER: find_checkpoint(reference, folder)} if reference != decoder else {}
    except ModelError:
        return {}


def open_networks(stems: Mapping[str, Path]) -> Networks:
    """Networks that read their weights from these files when they are first used."""
    loaders: dict[str, Loader] = {name: partial(load_network, name, stem) for name, stem in stems.items()}
    return Networks(loaders)


def load_network(name: str, stem: Path, runtime: Runtime) -> nn.Module:
    """One network in host memory, strictly loaded, its torso in the precision the runtime asks for.

    A text encoder comes with its tokenizer.
    """
    config = network_config(name, stem)
    dtype = torch.float32 if name in ENCODERS else torso_dtype(configured_dtype(config), runtime)
    with memory_errors(f"loading {name}"):
        network = load_model(stem, MODELS, dtype=dtype, kernels=runtime.kernels, config=config)
    if isinstance(network, CLIPTextEncoder):
        network.tokenizer = Tokenizer.read(*vocabulary_of(stem))
        if network.tokenizer.size > config["args"]["vocab_size"]:
            raise ModelError(
                f"the vocabulary beside `{stem}` has more tokens than the encoder",
                hint="download the model again",
            )
    return network


def vocabulary_of(stem: Path) -> tuple[Path, Path]:
    """The files of a text encoder's tokenizer: `S.vocab.json` and `S.merges.txt`, or as published."""
    own = stem.with_name(f"{stem.name}.vocab.json"), stem.with_name(f"{stem.name}.merges.txt")
    return own if own[0].is_file() else (stem.with_name("vocab.json"), stem.with_name("merges.txt"))


def network_config(name: str, stem: Path) -> dict[str, Any]:
    """`{"name", "args"}` of a checkpoint; encoders are published with a flat `config.json`."""
    if hub.config_of(stem).is_file() or stem.name != "model":
        return read_config(stem)
    path = stem.with_name("config.json")
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` is missing or damaged", hint="download the encoder again") from error
    if name == TEXT_ENCODER:
        return {"name": CLIPTextEncoder.__name__, "args": text_encoder.published_arguments(published)}
    arguments = image_encoder.published_arguments(published, DINOv2ViT)
    return {"name": DINOv2ViT.__name__, "args": arguments}


def torso_dtype(configured: torch.dtype, runtime: Runtime) -> torch.dtype:
    """The released 16-bit type where the device has it, else the one it has, else float32."""
    if runtime.dtype == torch.float32 or runtime.device.type == "cpu":
        return runtime.dtype
    return configured if configured == torch.float16 else runtime.dtype


def identify(name: str, folder: Path, stems: Mapping[str, Path]) -> ModelIdentity:
    """Which networks sample: all but the decoders, which may come later."""
    sampling = {k: stem for k, stem in stems.items() if k not in DECODERS.values()}
    files = [folder / hub.PIPELINE, *(hub.weights_of(stem) for stem in sampling.values())]
    if TEXT_ENCODER in stems:
        files += [path for path in vocabulary_of(stems[TEXT_ENCODER]) if path.is_file()]
    return ModelIdentity(name, hub.fingerprint(files))


def plan_for(folder: Path, device: DeviceInfo, request: MemoryRequest) -> MemoryPlan:
    """The memory plan of one model on one device, from its configurations and the sizes of its files.

    Raises `ModelError` for a damaged or incomplete model.
    """
    settings = read_settings(folder / hub.PIPELINE)
    configs = {
        name: (network_config(name, stem), count_parameters(hub.weights_of(stem)))
        for name, stem in find_checkpoints(folder, settings, folder.name).items()
    }
    return VRAMManager(device, request).plan(describe_networks(configs, settings.image_size))
