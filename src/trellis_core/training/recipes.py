"""Recipes: everything that decides a training run, as one frozen value read strictly from JSON.

A recipe names the networks it trains (their configurations lie beside the recipes, or inside), the data,
batch, optimiser, precision and schedule. Unknown, missing and mistyped entries are errors that say where they
are.
Knows no network class; what a run costs is estimated in `footprint.py`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trellis_core.errors import UsageError

Stage = Literal[
    "structure_vae",
    "shape_vae",
    "texture_vae",
    "latent_vae",
    "structure_flow",
    "shape_flow",
    "texture_flow",
    "latent_flow",
]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """One network of a run."""

    config: Mapping[str, Any]  # {"name": class, "args": {...}}
    parameters: int  # as published


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is read and what is left out; a key of `data.KINDS` says what an item is."""

    kind: str
    resolution: int  # voxels along an axis
    min_aesthetic_score: float = 0.0  # of assets that have a score
    max_voxels: int | None = None
    max_faces: int | None = None
    max_tokens: int | None = None
    view_size: int = 512  # pixels of the rendered views that losses compare
    full_pbr: bool = False  # only assets with a base color, a metallic and a roughness texture


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    per_gpu: int
    splits: int = 1  # micro-batches, whose gradients are added up

    def __post_init__(self) -> None:
        if self.per_gpu < 1 or self.splits < 1 or self.per_gpu % self.splits:
            raise ValueError(f"a batch of {self.per_gpu} cannot be split into {self.splits} equal parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamSettings:
    """AdamW."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warm_up: int = 0  # steps over which the rate rises linearly


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """Limit of the gradient's norm: `percentile` of the last `window` norms once they are there."""

    max_norm: float = 1.0
    percentile: float = 95.0
    window: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticSettings:
    """Activations that are kept; the rest is computed again in the backward pass."""

    start: float  # share of the blocks at first
    target: float = 0.75  # of the memory that is free


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSettings:
    """How t is drawn."""

    name: Literal["uniform", "logit_normal"]
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionSettings:
    kind: Literal["image", "text"]
    tokens: int  # M, of one sample
    image_size: int = 0  # pixels
    drop: float = 0.1  # probability of the unconditional input


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str
    summary: str
    version: Literal["trellis", "trellis2"]
    stage: Stage
    trains: Mapping[str, NetworkFacts]
    data: DataSettings
    batch: BatchSettings
    optimizer: AdamSettings
    precision: Literal["float32", "bfloat16", "inflated_float16"]
    steps: int
    frozen: Mapping[str, NetworkFacts] = field(default_factory=dict)
    fine_tunes: str | None = None  # recipe whose result it starts from
    losses: Mapping[str, float] = field(default_factory=dict)  # weights by name
    ema: float = 0.9999
    clip: ClipSettings = field(default_factory=ClipSettings)
    elastic: ElasticSettings | None = None
    checkpoint_blocks: bool = False  # compute the activations of every block again
    times: TimeSettings | None = None
    condition: ConditionSettings | None = None
    log_every: int = 500  # steps
    save_every: int = 10_000
    sample_every: int = 10_000

    @property
    def parameters(self) -> int:
        """That are trained."""
        return sum(network.parameters for network in self.trains.values())

    @property
    def is_flow(self) -> bool:
        return self.stage.endswith("_flow")


def read_recipe(name_or_path: str | Path, folders: Sequence[Path] = ()) -> Recipe:
    """The recipe in a file, or the one of this name in one of `folders`.

    Raises `UsageError` for an unknown name, and for every entry that is missing, unknown or of a wrong type.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        known = find_recipes(folders)
        if str(name_or_path) not in known:
            raise UsageError(
                f"there is no recipe `{name_or_path}`", hint=did_you_mean(str(name_or_path), known)
            )
        path = known[str(name_or_path)]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"recipe `{path}` cannot be read: {error.strerror}", hint="check the path"
        ) from error
    except ValueError as error:
        raise UsageError(f"recipe `{path}` is no JSON: {error}", hint="mend that place") from error
    return recipe_from(content, path)


def recipe_from(content: Any, path: Path) -> Recipe:
    """A recipe from decoded JSON; `path` is where its networks are looked up, and is named in errors."""
    if not isinstance(content, dict):
        raise UsageError(f"recipe `{path}` is not a JSON object", hint="see `configs/trellis2/recipes`")
    content = dict(content)
    for role in ("trains", "frozen"):
        if isinstance(content.get(role), dict):
            content[role] = {name: resolved(entry, path) for name, entry in content[role].items()}
    try:
        return read_value(content, Recipe, "")
    except ValueError as error:
        raise UsageError(f"recipe `{path}`: {error}", hint="mend that entry; nothing was started") from error


def find_recipes(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> file, of all recipes in these folders."""
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(known)}"


def resolved(entry: Any, path: Path) -> Any:
    """Replace a configuration that is named (`trellis2-4b/ckpts/NAME`, beside `recipes/`) by its content."""
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), str):
        return entry
    file = path.parent.parent / f"{entry['config']}.json"
    try:
        return {**entry, "config": json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"recipe `{path}` names the network `{entry['config']}`, whose file cannot be read: {error}",
            hint=f"it should be at `{file}`",
        ) from error


# --- JSON to frozen values ---------------------------------------------------------------------------


def read_value(value: Any, kind: Any, where: str) -> Any:
    """`value` as an instance of a type: dataclasses, mappings, tuples, literals, unions and plain values.

    Raises ValueError naming the place.
    """
    here = f"`{where}`" if where else "the recipe"
    origin = get_origin(kind)
    if kind is Any:
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        return read_dataclass(value, kind, where)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return (
            None
            if value is None and len(options) < len(get_args(kind))
            else read_value(value, options[0], where)
        )
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{here} is {value!r}; it must be one of {', '.join(map(repr, get_args(kind)))}")
        return value
    if origin is tuple:
        parts = get_args(kind)
        if not isinstance(value, list) or len(value) != len(parts):
            raise ValueError(f"{here} must be a list of {len(parts)} entries, got {value!r}")
        return tuple(
            read_value(v, part, f"{where}[{i}]") for i, (v, part) in enumerate(zip(value, parts, strict=True))
        )
    if origin is not None:  # mappings are all that is left
        if not isinstance(value, dict):
            raise ValueError(f"{here} must be an object, got {value!r}")
        return {k: read_value(v, get_args(kind)[1], f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{here} must be of type {kind.__name__}, got {value!r}")
    return value


def read_dataclass(value: Any, kind: type[Value], where: str) -> Value:
    here = f"`{where}`" if where else "the recipe"
    if not isinstance(value, dict):
        raise ValueError(f"{here} must be an object, got {value!r}")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise ValueError(f"{here} has an unknown entry `{name}`; {did_you_mean(name, known)}")
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{here} lacks `{missing[0]}`")
    prefix = f"{where}." if where else ""
    arguments = {name: read_value(v, hints[name], f"{prefix}{name}") for name, v in value.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{here}: {error}") from error
