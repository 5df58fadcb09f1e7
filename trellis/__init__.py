"""TRELLIS v1: pictures and prompts to meshes, Gaussians and radiance fields.

import trellis

pipeline = trellis.load("text-xlarge")
asset = pipeline.run(prompt="a chair shaped like an avocado", seed=42)
asset.save("chair.glb")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trellis.pipeline import Pipeline
    from trellis_core.runtime import Runtime

__all__ = ["load"]


def load(name_or_path: str | Path = "image-large", runtime: Runtime | None = None) -> Pipeline:
    """A pipeline for `image-large`, `text-base`, `text-large`, `text-xlarge`, a folder in the released layout
    or a cached hub repository (under its present or its former owner's name).

    Without a `runtime` the best device is chosen, with the precision, kernels and residency that fit it.
    Nothing is downloaded. Raises `ModelError` when the model is not on this machine or damaged.
    """
    from trellis.loading import (
        find_checkpoints,
        find_structure_encoder,
        identify,
        open_networks,
        plan_for,
    )
    from trellis.pipeline import Pipeline
    from trellis.places import find_folder
    from trellis.settings import read_settings
    from trellis.weights import canonical
    from trellis_core.kernels.table import resolve_kernels
    from trellis_core.memory.budget import MemoryRequest
    from trellis_core.memory.devices import describe_device, select_device
    from trellis_core.runtime import Runtime
    from trellis_core.weights import hub

    name = canonical(str(name_or_path))
    folder = find_folder(name)
    settings = read_settings(folder / hub.PIPELINE)
    stems = find_checkpoints(folder, settings, name)
    if runtime is None:
        device = select_device("auto")
        info = describe_device(device)
        plan = plan_for(folder, info, MemoryRequest())
        runtime = Runtime.of_plan(plan, device, resolve_kernels(info))
    known = folder.name if Path(name).is_dir() else name  # files get no local paths
    networks = open_networks({**stems, **find_structure_encoder(folder, settings)})
    return Pipeline(settings, networks, identify(known, folder, stems), runtime)
