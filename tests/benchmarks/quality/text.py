"""Does the model do what a prompt says: right category, right main color, right colors of two parts.

A part's color is the median color of the voxels that the part judge gives to its role, named by the nearest
palette color in CIELAB. How often true objects pass the same judgment is the judge's own ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.quality.generate import Model, Result
from tests.benchmarks.quality.judges import Judges, PointCloud
from tests.benchmarks.quality.measures import color_name
from tests.benchmarks.quality.table import name_categories
from tests.benchmarks.quality.truth import Truth
from trellis2 import stages
from trellis2.condition import read_prompt
from trellis_core.errors import ModelError
from trellis_core.geometry.types import VoxelMesh
from trellis_core.training.synthetic.captions import PromptCase
from trellis_core.training.synthetic.objects import CATEGORIES, PALETTE

FEWEST = 12  # voxels of a part, below which it does not count as there


def takes_text(model: Model) -> bool:
    return model.pipeline.settings.text is not None


def prompt_tokens(model: Model, prompts: Sequence[str]) -> Tensor:  # float32 [B, M, C]
    """Text tokens as `trellis text` makes them. Raises `ModelError` when the model takes no text."""
    settings = model.pipeline.settings.text
    if settings is None:
        raise ModelError(f"the model in `{model.folder.name}` has no text encoder", hint="leave `text` out")
    with torch.inference_mode(), model.pipeline.networks.use("text_encoder", model.runtime) as encoder:
        return torch.cat(
            [
                stages.encode_prompt(encoder, read_prompt(p, encoder.tokenizer, settings).ids, model.runtime)
                for p in prompts
            ]
        )


def judge_prompts(
    results: Sequence[Result], cases: Sequence[PromptCase], judges: Judges
) -> list[dict[str, Any]]:
    """For each result: the category it was taken for, the colors of the demanded parts, and what is right."""
    shapes = [r.shape for r in results]
    entries = []
    for shape, case, name in zip(shapes, cases, name_categories(shapes, judges), strict=True):
        wanted, found = [color for _, color in case.colors], part_colors(shape, case, judges)
        entries.append(
            {
                "prompt": case.prompt,
                "kind": case.category,
                "category": name,
                "wanted": wanted,
                "found": found,
                "category right": name == case.category,
                "colors right": found == wanted,
            }
        )
    return entries


def part_colors(shape: VoxelMesh | None, case: PromptCase, judges: Judges) -> list[str | None]:
    """The name of the color of each demanded part; None where the part is missing."""
    if shape is None or len(shape.mesh.vertices) == 0:
        return [None] * len(case.colors)
    roles = judges.roles_of(PointCloud.of([shape.mesh.vertices.float()]), [case.category])
    colors = shape.voxels.attrs[:, :3]
    return [name_color(colors[roles == judges.roles.index(role)]) for role, _ in case.colors]


def name_color(colors: Tensor) -> str | None:  # float32 [N, 3]
    """The name of the median color; None when there are too few voxels."""
    if len(colors) < FEWEST:
        return None
    return color_name(colors.float().median(dim=0).values.cpu(), PALETTE)


def rates(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares that are right: category, colors (of whatever came out), both."""
    both = [e["category right"] and e["colors right"] for e in entries]
    return {
        "n": len(entries),
        "category": share([e["category right"] for e in entries]),
        "colors": share([e["colors right"] for e in entries]),
        "both": share(both),
    }


def share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def true_cases(truths: Sequence[Truth], parts: int) -> tuple[list[Truth], list[PromptCase]]:
    """What could truly be asked of these objects: the main color (parts = 1), or that and the color of the
    first further part which has another one (parts = 2)."""
    chosen, cases = [], []
    for truth in truths:
        kind, colors = CATEGORIES[truth.category], truth.object.attributes.colors
        main = colors[kind.main]
        others = [(role, colors[role]) for role in kind.mention if colors.get(role, main) != main]
        if parts == 1 or others:
            chosen.append(truth)
            cases.append(PromptCase("", truth.category, ((kind.main, main), *others[: parts - 1])))
    return chosen, cases
