"""What a run makes so far: pictures through the whole model for a flow, latents decoded for a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from trellis.data import CAPTIONS, read_captions
from trellis.flexicubes import CubeMesh
from trellis.ingest import LATENT_ENCODER
from trellis.loading import find_checkpoints, load_network
from trellis.pipeline import Pipeline
from trellis.settings import DECODERS, read_settings
from trellis.stages import READ
from trellis.training_objectives import read_seen
from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import Mesh
from trellis_core.io.images import read_picture
from trellis_core.models.networks import Loader, Networks
from trellis_core.render.gaussian import render_gaussians
from trellis_core.render.radiance import render_radiance
from trellis_core.runtime import Runtime
from trellis_core.training.samples import StageSample
from trellis_core.training.surface import Rasterize, View, draw_surface
from trellis_core.training.tuning import Tuning, packed
from trellis_core.weights import hub
from trellis_core.weights.bundle import ModelIdentity

WHITE = (1.0, 1.0, 1.0)


def sample_tuned(tuning: Tuning, model: Path | None, count: int, runtime: Runtime) -> list[StageSample]:
    """The first `count` items of the data, after a flow or a decoder.

    None after a structure autoencoder, or a flow without a model around it. Raises `OutOfMemory` when the
    model's other networks do not fit beside what was trained.
    """
    if tuning.recipe.stage == "latent_vae":
        return sample_decoder(tuning, count, runtime)
    if not tuning.recipe.is_flow or model is None:
        return []
    settings = read_settings(model / hub.PIPELINE)
    stems = find_checkpoints(model, settings, model.name)
    loaders: dict[str, Loader] = {n: partial(load_network, n, stem) for n, stem in stems.items()}
    loaders[next(iter(tuning.networks))] = lambda runtime: tuning.flow.eval()
    pipeline = Pipeline(settings, Networks(loaders), ModelIdentity(model.name, "in training"), runtime)
    entries = tuning.catalog.entries[:count]
    captions = read_captions(entries[0].places[CAPTIONS]) if pipeline.has_text else {}
    samples = []
    for entry in entries:
        if pipeline.has_text:
            start: str | Path = next(iter(captions.get(entry.sha256, ())), "")
        else:
            start = entry.places["renders_cond"] / entry.sha256
        samples.append(sample_flow(pipeline, entry.sha256, start))
    return samples


def sample_flow(pipeline: Pipeline, sha256: str, start: str | Path) -> StageSample:
    """One item, from its caption or from the first of its pictures."""
    label = start if isinstance(start, str) else sha256[:8]
    try:
        if isinstance(start, str):
            bundle = pipeline.sample(prompt=start, seed=0)
        else:
            bundle = pipeline.sample(read_picture(sorted(start.glob("*.png"))[0]), seed=0)
    except InputError:  # the model found no object, or there is no caption
        return StageSample(label=label, grid=1)
    best = min(pipeline.formats, key=list(DRAWN).index)
    decoded = getattr(pipeline.decode(bundle, formats=[best])[0], best)
    picture = bundle.tensors.get("thumbnail")
    draw = partial(DRAWN[best], decoded, pipeline.runtime)
    return StageSample(label=label, grid=1, picture=picture, draw=draw)


@torch.no_grad()
def sample_decoder(tuning: Tuning, count: int, runtime: Runtime) -> list[StageSample]:
    """Items as the decoder makes them of their latents, beside one of their pictures."""
    state = {name: generator.get_state() for name, generator in tuning.generators.items()}
    networks = dict(tuning.networks.items())
    encoder = networks.pop(LATENT_ENCODER, None)
    ((name, decoder),) = networks.items()
    kind = next(kind for kind, network in DECODERS.items() if network == name)
    samples = []
    for entry in tuning.catalog.entries[:count]:
        item = read_seen(tuning, entry, surface=False)
        x = packed([item.coords], [item.feats]).to(tuning.device)
        latent = x if encoder is None else encoder(x)[0]
        decoded = READ[kind](decoder, decoder(latent))[0]
        picture = ((item.picture * item.alpha + 1 - item.alpha).permute(1, 2, 0) * 255).byte()
        draw = partial(DRAWN[kind], decoded, runtime)
        samples.append(StageSample(label=entry.sha256[:8], grid=1, picture=picture, draw=draw))
    for name, generator in tuning.generators.items():
        generator.set_state(state[name])
    return samples


# --- pictures ----------------------------------------------------------------------------------------


def draw_gaussians(gaussians: Gaussians, runtime: Runtime, camera: Camera, size: int) -> Tensor:
    return render_gaussians(gaussians, camera, size, runtime).over(WHITE)


def draw_field(field: RadianceField, runtime: Runtime, camera: Camera, size: int) -> Tensor:
    return render_radiance(field, camera, size, runtime, supersampling=2).over(WHITE)


def draw_mesh(mesh: CubeMesh, runtime: Runtime, camera: Camera, size: int) -> Tensor:
    """In its own colors, or in those of its normals."""
    if not len(mesh.faces):
        return torch.ones(size, size, 3)
    rasterizer = cast(Rasterize, runtime.kernels["rasterize"])
    colors = None if mesh.attributes is None else mesh.attributes[:, :3]
    seen = draw_surface(Mesh(mesh.vertices, mesh.faces), View(camera), size, rasterizer, attributes=colors)
    picture = seen.normal if seen.attributes is None else seen.attributes
    return torch.where(seen.depth > 0, picture, 1.0)[0].permute(1, 2, 0)


DRAWN: Mapping[str, Callable[[Any, Runtime, Camera, int], Tensor]] = {  # the first that a model has is drawn
    "gaussians": draw_gaussians,
    "mesh": draw_mesh,
    "radiance_field": draw_field,
}
