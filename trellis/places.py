"""Where the files of a TRELLIS v1 model are on this machine. Nothing is downloaded, and torch stays away.

What was downloaded while the models had another owner is found as well.
"""

from __future__ import annotations

from pathlib import Path

from trellis.weights import REPOSITORIES, canonical, former
from trellis_core.errors import ModelError
from trellis_core.weights import hub


def find_folder(name: str) -> Path:
    """The folder of `image-large`, `text-base`, ..., of a folder's path, or of a cached hub repository.

    Raises `ModelError` saying what was looked for, and the command that gets it.
    """
    wanted = canonical(name)
    if wanted == hub.EMBEDDED:
        raise ModelError("the embedded model is one of TRELLIS.2", hint="open it with `trellis2.load()`")
    found = find_renamed(REPOSITORIES.get(wanted, wanted))
    return found or hub.find_model(wanted, embedded=Path(wanted), repositories=REPOSITORIES)


def find_renamed(repository: str) -> Path | None:
    """The folder of a model that is in the cache under its former owner's name only."""
    old = former(repository)
    if old is None or hub.find_cached(repository, hub.PIPELINE) is not None:
        return None
    found = hub.find_cached(old, hub.PIPELINE)
    return None if found is None else found.parent


def find_checkpoint(reference: str, folder: Path, *, model: str = "NAME") -> Path:
    """The stem of a checkpoint's files, of the model in `folder`. Raises `ModelError` naming every place."""
    try:
        return hub.find_checkpoint(canonical(reference), folder, model=model)
    except ModelError:
        old = former(canonical(reference))
        if old is None or hub.find_cached(repository_of(old), f"{old.split('/', 2)[2]}.safetensors") is None:
            raise
        return hub.find_checkpoint(old, folder, model=model)


def repository_of(reference: str) -> str:
    """`owner/name` of `owner/name/path`."""
    return "/".join(reference.split("/")[:2])
