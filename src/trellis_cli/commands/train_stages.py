"""`trellis train --recipe embedded`: a recipe of stages that follow each other, on procedural objects.

Each stage has a checkpoint `STAGE.safetensors` and a log `STAGE.jsonl` in the run folder. Beside the stages
there are `encode` (store the data as the flows need it), `weights` (averaged weights alone, to start from
elsewhere) and `release` (a model folder).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trellis_cli import dry_run
from trellis_cli.commands.train_setup import (
    CURVES,
    EVENTS,
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
from trellis_cli.console import Beginning, Console, Stages
from trellis_core.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch

    from trellis2.workshop import Workshop
    from trellis_core.kernels.table import Kernels
    from trellis_core.runtime import Runtime
    from trellis_core.training.loop import LoopSettings

ENCODE, WEIGHTS, RELEASE = EXTRA = ("encode", "weights", "release")


def train_stages(console: Console, recipe: Mapping[str, Any], options: TrainOptions) -> None:
    """The stages that are asked for, or all, one after the other."""
    recipe = with_batches(recipe, options.batch_share)
    stages = chosen_stages(recipe, options)
    trained = [name for name in stages if name not in EXTRA]
    folder, source = required(options.run, "--run"), required(options.data, "--data")
    shards = find_shards(source, options.objects)
    if options.steps is None and options.seconds is None and trained:
        raise UsageError("how long to train is not said", hint="pass `--steps N` or `--seconds N`, per stage")
    if {WEIGHTS, RELEASE} & set(stages):
        required(options.output, "--output")
    for name in trained:
        check_run(folder / f"{name}.safetensors", options.resume)
    from trellis2.training import encode_data, release
    from trellis_core.runtime import Runtime
    from trellis_core.training.loop import LoopSettings

    place, kernels = own_device(options)
    with joined(place) as world, console.working() as progress:
        progress.begin("start")
        shop = open_shop(recipe, shards, options, place, kernels, world.leads)
        console.say("data", f"{len(shop.index):,} objects of `{source}`")
        console.say("device", str(place) if world.size == 1 else f"{place}, one of {world.size} processes")
        with patient(console) as stop:
            settings = LoopSettings(
                steps=options.steps,
                seconds=None if options.steps else options.seconds,
                device=place.type,
                dtype=shop.dtype,
                log_every=max(1, min(50, (options.steps or 1000) // 20)),
                world=world,
                stop=stop,
                on_save=curve_drawer(console, folder, list(recipe["stages"])),
            )
            for name in stages:
                if world.any(stop()):
                    break
                progress(Beginning(name, 0, options.steps or 1))
                if name in trained:
                    step = train_stage(console, shop, name, settings, options, progress)
                    if world.leads and not stop():
                        runtime = Runtime(device=place, kernels=kernels)
                        draw_sheet(console, shop, name, options, runtime, step)
                elif world.leads and name == ENCODE:
                    encode_data(shop)
                elif world.leads and name == WEIGHTS:
                    copy_weights(folder, list(recipe["stages"]), required(options.output, "--output"))
                elif world.leads and name == RELEASE:
                    release(shop, required(options.output, "--output"))
            stopped = world.any(stop())
    report(console, stages, options, stopped)


def train_stage(
    console: Console,
    shop: Workshop,
    name: str,
    settings: LoopSettings,
    options: TrainOptions,
    progress: Stages,
) -> int:
    """One stage, from the same random numbers whichever stages ran before in this process; its last step."""
    import torch

    from trellis2.training import train_and_store

    torch.manual_seed(options.seed)
    for generator in (shop.generator, shop.host):
        generator.manual_seed(options.seed + 1000 * settings.world.rank)
    log = open_log(console, shop.run, name, options.tensorboard)
    last = 0

    def show(entry: Any) -> None:
        nonlocal last
        log(entry)
        last = entry.step
        progress(Beginning(name, last, options.steps or last))

    train_and_store(shop, name, settings, show)
    return last


def draw_sheet(
    console: Console, shop: Workshop, stage: str, options: TrainOptions, runtime: Runtime, step: int
) -> None:
    """What the run makes of held-out objects so far, after a flow whose earlier stages are there."""
    from trellis2.stage_samples import FLOWS, missing_stages, sample_stage
    from trellis_cli.commands.train_sheet import sample_sheet
    from trellis_core.io.images import write_png
    from trellis_core.training.records import write_picture

    if stage not in FLOWS or not options.samples:
        return
    if missing := missing_stages(shop, stage):
        console.note(f"no samples after `{stage}`: {' and '.join(missing)} must be trained first")
        return
    sheet = sample_sheet(sample_stage(shop, stage, options.samples), runtime)
    path = write_png(shop.run / f"{stage}.png", sheet)
    console.facts.setdefault("sheets", []).append(str(path))
    if options.tensorboard:
        write_picture(shop.run / EVENTS / stage, "samples", sheet, step)


def open_shop(
    recipe: Mapping[str, Any],
    shards: list[Path],
    options: TrainOptions,
    place: torch.device,
    kernels: Kernels,
    leads: bool,
) -> Workshop:
    import torch

    from trellis2.workshop import Workshop
    from trellis_core.training.precision import Float32Attention, LoadedKernels

    gpu = place.type != "cpu"
    if gpu:
        torch.set_float32_matmul_precision("high")
    return Workshop(
        recipe,
        shards,
        required(options.run, "--run"),
        place,
        torch.Generator(place),
        torch.Generator(),
        LoadedKernels.of(kernels) if gpu else Float32Attention(),
        torch.bfloat16 if gpu else None,
        keep_caches=leads,  # others encode for themselves: two writers would spoil one file
        compiled=options.compiled,
    )


def copy_weights(run: Path, stages: list[str], output: Path) -> None:
    """The averaged weights of every stage that has been trained, in float16."""
    from trellis_core.training.checkpoints import save_weights

    for name in stages:
        if (run / f"{name}.safetensors").exists():
            save_weights(output / f"{name}.safetensors", run / f"{name}.safetensors")


def chosen_stages(recipe: Mapping[str, Any], options: TrainOptions) -> list[str]:
    known = [*recipe["stages"], *EXTRA]
    stages = options.stage.split(",") if options.stage else list(recipe["stages"])
    for name in stages:
        if name not in known:
            raise UsageError(f"the recipe has no stage `{name}`", hint=f"it has: {', '.join(known)}")
    return stages


def with_batches(recipe: Mapping[str, Any], share: float) -> Mapping[str, Any]:
    """The recipe with `share` times its batch sizes."""

    def scaled(stage: Mapping[str, Any]) -> dict[str, Any]:
        sizes = {k: max(1, round(share * v)) for k, v in stage.items() if k.endswith("batch_size")}
        return {**stage, **sizes}

    return {**recipe, "stages": {name: scaled(stage) for name, stage in recipe["stages"].items()}}


def find_shards(data: Path, objects: int | None) -> list[Path]:
    """The shards of a folder, or as many as hold `objects` objects."""
    shards = sorted(data.glob("*.safetensors"))
    if not shards:
        raise InputError(
            f"`{data}` holds no shards",
            hint="make them with `trellis train data --recipe embedded --objects 40000 --out FOLDER`",
        )
    if objects is None:
        return shards
    from trellis_core.training.synthetic.shards import DatasetSettings

    return shards[: -(-objects // DatasetSettings().shard)]


def report(console: Console, stages: list[str], options: TrainOptions, stopped: bool) -> None:
    run = required(options.run, "--run")
    results = [run / f"{name}.safetensors" for name in stages if name not in EXTRA]
    if options.output is not None and set(stages) & {WEIGHTS, RELEASE}:
        results.append(options.output)
    console.facts |= {
        "recipe": options.recipe,
        "stages": stages,
        "finished": not stopped,
        "outputs": [str(path) for path in results],
        **({"curves": str(run / CURVES)} if (run / CURVES).exists() else {}),
    }
    if stopped:
        console.note("stopped, with a checkpoint; the same command with `--resume` continues")
    console.result([str(path) for path in results])
    if stopped:
        raise typer.Exit(INTERRUPTED)


def describe_stages(console: Console, recipe: Mapping[str, Any], options: TrainOptions) -> None:
    """The dry run."""
    recipe = with_batches(recipe, options.batch_share)
    stages = [name for name in chosen_stages(recipe, options) if name not in EXTRA]
    rows, facts = dry_run.describe_embedded(recipe, stages, options.data)
    console.facts.update(facts)
    console.result(rows)
