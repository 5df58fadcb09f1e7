"""Synthetic objects of known shape on voxel grids of any size, as the decoders would hand them over.

An object is a list of parts. A part is a signed distance, and for open sheets the region in which its zero
set exists. The surface is dual-contoured part by part: the vertex of a cell is the mean of its crossings, and
quads are wound towards the negative axis, whatever the surface does. Letters: N points or cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from trellis2.dual_grid import extract_mesh
from trellis_core.geometry.types import PBRVoxels, VoxelMesh

Distance = Callable[[np.ndarray], np.ndarray]  # [N, 3] -> [N]
Region = Callable[[np.ndarray], np.ndarray]  # [N, 3] -> bool [N]

STEEPEST = 2.0  # no distance function below changes faster than this
COARSEST = 32  # cells per side where the search for the surface starts
MARGIN = STEEPEST / COARSEST  # around an open sheet where its distance is needed to find it
FAR = 1.0
CORNERS = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), axis=-1).reshape(8, 3)
EDGES = [(a, a + (4, 2, 1)[axis]) for axis in range(3) for a in range(8) if not CORNERS[a, axis]]
BEFORE_LAST = [3, 5, 6]  # the edges that end in the last corner (7) start here: along x, y, z


def everywhere(points: np.ndarray) -> np.ndarray:
    return np.ones(len(points), dtype=bool)


@dataclass(frozen=True)
class Part:
    distance: Distance
    region: Region = everywhere


@dataclass(frozen=True)
class Shape:
    parts: Sequence[Part]
    closed: bool
    visible: Region = everywhere  # which points of the surface the outside can see


def bumps(points: np.ndarray) -> np.ndarray:
    wave = np.sin(25 * points).prod(1)
    return np.linalg.norm(points, axis=1) - 0.4 - 0.03 * wave


def torus_knot() -> Distance:
    t = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    ring = 0.27 + 0.13 * np.cos(3 * t)
    curve = cKDTree(np.stack([ring * np.cos(2 * t), ring * np.sin(2 * t), 0.2 * np.sin(3 * t)], axis=1))
    return lambda points: curve.query(points, workers=-1)[0] - 0.075


def lattice(cells: int = 4, radius: float = 0.03) -> Distance:
    """Round struts along all three axes, `cells` cells per side."""
    half = 0.42

    def distance(points: np.ndarray) -> np.ndarray:
        pitch = 2 * half / cells
        off = points - np.clip(np.round((points + half) / pitch), 0, cells) * pitch + half
        over = np.maximum(np.abs(points) - half, 0)
        struts = [np.sqrt(off[:, b] ** 2 + off[:, c] ** 2 + over[:, a] ** 2) for a, b, c in AXES]
        return np.min(struts, axis=0) - radius

    return distance


AXES = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def capsule(start: Sequence[float], end: Sequence[float], radius: float) -> Distance:
    a, b = np.asarray(start), np.asarray(end)
    along = (b - a) / ((b - a) ** 2).sum()

    def distance(points: np.ndarray) -> np.ndarray:
        share = np.clip((points - a) @ along, 0, 1)
        return np.linalg.norm(points - a - share[:, None] * (b - a), axis=1) - radius

    return distance


def pot(points: np.ndarray) -> np.ndarray:
    """A solid truncated cone."""
    from_axis = np.hypot(points[:, 0], points[:, 1])
    side = (from_axis - 0.13 - 0.25 * (points[:, 2] + 0.36)) * 0.97
    return np.maximum(side, np.abs(points[:, 2] + 0.36) - 0.1)


def leaf(turn: float, height: float, length: float) -> Part:
    """An open, bent sheet that starts at the stem and hangs down at its tip."""
    cos, sin = np.cos(turn), np.sin(turn)

    def local(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        along = (cos * points[:, 0] + sin * points[:, 1]) / length
        across = cos * points[:, 1] - sin * points[:, 0]
        return along, across, points[:, 2] - height

    def distance(points: np.ndarray) -> np.ndarray:
        along, across, up = local(points)
        sheet = 0.7 * (up - length * (0.5 * along - 0.6 * along**2) - 1.5 * across**2)
        beside = (np.abs(along - 0.5) * length > 0.5 * length + MARGIN) | (
            np.abs(across) > 0.3 * length + MARGIN
        )
        return np.where(beside, FAR, sheet)

    def region(points: np.ndarray) -> np.ndarray:
        along, across, _ = local(points)
        width = 0.3 * length * np.sin(np.pi * np.clip(along, 0, 1)) ** 0.7
        return (along > 0.04) & (along < 1) & (np.abs(across) < width)

    return Part(distance, region)


def plant(leaves: int = 24) -> Shape:
    stem = capsule((0, 0, -0.3), (0, 0, 0.42), 0.012)
    golden = np.pi * (3 - 5**0.5)
    sheets = [leaf(i * golden, -0.12 + 0.5 * i / leaves, 0.4 - 0.22 * i / leaves) for i in range(leaves)]
    return Shape([Part(lambda p: np.minimum(pot(p), stem(p))), *sheets], closed=False)


def bowl() -> Shape:
    """An open half sphere with a wavy rim."""

    def below_rim(points: np.ndarray) -> np.ndarray:
        return points[:, 2] < 0.03 + 0.02 * np.sin(6 * np.arctan2(points[:, 1], points[:, 0]))

    return Shape([Part(lambda p: np.linalg.norm(p, axis=1) - 0.42, below_rim)], closed=False)


def shell() -> Shape:
    """A bumpy ball with five cavities that no ray from outside reaches."""
    middles = 0.14 * np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1], [0, 0, 0]])

    def distance(points: np.ndarray) -> np.ndarray:
        cavity = np.min([np.linalg.norm(points - m, axis=1) - 0.1 for m in middles], axis=0)
        return np.maximum(bumps(points), -cavity)

    return Shape([Part(distance)], closed=True, visible=lambda p: np.linalg.norm(p, axis=1) > 0.355)


SHAPES: dict[str, Callable[[], Shape]] = {
    "knot": lambda: Shape([Part(torus_knot())], closed=True),
    "plant": plant,
    "lattice": lambda: Shape([Part(lattice())], closed=True),
    "bowl": bowl,
    "shell": shell,
    "bumps": lambda: Shape([Part(bumps)], closed=True),
}


def pattern(points: np.ndarray) -> np.ndarray:
    """Base color, metallic, roughness, alpha: broad colors with waves of a twentieth of the object."""
    waves = np.sin(125 * points).sum(1, keepdims=True) / 3
    color = 0.5 + 0.35 * np.sin(9 * points + np.array([0.0, 2.0, 4.0])) + 0.12 * waves
    metallic = 0.5 + 0.4 * np.sin(7 * points[:, :1])
    roughness = 0.5 + 0.4 * np.cos(5 * points[:, 1:2])
    return np.concatenate([color, metallic, roughness, np.ones_like(metallic)], axis=1)


def voxel_object(shape: Shape, resolution: int, noise: float = 0.0) -> VoxelMesh:
    """The shape on a grid. `noise` is the share of flags that are wrong: missing quads, and stray ones."""
    parts = [contour(part, resolution) for part in shape.parts]
    cells, crossing, count, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
    unique, inverse = np.unique(cells @ [resolution**2, resolution, 1], return_inverse=True)
    total = np.stack([np.bincount(inverse, crossing[:, a], len(unique)) for a in range(3)], axis=1)
    local = total / np.bincount(inverse, count, len(unique))[:, None]
    flag = np.stack([np.bincount(inverse, flags[:, a], len(unique)) > 0 for a in range(3)], axis=1)
    flag ^= np.random.default_rng(0).random(flag.shape) < noise
    cells = np.stack(np.unravel_index(unique, (resolution,) * 3), axis=1)
    return finish(cells, local, flag, resolution)


def contour(part: Part, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cells [N, 3] that the part passes through, sum of their crossings, number of these, flags [N, 3]."""
    cells = surface_cells(part.distance, resolution)
    keys = ((cells[:, None] + CORNERS) @ [(resolution + 1) ** 2, resolution + 1, 1]).reshape(-1)
    unique, inverse = np.unique(keys, return_inverse=True)
    place = np.stack(np.unravel_index(unique, (resolution + 1,) * 3), axis=1)
    value = part.distance(place / resolution - 0.5)[inverse].reshape(-1, 8)
    crossed = (value < 0).any(1) & (value >= 0).any(1)
    cells, value = cells[crossed], value[crossed]
    total, count, flags = np.zeros((len(cells), 3)), np.zeros(len(cells)), np.zeros((len(cells), 3), bool)
    for a, b in EDGES:
        row = np.nonzero((value[:, a] < 0) != (value[:, b] < 0))[0]
        share = value[row, a] / (value[row, a] - value[row, b])
        point = CORNERS[a] + share[:, None] * (CORNERS[b] - CORNERS[a])
        kept = part.region((cells[row] + point) / resolution - 0.5)
        total[row[kept]] += point[kept]
        count[row[kept]] += 1
        if b == 7:
            flags[row[kept], BEFORE_LAST.index(a)] = True
    kept = count > 0
    return cells[kept], total[kept], count[kept], flags[kept]


