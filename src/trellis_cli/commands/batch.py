"""`trellis batch FOLDER|LIST --out DIR`: many assets with one loaded model, resumable."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trellis_cli import delivery
from trellis_cli import options as o
from trellis_cli.batch import OWN, Wishes, Work
from trellis_cli.console import Console
from trellis_cli.journal import open_report
from trellis_cli.maker import Maker
from trellis_cli.worklist import read_items
from trellis_core.errors import TrellisError, UsageError

app = typer.Typer()

SOME_FAILED = 8  # exit code

EXAMPLES = """\
[bold]Examples[/bold]
  trellis batch photos --out assets
  trellis batch photos --recursive --out assets --preset game --previews
  trellis batch prompts.txt --out assets --format obj
  trellis batch a.png b.png --out assets --limit 1

[bold]A list[/bold] has a picture or a prompt on each line, or JSON:
  photos/chair.png
  a tall red chair with armrests
  {"pictures": ["front.png", "back.png"], "seed": 7, "name": "shoe"}

[bold]report.jsonl[/bold] in the folder has one line for each asset. The same command goes on where it
stopped: what is there is kept, unless its picture or the settings changed; what failed is tried again."""

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER|LIST|PICTURE",
        help="Folders, lists (`-`: standard input), pictures.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR", help="Folder for the results.", rich_help_panel=o.RESULT),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="Kind of file: glb (default), obj, ...", rich_help_panel=o.RESULT
    ),
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", "-r", help="Search the folders in a folder too.", rich_help_panel=o.RESULT),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        help="Stop after trying N assets.",
        show_default=False,
        rich_help_panel=o.RESULT,
    ),
]
SaveBundles = Annotated[
    bool, typer.Option("--save-bundles", help="Also save the runs, for `export`.", rich_help_panel=o.RESULT)
]
Previews = Annotated[
    bool, typer.Option("--previews", help="Also draw each asset from a few sides.", rich_help_panel=o.RESULT)
]


@app.command(epilog=EXAMPLES)
@partial(o.with_options, without=OWN)
def batch(
    ctx: typer.Context,
    sources: Sources,
    run: o.RunOptions,
    out: Out,
    format: Format = None,
    recursive: Recursive = False,
    limit: Limit = None,
    save_bundles: SaveBundles = False,
    previews: Previews = False,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
) -> None:
    """Make an asset of each picture in a folder, or of each line of a list.

    One that cannot be made does not end the others. When memory runs out it goes on with a lower plan.
    """
    console: Console = ctx.obj
    wishes = Wishes(
        run=run,
        out=out,
        suffix=suffix_for(format, run.form),
        save_bundles=save_bundles,
        previews=previews,
        mode=mode.value,
        background=background.value,
    )
    items = read_items(sources, recursive=recursive, leave_out=out)
    text = any(item.prompt is not None for item in items)
    pictures = any(item.pictures for item in items)
    maker = Maker(console, run, text=text, pictures=pictures)
    maker.check(run.form or delivery.form_of(Path(f"x{wishes.suffix}")))
    work = Work(console, wishes, maker, open_report(out), items)
    try:
        work.through(limit)
    except TrellisError as error:
        if work.made:
            kept = "what was made is kept, and the same command goes on from there"
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
        raise
    finally:
        work.conclude()
    if work.failures:
        raise typer.Exit(SOME_FAILED)


def suffix_for(format: str | None, form: o.Form | None) -> str:
    """The ending of results. `UsageError` for one that nothing is written to."""
    if format is None:
        return delivery.SUFFIXES[form or o.Form.mesh][0]
    suffix = f".{format.lower().removeprefix('.')}"
    form = form or delivery.form_of(Path(f"x{suffix}"))
    delivery.check_suffix(Path(f"NAME{suffix}"), form)
    known = delivery.SUFFIXES[form]
    if suffix not in known:
        raise UsageError(
            f"`--format {format}` is unknown", hint=f"known: {', '.join(each[1:] for each in known)}"
        )
    return suffix
