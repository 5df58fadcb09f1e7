"""Frozen settings of a TRELLIS.2 model, read once from its released `pipeline.json`.

Released words are translated here and nowhere else: `guidance_strength` becomes `guidance_scale`.
Knows nothing about tensors' devices or how networks are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trellis_core.errors import ModelError, UsageError
from trellis_core.models.familiarity import FamiliarityFacts
from trellis_core.sampling.normalization import Normalization
from trellis_core.sampling.schedule import SamplerSettings


@dataclass(frozen=True, slots=True)
class ShapePass:
    """One run of a shape flow."""

    model: str  # name in `models`
    image_size: int  # side of the picture the encoder sees, pixels
    resolution: int  # output voxel grid this pass aims at


@dataclass(frozen=True, slots=True)
class PipelineType:
    """How the stages are combined. With two shape passes the first one is a coarse draft of the second."""

    name: str
    structure_resolution: int  # token grid of the first shape pass
    structure_image_size: int
    shape_passes: tuple[ShapePass, ...]
    texture_model: str
    texture_image_size: int

    @property
    def resolution(self) -> int:
        """Output voxel grid that was asked for; a cascade may lower it."""
        return self.shape_passes[-1].resolution

    @property
    def factor(self) -> int:
        """Voxels per token along an axis."""
        return self.shape_passes[0].resolution // self.structure_resolution

    @property
    def image_sizes(self) -> set[int]:
        """Sides of all pictures that a run encodes, pixels."""
        return {
            self.structure_image_size,
            self.texture_image_size,
            *(p.image_size for p in self.shape_passes),
        }


def _released_type(name: str, structure: int, *passes: tuple[int, int]) -> PipelineType:
    shape_passes = tuple(ShapePass(f"shape_slat_flow_model_{m}", m, r) for m, r in passes)
    last = passes[-1][0]
    return PipelineType(name, structure, 512, shape_passes, f"tex_slat_flow_model_{last}", last)


RELEASED_TYPES: Mapping[str, PipelineType] = {
    kind.name: kind
    for kind in (
        _released_type("512", 32, (512, 512)),
        _released_type("1024", 64, (1024, 1024)),
        _released_type("1024_cascade", 32, (512, 512), (1024, 1024)),
        _released_type("1536_cascade", 32, (512, 512), (1024, 1536)),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How a model takes prompts."""

    encoder: str  # path or hub repository of the text encoder
    max_length: int = 77  # tokens, start and end among them
    words: tuple[str, ...] | None = None  # all it was trained on; None: any
    nouns: tuple[str, ...] = ()  # the objects it can make, when it says so
    aliases: Mapping[str, str] = field(default_factory=dict)  # what people say -> the word it knows


MAX_TOKENS = 49152  # released limit on latent tokens of a cascade's second pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """Everything `pipeline.json` says."""

    models: Mapping[str, str]  # name -> path as written in the file
    structure_sampler: SamplerSettings
    shape_sampler: SamplerSettings
    texture_sampler: SamplerSettings
    shape_normalization: Normalization
    texture_normalization: Normalization
    image_encoder: str  # path or hub repository of the picture encoder
    text: TextSettings | None = None  # None: the model takes pictures only
    pipeline_types: Mapping[str, PipelineType] = field(default_factory=lambda: dict(RELEASED_TYPES))
    default_pipeline_type: str = "1024_cascade"
    export: Mapping[str, Any] = field(default_factory=dict)  # ExportSettings that suit the model's shapes
    familiarity: FamiliarityFacts | None = None  # of a model that knows which pictures it was trained on

    def pipeline_type(self, name: str | None) -> PipelineType:
        """The named type, or the default one; `UsageError` names what there is."""
        name = name or self.default_pipeline_type
        if name not in self.pipeline_types:
            raise UsageError(
                f"this model has no pipeline type `{name}`",
                hint=f"choose one of: {', '.join(self.pipeline_types)}",
            )
        return self.pipeline_types[name]


