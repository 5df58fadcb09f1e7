"""`trellis convert MESH`: a mesh from elsewhere in another format, simplified, repaired or made printable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trellis_cli import asset_options as a
from trellis_cli import delivery, files, registry, subjects
from trellis_cli import options as o
from trellis_cli.console import Console
from trellis_core.errors import InputError, UsageError

if TYPE_CHECKING:
    from trellis_core.render.convert import Source

app = typer.Typer()

EXAMPLES = """\
[bold]Examples[/bold]
  trellis convert chair.glb -o chair.usdz
  trellis convert scan.obj --faces 20000 --repair -o scan.glb
  trellis convert character.glb --preset game,mobile --normal-map --ao
  trellis convert figure.stl --preset print --height 80mm -o figure.3mf
  trellis convert chair.glb --draco -o chair-small.glb"""

UNITS = {
    ".glb": 1000.0,
    ".gltf": 1000.0,
    ".stl": 1.0,
    ".3mf": 1.0,
}  # millimeters per unit, by their standards
ENGINE = ("faces", "normal_map", "ambient")  # settings that make a new mesh or new texture coordinates
HOLE = 256  # perimeter of holes that a repair closes, in 256ths of the longest side; rims of bowls are longer
LARGEST_TEXTURE = 4096  # that is taken over from a source unasked

Repair = Annotated[
    bool,
    typer.Option(
        "--repair",
        help="Close small holes, turn everything outward, remove doubled and hidden parts.",
        rich_help_panel=o.ASSET,
    ),
]


@app.command(epilog=EXAMPLES)
@partial(o.with_options, without=("model", "precision", "vram_tier", "offline"))
def convert(
    ctx: typer.Context,
    mesh: o.MeshPath,
    *,
    result: o.ResultOptions,
    repair: Repair = False,
    asset: a.AssetFlags,
    machine: o.MachineOptions,
    report: o.ReportOptions,
) -> None:
    """Write a mesh in another format. With `--faces`, a preset, maps or `--repair` it is made anew.

    Needs no model. What has colors keeps them: textures are painted onto the new mesh.
    """
    console: Console = ctx.obj
    started = monotonic()
    files.check_input(mesh, "mesh", files.MESHES)
    if mesh.suffix.lower() in files.BUNDLES:
        raise InputError(f"`{mesh}` is a saved run, not a mesh", hint=f"pass it to `trellis export {mesh}`")
    if mesh.suffix.lower() not in files.MESHES:
        raise files.unknown_suffix(mesh, "mesh", files.MESHES)
    if subjects.kind_of(mesh) != subjects.MESH:
        raise InputError(
            f"`{mesh}` holds {subjects.kind_of(mesh)}, not a mesh", hint="draw it with `trellis render`"
        )
    options = a.AssetOptions.read(asset)
    order = delivery.Order.check(
        mesh,
        result.output or default_output(mesh, options),
        asset=options,
        preview=result.preview,
        strict=result.strict,
        force=result.force,
        form=o.Form.mesh,
    )
    place = registry.Machine.of(machine.device, machine.precision, machine.vram_tier, machine.kernel)
    with console.working() as progress:
        progress.begin("start")
        source = read_source(mesh)
        runtime = registry.open_runtime(place)
        with naming(mesh):
            make(console, mesh, source, order, repair, runtime, progress)
    delivery.conclude(console, order, started)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors about a mesh say which one."""
    try:
        yield
    except InputError as error:
        if path.name not in error.message:
            error.message = f"`{path.name}`: {error.message}"
        raise


def read_source(path: Path) -> Source:
    """The mesh with its materials, each once. Raises `InputError`."""
    from trellis_core.geometry.types import Mesh
    from trellis_core.render.convert import merge_materials
    from trellis_core.render.surface import PaintedMesh

    found = subjects.read_painted(path)
    if isinstance(found, PaintedMesh):
        return merge_materials(found)
    assert isinstance(found, Mesh)
    return found


