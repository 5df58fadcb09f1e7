"""A saved run: sampled latents and what made them, in one safetensors file.

`export` and `render` start from it without sampling again. Knows nothing about what the tensors mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trellis_core.errors import InputError, OutputError

FORMAT = "trellis-bundle"
VERSION = 1
THUMBNAIL = "thumbnail"  # uint8 [h, w, 3]
ORIGIN = ("model", "condition", "pipeline_type", "resolution", "seed", "samplers", "edit", "version")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which weights made a result."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """Tensors by name, and JSON-able facts: settings, seed, `model` = {name, fingerprint}."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def thumbnail(self) -> Tensor | None:  # uint8 [h, w, 3]
        return self.tensors.get(THUMBNAIL)

    def require_model(self, identity: ModelIdentity) -> None:
        """Raises `InputError` when another model made the bundle."""
        made_by = self.info.get("model", {})
        if made_by.get("fingerprint") != identity.fingerprint:
            name = made_by.get("name")
            if name == identity.name:
                raise InputError(
                    f"the bundle was made by other weights of the model `{name}` than those that are here",
                    hint="sample it again, or pass the folder of those weights: `--model PATH`",
                )
            raise InputError(
                f"the bundle was made by the model `{name or 'unknown'}`, not by `{identity.name}`",
                hint=f"pass `--model {name or 'NAME'}`",
            )

    def save(self, path: Path | str) -> Path:
        """Write the bundle, whole or not at all. Raises `OutputError`."""
        path = Path(path)
        metadata = {"format": FORMAT, "version": str(VERSION), "info": json.dumps(self.info)}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        try:
            write_whole(path, save(tensors, metadata=metadata))
        except OSError as error:
            raise OutputError(
                f"could not write `{path}`: {error.strerror or error}",
                hint="check the folder, its permissions and the free space",
            ) from error
        return path

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Read a bundle. Raises `InputError` for anything that is not a whole bundle of a known version."""
        path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"`{path}` {what}", hint="give a bundle, a file written with `--save-bundle`")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InputError(
                        f"`{path}` is a safetensors file but not a bundle",
                        hint="give a file written with `--save-bundle`",
                    )
                version = metadata.get("version")
                if version != str(VERSION):
                    raise InputError(
                        f"`{path}` has bundle version {version}, this program reads {VERSION}",
                        hint="use the version of `trellis` that wrote it, or sample again",
                    )
                info = json.loads(metadata["info"])
                # copied: a mapped tensor is not aligned, and sums over it round differently
                return cls({name: file.get_tensor(name).clone() for name in file.keys()}, info)  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise InputError(
                f"`{path}` is damaged or no bundle: {error}", hint="sample again with `--save-bundle`"
            ) from error


def provenance(bundle: Bundle) -> dict[str, Any]:
    """What a finished file says about its origin."""
    return {"generator": "trellis", **{name: bundle.info[name] for name in ORIGIN if name in bundle.info}}


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
