"""From a folder of the user's meshes to training data: voxels, latents, pictures, tables.

    DATA/dual_grid_R/SHA.vxz              vertices uint8 [3], intersected uint8 (bits x, y, z)
    DATA/pbr_voxels_R/SHA.vxz             base_color, metallic, roughness, alpha
    DATA/shape_latents/ENCODER_R/SHA.npz  feats float32 [N, C], coords uint8 [N, 3]; so pbr_latents/
    DATA/ss_latents/ENCODER/SHA.npz       z float32 [C, r, r, r]
    DATA/renders_cond/SHA/                000.png, ..., transforms.json
    DATA/**/metadata.csv                  one row per asset and folder, keyed by sha256
    DATA/data_R.json                      which folder plays which role, for the trainers
    DATA/records/SHA.json                 what is done for one file; makes the work resumable

The layout is the released one, without the pickled mesh dumps. A step that is recorded and whose file exists
is not made again, unless another encoder makes it.
Letters: N voxels or tokens, R voxel grid, r structure latent, C channels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trellis2.condition_views import TRANSFORMS, ViewSettings, write_views
from trellis2.dual_grid import mesh_to_dual_grid
from trellis2.loading import load_network, network_config
from trellis2.materials import IngestedMesh, read_ingested
from trellis2.voxelize import Average, voxelize_material
from trellis_core.errors import InputError, ModelError, OutOfMemory, TrellisError, UsageError
from trellis_core.io.files import write_file
from trellis_core.io.meshes import SUFFIXES
from trellis_core.io.voxel_files import pbr_to_bytes
from trellis_core.io.vxz import encode_vxz, read_vxz
from trellis_core.kernels.table import resolve_kernels
from trellis_core.memory.devices import describe_device
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.crew import Lost, run_tasks
from trellis_core.weights import hub

# where a model may keep the encoders that its pipelines do not name, in the order in which they are tried
ENCODERS: Mapping[str, tuple[str, ...]] = {
    "shape": ("ckpts/shape_slat_encoder", "ckpts/shape_enc_next_dc_f16c32_fp16"),
    "pbr": ("ckpts/tex_slat_encoder", "ckpts/tex_enc_next_dc_f16c32_fp16"),
    "structure": (
        "ckpts/sparse_structure_encoder",
        "ckpts/ss_enc_conv3d_16l8_fp16",
        "microsoft/TRELLIS-image-large/ckpts/ss_enc_conv3d_16l8_fp16",
    ),
}
RECORDS, RENDERS, STATISTICS, TABLE = "records", "renders_cond", "asset_stats", "metadata.csv"
SETTINGS_NOTE = "made_by"  # of a step's record: what the result depends on beside the file

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    resolution: int  # R
    encoders: Mapping[str, Path] = field(default_factory=dict)  # role -> stem; a role without one is left out
    views: ViewSettings = field(default_factory=ViewSettings)
    structure_grid: int | None = None  # cells along an axis of the structure encoder's input
    average: Average = "released"  # how materials are averaged in a voxel
    max_faces: int = 20_000_000
    seed: int = 0
    device: str = "cpu"
    threads: int = 1  # of each process


@dataclass(frozen=True, slots=True)
class Item:
    """One file of the user."""

    sha256: str
    path: Path
    name: str  # relative to the user's folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one file."""

    name: str
    sha256: str
    rejected: str = ""  # why; empty: everything asked for is there
    made: tuple[str, ...] = ()  # steps of this run; the others were there before
    seconds: float = 0.0


def find_items(folder: Path) -> tuple[list[Item], list[Outcome]]:
    """Every mesh file below `folder`, by name, and those that are left out: unreadable, or there twice.

    Raises `InputError` when there is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise InputError(
            f"`{folder}` holds no mesh",
            hint=f"give a folder with files of these kinds: {', '.join(SUFFIXES)}",
        )
    items: dict[str, Item] = {}
    left_out = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            sha256 = hash_of(path)
        except OSError as error:
            left_out.append(Outcome(name, "", f"it cannot be read: {error.strerror}"))
            continue
        if sha256 in items:
            left_out.append(Outcome(name, sha256, f"the same file as {items[sha256].name}"))
        else:
            items[sha256] = Item(sha256, path.resolve(), name)
    return list(items.values()), left_out


def find_encoders(folder: Path) -> dict[str, Path]:
    """The encoders that a model folder has: role -> stem of its files."""
    found = {}
    for role, references in ENCODERS.items():
        for reference in references:
            try:
                found[role] = hub.find_checkpoint(reference, folder)
                break
            except ModelError:
                continue
    return found


def structure_grid_of(encoders: Mapping[str, Path], structure_resolution: int) -> int | None:
    """Cells along an axis that the structure encoder takes, given the structure flow's latent grid."""
    if "structure" not in encoders:
        return None
    levels = len(network_config(encoders["structure"])["args"]["channels"])
    return int(structure_resolution * 2 ** (levels - 1))


