"""What is known of released models before they are downloaded: configurations, sizes, files.

Reads the configurations that travel with the package (`configs/trellis2`); imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BYTES_OF_ENCODER = 1_212_559_808  # DINOv3 ViT-L/16, float32
STORED = {"image_encoder": 4}  # bytes of a stored number; all others are 16-bit


def configuration_folder(name: str) -> Path | None:
    """The folder with `pipeline.json` and `ckpts/*.json` of a released model; None for an unknown one."""
    spec = find_spec("trellis2")
    package = (
        Path(next(iter(spec.submodule_search_locations or ()), "trellis2")) if spec else Path("trellis2")
    )
    for folder in (package / "_configs" / name, package.parent / "configs" / "trellis2" / name):
        if (folder / "pipeline.json").is_file():
            return folder
    return None


def released_sizes(name: str) -> dict[str, int]:
    """Bytes of each network that a run from a picture uses; empty for a model we do not know."""
    from trellis2.weights import CHECKPOINTS

    folder = configuration_folder(name)
    if folder is None:
        return {}
    paths = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))["args"]["models"]
    sizes = {network: CHECKPOINTS[_stem(path)].bytes for network, path in paths.items()}
    return {**sizes, "image_encoder": BYTES_OF_ENCODER}


def released_networks(name: str) -> dict[str, tuple[Mapping[str, Any], int]]:
    """Configuration and number of parameters of each network, as `describe_networks` takes them."""
    from trellis2.weights import DINOV3_VITL16

    folder = configuration_folder(name)
    if folder is None:
        return {}
    paths = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))["args"]["models"]
    networks: dict[str, tuple[Mapping[str, Any], int]] = {}
    for network, size in released_sizes(name).items():
        if network == "image_encoder":
            config: Mapping[str, Any] = DINOV3_VITL16
        else:
            file = folder / f"{_stem(paths[network])}.json"
            config = json.loads(file.read_text(encoding="utf-8"))
        networks[network] = (config, size // STORED.get(network, 2))
    return networks


def _stem(path: str) -> str:
    """`ckpts/NAME` of a checkpoint that may lie in another repository."""
    return "/".join(path.split("/")[-2:])
