"""From sampled runs to the files that were ordered: decode, export, write, check, report.

`Order.check` looks at everything that can be wrong with the order before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from trellis_cli import files, registry
from trellis_cli.asset_options import (
    GLTF,
    SHAPE_ONLY,
    AssetFlags,
    AssetOptions,
    has_texture,
    level_settings,
    preset_settings,
)
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
    from trellis_core.runtime import Runtime
    from trellis_core.weights.bundle import Bundle

SUFFIXES: Mapping[
    Form, tuple[str, ...]
] = {  # what a result is -> files it is written to, the usual one first
    Form.mesh: files.ASSETS,
    Form.gaussians: (".ply", ".splat", ".spz"),
    Form.radiance_field: (".safetensors",),
}
WITHOUT_TEXTURE = (*SHAPE_ONLY, ".ply")  # PLY has a color per vertex
PREVIEW = 384  # pixels of one view of a field
PARTS: Mapping[Form, str] = {Form.gaussians: "Gaussians", Form.radiance_field: "voxels"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the assets that are made of a sample."""

    preset: str | None
    paths: tuple[Path, ...]  # one per format


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be written, and how."""

    paths: tuple[Path, ...]  # one per sample; presets and formats are written beside it
    previews: tuple[Path, ...]  # as many, or none
    form: Form = Form.mesh
    color_from: ColorSource | None = None  # of a TRELLIS v1 mesh; None: what the model has
    faces: int | None = None
    texture: int | None = None
    asset: AssetOptions = field(default_factory=AssetOptions)
    strict: bool = False
    force: bool = False

    @classmethod
    def check(
        cls,
        source: Path,
        output: Path | None,
        *,
        count: int = 1,
        preset: Preset | None = None,
        faces: int | None = None,
        texture: int | None = None,
        asset: AssetOptions | None = None,  # instead of the three above
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
        presets = None if preset is None else [preset.value]
        asset = asset or AssetOptions.read(AssetFlags(preset=presets, faces=faces, texture=texture))
        given = ["--color-from"] if color_from is not None else []
        given += asset.given + (["--strict"] if strict else [])
        if form is not Form.mesh and given:
            raise UsageError(
                f"`{given[0]}` is for meshes, the result is `--as {form.value}`",
                hint=f"leave it out, or pass `--as mesh` and a name such as `{source.stem}.glb`",
            )
        if output is None and source.suffix.lower() == SUFFIXES[form][0]:  # a field made from a bundle
            output = files.beside(source, f"-{form.value}{SUFFIXES[form][0]}")
        usual = asset.usual_suffix if form is Form.mesh else SUFFIXES[form][0]
        if output is not None and not output.suffix and asset.formats and not output.is_dir():
            output = output.with_name(output.name + usual)
        paths = files.outputs(output, source, usual, count)
        previews = [] if preview is None else files.outputs(preview, source, ".png", count)
        for path in paths:
            check_suffix(path, form)
        order = cls(
            paths=tuple(paths),
            previews=tuple(previews),
            form=form,
            color_from=color_from,
            faces=asset.changes.get("faces"),
            texture=asset.changes.get("texture_size"),
            asset=asset,
            strict=strict,
            force=force,
        )
        order.check_places()
        return order

    def check_places(self) -> None:
        """Raises when one of the files cannot be written."""
        for index in range(len(self.paths)):
            for variant in self.variants(index):
                for path in variant.paths:
                    for place in self.files_of(path):
                        files.check_output(place, SUFFIXES[self.form], force=self.force)
        for path in self.previews:
            files.check_output(path, files.IMAGES, force=self.force)

    def variants(self, index: int) -> tuple[Variant, ...]:
        """What is made of a sample: one for each preset."""
        path = self.paths[index]
        if self.form is not Form.mesh:
            return (Variant(preset=None, paths=(path,)),)
        suffixes = self.asset.suffixes(path) if path.suffix.lower() in files.ASSETS else (path.suffix,)
        presets = self.asset.presets or (None,)

        def place(preset: str | None, suffix: str) -> Path:
            name = path.stem if len(presets) == 1 else f"{path.stem}-{preset}"
            return path if len(suffixes) * len(presets) == 1 else path.with_name(name + suffix)

        return tuple(
            Variant(preset=preset, paths=tuple(place(preset, suffix) for suffix in suffixes))
            for preset in presets
        )

    def files_of(self, path: Path) -> list[Path]:
        """The file itself, and those of coarser levels where a file holds one."""
        if self.asset.lods == 1 or path.suffix.lower() in GLTF:
            return [path]
        return [path, *(lod_file(path, level) for level in range(1, self.asset.lods))]

    def numbered(self, number: int) -> Order:
        """The order for as many samples as a bundle turned out to hold."""
        if number == len(self.paths):
            return self
        paths = files.numbered(self.paths[0], number)
        previews = files.numbered(self.previews[0], number) if self.previews else []
        order = replace(self, paths=tuple(paths), previews=tuple(previews))
        order.check_places()
        return order

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

    @property
    def textured(self) -> bool:
        """Whether one of the files shows what a texture holds."""
        return has_texture([path.suffix.lower() for path in self.variants(0)[0].paths])

    def settings(self, suited: Mapping[str, Any] | None = None) -> ExportSettings:
        """What suits the model, the preset on top of it, and the options that were given on top of that."""
        return self.all_settings(suited)[0][0]

    def all_settings(self, suited: Mapping[str, Any] | None = None) -> list[list[ExportSettings]]:
        """Those of every preset, and of every level of detail from fine to coarse."""
        from trellis_core.geometry.asset import ExportSettings

        given = {"faces": self.faces, "texture_size": self.texture}
        given = {name: value for name, value in given.items() if value is not None}
        made = []
        for preset in self.asset.presets or (None,):
            settings = {**(suited or {}), **preset_settings(preset), **self.asset.changes, **given}
            finest = ExportSettings(**{**settings, "textured": self.textured})
            levels = [level_settings(asdict(finest), level) for level in range(self.asset.lods)]
            made.append([ExportSettings(**level) for level in levels])
        return made


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
    """Export and write what is ordered of each shape; each asset is on disk before the next one starts."""
    wanted = order.all_settings(engine.settings.export) if order.form is Form.mesh else []
    v1 = registry.version_of_engine(engine) == registry.V1
    color = "auto" if order.color_from is None else _plain(order.color_from)
    for index, shape in enumerate(shapes):
        if order.form is not Form.mesh:
            write_field(console, engine, getattr(shape, _plain(order.form)), order, index)
            continue
        made = engine.export_all(
            shape,
            [settings for levels in wanted for settings in levels],
            **({"color": color} if v1 else {}),
            extras={**extras, "sample": index},
            on_progress=progress,
            cancel=console.is_interrupted,
        )
        write_all(console, engine.runtime, made, order, index)


def write_all(
    console: Console, runtime: Runtime, made: Iterable[tuple[int, Asset]], order: Order, index: int = 0
) -> None:
    """Write assets as they come, numbered as in `Order.all_settings`; a preset's levels together."""
    variants = order.variants(index)
    waiting: dict[int, dict[int, Asset]] = {number: {} for number in range(len(variants))}
    preview = list(order.previews[index : index + 1])
    for number, asset in made:
        which, level = divmod(number, order.asset.lods)
        waiting[which][level] = asset
        if len(waiting[which]) == order.asset.lods:
            levels = [asset for _, asset in sorted(waiting.pop(which).items())]
            write_variant(console, runtime, levels, variants[which], order, preview)
            preview.clear()


