"""What is known of released models before they are downloaded: configurations, sizes, files.

Reads the configurations that travel with the packages (`configs/trellis*`); imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trellis import weights as v1
from trellis2 import weights as v2
from trellis_cli import registry

CHECKPOINTS: Mapping[str, v1.Checkpoint | v2.Checkpoint] = {**v1.CHECKPOINTS, **v2.CHECKPOINTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A published encoder of pictures or prompts, float32."""

    bytes: int  # of the file
    parameters: int  # of the half that a run loads
    args: Mapping[str, Any]  # as its configuration says


ENCODERS: Mapping[str, Encoder] = {  # by hub repository
    v2.IMAGE_ENCODER: Encoder(bytes=1_212_559_808, parameters=303_129_600, args=v2.DINOV3_VITL16),
    "facebook/dinov2-with-registers-large": Encoder(
        bytes=1_217_490_944, parameters=304_372_736, args=v1.DINOV2_VITL14
    ),
    "openai/clip-vit-large-patch14": Encoder(
        bytes=1_710_466_052, parameters=123_060_480, args=v1.CLIP_VITL14
    ),
}


def configuration_folder(name: str) -> Path | None:
    """The folder with `pipeline.json` and `ckpts/*.json` of a released model; None for an unknown one."""
    return next((folder / name for folder in _folders() if (folder / name / "pipeline.json").is_file()), None)


def released_sizes(name: str) -> dict[str, int]:
    """Bytes of the file of each network that a run uses; empty for a model we do not know."""
    folder = configuration_folder(name)
    if folder is None:
        return {}
    return {
        network: ENCODERS[path].bytes if path in ENCODERS else CHECKPOINTS[stem_of(path)].bytes
        for network, path in registry.references(folder).items()
    }


def released_networks(name: str) -> dict[str, tuple[Mapping[str, Any], int]]:
    """Configuration and number of parameters of each network, as `describe_networks` takes them."""
    folder = configuration_folder(name)
    if folder is None:
        return {}
    return {network: _network(path) for network, path in registry.references(folder).items()}


def stem_of(path: str) -> str:
    """`ckpts/NAME` of a checkpoint that may lie in another repository."""
    return "/".join(path.split("/")[-2:])


def _network(path: str) -> tuple[Mapping[str, Any], int]:
    if path in ENCODERS:
        return {"args": ENCODERS[path].args}, ENCODERS[path].parameters
    stem = stem_of(path)  # its configuration may lie with another model
    files = [file for folder in _folders() for file in sorted(folder.glob(f"*/{stem}.json"))]
    return json.loads(files[0].read_text(encoding="utf-8")), CHECKPOINTS[stem].bytes // 2


def _folders() -> list[Path]:
    """Where the configurations of models lie: in the installed packages, or in `configs` beside them."""
    found = []
    for version in (registry.V2, registry.V1):
        spec = find_spec(version)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        package = Path(places[0] if places else version)
        found += [package / "_configs", package.parent / "configs" / version]
    return found
