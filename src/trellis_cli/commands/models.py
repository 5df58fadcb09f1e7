"""`trellis models list | pull | verify`: what is on this machine, get more, check what is there.

Only `pull` uses the network.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis.weights import canonical
from trellis_cli import options as o
from trellis_cli import registry, released
from trellis_cli.console import Beginning, Console
from trellis_core.errors import ModelError
from trellis_core.models.matting_release import RELEASES as MATTING
from trellis_core.models.matting_release import WEIGHTS, MattingRelease
from trellis_core.weights import hub
from trellis_core.weights.verify import check_file

app = typer.Typer(no_args_is_help=True)

TEXTURING = "texturing_pipeline.json"
TOKENIZER = ("vocab.json", "merges.txt")  # of text encoders
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A model of `trellis models list`, or `owner/name`.", show_default=False
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...", help="Models or folders [default: all that are here].", show_default=False
    ),
]
SizeOnly = Annotated[bool, typer.Option("--size-only", help="Say how much would be downloaded, and stop.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One model as it is on this machine."""

    name: str
    state: str  # "ready", "incomplete", "absent" or "damaged"
    bytes: int  # on the disk; of an absent model: to download, 0 if not known
    folder: Path | None
    missing: tuple[str, ...] = ()


def status_of(name: str) -> Status:
    """Look at the disk and nothing else."""
    try:
        folder = registry.find_model(name).folder
    except ModelError:
        return Status(
            name=name, state="absent", bytes=sum(released.released_sizes(name).values()), folder=None
        )
    missing = tuple(registry.missing_checkpoints(folder))
    size = sum(path.stat().st_size for path in weight_files(folder).values())
    return Status(
        name=name, state="incomplete" if missing else "ready", bytes=size, folder=folder, missing=missing
    )


def weight_files(folder: Path) -> dict[str, Path]:
    """Checkpoint as written in the pipeline files -> its safetensors file, for those that are here."""
    stems = {reference: registry.checkpoint(reference, folder) for reference in all_references(folder)}
    return {reference: hub.weights_of(stem) for reference, stem in stems.items() if stem is not None}


