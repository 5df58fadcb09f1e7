"""From sampled runs to the files that were ordered: decode, export, write, check, report.

`Order.check` looks at everything that can be wrong with the order before any work starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from trellis_cli import files, registry
from trellis_cli.console import Console, Stages
from trellis_cli.options import ColorSource, Form, Preset
from trellis_core.errors import (
    Cancelled,
    ModelError,
    OutOfMemory,
    OutputError,
    QualityError,
    TrellisError,
    UsageError,
)

if TYPE_CHECKING:
    from trellis_core.geometry.asset import ExportSettings
    from trellis_core.geometry.fields import Gaussians, RadianceField
    from trellis_core.geometry.types import Asset, QualityReport
    from trellis_core.weights.bundle import Bundle

SUFFIXES: Mapping[
    Form, tuple[str, ...]
] = {  # what a result is -> files it is written to, the usual one first
    Form.mesh: files.ASSETS,
    Form.gaussians: (".ply", ".splat", ".spz"),
    Form.radiance_field: (".safetensors",),
}
PREVIEW = 384  # pixels of one view of a field
PARTS: Mapping[Form, str] = {Form.gaussians: "Gaussians", Form.radiance_field: "voxels"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be written, and how."""

    paths: tuple[Path, ...]  # one per sample
    previews: tuple[Path, ...]  # as many, or none
    form: Form = Form.mesh
    color_from: ColorSource | None = None  # of a TRELLIS v1 mesh; None: what the model has
    preset: str | None = None
    faces: int | None = None
    texture: int | None = None
    strict: bool = False
    force: bool = False

    @classmethod
    def check(
        cls,
        source: Path,
        output: Path | None,
        *,
        count: int = 1,
        preset: Preset | None,
        faces: int | None,
        texture: int | None,
        preview: Path | None,
        strict: bool,
        force: bool,
        form: Form | None = None,
        color_from: ColorSource | None = None,
    ) -> Order:
        """Raises `UsageError` or `OutputError` when the result could not be written.

        Without a `form` the name of the output says what it is: `.spz` are Gaussians.
        """
        form = form or form_of(output)
        mesh_options = {
            "--color-from": color_from,
            "--preset": preset,
            "--faces": faces,
            "--texture": texture,
            "--strict": strict or None,
        }
        given = [name for name, value in mesh_options.items() if value is not None]
        if form is not Form.mesh and given:
            raise UsageError(
                f"`{given[0]}` is for meshes, the result is `--as {form.value}`",
                hint=f"leave it out, or pass `--as mesh` and a name such as `{source.stem}.glb`",
            )
        if output is None and source.suffix.lower() == SUFFIXES[form][0]:  # a field made from a bundle
            output = files.beside(source, f"-{form.value}{SUFFIXES[form][0]}")
        paths = files.outputs(output, source, SUFFIXES[form][0], count)
        previews = [] if preview is None else files.outputs(preview, source, ".png", count)
        for path in paths:
            check_suffix(path, form)
            files.check_output(path, SUFFIXES[form], force=force)
        for path in previews:
            files.check_output(path, files.IMAGES, force=force)
        return cls(
            paths=tuple(paths),
            previews=tuple(previews),
            form=form,
            color_from=color_from,
            preset=preset.value if preset else None,
            faces=faces,
            texture=texture,
            strict=strict,
            force=force,
        )

    def numbered(self, number: int) -> Order:
        """The order for as many samples as a bundle turned out to hold."""
        if number == len(self.paths):
            return self
        paths = files.numbered(self.paths[0], number)
        previews = files.numbered(self.previews[0], number) if self.previews else []
        for path in (*paths, *previews):
            files.check_output(path, (path.suffix,), force=self.force)
        return replace(self, paths=tuple(paths), previews=tuple(previews))

    def require_fit(self, version: str, model: str) -> None:
        """`UsageError` when a model of this version does not make what is ordered."""
        if version != registry.V1 and self.form is not Form.mesh:
            raise UsageError(
                f"`{model}` makes meshes only, not `--as {self.form.value}`",
                hint="pass a TRELLIS v1 model: `--model image-large` or, for words, `--model text-large`",
            )

    def formats(self, there: Sequence[str]) -> tuple[str, ...]:
        """What a TRELLIS v1 model that can decode what is `there` has to decode."""
        if self.form is not Form.mesh:
            return (_plain(self.form),)
        if self.color_from is None:
            return ("mesh", *[name for name in ("gaussians", "radiance_field") if name in there][:1])
        return ("mesh",) if self.color_from is ColorSource.vertices else ("mesh", _plain(self.color_from))

    def settings(self, suited: Mapping[str, Any] | None = None) -> ExportSettings:
        """What suits the model, the preset on top of it, and the options that were given on top of that."""
        from trellis_core.geometry.asset import ExportSettings

        given = {"faces": self.faces, "texture_size": self.texture}
        given = {name: value for name, value in given.items() if value is not None}
        return ExportSettings(**{**(suited or {}), **preset_settings(self.preset), **given})


