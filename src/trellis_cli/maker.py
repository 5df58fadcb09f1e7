"""Asset after asset out of one loaded model, going on with a lower plan when memory runs out.

    sample -> decode -> deliver; after "out of memory": less memory for the same result, then a smaller result

A lower memory tier stays for what follows, since it costs time only; fewer voxels, faces or texels are for
the one asset that needs them.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_cli import delivery, files, registry
from trellis_cli.console import Console, Stages
from trellis_cli.options import Form, RunOptions, Tier
from trellis_cli.sampling import fits
from trellis_core.errors import Cancelled, OutOfMemory, OutputError, TrellisError

if TYPE_CHECKING:
    from trellis_core.weights.bundle import Bundle

TIERS = (Tier.high, Tier.medium, Tier.low, Tier.minimal)
FEWEST_FACES, SMALLEST_TEXTURE = 2000, 512  # nothing is lowered below these
DECODE = "decode"  # the last stage before the asset's own
PREDICTED = ("tier", "budget", "fits", "host_bytes")  # of a plan; the rest is how a run executes


@dataclass(slots=True, kw_only=True)
class Job:
    """One asset in the making."""

    given: Mapping[str, Any]  # the arguments of `Pipeline.sample` that say what to make
    options: RunOptions
    order: delivery.Order
    bundle_path: Path  # where the sampled run goes when it is to be kept, or cannot be finished
    bundle: Bundle | None = None
    attempts: list[dict[str, str]] = field(default_factory=list)  # that failed for lack of memory


class Maker:
    """A model that is read once."""

    def __init__(
        self,
        console: Console,
        options: RunOptions,
        *,
        text: bool,  # it must take prompts
        pictures: bool,  # it must take pictures
    ) -> None:
        self.console = console
        self.options = options
        self.machine = registry.Machine.of(
            options.device, options.precision, options.vram_tier, options.kernel
        )
        self.model = options.model
        self.needs = {"text": text, "pictures": pictures}
        self.engine: Any = None
        self.pipeline = options.pipeline_type  # that the plan counts with
        self.plan: Mapping[str, Any] = {}
        self.facts: Mapping[str, Any] = {}  # which model it is

    def check(self, form: Form) -> None:
        """Whether a model that was asked for can make this; imports no torch.

        Raises `ModelError` when it is not here, `UsageError` when it does not take or make what is wanted.
        """
        if self.model == registry.AUTO:
            return
        found = registry.find_model(self.model)
        order = delivery.Order(paths=(), previews=(), form=form)
        fits(self.options, order)(registry.version_of(found.folder), found.name)
        if self.needs["text"]:
            registry.require_text(found)
        if self.needs["pictures"]:
            registry.require_pictures(found)

    def open(self, order: delivery.Order) -> None:
        """Load the model unless that was done. Raises what `registry.load_engine` raises."""
        if self.engine is None:
            self._load(self.console, self.machine, self.options.pipeline_type, order)
            self.model = self.facts["name"]  # a lower plan is no reason to take another model

    def make(self, job: Job, console: Console, progress: Stages) -> None:
        """Make what a job orders; what was written is in the facts of `console`.

        Raises what sampling, decoding, export and writing raise, `OutOfMemory` when no lower plan is left.
        When that happens after sampling, the sampled run is saved: it is the expensive part.
        """
        if self.pipeline != job.options.pipeline_type:
            self._load(_muted(self.console), self.machine, job.options.pipeline_type, job.order)
        try:
            while (failure := self._attempt(job, console, progress)) is not None:
                if not self._lower(job, console, failure, is_decoded(progress)):
                    raise failure
        except Exception as error:
            # an asset that is finished and cannot be written is kept itself
            if job.bundle is not None and not isinstance(error, (Cancelled, OutputError)):
                _keep(job, console, error)
            raise

    def _attempt(self, job: Job, console: Console, progress: Stages) -> OutOfMemory | None:
        """The error when memory ran out; nothing of the attempt is alive then."""
        progress.close()
        for name in ("outputs", "stages"):
            console.facts.pop(name, None)
        try:
            if job.bundle is None:
                job.bundle = self.engine.sample(
                    **job.given,
                    seed=job.options.seed,
                    num_samples=job.options.num_samples,
                    **job.options.sampling(registry.version_of_engine(self.engine)),
                    on_progress=progress,
                    cancel=console.is_interrupted,
                )
                if job.options.save_bundle is not None:
                    _save(job, console)
            delivery.finish(console, self.engine, job.bundle, job.order, progress)
        except (OutOfMemory, MemoryError, RuntimeError) as error:
            failure = as_out_of_memory(error)
            if failure is None:
                raise
            return failure
        return None

    def _lower(self, job: Job, console: Console, failure: OutOfMemory, decoded: bool) -> bool:
        """Make less of the plan or of the job; false when nothing is left to lower."""
        free_memory()
        change = self._lower_tier(job)
        if change is None and decoded:
            change = lower_budget(job, self.engine)
        if change is None:
            change = self._lower_pipeline(job, console)
        if change is None:
            return False
        job.order = replace(job.order, force=True)  # over what the failed attempt wrote itself
        job.attempts.append({"error": failure.message, "then": change})
        self.console.note(f"{failure.message}; trying again with {change}")
        return True

    def _lower_tier(self, job: Job) -> str | None:
        """The next tier whose plan differs; the result stays the same."""
        names = [tier.value for tier in TIERS]
        if self.plan["tier"] not in names:  # a CPU has no tiers
            return None
        before = _execution(self.plan)
        for tier in names[names.index(self.plan["tier"]) + 1 :]:
            self.machine = replace(self.machine, tier=tier)
            self._load(_muted(self.console), self.machine, self.pipeline, job.order)
            if _execution(self.plan) != before:
                return f"`--vram-tier {tier}`"
        return None

    def _lower_pipeline(self, job: Job, console: Console) -> str | None:
        """The next smaller voxel grid; what was sampled for the larger one is of no use then."""
        name = smaller_pipeline(self.engine, job.options.pipeline_type)
        if name is None:
            return None
        job.options = replace(job.options, resolution=None, pipeline=name)
        job.bundle = None
        console.facts.pop("bundle", None)
        self._load(_muted(self.console), self.machine, name, job.order)
        return f"`--pipeline {name}`"

    def _load(
        self, console: Console, machine: registry.Machine, pipeline: str | None, order: delivery.Order
    ) -> None:
        self.engine = None  # before the next one needs its memory
        self.engine = registry.load_engine(
            self.model,
            machine,
            console,
            pipeline_type=pipeline,
            num_samples=self.options.num_samples,
            fits=fits(self.options, order),
            **self.needs,
        )
        self.pipeline = pipeline
        self.plan, self.facts = console.facts["plan"], console.facts["model"]


def _save(job: Job, console: Console) -> None:
    assert job.bundle is not None
    console.facts["bundle"] = str(files.write(job.bundle_path, job.bundle.save, force=job.order.force))


def _keep(job: Job, console: Console, error: Exception) -> None:
    """Save the sampled run of a job that failed later, and say so in its error."""
    if "bundle" not in console.facts:
        with suppress(TrellisError, OSError):
            _save(job, console)
    if "bundle" in console.facts and isinstance(error, TrellisError):
        kept = f"the sampled run is kept: `trellis export {console.facts['bundle']}` goes on from it"
        error.hint = f"{error.hint}; {kept}" if error.hint else kept


def is_decoded(progress: Stages) -> bool:
    """Whether an attempt came as far as making the asset."""
    now = progress.current
    over = [each["stage"] for each in progress.console.facts.get("stages", ())]
    if now is not None and now.step >= now.steps:
        over.append(now.stage)
    return any(stage.startswith(DECODE) for stage in over)


def smaller_pipeline(engine: Any, name: str | None) -> str | None:
    """The pipeline type with the next smaller grid, a cascade if there is one; None for the smallest."""
    kinds = getattr(engine.settings, "pipeline_types", {})
    if not kinds:  # TRELLIS v1 has one grid
        return None
    now = engine.settings.pipeline_type(name).resolution
    smaller = [kind for kind in kinds.values() if kind.resolution < now]
    return max(smaller, key=lambda kind: (kind.resolution, len(kind.shape_passes))).name if smaller else None


def as_out_of_memory(error: Exception) -> OutOfMemory | None:
    """The error as a person reads it, without what its traceback keeps alive; None for other errors."""
    from trellis_core.memory.residency import is_out_of_memory

    if isinstance(error, OutOfMemory):
        return OutOfMemory(error.message, error.hint)
    if is_out_of_memory(error):
        return OutOfMemory(
            "out of memory", hint="close other programs, or use less: `--faces`, `--resolution`"
        )
    return None


def free_memory() -> None:
    """Give back what a failed attempt has left."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lower_budget(job: Job, engine: Any) -> str | None:
    """A quarter of the faces and half the texture's side."""
    settings = job.order.settings(engine.settings.export)
    faces = max(settings.faces // 4, FEWEST_FACES)
    texture = max(settings.texture_size // 2, SMALLEST_TEXTURE)
    faces, texture = min(faces, settings.faces), min(texture, settings.texture_size)
    if (faces, texture) == (settings.faces, settings.texture_size) or job.order.form is not Form.mesh:
        return None
    job.order = replace(job.order, faces=faces, texture=texture)
    return f"`--faces {faces} --texture {texture}`"


def _execution(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in PREDICTED}


def _muted(console: Console) -> Console:
    """For loading again: what is said then was said before."""
    return replace(console, quiet=True, events=False, facts={})
