"""TRELLIS.2: pictures to 3D assets with PBR materials.

import trellis2

pipeline = trellis2.load("embedded")
asset = pipeline.run("chair.png", seed=42)
asset.save("chair.glb")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trellis2.pipeline import Pipeline
    from trellis_core.runtime import Runtime

__all__ = ["load"]

EMBEDDED_FOLDER = Path(__file__).parent / "_embedded"
REPOSITORIES = {"trellis2-4b": "microsoft/TRELLIS.2-4B"}


def load(name_or_path: str | Path = "embedded", runtime: Runtime | None = None) -> Pipeline:
    """A pipeline for `embedded`, `trellis2-4b`, a folder in the released layout or a cached hub repository.

    Without a `runtime` the best device is chosen, with the precision, kernels and residency that fit it.
    Nothing is downloaded. Raises `ModelError` when the model is not on this machine or damaged.
    """
    from trellis2.loading import (
        find_checkpoints,
        find_structure_encoder,
        identify,
        open_networks,
        plan_for,
    )
    from trellis2.pipeline import Pipeline
    from trellis2.settings import read_settings
    from trellis_core.kernels.table import resolve_kernels
    from trellis_core.memory.budget import MemoryRequest
    from trellis_core.memory.devices import describe_device, select_device
    from trellis_core.runtime import Runtime
    from trellis_core.weights import hub

    name = str(name_or_path)
    folder = hub.find_model(name, embedded=EMBEDDED_FOLDER, repositories=REPOSITORIES)
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
