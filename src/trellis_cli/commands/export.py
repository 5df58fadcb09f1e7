"""`trellis export BUNDLE`: a saved run becomes an asset, Gaussians or a radiance field, without sampling."""

from __future__ import annotations

from time import monotonic

import typer

from trellis_cli import asset_options as a
from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_core.errors import InputError

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis export robot.safetensors --preset mobile
  trellis export robot.safetensors -o robot-hd.glb --faces 1000000 --texture 4096
  trellis export robot.safetensors --preset web,mobile --format glb,usdz
  trellis export robot.safetensors --lods 3 --quantize --normal-map
  trellis export robot.safetensors --preset print --height 80mm -o robot.3mf
  trellis export robot.safetensors --as gaussians -o robot.spz"""


@app.command(epilog=EXAMPLES)
@o.with_options
def export(
    ctx: typer.Context,
    bundle: o.BundlePath,
    *,
    result: o.ResultOptions,
    form: o.FormOption = None,
    color_from: o.ColorFrom = None,
    asset: a.AssetFlags,
    machine: o.MachineOptions,
    report: o.ReportOptions,
) -> None:
    """Make assets from a run that was saved with `--save-bundle`, without sampling again.

    Several presets and formats share the work: NAME-web.glb, NAME-web.usdz, NAME-mobile.glb, ...
    """
    console: Console = ctx.obj
    started = monotonic()
    files.check_input(bundle, "bundle", files.BUNDLES)
    if bundle.suffix.lower() in files.MESHES:
        raise InputError(
            f"`{bundle}` is a mesh, not a saved run", hint=f"pass it to `trellis convert {bundle}`"
        )
    order = delivery.Order.check(
        bundle,
        result.output,
        form=form,
        color_from=color_from,
        asset=a.AssetOptions.read(asset),
        preview=result.preview,
        strict=result.strict,
        force=result.force,
    )
    place = registry.Machine.of(machine.device, machine.precision, machine.vram_tier, machine.kernel)
    with console.working() as progress:
        progress.begin("start")
        from trellis_core.weights.bundle import Bundle

        saved = Bundle.load(bundle)
        order = order.numbered(saved.info.get("num_samples", 1))

        def fits(version: str, name: str) -> None:
            o.require_fit(version, name, {"color_from": color_from})
            order.require_fit(version, name)

        engine = registry.load_engine_of(saved, machine.model, place, console, fits=fits)
        delivery.finish(console, engine, saved, order, progress)
    delivery.conclude(console, order, started)
