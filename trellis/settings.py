"""Frozen settings of a TRELLIS v1 model, read once from its released `pipeline.json`.

Released words are translated here and nowhere else: `cfg_strength` w becomes the `guidance_scale` 1 + w,
`cfg_interval` the `guidance_interval`, a former owner's name that of the present one.
Knows nothing about tensors' devices or how networks are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trellis.weights import ENCODERS, canonical
from trellis_core.errors import ModelError
from trellis_core.sampling.normalization import Normalization
from trellis_core.sampling.schedule import SamplerSettings

STRUCTURE_FLOW = "sparse_structure_flow_model"
STRUCTURE_DECODER = "sparse_structure_decoder"
STRUCTURE_ENCODER = "sparse_structure_encoder"  # needed for edits of older bundles and of variants only
LATENT_FLOW = "slat_flow_model"
IMAGE_ENCODER = "image_encoder"  # their names among the networks; pipeline.json keeps them apart
TEXT_ENCODER = "text_encoder"
DECODERS: Mapping[str, str] = {  # what to decode -> the network that does
    "mesh": "slat_decoder_mesh",
    "gaussians": "slat_decoder_gs",
    "radiance_field": "slat_decoder_rf",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """Everything `pipeline.json` says."""

    models: Mapping[str, str]  # name -> path or `owner/name/path`
    structure_sampler: SamplerSettings
    latent_sampler: SamplerSettings
    normalization: Normalization
    image_encoder: str | None = None  # path or hub repository; None: no pictures
    text_encoder: str | None = None  # the same; None: no prompts
    image_size: int = 518  # side of the picture that the encoder sees, pixels
    export: Mapping[str, Any] = field(default_factory=dict)  # ExportSettings that suit the model's shapes

    @property
    def references(self) -> dict[str, str]:
        """Every network of the model, its encoders among them: name -> path or `owner/name/path`."""
        encoders = {IMAGE_ENCODER: self.image_encoder, TEXT_ENCODER: self.text_encoder}
        return {**self.models, **{name: path for name, path in encoders.items() if path is not None}}

    @property
    def formats(self) -> tuple[str, ...]:
        """What the model can decode."""
        return tuple(name for name, network in DECODERS.items() if network in self.models)


def read_settings(path: Path) -> PipelineSettings:
    """Read a `pipeline.json` in the released layout.

    Raises `ModelError` when the file is missing, damaged, lacks an entry, or was edited by a circulating
    wrong advice (`repair.py` undoes that).
    """
    try:
        args = json.loads(path.read_text(encoding="utf-8"))["args"]
    except FileNotFoundError as error:
        raise ModelError(
            f"`{path}` does not exist", hint="a model folder holds `pipeline.json` and `ckpts/`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="download the model again") from error
    if "shape_slat_normalization" in args:
        raise ModelError(f"`{path}` is that of a TRELLIS.2 model", hint="open it with `trellis2.load(...)`")
    try:
        settings = settings_from_args(args)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"`{path}` lacks or misspells an entry: {error}", hint="download the model again"
        ) from error
    if misdirected(settings.models):
        raise ModelError(
            f"`{path}` names the structure flow `{settings.models[LATENT_FLOW]}` as its latent flow: "
            "an advice that circulates, and cannot work",
            hint=f"run `trellis doctor --fix {path.parent}`, which repairs it",
        )
    return settings


def settings_from_args(args: Mapping[str, Any]) -> PipelineSettings:
    """Translate the `args` of a released pipeline file."""
    latent = args["slat_normalization"]
    text = args.get("text_cond_model")
    image = args.get("image_cond_model")
    return PipelineSettings(
        models={name: canonical(path) for name, path in args["models"].items()},
        structure_sampler=sampler_settings(args["sparse_structure_sampler"]),
        latent_sampler=sampler_settings(args["slat_sampler"]),
        normalization=Normalization(tuple(latent["mean"]), tuple(latent["std"])),
        image_encoder=None if image is None else ENCODERS.get(image, image),
        text_encoder=None if text is None else ENCODERS.get(text, text),
        image_size=args.get("image_size", 518),
        export=dict(args.get("export", {})),
    )


def sampler_settings(entry: Mapping[str, Any]) -> SamplerSettings:
    """Translate one released sampler entry, `{"name", "args": {"sigma_min"}, "params": {...}}`."""
    params = dict(entry.get("params", {}))
    plain = entry["name"] == "FlowEulerSampler"
    interval = params.get("cfg_interval", (0.0, 1.0))
    return SamplerSettings(
        steps=params.get("steps", 50),
        rescale_t=params.get("rescale_t", 1.0),
        guidance_scale=1.0 if plain else 1.0 + params.get("cfg_strength", 3.0),
        guidance_interval=(interval[0], interval[1]) if "Interval" in entry["name"] else (0.0, 1.0),
        sigma_min=entry.get("args", {}).get("sigma_min", 1e-5),
    )


def misdirected(models: Mapping[str, str]) -> bool:
    """Whether the latent flow is set to a structure flow, as some documents advise."""
    latent = models.get(LATENT_FLOW, "")
    return latent == models.get(STRUCTURE_FLOW) or latent.rpartition("/")[2].startswith("ss_flow_")
