"""What runs of every model version have in common: how one is opened, reads its items, and is finished.

    recipe + catalog + model files -> Tuning -> released.run -> finish

A version adds the objective. Knows no network class and no data layout.
Letters: B batch, T packed tokens, C channels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.io.files import write_file
from trellis_core.kernels.table import Kernels
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.batching import SampleOrder
from trellis_core.training.data import Catalog, Entry
from trellis_core.training.distributed import World
from trellis_core.training.elastic import Checkpointable, CheckpointedTogether
from trellis_core.training.lora import LoRA, LoRASettings
from trellis_core.training.objectives import logit_normal_times
from trellis_core.training.recipes import NetworkFacts, Recipe, TimeSettings
from trellis_core.training.released import LossesOf, Trainee
from trellis_core.weights.load import build_model, load_model

STATISTICS_OF = 50_000  # assets at most, for means and deviations of latents
TRIES = 20  # items in a row that cannot be read before training gives up
ADAPTER = "lora.safetensors"

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run's networks come from."""

    classes: Mapping[str, type[nn.Module]]  # released name -> class
    config_of: Callable[[str, Path], Mapping[str, Any]]  # network name, stem -> {"name", "args"}
    stems: Mapping[str, Path]  # network name -> stem of its files in the model; empty: all start anew


@dataclass
class Tuning:
    """A run that can start: what learns, what it learns from, and what it needs beside that."""

    recipe: Recipe
    networks: nn.ModuleDict  # that are trained, by name
    catalog: Catalog
    order: SampleOrder
    generators: Mapping[str, torch.Generator]  # `choice` on the CPU, `noise` on the device
    device: torch.device
    kernels: Kernels
    losses_of: LossesOf = lambda indices: {}  # what the version sets
    lora: LoRA | None = None
    inflated: bool = False  # half-precision networks beside a float32 master copy
    replaced: Counter[str] = field(default_factory=Counter)  # items that could not be read, by reason

    @property
    def learner(self) -> nn.Module:
        return self.networks if self.lora is None else self.lora

    @property
    def flow(self) -> Any:
        """The flow that is trained; None for autoencoders."""
        return next(iter(self.networks.values())) if self.recipe.is_flow else None

    @property
    def elastic(self) -> Checkpointable | None:
        """What elastic memory acts on; None when the recipe does without."""
        if self.recipe.elastic is None:
            return None
        return CheckpointedTogether(list(self.networks.values()))  # type: ignore[arg-type]

    @property
    def noise(self) -> torch.Generator:
        return self.generators["noise"]

    @property
    def choice(self) -> torch.Generator:
        return self.generators["choice"]


def assemble(
    recipe: Recipe,
    catalog: Catalog,
    source: Source,
    *,
    lora: LoRASettings | None = None,
    device: torch.device | None = None,
    kernels: Kernels | None = None,
    seed: int = 0,
    world: World | None = None,
) -> Tuning:
    """Build or load the networks and attach the adapter; the objective is still to be set.

    Raises `ModelError` when weights are missing or do not fit, `UsageError` when the recipe does not fit the
    model.
    """
    world, device, kernels = world or World(), device or torch.device("cpu"), kernels or Kernels()
    torch.manual_seed(seed)
    networks = nn.ModuleDict(
        {name: network(name, facts, source, kernels) for name, facts in recipe.trains.items()}
    ).to(device)
    own = seed + 1000 * world.rank
    tuning = Tuning(
        recipe,
        networks,
        catalog,
        SampleOrder(
            len(catalog.entries),
            rank=world.rank,
            ranks=world.size,
            seed=seed,
            loads=None if recipe.stage.startswith("structure") else catalog.loads,
            batch_size=recipe.batch.per_gpu,
        ),
        {"choice": torch.Generator().manual_seed(own), "noise": torch.Generator(device).manual_seed(own)},
        device,
        kernels,
    )
    half = device.type != "cpu" and recipe.precision != "float32"
    if lora is not None:
        if half:  # frozen matrices need no more; bfloat16, because nothing scales an adapter's loss
            tuning.flow.set_torso_dtype(torch.bfloat16)
        tuning.lora = LoRA(tuning.flow, lora, torch.Generator().manual_seed(seed))
    elif half and recipe.precision == "inflated_float16":
        tuning.inflated = True
        for each in networks.values():
            each.set_torso_dtype(torch.float16)  # type: ignore[operator]
    return tuning


