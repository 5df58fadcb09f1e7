"""Train TRELLIS v1 networks on data in the released layout: autoencoders, decoders, flows.

    recipe + data folder (+ model folder) -> open_tuning -> trellis_core.training.released.run -> finish

What a stage learns is said in `training_objectives.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trellis.data import open_catalog
from trellis.ingest import LATENT_ENCODER, find_encoders
from trellis.loading import find_checkpoints, network_config
from trellis.models import MODELS
from trellis.settings import (
    DECODERS,
    IMAGE_ENCODER,
    LATENT_FLOW,
    STRUCTURE_DECODER,
    STRUCTURE_ENCODER,
    STRUCTURE_FLOW,
    TEXT_ENCODER,
    PipelineSettings,
    read_settings,
)
from trellis.training_objectives import objective
from trellis_core.errors import UsageError
from trellis_core.kernels.table import Kernels
from trellis_core.training import merging
from trellis_core.training.distributed import World
from trellis_core.training.image_losses import Perceptual
from trellis_core.training.lora import LoRASettings
from trellis_core.training.recipes import (
    AdamSettings,
    BatchSettings,
    ConditionSettings,
    DataSettings,
    NetworkFacts,
    Recipe,
    Stage,
    TimeSettings,
)
from trellis_core.training.tuning import (
    Source,
    Tuning,
    assemble,
    finish,
    require_trainable,
    stem_of,
    usable,
)
from trellis_core.weights import hub
from trellis_core.weights.verify import count_parameters

__all__ = ["PARTS", "STAGES", "Tuning", "finish", "merge_into_model", "open_tuning", "recipe_for"]

STAGES: tuple[Stage, ...] = ("structure_vae", "latent_vae", "structure_flow", "latent_flow")


def open_tuning(
    recipe: Recipe,
    data: Path,
    *,
    model: Path | None = None,  # folder whose weights it starts from
    lora: LoRASettings | None = None,
    device: torch.device | None = None,
    kernels: Kernels | None = None,
    seed: int = 0,
    world: World | None = None,
    perceptual: Perceptual | None = None,  # LPIPS; None: off
) -> Tuning:
    """Read the table, build or load the networks, and make the objective.

    Raises `InputError` when the data has no usable item, `ModelError` when weights are missing or do not fit,
    `UsageError` when the recipe cannot be trained here.
    """
    require_trainable(recipe, "trellis", STAGES, lora)
    catalog = usable(open_catalog(data, recipe.data), data)
    settings = None if model is None else read_settings(model / hub.PIPELINE)
    source = source_of(model, settings)
    tuning = assemble(
        recipe, catalog, source, lora=lora, device=device, kernels=kernels, seed=seed, world=world
    )
    tuning.losses_of = objective(tuning, source, settings, data, perceptual)
    return tuning


def merge_into_model(trained: Path, model: Path, out: Path) -> Path:
    """A copy of a model folder with what `finish` wrote. See `trellis_core.training.merging`."""
    return merging.merge_into_model(
        trained, model, source_of(model, read_settings(model / hub.PIPELINE)), out
    )


def source_of(folder: Path | None, settings: PipelineSettings | None) -> Source:
    """The networks of a model folder, the encoders that no pipeline names among them; none without one."""
    if folder is None or settings is None:
        return Source(MODELS, network_config, {})
    return Source(
        MODELS,
        network_config,
        {**find_encoders(folder), **find_checkpoints(folder, settings, folder.name)},
    )


# --- a model's own recipe ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a model that can be fine-tuned by itself."""

    stage: Stage
    trains: tuple[str, ...]
    kind: str  # of the data; of flows the one for pictures
    losses: Mapping[str, float] = field(default_factory=dict)


