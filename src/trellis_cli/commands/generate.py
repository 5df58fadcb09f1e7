"""`trellis generate`: a picture becomes an asset; so do several, words, a saved run, a folder's pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis_cli import files
from trellis_cli import options as o
from trellis_cli.commands.export import export
from trellis_cli.commands.multi_image import multi_image
from trellis_cli.commands.text import text
from trellis_cli.console import Console
from trellis_cli.dispatch import Given, Kind, recognise
from trellis_cli.sampling import make_assets
from trellis_core.errors import UsageError

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis generate chair.png
  trellis generate chair.png -o out/chair.glb --preset game --seed 7
  trellis generate robot.jpg --subject hard-surface --resolution 1536 --save-bundle robot.safetensors
  trellis generate mug.png --json | jq .outputs

[bold]Also[/bold]
  trellis generate front.png back.png        several pictures of one object, as `multi-image`
  trellis generate "a tall red chair"        words, as `text`
  trellis generate robot.safetensors         a saved run, as `export`
  trellis generate photos -o assets          a folder, as `batch`"""

Source = Annotated[
    list[str],
    typer.Argument(metavar="PICTURE", help="PNG, JPEG, WebP, ... of one object.", show_default=False),
]
# options that have no meaning for what was given, and why
SENSELESS: Mapping[Kind, tuple[tuple[str, ...], str]] = {
    Kind.picture: (("mode",), "it says how several pictures are combined"),
    Kind.pictures: ((), ""),
    Kind.prompt: (("mode", "background"), "it is about pictures"),
    Kind.folder: (
        ("save_bundle", "preview"),
        "it names one file; `trellis batch` has `--save-bundles` and `--previews`",
    ),
}


@app.command(epilog=EXAMPLES)
@o.with_options
def generate(
    ctx: typer.Context,
    sources: Source,
    run: o.RunOptions,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
) -> None:
    """Turn a picture into a textured 3D asset.

    A picture with transparency is used as it is; otherwise the background is removed first.
    """
    console: Console = ctx.obj
    given = recognise(sources)
    options = {**{f.name: getattr(run, f.name) for f in fields(run)}, "mode": mode, "background": background}
    refuse_senseless(ctx, given.kind)
    if given.kind is Kind.picture:
        from_picture(console, given.paths[0], run, background)
    elif given.kind is Kind.pictures:
        console.note(
            f"{len(given.paths)} pictures are taken as views of one object; one asset each: `trellis batch`"
        )
        multi_image(ctx=ctx, pictures=list(given.paths), **options)
    elif given.kind is Kind.prompt:
        if " " not in given.prompt:
            console.note(f"no file is called `{given.prompt}`: taken as a prompt")
        text(ctx=ctx, words=[given.prompt], **_taken_by(text, options))
    elif given.kind is Kind.bundle:
        presets = None if run.preset is None else [run.preset.value]
        export(ctx=ctx, bundle=given.paths[0], **_taken_by(export, {**options, "preset": presets}))
    else:
        from_folder(ctx, given, options)


def from_picture(console: Console, picture: Path, run: o.RunOptions, background: o.Background) -> None:
    """One picture to one asset."""

    def start() -> dict[str, Any]:
        return {"picture": files.read_picture(picture, console), "background": background.value}

    make_assets(console, run, picture, lambda: files.check_input(picture, "picture", files.PICTURES), start)


def from_folder(ctx: typer.Context, given: Given, options: Mapping[str, Any]) -> None:
    """Each picture in a folder, as `trellis batch` makes them."""
    from trellis_cli.commands.batch import batch

    folder, output = given.paths[0], options["output"]
    if output is not None and output.suffix.lower() in files.ASSETS:
        raise UsageError(
            f"`{folder}` is a folder: its assets do not fit in one file",
            hint=f"name a folder with `-o`, as in `trellis batch {folder} --out {output.with_suffix('')}`",
        )
    out = output if output is not None else Path(f"{folder.resolve().name or 'pictures'}-assets")
    ctx.obj.note(f"`{folder}` is a folder: going on as `trellis batch {folder} --out {out}`")
    batch(ctx=ctx, sources=[folder], out=out, **_defaults(batch), **_taken_by(batch, options))


def refuse_senseless(ctx: typer.Context, kind: Kind) -> None:
    """`UsageError` for an option that was given and has no meaning for what was given."""
    names, why = SENSELESS.get(kind, ((), ""))
    if kind is Kind.bundle:
        known = signature(export).parameters
        names = tuple(param.name for param in ctx.command.params if param.name not in (*known, "sources"))
        why = "it is about sampling, and that is done"
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name in names and source is not None and source.name == "COMMANDLINE":
            option = max(param.opts, key=len)
            raise UsageError(f"`{option}` does nothing for {kind.value}: {why}", hint=f"leave out `{option}`")


def _taken_by(command: Callable[..., None], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in signature(command).parameters}


def _defaults(command: Callable[..., None]) -> dict[str, Any]:
    """Of the options that `generate` does not have."""
    own = signature(generate).parameters
    parameters = signature(command).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in own}
