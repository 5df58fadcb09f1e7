"""Training data in the released layout of TRELLIS v1: one table in the root folder, folders of fixed names.

An item is used when every folder of the data's kind has it and no filter of the recipe drops it. Latents lie
in a folder named after the network that made them; there must be one.
Letters: N voxels, K views, C channels, H, W sides of a feature map, r latent grid.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trellis.condition import MARGIN
from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.types import Mesh
from trellis_core.io.images import read_picture
from trellis_core.io.meshes import read_mesh
from trellis_core.sparse.order import linear_keys
from trellis_core.training.data import (
    KINDS,
    ROLES,
    TABLE,
    Catalog,
    Entry,
    number,
    read_arrays,
    read_catalog,
    read_table,
)
from trellis_core.training.recipes import DataSettings
from trellis_core.training.transforms import read_transforms

CAPTIONS = "captions"
TRUE = ("true", "1", "1.0")
FEATURE_GRID = 64  # of released feature files, which do not say
NAMED = ("MODEL", "NAME")  # what stands in a column's name for that of a network


def open_catalog(folder: Path, settings: DataSettings) -> Catalog:
    """What of a folder can be used; no item is opened. Raises `InputError` for damaged tables."""
    absent = list(read_catalog(folder, settings).missing)
    if absent:
        return Catalog([], {}, absent)
    kind, rows = KINDS[settings.kind], read_table(folder / TABLE)
    places, columns = {}, {}
    for role in kind.roles:
        places[role], columns[role] = place_of(folder, role)
    entries, dropped = [], Counter[str]()
    for sha256, row in rows.items():
        reason = why_dropped(row, columns, settings)
        if reason:
            dropped[reason] += 1
        else:
            entries.append(Entry(sha256, places, int(number(row, "num_voxels") or 1)))
    return Catalog(entries, dict(dropped), [])


def place_of(folder: Path, role: str) -> tuple[Path, str]:
    """The folder of a role, and the column of the table that says what is in it."""
    column = ROLES[role].column
    if role == CAPTIONS:
        return folder, column
    if not column.endswith(NAMED):
        return folder / role, column
    inside = sorted(path.name for path in (folder / role).iterdir() if path.is_dir())
    if len(inside) != 1:
        found = ", ".join(inside) or "none"
        raise InputError(
            f"`{folder / role}` must hold the folder of one network, and holds {found}",
            hint="give a data folder with the latents of the network that the recipe goes with",
        )
    return folder / role / inside[0], column.replace("MODEL", inside[0]).replace("NAME", inside[0])


def why_dropped(row: Mapping[str, str], columns: Mapping[str, str], settings: DataSettings) -> str:
    """Why an item is not used; empty when it is."""
    for role, column in columns.items():
        value = row.get(column, "")
        there = value.startswith("[") and value != "[]" if role == CAPTIONS else value.lower() in TRUE
        if not there:
            return f"no {role.replace('_', ' ')}"
    score = number(row, "aesthetic_score")
    if score is not None and score < settings.min_aesthetic_score:
        return f"aesthetic score below {settings.min_aesthetic_score:g}"
    limit = settings.max_tokens or settings.max_voxels
    if limit is not None and (number(row, "num_voxels") or 0) > limit:
        return f"more than {limit:,} voxels"
    return ""


def read_captions(folder: Path) -> dict[str, list[str]]:
    """`sha256` -> captions, of the items that have any."""
    captions = {}
    for sha256, row in read_table(folder / TABLE).items():
        text = row.get(CAPTIONS, "")
        if text.startswith("["):
            try:
                captions[sha256] = [str(caption) for caption in json.loads(text)]
            except ValueError as error:
                raise InputError(
                    f"the captions of {sha256} are damaged: {error}", hint=f"mend `{folder / TABLE}`"
                ) from error
    return captions


# --- items -------------------------------------------------------------------------------------------


def read_occupancy(entry: Entry, resolution: int) -> Tensor:  # float32 [1, R, R, R]
    """Occupied cells from the centres in a PLY of points."""
    return whole_grid(read_voxels(entry.places["voxels"] / f"{entry.sha256}.ply", resolution), resolution)


def read_voxels(path: Path, resolution: int) -> Tensor:  # int32 [N, 3]
    """Voxels from the centres in a PLY of points. Raises `InputError`."""
    import trimesh  # only this reader needs it

    try:
        points = np.asarray(trimesh.load(path).vertices)  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"`{path}` cannot be read: {error}", hint="voxelise that mesh again") from error
    cells = np.floor((points + 0.5) * resolution).astype(np.int32)
    if not len(cells) or cells.min() < 0 or cells.max() >= resolution:
        raise InputError(f"`{path}` holds no voxels of a grid of {resolution}", hint="voxelise it again")
    return torch.from_numpy(cells)


def whole_grid(
    coords: Tensor,  # int32 [N, 3]
    resolution: int,
) -> Tensor:  # float32 [1, R, R, R]  1 where there is a voxel
    occupied = torch.zeros(resolution**3)
    occupied[linear_keys(coords, (resolution,) * 3)] = 1
    return occupied.view(1, *[resolution] * 3)


def read_structure(entry: Entry) -> Tensor:  # float32 [C, r, r, r]
    (mean,) = read_arrays(entry.places["ss_latents"] / f"{entry.sha256}.npz", "mean")
    return torch.from_numpy(mean).float()


def read_latent(entry: Entry) -> tuple[Tensor, Tensor]:  # int32 [N, 3], float32 [N, C]
    coords, feats = read_arrays(entry.places["latents"] / f"{entry.sha256}.npz", "coords", "feats")
    return torch.from_numpy(coords.astype(np.int32)), torch.from_numpy(feats).float()


def read_features(entry: Entry, resolution: int) -> tuple[Tensor, Tensor]:  # int32 [N, 3], float32 [N, C]
    """Averaged picture features of the voxels, on a grid that is `resolution` or a power of two finer."""
    path = entry.places["features"] / f"{entry.sha256}.npz"
    indices, tokens = read_arrays(path, "indices", "patchtokens")
    with np.load(path) as file:
        grid = int(file["resolution"]) if "resolution" in file else FEATURE_GRID
    if grid % resolution:
        raise InputError(f"`{path}` lies on a grid of {grid}, not of {resolution}", hint="ingest it again")
    return coarser_features(torch.from_numpy(indices), torch.from_numpy(tokens), grid // resolution)


def coarser_features(
    indices: Tensor,  # uint8 [N, 3]
    tokens: Tensor,  # float16 [N, C]
    factor: int,  # a power of two
) -> tuple[Tensor, Tensor]:  # int32 [P, 3] sorted, float32 [P, C]
    """Features of cells of `factor` voxels per axis: sum over the voxels divided by their number plus one."""
    coords, feats = indices.int(), tokens.float()
    if factor == 1:
        return coords, feats
    cells, inverse = torch.unique(coords // factor, dim=0, return_inverse=True)
    total = feats.new_zeros(len(cells), feats.shape[1]).index_add(0, inverse, feats)
    return cells, total / (torch.bincount(inverse)[:, None] + 1)


def read_view(
    entry: Entry,
    size: int,  # S
    view: float,  # in [0, 1)  chooses it
) -> tuple[Tensor, Tensor, Camera]:  # float32 [3, S, S] straight colors, float32 [1, S, S] alpha; in [0, 1]
    """One rendered view, and the camera that took it."""
    folder = entry.places["renders"] / entry.sha256
    frames = read_transforms(folder)
    frame = frames[int(view * len(frames))]
    picture = read_picture(frame.path).convert("RGBA")
    if picture.width != picture.height:
        raise InputError(f"`{frame.path}` is not square", hint="render that mesh again")
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return pixels[:3], pixels[3:], frame.camera


def read_surface(entry: Entry) -> Mesh:
    """The mesh that was rendered."""
    return read_mesh(entry.places["renders"] / entry.sha256 / "mesh.ply").mesh


def read_condition(entry: Entry, size: int, view: float) -> Tensor:  # float32 [3, size, size] in [0, 1]
    """One rendered view on black, cropped to the object; `view` in [0, 1) chooses it."""
    folder = entry.places["renders_cond"] / entry.sha256
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise InputError(f"`{folder}` holds no picture", hint="render that mesh again")
    return crop_condition(read_picture(pictures[int(view * len(pictures))]), size)


def crop_condition(picture: Image.Image, size: int) -> Tensor:  # float32 [3, size, size] in [0, 1]
    """The released crop of the trainers: as in inference, but around all that is not fully transparent."""
    rgba = picture.convert("RGBA")
    rows, columns = np.nonzero(np.asarray(rgba)[..., 3])
    if len(rows) == 0:
        raise InputError("a rendered view shows nothing", hint="render that mesh again")
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    half = MARGIN * (max(right - left, bottom - top) / 2)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (int(x - half), int(y - half), int(x + half), int(y + half))
    small = rgba.crop(box).resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return pixels[:3] * pixels[3:]


# --- features of voxels -------------------------------------------------------------------------------


def project(
    points: Tensor,  # float32 [N, 3]  world space
    extrinsics: Tensor,  # float32 [K, 4, 4]  OpenCV axes
    intrinsics: Tensor,  # float32 [K, 3, 3]  in units of the picture
) -> Tensor:  # float32 [K, N, 2]  in [-1, 1] inside the picture
    """Where points lie in pictures, as `grid_sample` wants it."""
    camera = points @ extrinsics[:, :3, :3].mT + extrinsics[:, None, :3, 3]
    image = camera @ intrinsics.mT
    return image[..., :2] / image[..., 2:] * 2 - 1


def mean_features(
    points: Tensor,  # float32 [N, 3]  world space
    batches: Iterable[tuple[Sequence[Camera], Tensor]],  # cameras, and their maps float32 [K, C, H, W]
) -> Tensor:  # float32 [N, C]
    """Mean over all views of the feature that each point falls on, hidden or not; zero outside."""
    total, views = torch.zeros(len(points), 1, device=points.device), 0
    for cameras, maps in batches:
        extrinsics, intrinsics = (
            torch.stack([getattr(camera, name) for camera in cameras]).to(points)
            for name in ("extrinsics", "intrinsics")
        )
        total = total + sampled_features(project(points, extrinsics, intrinsics), maps).sum(0)
        views += len(cameras)
    return total / max(views, 1)


def sampled_features(
    places: Tensor,  # float32 [K, N, 2]  of points in the pictures, from `project`
    maps: Tensor,  # float32 [K, C, H, W]
) -> Tensor:  # float32 [K, N, C]
    return F.grid_sample(maps, places[:, None], mode="bilinear", align_corners=False)[:, :, 0].mT
