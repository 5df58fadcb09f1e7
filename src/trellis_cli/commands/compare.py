"""`trellis compare A B`: how alike two meshes are, in numbers, one picture, or one page for a browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trellis_cli import drawing, files, registry, report, subjects
from trellis_cli import options as o
from trellis_cli.commands.inspect import mesh_facts
from trellis_cli.console import Console
from trellis_core.errors import InputError, UsageError

if TYPE_CHECKING:
    from trellis_core.render.compare import Comparison, Pictures, Thing
    from trellis_core.runtime import Runtime

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis compare scan.glb chair.glb
  trellis compare chair.glb chair-game.glb --as-is -o compare.png
  trellis compare chair.glb chair-game.glb -o compare.html
  trellis compare chair.glb chair.obj --json --no-pictures

Lengths are in units of A's longest side. A page (.html) holds everything it shows and needs no network."""

PICTURES, PAGES = (".png",), (".html",)

First = Annotated[
    Path,
    typer.Argument(metavar="A", help="The mesh to compare with: GLB, OBJ, PLY, STL, ...", show_default=False),
]
Second = Annotated[Path, typer.Argument(metavar="B", help="The other mesh.", show_default=False)]


def _option(*names: str, help: str, panel: str = "Comparison", **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Output = Annotated[
    Path | None,
    _option(
        "-o",
        "--output",
        metavar="PATH",
        help="Also show them side by side: one picture (.png), or one page to turn them in (.html).",
        panel=o.RESULT,
    ),
]
AsIs = Annotated[
    bool, _option("--as-is", help="Keep place and size; otherwise each is fitted to the unit cube.")
]
Samples = Annotated[
    int,
    _option(
        "--samples", metavar="N", help="Points on each surface (default 100000).", min=100, max=10_000_000
    ),
]
Threshold = Annotated[
    list[float] | None,
    _option(
        "--threshold",
        metavar="X",
        help="Distance of an F-score; may be repeated (default 0.005, 0.01, 0.02, 0.05).",
        min=1e-6,
        max=1.0,
    ),
]
NoPictures = Annotated[bool, _option("--no-pictures", help="Do not compare pictures of them; quicker.")]
Size = Annotated[
    int,
    _option("--size", metavar="PX", help="Side of a view in the picture (default 320).", min=64, max=2048),
]


@app.command(epilog=EXAMPLES)
def compare(
    ctx: typer.Context,
    a: First,
    b: Second,
    output: Output = None,
    force: o.Force = False,
    as_is: AsIs = False,
    samples: Samples = 100_000,
    threshold: Threshold = None,
    no_pictures: NoPictures = False,
    size: Size = 320,
    device: o.Device = "auto",
    kernel: o.Kernel = None,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure how two meshes differ: distances, normals, colors, soundness; and show them side by side."""
    console: Console = ctx.obj
    started = monotonic()
    for path in (a, b):
        require_mesh(path)
    if output is not None:
        if output.is_dir():
            output = output / "compare.png"
        files.check_output(output, (*PICTURES, *PAGES), force=force)
        if no_pictures and output.suffix.lower() in PICTURES:
            raise UsageError(
                "`--no-pictures` leaves nothing to write", hint=f"leave it out, or `-o {output}`"
            )
    machine = registry.Machine.of(device, o.Precision.auto, o.Tier.auto, kernel)
    with console.working() as progress:
        progress.begin("read")
        runtime = drawing.drawable(registry.open_runtime(machine))
        from trellis_core.memory.residency import memory_errors
        from trellis_core.runtime import cancellable

        runtime = runtime.reporting(cancellable(progress, console.is_interrupted))
        meshes = [{"path": str(path), **mesh_facts(path, runtime, progress, console)} for path in (a, b)]
        console.facts.update(as_is=as_is, samples=samples, meshes=meshes)
        with memory_errors("comparing"):
            pair = measure(
                (a, b),
                runtime,
                console.facts,
                as_is=as_is,
                samples=samples,
                thresholds=threshold,
                pictures=not no_pictures,
                size=size,
            )
            if output is not None:
                write(output, (a.name, b.name), pair, runtime, console, force)
    console.facts["seconds"] = round(monotonic() - started, 3)
    written = [facts["path"] for facts in console.facts.get("outputs", ())]
    console.result([*report.comparison_lines((a.name, b.name), console.facts), *written])


def require_mesh(path: Path) -> None:
    kind = subjects.kind_of(path)
    if kind == subjects.MESH:
        return
    hint = "compare meshes: GLB, OBJ, PLY, STL, ..."
    if kind == subjects.BUNDLE:
        hint = f"make an asset of it first: `trellis export {report.quoted(path)}`"
    raise InputError(
        f"`{path}` holds {'a saved run' if kind == subjects.BUNDLE else kind}, no mesh", hint=hint
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """Both surfaces in one frame, and how they differ."""

    things: tuple[Thing, Thing]
    comparison: Comparison
    pictures: Pictures | None
    hottest: float  # scale of heat maps


def measure(
    paths: tuple[Path, Path],
    runtime: Runtime,
    facts: dict[str, Any],
    *,
    as_is: bool,
    samples: int,
    thresholds: list[float] | None,
    pictures: bool,
    size: int,
) -> Pair:
    import torch

    from trellis_core.render import compare as c
    from trellis_core.render.subject import on_device

    with torch.inference_mode():
        first, second = (cast("Thing", on_device(read(path), runtime.device)) for path in paths)
        first, second, longest = c.bring_together(first, second, as_is=as_is)
        found = c.compare(
            first,
            second,
            runtime,
            samples=samples,
            thresholds=sorted(set(thresholds)) if thresholds else c.THRESHOLDS,
        )
        hottest = c.hottest_of(found.metrics["p99"])
        names = f"A {paths[0].name}", f"B {paths[1].name}"
        drawn = None
        if pictures:
            drawn = c.compare_pictures(first, second, runtime, names=names, size=size, hottest=hottest)
    facts["unit_length"] = longest
    facts["distances"] = dict(found.metrics)
    if found.histograms is not None:
        facts["histograms"] = [histogram.tolist() for histogram in found.histograms]
    facts["pictures"] = None if drawn is None else dict(drawn.metrics)
    return Pair((first, second), found, drawn, hottest)


def read(path: Path) -> Thing:
    """A mesh file with its materials. Raises `InputError`."""
    return cast("Thing", subjects.read_painted(path))


def write(
    path: Path, names: tuple[str, str], pair: Pair, runtime: Runtime, console: Console, force: bool
) -> Path:
    from trellis_core.io.files import write_file

    lines = [report.split(line) for line in report.comparison_lines(names, console.facts)]
    if path.suffix.lower() in PAGES:
        from trellis_cli.viewer import page

        meshes = console.facts["meshes"]
        content = page(
            pair.things,
            [f"A  {names[0]}", f"B  {names[1]}"],
            [report.summary(facts) for facts in meshes],
            lines,
            runtime,
            hottest=pair.hottest,
            title=f"{names[0]} and {names[1]}",
        )
    else:
        from io import BytesIO

        from PIL import Image

        from trellis_core.render.compare import comparison_sheet

        assert pair.pictures is not None
        sheet = comparison_sheet(pair.pictures, lines, pair.comparison.histograms)
        encoded = BytesIO()
        Image.fromarray(sheet.numpy()).save(encoded, "PNG")
        content = encoded.getvalue()
    written = files.write(path, lambda place: write_file(place, [content]), force=force)
    console.facts["outputs"] = [{"path": str(written), "bytes": len(content)}]
    console.event("written", **console.facts["outputs"][0])
    return written
