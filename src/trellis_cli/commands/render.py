"""`trellis render ASSET|BUNDLE`: stills, contact sheets and films of meshes, Gaussians, fields and voxels."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import drawing, files, registry, subjects
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_core.errors import UsageError
from trellis_core.render.view_names import VIEWS

if TYPE_CHECKING:
    from trellis_cli.console import Stages
    from trellis_core.render.subject import Subject
    from trellis_core.runtime import Runtime

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis render chair.glb
  trellis render chair.glb -o chair.mp4
  trellis render chair.glb --view 30,20 --environment sunset.hdr --size 1024 -o still.png
  trellis render cloud.ply --mode depth --view front -o depth.png
  trellis render run.safetensors --view front -o front.png

The last one shows the whole unit cube, so that a mask painted on it says the same to
[bold]trellis edit run.safetensors --region mask.png --mask-view front[/bold]."""

PICTURE = "Picture"


class As(str, Enum):
    auto = "auto"
    mesh = "mesh"
    gaussians = "gaussians"
    radiance_field = "radiance-field"
    voxels = "voxels"


class Frame(str, Enum):
    auto = "auto"
    object = "object"
    cube = "cube"


def _option(*names: str, help: str, metavar: str, panel: str = PICTURE, **more: Any) -> Any:
    more = {"show_default": False, "show_choices": False, **more}
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


Source = Annotated[
    Path,
    typer.Argument(
        metavar="ASSET",
        help="A mesh (GLB, OBJ, PLY, STL, ...), Gaussians (PLY, .splat, .spz), a radiance field, voxels "
        "(.vxz), or a run saved with `--save-bundle`.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    _option(
        "-o",
        "--output",
        metavar="PATH",
        help="A picture (.png, .jpg) or a film of one turn (.mp4, .webp, .gif); default ./NAME.png.",
        panel=o.RESULT,
    ),
]
Modes = Annotated[
    list[str] | None,
    _option("--mode", metavar="NAME", help=f"What to show; may be repeated: {', '.join(drawing.MODES)}."),
]
Named = Annotated[
    list[str] | None,
    _option(
        "--view",
        metavar="NAME",
        help=f"A still from there; may be repeated: {', '.join(VIEWS)}, or YAW,PITCH in degrees. Of a saved "
        "run it shows the whole unit cube, the same part of space for every run.",
    ),
]
Count = Annotated[
    int | None, _option("--views", metavar="N", help="Views around the object (default 4).", min=1, max=64)
]
Size = Annotated[
    int | None,
    _option("--size", metavar="PX", help="Side of a view (default 512; 384 in a sheet).", min=16, max=8192),
]
FrameOption = Annotated[
    Frame,
    _option(
        "--frame",
        metavar="NAME",
        help="What fills the picture of a named view: the object (default for files) or the cube (for runs).",
    ),
]
Background = Annotated[
    str,
    _option(
        "--background",
        metavar="COLOR",
        help="studio (default; a gray), transparent, a color such as white, or #RRGGBB. Maps: black.",
    ),
]
Environment = Annotated[
    str,
    _option(
        "--environment",
        metavar="NAME",
        help="Light on meshes: studio (default), even, or a latitude-longitude picture (.hdr, .png, .jpg).",
    ),
]
Exposure = Annotated[
    float, _option("--exposure", metavar="X", help="Times as much light (default 1).", min=0.01, max=100)
]
Pitch = Annotated[
    float | None,
    _option("--pitch", metavar="DEG", help="Height of cameras around it (default 20).", min=-90, max=90),
]
Frames = Annotated[
    int | None, _option("--frames", metavar="N", help="Frames of a film (default 60).", min=2, max=2000)
]
Seconds = Annotated[
    float | None, _option("--seconds", metavar="S", help="Length of a film (default 4).", min=0.1, max=600)
]
AsOption = Annotated[
    As,
    _option("--as", metavar="NAME", help="Draw a run as: mesh, gaussians, radiance-field or voxels."),
]


