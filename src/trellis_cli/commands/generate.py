"""`trellis generate PICTURE`: picture in, textured asset out."""

from __future__ import annotations

from typing import Any

import typer

from trellis_cli import files
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_cli.sampling import make_assets

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis generate chair.png
  trellis generate chair.png -o out/chair.glb --preset game --seed 7
  trellis generate robot.jpg --subject hard-surface --resolution 1536 --save-bundle robot.safetensors
  trellis generate mug.png --json | jq .outputs"""


@app.command(epilog=EXAMPLES)
@o.with_run_options
def generate(
    ctx: typer.Context,
    picture: o.Picture,
    run: o.RunOptions,
    background: o.BackgroundOption = o.Background.auto,
) -> None:
    """Turn a picture into a textured 3D asset.

    A picture with transparency is used as it is; otherwise the background is removed first.
    """
    console: Console = ctx.obj

    def start() -> dict[str, Any]:
        return {"picture": files.read_picture(picture, console), "background": background.value}

    make_assets(console, run, picture, lambda: files.check_input(picture, "picture", files.PICTURES), start)
