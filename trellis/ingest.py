"""From a folder of the user's meshes to the training data of TRELLIS v1.

    DATA/voxels/SHA.ply                 centres of the occupied voxels
    DATA/renders/SHA/                   000.png, ..., transforms.json, mesh.ply: what decoders learn from
    DATA/features/MODEL/SHA.npz         indices uint8 [N, 3], patchtokens float16 [N, C], resolution
    DATA/latents/MODEL_ENCODER/SHA.npz  coords uint8 [N, 3], feats float32 [N, C]; and stats.json
    DATA/ss_latents/ENCODER/SHA.npz     mean float32 [C, r, r, r]
    DATA/renders_cond/SHA/              000.png, ..., transforms.json: pictures that condition the flows
    DATA/metadata.csv                   one row per asset, keyed by sha256

The layout is the released one. Features are picture tokens of the renders, averaged over all views on which a
voxel falls: TRELLIS (Xiang et al., 2024), section 3.1.
Letters: N voxels, R voxel grid, r structure latent, C channels, K views, P patches along a side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis.data import mean_features, read_latent, read_voxels, whole_grid
from trellis.loading import load_network, network_config
from trellis.places import find_checkpoint
from trellis.settings import (
    IMAGE_ENCODER,
    LATENT_FLOW,
    STRUCTURE_ENCODER,
    STRUCTURE_FLOW,
    TEXT_ENCODER,
)
from trellis.weights import ENCODERS
from trellis_core.errors import ModelError, UsageError
from trellis_core.geometry.occupancy import EDGE, occupied_by
from trellis_core.geometry.types import Mesh
from trellis_core.io.files import write_file
from trellis_core.io.images import read_picture
from trellis_core.io.ply import write_bare_ply
from trellis_core.models.image_encoder import normalize
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.data import TABLE, Entry, read_arrays
from trellis_core.training.ingest import items
from trellis_core.training.ingest.items import Facts, Job, Layout, Outcome, Step, facts_of_step, save_arrays
from trellis_core.training.ingest.views import ViewSettings, appearance_views, condition_views, write_views
from trellis_core.training.transforms import TRANSFORMS, Frame, read_transforms
from trellis_core.training.tuning import STATISTICS_OF, latent_statistics, packed
from trellis_core.weights import hub

LATENT_ENCODER = "slat_encoder"
RELEASED = "microsoft/TRELLIS-image-large"
PUBLISHED = {IMAGE_ENCODER: "dinov2_vitl14_reg", TEXT_ENCODER: "openai/clip-vit-large-patch14"}
# where a model may keep the encoders that its pipeline does not name, in the order in which they are tried
PLACES: Mapping[str, tuple[str, ...]] = {
    LATENT_ENCODER: (
        "ckpts/slat_encoder",
        "ckpts/slat_enc_swin8_B_64l8_fp16",
        f"{RELEASED}/ckpts/slat_enc_swin8_B_64l8_fp16",
    ),
    STRUCTURE_ENCODER: (
        "ckpts/sparse_structure_encoder",
        "ckpts/ss_enc_conv3d_16l8_fp16",
        f"{RELEASED}/ckpts/ss_enc_conv3d_16l8_fp16",
    ),
}
VOXELS, RENDERS, CONDITION = "voxels", "renders", "renders_cond"
SURFACE = "mesh.ply"
VIEWS_AT_ONCE = 8  # through the picture encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    resolution: int  # R
    image_size: int  # pixels that the picture encoder sees
    encoders: Mapping[str, Path] = field(default_factory=dict)  # name -> stem; others are left out
    structure_grid: int | None = None  # cells along an axis of the structure encoder's input
    renders: ViewSettings = field(default_factory=lambda: ViewSettings(views=150))
    views: ViewSettings = field(default_factory=lambda: ViewSettings(views=24, size=1024))
    max_faces: int = 20_000_000
    seed: int = 0
    device: str = "cpu"
    threads: int = 1  # of each process


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

    Raises also `UsageError` for a resolution that the files cannot hold.
    """
    if not 2 <= settings.resolution <= 256:
        raise UsageError(
            f"the resolution {settings.resolution} does not fit the format",
            hint="choose one from 2 to 256; released models have 64",
        )
    return items.ingest(
        folder, data, settings, LAYOUT, workers=workers, seconds=seconds, on_outcome=on_outcome
    )


# --- encoders ----------------------------------------------------------------------------------------


def find_encoders(folder: Path) -> dict[str, Path]:
    """The encoders of both autoencoders that a folder, or the hub's cache, has: name -> stem."""
    found = {}
    for name, references in PLACES.items():
        for reference in references:
            try:
                found[name] = find_checkpoint(reference, folder)
                break
            except ModelError:
                continue
    return found