def surface_cells(distance: Distance, resolution: int) -> np.ndarray:
    """int64 [N, 3]: cells that the surface may pass through, halved from coarse to fine."""
    side = resolution
    while side % 2 == 0 and side > COARSEST:
        side //= 2
    cells = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    while True:
        reach = STEEPEST * 0.5 * 3**0.5 / side
        cells = cells[np.abs(distance((cells + 0.5) / side - 0.5)) < reach]
        if side == resolution:
            return cells
        cells, side = (2 * cells[:, None] + CORNERS).reshape(-1, 3), side * 2


def fragments(resolution: int, blocks: int = 100, side: int = 3) -> VoxelMesh:
    """Small scattered blocks of cells with random vertices and flags, as an untrained model makes them."""
    random = np.random.default_rng(0)
    origin = random.integers(0, resolution - side, (blocks, 1, 3))
    cells = (origin + random.integers(0, side, (blocks, side**3, 3))).reshape(-1, 3)
    cells = np.unique(cells, axis=0)
    return finish(cells, random.random((len(cells), 3)), random.random((len(cells), 3)) < 0.5, resolution)


def finish(cells: np.ndarray, local: np.ndarray, flags: np.ndarray, resolution: int) -> VoxelMesh:
    coords = torch.from_numpy(cells.astype(np.int32))
    vertices, crossings = torch.from_numpy(local.astype(np.float32)), torch.from_numpy(flags)
    mesh = extract_mesh(coords, vertices, crossings, None, resolution)
    attrs = torch.from_numpy(pattern((cells + 0.5) / resolution - 0.5).astype(np.float32))
    return VoxelMesh(mesh, PBRVoxels(coords, attrs, resolution))
