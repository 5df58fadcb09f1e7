"""Contact sheets for `--preview`: an object from a few sides in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from trellis_cli.drawing import drawable
from trellis_core.geometry.types import Asset
from trellis_core.render.subject import Look, Subject, as_subject, modes_of
from trellis_core.render.turntable import contact_sheet
from trellis_core.runtime import Runtime, silent

SIDE = 384  # pixels of one view
MODES = ("color", "clay")


def draw_asset(thing: Subject | Asset, runtime: Runtime, modes: Sequence[str] = MODES) -> Image.Image:
    """A row of views for each mode that `thing` can be shown in."""
    subject = as_subject(thing)
    looks = [Look(mode=mode) for mode in modes if mode in modes_of(subject)]
    sheet = contact_sheet(subject, drawable(runtime).reporting(silent), size=SIDE, looks=looks)
    return Image.fromarray(sheet.numpy())