def all_encoders(
    folder: Path,  # of the model
    stems: Mapping[str, Path],  # of the networks that its pipeline names
) -> dict[str, Path]:
    """What the steps need, as far as it is here: name -> stem."""
    found = {name: stem for name, stem in find_encoders(folder).items() if fits(name, stem, stems)}
    try:
        found[IMAGE_ENCODER] = encoder_stem(IMAGE_ENCODER, stems)
    except ModelError:  # what needs it is left out, and the command says so
        return found
    return found


def fits(name: str, stem: Path, stems: Mapping[str, Path]) -> bool:
    """Whether an encoder makes what the model's flow makes: one of another model may be in the cache."""
    flow = {LATENT_ENCODER: LATENT_FLOW, STRUCTURE_ENCODER: STRUCTURE_FLOW}[name]
    made, wanted = (network_config(n, s)["args"] for n, s in ((name, stem), (flow, stems[flow])))
    same_grid = name != LATENT_ENCODER or made["resolution"] == wanted["resolution"]
    return bool(same_grid and made["latent_channels"] == wanted["in_channels"])


def encoder_stem(name: str, stems: Mapping[str, Path]) -> Path:
    """The model's encoder of pictures or prompts, or the published one in the hub's cache.

    Raises `ModelError` when it is in neither.
    """
    return stems.get(name) or find_checkpoint(ENCODERS[PUBLISHED[name]], Path())


def structure_grid_of(encoders: Mapping[str, Path], structure_resolution: int) -> int | None:
    """Cells along an axis that the structure encoder takes, given the structure flow's latent grid."""
    if STRUCTURE_ENCODER not in encoders:
        return None
    config = network_config(STRUCTURE_ENCODER, encoders[STRUCTURE_ENCODER])
    return int(structure_resolution * 2 ** (len(config["args"]["channels"]) - 1))


# --- steps -------------------------------------------------------------------------------------------


def steps_of(settings: IngestSettings) -> dict[str, Step]:
    """Folder of the result -> how it is made, in the order in which they depend on each other."""
    grid, seed = f"{settings.resolution} voxels", f"seed {settings.seed}"
    drawn = f"{asdict(settings.renders)} {seed}"
    steps = {VOXELS: Step(make_voxels, f"{VOXELS}/SHA.ply", grid)}
    if has_structure(settings):
        name = structures(settings)
        made_by = f"{made_with(settings, STRUCTURE_ENCODER)} {grid}"
        steps[name] = Step(make_structure_latent, f"{name}/SHA.npz", made_by)
    if settings.renders.views:
        steps[RENDERS] = Step(make_renders, f"{RENDERS}/SHA/{TRANSFORMS}", drawn)
        if IMAGE_ENCODER in settings.encoders:
            name, made_by = features(settings), f"{made_with(settings, IMAGE_ENCODER)} {grid} {drawn}"
            steps[name] = Step(make_features, f"{name}/SHA.npz", made_by)
            if LATENT_ENCODER in settings.encoders:
                name, made_by = latents(settings), f"{made_with(settings, LATENT_ENCODER)} {made_by}"
                steps[name] = Step(make_latent, f"{name}/SHA.npz", made_by)
    if settings.views.views:
        made_by = f"{asdict(settings.views)} {seed}"
        steps[CONDITION] = Step(make_condition_views, f"{CONDITION}/SHA/{TRANSFORMS}", made_by)
    return steps


def make_voxels(job: Job) -> Facts:
    shape = job.mesh.shape
    inside = Mesh(shape.vertices.double().clamp(-EDGE, EDGE), shape.faces)
    coords = occupied_by(inside, job.settings.resolution)
    centres = (coords.float() + 0.5) / job.settings.resolution - 0.5
    write_bare_ply(job.place(VOXELS, ".ply"), centres)
    return {"voxelized": True, "num_voxels": len(coords)}


def make_structure_latent(job: Job) -> Facts:
    occupancy = whole_grid(voxels_of(job), job.settings.resolution)
    mean, _ = job.worker.network(STRUCTURE_ENCODER)(occupancy[None].to(job.runtime.device))
    name = structures(job.settings)
    save_arrays(job.place(name, ".npz"), mean=mean[0].float().cpu().numpy())
    return {f"ss_latent_{Path(name).name}": True}


def make_renders(job: Job) -> Facts:
    mesh, settings, folder = job.mesh, job.settings, job.place(RENDERS)
    write_bare_ply(folder / SURFACE, mesh.shape.vertices, mesh.shape.faces)
    views = appearance_views(settings.renders.views, job.rng(settings.seed))
    write_views(folder, mesh.look, views, settings.renders, job.runtime, offset=mesh.offset, scale=mesh.scale)
    return {"rendered": True}