def finish(tuning: Tuning, trainee: Trainee, run: Path) -> list[Path]:
    """Write the averaged weights: an adapter as `lora.safetensors`, networks as `ckpts/NAME.*`."""
    with torch.no_grad():
        for name, parameter in trainee.named.items():
            parameter.copy_(trainee.average[name])
    if tuning.lora is not None:
        path = run / ADAPTER
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


def network(name: str, facts: NetworkFacts, source: Source, kernels: Kernels) -> nn.Module:
    """With the model's weights, or with new ones when there is no model; in float32."""
    if not source.stems:
        built = build_model(facts.config, source.classes, kernels=kernels, device="cpu")
        built.initialize()  # type: ignore[operator]
        return built.train()
    stem = stem_of(name, source)
    config = source.config_of(name, stem)
    mine, theirs = config["args"], facts.config["args"]
    odd = [k for k, v in theirs.items() if k in mine and mine[k] != v]
    if odd:
        raise UsageError(
            f"`{name}` of the model has {odd[0]} {mine[odd[0]]}, the recipe {theirs[odd[0]]}",
            hint="choose a recipe for this model, or give `--stage` instead of `--recipe`",
        )
    loaded = load_model(stem, source.classes, dtype=torch.float32, kernels=kernels, config=config)
    return loaded.train().requires_grad_(True)


def stem_of(name: str, source: Source) -> Path:
    if name not in source.stems:
        raise ModelError(
            f"this model has no network `{name}`",
            hint="choose another stage, or a recipe or model that fits",
        )
    return source.stems[name]


# --- items -------------------------------------------------------------------------------------------


def require_trainable(recipe: Recipe, version: str, stages: Iterable[str], lora: LoRASettings | None) -> None:
    """`UsageError` for a recipe that is not this version's, and for adapters of autoencoders."""
    if recipe.version != version or recipe.stage not in stages:
        raise UsageError(
            f"the recipe `{recipe.name}` cannot be trained by this command yet",
            hint="`--dry-run` shows what it needs",
        )
    if lora is not None and not recipe.is_flow:
        raise UsageError("adapters are for flows", hint="drop `--lora-rank`, or choose a flow's recipe")


def usable(catalog: Catalog, data: Path) -> Catalog:
    """The catalog. Raises `InputError` when it is not complete or has no item."""
    if catalog.missing:
        raise InputError(
            f"`{data}` is not complete: {catalog.missing[0]}",
            hint="`--dry-run` lists what is needed; `trellis train data ingest` makes it from meshes",
        )
    if not catalog.entries:
        why = ", ".join(f"{reason} ({count})" for reason, count in catalog.dropped.items()) or "it is empty"
        raise InputError(
            f"`{data}` has no usable item: {why}", hint="ingest more meshes, or change the recipe"
        )
    return catalog


def read_all(tuning: Tuning, indices: Sequence[int], read: Callable[[Entry], Read]) -> list[Read]:
    """Read the items; one that cannot be read is counted, and another one takes its place."""
    items, entries = [], tuning.catalog.entries
    for first in indices:
        index = first
        for _ in range(TRIES):
            try:
                items.append(read(entries[index]))
                break
            except InputError as error:
                tuning.replaced[error.message] += 1
                index = int(torch.randint(len(entries), (), generator=tuning.choice))
        else:
            reason, count = tuning.replaced.most_common(1)[0]
            raise InputError(
                f"{TRIES} items in a row cannot be read, most often: {reason} ({count} times)",
                hint="run `trellis train data ingest` again",
            )
    return items


def packed(coords: Sequence[Tensor], feats: Sequence[Tensor]) -> SparseTensor:
    """Samples one after the other."""
    numbered = [torch.cat([torch.full_like(c[:, :1], i), c], 1) for i, c in enumerate(coords)]
    return SparseTensor(torch.cat(list(feats)), torch.cat(numbered).int(), len(coords))


def draw_times(settings: TimeSettings, count: int, generator: torch.Generator) -> Tensor:  # float32 [B]
    if settings.name == "uniform":
        return torch.rand(count, generator=generator)
    return logit_normal_times(count, settings.mean, settings.std, generator)


def latent_statistics(
    latents: Iterable[Tensor],  # float32 [T, C] of each asset
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel; every asset weighs the same."""
    moments = [(f.mean(0), f.square().mean(0)) for f in (feats.double() for feats in latents)]
    mean, square = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
