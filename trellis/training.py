"""Train TRELLIS v1 networks on data in the released layout: the structure VAE and both flows.

    recipe + data folder (+ model folder) -> Tuning -> trellis_core.training.released.run -> finish

The frozen encoder of pictures or prompts runs on the fly. The latent VAE, whose losses compare pictures, is
not trained here. Letters: B batch, M condition tokens, C channels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from trellis.data import (
    open_catalog,
    packed,
    read_captions,
    read_condition,
    read_latent,
    read_occupancy,
    read_structure,
)
from trellis.loading import find_checkpoints, load_network, network_config
from trellis.models import MODELS
from trellis.settings import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    Normalization,
    PipelineSettings,
    read_settings,
)
from trellis.weights import ENCODERS
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.io.files import write_file
from trellis_core.kernels.table import Kernels
from trellis_core.models.image_encoder import prepare_images
from trellis_core.runtime import Runtime
from trellis_core.training.batching import SampleOrder
from trellis_core.training.data import Catalog, Entry
from trellis_core.training.distributed import World
from trellis_core.training.lora import LoRA, LoRASettings
from trellis_core.training.losses import STRUCTURE_TERMS, flow_losses, structure_vae_losses
from trellis_core.training.objectives import dropped, logit_normal_times, without_condition
from trellis_core.training.recipes import NetworkFacts, Recipe, Stage, TimeSettings
from trellis_core.training.released import LossesOf, Trainee
from trellis_core.weights import hub
from trellis_core.weights.load import build_model, load_model

STAGES: tuple[Stage, ...] = ("structure_vae", "structure_flow", "latent_flow")
ENCODER, DECODER = "sparse_structure_encoder", "sparse_structure_decoder"
PUBLISHED = {IMAGE_ENCODER: "dinov2_vitl14_reg", TEXT_ENCODER: "openai/clip-vit-large-patch14"}
STATISTICS_OF = 50_000  # assets at most, for means and deviations of latents
TRIES = 20  # items in a row that cannot be read before training gives up

Read = TypeVar("Read")


@dataclass
class Tuning:
    """A run that can start: what learns, what it learns from, and what it needs beside that."""

    recipe: Recipe
    networks: nn.ModuleDict  # that are trained, by name
    catalog: Catalog
    order: SampleOrder
    losses_of: LossesOf
    generators: Mapping[str, torch.Generator]
    normalization: Normalization | None  # of the latents of a latent flow
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lora: LoRA | None = None
    inflated: bool = False  # half-precision networks beside a float32 master copy
    replaced: Counter[str] = field(default_factory=Counter)  # items that could not be read, by reason

    @property
    def learner(self) -> nn.Module:
        return self.networks if self.lora is None else self.lora

    @property
    def flow(self) -> Any:
        """The flow that elastic memory acts on; None for the autoencoder."""
        return next(iter(self.networks.values())) if self.recipe.is_flow else None


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
) -> Tuning:
    """Read the table, build or load the networks, and make the objective.

    Raises `InputError` when the data has no usable item, `ModelError` when weights are missing or do not fit,
    `UsageError` when the recipe cannot be trained here.
    """
    world, device, kernels = world or World(), device or torch.device("cpu"), kernels or Kernels()
    if recipe.version != "trellis" or recipe.stage not in STAGES:
        raise UsageError(
            f"the recipe `{recipe.name}` cannot be trained by this command yet",
            hint="`--dry-run` shows what it needs",
        )
    if lora is not None and not recipe.is_flow:
        raise UsageError("adapters are for flows", hint="drop `--lora-rank`, or choose a flow's recipe")
    catalog = open_catalog(data, recipe.data)
    require_entries(catalog, data)
    settings = None if model is None else read_settings(model / hub.PIPELINE)
    stems = {} if model is None or settings is None else find_checkpoints(model, settings, model.name)
    torch.manual_seed(seed)
    networks = nn.ModuleDict(
        {name: network(name, facts, stems, kernels) for name, facts in recipe.trains.items()}
    ).to(device)
    generators = {
        "choice": torch.Generator().manual_seed(seed + 1000 * world.rank),
        "noise": torch.Generator(device).manual_seed(seed + 1000 * world.rank),
    }
    order = SampleOrder(
        len(catalog.entries),
        rank=world.rank,
        ranks=world.size,
        seed=seed,
        loads=catalog.loads if recipe.stage == "latent_flow" else None,
        batch_size=recipe.batch.per_gpu,
    )
    text = recipe.condition is not None and recipe.condition.kind == "text"
    tuning = Tuning(
        recipe,
        networks,
        catalog,
        order,
        losses_of=lambda indices: {},
        generators=generators,
        normalization=normalization_of(recipe, settings, catalog),
        captions=read_captions(data) if text else {},
    )
    tuning.losses_of = objective(tuning, stems, device, kernels)
    half = device.type != "cpu" and recipe.precision == "inflated_float16"
    if half:
        for each in networks.values():
            each.set_torso_dtype(torch.float16)  # type: ignore[operator]
    if lora is not None:
        tuning.lora = LoRA(tuning.flow, lora, torch.Generator().manual_seed(seed))
    tuning.inflated = half and lora is None
    return tuning


def finish(tuning: Tuning, trainee: Trainee, run: Path) -> list[Path]:
    """Write the averaged weights: an adapter as `lora.safetensors`, networks as `ckpts/NAME.*`."""
    with torch.no_grad():
        for name, parameter in trainee.named.items():
            parameter.copy_(trainee.average[name])
    if tuning.lora is not None:
        path = run / "lora.safetensors"
        name = next(iter(tuning.networks))
        tuning.lora.save(path, network=name, recipe=tuning.recipe.name, step=trainee.step)
        return [path]
    paths = []
    for name, each in tuning.networks.items():
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in each.state_dict().items()}
        path = run / "ckpts" / f"{name}.safetensors"
        write_file(path, [save(tensors, {"network": name, "recipe": tuning.recipe.name})])
        config = json.dumps(tuning.recipe.trains[name].config, indent=1).encode()
        write_file(path.with_suffix(".json"), [config])
        paths.append(path)
    return paths


# --- networks ----------------------------------------------------------------------------------------


def network(name: str, facts: NetworkFacts, stems: Mapping[str, Path], kernels: Kernels) -> nn.Module:
    """With the model's weights, or with new ones when there is no model; in float32."""
    if stems:
        if name not in stems:
            raise ModelError(
                f"this model has no network `{name}`", hint="choose a recipe that fits the model"
            )
        mine = network_config(name, stems[name])["args"]
        odd = [k for k, v in facts.config["args"].items() if k in mine and mine[k] != v]
        if odd:
            raise UsageError(
                f"`{name}` of the model has {odd[0]} {mine[odd[0]]}, "
                f"the recipe {facts.config['args'][odd[0]]}",
                hint="choose a recipe for this model",
            )
        loaded = load_model(stems[name], MODELS, dtype=torch.float32, kernels=kernels)
        return loaded.train().requires_grad_(True)
    built = build_model(facts.config, MODELS, kernels=kernels).to_empty(device="cpu")
    built.initialize()  # type: ignore[operator]
    if hasattr(built, "reset_buffers"):
        built.reset_buffers(torch.device("cpu"))  # type: ignore[operator]
    return built.train()


