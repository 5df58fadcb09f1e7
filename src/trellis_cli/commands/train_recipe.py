"""`trellis train --recipe NAME`, `--from MODEL --stage STAGE`: one stage, on data in the released layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trellis_cli import dry_run, registry
from trellis_cli.commands.train_setup import (
    CURVES,
    INTERRUPTED,
    TrainOptions,
    check_run,
    curve_drawer,
    joined,
    open_log,
    own_device,
    patient,
    required,
)
from trellis_cli.console import Beginning, Console
from trellis_core.errors import OutOfMemory, UsageError

if TYPE_CHECKING:
    from trellis_core.runtime import Runtime
    from trellis_core.training.recipes import Recipe
    from trellis_core.training.tuning import Tuning

CHECKPOINT, LOG, SHEET = "training.safetensors", "log", "samples.png"


def train_recipe(console: Console, options: TrainOptions) -> None:
    """Train by a recipe, or fine-tune a stage of a model, up to a number of steps or seconds."""
    chosen = choose_recipe(options)
    length = options.steps or chosen.steps
    folder, source = required(options.run, "--run"), required(options.data, "--data")
    check_run(folder / CHECKPOINT, options.resume)
    from trellis_core.runtime import Runtime
    from trellis_core.training.lora import LoRASettings
    from trellis_core.training.lpips import Lpips
    from trellis_core.training.released import RunSettings, Trainee
    from trellis_core.training.released import run as run_recipe
    from trellis_core.training.tuning import finish

    model = None if options.model is None else registry.find_model(options.model).folder
    rank, alpha = options.lora_rank, options.lora_alpha
    adapter = None if rank is None else LoRASettings(rank=rank, alpha=alpha)
    if options.lpips is not None and "lpips" not in chosen.losses:
        raise UsageError(f"the recipe `{chosen.name}` has no loss `lpips`", hint="drop `--lpips`")
    place, kernels = own_device(options)
    perceptual = None if options.lpips is None else Lpips.load(options.lpips, place)
    with joined(place) as world, console.working() as progress:
        progress.begin("start")
        tuning = trainer_of(chosen.version).open_tuning(
            chosen,
            source,
            model=model,
            lora=adapter,
            device=place,
            kernels=kernels,
            seed=options.seed,
            world=world,
            perceptual=perceptual,
        )
        console.say("recipe", f"{chosen.name}; {length:,} steps of {chosen.batch.per_gpu} samples")
        console.say("data", f"{len(tuning.catalog.entries):,} items of `{source}`")
        console.say("device", str(place) if world.size == 1 else f"{place}, one of {world.size} processes")
        if "lpips" in chosen.losses and perceptual is None:
            console.note("LPIPS is off: its weights are not part of this program; `--lpips FILE` takes yours")
        trainee = Trainee(tuning.learner, chosen, tuning.order, inflated=tuning.inflated)
        draw = curve_drawer(console, folder, [LOG])

        def on_step(step: int) -> None:
            progress(Beginning("train", step, length))
            if step % chosen.save_every == 0:
                draw()

        with patient(console) as stop:
            run_recipe(
                trainee,
                tuning.losses_of,
                RunSettings(
                    steps=length,
                    seconds=options.seconds,
                    device=place,
                    log_every=max(1, min(chosen.log_every, length // 20)),
                    world=world,
                    stop=stop,
                    on_step=on_step,
                ),
                checkpoint=folder / CHECKPOINT,
                elastic=tuning.elastic,
                generators=tuning.generators,
                log=open_log(console, folder, LOG, options.tensorboard),
            )
            interrupted = stop()
        ended = trainee.step >= length
        paths = finish(tuning, trainee, folder) if world.leads else []
        draw()
        if world.leads and not interrupted and options.samples:
            draw_sheet(
                console,
                tuning,
                model,
                options.samples,
                folder / SHEET,
                Runtime(device=place, kernels=kernels),
            )
    for reason, count in tuning.replaced.items():
        console.warn(f"{count} times another item was taken: {reason}")
    curves = folder / CURVES
    console.facts |= {
        "recipe": chosen.name,
        "step": trainee.step,
        "finished": ended,
        "outputs": [str(path) for path in paths],
        **({"curves": str(curves)} if curves.exists() else {}),
    }
    if not ended:
        console.note(f"stopped after step {trainee.step:,}; the same command with `--resume` continues")
    if adapter is not None and options.model is not None and paths:
        console.note(f"`trellis train merge {paths[0]} --from {options.model} --out FOLDER` makes it a model")
    console.result([str(path) for path in paths])
    if interrupted and not ended:
        raise typer.Exit(INTERRUPTED)


def draw_sheet(
    console: Console, tuning: Tuning, model: Path | None, count: int, path: Path, runtime: Runtime
) -> None:
    """What the run makes now of the first items of the data, where there is something to see."""
    from trellis_cli.commands.train_sheet import sample_sheet
    from trellis_core.io.images import write_png

    if tuning.recipe.version == registry.V1:
        from trellis.training_samples import sample_tuned
    else:
        from trellis2.tuning_samples import sample_tuned
    try:
        samples = sample_tuned(tuning, model, count, runtime)
    except OutOfMemory as error:
        console.note(f"no samples: {error.message}; `--samples 0` does not try")
        return
    if samples:
        console.facts["sheets"] = [str(write_png(path, sample_sheet(samples, runtime)))]


def describe_recipe(console: Console, options: TrainOptions) -> None:
    """The dry run."""
    chosen = choose_recipe(options)
    rows, facts = dry_run.describe(chosen, options.steps or chosen.steps, options.lora_rank, options.data)
    console.facts.update(facts)
    console.result(rows)


def choose_recipe(options: TrainOptions) -> Recipe:
    """A recipe by name, or the one that fine-tunes a stage of a model."""
    from trellis_core.training.recipes import read_recipe

    name, stage = options.recipe, options.stage
    if name is not None and name != dry_run.EMBEDDED:
        if stage is not None:
            raise UsageError("this recipe has one stage", hint="drop `--stage`")
        return read_recipe(name, dry_run.recipe_folders())
    if stage is None:
        raise UsageError(
            "which stage of the model to train is not said",
            hint="pass `--stage`: structure_flow, shape_flow, texture_flow, shape_vae or texture_vae; of a "
            "TRELLIS v1 model structure_flow, latent_flow, structure_vae, latent_vae or a decoder",
        )
    folder = registry.find_model(str(options.model)).folder
    recipe: Recipe = trainer_of(registry.version_of(folder)).recipe_for(folder, stage)
    return recipe


def trainer_of(version: str) -> Any:
    """The module that trains a version: `open_tuning`, `recipe_for`."""
    if version == registry.V1:
        from trellis import training

        return training
    from trellis2 import tuning

    return tuning