def ingest(
    folder: Path,
    data: Path,
    settings: IngestSettings,
    *,
    workers: int = 1,  # processes; 0: this one
    seconds: float = 1800.0,  # limit of one file
    on_outcome: Callable[[Outcome, int, int], None] = lambda outcome, done, count: None,
) -> list[Outcome]:
    """Ingest every mesh below `folder` into `data`; files that cannot be used are reported, not raised.

    The tables are written at the end, also when it is interrupted. Raises `InputError` for a folder without
    meshes, `UsageError` for settings that make no sense, `OutputError` when `data` cannot be written.
    """
    check(settings)
    items, outcomes = find_items(folder)
    count = len(items) + len(outcomes)

    def done(item: Item, result: Outcome | Lost) -> None:
        if isinstance(result, Lost):
            result = Outcome(item.name, item.sha256, result.reason)
            save_record(data, item, {**read_record(data, item.sha256), "rejected": result.rejected})
        outcomes.append(result)
        on_outcome(result, len(outcomes), count)

    try:
        run_tasks(items, partial(Ingester, data, settings), workers=workers, seconds=seconds, on_result=done)
    finally:
        write_tables(data, settings)
    return sorted(outcomes, key=lambda outcome: outcome.name)


def check(settings: IngestSettings) -> None:
    factor = max(
        (factor_of(stem) for role, stem in settings.encoders.items() if role != "structure"), default=1
    )
    if settings.resolution < 8 or settings.resolution % factor:
        raise UsageError(
            f"the resolution {settings.resolution} is no multiple of {factor} voxels, the model's token",
            hint=f"try {max(1, round(settings.resolution / factor)) * factor}",
        )


class Ingester:
    """The work of one process: its networks are loaded once, when first needed."""

    def __init__(self, data: Path, settings: IngestSettings) -> None:
        self.data, self.settings = data, settings
        torch.set_num_threads(settings.threads)
        device = torch.device(settings.device)
        self.runtime = Runtime(device=device, kernels=resolve_kernels(describe_device(device), {}))
        self.networks: dict[str, Any] = {}

    def __call__(self, item: Item) -> Outcome:
        began = time.monotonic()
        job = Job(self, item, read_record(self.data, item.sha256))
        made: list[str] = []
        problem = ""
        try:
            with torch.inference_mode():
                for name, step in steps_of(self.settings).items():
                    if not is_finished(self.data, item.sha256, name, self.settings, job.record):
                        facts = step(job)
                        job.finish(name, facts)
                        made.append(name)
        except InputError as error:
            problem = error.message
        except (OutOfMemory, MemoryError, torch.OutOfMemoryError):
            problem = "memory ran out"
        except TrellisError:
            raise  # the model or the disk: no fault of this file
        except Exception as error:  # whatever a strange mesh makes fail: it must not end the others
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        save_record(self.data, item, {**job.record, "rejected": problem})
        return Outcome(item.name, item.sha256, problem, tuple(made), round(time.monotonic() - began, 2))

    def network(self, role: str) -> Any:
        if role not in self.networks:
            network = load_network(self.settings.encoders[role], self.runtime)
            self.networks[role] = network.to(self.runtime.device)
        return self.networks[role]


@dataclass
class Job:
    """One file on its way; the mesh is read when a step needs it."""

    worker: Ingester
    item: Item
    record: Facts

    @property
    def settings(self) -> IngestSettings:
        return self.worker.settings

    @cached_property
    def mesh(self) -> IngestedMesh:
        return read_ingested(self.item.path, self.settings.max_faces)

    def place(self, step: str, suffix: str) -> Path:
        return self.worker.data / step / f"{self.item.sha256}{suffix}"

    def finish(self, step: str, facts: Facts) -> None:
        done = {step: {**facts, SETTINGS_NOTE: made_by(step, self.settings)}}
        self.record = {**self.record, "steps": {**self.record.get("steps", {}), **done}}
        save_record(self.worker.data, self.item, self.record)


# --- steps -------------------------------------------------------------------------------------------

Step = Callable[[Job], Facts]