def frozen_encoder(name: str, stems: Mapping[str, Path], kernels: Kernels) -> Any:
    """The model's encoder of pictures or prompts, or the published one in the hub's cache."""
    stem = stems.get(name) or hub.find_checkpoint(ENCODERS[PUBLISHED[name]], Path())
    return load_network(name, stem, Runtime(kernels=kernels))


# --- objectives --------------------------------------------------------------------------------------


def objective(tuning: Tuning, stems: Mapping[str, Path], device: torch.device, kernels: Kernels) -> LossesOf:
    """Indices of a micro-batch to losses, as the stage of the recipe asks."""
    if not tuning.recipe.is_flow:
        return lambda indices: vae_objective(tuning, device, indices)
    assert tuning.recipe.condition is not None
    name = TEXT_ENCODER if tuning.recipe.condition.kind == "text" else IMAGE_ENCODER
    encoder = frozen_encoder(name, stems, kernels).to(device)
    return lambda indices: flow_objective(tuning, encoder, device, indices)


def vae_objective(tuning: Tuning, device: torch.device, indices: Sequence[int]) -> Mapping[str, Tensor]:
    """One term between true and decoded occupancy, as the recipe weighs it, and KL."""
    weights = tuning.recipe.losses
    term = next(name for name in STRUCTURE_TERMS if weights.get(name))
    resolution = tuning.recipe.data.resolution
    grids = read_all(tuning, indices, lambda entry: read_occupancy(entry, resolution))
    occupancy = torch.stack(grids).to(device)
    encoder, decoder = tuning.networks[ENCODER], tuning.networks[DECODER]
    latent = tuning.recipe.trains[ENCODER].config["args"]
    side = resolution // 2 ** (len(latent["channels"]) - 1)
    shape = (len(occupancy), latent["latent_channels"], side, side, side)
    noise = torch.randn(shape, generator=tuning.generators["noise"], device=device)
    return structure_vae_losses(
        encoder,
        decoder,
        occupancy,
        noise,
        term=term,  # type: ignore[arg-type]
        kl_weight=weights.get("kl", 0.0) / weights[term],
    )


