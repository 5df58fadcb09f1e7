"""`trellis train data ingest`: meshes of the user's own as training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from trellis_cli import options as o
from trellis_cli import registry
from trellis_cli.commands.train_setup import open_device
from trellis_cli.console import Beginning, Console
from trellis_core.errors import InputError

DATA = "Data"


def ingest(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Meshes: GLB, glTF, OBJ, PLY, STL, ...")],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="Where the training data goes.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", help="Whose encoders make the latents [default: embedded]."),
    ] = "embedded",
    resolution: Annotated[
        int | None,
        o._number(DATA, "--resolution", "Voxels along an axis (default: the model's).", low=8, high=2048),
    ] = None,
    views: Annotated[
        int, o._number(DATA, "--views", "Pictures of each mesh (default 16).", low=0, high=512)
    ] = 16,
    view_size: Annotated[
        int | None, o._number(DATA, "--view-size", "Their side in pixels.", low=16, high=4096)
    ] = None,
    workers: Annotated[
        int | None, o._number(DATA, "--workers", "Processes (default: up to 4).", low=1, high=256)
    ] = None,
    timeout: Annotated[
        float, o._number(DATA, "--timeout", "Seconds for one mesh (default 1800).", low=1, high=1e6)
    ] = 1800.0,
    seed: Annotated[int, o._number(DATA, "--seed", "Random seed (default 0).", low=0, high=2**31)] = 0,
    device: o.Device = "auto",
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Turn your own meshes into training data: voxels, latents, pictures, tables.

    Lines of NAME.txt beside NAME.glb become its captions. What is finished is kept; run it again to continue.
    """
    console: Console = ctx.obj
    started = monotonic()
    if not folder.is_dir():
        raise InputError(f"`{folder}` is not a folder", hint="give the folder with your meshes")
    found = registry.find_model(model)
    with console.working() as progress:
        progress.begin("start")
        settings, notes = ingest_settings(found.folder, resolution, views, view_size, seed, device)
        for note in notes:
            console.note(note)
        console.say("model", f"{found.name}, {settings.resolution} voxels")
        import psutil

        from trellis2 import ingest as meshes
        from trellis_core.training.ingest.items import summary

        def on_outcome(outcome: meshes.Outcome, done: int, count: int) -> None:
            console.event("mesh", file=outcome.name, rejected=outcome.rejected, seconds=outcome.seconds)
            progress(Beginning("meshes", done, count))

        crew = workers or min(4, psutil.cpu_count(logical=False) or 1)
        outcomes = meshes.ingest(folder, out, settings, workers=crew, seconds=timeout, on_outcome=on_outcome)
    report = {**summary(outcomes), "resolution": settings.resolution, "model": found.name}
    report["seconds"] = round(monotonic() - started, 1)
    write_report(out / "report.json", report)
    console.facts |= {**report, "report": str(out / "report.json")}
    console.result(report_rows(report, out))
    if not report["complete"]:
        raise InputError(
            f"none of the {report['meshes']} meshes could be used", hint=f"see `{out / 'report.json'}`"
        )


def ingest_settings(
    folder: Path, resolution: int | None, views: int, view_size: int | None, seed: int, device: str
) -> tuple[Any, list[str]]:
    """The settings for a model, and what it cannot make."""
    from trellis2 import ingest as meshes
    from trellis_core.training.ingest.views import ViewSettings
    from trellis2.loading import find_checkpoints, network_config
    from trellis2.settings import read_settings
    from trellis_core.weights import hub

    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(None)
    encoders = meshes.find_encoders(folder)
    stems = find_checkpoints(folder, settings, folder.name)
    flow = network_config(stems["sparse_structure_flow_model"])["args"]
    chosen = meshes.IngestSettings(
        resolution=resolution or kind.resolution,
        encoders=encoders,
        structure_grid=meshes.structure_grid_of(encoders, flow["resolution"]),
        views=ViewSettings(views=views, size=view_size or min(1024, 2 * max(kind.image_sizes))),
        seed=seed,
        device=str(open_device(device)[0]),
    )
    notes = [
        f"the model has no {role} encoder: no such latents are made"
        for role in meshes.ENCODERS
        if role not in encoders
    ]
    if "structure" in encoders and not meshes.has_structure(chosen):
        notes.append(f"structure latents need another resolution than {chosen.resolution}; none are made")
    return chosen, notes


def report_rows(report: Mapping[str, Any], out: Path) -> list[str]:
    rejected = report["rejected"]
    rows = [
        f"{report['meshes']} meshes: {report['complete']} complete ({report['made']} new, "
        f"{report['there_before']} there before), {len(rejected)} rejected"
    ]
    width = min(40, max((len(entry["file"]) for entry in rejected), default=0))
    rows += [f"  rejected  {entry['file']:<{width}}  {entry['reason']}" for entry in rejected[:20]]
    if len(rejected) > 20:
        rows.append(f"  and {len(rejected) - 20} more")
    return [*rows, f"  report    {out / 'report.json'}"]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    from json import dumps

    from trellis_core.io.files import write_file

    write_file(path, [dumps(report, indent=1).encode()])
