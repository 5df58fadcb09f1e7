"""Train TRELLIS.2 networks on data in the released layout: new ones, a model's, or an adapter beside them.

    recipe + data folder (+ model folder) -> Tuning -> trellis_core.training.released.run -> finish

Losses are those of `objectives.py`; LPIPS is off, because it needs weights that are not ours to ship.
Pictures condition the flows.
Letters: B batch, T packed tokens or voxels, N tokens of a sample, C channels.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trellis2.dual_grid import extract_mesh
from trellis2.ingest import find_encoders
from trellis2.loading import IMAGE_ENCODER, find_checkpoints, network_config
from trellis2.models import MODELS
from trellis2.objectives import materials_against, shape_vae_losses, surfaces_against, texture_vae_losses
from trellis2.settings import Normalization, PipelineSettings, read_settings
from trellis2.weights import IMAGE_ENCODER as PUBLISHED_ENCODER
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.geometry.types import Mesh
from trellis_core.io.files import write_file
from trellis_core.kernels.table import Kernels
from trellis_core.models.image_encoder import prepare_images
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.batching import SampleOrder
from trellis_core.training.data import (
    Catalog,
    Entry,
    read_catalog,
    read_condition,
    read_dual_grid,
    read_latent,
    read_materials,
    read_structure,
)
from trellis_core.training.distributed import World
from trellis_core.training.lora import FORMAT, LoRA, LoRASettings, load_lora
from trellis_core.training.losses import flow_losses
from trellis_core.training.objectives import logit_normal_times
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
from trellis_core.training.released import LossesOf, Trainee
from trellis_core.weights import hub
from trellis_core.weights.load import build_model, load_model
from trellis_core.weights.verify import count_parameters

DATA_KINDS: Mapping[Stage, str] = {
    "shape_vae": "dual_grids",
    "texture_vae": "pbr_voxels",
    "structure_flow": "structure_latents",
    "shape_flow": "shape_latents",
    "texture_flow": "texture_latents",
}
DRAWN: Mapping[Stage, str] = {"shape_vae": "mask", "texture_vae": "render"}  # losses that ask for pictures
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
    normalizations: Mapping[str, Normalization]
    lora: LoRA | None = None
    inflated: bool = False  # half-precision networks beside a float32 master copy
    replaced: Counter[str] = field(default_factory=Counter)  # items that could not be read, by reason

    @property
    def learner(self) -> nn.Module:
        return self.networks if self.lora is None else self.lora

    @property
    def flow(self) -> Any:
        """The flow that elastic memory acts on; None for autoencoders."""
        return next(iter(self.networks.values())) if self.recipe.is_flow else None


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
    stems = find_stems(folder, settings)
    flow = stage.endswith("_flow")
    size = kind.structure_image_size if stage == "structure_flow" else kind.texture_image_size
    encoder = facts_of(stems, IMAGE_ENCODER).config["args"]
    tokens = (size // encoder["patch_size"]) ** 2 + 1 + encoder.get("num_register_tokens", 0)
    dense = stage == "structure_flow"
    return Recipe(
        name=f"{folder.name.strip('_')}-{stage.replace('_', '-')}",
        summary=f"{stage.replace('_', ' ').capitalize()} of a model, fine-tuned",
        version="trellis2",
        stage=stage,
        trains={name: facts_of(stems, name) for name in names},
        frozen={IMAGE_ENCODER: facts_of(stems, IMAGE_ENCODER)} if flow else {},
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
    """Read the tables, build or load the networks, and make the objective.

    Raises `InputError` when the data has no usable item, `ModelError` when weights are missing or do not fit,
    `UsageError` when the recipe cannot be trained here.
    """
    world, device, kernels = world or World(), device or torch.device("cpu"), kernels or Kernels()
    if recipe.version != "trellis2" or recipe.stage not in DATA_KINDS:
        raise UsageError(
            f"the recipe `{recipe.name}` cannot be trained by this command yet",
            hint="`--dry-run` shows what it needs",
        )
    if lora is not None and not recipe.is_flow:
        raise UsageError("adapters are for flows", hint="drop `--lora-rank`, or choose a flow's recipe")
    catalog = read_catalog(data, recipe.data)
    require_entries(catalog, data)
    settings = None if model is None else read_settings(model / hub.PIPELINE)
    stems = {} if model is None or settings is None else find_stems(model, settings)
    torch.manual_seed(seed)
    networks = nn.ModuleDict(
        {name: network(name, facts, stems, kernels) for name, facts in recipe.trains.items()}
    ).to(device)
    if recipe.checkpoint_blocks:
        for each in networks.values():
            each.checkpointed = (True,) * (each.levels + 1)  # type: ignore[assignment, operator]
    generators = {
        "choice": torch.Generator().manual_seed(seed + 1000 * world.rank),
        "noise": torch.Generator(device).manual_seed(seed + 1000 * world.rank),
    }
    tuning = Tuning(
        recipe,
        networks,
        catalog,
        SampleOrder(
            len(catalog.entries),
            rank=world.rank,
            ranks=world.size,
            seed=seed,
            loads=catalog.loads,
            batch_size=recipe.batch.per_gpu,
        ),
        losses_of=lambda indices: {},
        generators=generators,
        normalizations=normalizations_of(recipe, settings, catalog),
    )
    tuning.losses_of = objective(tuning, stems, device, kernels)
    if device.type != "cpu" and recipe.precision == "inflated_float16":
        tuning.inflated = True
        for each in networks.values():
            each.set_torso_dtype(torch.float16)  # type: ignore[operator]
    if lora is not None:
        if device.type != "cpu" and recipe.precision != "float32":  # frozen matrices need no more
            tuning.flow.set_torso_dtype(torch.bfloat16)
        tuning.lora = LoRA(tuning.flow, lora, torch.Generator().manual_seed(seed))
        tuning.inflated = False
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


def merge_into_model(trained: Path, model: Path, out: Path) -> Path:
    """A copy of a model folder with a trained network, or with an adapter merged into its network.

    `trained` is what `finish` wrote. Numbers are stored as the model stores them. Returns `out`.
    """
    if out.exists():
        raise UsageError(f"`{out}` exists", hint="choose a folder that does not exist")
    settings = read_settings(model / hub.PIPELINE)
    stems, about = find_stems(model, settings), facts_of_file(trained)
    name = about.get("network", "")
    if name not in stems:
        raise ModelError(f"`{model}` has no network `{name}`", hint=f"it has: {', '.join(sorted(stems))}")
    stem = stems[name]
    dtypes = {k: v.dtype for k, v in load_file(hub.weights_of(stem)).items()}
    network = load_model(stem, MODELS, dtype=torch.float32)
    if about["format"] == FORMAT:
        load_lora(trained, network).merge()
        tensors = network.state_dict()
    else:
        tensors = load_file(trained)
    if set(tensors) - set(dtypes):
        raise ModelError(f"`{trained}` does not fit `{stem}`", hint="use it with the model it came from")
    stored = {k: tensors[k].to(dtype).contiguous() if k in tensors else dtype for k, dtype in dtypes.items()}
    shutil.copytree(model, out)
    place = out / stem.relative_to(model) if stem.is_relative_to(model) else out / "ckpts" / stem.name
    write_file(hub.weights_of(place), [save({k: v for k, v in stored.items() if isinstance(v, Tensor)})])
    return out


# --- networks ----------------------------------------------------------------------------------------


def find_stems(folder: Path, settings: PipelineSettings) -> dict[str, Path]:
    """Network name -> stem of its files, the encoders that no pipeline names among them."""
    stems = find_checkpoints(folder, settings, folder.name)
    encoders = find_encoders(folder)
    names = {
        "shape": "shape_slat_encoder",
        "pbr": "tex_slat_encoder",
        "structure": "sparse_structure_encoder",
    }
    return {**{names[role]: stem for role, stem in encoders.items()}, **stems}


def facts_of(stems: Mapping[str, Path], name: str) -> NetworkFacts:
    if name not in stems:
        raise ModelError(f"this model has no network `{name}`", hint="choose another stage or model")
    config, weights = network_config(stems[name]), hub.weights_of(stems[name])
    return NetworkFacts(config=config, parameters=count_parameters(weights))


def network(name: str, facts: NetworkFacts, stems: Mapping[str, Path], kernels: Kernels) -> nn.Module:
    """With the model's weights, or with new ones when there is no model; in float32."""
    if stems:
        if name not in stems:
            raise ModelError(
                f"this model has no network `{name}`", hint="choose a recipe that fits the model"
            )
        mine = network_config(stems[name])["args"]
        odd = [k for k, v in facts.config["args"].items() if k in mine and mine[k] != v]
        if odd:
            theirs = facts.config["args"][odd[0]]
            raise UsageError(
                f"`{name}` of the model has {odd[0]} {mine[odd[0]]}, the recipe {theirs}",
                hint="choose a recipe for this model, or give `--stage` instead of `--recipe`",
            )
        loaded = load_model(stems[name], MODELS, dtype=torch.float32, kernels=kernels)
        return loaded.train().requires_grad_(True)
    built = build_model(facts.config, MODELS, kernels=kernels).to_empty(device="cpu")
    built.initialize()  # type: ignore[operator]
    if hasattr(built, "reset_buffers"):
        built.reset_buffers(torch.device("cpu"))  # type: ignore[operator]
    return built.train()


