"""What a model makes with a flow that was fine-tuned: pictures of the data through the whole pipeline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trellis2.loading import find_checkpoints, load_network
from trellis2.pipeline import Pipeline
from trellis2.settings import read_settings
from trellis_core.errors import InputError
from trellis_core.io.images import read_picture
from trellis_core.models.networks import Loader, Networks
from trellis_core.runtime import Runtime
from trellis_core.training.samples import StageSample
from trellis_core.training.tuning import Tuning
from trellis_core.weights import hub
from trellis_core.weights.bundle import ModelIdentity


def sample_tuned(tuning: Tuning, model: Path | None, count: int, runtime: Runtime) -> list[StageSample]:
    """The first `count` items of the data, as the model `model` makes them with the trained flow or adapter.

    None after an autoencoder, or a flow without a model around it. Raises `OutOfMemory` when the other
    networks do not fit beside what was trained.
    """
    if not tuning.recipe.is_flow or model is None:
        return []
    settings = read_settings(model / hub.PIPELINE)
    loaders: dict[str, Loader] = {
        name: partial(load_network, stem)
        for name, stem in find_checkpoints(model, settings, model.name).items()
    }
    loaders[next(iter(tuning.networks))] = lambda runtime: tuning.flow.eval()
    pipeline = Pipeline(settings, Networks(loaders), ModelIdentity(model.name, "in training"), runtime)
    grid = settings.pipeline_type(None).structure_resolution
    return [
        sample_item(pipeline, entry.places["render_cond"] / entry.sha256, grid)
        for entry in tuning.catalog.entries[:count]
    ]


def sample_item(pipeline: Pipeline, views: Path, grid: int) -> StageSample:
    """One item, from the first of its pictures."""
    picture = read_picture(sorted(views.glob("*.png"))[0])
    seen = StageSample(label=views.name[:8], grid=grid)
    try:
        bundle = pipeline.sample(picture, seed=0)
    except InputError:  # the model found no object
        return seen
    shape = pipeline.decode(bundle)[0]
    return StageSample(
        label=seen.label,
        grid=grid,
        picture=bundle.tensors["thumbnail"],
        cells=bundle.tensors["structure_coords"][:, 1:],
        mesh=shape.mesh,
        materials=shape.voxels,
    )
