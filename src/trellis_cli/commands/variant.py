"""`trellis variant MESH|BUNDLE`: the coarse shape stays, everything else is made anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import delivery, files, registry
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_cli.sampling import fits, order_of, produce
from trellis_cli.wish import Images, PromptOption, Wish, Words

if TYPE_CHECKING:
    from trellis_core.weights.bundle import Bundle

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis variant chair.glb "a red chair with wooden legs"
  trellis variant scan.stl --image concept.png -o robot.glb
  trellis variant chair.safetensors "a blue chair" --num-samples 4"""

SOURCES = (*files.MESHES, *files.BUNDLES)
STRUCTURE = ("structure_steps", "structure_guidance")  # that stage does not run

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MESH",
        help="GLB, OBJ, PLY, STL, ... or a run saved with `--save-bundle`.",
        show_default=False,
    ),
]


@app.command(epilog=EXAMPLES)
@partial(o.with_options, without=STRUCTURE)
def variant(
    ctx: typer.Context,
    source: Source,
    *,
    words: Words = None,
    prompt: PromptOption = None,
    image: Images = None,
    mode: o.ModeOption = o.Mode.stochastic,
    background: o.BackgroundOption = o.Background.auto,
    run: o.RunOptions,
) -> None:
    """Keep the coarse shape of a mesh or of a saved run, and make new detail and colors for it.

    A mesh may have any size and place: it is centred and scaled to the unit cube.
    """
    console: Console = ctx.obj
    started = monotonic()
    machine = registry.Machine.of(run.device, run.precision, run.vram_tier, run.kernel)
    wish = Wish.read(words, prompt, image)
    files.check_input(source, "mesh", SOURCES)
    if source.suffix.lower() not in SOURCES:
        raise files.unknown_suffix(source, "mesh", SOURCES)
    order = order_of(run, files.beside(source, f"-variant{files.BUNDLES[0]}"))
    with console.working() as progress:
        progress.begin("start")
        given = wish.arguments(console, mode, background)
        shape, engine = _open(source, wish, run, order, machine, console)

        def sample(engine: Any, arguments: Mapping[str, Any]) -> Bundle:
            made: Bundle = engine.variant(shape, **{k: v for k, v in arguments.items() if k != "structure"})
            return made

        produce(console, engine, run, order, given, progress, sample)
    delivery.conclude(console, order, started)


def _open(
    source: Path,
    wish: Wish,
    run: o.RunOptions,
    order: delivery.Order,
    machine: registry.Machine,
    console: Console,
) -> tuple[Any, Any]:  # mesh or bundle, engine
    """A saved run is continued by the model that made it, unless another one is asked for."""
    if source.suffix.lower() in files.BUNDLES:
        from trellis_core.weights.bundle import Bundle

        saved = Bundle.load(source)
        return saved, registry.load_engine_of(saved, run.model, machine, console, fits=fits(run, order))
    from trellis_core.io.meshes import read_mesh

    mesh = read_mesh(source).mesh
    text = wish.prompt is not None
    return mesh, registry.load_engine(
        run.model,
        machine,
        console,
        pipeline_type=run.pipeline_type,
        num_samples=run.num_samples,
        text=text,
        pictures=not text,
        fits=fits(run, order),
    )