def default_output(mesh: Path, options: a.AssetOptions) -> Path:
    """The mesh's name in this folder, never the mesh itself."""
    output = files.beside(mesh, options.usual_suffix)
    one = not options.formats and len(options.presets) < 2
    return files.beside(mesh, f"-converted{output.suffix}") if one and output.exists() else output


def make(
    console: Console,
    path: Path,
    source: Source,
    order: delivery.Order,
    repair: bool,
    runtime: Any,
    progress: Any,
) -> None:
    """Convert and write."""
    import torch

    from trellis_core.memory.residency import memory_errors
    from trellis_core.render.convert import asset_as_it_is, convert_mesh
    from trellis_core.render.surface import PaintedMesh
    from trellis_core.runtime import cancellable

    runtime = runtime.reporting(cancellable(progress, console.is_interrupted))
    if isinstance(source, PaintedMesh) and not order.textured:
        source = source.mesh
    materials = len(source.materials) if isinstance(source, PaintedMesh) else 0
    if (
        order.texture is not None
        and not materials
        and not {"normal_map", "ambient"} & set(order.asset.changes)
    ):
        raise UsageError(
            f"`{path.name}` has no colors: there is nothing to put into a texture",
            hint="leave `--texture` out, or paint it with `trellis texture`",
        )
    extras = {"source": path.name}
    unit = UNITS.get(path.suffix.lower())
    anew = repair or order.asset.lods > 1 or order.asset.presets or set(ENGINE) & set(order.asset.changes)
    with torch.inference_mode(), memory_errors("conversion"):
        if not anew and materials < 2:
            asset = asset_as_it_is(
                source, texture_size=order.texture, runtime=runtime, extras=extras, unit=unit
            )
            delivery.write_all(console, runtime, [(0, finished(asset, order))], order)
            return
        if not anew:
            console.note(f"its {materials} materials are painted into one texture")
        keep = suited(source) | ({"fill_holes_voxels": HOLE} if repair else {})
        wanted = [each for levels in order.all_settings(keep) for each in levels]
        made = convert_mesh(source, wanted, repair=repair, runtime=runtime, extras=extras, unit=unit)
        delivery.write_all(console, runtime, made, order)


def finished(asset: Any, order: delivery.Order) -> Any:
    """With the size and transparency that were asked for."""
    from dataclasses import replace

    from trellis_core.geometry.asset import unit_mm

    changes = order.asset.changes
    if "height_mm" in changes:
        asset = replace(asset, unit_mm=unit_mm(asset.mesh, changes["height_mm"]))
    if "alpha" in changes:
        mode = asset_alpha(asset, changes["alpha"])
        asset = replace(asset, material=replace(asset.material, alpha_mode=mode))
    if "texture_format" in changes:
        asset = replace(
            asset, extras={**asset.extras, "export": {"texture_format": changes["texture_format"]}}
        )
    return asset


def asset_alpha(asset: Any, wanted: str) -> str:
    from trellis_core.geometry.asset import choose_alpha

    alpha = asset.material.base_color[..., 3].reshape(-1, 1).float() / 255
    return choose_alpha(alpha, wanted)  # type: ignore[arg-type]


def suited(source: Source) -> dict[str, Any]:
    """Export settings that keep what the source has."""
    from trellis_core.render.surface import PaintedMesh

    mesh = source.mesh if isinstance(source, PaintedMesh) else source
    found: dict[str, Any] = {"faces": max(len(mesh.faces), 4), "alpha": "auto"}
    if isinstance(source, PaintedMesh):
        side = max(max(material.base_color.shape[:2]) for material in source.materials)
        wanted = 1 << max(side - 1, 255).bit_length()
        found["texture_size"] = min(max(wanted, 1024 if len(source.materials) > 1 else 256), LARGEST_TEXTURE)
    return found
