"""`trellis texture MESH PICTURE`: a mesh gets the material of the object in a picture."""

from __future__ import annotations

from time import monotonic

import typer

from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis texture chair.obj chair.png
  trellis texture chair.glb red-leather.png -o red-chair.glb --texture 4096"""


@app.command(epilog=EXAMPLES)
def texture(
    ctx: typer.Context,
    mesh: o.MeshPath,
    picture: o.Picture,
    output: o.Output = None,
    force: o.Force = False,
    preview: o.Preview = None,
    strict: o.Strict = False,
    seed: o.Seed = 42,
    resolution: o.ResolutionOption = None,
    pipeline: o.PipelineName = None,
    background: o.BackgroundOption = o.Background.auto,
    texture_steps: o.TextureSteps = None,
    texture_guidance: o.TextureGuidance = None,
    preset: o.PresetOption = None,
    faces: o.Faces = None,
    texture: o.Texture = None,
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
    """Paint a mesh after a picture of how it should look."""
    console: Console = ctx.obj
    started = monotonic()
    machine = registry.Machine.of(device, precision, vram_tier, kernel)
    kind = o.pipeline_name(resolution, pipeline)
    changes = {"steps": texture_steps, "guidance_scale": texture_guidance}
    files.check_input(mesh, "mesh", files.MESHES)
    files.check_input(picture, "picture", files.PICTURES)
    if output is None:
        output = files.beside(mesh, "-textured.glb")
    order = delivery.Order.check(
        mesh, output, preset=preset, faces=faces, texture=texture, preview=preview, strict=strict, force=force
    )
    with console.working() as progress:
        progress.begin("start")
        from trellis_core.io.meshes import read_mesh

        image = files.read_picture(picture, console)
        shape = read_mesh(mesh).mesh
        engine = registry.load_engine(model, machine, console, pipeline_type=kind)
        asset = engine.texture(
            shape,
            image,
            seed=seed,
            pipeline_type=kind,
            texture=changes,
            background=background.value,
            export=order.settings(),
            on_progress=progress,
            cancel=console.is_interrupted,
        )
        delivery.write(console, engine, asset, order)
    delivery.conclude(console, order, started)