def image_encoder(stems: Mapping[str, Path], kernels: Kernels) -> nn.Module:
    stem = stems.get(IMAGE_ENCODER) or hub.find_checkpoint(PUBLISHED_ENCODER, Path())
    config = network_config(stem)
    return load_model(stem, MODELS, dtype=torch.float32, kernels=kernels, config=config)


def facts_of_file(path: Path) -> dict[str, str]:
    """What a trained file says about itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"`{path}` cannot be read: {error}", hint="check the path") from error
    adapter = json.loads(metadata["lora"]) if "lora" in metadata else {}
    return {"format": "", **metadata, **{k: str(v) for k, v in adapter.items()}}


# --- objectives --------------------------------------------------------------------------------------


def objective(tuning: Tuning, stems: Mapping[str, Path], device: torch.device, kernels: Kernels) -> LossesOf:
    """Indices of a micro-batch to losses, as the stage of the recipe asks."""
    if tuning.recipe.is_flow:
        encoder = image_encoder(stems, kernels).to(device).requires_grad_(False)
        return lambda indices: flow_objective(tuning, encoder, device, indices)
    return lambda indices: vae_objective(tuning, device, indices)


def flow_objective(
    tuning: Tuning, encoder: nn.Module, device: torch.device, indices: Sequence[int]
) -> Mapping[str, Tensor]:
    recipe, choice = tuning.recipe, tuning.generators["choice"]
    flow = next(iter(tuning.networks.values()))
    assert recipe.condition is not None and recipe.times is not None
    size = recipe.condition.image_size

    def read(entry: Entry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        view = float(torch.rand((), generator=choice))
        return (*read_target(tuning, entry), read_condition(entry, size, view))

    coords, x, extra, pictures = zip(*read_all(tuning, indices, read), strict=True)
    with torch.no_grad():
        tokens = encoder(prepare_images(torch.stack(pictures).to(device), size))
    kept = torch.rand(len(indices), generator=choice) >= recipe.condition.drop
    cond = tokens * kept.to(tokens)[:, None, None]
    t = draw_times(recipe.times, len(indices), choice).to(device)
    noise_of = tuning.generators["noise"]
    if recipe.stage == "structure_flow":
        dense = torch.stack(x).to(device)
        noise = torch.randn(dense.shape, generator=noise_of, device=device)
        return flow_losses(flow, dense, noise, t, cond)
    sparse = packed(coords, x).to(device)
    noise = torch.randn(sparse.feats.shape, generator=noise_of, device=device)
    if recipe.stage == "shape_flow":
        return flow_losses(flow, sparse, noise, t, cond)
    shape = sparse.replace(torch.cat(extra).to(device))
    return flow_losses(flow, sparse, noise, t, cond, concat_cond=shape)


def read_target(tuning: Tuning, entry: Entry) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, normalised latent, and the normalised shape latent that texture is given."""
    none = torch.zeros(0)
    if tuning.recipe.stage == "structure_flow":
        return none, read_structure(entry), none
    role = "shape_latent" if tuning.recipe.stage == "shape_flow" else "pbr_latent"
    coords, feats = read_latent(entry, role)
    feats = normalized(feats, tuning.normalizations[role])
    if role == "shape_latent":
        return coords, feats, none
    other, shape = read_latent(entry, "shape_latent")
    if not torch.equal(other, coords):
        raise InputError("the shape and the texture latent lie on other tokens", hint="ingest the mesh again")
    return coords, feats, normalized(shape, tuning.normalizations["shape_latent"])