PICTURES = {"l1": 1.0, "ssim": 0.2, "lpips": 0.2}
GAUSSIANS = {**PICTURES, "volume": 1e4, "opacity": 1e-3}
SURFACE = {
    **{"regularization": 1.0, "tsdf": 0.01, "mask": 1.0, "depth": 10.0, "normal": 1.0, "color": 0.1},
    **{"ssim": 0.2, "lpips": 0.2},
}
PARTS: Mapping[str, Part] = {
    "structure_flow": Part(stage="structure_flow", trains=(STRUCTURE_FLOW,), kind="v1_structure_latents"),
    "latent_flow": Part(stage="latent_flow", trains=(LATENT_FLOW,), kind="v1_latents"),
    "structure_vae": Part(
        stage="structure_vae",
        trains=(STRUCTURE_ENCODER, STRUCTURE_DECODER),
        kind="occupancy",
        losses={"dice": 1.0, "kl": 1e-3},
    ),
    "latent_vae": Part(
        stage="latent_vae",
        trains=(LATENT_ENCODER, DECODERS["gaussians"]),
        kind="features_views",
        losses={**GAUSSIANS, "kl": 1e-6},
    ),
    "gaussian_decoder": Part(
        stage="latent_vae", trains=(DECODERS["gaussians"],), kind="latent_views", losses=GAUSSIANS
    ),
    "field_decoder": Part(
        stage="latent_vae", trains=(DECODERS["radiance_field"],), kind="latent_views", losses=PICTURES
    ),
    "mesh_decoder": Part(
        stage="latent_vae", trains=(DECODERS["mesh"],), kind="latent_meshes", losses=SURFACE
    ),
}


def recipe_for(folder: Path, stage: str) -> Recipe:
    """A recipe that fine-tunes one of PARTS of a model on a small data set, with the model's own sizes."""
    if stage not in PARTS:
        raise UsageError(
            f"TRELLIS v1 has no stage `{stage}` to train", hint=f"choose one of: {', '.join(PARTS)}"
        )
    part, settings = PARTS[stage], read_settings(folder / hub.PIPELINE)
    source = source_of(folder, settings)
    flow = part.stage.endswith("_flow")
    encoder = IMAGE_ENCODER if settings.text_encoder is None else TEXT_ENCODER
    return Recipe(
        name=f"{folder.name.strip('_')}-{stage.replace('_', '-')}",
        summary=f"{stage.replace('_', ' ').capitalize()} of a model, fine-tuned",
        version="trellis",
        stage=part.stage,
        trains={name: facts_of(source, name) for name in part.trains},
        frozen={encoder: facts_of(source, encoder)} if flow else {},
        data=DataSettings(
            kind=part.kind + ("_text" if flow and encoder == TEXT_ENCODER else ""),
            resolution=facts_of(source, LATENT_FLOW).config["args"]["resolution"],
        ),
        batch=BatchSettings(per_gpu=8 if flow else 4, splits=1 if part.stage.startswith("structure") else 4),
        optimizer=AdamSettings(rate=1e-4 if flow else 1e-5),
        precision="bfloat16" if flow else "float32",
        steps=2000,
        losses=part.losses,
        ema=0.99,
        times=TimeSettings(name="logit_normal", mean=1.0, std=1.0) if flow else None,
        condition=condition_of(facts_of(source, encoder).config["args"], settings) if flow else None,
        log_every=20,
        save_every=200,
        sample_every=1000,
    )


def condition_of(args: Mapping[str, Any], settings: PipelineSettings) -> ConditionSettings:
    """What a model's encoder tells its flows."""
    if settings.text_encoder is not None:
        return ConditionSettings(kind="text", tokens=args["max_position_embeddings"])
    patches = (settings.image_size // args.get("patch_size", 14)) ** 2
    tokens = patches + 1 + args.get("num_register_tokens", 4)
    return ConditionSettings(kind="image", image_size=settings.image_size, tokens=tokens)


def facts_of(source: Source, name: str) -> NetworkFacts:
    stem = stem_of(name, source)
    return NetworkFacts(
        config=source.config_of(name, stem), parameters=count_parameters(hub.weights_of(stem))
    )
