"""Where a model's files are: a package folder, a folder, the hub's local cache; and how they get there.

A model is a folder in the released layout: `pipeline.json` and, for each checkpoint `P` that it names,
`P.json` and `P.safetensors`. Finding never uses the network; `pull` does, and only when it is called.
Knows no model by name: names, sizes and licences come as arguments.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trellis_core.errors import ModelError
from trellis_core.weights.verify import check_file

EMBEDDED = "embedded"
PIPELINE = "pipeline.json"
CHECKPOINTS = "ckpts"  # a model's own folder of networks, never an owner on the hub
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a hub repository; what is not known is None."""

    repository: str
    path: str
    size: int | None = None  # bytes
    sha256: str | None = None
    revision: str | None = None  # None: the main branch, which is what `find_cached` looks at

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"


def find_model(
    name: str,
    *,
    embedded: Path,  # folder of the model that travels in the package
    repositories: Mapping[str, str],  # model name -> hub repository
    cache: Path | None = None,
) -> Path:
    """The folder of a model that is present: `embedded`, a known name, a folder, a cached repository.

    Raises `ModelError` saying what was looked for, and the command that gets it.
    """
    if name == EMBEDDED:
        return _model_folder(embedded, hint="install the package again: its model is missing")
    if name in repositories or not Path(name).exists():
        repository = repositories.get(name, name)
        if not REPOSITORY.fullmatch(repository):
            known = ", ".join([EMBEDDED, *repositories])
            raise ModelError(
                f"there is no model `{name}`", hint=f"give a folder, `owner/name`, or one of: {known}"
            )
        found = find_cached(repository, PIPELINE, cache)
        if found is None:
            raise ModelError(
                f"the model `{name}` is not on this machine", hint=f"run `trellis models pull {name}`"
            )
        return found.parent
    return _model_folder(Path(name), hint="a model folder holds `pipeline.json` and `ckpts/`")


def find_checkpoint(
    reference: str,  # as written in pipeline.json
    root: Path,  # the model's folder
    *,
    model: str = "NAME",  # for the hint
    cache: Path | None = None,
) -> Path:
    """The stem `S` of a checkpoint whose `S.safetensors` exists, decided by what exists and nothing else.

    In this order: relative to the model's folder, a path of this machine, `owner/name/path` in the cache.
    `reference` may also name a folder or repository that holds `model.safetensors`, as image encoders do.
    Raises `ModelError` naming every place.
    """
    places = [root / reference, Path(reference).expanduser()]
    for place in places:
        for stem in (place, place / "model"):
            if weights_of(stem).is_file():
                return stem
            if config_of(stem).is_file() and stem.name != "model":
                raise ModelError(
                    f"`{weights_of(stem)}` is missing", hint=f"run `trellis models pull {model}`"
                )
    owner, _, rest = reference.partition("/")
    name, _, path = rest.partition("/")
    home = root  # what would hold it
    if owner and name and owner != CHECKPOINTS and not Path(reference).is_absolute():
        repository = f"{owner}/{name}"
        home = cache_folder(repository, cache) / "snapshots" / "main"
        for file in (f"{path}.safetensors", "model.safetensors") if path else ("model.safetensors",):
            found = find_cached(repository, file, cache)
            if found is not None:
                return found.with_suffix("")
        looked = f"`{places[0]}` and in the hub's cache of `{repository}`"
    else:
        looked = f"`{places[0]}`"
    if is_unfinished(home):
        raise ModelError(
            f"the checkpoint `{reference}` is not on this machine: its download was not finished",
            hint=f"run `trellis models pull {model}`: it continues where it stopped",
        )
    raise ModelError(
        f"the checkpoint `{reference}` is not on this machine (looked at {looked})",
        hint=f"run `trellis models pull {model}`",
    )


def is_unfinished(folder: Path) -> bool:
    """Whether a model's folder lies in the hub's cache, in a repository whose download was broken off."""
    if folder.parent.name != "snapshots":
        return False
    return any((folder.parents[1] / "blobs").glob("*.incomplete"))


