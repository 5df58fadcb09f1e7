"""`trellis render ASSET|BUNDLE`: a PNG sheet of an asset, or of the mesh and voxels of a saved run."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from trellis_cli import files, registry
from trellis_cli import options as o
from trellis_cli.console import Console

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis render chair.glb
  trellis render chair.safetensors -o sheet.png"""

Source = Annotated[
    Path,
    typer.Argument(
        metavar="ASSET", help="GLB, OBJ, PLY or STL, or a run saved with `--save-bundle`.", show_default=False
    ),
]


@app.command(epilog=EXAMPLES)
def render(
    ctx: typer.Context,
    asset: Source,
    output: o.Output = None,
    force: o.Force = False,
    model: o.Model = "auto",
    device: o.Device = "auto",
    precision: o.PrecisionOption = o.Precision.auto,
    vram_tier: o.TierOption = o.Tier.auto,
    kernel: o.Kernel = None,
    offline: o.Offline = False,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Draw a PNG sheet: an asset with its texture and bare, or the raw mesh and voxels of a saved run."""
    console: Console = ctx.obj
    started = monotonic()
    files.check_input(asset, "asset", (*files.MESHES, *files.BUNDLES))
    if asset.suffix.lower() not in (*files.MESHES, *files.BUNDLES):
        raise files.unknown_suffix(asset, "asset", (*files.MESHES, *files.BUNDLES))
    path = files.outputs(output, asset, ".png", 1)[0]
    files.check_output(path, files.IMAGES, force=force)
    machine = registry.Machine.of(device, precision, vram_tier, kernel)
    bundle = asset.suffix.lower() in files.BUNDLES

    with console.working() as progress:
        progress.begin("start")
        sheets = (
            _draw_run(asset, model, machine, console, progress) if bundle else [_draw_mesh(asset, machine)]
        )
        for number, sheet in zip(files.numbered(path, len(sheets)), sheets, strict=True):
            if number != path:
                files.check_output(number, files.IMAGES, force=force)
            written = files.write_sheet(number, sheet, force=force)
            facts = {"path": str(written), "bytes": written.stat().st_size}
            console.facts.setdefault("outputs", []).append(facts)
    console.facts["seconds"] = round(monotonic() - started, 3)
    console.result([facts["path"] for facts in console.facts["outputs"]])


def _draw_mesh(path, machine):
    from trellis_cli.sheet import as_asset, draw_asset, draw_rows, shape_row
    from trellis_core.io.meshes import read_mesh

    runtime = registry.open_runtime(machine)
    read = read_mesh(path)
    asset = as_asset(read)
    return draw_rows([shape_row(read.mesh, runtime)]) if asset is None else draw_asset(asset, runtime)


def _draw_run(path, model, machine, console, progress):
    from trellis_cli.sheet import draw_decoded
    from trellis_core.weights.bundle import Bundle

    saved = Bundle.load(path)
    engine = registry.load_engine_of(saved, model, machine, console)
    shapes = engine.decode(saved, on_progress=progress, cancel=console.is_interrupted)
    return [draw_decoded(shape, engine.runtime) for shape in shapes]
