"""What `generate`, `multi-image` and `text` share: from a picture or words to the files that were ordered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from trellis_cli import delivery, files, registry
from trellis_cli.console import Console
from trellis_cli.options import RunOptions


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
    kind, samplers = options.pipeline_type, options.samplers
    check()
    order = delivery.Order.check(
        source,
        options.output,
        count=options.num_samples,
        preset=options.preset,
        faces=options.faces,
        texture=options.texture,
        preview=options.preview,
        strict=options.strict,
        force=options.force,
    )
    if options.save_bundle is not None:
        files.check_output(options.save_bundle, files.BUNDLES, force=options.force)

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
        )
        bundle = engine.sample(
            **given,
            seed=options.seed,
            num_samples=options.num_samples,
            pipeline_type=kind,
            on_progress=progress,
            cancel=console.is_interrupted,
            **samplers,
        )
        if options.save_bundle is not None:
            path = files.write(options.save_bundle, bundle.save, force=options.force)
            console.facts["bundle"] = str(path)
        with delivery.keeping(bundle, None if options.save_bundle else order):
            shapes = engine.decode(bundle, on_progress=progress, cancel=console.is_interrupted)
            delivery.deliver(console, engine, shapes, order, registry.provenance(bundle), progress)
    delivery.conclude(console, order, started)
