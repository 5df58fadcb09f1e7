"""From a folder of the user's meshes to the training data of TRELLIS.2: voxels, latents, pictures, tables.

    DATA/dual_grid_R/SHA.vxz              vertices uint8 [3], intersected uint8 (bits x, y, z)
    DATA/pbr_voxels_R/SHA.vxz             base_color, metallic, roughness, alpha
    DATA/shape_latents/ENCODER_R/SHA.npz  feats float32 [N, C], coords uint8 [N, 3]; so pbr_latents/
    DATA/ss_latents/ENCODER/SHA.npz       z float32 [C, r, r, r]
    DATA/renders_cond/SHA/                000.png, ..., transforms.json
    DATA/**/metadata.csv                  one row per asset and folder, keyed by sha256
    DATA/data_R.json                      which folder plays which role, for the trainers

The layout is the released one, without the pickled mesh dumps.
Letters: N voxels or tokens, R voxel grid, r structure latent, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trellis2.dual_grid import mesh_to_dual_grid
from trellis2.loading import load_network, network_config
from trellis2.voxelize import Average, voxelize_material
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.io.files import write_file
from trellis_core.io.voxel_files import pbr_to_bytes
from trellis_core.io.vxz import encode_vxz, read_vxz
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.data import TABLE
from trellis_core.training.ingest import items
from trellis_core.training.ingest.items import (
    Facts,
    Job,
    Layout,
    Outcome,
    Step,
    facts_of_step,
    save_arrays,
    write_table,
)
from trellis_core.training.ingest.views import ViewSettings, condition_views, write_views
from trellis_core.training.transforms import TRANSFORMS
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
RENDERS, STATISTICS = "renders_cond", "asset_stats"


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
    """Ingest every mesh below `folder` into `data`. See `trellis_core.training.ingest.items.ingest`.

    Raises also `UsageError` for a resolution that is no whole number of tokens.
    """
    check(settings)
    return items.ingest(
        folder, data, settings, LAYOUT, workers=workers, seconds=seconds, on_outcome=on_outcome
    )


def check(settings: IngestSettings) -> None:
    factor = max(
        (factor_of(stem) for role, stem in settings.encoders.items() if role != "structure"), default=1
    )
    if settings.resolution < 8 or settings.resolution % factor:
        raise UsageError(
            f"the resolution {settings.resolution} is no multiple of {factor} voxels, the model's token",
            hint=f"try {max(1, round(settings.resolution / factor)) * factor}",
        )


# --- steps -------------------------------------------------------------------------------------------


def steps_of(settings: IngestSettings) -> dict[str, Step]:
    """Folder of the result -> how it is made, in the order in which they depend on each other."""

    def latent(role: str) -> str:
        return hub.fingerprint([hub.weights_of(settings.encoders[role])])

    grid, material = grids(settings), materials(settings)
    steps = {
        STATISTICS: Step(lambda job: job.mesh.statistics),
        grid: Step(make_dual_grid, f"{grid}/SHA.vxz"),
        material: Step(make_materials, f"{material}/SHA.vxz", settings.average),
    }
    makers = {"shape": make_shape_latent, "pbr": make_material_latent, "structure": make_structure_latent}
    for role, make in makers.items():
        if role in settings.encoders and (role != "structure" or has_structure(settings)):
            name = latents(role, settings)
            steps[name] = Step(make, f"{name}/SHA.npz", latent(role))
    if settings.views.views:
        made_by = f"{asdict(settings.views)} seed {settings.seed}"
        steps[RENDERS] = Step(make_views, f"{RENDERS}/SHA/{TRANSFORMS}", made_by)
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
    device = job.runtime.device
    position = sparse(coords, attributes["vertices"].float() / 255).to(device)
    mean, _ = job.worker.network("shape")(position, (bits & 1).bool().to(device))
    return {"shape_latent_encoded": True, "shape_latent_tokens": save_latent(job, "shape", mean)}


def make_material_latent(job: Job) -> Facts:
    coords, attributes = read_vxz(job.place(materials(job.settings), ".vxz"))
    columns = torch.cat([attributes[n] for n in ("base_color", "metallic", "roughness", "alpha")], 1)
    voxels = sparse(coords, columns.float() / 127.5 - 1).to(job.runtime.device)
    mean, _ = job.worker.network("pbr")(voxels)
    return {"pbr_latent_encoded": True, "pbr_latent_tokens": save_latent(job, "pbr", mean)}


def make_structure_latent(job: Job) -> Facts:
    side = job.settings.structure_grid
    with np.load(job.place(latents("shape", job.settings), ".npz")) as file:
        x, y, z = torch.from_numpy(file["coords"].astype(np.int64)).unbind(1)
    occupancy = torch.zeros(1, 1, side, side, side)  # type: ignore[arg-type]
    occupancy[0, 0, x, y, z] = 1
    mean, _ = job.worker.network("structure")(occupancy.to(job.runtime.device))
    save_arrays(job.place(latents("structure", job.settings), ".npz"), z=mean[0].float().cpu().numpy())
    return {"ss_latent_encoded": True}


def make_views(job: Job) -> Facts:
    mesh, settings = job.mesh, job.settings
    views = condition_views(settings.views.views, job.rng(settings.seed))
    folder = job.place(RENDERS)
    write_views(folder, mesh.look, views, settings.views, job.runtime, offset=mesh.offset, scale=mesh.scale)
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


# --- networks and tables -----------------------------------------------------------------------------


def load_encoder(role: str, settings: IngestSettings, runtime: Runtime) -> Any:
    return load_network(settings.encoders[role], runtime)


def write_tables(data: Path, records: list[Facts], settings: IngestSettings) -> None:
    """`metadata.csv` of every folder, and the description that trainers read."""
    used = [record for record in records if record.get("steps")]
    write_table(data / TABLE, [items.root_row(record) for record in used])
    folders = {step for record in used for step in record["steps"]}
    for step in sorted(folders):
        done = [record for record in used if step in record["steps"]]
        write_table(data / step / TABLE, [{"sha256": r["sha256"], **facts_of_step(r, step)} for r in done])
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


LAYOUT = Layout(steps_of, load_encoder, write_tables)
