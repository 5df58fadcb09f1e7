"""Train TRELLIS.2 networks on data in the released layout: new ones, a model's, or an adapter beside them.

    recipe + data folder (+ model folder) -> open_tuning -> trellis_core.training.released.run -> finish

What a stage learns is said in `tuning_objectives.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from trellis2.ingest import find_encoders
from trellis2.loading import IMAGE_ENCODER, find_checkpoints, network_config
from trellis2.models import MODELS
from trellis2.settings import PipelineSettings, read_settings
from trellis2.tuning_objectives import objective
from trellis_core.errors import UsageError
from trellis_core.kernels.table import Kernels
from trellis_core.training import merging
from trellis_core.training.data import read_catalog
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
from trellis_core.training.tuning import Source, Tuning, assemble, finish, require_trainable, stem_of, usable
from trellis_core.weights import hub
from trellis_core.weights.verify import count_parameters

__all__ = ["DATA_KINDS", "Tuning", "finish", "merge_into_model", "open_tuning", "recipe_for"]

DATA_KINDS: Mapping[Stage, str] = {
    "shape_vae": "dual_grids",
    "texture_vae": "pbr_voxels",
    "structure_flow": "structure_latents",
    "shape_flow": "shape_latents",
    "texture_flow": "texture_latents",
}


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
    """Read the tables, build or load the networks, and make the objective.

    Raises `InputError` when the data has no usable item, `ModelError` when weights are missing or do not fit,
    `UsageError` when the recipe cannot be trained here.
    """
    require_trainable(recipe, "trellis2", DATA_KINDS, lora)
    catalog = usable(read_catalog(data, recipe.data), data)
    settings = None if model is None else read_settings(model / hub.PIPELINE)
    source = source_of(model, settings)
    tuning = assemble(
        recipe, catalog, source, lora=lora, device=device, kernels=kernels, seed=seed, world=world
    )
    if recipe.checkpoint_blocks:
        for each in tuning.networks.values():
            each.checkpointed = (True,) * (each.levels + 1)  # type: ignore[assignment, operator]
    tuning.losses_of = objective(tuning, source, settings, perceptual)
    return tuning


def merge_into_model(trained: Path, model: Path, out: Path) -> Path:
    """A copy of a model folder with what `finish` wrote. See `trellis_core.training.merging`."""
    return merging.merge_into_model(
        trained, model, source_of(model, read_settings(model / hub.PIPELINE)), out
    )


def source_of(folder: Path | None, settings: PipelineSettings | None) -> Source:
    """The networks of a model folder, the encoders that no pipeline names among them; none without one."""

    def config_of(name: str, stem: Path) -> Mapping[str, object]:
        return network_config(stem)

    if folder is None or settings is None:
        return Source(MODELS, config_of, {})
    names = {
        "shape": "shape_slat_encoder",
        "pbr": "tex_slat_encoder",
        "structure": "sparse_structure_encoder",
    }
    encoders = {names[role]: stem for role, stem in find_encoders(folder).items()}
    return Source(MODELS, config_of, {**encoders, **find_checkpoints(folder, settings, folder.name)})


# --- a model's own recipe ----------------------------------------------------------------------------


def recipe_for(folder: Path, stage: Stage) -> Recipe:
    """A recipe that fine-tunes one stage of a model on a small data set, with the model's own sizes."""
    if stage not in DATA_KINDS:
        raise UsageError(
            f"the stage `{stage}` is not trained on meshes", hint=f"choose one of: {', '.join(DATA_KINDS)}"
        )
    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(None)
    names = {
        "shape_vae": ("shape_slat_encoder", "shape_slat_decoder"),
        "texture_vae": ("tex_slat_encoder", "tex_slat_decoder"),
        "structure_flow": ("sparse_structure_flow_model",),
        "shape_flow": (kind.shape_passes[-1].model,),
        "texture_flow": (kind.texture_model,),
    }[stage]
    source = source_of(folder, settings)
    flow = stage.endswith("_flow")
    size = kind.structure_image_size if stage == "structure_flow" else kind.texture_image_size
    encoder = facts_of(source, IMAGE_ENCODER).config["args"]
    tokens = (size // encoder["patch_size"]) ** 2 + 1 + encoder.get("num_register_tokens", 0)
    dense = stage == "structure_flow"
    return Recipe(
        name=f"{folder.name.strip('_')}-{stage.replace('_', '-')}",
        summary=f"{stage.replace('_', ' ').capitalize()} of a model, fine-tuned",
        version="trellis2",
        stage=stage,
        trains={name: facts_of(source, name) for name in names},
        frozen={IMAGE_ENCODER: facts_of(source, IMAGE_ENCODER)} if flow else {},
        data=DataSettings(kind=DATA_KINDS[stage], resolution=kind.resolution),
        batch=BatchSettings(per_gpu=8, splits=1),
        optimizer=AdamSettings(
            rate=1e-4 if flow else 1e-5, betas=(0.9, 0.95), weight_decay=0.01 if flow else 0.0
        ),
        precision="bfloat16" if flow else "float32",
        steps=2000,
        ema=0.99,
        times=(
            TimeSettings(name="logit_normal", mean=1.0, std=1.0) if dense else TimeSettings(name="uniform")
        )
        if flow
        else None,
        condition=ConditionSettings(kind="image", image_size=size, tokens=tokens) if flow else None,
        log_every=20,
        save_every=200,
        sample_every=1000,
    )


def facts_of(source: Source, name: str) -> NetworkFacts:
    stem = stem_of(name, source)
    return NetworkFacts(
        config=source.config_of(name, stem), parameters=count_parameters(hub.weights_of(stem))
    )
