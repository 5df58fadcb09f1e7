"""A row of the table for each way to get shapes: scores of every object, mean, median and by category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.quality.generate import Result
from tests.benchmarks.quality.judges import Judges, PointCloud
from tests.benchmarks.quality.measures import Surface, compare, overlap, vertex_surface
from tests.benchmarks.quality.truth import Truth
from trellis_core.geometry.types import VoxelMesh

Surfacer = Callable[[VoxelMesh], Surface]
WORST = {"F@0.05": 0.0, "F@0.02": 0.0}  # of a result that is nothing
MEASURES = ("category", "IoU", "F@0.05", "F@0.02", "Chamfer", "color")


def raw_surface(shape: VoxelMesh) -> Surface:
    """The decoder's own mesh, colored by its voxels."""
    return vertex_surface(shape.mesh.vertices, shape.mesh.faces, shape.voxels.attrs[:, :3])


def score(
    results: Sequence[Result],
    truths: Sequence[Truth],
    judges: Judges | None,
    surfacer: Surfacer = raw_surface,
) -> dict[str, Any]:
    """A row: every object's scores and their summary. Without judges, categories are not judged."""
    named = name_categories([r.shape for r in results], judges) if judges else [None] * len(results)
    objects = []
    for result, truth, name in zip(results, truths, named, strict=True):
        entry: dict[str, Any] = {"seed": truth.seed, "kind": truth.category}
        if judges:
            entry |= {"category": float(name == truth.category), "judged": name}
        entry["IoU"] = overlap(result.cells, truth.cells)
        if result.shape is None or len(result.shape.mesh.faces) == 0:
            entry |= {**WORST, "failed": True}
        else:
            entry |= compare(surfacer(result.shape), truth.surface)
        objects.append(entry)
    return {"n": len(objects), **summary(objects), "objects": objects}


def name_categories(shapes: Sequence[VoxelMesh | None], judges: Judges, batch: int = 16) -> list[str]:
    """What the judge takes each shape for; `nothing` where there is none."""
    names = ["nothing"] * len(shapes)
    present = [(i, s.mesh.vertices) for i, s in enumerate(shapes) if s is not None and len(s.mesh.vertices)]
    for first in range(0, len(present), batch):
        part = present[first : first + batch]
        found = judges.categories_of(PointCloud.of([v for _, v in part]))
        for (place, _), name in zip(part, found, strict=True):
            names[place] = name
    return names


def summary(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and median of every measure, failures, and means by category. A failure counts as wrong category,
    IoU and F-score 0; it has no Chamfer distance and color."""
    by_kind = defaultdict(list)
    for entry in objects:
        by_kind[entry["kind"]].append(entry)
    return {
        "failed": sum(bool(e.get("failed")) for e in objects),
        "mean": {m: _reduce(mean, objects, m) for m in MEASURES},
        "median": {m: _reduce(median, objects, m) for m in MEASURES if m != "category"},
        "by category": {
            kind: {"n": len(members), **{m: _reduce(mean, members, m) for m in MEASURES}}
            for kind, members in sorted(by_kind.items())
        },
    }


def _reduce(how: Callable[[list[float]], float], objects: Sequence[dict[str, Any]], measure: str) -> Any:
    values = [e[measure] for e in objects if measure in e]
    return round(how(values), 5) if values else None


def truth_again(truth: Truth) -> Result:
    """The truth as if it were a result."""
    return Result(truth.shape, truth.cells)


def other_points(shape: VoxelMesh) -> Surface:
    """The same surface at other points: the floor of every distance."""
    turned = torch.randperm(len(shape.mesh.faces), generator=torch.Generator().manual_seed(1))
    faces: Tensor = shape.mesh.faces[turned.to(shape.mesh.faces.device)]
    return vertex_surface(shape.mesh.vertices, faces, shape.voxels.attrs[:, :3])
