"""From a model folder in the released layout to networks, an identity and a memory plan.

Nothing is downloaded and no weight is read before a stage needs it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trellis2.models import MODELS
from trellis2.settings import PipelineSettings, read_settings
from trellis_core.errors import ModelError
from trellis_core.memory.budget import MemoryPlan, MemoryRequest, VRAMManager
from trellis_core.memory.cost import Network, describe_networks
from trellis_core.memory.devices import DeviceInfo
from trellis_core.models.image_encoder import DINOv3ViT
from trellis_core.models.networks import Loader, Networks
from trellis_core.models.text_encoder import CLIPTextEncoder
from trellis_core.models.tokenizer import Tokenizer
from trellis_core.runtime import Runtime
from trellis_core.weights import hub
from trellis_core.weights.bundle import ModelIdentity
from trellis_core.weights.load import configured_dtype, load_model, read_config
from trellis_core.weights.verify import count_parameters

IMAGE_ENCODER = "image_encoder"  # their names among the networks; pipeline.json keeps them apart
TEXT_ENCODER = "text_encoder"
STRUCTURE_ENCODER = "sparse_structure_encoder"
FULL_PRECISION = (DINOv3ViT.__name__, CLIPTextEncoder.__name__)  # encoders run in float32, as released
TEXTURING = "texturing_pipeline.json"


def find_checkpoints(folder: Path, settings: PipelineSettings, model: str) -> dict[str, Path]:
    """Network name -> stem of its files. Raises `ModelError` for the first one that is missing."""
    references = {**settings.models, IMAGE_ENCODER: settings.image_encoder}
    if settings.text is not None:
        references[TEXT_ENCODER] = settings.text.encoder
    if (folder / TEXTURING).is_file():
        # its encoder is optional: only texturing needs it, and says so when it is missing
        extra = read_settings(folder / TEXTURING).models
        references |= {n: r for n, r in extra.items() if n not in references and is_present(folder, r)}
    return {name: hub.find_checkpoint(ref, folder, model=model) for name, ref in references.items()}


def find_structure_encoder(folder: Path, settings: PipelineSettings) -> dict[str, Path]:
    """The encoder that lies beside the structure decoder, when it is there: edits of some bundles need it."""
    decoder = settings.models.get("sparse_structure_decoder", "")
    reference = decoder.replace("ss_dec_", "ss_enc_").replace("_decoder", "_encoder")
    if reference == decoder or not is_present(folder, reference):
        return {}
    return {STRUCTURE_ENCODER: hub.find_checkpoint(reference, folder)}


def is_present(folder: Path, reference: str) -> bool:
    try:
        hub.find_checkpoint(reference, folder)
    except ModelError:
        return False
    return True


def open_networks(stems: Mapping[str, Path]) -> Networks:
    """Networks that read their weights from these files when they are first used."""
    loaders: dict[str, Loader] = {name: partial(load_network, stem) for name, stem in stems.items()}
    return Networks(loaders)


def load_network(stem: Path, runtime: Runtime) -> nn.Module:
    """One network in host memory, strictly loaded, its torso in the precision the runtime asks for.

    A text encoder comes with its tokenizer.
    """
    config = network_config(stem)
    encoder = config["name"] in FULL_PRECISION
    dtype = torch.float32 if encoder else torso_dtype(configured_dtype(config), runtime)
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
    """The files of a text encoder's tokenizer: `S.vocab.json` and `S.merges.txt`."""
    return stem.with_name(f"{stem.name}.vocab.json"), stem.with_name(f"{stem.name}.merges.txt")


def network_config(stem: Path) -> dict[str, Any]:
    """`{"name", "args"}` of a checkpoint; image encoders are published with a flat `config.json`."""
    if hub.config_of(stem).is_file() or stem.name != "model":
        return read_config(stem)
    path = stem.with_name("config.json")
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` is missing or damaged", hint="download the encoder again") from error
    known = inspect.signature(DINOv3ViT).parameters
    return {"name": DINOv3ViT.__name__, "args": {k: v for k, v in published.items() if k in known}}


def torso_dtype(configured: torch.dtype, runtime: Runtime) -> torch.dtype:
    """The released 16-bit type where the device has it, else the one it has, else float32."""
    if runtime.dtype == torch.float32 or runtime.device.type == "cpu":
        return runtime.dtype
    return configured if configured == torch.float16 else runtime.dtype


def identify(name: str, folder: Path, stems: Mapping[str, Path]) -> ModelIdentity:
    files = [folder / hub.PIPELINE, *(hub.weights_of(stem) for stem in stems.values())]
    if TEXT_ENCODER in stems:
        files += [path for path in vocabulary_of(stems[TEXT_ENCODER]) if path.is_file()]
    return ModelIdentity(name, hub.fingerprint(files))


def plan_for(
    folder: Path, device: DeviceInfo, request: MemoryRequest, pipeline_type: str | None = None
) -> MemoryPlan:
    """The memory plan of one model on one device, from its configurations and the sizes of its files.

    Raises `ModelError` for a damaged or incomplete model and `UsageError` for an unknown pipeline type.
    """
    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(pipeline_type)
    configs = {
        name: (network_config(stem), count_parameters(hub.weights_of(stem)))
        for name, stem in find_checkpoints(folder, settings, folder.name).items()
    }
    text = configs.pop(TEXT_ENCODER, None)
    networks = describe_networks(configs, resolution=kind.resolution, image_size=max(kind.image_sizes))
    if text is not None and settings.text is not None:
        networks[TEXT_ENCODER] = describe_text_encoder(*text, settings.text.max_length)
    return VRAMManager(device, request).plan(networks)


def describe_text_encoder(config: Mapping[str, Any], parameters: int, tokens: int) -> Network:
    args = config["args"]
    return Network(
        stage="condition",
        kind="transformer",
        parameters=parameters,
        width=args["hidden_size"],
        hidden=args["intermediate_size"],
        blocks=args["num_hidden_layers"],
        tokens=tokens,
        full_precision=True,
    )
