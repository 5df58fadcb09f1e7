"""`trellis train data`: procedural objects for the recipe of stages, or a sheet of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import dry_run, files
from trellis_cli import options as o
from trellis_cli.commands import train_ingest
from trellis_cli.commands.train_setup import open_device, required
from trellis_cli.console import Beginning, Console
from trellis_core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

DATA = "Data"
app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
app.command("ingest")(train_ingest.ingest)


@app.callback(invoke_without_command=True)
def make_data(
    ctx: typer.Context,
    recipe: Annotated[
        str, o._option(DATA, "--recipe", metavar="NAME", help="Whose procedural objects (default embedded).")
    ] = dry_run.EMBEDDED,
    preview: Annotated[bool, o._option(DATA, "--preview", help="Draw some objects as a PNG sheet.")] = False,
    output: Annotated[
        Path | None,
        o._option(DATA, "-o", "--output", metavar="PNG", help="The sheet (default ./preview.png)."),
    ] = None,
    objects: Annotated[
        int | None, o.number(DATA, "--objects", "How many procedural objects.", low=1, high=10_000_000)
    ] = None,
    out: Annotated[
        Path | None,
        o._option(DATA, "--out", metavar="FOLDER", help="Write shards of `--objects` objects here."),
    ] = None,
    workers: Annotated[int, o.number(DATA, "--workers", "Processes.", low=1, high=256)] = 1,
    seed: Annotated[int, o.number(DATA, "--seed", "First object.", low=0, high=2**31)] = 0,
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
    facts = dry_run.staged_recipe(recipe)
    if facts is None:
        raise UsageError(
            f"the data of `{recipe}` are not procedural",
            hint="make them from meshes: `trellis train data ingest FOLDER --out DATA`",
        )
    if preview == (out is not None):
        raise UsageError(
            "say what to do with the objects", hint="pass either `--preview`, or `--objects N --out FOLDER`"
        )
    place = open_device(device)[0]
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


def laid_out(tiles: Sequence[Tensor], columns: int) -> Tensor:  # uint8 [H, W, 3]
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