@app.command(epilog=EXAMPLES)
def render(
    ctx: typer.Context,
    asset: Source,
    output: Output = None,
    force: o.Force = False,
    mode: Modes = None,
    as_: AsOption = As.auto,
    view: Named = None,
    views: Count = None,
    pitch: Pitch = None,
    frame: FrameOption = Frame.auto,
    size: Size = None,
    background: Background = drawing.AUTO,
    environment: Environment = drawing.STUDIO,
    exposure: Exposure = 1.0,
    frames: Frames = None,
    seconds: Seconds = None,
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
    """Draw an asset or a saved run: a still, a sheet of several views, or a film of one turn."""
    console: Console = ctx.obj
    started = monotonic()
    kind = subjects.kind_of(asset)
    is_run = kind == subjects.BUNDLE
    if as_ is not As.auto and not is_run:
        raise UsageError(f"`{asset.name}` can be drawn as {kind} only", hint="leave `--as` away")
    path = files.outputs(output, asset, ".png", 1)[0]
    files.check_output(path, (*drawing.STILLS, *drawing.FILMS), force=force)
    whole = drawing.WHOLE_CUBE if is_run else drawing.WHOLE_OBJECT
    wanted = drawing.Drawing.check(
        path,
        modes=mode or (),
        views=view or (),
        count=views,
        size=size,
        frame=whole if frame is Frame.auto else frame.value,
        background=background,
        environment=environment,
        exposure=exposure,
        pitch=pitch,
        frames=frames,
        seconds=seconds,
    )
    machine = registry.Machine.of(device, precision, vram_tier, kernel)

    with console.working() as progress:
        progress.begin("start")
        light = drawing.open_light(wanted)
        if is_run:
            objects, runtime = _decode(asset, as_, wanted, model, machine, console, progress)
        else:
            objects, runtime = [{kind: subjects.read_subject(asset, kind)}], registry.open_runtime(machine)
        places = files.numbered(path, len(objects))
        for place in places if len(objects) > 1 else ():
            files.check_output(place, (path.suffix,), force=force)
        for place, forms in zip(places, objects, strict=True):
            _draw(place, forms, wanted, light, runtime, console, progress, force)
    console.facts["seconds"] = round(monotonic() - started, 3)
    console.result([facts["path"] for facts in console.facts["outputs"]])


def _decode(
    path: Path,
    as_: As,
    wanted: drawing.Drawing,
    model: str,
    machine: registry.Machine,
    console: Console,
    progress: Stages,
) -> tuple[list[dict[str, Subject]], Runtime]:
    """What every sample of a run can be drawn as, the chosen form first."""
    from trellis_core.weights.bundle import Bundle

    saved = Bundle.load(path)
    engine = registry.load_engine_of(saved, model, machine, console)
    objects = subjects.run_subjects(
        engine, saved, as_.value, drawing.VOXELS in wanted.modes, progress, console.is_interrupted
    )
    return objects, engine.runtime


def _draw(
    path: Path,
    forms: dict[str, Subject],
    wanted: drawing.Drawing,
    light: Any,
    runtime: Runtime,
    console: Console,
    progress: Stages,
    force: bool,
) -> None:
    import torch

    from trellis_core.io.files import write_file
    from trellis_core.memory.residency import memory_errors
    from trellis_core.render.subject import on_device
    from trellis_core.runtime import cancellable

    runtime = drawing.drawable(runtime).reporting(cancellable(progress, console.is_interrupted))
    with torch.inference_mode(), memory_errors("drawing"):
        forms = {name: on_device(subject, runtime.device) for name, subject in forms.items()}
        shots = drawing.shots_of(wanted, forms, light)
        content = drawing.draw(wanted, shots, path, runtime)
        depths = drawing.depth_facts(shots)
    written = files.write(path, lambda place: write_file(place, [content]), force=force)
    facts: dict[str, Any] = {"path": str(written), "bytes": len(content), "pictures": len(shots)}
    facts |= {"size": wanted.size, "modes": list(dict.fromkeys(s.look.mode for s in shots))}
    if depths:
        facts["depth"] = depths
    console.facts.setdefault("outputs", []).append(facts)
    console.event("written", **facts)
