"""Write trained networks as a model folder in the released layout: `pipeline.json`,
`texturing_pipeline.json`, `ckpts/`.

Knows nothing about how they were trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from trellis_core.io.files import write_file
from trellis_core.models.familiarity import FamiliarityFacts
from trellis_core.models.tokenizer import Tokenizer
from trellis_core.weights import hub
from trellis_core.weights.load import COMPUTED_BUFFERS

IMAGE_MODELS = (
    "sparse_structure_decoder",
    "sparse_structure_flow_model",
    "shape_slat_decoder",
    "shape_slat_flow_model_{size}",
    "tex_slat_decoder",
    "tex_slat_flow_model_{size}",
)
TEXTURING_MODELS = ("shape_slat_encoder", "tex_slat_decoder", "tex_slat_flow_model_{size}")


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    config: Mapping[str, Any]  # {"name": class, "args": {...}}
    network: nn.Module


@dataclass(frozen=True, slots=True)
class ReleasedText:
    """What the pipeline file says about the network `text_encoder`, and its vocabulary."""

    tokenizer: Tokenizer
    max_length: int  # tokens
    words: tuple[str, ...] | None = None  # all it was trained on; None: any
    nouns: tuple[str, ...] = ()  # the objects it can make
    aliases: Mapping[str, str] = field(default_factory=dict)  # what people say -> the word it knows


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What the pipeline files say beside the networks."""

    resolution: int
    token_resolution: int
    image_size: int
    samplers: Mapping[str, Mapping[str, Any]]  # structure, shape, texture -> released `params`
    shape_normalization: tuple[Tensor, Tensor]  # mean, std, each float32 [C]
    texture_normalization: tuple[Tensor, Tensor]
    export: Mapping[str, Any] = field(default_factory=dict)  # ExportSettings that suit the model's shapes
    text: ReleasedText | None = None  # of a model with a text encoder
    familiarity: FamiliarityFacts | None = None  # which pictures the model knows


def write_release(folder: Path, networks: Mapping[str, TrainedNetwork], facts: ReleaseFacts) -> None:
    """Write every network in float16 and the pipeline files; encoders are ordinary entries of `ckpts/`.

    A `text_encoder` among the networks needs `facts.text`, whose vocabulary is written beside it.
    """
    if ("text_encoder" in networks) != (facts.text is not None):
        raise ValueError("a text encoder and the facts about it come together")
    ckpts = folder / "ckpts"
    ckpts.mkdir(parents=True, exist_ok=True)
    for name, trained in networks.items():
        state = trained.network.state_dict()
        tensors = {k: v.detach().half().contiguous() for k, v in state.items() if k not in COMPUTED_BUFFERS}
        save_file(tensors, ckpts / f"{name}.safetensors")
        _write_json(ckpts / f"{name}.json", trained.config)
    if facts.text is not None:
        facts.text.tokenizer.write(ckpts / "text_encoder.vocab.json", ckpts / "text_encoder.merges.txt")
    _write_json(folder / hub.PIPELINE, {"name": "Trellis2ImageTo3DPipeline", "args": _image_args(facts)})
    _write_json(
        folder / "texturing_pipeline.json",
        {"name": "Trellis2TexturingPipeline", "args": _texturing_args(facts)},
    )


def add_familiarity(folder: Path, facts: FamiliarityFacts) -> None:
    """Let a model folder know which pictures it was trained on."""
    path = folder / hub.PIPELINE
    pipeline = json.loads(path.read_text(encoding="utf-8"))
    pipeline["args"]["familiarity"] = facts.to_json()
    _write_json(path, pipeline)


def _image_args(facts: ReleaseFacts) -> dict[str, Any]:
    return {
        "models": _models(IMAGE_MODELS, facts),
        "sparse_structure_sampler": _sampler(facts.samplers["structure"]),
        "shape_slat_sampler": _sampler(facts.samplers["shape"]),
        **_common_args(facts),
        **_text_args(facts.text),
        "pipeline_types": {
            str(facts.resolution): {
                "structure_resolution": facts.token_resolution,
                "image_size": facts.image_size,
                "shape_model": f"shape_slat_flow_model_{facts.resolution}",
                "texture_model": f"tex_slat_flow_model_{facts.resolution}",
                "resolution": facts.resolution,
            }
        },
        "default_pipeline_type": str(facts.resolution),
        "export": dict(facts.export),
        **({} if facts.familiarity is None else {"familiarity": facts.familiarity.to_json()}),
    }


def _texturing_args(facts: ReleaseFacts) -> dict[str, Any]:
    image = _image_args(facts)
    return {
        "models": _models(TEXTURING_MODELS, facts),
        **_common_args(facts),
        **{key: image[key] for key in ("pipeline_types", "default_pipeline_type")},
    }


def _common_args(facts: ReleaseFacts) -> dict[str, Any]:
    return {
        "tex_slat_sampler": _sampler(facts.samplers["texture"]),
        "shape_slat_normalization": _normalization(facts.shape_normalization),
        "tex_slat_normalization": _normalization(facts.texture_normalization),
        "image_cond_model": {
            "name": "DinoV3FeatureExtractor",
            "args": {"model": "ckpts/image_encoder", "image_size": facts.image_size},
        },
    }


def _text_args(text: ReleasedText | None) -> dict[str, Any]:
    if text is None:
        return {}
    args = {
        "model": "ckpts/text_encoder",
        "max_length": text.max_length,
        **({} if text.words is None else {"words": list(text.words)}),
        **({"nouns": list(text.nouns)} if text.nouns else {}),
        **({"aliases": dict(text.aliases)} if text.aliases else {}),
    }
    return {"text_cond_model": {"name": "CLIPTextEncoder", "args": args}}


def _models(names: tuple[str, ...], facts: ReleaseFacts) -> dict[str, str]:
    full = [name.format(size=facts.resolution) for name in names]
    return {name: f"ckpts/{name}" for name in full}


def _sampler(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": dict(params)}


def _normalization(vectors: tuple[Tensor, Tensor]) -> dict[str, list[float]]:
    return {key: [round(float(x), 6) for x in v] for key, v in zip(("mean", "std"), vectors, strict=True)}


def _write_json(path: Path, content: object) -> None:
    """Indented, but lists of numbers on one line each."""
    lines = json.dumps(content, indent=1)
    packed = re.sub(r"\[\n[-+\d.eE,\s]+\]", lambda found: "".join(found[0].split()), lines)
    write_file(path, [packed.encode() + b"\n"])