def make_features(job: Job) -> Facts:
    """Every voxel's mean picture token over all renders, hidden or not."""
    settings, device = job.settings, job.runtime.device
    coords = voxels_of(job)
    centres = ((coords.float() + 0.5) / settings.resolution - 0.5).to(device)
    encoder = job.worker.network(IMAGE_ENCODER)
    frames = read_transforms(job.place(RENDERS))
    parts = [frames[i : i + VIEWS_AT_ONCE] for i in range(0, len(frames), VIEWS_AT_ONCE)]
    maps = ((part, patch_maps(encoder, part, settings.image_size, device)) for part in parts)
    tokens = mean_features(centres, (([frame.camera for frame in part], patches) for part, patches in maps))
    name = features(settings)
    save_arrays(
        job.place(name, ".npz"),
        indices=coords.numpy().astype(np.uint8),
        patchtokens=tokens.half().cpu().numpy(),
        resolution=np.int64(settings.resolution),
    )
    return {f"feature_{Path(name).name}": True}


def patch_maps(
    encoder: Any, frames: list[Frame], size: int, device: torch.device
) -> Tensor:  # float32 [K, C, P, P]
    """The picture encoder's tokens before any norm, without the class token and the registers."""
    pictures = torch.stack([on_black(read_picture(frame.path), size) for frame in frames])
    tokens = encoder.hidden(normalize(pictures.to(device)))
    side = size // encoder.patch_size
    return tokens[:, -side * side :].mT.unflatten(2, (side, side))  # type: ignore[no-any-return]


def on_black(picture: Image.Image, size: int) -> Tensor:  # float32 [3, size, size] in [0, 1]
    small = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return pixels[:3] * pixels[3:]


def make_latent(job: Job) -> Facts:
    path = job.place(features(job.settings), ".npz")
    indices, tokens = (torch.from_numpy(array) for array in read_arrays(path, "indices", "patchtokens"))
    x = packed([indices.int()], [tokens.float()]).to(job.runtime.device)
    mean: SparseTensor = job.worker.network(LATENT_ENCODER)(x)[0]
    name = latents(job.settings)
    coords = mean.coords[:, 1:].cpu().numpy().astype(np.uint8)
    save_arrays(job.place(name, ".npz"), coords=coords, feats=mean.feats.float().cpu().numpy())
    return {f"latent_{Path(name).name}": True}


def make_condition_views(job: Job) -> Facts:
    mesh, settings = job.mesh, job.settings
    views = condition_views(settings.views.views, job.rng(settings.seed))
    folder = job.place(CONDITION)
    write_views(folder, mesh.look, views, settings.views, job.runtime, offset=mesh.offset, scale=mesh.scale)
    return {"cond_rendered": True}


def voxels_of(job: Job) -> Tensor:  # int32 [N, 3]
    return read_voxels(job.place(VOXELS, ".ply"), job.settings.resolution)


# --- names -------------------------------------------------------------------------------------------


def features(settings: IngestSettings) -> str:
    stem = settings.encoders[IMAGE_ENCODER]
    return f"features/{PUBLISHED[IMAGE_ENCODER] if stem.name == 'model' else stem.name}"


def latents(settings: IngestSettings) -> str:
    return f"latents/{Path(features(settings)).name}_{settings.encoders[LATENT_ENCODER].name}"


def structures(settings: IngestSettings) -> str:
    return f"ss_latents/{settings.encoders[STRUCTURE_ENCODER].name}"


def has_structure(settings: IngestSettings) -> bool:
    """Whether the voxel grid is the grid of the structure encoder."""
    return STRUCTURE_ENCODER in settings.encoders and settings.structure_grid == settings.resolution


def made_with(settings: IngestSettings, name: str) -> str:
    return hub.fingerprint([hub.weights_of(settings.encoders[name])])


# --- networks and tables -----------------------------------------------------------------------------


def load_encoder(name: str, settings: IngestSettings, runtime: Runtime) -> Any:
    return load_network(name, settings.encoders[name], runtime)


def write_tables(data: Path, records: list[Facts], settings: IngestSettings) -> None:
    """The one table, and the statistics of the latents."""
    rows = []
    for record in (record for record in records if record.get("steps")):
        columns: Facts = {}
        for step in record["steps"]:
            columns |= facts_of_step(record, step)
        rows.append({**items.root_row(record), **columns})
    items.write_table(data / TABLE, rows)
    if {IMAGE_ENCODER, LATENT_ENCODER} <= settings.encoders.keys():
        write_statistics(data / latents(settings), [row["sha256"] for row in rows])


def write_statistics(place: Path, hashes: list[str]) -> None:
    """`stats.json`: mean and deviation of the latents, per channel."""
    entries = [Entry(sha256, {"latents": place}, 1) for sha256 in hashes]
    there = [entry for entry in entries if (place / f"{entry.sha256}.npz").is_file()][:STATISTICS_OF]
    if there:
        mean, std = latent_statistics(read_latent(entry)[1] for entry in there)
        write_file(place / "stats.json", [json.dumps({"mean": mean, "std": std}, indent=1).encode()])


LAYOUT = Layout(steps_of, load_encoder, write_tables)
