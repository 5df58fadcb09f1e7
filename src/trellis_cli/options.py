"""The options that commands share, and what their values mean.

Each option is an annotated type: `seed: Seed = 42` in a command's signature is `--seed` with its help text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from trellis_core.errors import UsageError

RESULT = "Result"
SAMPLING = "Sampling"
ASSET = "Asset"
MACHINE = "Model and machine"
REPORTING = "Reporting"


class Subject(str, Enum):
    hard_surface = "hard-surface"
    organic = "organic"
    ambiguous = "ambiguous"


class Resolution(str, Enum):
    r512 = "512"
    r1024 = "1024"
    r1536 = "1536"


class Background(str, Enum):
    auto = "auto"
    keep = "keep"
    birefnet = "birefnet"
    birefnet_dynamic = "birefnet-dynamic"
    birefnet_hr_matting = "birefnet-hr-matting"
    birefnet_lite = "birefnet-lite"
    birefnet_channel = "birefnet-channel"
    rmbg_2 = "rmbg-2"
    rembg = "rembg"
    grabcut = "grabcut"
    threshold = "threshold"


class Mode(str, Enum):
    stochastic = "stochastic"
    multidiffusion = "multidiffusion"


class Preset(str, Enum):
    max = "max"
    web = "web"
    game = "game"
    mobile = "mobile"
    lowpoly = "lowpoly"
    print = "print"


class Form(str, Enum):
    """What a result is."""

    mesh = "mesh"
    gaussians = "gaussians"
    radiance_field = "radiance-field"


class ColorSource(str, Enum):
    """What the texture of a TRELLIS v1 mesh is painted after."""

    gaussians = "gaussians"
    radiance_field = "radiance-field"
    vertices = "vertices"


class Precision(str, Enum):
    auto = "auto"
    full = "full"
    half = "half"


class Tier(str, Enum):
    auto = "auto"
    high = "high"
    medium = "medium"
    low = "low"
    minimal = "minimal"
    cpu = "cpu"


# guidance of the structure and shape stages
SUBJECT_GUIDANCE: Mapping[Subject, tuple[float, float]] = {
    Subject.hard_surface: (8.5, 7.5),
    Subject.organic: (7.5, 7.5),
    Subject.ambiguous: (6.0, 6.0),
}

PIPELINE_OF: Mapping[Resolution, str] = {
    Resolution.r512: "512",
    Resolution.r1024: "1024_cascade",
    Resolution.r1536: "1536_cascade",
}


# options that a model of a version has no use for, and what to do instead
FOREIGN: Mapping[str, tuple[tuple[str, ...], str]] = {
    "trellis": (
        (
            "resolution",
            "pipeline",
            "subject",
            "shape_steps",
            "shape_guidance",
            "texture_steps",
            "texture_guidance",
        ),
        "leave it out: TRELLIS v1 has one resolution, and its stages are `--structure-steps`, "
        "`--latent-steps` and the guidances of the same names",
    ),
    "trellis2": (
        ("latent_steps", "latent_guidance", "color_from"),
        "leave it out: the stages of TRELLIS.2 are `--structure-steps`, `--shape-steps`, `--texture-steps` "
        "and the guidances of the same names, and its textures are its own",
    ),
}
TITLES: Mapping[str, str] = {"trellis": "TRELLIS v1", "trellis2": "TRELLIS.2"}


def _option(panel: str, *names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False, **more)


def _choice(panel: str, name: str, help: str) -> Any:
    return _option(panel, name, help=help, metavar="NAME", show_choices=False)


def number(panel: str, name: str, help: str, metavar: str = "N", *, low: float, high: float) -> Any:
    """A number between `low` and `high`; NaN is not."""

    def check(value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            raise typer.BadParameter(f"{value} is not between {low:,.20g} and {high:,.20g}")
        return value

    return _option(panel, name, help=help, metavar=metavar, callback=check)


def _steps(name: str, help: str) -> Any:
    return number(SAMPLING, name, help, low=1, high=1000)


def _guidance(name: str, help: str) -> Any:
    return number(SAMPLING, name, help, "X", low=0, high=100)


Picture = Annotated[
    Path, typer.Argument(metavar="PICTURE", help="PNG, JPEG, WebP, ... of one object.", show_default=False)
]
PicturePaths = Annotated[
    list[Path],
    typer.Argument(metavar="PICTURE", help="Pictures of one object from several sides.", show_default=False),
]
Prompt = Annotated[
    list[str],  # quotes are often forgotten
    typer.Argument(
        metavar="PROMPT", help='What to make, as in "a tall red chair with armrests".', show_default=False
    ),
]
MeshPath = Annotated[Path, typer.Argument(metavar="MESH", help="GLB, OBJ, PLY or STL.", show_default=False)]
BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A run saved with `--save-bundle`.", show_default=False)
]

# Result
Output = Annotated[
    Path | None, _option(RESULT, "-o", "--output", metavar="PATH", help="File to write (default ./NAME.glb).")
]
Force = Annotated[bool, _option(RESULT, "--force", help="Overwrite existing files.")]
SaveBundle = Annotated[
    Path | None,
    _option(RESULT, "--save-bundle", metavar="PATH", help="Also save the run, for `export` and `render`."),
]
Preview = Annotated[
    Path | None, _option(RESULT, "--preview", metavar="PNG", help="Also draw the asset from a few sides.")
]
Samples = Annotated[
    int,
    number(RESULT, "--num-samples", "Make several variants: NAME-1.glb, NAME-2.glb, ...", low=1, high=64),
]
Strict = Annotated[
    bool, _option(RESULT, "--strict", help="Exit with 6 when the result fails the quality check.")
]

# Sampling
Seed = Annotated[int, number(SAMPLING, "--seed", "Random seed (default 42).", low=0, high=2**63 - 1)]
SubjectOption = Annotated[
    Subject | None,
    _choice(SAMPLING, "--subject", "Suit the guidance to a hard-surface, organic or ambiguous object."),
]
ResolutionOption = Annotated[
    Resolution | None,
    _choice(SAMPLING, "--resolution", "Voxel grid: 512, 1024 or 1536 (the last two as cascades)."),
]
PipelineName = Annotated[
    str | None, _option(SAMPLING, "--pipeline", metavar="NAME", help="Pipeline type by its released name.")
]
BackgroundOption = Annotated[
    Background,
    _choice(
        SAMPLING,
        "--background",
        "Find the object by: auto (default; the best that is here), keep (alpha), birefnet, rembg, grabcut, "
        "threshold, or another network of `trellis models list`.",
    ),
]
ModeOption = Annotated[
    Mode,
    _choice(
        SAMPLING,
        "--mode",
        "Combine pictures by: stochastic (default; each step sees the next one) or multidiffusion "
        "(every step sees all; slower).",
    ),
]
Steps = Annotated[int | None, _steps("--steps", "Steps of every stage.")]
Guidance = Annotated[float | None, _guidance("--guidance", "Guidance of structure and shape; 1 is none.")]
StructureSteps = Annotated[int | None, _steps("--structure-steps", "Steps of the structure stage.")]
StructureGuidance = Annotated[
    float | None, _guidance("--structure-guidance", "Guidance of the structure stage.")
]
ShapeSteps = Annotated[int | None, _steps("--shape-steps", "Steps of the shape stage.")]
ShapeGuidance = Annotated[float | None, _guidance("--shape-guidance", "Guidance of the shape stage.")]
TextureSteps = Annotated[int | None, _steps("--texture-steps", "Steps of the texture stage.")]
TextureGuidance = Annotated[float | None, _guidance("--texture-guidance", "Guidance of the texture stage.")]

LatentSteps = Annotated[int | None, _steps("--latent-steps", "Steps of a TRELLIS v1 model's second stage.")]
LatentGuidance = Annotated[
    float | None, _guidance("--latent-guidance", "Guidance of a TRELLIS v1 model's second stage.")
]

# Asset
FormOption = Annotated[
    Form | None,
    _choice(
        ASSET,
        "--as",
        "Deliver a mesh (default), gaussians (.ply, .splat, .spz) or a radiance-field (.safetensors); the "
        "last two with TRELLIS v1 models.",
    ),
]
ColorFrom = Annotated[
    ColorSource | None,
    _choice(
        ASSET,
        "--color-from",
        "Paint a TRELLIS v1 mesh after: gaussians (default), radiance-field or vertices (quick).",
    ),
]
PresetOption = Annotated[
    Preset | None,
    _choice(ASSET, "--preset", "Face and texture budget: max, web, game, mobile, lowpoly or print."),
]
Faces = Annotated[int | None, number(ASSET, "--faces", "Triangles at most.", low=4, high=100_000_000)]
Texture = Annotated[int | None, number(ASSET, "--texture", "Texture side in pixels.", low=16, high=16384)]

# Model and machine
Model = Annotated[
    str,
    _option(
        MACHINE,
        "--model",
        metavar="NAME",
        help="auto (default), a model's name, a folder or a hub repository.",
    ),
]
Device = Annotated[
    str, _option(MACHINE, "--device", metavar="NAME", help="auto (default), cpu, cuda, cuda:1 or mps.")
]
PrecisionOption = Annotated[
    Precision,
    _choice(MACHINE, "--precision", "auto (default), full (float32) or half (the best 16-bit type)."),
]
TierOption = Annotated[
    Tier,
    _choice(MACHINE, "--vram-tier", "Plan memory for: auto (default), high, medium, low, minimal or cpu."),
]
Kernel = Annotated[
    list[str] | None,
    _option(MACHINE, "--kernel", metavar="OP=BACKEND", help="Choose a kernel; may be repeated."),
]
Offline = Annotated[bool, _option(MACHINE, "--offline", help="Never use the network.")]

# Reporting. `console.console_for` reads these from the raw arguments, so that a usage error honours them too;
# commands declare them for the parser and the help text and need not look at their values.
Json = Annotated[bool, _option(REPORTING, "--json", help="Print one JSON object at the end.")]
JsonEvents = Annotated[bool, _option(REPORTING, "--json-events", help="Print a JSON line per event.")]
Quiet = Annotated[bool, _option(REPORTING, "--quiet", "-q", help="No progress and notes on stderr.")]
Debug = Annotated[bool, _option(REPORTING, "--debug", help="Show where an error happened.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Where a result goes, and what is asked of it."""

    output: Output = None
    force: Force = False
    preview: Preview = None
    strict: Strict = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """The model, and what it runs on."""

    model: Model = "auto"
    device: Device = "auto"
    precision: PrecisionOption = Precision.auto
    vram_tier: TierOption = Tier.auto
    kernel: Kernel = None
    offline: Offline = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What is said on the terminal; commands need not look at it."""

    json: Json = False
    json_events: JsonEvents = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of every command that samples, whatever it starts from."""

    output: Output = None
    force: Force = False
    num_samples: Samples = 1
    save_bundle: SaveBundle = None
    preview: Preview = None
    strict: Strict = False
    seed: Seed = 42
    subject: SubjectOption = None
    resolution: ResolutionOption = None
    pipeline: PipelineName = None
    steps: Steps = None
    guidance: Guidance = None
    structure_steps: StructureSteps = None
    structure_guidance: StructureGuidance = None
    shape_steps: ShapeSteps = None
    shape_guidance: ShapeGuidance = None
    texture_steps: TextureSteps = None
    texture_guidance: TextureGuidance = None
    latent_steps: LatentSteps = None
    latent_guidance: LatentGuidance = None
    form: FormOption = None
    color_from: ColorFrom = None
    preset: PresetOption = None
    faces: Faces = None
    texture: Texture = None
    model: Model = "auto"
    device: Device = "auto"
    precision: PrecisionOption = Precision.auto
    vram_tier: TierOption = Tier.auto
    kernel: Kernel = None
    offline: Offline = False
    json: Json = False
    json_events: JsonEvents = False
    quiet: Quiet = False
    debug: Debug = False

    @property
    def pipeline_type(self) -> str | None:
        return pipeline_name(self.resolution, self.pipeline)

    def sampling(self, version: str) -> dict[str, Any]:
        """Arguments of `Pipeline.sample` of a version (`trellis` or `trellis2`): the pipeline's type, and
        sampler settings to change per stage."""
        if version == "trellis":
            return {
                "structure": given(
                    steps=_first(self.structure_steps, self.steps),
                    guidance_scale=_first(self.structure_guidance, self.guidance),
                ),
                "latents": given(
                    steps=_first(self.latent_steps, self.steps),
                    guidance_scale=_first(self.latent_guidance, self.guidance),
                ),
            }
        return {"pipeline_type": self.pipeline_type, **self.samplers}

    def require_fit(self, version: str, model: str) -> None:
        """`UsageError` for an option that a model of this version has no use for."""
        require_fit(version, model, {f.name: getattr(self, f.name) for f in fields(self)})

    @property
    def samplers(self) -> dict[str, Any]:
        """Sampler settings to change per stage of a TRELLIS.2 model."""
        return sampler_changes(
            self.subject,
            self.steps,
            self.guidance,
            (self.structure_steps, self.shape_steps, self.texture_steps),
            (self.structure_guidance, self.shape_guidance, self.texture_guidance),
        )