def steps_of(settings: IngestSettings) -> dict[str, Step]:
    """Folder of the result -> how it is made, in the order in which they depend on each other."""
    steps: dict[str, Step] = {
        STATISTICS: lambda job: job.mesh.statistics,
        grids(settings): make_dual_grid,
        materials(settings): make_materials,
    }
    if "shape" in settings.encoders:
        steps[latents("shape", settings)] = make_shape_latent
    if "pbr" in settings.encoders:
        steps[latents("pbr", settings)] = make_material_latent
    if has_structure(settings):
        steps[latents("structure", settings)] = make_structure_latent
    if settings.views.views:
        steps[RENDERS] = make_views
    return steps


def make_dual_grid(job: Job) -> Facts:
    shape, resolution = job.mesh.shape, job.settings.resolution
    grid = mesh_to_dual_grid(shape.vertices, shape.faces, resolution)
    if len(grid.coords) == 0:
        raise InputError(f"its surface crosses no voxel edge at {resolution}", hint="raise `--resolution`")
    flags = (grid.crossings.byte() << torch.arange(3, dtype=torch.uint8)).sum(1, keepdim=True).byte()
    attributes = {"vertices": (grid.dual_vertices * 255).byte(), "intersected": flags}
    write_file(job.place(grids(job.settings), ".vxz"), [encode_vxz(grid.coords, attributes)])
    return {"dual_grid_converted": True, "dual_grid_size": len(grid.coords)}


def make_materials(job: Job) -> Facts:
    voxels = voxelize_material(job.mesh.look, job.settings.resolution, average=job.settings.average)
    content = encode_vxz(voxels.coords, pbr_to_bytes(voxels))
    write_file(job.place(materials(job.settings), ".vxz"), [content])
    return {"pbr_voxelized": True, "num_pbr_voxels": len(voxels.coords)}


def make_shape_latent(job: Job) -> Facts:
    coords, attributes = read_vxz(job.place(grids(job.settings), ".vxz"))
    bits = attributes["intersected"] >> torch.arange(3, dtype=torch.uint8)
    device = job.worker.runtime.device
    position = sparse(coords, attributes["vertices"].float() / 255).to(device)
    mean, _ = job.worker.network("shape")(position, (bits & 1).bool().to(device))
    return {"shape_latent_encoded": True, "shape_latent_tokens": save_latent(job, "shape", mean)}


def make_material_latent(job: Job) -> Facts:
    coords, attributes = read_vxz(job.place(materials(job.settings), ".vxz"))
    columns = torch.cat([attributes[n] for n in ("base_color", "metallic", "roughness", "alpha")], 1)
    voxels = sparse(coords, columns.float() / 127.5 - 1).to(job.worker.runtime.device)
    mean, _ = job.worker.network("pbr")(voxels)
    return {"pbr_latent_encoded": True, "pbr_latent_tokens": save_latent(job, "pbr", mean)}


def make_structure_latent(job: Job) -> Facts:
    side = job.settings.structure_grid
    with np.load(job.place(latents("shape", job.settings), ".npz")) as file:
        x, y, z = torch.from_numpy(file["coords"].astype(np.int64)).unbind(1)
    occupancy = torch.zeros(1, 1, side, side, side)  # type: ignore[arg-type]
    occupancy[0, 0, x, y, z] = 1
    mean, _ = job.worker.network("structure")(occupancy.to(job.worker.runtime.device))
    save_arrays(job.place(latents("structure", job.settings), ".npz"), z=mean[0].float().cpu().numpy())
    return {"ss_latent_encoded": True}


def make_views(job: Job) -> Facts:
    mesh, views = job.mesh, job.settings.views
    seed = int(job.item.sha256[:8], 16) + job.settings.seed
    folder = job.place(RENDERS, "")
    write_views(folder, mesh.look, mesh.offset, mesh.scale, views, seed, job.worker.runtime)
    return {"cond_rendered": True}


def sparse(coords: torch.Tensor, feats: torch.Tensor) -> SparseTensor:
    """One sample."""
    return SparseTensor(feats, torch.cat([torch.zeros_like(coords[:, :1]), coords], 1), 1)


def save_latent(job: Job, role: str, latent: SparseTensor) -> int:
    coords, feats = latent.coords[:, 1:].cpu(), latent.feats.float().cpu()
    if int(coords.max()) > 255:
        raise UsageError("token coordinates above 255 do not fit the format", hint="lower `--resolution`")
    path = job.place(latents(role, job.settings), ".npz")
    save_arrays(path, feats=feats.numpy(), coords=coords.numpy().astype(np.uint8))
    return len(coords)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    write_file(path, [packed.getvalue()])


# --- names -------------------------------------------------------------------------------------------


def grids(settings: IngestSettings) -> str:
    return f"dual_grid_{settings.resolution}"


def materials(settings: IngestSettings) -> str:
    return f"pbr_voxels_{settings.resolution}"


