"""`trellis inspect FILE`: what a file holds and whether it is fit to be handed out."""

from __future__ import annotations

import json as json_module
from math import prod
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import options as o
from trellis_cli import registry, report, subjects
from trellis_cli.console import Console
from trellis_core.errors import InputError, QualityError

if TYPE_CHECKING:
    from trellis_cli.console import Stages
    from trellis_core.runtime import Runtime

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis inspect chair.glb
  trellis inspect chair.glb chair.stl --strict
  trellis inspect chair.glb --json
  trellis inspect run.safetensors

Meshes are measured as they lie in the file: nothing is repaired or merged first, but corners at exactly the
same place count as one, so that texture seams are no borders."""

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Meshes (GLB, glTF, OBJ, PLY, STL, OFF, 3MF), Gaussians, radiance fields, voxels (.vxz), "
        "or saved runs.",
        show_default=False,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with 6 when a mesh fails the quality check.", rich_help_panel=o.RESULT
    ),
]


@app.command(epilog=EXAMPLES)
def inspect(
    ctx: typer.Context,
    file: Sources,
    strict: Strict = False,
    device: o.Device = "auto",
    kernel: o.Kernel = None,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Say what a file holds and whether it is sound: size, holes, pieces, shells, texture, origin."""
    console: Console = ctx.obj
    started = monotonic()
    machine = registry.Machine.of(device, o.Precision.auto, o.Tier.auto, kernel)
    kinds = [subjects.kind_of(path) for path in file]
    runtime = None
    console.facts["files"] = []
    for path, kind in zip(file, kinds, strict=True):
        with console.working() as progress:
            progress.begin("read")
            if kind == subjects.BUNDLE:
                facts = bundle_facts(path)
            elif kind == subjects.MESH:
                runtime = runtime or registry.open_runtime(machine)
                facts = mesh_facts(path, runtime, progress, console)
            else:
                facts = cloud_facts(path, kind)
        facts = {"path": str(path), "kind": kind, **facts}
        console.facts["files"].append(facts)
        console.event("inspected", **facts)
        writer = {subjects.MESH: report.mesh_lines, subjects.BUNDLE: report.bundle_lines}
        lines = writer.get(kind, report.cloud_lines)(path, facts)
        console.result(lines if path == file[0] else ["", *lines])
    console.facts["seconds"] = round(monotonic() - started, 3)
    failed = [facts["path"] for facts in console.facts["files"] if not facts.get("passed", True)]
    if strict and failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        advice: list[Any] = next((f["advice"] for f in console.facts["files"] if f["path"] == failed[0]), [])
        hint = f"try `{advice[0][0]}`" if advice else "see the problems above, or leave `--strict` away"
        raise QualityError(f"`{failed[0]}`{more} failed the quality check", hint=hint)


def mesh_facts(path: Path, runtime: Runtime, progress: Stages, console: Console) -> dict[str, Any]:
    """What is measured of a mesh file, as JSON types."""
    from trellis_core.io.facts import file_facts
    from trellis_core.io.inspect import inspect_raw, read_raw
    from trellis_core.runtime import cancellable

    watched = runtime.reporting(cancellable(progress, console.is_interrupted))
    file, raw = file_facts(path), read_raw(path)
    progress.begin("check")
    found = inspect_raw(
        raw, file, runtime.kernels, on_view=lambda done, of: watched.report("views", done, of)
    )
    place, quality = found.placement, found.quality
    return {
        "file": found.facts,
        "unit": found.facts["unit"],
        "bounds": {"low": place.low, "high": place.high},
        "size": place.size,
        "parts": found.parts,
        "metrics": dict(quality.metrics),
        "passed": quality.passed,
        "problems": list(quality.problems),
        "advice": report.advice_of(path, quality.metrics),
    }


def bundle_facts(path: Path) -> dict[str, Any]:
    """A saved run, from its header alone."""
    try:
        info = dict(json_module.loads(subjects.metadata_of(path)["info"]))
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            table = json_module.loads(file.read(length))
        tensors = {name: entry for name, entry in table.items() if name != "__metadata__"}
        size = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {
            name: {"dtype": entry["dtype"].lower(), "shape": entry["shape"], "count": prod(entry["shape"])}
            for name, entry in tensors.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"`{path}` is damaged or no bundle", hint="sample again with `--save-bundle`"
        ) from error
    if path.stat().st_size < size:
        raise InputError(
            f"`{path}` is cut off: {path.stat().st_size:,} of {size:,} bytes are there",
            hint="copy it again, or sample again with `--save-bundle`",
        )
    advice = [(f"trellis export {report.quoted(path)}", "which makes an asset of it")]
    return {"bytes": path.stat().st_size, "info": info, "tensors": shapes, "advice": advice}


def cloud_facts(path: Path, kind: str) -> dict[str, Any]:
    """Gaussians, a radiance field or voxels: how many, where, how large."""
    from trellis_core.geometry.fields import Gaussians, RadianceField
    from trellis_core.geometry.types import PBRVoxels

    subject = subjects.read_grid(path) if kind == subjects.VOXELS else subjects.read_fuzzy(path)
    details: dict[str, str] = {}
    if isinstance(subject, Gaussians):
        points, what = subject.positions, " Gaussians"
        faint = float((subject.opacities < 0.05).double().mean())
        details["opacity"] = (
            f"{float(subject.opacities.mean()):.2f} on average, {report.share(faint)} hardly visible"
        )
        details["radius"] = f"{float(subject.scales.median()):.4g} in the middle"
    else:
        assert isinstance(subject, RadianceField | PBRVoxels)
        side = subject.resolution
        points, what = (subject.coords.float() + 0.5) / side - 0.5, f" voxels of a grid of {side}³"
    known = points[points.isfinite().all(1)]
    if not len(known):
        raise InputError(f"`{path.name}` has no finite coordinates", hint="export it again")
    if len(known) < len(points):
        details["problem"] = f"{len(points) - len(known):,} have coordinates that are not numbers"
    low, high = known.amin(0).tolist(), known.amax(0).tolist()
    return {
        "bytes": path.stat().st_size,
        "count": len(points),
        "what": what,
        "bounds": {"low": low, "high": high},
        "size": [b - a for a, b in zip(low, high, strict=True)],
        "details": details,
        "advice": [(f"trellis render {report.quoted(path)}", "to see it")],
    }
