"""`trellis multi-image PICTURE...`: several pictures of one object in, textured asset out."""

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
  trellis multi-image front.png back.png
  trellis multi-image front.png left.png back.png --mode multidiffusion -o robot.glb"""


@app.command(epilog=EXAMPLES)
@o.with_options
def multi_image(
    ctx: typer.Context,
    pictures: o.PicturePaths,
    run: o.RunOptions,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
) -> None:
    """Turn several pictures of one object into a textured 3D asset.

    Each picture is cut out by itself; the first one names the result. Pictures that disagree cost sharpness.
    """
    console: Console = ctx.obj

    def check() -> None:
        for picture in pictures:
            files.check_input(picture, "picture", files.PICTURES)

    def start() -> dict[str, Any]:
        images = [files.read_picture(picture, console) for picture in pictures]
        return {"pictures": images, "mode": mode.value, "background": background.value}

    make_assets(console, run, pictures[0], check, start)