def cache_folder(repository: str, cache: Path | None = None) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (cache or Path(constants.HF_HUB_CACHE)) / repo_folder_name(repo_id=repository, repo_type="model")


def weights_of(stem: Path) -> Path:
    return stem.with_name(stem.name + ".safetensors")


def config_of(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")


def find_cached(repository: str, path: str, cache: Path | None = None) -> Path | None:
    """A file of a hub repository in the local cache, or None. Never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, path, cache_dir=cache)
    return Path(found) if isinstance(found, str) else None


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits that tell trainings apart: names, sizes and 16 samples of 64 KiB of each file."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for sample in range(16):
                file.seek(size * sample // 16)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()[:16]


def list_remote(
    repository: str, *, revision: str | None = None, endpoint: str | None = None
) -> list[RemoteFile]:
    """The files of a repository in the released layout, with sizes and hashes. Asks the network."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise _explained(error, repository) from error
    return [
        RemoteFile(
            repository=repository,
            path=file.rfilename,
            size=file.size,
            sha256=file.lfs.sha256 if file.lfs else None,
            revision=revision,
        )
        for file in info.siblings or ()
        if file.rfilename.endswith((".json", ".safetensors", "merges.txt"))
    ]


def missing(files: Iterable[RemoteFile], cache: Path | None = None) -> list[RemoteFile]:
    """Those that are not in the local cache yet."""
    return [file for file in files if find_cached(file.repository, file.path, cache) is None]


def pull(
    files: Iterable[RemoteFile],
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
    on_file: Callable[[RemoteFile, int, int], None] | None = None,  # file, its number from 1, how many
) -> list[Path]:
    """Download what is missing and check every file. An interrupted download continues where it stopped.

    Raises `ModelError`: no network, licence not accepted, no such file, no space, damaged.
    """
    from huggingface_hub import constants, hf_hub_download

    wanted = list(files)
    _require_space(missing(wanted, cache), cache or Path(constants.HF_HUB_CACHE))
    paths = []
    for number, file in enumerate(wanted, start=1):
        if on_file is not None:
            on_file(file, number, len(wanted))
        try:
            path = hf_hub_download(
                file.repository, file.path, revision=file.revision, cache_dir=cache, endpoint=endpoint
            )
        except Exception as error:
            raise _explained(error, file.repository) from error
        check_file(Path(path), size=file.size, sha256=file.sha256)
        paths.append(Path(path))
    return paths


def _model_folder(folder: Path, hint: str) -> Path:
    if not (folder / PIPELINE).is_file():
        raise ModelError(f"`{folder}` is not a model: it has no `{PIPELINE}`", hint=hint)
    return folder


def _require_space(files: list[RemoteFile], folder: Path) -> None:
    needed = sum(file.size or 0 for file in files)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"the download needs {needed / 1e9:.1f} GB, `{folder}` has {free / 1e9:.1f} GB free",
            hint="free some space, or set HF_HOME to a folder on another disk",
        )


def _explained(error: Exception, repository: str) -> Exception:
    """A hub error as a `ModelError`; anything else comes back as it is."""
    from huggingface_hub import errors

    address = f"https://huggingface.co/{repository}"
    again = "then run the command again: finished files are kept and the rest continues"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"`{repository}` asks you to accept its licence first",
            hint=f"accept it at {address}, log in with `hf auth login`, {again}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"`{repository}` does not exist on the hub, or is private",
            hint="check the name, or log in with `hf auth login`",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError("downloads are switched off", hint="unset HF_HUB_OFFLINE, or drop `--offline`")
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"`{repository}` is no repository name", hint="write `owner/name`")
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", "no")
        return ModelError(f"the hub answered {status} for `{repository}`", hint=f"see {address}, {again}")
    if isinstance(error, OSError) and error.errno == 28:
        return ModelError("the disk is full", hint=f"free some space, {again}")
    network = type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
        "urllib3",
    )
    if network or isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        return ModelError(
            f"the hub cannot be reached for `{repository}`",
            hint=f"check the network or the proxy, or name a mirror in HF_ENDPOINT, {again}",
        )
    return error