def write(console: Console, engine: Any, asset: Asset, order: Order, index: int = 0) -> None:
    """Write one asset and its preview."""
    write_all(console, engine.runtime, [(0, asset)], order, index)


def write_variant(
    console: Console,
    runtime: Runtime,
    levels: Sequence[Asset],
    variant: Variant,
    order: Order,
    previews: Sequence[Path] = (),
) -> None:
    """Write an asset in its formats, and keep what the final report says about it."""
    from trellis_core.io import save_asset

    asset, *lods = levels
    settings = order.asset.gltf_settings()
    for wanted in variant.paths:
        together = wanted.suffix.lower() in GLTF
        save = partial(save_asset, asset, settings=settings, lods=lods if together else ())
        path = files.write(wanted, save, force=order.force)
        facts: dict[str, Any] = {
            "path": str(path),
            "bytes": files.bytes_of(path),
            "vertices": len(asset.mesh.vertices),
            "faces": len(asset.mesh.faces),
            "texture": texture_side(asset, wanted),
            "quality": quality_facts(asset.quality),
        }
        if variant.preset is not None:
            facts["preset"] = variant.preset
        if asset.unit_mm is not None:
            facts["size_mm"] = size_mm(asset)
        if lods and together:
            facts["lods"] = [len(level.mesh.faces) for level in levels]
        console.facts.setdefault("outputs", []).append(facts)
        if previews and wanted == variant.paths[0]:
            from trellis_cli.sheet import draw_asset

            sheet = draw_asset(asset, runtime)
            facts["preview"] = str(files.write_sheet(previews[0], sheet, force=order.force))
        console.event("written", **facts)
        if lods and not together:
            for number, level in enumerate(lods, start=1):
                coarser = Variant(preset=variant.preset, paths=(lod_file(wanted, number),))
                write_variant(console, runtime, [level], coarser, order)


