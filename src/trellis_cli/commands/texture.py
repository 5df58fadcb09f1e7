"""`trellis texture MESH PICTURE`: a mesh gets the material of the object in a picture."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Annotated

import typer

from trellis_cli import asset_options as a
from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_core.errors import UsageError

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis texture chair.obj chair.png
  trellis texture chair.glb red-leather.png -o red-chair.glb --texture 4096
  trellis texture character.glb concept.png --keep-uv"""

OF_SHAPES = ("preset", "faces", "lods", "height", "wall", "normal_map")  # its shape stays as it is
UNWRAPPED = (".glb", ".gltf", ".obj")  # kinds of files whose texture coordinates are read

KeepUV = Annotated[
    bool,
    typer.Option(
        "--keep-uv",
        help="Use the mesh's own texture coordinates; otherwise it is unwrapped anew.",
        rich_help_panel=o.ASSET,
    ),
]


@app.command(epilog=EXAMPLES)
@partial(o.with_options, without=OF_SHAPES)
def texture(
    ctx: typer.Context,
    mesh: o.MeshPath,
    picture: o.Picture,
    *,
    result: o.ResultOptions,
    seed: o.Seed = 42,
    resolution: o.ResolutionOption = None,
    pipeline: o.PipelineName = None,
    background: o.BackgroundOption = o.Background.auto,
    texture_steps: o.TextureSteps = None,
    texture_guidance: o.TextureGuidance = None,
    keep_uv: KeepUV = False,
    asset: a.AssetFlags,
    machine: o.MachineOptions,
    report: o.ReportOptions,
) -> None:
    """Paint a mesh after a picture of how it should look.

    Its shape stays as it is; its longest side becomes 1. Works with TRELLIS.2 models and the embedded one.
    """
    console: Console = ctx.obj
    started = monotonic()
    place = registry.Machine.of(machine.device, machine.precision, machine.vram_tier, machine.kernel)
    kind = o.pipeline_name(resolution, pipeline)
    changes = {"steps": texture_steps, "guidance_scale": texture_guidance}
    files.check_input(mesh, "mesh", files.MESHES)
    if mesh.suffix.lower() not in files.MESHES:
        raise files.unknown_suffix(mesh, "mesh", files.MESHES)
    if keep_uv and mesh.suffix.lower() not in UNWRAPPED:
        raise UsageError(
            f"`{mesh.suffix}` files have no texture coordinates to keep",
            hint=f"leave `--keep-uv` out, or give a file with coordinates: {', '.join(UNWRAPPED)}",
        )
    files.check_input(picture, "picture", files.PICTURES)
    order = delivery.Order.check(
        mesh,
        result.output or files.beside(mesh, "-textured.glb"),
        asset=a.AssetOptions.read(asset),
        preview=result.preview,
        strict=result.strict,
        force=result.force,
    )
    if not order.textured:
        raise UsageError(
            f"`{order.paths[0].suffix}` files have no colors: there would be nothing to see",
            hint=f"for example `-o {files.beside(mesh, '-textured.glb')}`",
        )
    with console.working() as progress:
        progress.begin("start")
        from trellis_core.io.meshes import read_mesh

        image = files.read_picture(picture, console)
        shape = read_mesh(mesh).mesh
        engine = registry.load_engine(
            machine.model, place, console, pipeline_type=kind, pictures=True, fits=require_texturing
        )
        painted = engine.texture(
            shape,
            image,
            seed=seed,
            pipeline_type=kind,
            texture=changes,
            background=background.value,
            keep_uv=keep_uv,
            export=order.settings(),
            on_progress=progress,
            cancel=console.is_interrupted,
        )
        delivery.write(console, engine, painted, order)
    delivery.conclude(console, order, started)


def require_texturing(version: str, model: str) -> None:
    """`UsageError` for a TRELLIS v1 model."""
    if version != registry.V2:
        raise UsageError(
            f"`{model}` cannot paint a mesh: TRELLIS v1 makes shape and color together",
            hint="pass a TRELLIS.2 model, for example `--model embedded`",
        )
