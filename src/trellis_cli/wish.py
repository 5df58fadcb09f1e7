"""How a variant or an edit is to look: words, or one or several pictures. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis_cli import files
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_core.errors import InputError, UsageError

Words = Annotated[
    list[str] | None,  # quotes are often forgotten
    typer.Argument(metavar="PROMPT", help='How it is to look, as in "a red chair".', show_default=False),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="The same as PROMPT.",
        rich_help_panel=o.SAMPLING,
        show_default=False,
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="PICTURE",
        help="A picture of how it is to look, instead of words; may be repeated.",
        rich_help_panel=o.SAMPLING,
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Wish:
    """Either a prompt or pictures."""

    prompt: str | None
    pictures: tuple[Path, ...]

    @classmethod
    def read(cls, words: Sequence[str] | None, prompt: str | None, images: Sequence[Path] | None) -> Wish:
        """Raises `UsageError` unless exactly one of the two is given, `InputError` when it cannot be used."""
        said = [" ".join(words)] if words else []
        said += [prompt] if prompt is not None else []
        if len(said) + bool(images) != 1:
            problem = "say how it is to look in one way only" if said else "nothing says how it is to look"
            raise UsageError(problem, hint='pass a prompt such as "a red chair", or `--image PICTURE`')
        for picture in images or ():
            files.check_input(picture, "picture", files.PICTURES)
        if images:
            return cls(None, tuple(images))
        text = said[0]
        if not any(character.isalnum() for character in text):
            raise InputError("the prompt is empty", hint='say how it is to look, as in "a red chair"')
        if Path(text).suffix.lower() in files.PICTURES and len(text.split()) == 1:
            raise UsageError(f"`{text}` is no prompt but a picture", hint=f"pass `--image {text}`")
        return cls(text, ())

    def arguments(self, console: Console, mode: o.Mode, background: o.Background) -> dict[str, Any]:
        """What the methods of a pipeline call it. Reads the pictures, imports torch."""
        if self.prompt is not None:
            return {"prompt": self.prompt}
        pictures = [files.read_picture(path, console) for path in self.pictures]
        return {"pictures": pictures, "mode": mode.value, "background": background.value}