def with_options(command: Callable[..., None], without: Collection[str] = ()) -> Callable[..., None]:
    """Turn each parameter that is a group, as `run: RunOptions`, into an option for each of its fields.

    Those `without` are left out and have their default. The parser reads signatures, so the command gets one
    that has them all, in their place.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: options_of(hint, without) for name, hint in hints.items() if is_group(hint)}
    parameters: list[Parameter] = []
    for own in signature(command).parameters.values():
        plain = own.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[own.name])
        parameters += groups.get(own.name, [plain])

    def call(**values: Any) -> None:
        for name, options in groups.items():
            taken = {option.name: values.pop(option.name, option.default) for option in options}
            values[name] = hints[name](**taken)
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return call


def is_group(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def options_of(group: type, without: Collection[str]) -> list[Parameter]:
    """A parameter for each field of a group of options."""
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(group)
        if f.name not in without
    ]


def parse_kernels(choices: list[str] | None) -> dict[str, str]:
    """`["attention=sdpa"]` -> `{"attention": "sdpa"}`; `UsageError` for anything else."""
    kernels = {}
    for choice in choices or ():
        op, equals, backend = choice.partition("=")
        if not (op and equals and backend):
            raise UsageError(
                f"`--kernel {choice}` is not OP=BACKEND", hint="for example `--kernel attention=sdpa`"
            )
        kernels[op.strip()] = backend.strip()
    return kernels


def require_fit(version: str, model: str, options: Mapping[str, Any]) -> None:
    """`UsageError` when one of `options` is given and a model of this version has no use for it."""
    names, advice = FOREIGN[version]
    for name in names:
        if options.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"`{option}` does nothing with `{model}`, a {TITLES[version]} model", hint=advice
            )


def pipeline_name(resolution: Resolution | None, pipeline: str | None) -> str | None:
    """Released pipeline type for `--resolution` or `--pipeline`; None is the model's default."""
    if resolution is not None and pipeline is not None:
        raise UsageError("`--resolution` and `--pipeline` say the same thing", hint="give only one of them")
    return PIPELINE_OF[resolution] if resolution is not None else pipeline


def sampler_changes(
    subject: Subject | None,
    steps: int | None,
    guidance: float | None,
    stage_steps: tuple[int | None, int | None, int | None],  # structure, shape, texture
    stage_guidance: tuple[float | None, float | None, float | None],  # structure, shape, texture
) -> dict[str, Any]:
    """Sampler settings to change per stage; the most particular option wins.

    `--guidance` and `--subject` leave the texture stage alone: the released texture flow is used without
    guidance, and turning it on doubles that stage's time.
    """
    structure, shape = SUBJECT_GUIDANCE[subject] if subject else (None, None)
    general = (_first(guidance, structure), _first(guidance, shape), None)
    changes: dict[str, dict[str, Any]] = {}
    for i, stage in enumerate(("structure", "shape", "texture")):
        changes[stage] = given(
            steps=_first(stage_steps[i], steps), guidance_scale=_first(stage_guidance[i], general[i])
        )
    return changes


def given(**values: float | None) -> dict[str, float]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)
