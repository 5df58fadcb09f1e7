"""Sheets of pictures with captions: input beside result, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor  # uint8 [H, W], [H, W, 3] or [H, W, 4]

PAPER = (255, 255, 255)
BEHIND_ALPHA = (226, 227, 230)
INK = (40, 40, 44)
GAP = 8  # pixels between cells


def picture_sheet(
    rows: Sequence[Sequence[Picture]],
    labels: Sequence[str] = (),  # one per row, above it; or none
    *,
    columns: Sequence[str] = (),  # headings
    cell: int = 256,
) -> Tensor:  # uint8 [H, W, 3]
    """Lay pictures out in cells of `cell` pixels, scaled to fit and centred. Rows may differ in length."""
    if labels and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} rows")
    line = max(14, cell // 12)
    font = ImageFont.load_default(size=line * 0.8)
    across = max([len(row) for row in rows] + [len(columns), 1])
    heading = line + GAP if columns else 0
    step = cell + GAP + (line if labels else 0)
    sheet = Image.new("RGB", (GAP + across * (cell + GAP), GAP + heading + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, text in enumerate(columns):
        draw.text((GAP + j * (cell + GAP), GAP), text, INK, font)
    for i, row in enumerate(rows):
        y = GAP + heading + i * step
        if labels:
            draw.text((GAP, y), labels[i], INK, font)
            y += line
        for j, picture in enumerate(row):
            fitted = fit(picture, cell)
            x = GAP + j * (cell + GAP)
            sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
    return torch.from_numpy(np.array(sheet))


def fit(picture: Picture, cell: int) -> Image.Image:
    """RGB, as large as fits into the cell, transparency on gray; small pictures keep visible pixels."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    if image.mode != "RGB":
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, BEHIND_ALPHA)
        image.paste(rgba, mask=rgba.getchannel("A"))
    scale = cell / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    enlarged = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return image.resize(size, enlarged)