def read_settings(path: Path) -> PipelineSettings:
    """Read a `pipeline.json` (or `texturing_pipeline.json`) in the released layout.

    Raises `ModelError` when the file is missing, damaged or lacks an entry.
    """
    try:
        args = json.loads(path.read_text(encoding="utf-8"))["args"]
    except FileNotFoundError as error:
        raise ModelError(
            f"`{path}` does not exist", hint="a model folder holds `pipeline.json` and `ckpts/`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="download the model again") from error
    if "slat_normalization" in args:
        raise ModelError(f"`{path}` is that of a TRELLIS v1 model", hint="open it with `trellis.load(...)`")
    try:
        return settings_from_args(args)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"`{path}` lacks or misspells an entry: {error}", hint="download the model again"
        ) from error


def settings_from_args(args: Mapping[str, Any]) -> PipelineSettings:
    """Translate the `args` of a released pipeline file."""
    models = dict(args["models"])
    texture = sampler_settings(args["tex_slat_sampler"])
    encoder = args["image_cond_model"]["args"]
    types = {
        name: PipelineType(
            name,
            entry["structure_resolution"],
            entry["image_size"],
            (ShapePass(entry["shape_model"], entry["image_size"], entry["resolution"]),),
            entry["texture_model"],
            entry["image_size"],
        )
        for name, entry in args.get("pipeline_types", {}).items()
    } or {name: kind for name, kind in RELEASED_TYPES.items() if kind.texture_model in models}
    return PipelineSettings(
        models=models,
        # texturing_pipeline.json has no structure and shape samplers
        structure_sampler=sampler_settings(args.get("sparse_structure_sampler", args["tex_slat_sampler"])),
        shape_sampler=sampler_settings(args.get("shape_slat_sampler", args["tex_slat_sampler"])),
        texture_sampler=texture,
        shape_normalization=_normalization(args["shape_slat_normalization"]),
        texture_normalization=_normalization(args["tex_slat_normalization"]),
        image_encoder=encoder.get("model_name") or encoder["model"],
        text=_text(args.get("text_cond_model")),
        pipeline_types=types,
        export=dict(args.get("export", {})),
        familiarity=FamiliarityFacts.from_json(args["familiarity"]) if "familiarity" in args else None,
        default_pipeline_type=args.get("default_pipeline_type")
        or next(iter(reversed(types)), "1024_cascade"),
    )


def sampler_settings(entry: Mapping[str, Any]) -> SamplerSettings:
    """Translate one released sampler entry, `{"name", "args": {"sigma_min"}, "params": {...}}`."""
    params = dict(entry.get("params", {}))
    plain = entry["name"] == "FlowEulerSampler"
    interval = params.get("guidance_interval", (0.0, 1.0))
    return SamplerSettings(
        steps=params.get("steps", 50),
        rescale_t=params.get("rescale_t", 1.0),
        guidance_scale=1.0 if plain else params.get("guidance_strength", 3.0),
        guidance_rescale=params.get("guidance_rescale", 0.0),
        guidance_interval=(interval[0], interval[1]) if "Interval" in entry["name"] else (0.0, 1.0),
        sigma_min=entry.get("args", {}).get("sigma_min", 1e-5),
    )


def _text(entry: Mapping[str, Any] | None) -> TextSettings | None:
    """Translate `{"name": "CLIPTextEncoder", "args": {"model", ...}}`."""
    if entry is None:
        return None
    args = entry["args"]
    words = args.get("words")
    return TextSettings(
        encoder=args["model"],
        max_length=args.get("max_length", 77),
        words=None if words is None else tuple(words),
        nouns=tuple(args.get("nouns", ())),
        aliases=dict(args.get("aliases", {})),
    )


def _normalization(entry: Mapping[str, Any]) -> Normalization:
    return Normalization(tuple(entry["mean"]), tuple(entry["std"]))
