"""`trellis train`: train by a recipe, fine-tune, adapt; `trellis train data`: make training data.

trellis train --recipe NAME --data FOLDER --run FOLDER      a run, resumable
trellis train --from MODEL --stage STAGE ...                fine-tune a model's stage, or an adapter of it
trellis train recipes | merge | familiarity | data | data ingest
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Annotated

import typer

from trellis_cli import dry_run as plan
from trellis_cli import files, registry
from trellis_cli import options as o
from trellis_cli.commands import train_data
from trellis_cli.commands.train_recipe import describe_recipe, train_recipe, trainer_of
from trellis_cli.commands.train_setup import TrainOptions, is_first, open_device
from trellis_cli.commands.train_stages import describe_stages, train_stages
from trellis_cli.console import Beginning, Console
from trellis_core.errors import InputError, UsageError

RUN, LENGTH = "Run", "Length"

EXAMPLES = """\
[bold]Examples[/bold]
  trellis train --recipe trellis2-shape-512 --dry-run
  trellis train data ingest my-meshes --out data
  trellis train --from embedded --stage shape_flow --lora-rank 8 --data data --run runs/mine
  trellis train merge runs/mine/lora.safetensors --from embedded --out my-model
  trellis train --recipe trellis-latent-vae-gaussians --data data --run runs/vae
  trellis train data --recipe embedded --preview
  torchrun --nproc-per-node 8 -m -- trellis_cli train --recipe trellis2-shape-512 --data d --run runs/a"""

app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(train_data.app, name="data", help="Make training data, or look at it.")

RecipeName = Annotated[
    str | None,
    o._option(RUN, "--recipe", metavar="NAME", help="A recipe of `trellis train recipes`, or a JSON file."),
]
DataFolder = Annotated[
    Path | None, o._option(RUN, "--data", metavar="FOLDER", help="Training data; `train data` makes it.")
]
RunFolder = Annotated[
    Path | None, o._option(RUN, "--run", metavar="FOLDER", help="Where checkpoints, curves and results go.")
]
StageName = Annotated[
    str | None,
    o._option(
        RUN, "--stage", metavar="NAME", help="A stage of the recipe or the model; several with commas."
    ),
]
FromModel = Annotated[
    str | None, o._option(RUN, "--from", metavar="MODEL", help="Start from this model's weights.")
]
LoraRank = Annotated[
    int | None,
    o._option(RUN, "--lora-rank", metavar="N", help="Train an adapter of this rank beside a frozen flow."),
]
LoraAlpha = Annotated[
    float | None,
    o._option(RUN, "--lora-alpha", metavar="X", help="Its scale times its rank (default: the rank)."),
]
Resume = Annotated[bool, o._option(RUN, "--resume", help="Continue the run in `--run`.")]
LpipsFile = Annotated[
    Path | None,
    o._option(RUN, "--lpips", metavar="FILE", help="Weights of VGG16 and LPIPS; without them LPIPS is off."),
]
DryRun = Annotated[
    bool, o._option(RUN, "--dry-run", help="Say steps, memory and data layout, and start nothing.")
]
TensorBoard = Annotated[
    bool, o._option(RUN, "--tensorboard", help="Also events for TensorBoard (extra `train`).")
]
Compile = Annotated[
    bool, o._option(RUN, "--compile", help="Let torch compile the transformers' blocks (stages; on a GPU).")
]
Output = Annotated[
    Path | None,
    o._option(RUN, "--output", metavar="FOLDER", help="For the stages `release` (a model) and `weights`."),
]
Steps = Annotated[
    int | None, o.number(LENGTH, "--steps", "Steps, all pieces together.", low=1, high=1_000_000_000)
]
Seconds = Annotated[
    float | None, o.number(LENGTH, "--seconds", "End after so long, with a checkpoint.", low=1, high=1e9)
]
Seed = Annotated[int, o.number(LENGTH, "--seed", "Random seed (default 0).", low=0, high=2**31)]
Objects = Annotated[
    int | None,
    o.number(RUN, "--objects", "Use so many objects of the data (stages).", low=1, high=10_000_000),
]
BatchShare = Annotated[
    float | None,
    o.number(
        RUN,
        "--batch-share",
        "Times the recipe's batches, for small machines (stages).",
        "X",
        low=0.001,
        high=64,
    ),
]
Samples = Annotated[
    int,
    o.number(RUN, "--samples", "Held-out objects on the sheet after a flow (default 4).", low=0, high=64),
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
    lpips: LpipsFile = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    samples: Samples = 4,
    tensorboard: TensorBoard = False,
    objects: Objects = None,
    batch_share: BatchShare = None,
    compiled: Compile = False,
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
    if not is_first():  # of many processes one speaks
        console.quiet, console.stdout = True, StringIO()
    if recipe is None and from_model is None:
        raise UsageError(
            "it is not said what to train",
            hint="pass `--recipe NAME` (see `trellis train recipes`), or `--from MODEL --stage STAGE`",
        )
    options = TrainOptions(
        recipe=recipe,
        data=data,
        run=run,
        stage=stage,
        model=from_model,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lpips=lpips,
        output=output,
        objects=objects,
        batch_share=1.0 if batch_share is None else batch_share,
        samples=samples,
        steps=steps,
        seconds=seconds,
        seed=seed,
        resume=resume,
        tensorboard=tensorboard,
        compiled=compiled,
        device=device,
        kernel=kernel,
    )
    staged = None if recipe is None or from_model is not None else plan.staged_recipe(recipe)
    if lpips is not None:
        files.check_input(lpips, "LPIPS file", (".safetensors",))
        if staged is not None:
            raise UsageError("the stages of this recipe compare no pictures", hint="drop `--lpips`")
    if staged is None:
        (describe_recipe if dry_run else train_recipe)(console, options)
    elif lora_rank is not None:
        raise UsageError("an adapter needs a model beside it", hint="pass `--from embedded --stage STAGE`")
    else:
        (describe_stages if dry_run else train_stages)(console, staged, options)


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
        trainer_of(registry.version_of(folder)).merge_into_model(trained, folder, out)
    console.facts["model"] = {"folder": str(out)}
    console.note(f"use it with `--model {out}`")
    console.result([str(out)])


@app.command("familiarity")
def familiarity(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model trained on procedural objects.")],
    objects: Annotated[
        int, o.number(RUN, "--objects", "Training objects to look at (default 1500).", low=100, high=100_000)
    ] = 1500,
    device: o.Device = "auto",
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Let a model know which pictures it was trained on, so that it warns of others.

    `--stage release` does this for every new model.
    """
    console: Console = ctx.obj
    if not model.is_dir():
        raise InputError(f"`{model}` is not a folder", hint="give the folder of a model")
    place, kernels = open_device(device)
    with console.working() as progress:
        progress.begin("start")
        from trellis2.known_pictures import fit_folder
        from trellis_core.runtime import Runtime

        facts = fit_folder(
            model,
            Runtime(device=place, kernels=kernels),
            seen=objects,
            unseen=max(objects // 3, 32),
            on_pictures=lambda done, count: progress(Beginning("pictures", done, count)),
        )
    console.facts["familiarity"] = {"directions": len(facts.directions), "limit": round(facts.limit, 4)}
    console.result([str(model / "pipeline.json")])
