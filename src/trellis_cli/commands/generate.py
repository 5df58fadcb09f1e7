"""`trellis generate PICTURE`: picture in, textured asset out."""

from __future__ import annotations

from time import monotonic

import typer

from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis generate chair.png
  trellis generate chair.png -o out/chair.glb --preset game --seed 7
  trellis generate robot.jpg --subject hard-surface --resolution 1536 --save-bundle robot.safetensors
  trellis generate mug.png --json | jq .outputs"""


@app.command(epilog=EXAMPLES)
def generate(
    ctx: typer.Context,
    picture: o.Picture,
    output: o.Output = None,
    force: o.Force = False,
    num_samples: o.Samples = 1,
    save_bundle: o.SaveBundle = None,
    preview: o.Preview = None,
    strict: o.Strict = False,
    seed: o.Seed = 42,
    subject: o.SubjectOption = None,
    resolution: o.ResolutionOption = None,
    pipeline: o.PipelineName = None,
    background: o.BackgroundOption = o.Background.auto,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    structure_steps: o.StructureSteps = None,
    structure_guidance: o.StructureGuidance = None,
    shape_steps: o.ShapeSteps = None,
    shape_guidance: o.ShapeGuidance = None,
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
    """Turn a picture into a textured 3D asset.

    A picture with transparency is used as it is; otherwise the background is removed first.
    """
    console: Console = ctx.obj
    started = monotonic()
    machine = registry.Machine.of(device, precision, vram_tier, kernel)
    kind = o.pipeline_name(resolution, pipeline)
    changes = o.sampler_changes(
        subject,
        steps,
        guidance,
        (structure_steps, shape_steps, texture_steps),
        (structure_guidance, shape_guidance, texture_guidance),
    )
    files.check_input(picture, "picture", files.PICTURES)
    order = delivery.Order.check(
        picture,
        output,
        count=num_samples,
        preset=preset,
        faces=faces,
        texture=texture,
        preview=preview,
        strict=strict,
        force=force,
    )
    if save_bundle is not None:
        files.check_output(save_bundle, files.BUNDLES, force=force)

    with console.working() as progress:
        progress.begin("start")
        image = files.read_picture(picture, console)
        engine = registry.load_engine(model, machine, console, pipeline_type=kind, num_samples=num_samples)
        bundle = engine.sample(
            image,
            seed=seed,
            num_samples=num_samples,
            pipeline_type=kind,
            background=background.value,
            on_progress=progress,
            cancel=console.is_interrupted,
            **changes,
        )
        if save_bundle is not None:
            console.facts["bundle"] = str(files.write(save_bundle, bundle.save, force=force))
        with delivery.keeping(bundle, None if save_bundle else order):
            shapes = engine.decode(bundle, on_progress=progress, cancel=console.is_interrupted)
            delivery.deliver(console, engine, shapes, order, registry.provenance(bundle), progress)
    delivery.conclude(console, order, started)