def vae_objective(tuning: Tuning, device: torch.device, indices: Sequence[int]) -> Mapping[str, Tensor]:
    encoder, decoder = tuning.networks.values()
    noise_of = tuning.generators["noise"]

    def noise(x: SparseTensor) -> Tensor:
        count = len(torch.unique(x.coords // torch.tensor([1, *[encoder.factor] * 3], device=device), dim=0))
        return torch.randn(count, latent_channels(encoder), generator=noise_of, device=device)

    drawn = DRAWN[tuning.recipe.stage] in tuning.recipe.losses
    choice, resolution = tuning.generators["choice"], tuning.recipe.data.resolution
    if tuning.recipe.stage == "texture_vae":
        read = read_worn if drawn else read_materials
        parts = read_all(tuning, indices, read)
        attrs = packed([p[0] for p in parts], [p[1] for p in parts]).to(device)
        if not drawn:
            return texture_vae_losses(encoder, decoder, attrs, noise(attrs))
        truth = [true_surface(p[0], p[2], p[3], resolution).to(device) for p in parts]
        render = materials_against(truth, attrs, resolution, choice)
        return texture_vae_losses(encoder, decoder, attrs, noise(attrs), render=render)
    coords, position, flags = zip(*read_all(tuning, indices, read_dual_grid), strict=True)
    voxels = packed(coords, position).to(device)
    surfaces = None
    if drawn:
        grids = zip(coords, position, flags, strict=True)
        surfaces = surfaces_against([true_surface(*grid, resolution).to(device) for grid in grids], choice)
        decoder.resolution = resolution  # type: ignore[assignment]  # of the meshes that it is compared with
    flags_here = torch.cat(flags).to(device)
    return shape_vae_losses(encoder, decoder, voxels, flags_here, noise(voxels), render=surfaces)


def read_worn(entry: Entry) -> tuple[Tensor, ...]:
    """Materials and the surface that wears them: coordinates, attributes, dual vertices, crossings."""
    coords, attrs = read_materials(entry)
    other, vertices, crossings = read_dual_grid(entry)
    if not torch.equal(coords, other):
        raise InputError("materials and surface lie on other voxels", hint="ingest the mesh again")
    return coords, attrs, vertices, crossings


def true_surface(coords: Tensor, vertices: Tensor, crossings: Tensor, resolution: int) -> Mesh:
    return extract_mesh(coords, vertices, crossings, None, resolution)


def latent_channels(encoder: nn.Module) -> int:
    return int(encoder.to_latent.out_features) // 2  # type: ignore[union-attr, arg-type]


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
                index = int(
                    torch.randint(len(tuning.catalog.entries), (), generator=tuning.generators["choice"])
                )
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


def normalized(feats: Tensor, vectors: Normalization) -> Tensor:
    return (feats - torch.tensor(vectors.mean)) / torch.tensor(vectors.std)


def normalizations_of(
    recipe: Recipe, settings: PipelineSettings | None, catalog: Catalog
) -> dict[str, Normalization]:
    """The model's vectors, or without a model the statistics of the data, by role."""
    roles = {"shape_flow": ("shape_latent",), "texture_flow": ("shape_latent", "pbr_latent")}
    wanted = roles.get(recipe.stage, ())
    if settings is not None:
        known = {"shape_latent": settings.shape_normalization, "pbr_latent": settings.texture_normalization}
        return {role: known[role] for role in wanted}
    return {role: latent_statistics(catalog.entries[:STATISTICS_OF], role) for role in wanted}


def latent_statistics(entries: Sequence[Entry], role: str) -> Normalization:
    """Mean and deviation per channel; every asset weighs the same."""
    moments = [(f.mean(0), f.square().mean(0)) for f in (read_latent(e, role)[1].double() for e in entries)]
    mean, square = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
    std = (square - mean.square()).clamp_min(1e-12).sqrt()
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def require_entries(catalog: Catalog, data: Path) -> None:
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