def all_references(folder: Path) -> list[str]:
    """Checkpoints that `pipeline.json` and, if there is one, `texturing_pipeline.json` name."""
    references = dict.fromkeys(registry.references(folder).values())
    if (folder / TEXTURING).is_file():
        try:
            args = jsonlib.loads((folder / TEXTURING).read_text(encoding="utf-8"))["args"]
            references.update(dict.fromkeys(args["models"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"`{folder / TEXTURING}` is damaged: {error}", hint="pull the model again"
            ) from error
    return list(references)


@app.command("list")
def models_list(
    ctx: typer.Context,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Say which models are on this machine."""
    console: Console = ctx.obj
    rows, facts = [row("model", "state", "size", "licence", "picture", "text", "what it is")], []
    for name, model in registry.MODELS.items():
        status, damage = examine(name)
        pictures, text = model.pictures, model.text
        if status.folder is not None and not damage:
            pictures, text = registry.has_pictures(status.folder), registry.has_text(status.folder)
        facts.append(
            {
                **describe(status),
                "version": model.version,
                "licence": model.licence,
                "repository": model.repository,
                "summary": model.summary,
                "pictures": pictures,
                "text": text,
            }
        )
        size = gigabytes(status.bytes)
        rows.append(row(name, status.state, size, model.licence, yes(pictures), yes(text), model.summary))
        if damage:
            rows.append(f"{'':<20}{damage}")
        elif status.state != "ready" and model.repository:
            rows.append(row("", f"get it with `trellis models pull {name}`"))
    rows += ["", row("background", "state", "size", "licence", "", "", "what it is")]
    for name, release in MATTING.items():
        state = "absent" if release.find() is None else "ready"
        rows.append(row(name, state, gigabytes(release.bytes), release.licence, "", "", release.summary))
    rows.append(row("", "get one with `trellis models pull NAME`, for `--background NAME`"))
    console.facts["models"] = facts
    console.facts["background"] = [describe_matting(name) for name in MATTING]
    console.result(rows)


def examine(name: str) -> tuple[Status, str]:
    """The status of a model, and what to say when its `pipeline.json` cannot be used."""
    try:
        return status_of(name), ""
    except ModelError as error:
        folder = registry.find_model(name).folder
        return Status(name=name, state="damaged", bytes=0, folder=folder), f"{error.message}; {error.hint}"


def row(
    name: str,
    state: str,
    size: str = "",
    licence: str = "",
    pictures: str = "",
    text: str = "",
    summary: str = "",
) -> str:
    return f"{name:<20}{state:<12}{size:>9}  {licence:<14}{pictures:<9}{text:<6}{summary}".rstrip()


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size else ""


def yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


@app.command("pull")
def models_pull(
    ctx: typer.Context,
    name: Name,
    size_only: SizeOnly = False,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Download a model into the hub's local cache. Continues where an earlier download stopped."""
    console: Console = ctx.obj
    if name == hub.EMBEDDED:
        registry.find_model(name)
        console.result(["the embedded model travels in the package: nothing to download"])
        console.facts["model"] = describe(status_of(name))
        return
    if name in MATTING:
        files = [matting_file(console, MATTING[name])]
        paths = pull(console, files, MATTING[name].repository, size_only)
        console.facts["model"] = describe_matting(name)
        console.result([str(path) for path in paths])
        return
    known = registry.MODELS.get(name)
    repository = known.repository if known and known.repository else canonical(name)
    if not hub.REPOSITORY.fullmatch(repository):
        raise ModelError(
            f"there is no model `{name}` to download",
            hint=f"give `owner/name`, or one of: {', '.join(registry.MODELS)}",
        )
    with console.working() as progress:
        progress(Beginning("list"))
        files = files_of(repository)
    paths = pull(console, files, repository, size_only)
    if size_only:
        return
    folder = next(path.parent for file, path in zip(files, paths, strict=True) if file.path == hub.PIPELINE)
    console.facts["model"] = {"name": name, "folder": str(folder)}
    console.result([str(folder)])


def pull(console: Console, files: list[hub.RemoteFile], repository: str, size_only: bool) -> list[Path]:
    """Say how much is missing and, unless that is all, fetch it."""
    with console.working() as progress:
        wanted = hub.missing(files)
        size = sum(file.size or 0 for file in wanted)
        console.facts["download"] = {"files": len(wanted), "bytes": size}
        console.say(
            "download", f"{len(wanted)} of {len(files)} files, {size / 1e9:.2f} GB, from {repository}"
        )
        if size_only:
            return []
        if console.quiet or console.json or console.events:
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()

        def started(file: hub.RemoteFile, number: int, count: int) -> None:
            progress(Beginning("download", number - 1, count))
            if number == count or file.size:
                console.event("file", file=str(file), bytes=file.size, number=number, count=count)

        paths = hub.pull(files, on_file=started)
        progress(Beginning("download", len(files), len(files)))
    return paths


def matting_file(console: Console, release: MattingRelease) -> hub.RemoteFile:
    """The weights of a background removal network as the hub has them now. Asks the network."""
    for file in hub.list_remote(release.repository):
        if file.path == WEIGHTS:
            if release.sha256 is not None and file.sha256 not in (None, release.sha256):
                console.warn(f"{release.repository} has changed its weights since this version was made")
            return file
    raise ModelError(f"`{release.repository}` has no file `{WEIGHTS}`", hint="report it there")


@app.command("verify")
def models_verify(
    ctx: typer.Context,
    names: Names = None,
    json: o.Json = False,
    json_events: o.JsonEvents = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Check every weights file: header, size, and the published hash where it is known."""
    console: Console = ctx.obj
    present = [name for name in registry.MODELS if registry.is_here(name)]
    present += [name for name, release in MATTING.items() if release.find() is not None]
    rows, broken = [], []
    facts: list[dict[str, Any]] = []
    with console.working() as progress:
        for name in names or present:
            problems = named_problems(name, lambda n, of: progress(Beginning("verify", n, of)))
            facts.append({"name": name, "problems": problems})
            rows.append(f"{name:<14}{'damaged' if problems else 'whole'}")
            rows += [f"{'':<14}{problem}" for problem in problems]
            broken += [name] if problems else []
    console.facts["models"] = facts
    console.result(rows)
    if broken:
        raise ModelError(
            f"damaged or incomplete: {', '.join(broken)}", hint=f"run `trellis models pull {broken[0]}`"
        )


def named_problems(name: str, on_file: Callable[[int, int], None]) -> list[str]:
    """What is wrong with a model that is here, its `pipeline.json` included."""
    if name not in MATTING:
        registry.find_model(name)
    try:
        return verify_model(name, thorough=True, on_file=on_file)
    except ModelError as error:
        return [f"{error.message}; {error.hint}"]


def verify_model(name: str, *, thorough: bool, on_file: Any = None) -> list[str]:
    """What is wrong with a model that should be here. `thorough` compares hashes, which reads every byte."""
    if name in MATTING:
        return verify_matting(name, thorough=thorough)
    folder = registry.find_model(name).folder
    problems = [f"`{reference}` is missing" for reference in registry.missing_checkpoints(folder)]
    files = weight_files(folder)
    for number, (reference, path) in enumerate(files.items()):
        if on_file is not None:
            on_file(number, len(files))
        try:
            check_file(
                path,
                size=published_size(reference, path),
                sha256=published_hash(path) if thorough else None,
            )
        except ModelError as error:
            problems.append(error.message)
    if on_file is not None:
        on_file(len(files), max(1, len(files)))
    return problems


def verify_matting(name: str, *, thorough: bool) -> list[str]:
    path = MATTING[name].find()
    if path is None:
        return ["it is not on this machine"]
    try:
        check_file(path, sha256=published_hash(path) if thorough else None)
    except ModelError as error:
        return [error.message]
    return []


def published_size(reference: str, path: Path) -> int | None:
    """Size of a released checkpoint in the hub's cache; None for files that only share its name."""
    stem = released.stem_of(reference)
    known = released.CHECKPOINTS.get(stem)
    if known is None or path.parents[2].name != "snapshots" or not known.published:
        return None
    return known.bytes if path.parents[3].name == f"models--{known.repository.replace('/', '--')}" else None


def published_hash(path: Path) -> str | None:
    """The hub's cache names the files behind its links by their SHA-256."""
    target = path.resolve()
    is_hash = len(target.name) == 64 and all(c in "0123456789abcdef" for c in target.name)
    return target.name if target.parent.name == "blobs" and is_hash else None


def files_of(repository: str) -> list[hub.RemoteFile]:
    """Every file that a model needs, the pipeline files first, then those of other repositories.

    Others come early because they are the ones that may ask for a licence. Asks the network, and downloads
    the pipeline files, which name the rest.
    """
    listing = {file.path: file for file in hub.list_remote(repository)}
    if hub.PIPELINE not in listing:
        raise ModelError(
            f"`{repository}` is not a model in the released layout: it has no `{hub.PIPELINE}`",
            hint="name a repository such as `microsoft/TRELLIS.2-4B`",
        )
    pipelines = [listing[path] for path in (hub.PIPELINE, TEXTURING) if path in listing]
    folder = hub.pull(pipelines)[0].parent
    own: list[hub.RemoteFile] = []
    others: list[hub.RemoteFile] = []
    listings: dict[str, dict[str, hub.RemoteFile]] = {}
    for reference in all_references(folder):
        if f"{reference}.safetensors" in listing:
            suffixes = (".json", ".safetensors", *(f".{name}" for name in TOKENIZER))
            own += [listing[reference + suffix] for suffix in suffixes if reference + suffix in listing]
            continue
        owner, _, rest = reference.partition("/")
        name, _, path = rest.partition("/")
        if owner == hub.CHECKPOINTS or not name:
            raise ModelError(
                f"`{repository}` has no file `{reference}.safetensors`, which its `{hub.PIPELINE}` names",
                hint="report it there",
            )
        other = f"{owner}/{name}"
        if other not in listings:
            listings[other] = {file.path: file for file in hub.list_remote(other)}
        names = [f"{path}.json", f"{path}.safetensors"] if path else ["config.json", WEIGHTS]
        names += [file for file in TOKENIZER if not path and file in listings[other]]
        absent = [file for file in names if file not in listings[other]]
        if absent:
            raise ModelError(
                f"`{other}` has no file `{absent[0]}`, which `{repository}` needs", hint="report it there"
            )
        others += [listings[other][file] for file in names]
    return [*pipelines, *others, *own]


def describe(status: Status) -> dict[str, Any]:
    return {
        "name": status.name,
        "state": status.state,
        "bytes": status.bytes,
        "folder": None if status.folder is None else str(status.folder),
        "missing": list(status.missing),
    }


def describe_matting(name: str) -> dict[str, Any]:
    release = MATTING[name]
    path = release.find()
    return {
        "name": name,
        "state": "absent" if path is None else "ready",
        "bytes": release.bytes,
        "file": None if path is None else str(path),
        "licence": release.licence,
        "repository": release.repository,
        "summary": release.summary,
    }