def form_of(output: Path | None) -> Form:
    """What a file name stands for: a mesh, unless only another form is written to such files."""
    suffix = "" if output is None else output.suffix.lower()
    if suffix in SUFFIXES[Form.mesh]:
        return Form.mesh
    return next((form for form, suffixes in SUFFIXES.items() if suffix in suffixes), Form.mesh)


def check_suffix(path: Path, form: Form) -> None:
    """`UsageError` for a name that belongs to another form, naming both ways out."""
    suffix = path.suffix.lower()
    other = next((each for each, suffixes in SUFFIXES.items() if suffix in suffixes), None)
    if suffix not in SUFFIXES[form] and other is not None:
        known = " or ".join(f"`{each}`" for each in SUFFIXES[form])
        raise UsageError(
            f"`--as {form.value}` is not written to `{suffix}` files",
            hint=f"let the name end in {known}, or pass `--as {other.value}`",
        )


def preset_settings(name: str | None) -> dict[str, Any]:
    """The entries of `configs/presets/NAME.json`; none is the default settings."""
    if name is None:
        return {}
    installed = Path(__file__).parent / "_configs"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "configs" / "presets"
    return dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


@contextmanager
def keeping(bundle: Bundle, order: Order | None) -> Iterator[None]:
    """When what follows fails, the sampled run is saved beside the output: sampling is the expensive part.

    Without an `order` the run is safe already.
    """
    try:
        yield
    except (TrellisError, RuntimeError, MemoryError) as error:
        if order is None or isinstance(error, (Cancelled, OutputError)):  # a finished asset is kept itself
            raise
        try:
            path = files.write(order.paths[0].with_suffix(".safetensors"), bundle.save, force=False)
        except (TrellisError, OSError):
            raise error from None
        kept = f"the sampled run is kept: `trellis export {path}` goes on from it"
        if isinstance(error, TrellisError):
            error.hint = f"{error.hint}; {kept}" if error.hint else kept
            raise
        raise failed_after_sampling(error, kept) from error


def failed_after_sampling(error: Exception, kept: str) -> TrellisError:
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return OutOfMemory("out of memory while making the asset", hint=f"use fewer `--faces`; {kept}")
    return TrellisError(f"making the asset failed: {type(error).__name__}: {error}", hint=kept)


def require_formats(engine: Any, order: Order) -> None:
    """`ModelError` when the network that makes what is ordered is not here: said before the sampling."""
    if registry.version_of_engine(engine) == registry.V1:
        absent = [name for name in order.formats(engine.formats) if name not in engine.formats]
        if absent:
            raise ModelError(
                f"the model `{engine.identity.name}` is not complete: nothing here decodes `{absent[0]}`",
                hint=f"run `trellis models pull {engine.identity.name}`, or ask with `--as` for one of: "
                f"{', '.join(name.replace('_', '-') for name in engine.formats)}",
            )


def finish(console: Console, engine: Any, bundle: Bundle, order: Order, progress: Stages) -> None:
    """Decode a run of the engine's own and deliver what was ordered of it."""
    v1 = registry.version_of_engine(engine) == registry.V1
    shapes = engine.decode(
        bundle,
        **({"formats": order.formats(engine.formats)} if v1 else {}),
        on_progress=progress,
        cancel=console.is_interrupted,
    )
    deliver(console, engine, shapes, order, registry.provenance(bundle), progress)


