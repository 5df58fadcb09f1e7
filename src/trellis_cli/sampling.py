"""What commands that sample share: from what a run starts with to its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from trellis_cli import delivery, files, registry
from trellis_cli.console import Console, Stages
from trellis_cli.options import RunOptions
from trellis_core.errors import UsageError

if TYPE_CHECKING:
    from trellis_core.weights.bundle import Bundle

Sample = Callable[[Any, Mapping[str, Any]], "Bundle"]  # engine, arguments -> a sampled run


def plain(engine: Any, arguments: Mapping[str, Any]) -> Bundle:
    """From noise alone."""
    bundle: Bundle = engine.sample(**arguments)
    return bundle


def make_assets(
    console: Console,
    options: RunOptions,
    source: Path,  # names the result when nothing else does
    check: Callable[[], None],  # raises when the input cannot be used; runs before torch is imported
    start: Callable[[], Mapping[str, Any]],  # the arguments of `Pipeline.sample` that say what to make
    *,
    text: bool = False,  # the model must take prompts
) -> None:
    """Sample, decode, export, write and report. Everything that can be wrong is looked at first."""
    started = monotonic()
    machine = registry.Machine.of(options.device, options.precision, options.vram_tier, options.kernel)
    kind = options.pipeline_type
    check()
    order = order_of(options, source)
    with console.working() as progress:
        progress.begin("start")
        given = start()
        engine = registry.load_engine(
            options.model,
            machine,
            console,
            pipeline_type=kind,
            num_samples=options.num_samples,
            text=text,
            pictures=not text,
            fits=fits(options, order),
        )
        produce(console, engine, options, order, given, progress)
    delivery.conclude(console, order, started)


def order_of(options: RunOptions, source: Path) -> delivery.Order:
    """What the options order. Raises `UsageError` or `OutputError` when it could not be written."""
    order = delivery.Order.check(
        source,
        options.output,
        count=options.num_samples,
        form=options.form,
        color_from=options.color_from,
        preset=options.preset,
        faces=options.faces,
        texture=options.texture,
        preview=options.preview,
        strict=options.strict,
        force=options.force,
    )
    if options.save_bundle is not None:
        files.check_output(options.save_bundle, files.BUNDLES, force=options.force)
        if options.save_bundle in order.paths:
            raise UsageError(
                f"`{options.save_bundle}` is to be the run and the result",
                hint="give `--save-bundle` another name",
            )
    return order


def fits(options: RunOptions, order: delivery.Order) -> registry.Fits:
    """Raises `UsageError` for a model that has no use for an option, or does not make what is ordered."""

    def check(version: str, model: str) -> None:
        options.require_fit(version, model)
        order.require_fit(version, model)

    return check


def produce(
    console: Console,
    engine: Any,
    options: RunOptions,
    order: delivery.Order,
    given: Mapping[str, Any],
    progress: Stages,
    sample: Sample = plain,
) -> None:
    """One run of an open engine: from `given`, arguments of `Pipeline.sample`, to the files of `order`."""
    delivery.require_formats(engine, order)
    arguments = {
        **given,
        "seed": options.seed,
        "num_samples": options.num_samples,
        **options.sampling(registry.version_of_engine(engine)),
        "on_progress": progress,
        "cancel": console.is_interrupted,
    }
    bundle = sample(engine, arguments)
    if options.save_bundle is not None:
        path = files.write(options.save_bundle, bundle.save, force=options.force)
        console.facts["bundle"] = str(path)
    with delivery.keeping(bundle, None if options.save_bundle else order):
        delivery.finish(console, engine, bundle, order, progress)