def latents(role: str, settings: IngestSettings) -> str:
    name = settings.encoders[role].name
    if role == "structure":
        return f"ss_latents/{name}"
    return f"{role}_latents/{name}_{settings.resolution}"


def has_structure(settings: IngestSettings) -> bool:
    """Whether the token grid is the grid of the structure encoder."""
    if not {"structure", "shape"} <= set(settings.encoders) or settings.structure_grid is None:
        return False
    return settings.resolution // factor_of(settings.encoders["shape"]) == settings.structure_grid


def factor_of(stem: Path) -> int:
    """Voxels per token along an axis."""
    return int(2 ** (len(network_config(stem)["args"]["model_channels"]) - 1))


def made_by(step: str, settings: IngestSettings) -> str:
    """What a step's result depends on beside the file."""
    for role, stem in settings.encoders.items():
        if step == latents(role, settings):
            return hub.fingerprint([hub.weights_of(stem)])
    if step == RENDERS:
        return f"{asdict(settings.views)} seed {settings.seed}"
    return settings.average if step == materials(settings) else ""


def is_finished(data: Path, sha256: str, step: str, settings: IngestSettings, record: Facts) -> bool:
    facts = record.get("steps", {}).get(step)
    if facts is None or facts.get(SETTINGS_NOTE) != made_by(step, settings):
        return False
    if step == STATISTICS:
        return True
    if step == RENDERS:
        return (data / step / sha256 / TRANSFORMS).is_file()
    suffix = ".vxz" if step in (grids(settings), materials(settings)) else ".npz"
    return (data / step / f"{sha256}{suffix}").is_file()


def hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def captions_of(path: Path) -> list[str]:
    """The lines of a text file beside the mesh: NAME.txt."""
    try:
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in lines if line.strip()]


# --- records and tables ------------------------------------------------------------------------------


def read_record(data: Path, sha256: str) -> Facts:
    """What is known of a file; nothing when there is no record or it is damaged."""
    try:
        record = json.loads((data / RECORDS / f"{sha256}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def save_record(data: Path, item: Item, record: Facts) -> None:
    about = {
        "sha256": item.sha256,
        "file_identifier": item.name,
        "local_path": str(item.path),
        "captions": captions_of(item.path),
    }
    content = json.dumps({**record, **about}, indent=1).encode()
    write_file(data / RECORDS / f"{item.sha256}.json", [content])


def write_tables(data: Path, settings: IngestSettings) -> None:
    """`metadata.csv` of every folder from all records, and the description that trainers read."""
    paths = sorted((data / RECORDS).glob("*.json"))
    records = [record for p in paths if (record := read_record(data, p.stem))]
    rows = [
        {
            "sha256": r["sha256"],
            "file_identifier": r["file_identifier"],
            "local_path": r["local_path"],
            "aesthetic_score": "",
            "captions": json.dumps(r.get("captions", [])),
        }
        for r in records
        if r.get("steps")
    ]
    write_table(data / TABLE, rows)
    folders = {step for r in records for step in r.get("steps", {})}
    for step in sorted(folders):
        found = [
            {"sha256": r["sha256"], **{k: v for k, v in r["steps"][step].items() if k != SETTINGS_NOTE}}
            for r in records
            if step in r.get("steps", {})
        ]
        write_table(data / step / TABLE, found)
    roles = {
        "asset_stats": STATISTICS,
        "dual_grid": grids(settings),
        "pbr_voxel": materials(settings),
        "render_cond": RENDERS,
        **{
            name: latents(role, settings)
            for role, name in (("shape", "shape_latent"), ("pbr", "pbr_latent"), ("structure", "ss_latent"))
            if role in settings.encoders
        },
    }
    present = {"base": ".", **{role: step for role, step in roles.items() if step in folders}}
    description = json.dumps({"ingested": present}, indent=1).encode()
    write_file(data / f"data_{settings.resolution}.json", [description])


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["sha256"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, [text.getvalue().encode()])


def summary(outcomes: Iterable[Outcome]) -> Facts:
    """The report as JSON-serialisable facts."""
    outcomes = list(outcomes)
    rejected = [o for o in outcomes if o.rejected]
    return {
        "meshes": len(outcomes),
        "complete": len(outcomes) - len(rejected),
        "made": sum(bool(o.made) and not o.rejected for o in outcomes),
        "there_before": sum(not o.made and not o.rejected for o in outcomes),
        "rejected": [{"file": o.name, "sha256": o.sha256, "reason": o.rejected} for o in rejected],
        "steps": {
            s: sum(s in o.made for o in outcomes) for s in sorted({s for o in outcomes for s in o.made})
        },
    }
