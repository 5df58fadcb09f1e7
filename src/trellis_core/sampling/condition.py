"""What a run starts from: a picture, several pictures of one object, or a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from trellis_core.errors import UsageError
from trellis_core.sampling.multi_image import STOCHASTIC, mode_named

Picture = Image.Image | str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One picture, several pictures or a prompt; exactly one of them."""

    pictures: tuple[Picture, ...] = ()
    prompt: str | None = None
    mode: str = STOCHASTIC  # how several pictures are combined
    background: str = "auto"

    @classmethod
    def of(
        cls,
        picture: Picture | None,
        pictures: Sequence[Picture],
        prompt: str | None,
        mode: str = STOCHASTIC,
        background: str = "auto",
    ) -> Condition:
        """Raises `UsageError` unless exactly one of the three is given."""
        if isinstance(pictures, (str, Path, Image.Image)):
            raise UsageError("`pictures` is one picture, not a list", hint="pass it as `picture`")
        if sum((picture is not None, len(pictures) > 0, prompt is not None)) != 1:
            raise UsageError(
                "a run starts from one thing: a picture, several pictures, or a prompt",
                hint='for example run("chair.png"), run(pictures=["a.png", "b.png"]), run(prompt="a chair")',
            )
        mode_named(mode)
        given = tuple(pictures) if picture is None else (picture,)
        return cls(pictures=given, prompt=prompt, mode=mode, background=background)

    def facts(self, seen: str | None = None, familiarity: Sequence[float] = ()) -> dict[str, Any]:
        """JSON-able; kept in bundles and finished files. Names of files stay private.

        `seen` are the words of the prompt that the encoder knows, where it does not know all;
        `familiarity` one number per picture, from models that measure it.
        """
        if self.prompt is not None:
            return {"kind": "text", "prompt": self.prompt if seen is None else seen}
        known = {"familiarity": [round(each, 3) for each in familiarity]} if familiarity else {}
        if len(self.pictures) > 1:
            return {"kind": "pictures", "count": len(self.pictures), "mode": self.mode, **known}
        return {"kind": "picture", **known}
