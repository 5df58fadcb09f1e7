"""Training data in the released layout: what a folder must hold, what of it can be used, and reading items.

A description (`data_R.json`) maps sources to folders by role; every folder has a `metadata.csv` keyed by
`sha256`. An item is used when every role of the data's kind has it and no filter of the recipe drops it.
Knows no model version. Letters: N voxels or tokens, C channels, r latent grid, S side of a picture.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.io.images import read_picture
from trellis_core.io.vxz import read_vxz
from trellis_core.training.recipes import DataSettings

TABLE = "metadata.csv"
MATERIAL = ("base_color", "metallic", "roughness", "alpha")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One folder of a data set."""

    files: str  # below the folder
    column: str  # true in the table for items that are there
    load: str = ""  # column that says how large an item is: voxels or tokens


ROLES: Mapping[str, Role] = {
    "dual_grid": Role(
        files="SHA.vxz: vertices uint8 [3], intersected uint8 (bits x, y, z)",
        column="dual_grid_converted",
        load="dual_grid_size",
    ),
    "pbr_voxel": Role(
        files="SHA.vxz: base_color, metallic, roughness, alpha uint8",
        column="pbr_voxelized",
        load="num_pbr_voxels",
    ),
    "shape_latent": Role(
        files="SHA.npz: feats float32 [N, C], coords uint8 [N, 3]",
        column="shape_latent_encoded",
        load="shape_latent_tokens",
    ),
    "pbr_latent": Role(
        files="SHA.npz: feats float32 [N, C], coords uint8 [N, 3]",
        column="pbr_latent_encoded",
        load="pbr_latent_tokens",
    ),
    "ss_latent": Role(files="SHA.npz: z float32 [C, r, r, r]", column="ss_latent_encoded"),
    "render_cond": Role(files="SHA/000.png, ... (RGBA), SHA/transforms.json", column="cond_rendered"),
    "asset_stats": Role(files="only the table: num_faces, num_basecolor_tex, ...", column=""),
    # TRELLIS v1: one table in the root folder
    "voxels": Role(files="SHA.ply: voxel centres", column="voxelized", load="num_voxels"),
    "features": Role(
        files="MODEL/SHA.npz: indices uint8 [N, 3], patchtokens float16 [N, 1024]", column="feature_MODEL"
    ),
    "renders": Role(files="SHA/NNN.png (RGBA), SHA/transforms.json, SHA/mesh.ply", column="rendered"),
    "latents": Role(
        files="NAME/SHA.npz: coords uint8 [N, 3], feats float32 [N, 8]; NAME/stats.json", column="latent_NAME"
    ),
    "ss_latents": Role(files="NAME/SHA.npz: mean float32 [8, 16, 16, 16]", column="ss_latent_NAME"),
    "renders_cond": Role(files="SHA/NNN.png (RGBA), SHA/transforms.json", column="cond_rendered"),
    "captions": Role(files="only the column `captions` (JSON list) of the root table", column="captions"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What an item of a data set is made of."""

    item: str
    roles: tuple[str, ...]
    described: bool = True  # by `data_R.json`; v1 has fixed folder names and one table


KINDS: Mapping[str, Kind] = {
    "dual_grids": Kind(item="surface vertices and crossing flags", roles=("dual_grid", "asset_stats")),
    "pbr_voxels": Kind(item="materials in [-1, 1]", roles=("pbr_voxel",)),
    "pbr_voxels_views": Kind(item="materials and their surface", roles=("pbr_voxel", "dual_grid")),
    "structure_latents": Kind(item="structure latent and a picture", roles=("ss_latent", "render_cond")),
    "shape_latents": Kind(item="shape latent and a picture", roles=("shape_latent", "render_cond")),
    "texture_latents": Kind(
        item="texture latent, shape latent on the same tokens, and a picture",
        roles=("pbr_latent", "shape_latent", "render_cond", "asset_stats"),
    ),
    "occupancy": Kind(item="occupied cells of a grid of 64", roles=("voxels",), described=False),
    "features_views": Kind(item="features and a view", roles=("features", "renders"), described=False),
    "latent_views": Kind(item="latent and a view", roles=("latents", "renders"), described=False),
    "latent_meshes": Kind(item="latent, a view and the mesh", roles=("latents", "renders"), described=False),
    "v1_structure_latents": Kind(
        item="structure latent and a picture", roles=("ss_latents", "renders_cond"), described=False
    ),
    "v1_structure_latents_text": Kind(
        item="structure latent and a caption", roles=("ss_latents", "captions"), described=False
    ),
    "v1_latents": Kind(item="latent and a picture", roles=("latents", "renders_cond"), described=False),
    "v1_latents_text": Kind(item="latent and a caption", roles=("latents", "captions"), described=False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One usable item."""

    sha256: str
    places: Mapping[str, Path]  # role -> folder
    load: int  # voxels or tokens; 1 where items are of one size


@dataclass(frozen=True, slots=True)
class Catalog:
    """What of a folder can be used, and why the rest cannot."""

    entries: Sequence[Entry]
    dropped: Mapping[str, int]  # reason -> items
    missing: Sequence[str]  # folders and tables that are not there, one sentence each

    @property
    def loads(self) -> list[int]:
        return [entry.load for entry in self.entries]


def layout_of(settings: DataSettings) -> list[tuple[str, str]]:
    """(place, what it holds) of every folder that a recipe reads."""
    kind = KINDS[settings.kind]
    if not kind.described:
        return [(TABLE, "one row per asset"), *((f"{role}/", ROLES[role].files) for role in kind.roles)]
    place = f"data_{settings.resolution}.json"
    return [
        (place, '{"SOURCE": {"base": ".", "ROLE": "FOLDER", ...}}'),
        (TABLE, "sha256, aesthetic_score, captions, ..."),
        *((f"{role} folder", ROLES[role].files) for role in kind.roles),
    ]


def read_catalog(folder: Path, settings: DataSettings) -> Catalog:
    """Look at the tables of a data set; no item is opened.

    `folder` may also be a description file. Raises `InputError` for damaged tables and descriptions.
    """
    kind = KINDS[settings.kind]
    if not kind.described:
        absent = [f"`{folder / TABLE}` is missing"] if not (folder / TABLE).is_file() else []
        absent += [
            f"folder `{folder / role}` is missing"
            for role in kind.roles
            if role != "captions" and not (folder / role).is_dir()
        ]
        return Catalog([], {}, absent)
    description = folder if folder.suffix == ".json" else folder / f"data_{settings.resolution}.json"
    if not description.is_file():
        return Catalog([], {}, [f"`{description}` is missing"])
    entries: dict[str, Entry] = {}
    dropped: Counter[str] = Counter()
    missing: list[str] = []
    for name, source in read_description(description).items():
        base = description.parent / source.get("base", ".")
        found, absent = read_source(name, base, source, settings, dropped)
        missing += absent
        entries |= {entry.sha256: entry for entry in found}
    return Catalog(list(entries.values()), dict(dropped), missing)


def read_description(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {str(k): str(v) for k, v in source.items()} for name, source in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"`{path}` is damaged: {error}", hint="run `trellis train data ingest` again"
        ) from error


def read_source(
    name: str, base: Path, source: Mapping[str, str], settings: DataSettings, dropped: Counter[str]
) -> tuple[list[Entry], list[str]]:
    """The usable items of one source, and what it lacks; counts the others in `dropped`."""
    kind = KINDS[settings.kind]
    absent = [f"source `{name}` has no folder for `{role}`" for role in kind.roles if role not in source]
    places = {role: base / source[role] for role in kind.roles if role in source}
    absent += [f"`{place / TABLE}` is missing" for place in places.values() if not (place / TABLE).is_file()]
    if absent:
        return [], absent
    rows = read_table(base / TABLE)
    for place in places.values():
        for sha256, row in read_table(place / TABLE).items():
            mine = rows.setdefault(sha256, {})
            mine.update({k: v for k, v in row.items() if v and not mine.get(k)})
    entries = []
    for sha256, row in rows.items():
        reason = why_dropped(row, kind, settings)
        if reason:
            dropped[reason] += 1
        else:
            entries.append(Entry(sha256, places, load_of(row, kind)))
    return entries, []


def why_dropped(row: Mapping[str, str], kind: Kind, settings: DataSettings) -> str:
    """Why an item is not used; empty when it is."""
    for role in kind.roles:
        column = ROLES[role].column
        if column and row.get(column, "").lower() not in ("true", "1", "1.0"):
            return f"no {role.replace('_', ' ')}"
    score = number(row, "aesthetic_score")
    if score is not None and score < settings.min_aesthetic_score:
        return f"aesthetic score below {settings.min_aesthetic_score:g}"
    limits = (
        ("voxels", settings.max_voxels, ("dual_grid_size", "num_pbr_voxels")),
        ("faces", settings.max_faces, ("num_faces",)),
        ("tokens", settings.max_tokens, ("shape_latent_tokens", "pbr_latent_tokens")),
    )
    for what, limit, columns in limits:
        if limit is not None and max((number(row, c) or 0 for c in columns), default=0) > limit:
            return f"more than {limit:,} {what}"
    textures = ("num_basecolor_tex", "num_metallic_tex", "num_roughness_tex")
    if settings.full_pbr and not all((number(row, c) or 0) >= 1 for c in textures):
        return "no texture for base color, metallic or roughness"
    return ""


def load_of(row: Mapping[str, str], kind: Kind) -> int:
    sizes = [number(row, ROLES[role].load) for role in kind.roles if ROLES[role].load]
    return max([int(size) for size in sizes if size is not None], default=1)


def number(row: Mapping[str, str], column: str) -> float | None:
    try:
        return float(row[column])
    except (KeyError, ValueError):
        return None


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """`sha256` -> row. An absent table is empty. Raises `InputError` without the column."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and "sha256" not in rows[0]:
        raise InputError(f"`{path}` has no column `sha256`", hint="it is no table of this layout")
    return {row["sha256"]: {k: v or "" for k, v in row.items() if k} for row in rows}


# --- items -------------------------------------------------------------------------------------------


def read_latent(entry: Entry, role: str) -> tuple[Tensor, Tensor]:  # int32 [N, 3], float32 [N, C]
    """Token coordinates and features of a shape or texture latent."""
    arrays = read_arrays(entry.places[role] / f"{entry.sha256}.npz", "coords", "feats")
    return torch.from_numpy(arrays[0].astype(np.int32)), torch.from_numpy(arrays[1]).float()


def read_structure(entry: Entry) -> Tensor:  # float32 [C, r, r, r]
    (z,) = read_arrays(entry.places["ss_latent"] / f"{entry.sha256}.npz", "z")
    return torch.from_numpy(z).float()


def read_dual_grid(entry: Entry) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates int32 [N, 3], dual vertices float32 [N, 3] in [0, 1], crossings bool [N, 3]."""
    coords, attributes = read_vxz(entry.places["dual_grid"] / f"{entry.sha256}.vxz")
    vertices = attributes.get("vertices", attributes.get("dual_vertices"))
    if vertices is None or "intersected" not in attributes:
        raise InputError(f"the dual grid of {entry.sha256} lacks an attribute", hint="ingest it again")
    bits = attributes["intersected"] >> torch.arange(3, dtype=torch.uint8)
    return coords, vertices.float() / 255, (bits & 1).bool()


def read_materials(entry: Entry) -> tuple[Tensor, Tensor]:  # int32 [N, 3], float32 [N, 6] in [-1, 1]
    coords, attributes = read_vxz(entry.places["pbr_voxel"] / f"{entry.sha256}.vxz")
    if not set(MATERIAL) <= set(attributes):
        raise InputError(f"the materials of {entry.sha256} lack an attribute", hint="ingest it again")
    return coords, torch.cat([attributes[name] for name in MATERIAL], 1).float() / 127.5 - 1


def read_condition(entry: Entry, size: int, view: float) -> Tensor:  # float32 [3, size, size] in [0, 1]
    """One rendered view on black, cropped to the object; `view` in [0, 1) chooses it."""
    folder = entry.places["render_cond"] / entry.sha256
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise InputError(f"`{folder}` holds no picture", hint="run `trellis train data ingest` again")
    return crop_condition(read_picture(pictures[int(view * len(pictures))]), size)


def crop_condition(picture: Image.Image, size: int) -> Tensor:  # float32 [3, size, size] in [0, 1]
    """The released crop of the TRELLIS.2 trainers: the square around what is not fully transparent, Lanczos
    to `size`, color times alpha in float32. Inference crops a little differently (threshold, rounding)."""
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    rows, columns = np.nonzero(alpha)
    if len(rows) == 0:
        raise InputError("a rendered view shows nothing", hint="ingest the mesh again with another seed")
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (int(x - half), int(y - half), int(x + half), int(y + half))
    small = picture.convert("RGBA").crop(box).resize((size, size), Image.Resampling.LANCZOS)
    rgba = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return rgba[:3] * rgba[3:]


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"`{path}` cannot be read: {error}", hint="ingest that mesh again") from error