def deliver(
    console: Console,
    engine: Any,
    shapes: Sequence[Any],  # what `engine.decode` gave
    order: Order,
    extras: Mapping[str, Any],
    progress: Stages,
) -> None:
    """Export and write one asset, or field, per shape; each is on disk before the next one starts."""
    settings = order.settings(engine.settings.export)
    v1 = registry.version_of_engine(engine) == registry.V1
    color = "auto" if order.color_from is None else _plain(order.color_from)
    for index, shape in enumerate(shapes):
        if order.form is not Form.mesh:
            write_field(console, engine, getattr(shape, _plain(order.form)), order, index)
            continue
        asset = engine.export(
            shape,
            settings,
            **({"color": color} if v1 else {}),
            extras={**extras, "sample": index},
            on_progress=progress,
            cancel=console.is_interrupted,
        )
        write(console, engine, asset, order, index)


def write(console: Console, engine: Any, asset: Asset, order: Order, index: int = 0) -> None:
    """Write one asset and its preview, and keep what the final report says about them."""
    path = files.write(order.paths[index], asset.save, force=order.force)
    facts: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "vertices": len(asset.mesh.vertices),
        "faces": len(asset.mesh.faces),
        "texture": int(asset.material.base_color.shape[0]),
        "quality": quality_facts(asset.quality),
    }
    console.facts.setdefault("outputs", []).append(facts)
    if order.previews:
        from trellis_cli.sheet import draw_asset

        sheet = draw_asset(asset, engine.runtime)
        facts["preview"] = str(files.write_sheet(order.previews[index], sheet, force=order.force))
    console.event("written", **facts)


def write_field(
    console: Console, engine: Any, field: Gaussians | RadianceField, order: Order, index: int
) -> None:
    """Write Gaussians or a radiance field, and keep what the final report says about them."""
    from trellis_core.io.fields import save_field

    path = files.write(order.paths[index], lambda place: save_field(field, place), force=order.force)
    facts: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "form": order.form.value,
        "parts": len(field),
    }
    console.facts.setdefault("outputs", []).append(facts)
    if order.previews:
        from PIL.Image import fromarray

        from trellis_core.render.turntable import contact_sheet

        sheet = fromarray(contact_sheet(field, engine.runtime, size=PREVIEW).numpy())
        facts["preview"] = str(files.write_sheet(order.previews[index], sheet, force=order.force))
    console.event("written", **facts)


def conclude(console: Console, order: Order, started: float) -> None:
    """Say what was made and how good it is; `QualityError` under --strict when something is wrong with it."""
    outputs = console.facts.get("outputs", [])
    console.facts["seconds"] = round(monotonic() - started, 3)
    failed = []
    for facts in outputs:
        path = Path(facts["path"])
        size = files.size_of(path)
        if "quality" in facts:
            console.say("asset", f"{facts['faces']:,} faces, {facts['texture']} px texture, {size}")
            problems = facts["quality"]["problems"]
            console.say("quality", f"{len(problems)} of the checks failed" if problems else "passed")
            for problem in problems:
                console.warn(problem)
            if not facts["quality"]["passed"]:
                failed.append(path)
        else:
            console.say("asset", f"{facts['parts']:,} {PARTS[Form(facts['form'])]}, {size}")
        if "preview" in facts:
            console.say("preview", facts["preview"])
    if "bundle" in console.facts:
        console.say("bundle", console.facts["bundle"])
    console.say("done", f"{console.facts['seconds']:.1f} s")
    console.result([facts["path"] for facts in outputs])
    if order.strict and failed:
        raise QualityError(
            f"`{failed[0]}` failed the quality check; it was written all the same",
            hint="try another `--seed`, a higher `--resolution`, or another `--background`",
        )


def quality_facts(report: QualityReport) -> dict[str, Any]:
    return {"passed": report.passed, "problems": list(report.problems), "metrics": dict(report.metrics)}


def _plain(choice: Form | ColorSource) -> str:
    """As the library writes it."""
    return choice.value.replace("-", "_")
