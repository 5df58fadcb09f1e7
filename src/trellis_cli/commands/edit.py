"""`trellis edit BUNDLE --region REGION`: a part of a saved run is made anew, the rest stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_cli.regions import WantedRegion, read_regions
from trellis_cli.sampling import fits, order_of, produce
from trellis_cli.wish import Images, PromptOption, Wish, Words

if TYPE_CHECKING:
    from trellis_core.geometry.region import Region
    from trellis_core.runtime import Runtime
    from trellis_core.weights.bundle import Bundle

app = typer.Typer()

REGIONS = """\
[bold]Regions[/bold]  in the unit cube from -0.5 to 0.5, z up, the object looks to -y
  box:x0,y0,z0,x1,y1,z1    between two corners
  sphere:x,y,z,r           around a point
  top, top:0.3, ...        a share of the object's top, bottom, left, right, front or back
                           (half unless you say) and the free space beside and beyond it
  handle.glb               inside a closed mesh that lies where it is wanted on the exported asset
  mask.png                 white on black, painted over a picture of one view: draw it with
                           `trellis render BUNDLE --view front`, name it with `--mask-view front`"""

EXAMPLES = f"""\
{REGIONS}
[bold]Examples[/bold]
  trellis edit chair.safetensors "a chair with armrests" --region box:-0.5,-0.5,0,0.5,0.5,0.2
  trellis edit chair.safetensors --image high-back.png --region top:0.4 --save-bundle high.safetensors
  trellis edit house.safetensors "a red roof" --region mask.png --mask-view front --preserve-texture"""

EDIT = "Edit"

SavedRun = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A run saved with `--save-bundle`.", show_default=False)
]
Regions = Annotated[
    list[str] | None,
    typer.Option(
        "--region",
        metavar="REGION",
        help="What may change; may be repeated. See below.",
        rich_help_panel=EDIT,
        show_default=False,
    ),
]
MaskViews = Annotated[
    list[str] | None,
    typer.Option(
        "--mask-view",
        metavar="VIEW",
        help="Where a mask was painted from: front (default), back, left, right, top, bottom or YAW,PITCH; "
        "once, or once for each mask.",
        rich_help_panel=EDIT,
        show_default=False,
    ),
]
PreserveTexture = Annotated[
    bool,
    typer.Option(
        "--preserve-texture",
        help="Keep the colors also inside, wherever the old surface is still there.",
        rich_help_panel=EDIT,
    ),
]
Freedom = Annotated[
    float,
    o.number(
        EDIT,
        "--freedom",
        "How far colors may leave what lies around the region: 0 (default) fits in, 1 follows the prompt or "
        "picture alone.",
        "X",
        low=0,
        high=1,
    ),
]
Repeats = Annotated[
    int,
    o.number(EDIT, "--repeats", "Do each step so often, so that both sides fit (default 2).", low=1, high=16),
]


@app.command(epilog=EXAMPLES)
@partial(o.with_options, without=("num_samples", "resolution", "pipeline"))
def edit(
    ctx: typer.Context,
    bundle: SavedRun,
    *,
    words: Words = None,
    region: Regions = None,
    mask_view: MaskViews = None,
    preserve_texture: PreserveTexture = False,
    freedom: Freedom = 0.0,
    repeats: Repeats = 2,
    prompt: PromptOption = None,
    image: Images = None,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
    run: o.RunOptions,
) -> None:
    """Change a part of a saved run; what lies outside of the regions stays the same, voxel for voxel.

    The prompt or picture says how the whole object is to look. `--save-bundle` keeps the result as a run.
    """
    console: Console = ctx.obj
    started = monotonic()
    machine = registry.Machine.of(run.device, run.precision, run.vram_tier, run.kernel)
    wish = Wish.read(words, prompt, image)
    wanted = read_regions(region or (), mask_view or ())
    files.check_input(bundle, "bundle", files.BUNDLES)
    order = order_of(run, files.beside(bundle, f"-edited{files.BUNDLES[0]}"))
    sheets, order = order.previews, replace(order, previews=())
    with console.working() as progress:
        progress.begin("start")
        from trellis_core.weights.bundle import Bundle

        given = wish.arguments(console, mode, background)
        saved = Bundle.load(bundle)
        order = order.numbered(saved.info.get("num_samples", 1))
        engine = registry.load_engine_of(saved, run.model, machine, console, fits=fits(run, order))
        before: Sequence[Any] = []
        if sheets or any(region.relative for region in wanted):
            progress.begin("decode")
            before = decode(console, engine, saved)
        regions = open_regions(wanted, before)
        made: list[Bundle] = []

        def sample(engine: Any, arguments: Mapping[str, Any]) -> Bundle:
            own = {k: v for k, v in arguments.items() if k not in ("num_samples", "pipeline_type")}
            changes = {"preserve_texture": preserve_texture, "freedom": freedom, "repeats": repeats}
            made.append(engine.edit(saved, regions, **changes, **own))
            progress.close()
            report(console, wanted, made[0].info["edit"])
            return made[0]

        produce(console, engine, run, order, given, progress, sample)
        if sheets:
            progress.begin("draw")
            after = decode(console, engine, made[0])
            draw(console, before, after, regions, engine.runtime, sheets, run.force)
    delivery.conclude(console, order, started)


def decode(console: Console, engine: Any, bundle: Bundle) -> Sequence[Any]:
    """What stands for the objects of a run: each has a `mesh`, and `voxels`."""
    v1 = registry.version_of_engine(engine) == registry.V1
    decoded: Sequence[Any] = engine.decode(
        bundle, **({"formats": ("mesh",)} if v1 else {}), cancel=console.is_interrupted
    )
    return decoded


def open_regions(wanted: Sequence[WantedRegion], objects: Sequence[Any]) -> list[Region]:
    """The regions in space; `objects` are looked at when the place of a region depends on them."""
    import torch

    points = torch.cat([torch.zeros(0, 3), *[shape.mesh.vertices.float().cpu() for shape in objects]])
    return [region.open(points) for region in wanted]


def draw(
    console: Console,
    before: Sequence[Any],
    after: Sequence[Any],
    regions: Sequence[Region],
    runtime: Runtime,
    sheets: Sequence[Path],
    force: bool,
) -> None:
    """One picture per sample: before, region, after."""
    from trellis_cli.before_after import draw_before_after
    from trellis_core.geometry.types import Mesh

    def parts(shape: Any) -> tuple[Mesh, Any]:
        return Mesh(shape.mesh.vertices.float(), shape.mesh.faces), shape.voxels

    for old, new, path in zip(before, after, files.numbered(sheets[0], len(before)), strict=True):
        sheet = draw_before_after(parts(old), parts(new), regions, runtime)
        written = files.write_sheet(path, sheet, force=force)
        console.facts.setdefault("previews", []).append(str(written))
        console.say("preview", f"{written}: before, region, after")


def report(console: Console, wanted: Sequence[WantedRegion], facts: Mapping[str, Any]) -> None:
    """Say how much changed inside of the regions and outside of them."""
    voxels = facts["voxels"]
    console.facts["edit"] = dict(facts)
    console.say(
        "region", f"{', '.join(map(str, wanted))}: {voxels['cells']:,} of {voxels['resolution'] ** 3:,} cells"
    )
    console.say(
        "inside",
        f"{voxels['inside_before']:,} voxels before, {voxels['inside_after']:,} after; "
        f"{voxels['inside_changed']:,} changed",
    )
    console.say(
        "outside",
        f"{voxels['outside']:,} voxels; {voxels['outside_changed']:,} changed "
        f"({voxels['outside_changed_as_sampled']:,} before they were put back)",
    )
    if not voxels["inside_changed"]:
        console.note(
            "the coarse shape inside stayed as it was, only its detail and colors are new; for more change "
            "take a larger region, another `--seed`, more `--guidance` or, for colors, `--freedom 1`"
        )
