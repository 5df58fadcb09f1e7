"""What a training run would do, told before it starts: steps, batch, parameters, memory, data.

Networks are built on the meta device at most; nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_core.errors import ModelError, UsageError

if TYPE_CHECKING:
    from trellis_core.training.data import Catalog
    from trellis_core.training.recipes import NetworkFacts, Recipe

EMBEDDED = "embedded"
STAGED = ("resolution", "token_resolution", "image_size", "models", "stages", "samplers")
GIB = 2**30
CARDS = (24, 40, 80, 141)  # GiB of usual data-centre cards
LABEL = 17
PRECISIONS = {
    "float32": "float32",
    "bfloat16": "bfloat16 matrix products, float32 weights",
    "inflated_float16": "float16 with a float32 master copy and loss scaling",
}


def recipe_folders() -> list[Path]:
    """Where recipes lie: in the installed packages, or in `configs/` beside them."""
    spec = find_spec("trellis2")
    package = (
        Path(next(iter(spec.submodule_search_locations or ()), "trellis2")) if spec else Path("trellis2")
    )
    places = [
        place
        for version in ("trellis2", "trellis")
        for place in (package.parent / version / "_configs", package.parent / "configs" / version)
    ]
    return [place / "recipes" for place in places if (place / "recipes").is_dir()]


def staged_recipe(name: str) -> dict[str, Any] | None:
    """A recipe of stages that follow each other: `embedded`, or a JSON file of that form; None for others.

    Raises `ModelError` when the package's own cannot be read.
    """
    if name == EMBEDDED:
        return embedded_recipe()
    path = Path(name)
    if path.suffix != ".json":
        return None
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reading it as a recipe of one stage says what is wrong
        return None
    if not isinstance(recipe, dict) or "stages" not in recipe:
        return None
    lacking = [key for key in STAGED if key not in recipe]
    if lacking:
        raise UsageError(f"recipe `{path}` lacks `{lacking[0]}`", hint="see `configs/trellis2/embedded`")
    return recipe


def embedded_recipe() -> dict[str, Any]:
    """The recipe of the model in the package."""
    from trellis_cli.released import configuration_folder

    folder = configuration_folder("trellis2-4b")
    path = Path("recipe.json") if folder is None else folder.parent / EMBEDDED / "recipe.json"
    try:
        recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` cannot be read: {error}", hint="install the package again") from error
    return recipe


def describe(
    recipe: Recipe, steps: int, rank: int | None, data: Path | None
) -> tuple[list[str], dict[str, Any]]:
    """The dry run of a recipe: lines for a person, facts for a script."""
    from trellis_core.training.data import KINDS
    from trellis_core.training.footprint import adapter_parameters, estimate

    flow = next(iter(recipe.trains.values()))
    adapter = None if rank is None else adapter_parameters(flow, rank)
    need = estimate(recipe, adapter)
    micro = recipe.batch.per_gpu // recipe.batch.splits
    o = recipe.optimizer
    rows = [row("recipe", f"{recipe.name}: {recipe.summary}")]
    if recipe.fine_tunes:
        rows.append(row("starts from", f"the result of {recipe.fine_tunes}"))
    for name, network in recipe.trains.items():
        count = counted(recipe, name, network)
        rows.append(row("trains", f"{name}, {network.config['name']}, {count}"))
    for name, network in recipe.frozen.items():
        rows.append(row("beside it", f"{name}, {network.config['name']}, {network.parameters:,} parameters"))
    if adapter is not None:
        rows.append(row("adapter", f"rank {rank}: {adapter:,} parameters; the network itself stays as it is"))
    every = f"log every {recipe.log_every:,}, save every {recipe.save_every:,}"
    rows += [
        row("steps", f"{steps:,}; {every}, samples every {recipe.sample_every:,}"),
        row("batch", f"{recipe.batch.per_gpu} per GPU; micro-batches: {recipe.batch.splits} of {micro}"),
        row(
            "optimizer",
            f"AdamW, rate {o.rate:g}, betas {o.betas[0]:g} {o.betas[1]:g}, decay {o.weight_decay:g}; "
            f"average {recipe.ema:g}",
        ),
        row(
            "clip", f"norm {recipe.clip.max_norm:g}, or percentile {recipe.clip.percentile:g} of recent norms"
        ),
        row("precision", PRECISIONS[recipe.precision]),
    ]
    if recipe.losses:
        terms = ", ".join(f"{name} {weight:g}" for name, weight in recipe.losses.items())
        rows.append(
            row("losses", terms + ("; LPIPS needs `--lpips FILE`" if "lpips" in recipe.losses else ""))
        )
    if recipe.condition:
        c = recipe.condition
        picture = f" of {c.image_size} pixels" if c.image_size else ""
        rows.append(row("condition", f"{c.kind}{picture}, {c.tokens:,} tokens, dropped with {c.drop:g}"))
    rows += ["", *memory_rows(recipe, need), "", *data_rows(recipe)]
    facts: dict[str, Any] = {
        "recipe": recipe.name,
        "steps": steps,
        "batch": {"per_gpu": recipe.batch.per_gpu, "micro_batches": recipe.batch.splits},
        "parameters": {"networks": recipe.parameters, "trained": need.trained},
        "memory": {
            "weights": need.weights,
            "gradients": need.gradients,
            "optimizer": need.optimizer,
            "average": need.average,
            "frozen": need.frozen,
            "activations_kept": need.activations.kept,
            "activations_recomputed": need.activations.recomputed,
        },
        "data": {"kind": recipe.data.kind, "roles": list(KINDS[recipe.data.kind].roles)},
    }
    if data is not None:
        catalog = catalog_of(recipe, data)
        rows += catalog_rows(catalog, data)
        facts["data"] |= {
            "items": len(catalog.entries),
            "dropped": dict(catalog.dropped),
            "missing": list(catalog.missing),
        }
    else:
        rows.append(row("missing", "pass `--data FOLDER` to see what of this is there"))
    return rows, facts


def catalog_of(recipe: Recipe, data: Path) -> Catalog:
    """What of a data folder the recipe can use."""
    if recipe.version == "trellis":
        from trellis.data import open_catalog

        return open_catalog(data, recipe.data)
    from trellis_core.training.data import read_catalog

    return read_catalog(data, recipe.data)


def counted(recipe: Recipe, name: str, facts: NetworkFacts) -> str:
    """Parameters of the network as built on the meta device. `UsageError` when the recipe says others."""
    from trellis_core.weights.load import build_model

    if recipe.version == "trellis":
        from trellis.models import MODELS
    else:
        from trellis2.models import MODELS  # type: ignore[assignment]
    built = sum(p.numel() for p in build_model(facts.config, MODELS).parameters())
    if built != facts.parameters:
        raise UsageError(
            f"`{name}` has {built:,} parameters, the recipe says {facts.parameters:,}",
            hint="mend `parameters` in the recipe",
        )
    return f"{built:,} parameters"


def memory_rows(recipe: Recipe, need: Any) -> list[str]:
    """Bytes per GPU, and which cards they fit."""
    data = recipe.data
    limit = next(
        (f"{n:,} {what}" for n, what in ((data.max_tokens, "tokens"), (data.max_voxels, "voxels")) if n),
        "a full grid",
    )
    samples = recipe.batch.per_gpu // recipe.batch.splits
    kept, again = need.activations.kept, need.activations.recomputed
    parts = (
        ("weights", need.weights),
        ("gradients", need.gradients),
        ("optimizer", need.optimizer),
        ("average", need.average),
        ("frozen", need.frozen),
    )
    states = ", ".join(f"{name} {amount(size)}" for name, size in parts if size)
    rows = [
        row("memory", f"estimated, per GPU: {amount(need.state)} besides activations"),
        row("", states),
        row(
            "",
            f"activations of {samples} samples, {limit} each: {amount(kept)} all kept, "
            f"{amount(again)} computed again",
        ),
    ]
    if recipe.elastic is not None:
        share = recipe.elastic.start
        rows.append(
            row("", f"elastic: at first at most {share:.0%} kept, {amount(need.total(share))} in all")
        )
    least = need.total(0.0)
    fitting = [card for card in CARDS if card * GIB * 0.95 >= least]
    fits = (
        f"a card of {fitting[0]} GiB" if fitting else f"no card of {CARDS[-1]} GiB: use smaller micro-batches"
    )
    if recipe.elastic is None and not recipe.checkpoint_blocks:
        full = [card for card in CARDS if card * GIB * 0.95 >= need.total(1.0)]
        fits += f"; {full[0]} GiB with everything kept" if full else "; with everything kept none"
    return [*rows, row("", f"at the least {amount(least)}: fits {fits}")]


def data_rows(recipe: Recipe) -> list[str]:
    """The layout that is expected."""
    from trellis_core.training.data import KINDS, layout_of

    d = recipe.data
    limits = [
        f"at most {n:,} {what}"
        for n, what in ((d.max_voxels, "voxels"), (d.max_faces, "faces"), (d.max_tokens, "tokens"))
        if n
    ]
    if d.min_aesthetic_score:
        limits.append(f"aesthetic score at least {d.min_aesthetic_score:g} where there is one")
    if d.full_pbr:
        limits.append("textures for base color, metallic and roughness")
    item = f"{KINDS[d.kind].item}; {d.resolution} voxels"
    if "renders" in KINDS[d.kind].roles:
        item += f", pictures of {d.view_size} pixels"
    rows = [
        row("data", f"{d.kind}: {item}"),
        *(row("", f"{place:<22} {what}") for place, what in layout_of(d)),
    ]
    return [*rows, row("filters", "; ".join(limits))] if limits else rows


def catalog_rows(catalog: Catalog, data: Path) -> list[str]:
    rows = [row("missing", sentence) for sentence in catalog.missing]
    if catalog.missing:
        return rows
    rows = [row("items", f"{len(catalog.entries):,} usable in `{data}`")]
    rows += [row("left out", f"{count:,}: {reason}") for reason, count in catalog.dropped.items()]
    return rows


def describe_embedded(
    recipe: Mapping[str, Any], stages: list[str], data: Path | None
) -> tuple[list[str], dict[str, Any]]:
    """The dry run of the recipe with stages."""
    from trellis2.training import stage_of
    from trellis_core.training.synthetic.shards import DatasetSettings

    owners = stage_of(recipe)
    sizes = {name: parameters_of(recipe, name) for name in owners}
    rows = [row("recipe", "embedded: the small model in the package, trained on procedural objects")]
    facts: dict[str, Any] = {"recipe": EMBEDDED, "stages": {}}
    for stage in stages:
        later = stage.replace("_vae", "_decoder")  # a VAE's decoder, which goes on alone afterwards
        names = [name for name, owner in owners.items() if owner in (stage, later)]
        count = sum(sizes[name] for name in names)
        batch = recipe["stages"][stage].get("batch_size")
        state = 20 * count  # weights, 16-bit copies and their gradients, momentum or two moments, average
        what = f"{', '.join(names)}; {count:,} parameters"
        rows.append(row(stage, f"{what}, {state / 1e6:.0f} MB of state, batch {batch}"))
        facts["stages"][stage] = {"networks": names, "parameters": count, "batch": batch}
    settings = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"])
    rows += [
        row("steps", "as `--steps` or `--seconds` say, for each stage"),
        row(
            "data",
            f"shards of {settings.shard} objects, {settings.resolution} voxels, {settings.views} pictures of "
            f"{settings.image_size} pixels, {settings.captions} captions each",
        ),
        row("", "make them with `trellis train data --recipe embedded --objects 40000 --out FOLDER`"),
    ]
    if data is not None:
        shards = sorted(data.glob("*.safetensors"))
        rows.append(row("items", f"{len(shards)} shards in `{data}`"))
        facts["shards"] = len(shards)
    return rows, facts


def parameters_of(recipe: Mapping[str, Any], name: str) -> int:
    """Of a network of the embedded recipe; a text encoder's vocabulary is that of the captions."""
    from trellis2.models import MODELS
    from trellis_core.models.tokenizer import Tokenizer, word_vocabulary
    from trellis_core.training.synthetic.captions import WORDS
    from trellis_core.weights.load import build_model

    config = recipe["models"][name]
    if name == "text_encoder":
        text = {
            "vocab_size": Tokenizer(*word_vocabulary(WORDS)).size,
            "max_position_embeddings": recipe["text"]["max_length"],
        }
        config = {"name": config["name"], "args": {**config["args"], **text}}
    return sum(p.numel() for p in build_model({"args": {}, **config}, MODELS).parameters())


def row(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{text}"


def amount(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
