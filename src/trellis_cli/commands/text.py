"""`trellis text PROMPT`: words in, textured asset out."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import typer

from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_cli.sampling import make_assets
from trellis_core.errors import InputError

app = typer.Typer()

LONGEST_NAME = 48  # characters of a file name made from a prompt

EXAMPLES = """\
[bold]Examples[/bold]
  trellis text "a tall red chair with armrests"
  trellis text "a blue boat with a white sail" -o boat.glb --seed 7 --num-samples 4"""


@app.command(epilog=EXAMPLES)
@o.with_options
def text(
    ctx: typer.Context,
    words: o.Prompt,
    run: o.RunOptions,
) -> None:
    """Turn a description into a textured 3D asset.

    Words that the model does not know are ignored, and it says which; a prompt that is too long is cut.
    """
    console: Console = ctx.obj
    prompt = " ".join(words)

    def check() -> None:
        if not any(character.isalnum() for character in prompt):
            raise InputError("the prompt is empty", hint='say what to make: `trellis text "a red chair"`')

    make_assets(console, run, Path(slug(prompt)), check, lambda: {"prompt": prompt}, text=True)


def slug(prompt: str) -> str:
    """A file name from the first words of a prompt: `a-tall-red-chair`."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt[: 4 * LONGEST_NAME]).lower())
    name = words[0][:LONGEST_NAME] if words else "text"
    for word in words[1:]:
        if len(name) + 1 + len(word) > LONGEST_NAME:
            break
        name += f"-{word}"
    return name
