"""`trellis train`: train by a recipe, fine-tune, adapt; `trellis train data`: make training data.

trellis train --recipe NAME --data FOLDER --run FOLDER      a run, resumable
trellis train --from MODEL --stage STAGE ...                fine-tune a model's stage, or an adapter of it
trellis train recipes | merge | data | data ingest
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import dry_run as plan
from trellis_cli import files, registry
from trellis_cli import options as o
from trellis_cli.console import Beginning, Console
from trellis_core.errors import InputError, UsageError

if TYPE_CHECKING:
    from trellis_core.training.distributed import World
    from trellis_core.training.loop import Log
    from trellis_core.training.recipes import Recipe

RUN, LENGTH, DATA = "Run", "Length", "Data"
CHECKPOINT, CURVES, LORA = "training.safetensors", "log.jsonl", "lora.safetensors"
RELEASE = "release"
INTERRUPTED = 130  # exit code

EXAMPLES = """\
[bold]Examples[/bold]
  trellis train --recipe trellis2-shape-512 --dry-run
  trellis train data ingest my-meshes --out data
  trellis train --from embedded --stage shape_flow --lora-rank 8 --data data --run runs/mine
  trellis train merge runs/mine/lora.safetensors --from embedded --out my-model
  trellis train data --recipe embedded --preview
  torchrun --nproc-per-node 8 -m -- trellis_cli train --recipe trellis2-shape-512 --data d --run runs/a"""

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
data_app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(data_app, name="data", help="Make training data, or look at it.")


def _option(panel: str, *names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


RecipeName = Annotated[
    str | None,
    _option(RUN, "--recipe", metavar="NAME", help="A recipe of `trellis train recipes`, or a JSON file."),
]
DataFolder = Annotated[
    Path | None, _option(RUN, "--data", metavar="FOLDER", help="Training data; `train data` makes it.")
]
RunFolder = Annotated[
    Path | None, _option(RUN, "--run", metavar="FOLDER", help="Where checkpoints, curves and results go.")
]
StageName = Annotated[
    str | None,
    _option(RUN, "--stage", metavar="NAME", help="A stage of the recipe or the model; several with commas."),
]
FromModel = Annotated[
    str | None, _option(RUN, "--from", metavar="MODEL", help="Start from this model's weights.")
]
LoraRank = Annotated[
    int | None,
    _option(RUN, "--lora-rank", metavar="N", help="Train an adapter of this rank beside a frozen flow."),
]
LoraAlpha = Annotated[
    float | None,
    _option(RUN, "--lora-alpha", metavar="X", help="Its scale times its rank (default: the rank)."),
]
Resume = Annotated[bool, _option(RUN, "--resume", help="Continue the run in `--run`.")]
DryRun = Annotated[
    bool, _option(RUN, "--dry-run", help="Say steps, memory and data layout, and start nothing.")
]
Charts = Annotated[
    bool, _option(RUN, "--charts", help="Also curves as PNG, and TensorBoard events (extra `train`).")
]
Output = Annotated[
    Path | None, _option(RUN, "--output", metavar="FOLDER", help="Model folder, for `--stage release`.")
]
Steps = Annotated[
    int | None, o._number(LENGTH, "--steps", "Steps, all pieces together.", low=1, high=1_000_000_000)
]
Seconds = Annotated[
    float | None, o._number(LENGTH, "--seconds", "End after so long, with a checkpoint.", low=1, high=1e9)
]
Seed = Annotated[int, o._number(LENGTH, "--seed", "Random seed (default 0).", low=0, high=2**31)]
Objects = Annotated[
    int | None, o._number(DATA, "--objects", "How many procedural objects.", low=1, high=10_000_000)
]


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def train(
    ctx: typer.Context,
    recipe: RecipeName = None,
    data: DataFolder = None,
    run: RunFolder = None,
    stage: StageName = None,
    from_model: FromModel = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    charts: Charts = False,
    output: Output = None,
    steps: Steps = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: o.Device = "auto",
    kernel: o.Kernel = None,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Train by a recipe, fine-tune a model on your own meshes, or make training data."""
    if ctx.invoked_subcommand is not None:
        return
    console: Console = ctx.obj
    console.quiet = console.quiet or os.environ.get("RANK", "0") != "0"  # the first of many processes speaks
    if recipe is None and from_model is None:
        raise UsageError(
            "it is not said what to train",
            hint="pass `--recipe NAME` (see `trellis train recipes`), or `--from MODEL --stage STAGE`",
        )
    if recipe == plan.EMBEDDED and from_model is None:
        if lora_rank is not None:
            raise UsageError(
                "an adapter needs a model beside it", hint="pass `--from embedded --stage STAGE`"
            )
        machine = (device, kernel, seed)
        train_embedded(console, stage, data, run, output, steps, seconds, resume, dry_run, charts, machine)
        return
    chosen = choose_recipe(recipe, from_model, stage)
    length = steps or chosen.steps
    if dry_run:
        rows, facts = plan.describe(chosen, length, lora_rank, data)
        console.facts.update(facts)
        console.result(rows)
        return
    folder, source = required(run, "--run"), required(data, "--data")
    check_run(folder / CHECKPOINT, resume)
    from trellis2.tuning import finish, open_tuning
    from trellis_core.training.lora import LoRASettings
    from trellis_core.training.released import RunSettings, Trainee
    from trellis_core.training.released import run as run_recipe

    model = None if from_model is None else registry.find_model(from_model).folder
    adapter = None if lora_rank is None else LoRASettings(rank=lora_rank, alpha=lora_alpha)
    place, kernels = open_device(local_device(device), kernel)
    with joined(place) as world, console.working() as progress:
        progress.begin("start")
        tuning = open_tuning(
            chosen, source, model=model, lora=adapter, device=place, kernels=kernels, seed=seed, world=world
        )
        console.say("recipe", f"{chosen.name}; {length:,} steps of {chosen.batch.per_gpu} samples")
        console.say("data", f"{len(tuning.catalog.entries):,} items of `{source}`")
        console.say("device", str(place))
        if "lpips" in chosen.losses:
            console.note("LPIPS is off: its weights are not part of this program")
        trainee = Trainee(tuning.learner, chosen, tuning.order, inflated=tuning.inflated)
        with patient(console) as stop:
            run_recipe(
                trainee,
                tuning.losses_of,
                RunSettings(
                    steps=length,
                    seconds=seconds,
                    device=place,
                    log_every=max(1, min(chosen.log_every, length // 20)),
                    world=world,
                    stop=stop,
                    on_step=lambda step: progress(Beginning("train", step, length)),
                ),
                checkpoint=folder / CHECKPOINT,
                elastic=tuning.flow,
                generators=tuning.generators,
                log=logging(console, folder / CURVES, "train", charts),
            )
            interrupted = stop()
        ended = trainee.step >= length
        paths = finish(tuning, trainee, folder) if world.leads else []
        if charts and world.leads and (folder / CURVES).exists():
            paths.append(draw_charts(folder / CURVES))
    for reason, count in tuning.replaced.items():
        console.warn(f"{count} times another item was taken: {reason}")
    console.facts |= {
        "recipe": chosen.name,
        "step": trainee.step,
        "finished": ended,
        "outputs": [str(path) for path in paths],
    }
    if not ended:
        console.note(f"stopped after step {trainee.step:,}; the same command with `--resume` continues")
    if adapter is not None and from_model is not None and paths:
        console.note(f"`trellis train merge {paths[0]} --from {from_model} --out FOLDER` makes it a model")
    console.result([str(path) for path in paths])
    if interrupted and not ended:
        raise typer.Exit(INTERRUPTED)


def train_embedded(
    console: Console,
    stage: str | None,
    data: Path | None,
    run: Path | None,
    output: Path | None,
    steps: int | None,
    seconds: float | None,
    resume: bool,
    dry_run: bool,
    charts: bool,
    machine: tuple[str, list[str] | None, int],
) -> None:
    """The recipe with stages: those that are asked for, or all, one after the other."""
    recipe = plan.embedded_recipe()
    known = [*recipe["stages"], RELEASE]
    stages = stage.split(",") if stage else list(recipe["stages"])
    for name in stages:
        if name not in known:
            raise UsageError(f"the recipe has no stage `{name}`", hint=f"it has: {', '.join(known)}")
    if dry_run:
        rows, facts = plan.describe_embedded(recipe, [s for s in stages if s != RELEASE], data)
        console.facts.update(facts)
        console.result(rows)
        return
    folder, source = required(run, "--run"), required(data, "--data")
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise InputError(
            f"`{source}` holds no shards",
            hint="make them with `trellis train data --recipe embedded --objects 40000 --out FOLDER`",
        )
    if steps is None and seconds is None and stages != [RELEASE]:
        raise UsageError("how long to train is not said", hint="pass `--steps N` or `--seconds N`, per stage")
    for name in stages:
        if name != RELEASE:
            check_run(folder / f"{name}.safetensors", resume)
    import torch

    from trellis2.training import release, train_and_store
    from trellis2.workshop import Workshop
    from trellis_core.training.loop import LoopSettings
    from trellis_core.training.precision import Float32Attention, LoadedKernels

    device, kernel, seed = machine
    place, kernels = open_device(local_device(device), kernel)
    gpu = place.type != "cpu"
    with joined(place) as world, console.working() as progress:
        progress.begin("start")
        torch.manual_seed(seed)
        shop = Workshop(
            recipe,
            shards,
            folder,
            place,
            generator=torch.Generator(place).manual_seed(seed + 1000 * world.rank),
            host=torch.Generator().manual_seed(seed + 1000 * world.rank),
            kernels=LoadedKernels.of(kernels) if gpu else Float32Attention(),
            dtype=torch.bfloat16 if gpu else None,
        )
        with patient(console) as stop:
            settings = LoopSettings(
                steps=steps,
                seconds=None if steps else seconds,
                device=place.type,
                dtype=shop.dtype,
                log_every=max(1, min(50, (steps or 1000) // 20)),
                world=world,
                stop=stop,
            )
            for name in stages:
                if stop():
                    break
                progress(Beginning(name, 0, steps or 1))
                if name == RELEASE:
                    release(shop, required(output, "--output"))
                    continue
                log = logging(console, folder / f"{name}.jsonl", name, charts)

                def show(entry: Any, name: str = name, log: Log = log) -> None:
                    log(entry)
                    progress(Beginning(name, entry.step, steps or entry.step))

                train_and_store(shop, name, settings, show)
                if charts and world.leads and (folder / f"{name}.jsonl").exists():
                    draw_charts(folder / f"{name}.jsonl")
            stopped = stop()
    results = [str(output)] if RELEASE in stages else [str(folder / f"{name}.safetensors") for name in stages]
    console.facts |= {"recipe": plan.EMBEDDED, "stages": stages, "finished": not stopped, "outputs": results}
    if stopped:
        console.note("stopped, with a checkpoint; the same command with `--resume` continues")
    console.result(results)
    if stopped:
        raise typer.Exit(INTERRUPTED)


@app.command("recipes")
def recipes(
    ctx: typer.Context,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List the recipes."""
    from trellis_core.training.recipes import find_recipes, read_recipe

    console: Console = ctx.obj
    folders = plan.recipe_folders()
    found = [read_recipe(path, folders) for path in find_recipes(folders).values()]
    rows = [
        f"{plan.EMBEDDED:<32}{'':>9}  The small model in the package, stage by stage, on procedural objects"
    ]
    rows += [f"{r.name:<32}{r.parameters / 1e6:>7,.0f} M  {r.summary}" for r in found]
    console.facts["recipes"] = [plan.EMBEDDED, *(r.name for r in found)]
    console.result(rows)


@app.command("merge")
def merge(
    ctx: typer.Context,
    trained: Annotated[
        Path, typer.Argument(metavar="FILE", help="`lora.safetensors` or `ckpts/NAME.safetensors` of a run.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The new model's folder.")],
    from_model: Annotated[str, typer.Option("--from", metavar="MODEL", help="The model it was trained on.")],
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make a model of a trained adapter or network and the model it came from."""
    console: Console = ctx.obj
    files.check_input(trained, "trained file", (".safetensors",))
    folder = registry.find_model(from_model).folder
    with console.working() as progress:
        progress.begin("merge")
        from trellis2.tuning import merge_into_model

        merge_into_model(trained, folder, out)
    console.facts["model"] = {"folder": str(out)}
    console.note(f"use it with `--model {out}`")
    console.result([str(out)])


@data_app.callback(invoke_without_command=True)
def make_data(
    ctx: typer.Context,
    recipe: Annotated[
        str, _option(DATA, "--recipe", metavar="NAME", help="Whose procedural objects (default embedded).")
    ] = plan.EMBEDDED,
    preview: Annotated[bool, _option(DATA, "--preview", help="Draw some objects as a PNG sheet.")] = False,
    output: Annotated[
        Path | None, _option(DATA, "-o", "--output", metavar="PNG", help="The sheet (default ./preview.png).")
    ] = None,
    objects: Objects = None,
    out: Annotated[
        Path | None,
        _option(DATA, "--out", metavar="FOLDER", help="Write shards of `--objects` objects here."),
    ] = None,
    workers: Annotated[int, o._number(DATA, "--workers", "Processes.", low=1, high=256)] = 1,
    seed: Annotated[int, o._number(DATA, "--seed", "First object.", low=0, high=2**31)] = 0,
    device: o.Device = "auto",
    force: o.Force = False,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make procedural objects for the embedded recipe, or look at some."""
    if ctx.invoked_subcommand is not None:
        return
    console: Console = ctx.obj
    if recipe != plan.EMBEDDED:
        raise UsageError(
            f"the data of `{recipe}` are not procedural",
            hint="make them from meshes: `trellis train data ingest FOLDER --out DATA`",
        )
    if preview == (out is not None):
        raise UsageError(
            "say what to do with the objects", hint="pass either `--preview`, or `--objects N --out FOLDER`"
        )
    facts = plan.embedded_recipe()
    place = open_device(device, None)[0]
    if preview:
        sheet = output or Path("preview.png")
        files.check_output(sheet, files.IMAGES, force=force)
        draw_preview(console, facts, seed, objects or 16, sheet, str(place), force)
        return
    make_shards(console, facts, seed, objects, required(out, "--out"), str(place), workers)


def draw_preview(
    console: Console, recipe: Mapping[str, Any], first: int, count: int, path: Path, device: str, force: bool
) -> None:
    """A sheet of objects: their pictures, and one caption each."""
    with console.working() as progress:
        progress.begin("start")
        from PIL import Image

        from trellis_core.render.sheet import picture_sheet
        from trellis_core.training.synthetic.shards import DatasetSettings, make_shard

        settings = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"])
        seeds = range(first, first + count)
        tiles, labels = [], []
        for start in range(0, count, 4):
            progress(Beginning("objects", start, count))
            made = make_shard(seeds[start : start + 4], settings, device)
            for pictures, captions in zip(made["pictures"], made["captions"], strict=True):
                labels.append(bytes(captions[0].tolist()).rstrip(b"\0").decode())
                tiles.append(
                    picture_sheet([list(pictures)], labels[-1:], cell=max(160, recipe["image_size"]))
                )
        progress(Beginning("objects", count, count))
        sheet = laid_out(tiles, columns=max(1, round((count / settings.views) ** 0.5)))
        image = Image.fromarray(sheet.numpy())
    written = files.write_sheet(path, image, force=force)
    console.facts |= {"preview": str(written), "captions": labels}
    console.result([str(written)])


def laid_out(tiles: list[Any], columns: int) -> Any:  # uint8 [H, W, 3] each
    """Tiles of one size in lines of `columns`, the last line filled with white."""
    import torch

    blank = [torch.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    tiles = [*tiles, *blank]
    return torch.cat([torch.cat(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def make_shards(
    console: Console,
    recipe: Mapping[str, Any],
    first: int,
    count: int | None,
    out: Path,
    device: str,
    workers: int,
) -> None:
    if count is None:
        raise UsageError(
            "how many objects is not said", hint="pass `--objects N`; the embedded model took 40,000"
        )
    with console.working() as progress:
        progress.begin("start")
        from trellis_core.training.synthetic.shards import DatasetSettings, write_shards

        settings = DatasetSettings(resolution=recipe["resolution"], image_size=recipe["image_size"])
        total = -(-count // settings.shard)
        made: list[Path] = []

        def on_shard(path: Path) -> None:
            made.append(path)
            progress(Beginning("shards", len(made), total))

        progress(Beginning("shards", 0, total))
        write_shards(out, range(first, first + count), settings, device, workers, on_shard)
    console.facts |= {"objects": count, "outputs": [str(path) for path in made]}
    console.result([str(out)])


@data_app.command("ingest")
def ingest(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Meshes: GLB, glTF, OBJ, PLY, STL, ...")],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="Where the training data goes.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", help="Whose encoders make the latents [default: embedded]."),
    ] = "embedded",
    resolution: Annotated[
        int | None,
        o._number(DATA, "--resolution", "Voxels along an axis (default: the model's).", low=8, high=2048),
    ] = None,
    views: Annotated[
        int, o._number(DATA, "--views", "Pictures of each mesh (default 16).", low=0, high=512)
    ] = 16,
    view_size: Annotated[
        int | None, o._number(DATA, "--view-size", "Their side in pixels.", low=16, high=4096)
    ] = None,
    workers: Annotated[
        int | None, o._number(DATA, "--workers", "Processes (default: up to 4).", low=1, high=256)
    ] = None,
    timeout: Annotated[
        float, o._number(DATA, "--timeout", "Seconds for one mesh (default 1800).", low=1, high=1e6)
    ] = 1800.0,
    seed: Seed = 0,
    device: o.Device = "auto",
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Turn your own meshes into training data: voxels, latents, pictures, tables.

    Lines of NAME.txt beside NAME.glb become its captions. What is finished is kept; run it again to continue.
    """
    console: Console = ctx.obj
    started = monotonic()
    if not folder.is_dir():
        raise InputError(f"`{folder}` is not a folder", hint="give the folder with your meshes")
    found = registry.find_model(model)
    with console.working() as progress:
        progress.begin("start")
        settings, notes = ingest_settings(found.folder, resolution, views, view_size, seed, device)
        for note in notes:
            console.note(note)
        console.say("model", f"{found.name}, {settings.resolution} voxels")
        import psutil

        from trellis2 import ingest as meshes

        def on_outcome(outcome: meshes.Outcome, done: int, count: int) -> None:
            console.event("mesh", file=outcome.name, rejected=outcome.rejected, seconds=outcome.seconds)
            progress(Beginning("meshes", done, count))

        crew = workers or min(4, psutil.cpu_count(logical=False) or 1)
        outcomes = meshes.ingest(folder, out, settings, workers=crew, seconds=timeout, on_outcome=on_outcome)
    report = {**meshes.summary(outcomes), "resolution": settings.resolution, "model": found.name}
    report["seconds"] = round(monotonic() - started, 1)
    write_report(out / "report.json", report)
    console.facts |= {**report, "report": str(out / "report.json")}
    console.result(report_rows(report, out))
    if not report["complete"]:
        raise InputError(
            f"none of the {report['meshes']} meshes could be used", hint=f"see `{out / 'report.json'}`"
        )


def ingest_settings(
    folder: Path, resolution: int | None, views: int, view_size: int | None, seed: int, device: str
) -> tuple[Any, list[str]]:
    """The settings for a model, and what it cannot make."""
    from trellis2 import ingest as meshes
    from trellis2.condition_views import ViewSettings
    from trellis2.loading import find_checkpoints, network_config
    from trellis2.settings import read_settings
    from trellis_core.weights import hub

    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(None)
    encoders = meshes.find_encoders(folder)
    stems = find_checkpoints(folder, settings, folder.name)
    flow = network_config(stems["sparse_structure_flow_model"])["args"]
    chosen = meshes.IngestSettings(
        resolution=resolution or kind.resolution,
        encoders=encoders,
        structure_grid=meshes.structure_grid_of(encoders, flow["resolution"]),
        views=ViewSettings(views=views, size=view_size or min(1024, 2 * max(kind.image_sizes))),
        seed=seed,
        device=str(open_device(device, None)[0]),
    )
    notes = [
        f"the model has no {role} encoder: no such latents are made"
        for role in meshes.ENCODERS
        if role not in encoders
    ]
    if "structure" in encoders and not meshes.has_structure(chosen):
        notes.append(f"structure latents need another resolution than {chosen.resolution}; none are made")
    return chosen, notes


def report_rows(report: Mapping[str, Any], out: Path) -> list[str]:
    rejected = report["rejected"]
    rows = [
        f"{report['meshes']} meshes: {report['complete']} complete ({report['made']} new, "
        f"{report['there_before']} there before), {len(rejected)} rejected"
    ]
    width = min(40, max((len(entry["file"]) for entry in rejected), default=0))
    rows += [f"  rejected  {entry['file']:<{width}}  {entry['reason']}" for entry in rejected[:20]]
    if len(rejected) > 20:
        rows.append(f"  and {len(rejected) - 20} more")
    return [*rows, f"  report    {out / 'report.json'}"]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    from json import dumps

    from trellis_core.io.files import write_file

    write_file(path, [dumps(report, indent=1).encode()])


# --- shared ------------------------------------------------------------------------------------------


def choose_recipe(name: str | None, model: str | None, stage: str | None) -> Recipe:
    """A recipe by name, or the one that fine-tunes a stage of a model."""
    from trellis_core.training.recipes import read_recipe

    if name is not None and name != plan.EMBEDDED:
        if stage is not None:
            raise UsageError("this recipe has one stage", hint="drop `--stage`")
        return read_recipe(name, plan.recipe_folders())
    if stage is None:
        raise UsageError(
            "which stage of the model to train is not said",
            hint="pass `--stage`: structure_flow, shape_flow, texture_flow, shape_vae or texture_vae",
        )
    from trellis2.tuning import recipe_for

    return recipe_for(registry.find_model(str(model)).folder, stage)  # type: ignore[arg-type]


def open_device(device: str, kernel: list[str] | None) -> tuple[Any, Any]:
    """The device and its kernels."""
    place, _, kernels = registry.open_device(
        registry.Machine.of(device, o.Precision.auto, o.Tier.auto, kernel)
    )
    return place, kernels


def required(path: Path | None, option: str) -> Path:
    if path is None:
        raise UsageError(f"`{option}` is missing", hint=f"pass `{option} FOLDER`")
    return path


def check_run(checkpoint: Path, resume: bool) -> None:
    if checkpoint.exists() and not resume:
        raise UsageError(
            f"`{checkpoint}` exists", hint="pass `--resume` to continue it, or choose an empty `--run`"
        )
    if resume and not checkpoint.parent.exists():
        raise UsageError(f"there is no run in `{checkpoint.parent}`", hint="drop `--resume` to start one")


def logging(console: Console, curves: Path, stage: str, charts: bool) -> Log:
    """Losses as JSON lines and as events."""
    from trellis_core.training.records import all_of, write_events, write_lines

    def tell(entry: Any) -> None:
        console.event("losses", stage=stage, step=entry.step, **entry.values)

    events = [write_events(curves.parent / "events" / stage)] if charts else []
    return all_of(write_lines(curves), tell, *events)


def draw_charts(curves: Path) -> Path:
    from trellis_core.training.records import draw_curves, read_lines

    picture = curves.with_suffix(".png")
    draw_curves({curves.stem: read_lines(curves)}, picture)
    return picture


def local_device(device: str) -> str:
    """The card of this process when `torchrun` started several."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if number is not None and device in ("auto", "cuda") and has_cards() else device


def has_cards() -> bool:
    import torch

    return torch.cuda.is_available()


@contextmanager
def joined(device: Any) -> Iterator[World]:
    """This process among those that `torchrun` started; alone when it did not."""
    from trellis_core.training.distributed import join_world, leave_world

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    world = join_world(rank, size, "nccl" if device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        leave_world(world)


@contextmanager
def patient(console: Console) -> Iterator[Any]:
    """The first Ctrl-C ends the run after its step, with a checkpoint; the second one at once."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            before[number](number, frame)
        asked.append(number)
        console.note("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before.update({n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)})
    except ValueError:  # not the main thread: somebody else decides when to stop
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
