"""The models by name, and how one becomes an engine on this machine. The only module that knows model versions.

    --model NAME -> find_model -> Found (folder, why) -> load_engine -> trellis2.Pipeline

Finding a model imports no torch; nothing here downloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trellis_cli.console import Console
from trellis_cli.options import Precision, Tier, parse_kernels
from trellis_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from trellis2.pipeline import Pipeline
    from trellis_core.weights.bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that has a name here."""

    summary: str
    licence: str
    repository: str | None = None    # on the hub; None is shipped in the package


MODELS: Mapping[str, Model] = {    # best first: the order of `--model auto`
    "trellis2-4b": Model(
        summary="TRELLIS.2, 4 billion parameters: 512 to 1536 voxels, PBR materials",
        licence="MIT",
        repository="microsoft/TRELLIS.2-4B",
    ),
    "embedded": Model(summary="small model in the package: runs anywhere, simple objects", licence="MIT"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A model on this machine."""

    name: str
    folder: Path    # holds pipeline.json
    reason: str     # why this one