def texture_side(asset: Asset, path: Path) -> int:
    """Pixels of the texture in a file; 0 without one."""
    if asset.mesh.uvs is None or path.suffix.lower() in WITHOUT_TEXTURE:
        return 0
    return int(asset.material.base_color.shape[0])


def lod_file(path: Path, level: int) -> Path:
    """Where a coarser level goes in formats that hold one."""
    return path.with_name(f"{path.stem}-lod{level}{path.suffix}")


def size_mm(asset: Asset) -> list[float]:
    """Width, depth and height."""
    extent = asset.mesh.vertices.amax(0) - asset.mesh.vertices.amin(0)
    return [round(value * (asset.unit_mm or 1), 2) for value in extent.tolist()]


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
    problems: dict[str, None] = {}  # several files may hold the same asset
    for facts in outputs:
        path = Path(facts["path"])
        name = f"{path.name}: " if len(outputs) > 1 else ""
        console.say("asset", f"{name}{describe(facts)}, {files.shown_size(facts['bytes'])}")
        if "quality" in facts:
            problems |= dict.fromkeys(facts["quality"]["problems"])
            if not facts["quality"]["passed"]:
                failed.append(path)
        if "preview" in facts:
            console.say("preview", facts["preview"])
    if any("quality" in facts for facts in outputs):
        console.say("quality", f"{len(problems)} of the checks failed" if problems else "passed")
    for problem in problems:
        console.warn(problem)
    if "bundle" in console.facts:
        console.say("bundle", console.facts["bundle"])
    console.say("done", f"{console.facts['seconds']:.1f} s")
    console.result([facts["path"] for facts in outputs])
    if order.strict and failed:
        raise QualityError(
            f"`{failed[0]}` failed the quality check; it was written all the same",
            hint="try another `--seed`, a higher `--resolution`, or another `--background`",
        )


def describe(facts: Mapping[str, Any]) -> str:
    """An asset or a field in a few words."""
    if "parts" in facts:
        return f"{facts['parts']:,} {PARTS[Form(facts['form'])]}"
    faces = " + ".join(f"{count:,}" for count in facts.get("lods", [facts["faces"]]))
    said = [f"{faces} faces", f"{facts['texture']} px texture" if facts["texture"] else "no texture"]
    if "size_mm" in facts:
        said.append(" x ".join(f"{side:g}" for side in facts["size_mm"]) + " mm")
    return ", ".join(said)


def quality_facts(report: QualityReport) -> dict[str, Any]:
    return {"passed": report.passed, "problems": list(report.problems), "metrics": dict(report.metrics)}


def _plain(choice: Form | ColorSource) -> str:
    """As the library writes it."""
    return choice.value.replace("-", "_")