def flow_objective(
    tuning: Tuning, encoder: Any, device: torch.device, indices: Sequence[int]
) -> Mapping[str, Tensor]:
    """Flow matching; random numbers in the released order: noise, times, dropped conditions."""
    recipe = tuning.recipe
    assert recipe.condition is not None
    assert recipe.times is not None
    items = read_all(tuning, indices, lambda entry: read_item(tuning, entry))
    targets, starts = zip(*items, strict=True)
    noise_of, choice = tuning.generators["noise"], tuning.generators["choice"]
    flow = next(iter(tuning.networks.values()))
    x: Any
    if recipe.stage == "structure_flow":
        x = torch.stack([target[1] for target in targets]).to(device)
        noise = torch.randn(x.shape, generator=noise_of, device=device)
    else:
        x = packed(*zip(*targets, strict=True)).to(device)
        noise = torch.randn(x.feats.shape, generator=noise_of, device=device)
    t = draw_times(recipe.times, len(indices), choice).to(device)
    drop = dropped(len(indices), recipe.condition.drop, choice)
    with torch.no_grad():
        cond, uncond = encoded(tuning, encoder, starts, device)
    return flow_losses(flow, x, noise, t, without_condition(cond, drop, uncond))


def read_item(tuning: Tuning, entry: Entry) -> tuple[tuple[Tensor, Tensor], Any]:
    """Coordinates (none for a structure) and the latent that a flow learns, and a picture or a caption."""
    condition, choice = tuning.recipe.condition, tuning.generators["choice"]
    assert condition is not None
    if tuning.recipe.stage == "structure_flow":
        target = torch.zeros(0), read_structure(entry)
    else:
        coords, feats = read_latent(entry)
        assert tuning.normalization is not None
        target = coords, normalized(feats, tuning.normalization)
    pick = float(torch.rand((), generator=choice))
    if condition.kind == "image":
        return target, read_condition(entry, condition.image_size, pick)
    captions = tuning.captions.get(entry.sha256, ())
    if not captions:
        raise InputError("an item has no caption", hint="caption that asset, or leave it out")
    return target, captions[int(pick * len(captions))]


def encoded(
    tuning: Tuning, encoder: Any, starts: Sequence[Any], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Condition tokens [B, M, C], and those of the empty prompt [1, M, C]; None are zeros."""
    condition = tuning.recipe.condition
    assert condition is not None
    if condition.kind == "image":
        return encoder(prepare_images(torch.stack(list(starts)).to(device), condition.image_size)), None
    length = encoder.max_position_embeddings
    ids = [encoder.tokenizer.encode(text, length).ids for text in ("", *starts)]
    empty, tokens = encoder(torch.tensor(ids, device=device)).split([1, len(starts)])
    return tokens, empty


def read_all(tuning: Tuning, indices: Sequence[int], read: Callable[[Entry], Read]) -> list[Read]:
    """Read the items; one that cannot be read is counted, and another one takes its place."""
    items = []
    for first in indices:
        index = first
        for _ in range(TRIES):
            try:
                items.append(read(tuning.catalog.entries[index]))
                break
            except InputError as error:
                tuning.replaced[error.message] += 1
                count = len(tuning.catalog.entries)
                index = int(torch.randint(count, (), generator=tuning.generators["choice"]))
        else:
            reason, count = tuning.replaced.most_common(1)[0]
            raise InputError(
                f"{TRIES} items in a row cannot be read, most often: {reason} ({count} times)",
                hint="prepare the data again",
            )
    return items


def draw_times(settings: TimeSettings, count: int, generator: torch.Generator) -> Tensor:  # float32 [B]
    if settings.name == "uniform":
        return torch.rand(count, generator=generator)
    return logit_normal_times(count, settings.mean, settings.std, generator)


def normalized(feats: Tensor, vectors: Normalization) -> Tensor:
    return (feats - feats.new_tensor(vectors.mean)) / feats.new_tensor(vectors.std)


def normalization_of(
    recipe: Recipe, settings: PipelineSettings | None, catalog: Catalog
) -> Normalization | None:
    """The model's vectors, or without a model the statistics of the data; None where latents stay raw."""
    if recipe.stage != "latent_flow":
        return None
    if settings is not None:
        return settings.normalization
    moments = [
        (feats.mean(0), feats.square().mean(0))  # every asset weighs the same
        for feats in (read_latent(entry)[1].double() for entry in catalog.entries[:STATISTICS_OF])
    ]
    mean, square = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def require_entries(catalog: Catalog, data: Path) -> None:
    if catalog.missing:
        raise InputError(
            f"`{data}` is not complete: {catalog.missing[0]}", hint="`--dry-run` lists what is needed"
        )
    if not catalog.entries:
        why = ", ".join(f"{reason} ({count})" for reason, count in catalog.dropped.items()) or "it is empty"
        raise InputError(f"`{data}` has no usable item: {why}", hint="add data, or change the recipe")
