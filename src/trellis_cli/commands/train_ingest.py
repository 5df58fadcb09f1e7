"""`trellis train data ingest`: meshes of the user's own as training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        o.number(DATA, "--resolution", "Voxels along an axis (default: the model's).", low=8, high=2048),
    ] = None,
    views: Annotated[
        int, o.number(DATA, "--views", "Pictures of each mesh (default 16).", low=0, high=512)
    ] = 16,
    view_size: Annotated[
        int | None, o.number(DATA, "--view-size", "Their side in pixels.", low=16, high=4096)
    ] = None,
    renders: Annotated[
        int,
        o.number(
            DATA,
            "--renders",
            "TRELLIS v1: pictures that appearance is learned from (default 150).",
            low=0,
            high=512,
        ),
    ] = 150,
    render_size: Annotated[
        int, o.number(DATA, "--render-size", "Their side in pixels (default 512).", low=16, high=4096)
    ] = 512,
    encoders: Annotated[
        Path | None,
        o._option(DATA, "--encoders", metavar="RUN", help="Take encoders that this run trained."),
    ] = None,
    workers: Annotated[
        int | None, o.number(DATA, "--workers", "Processes (default: up to 4).", low=1, high=256)
    ] = None,
    timeout: Annotated[
        float, o.number(DATA, "--timeout", "Seconds for one mesh (default 1800).", low=1, high=1e6)
    ] = 1800.0,
    seed: Annotated[int, o.number(DATA, "--seed", "Random seed (default 0).", low=0, high=2**31)] = 0,
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
    if encoders is not None and not encoders.is_dir():
        raise InputError(f"`{encoders}` is not a folder", hint="give the `--run` folder of a training run")
    found = registry.find_model(model)
    asked = Asked(
        resolution=resolution,
        views=views,
        view_size=view_size,
        renders=renders,
        render_size=render_size,
        encoders=encoders,
        seed=seed,
        device=device,
    )
    with console.working() as progress:
        progress.begin("start")
        version = VERSIONS[registry.version_of(found.folder)](found.folder, asked)
        for note in version.notes:
            console.note(note)
        console.say("model", f"{found.name}, {version.settings.resolution} voxels")
        import psutil

        from trellis_core.training.ingest.items import Outcome, summary

        def on_outcome(outcome: Outcome, done: int, count: int) -> None:
            console.event("mesh", file=outcome.name, rejected=outcome.rejected, seconds=outcome.seconds)
            progress(Beginning("meshes", done, count))

        crew = workers or min(4, psutil.cpu_count(logical=False) or 1)
        outcomes = version.ingest(
            folder, out, version.settings, workers=crew, seconds=timeout, on_outcome=on_outcome
        )
    report = {**summary(outcomes), "resolution": version.settings.resolution, "model": found.name}
    report["seconds"] = round(monotonic() - started, 1)
    write_report(out / "report.json", report)
    console.facts |= {**report, "report": str(out / "report.json")}
    console.result(report_rows(report, out))
    if not report["complete"]:
        raise InputError(
            f"none of the {report['meshes']} meshes could be used", hint=f"see `{out / 'report.json'}`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was asked for."""

    resolution: int | None
    views: int
    view_size: int | None
    renders: int
    render_size: int
    encoders: Path | None
    seed: int
    device: str


@dataclass(frozen=True, slots=True)
class Version:
    """How meshes become data of one model."""

    ingest: Callable[..., list[Any]]
    settings: Any
    notes: list[str]  # what the model cannot make


def settings_of_v2(folder: Path, asked: Asked) -> Version:
    from trellis2 import ingest as meshes
    from trellis2.loading import find_checkpoints, network_config
    from trellis2.settings import read_settings
    from trellis_core.training.ingest.views import ViewSettings
    from trellis_core.weights import hub

    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(None)
    encoders = {**meshes.find_encoders(folder), **trained_encoders(meshes.find_encoders, asked.encoders)}
    stems = find_checkpoints(folder, settings, folder.name)
    flow = network_config(stems["sparse_structure_flow_model"])["args"]
    size = asked.view_size or min(1024, 2 * max(kind.image_sizes))
    chosen = meshes.IngestSettings(
        resolution=asked.resolution or kind.resolution,
        encoders=encoders,
        structure_grid=meshes.structure_grid_of(encoders, flow["resolution"]),
        views=ViewSettings(views=asked.views, size=size),
        seed=asked.seed,
        device=str(open_device(asked.device)[0]),
    )
    notes = [
        f"the model has no {role} encoder: no such latents are made"
        for role in meshes.ENCODERS
        if role not in encoders
    ]
    if "structure" in encoders and not meshes.has_structure(chosen):
        notes.append(f"structure latents need another resolution than {chosen.resolution}; none are made")
    return Version(meshes.ingest, chosen, notes)


def settings_of_v1(folder: Path, asked: Asked) -> Version:
    from trellis import ingest as meshes
    from trellis.loading import find_checkpoints, network_config
    from trellis.settings import IMAGE_ENCODER, LATENT_FLOW, STRUCTURE_FLOW, read_settings
    from trellis_core.training.ingest.views import ViewSettings
    from trellis_core.weights import hub

    settings = read_settings(folder / hub.PIPELINE)
    stems = find_checkpoints(folder, settings, folder.name)
    latent, structure = (network_config(n, stems[n])["args"] for n in (LATENT_FLOW, STRUCTURE_FLOW))
    encoders = {
        **meshes.all_encoders(folder, stems),
        **trained_encoders(meshes.find_encoders, asked.encoders),
    }
    size = asked.view_size or min(1024, 2 * settings.image_size)
    chosen = meshes.IngestSettings(
        resolution=asked.resolution or latent["resolution"],
        image_size=settings.image_size,
        encoders=encoders,
        structure_grid=meshes.structure_grid_of(encoders, structure["resolution"]),
        renders=ViewSettings(views=asked.renders, size=asked.render_size),
        views=ViewSettings(views=asked.views, size=size),
        seed=asked.seed,
        device=str(open_device(asked.device)[0]),
    )
    notes = []
    if IMAGE_ENCODER not in encoders:
        notes.append("there is no picture encoder (DINOv2): no features and no latents are made")
    elif meshes.LATENT_ENCODER not in encoders:
        notes.append("there is no latent encoder yet: no latents are made; `--encoders RUN` takes one")
    if not meshes.has_structure(chosen):
        notes.append("there is no structure encoder for this grid: no structure latents are made")
    return Version(meshes.ingest, chosen, notes)


def trained_encoders(find: Callable[[Path], Mapping[str, Path]], run: Path | None) -> dict[str, Path]:
    """The encoders that a training run wrote. Raises `InputError` when it wrote none."""
    if run is None:
        return {}
    found = {name: stem for name, stem in find(run).items() if stem.is_relative_to(run)}
    if not found:
        raise InputError(
            f"`{run}` holds no trained encoder", hint="give the `--run` folder of an autoencoder"
        )
    return found


VERSIONS = {registry.V1: settings_of_v1, registry.V2: settings_of_v2}


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
