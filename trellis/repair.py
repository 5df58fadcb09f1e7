"""Undo a circulating wrong advice: a `pipeline.json` whose latent flow was set to the structure flow.

The two predict different things on different grids, so that file cannot work. What sent people there was a
loader that hid the real error (a partial download, or too little memory) behind a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trellis.settings import LATENT_FLOW, STRUCTURE_FLOW, misdirected
from trellis_core.errors import ModelError


def right_latent_flow(models: Mapping[str, str]) -> str | None:
    """What the latent flow should be: the released name beside the structure flow. None where it is fine."""
    if not misdirected(models):
        return None
    folder, slash, name = models.get(STRUCTURE_FLOW, models[LATENT_FLOW]).rpartition("/")
    return folder + slash + name.replace("ss_flow_", "slat_flow_", 1).replace("_16l8_", "_64l8p2_", 1)


def repair_pipeline(path: Path) -> str | None:
    """Mend a `pipeline.json` in place; returns the name that it has now, None when it was fine.

    A link into a download cache is replaced by a file of its own: other revisions keep theirs.
    Raises `ModelError` for a file that cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        models = content["args"]["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="download the model again") from error
    name = right_latent_flow(models)
    if name is not None:
        models[LATENT_FLOW] = name
        whole = path.with_name(f".{path.name}.part")  # a reader sees the old file or the new one
        whole.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        whole.replace(path)
    return name
