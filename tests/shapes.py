"""Small procedural shapes for tests: signed distances dual-contoured on a voxel grid, with colours.

As the decoder's output, the raw meshes wind every quad towards the positive axis, whatever the surface does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trellis_core.geometry.types import Mesh, PBRVoxels, VoxelMesh

Distance = Callable[[np.ndarray], np.ndarray]  # [..., 3] -> [...]

QUADS = {
    0: ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    1: ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    2: ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
}


def sphere(radius: float = 0.35, center: tuple[float, float, float] = (0, 0, 0)) -> Distance:
    return lambda p: np.linalg.norm(p - np.array(center), axis=-1) - radius


def box(half: tuple[float, float, float] = (0.3, 0.25, 0.2)) -> Distance:
    def distance(p: np.ndarray) -> np.ndarray:
        q = np.abs(p) - np.array(half)
        return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)

    return distance


def torus(major: float = 0.3, minor: float = 0.12) -> Distance:
    return lambda p: np.hypot(np.hypot(p[..., 0], p[..., 1]) - major, p[..., 2]) - minor


def torus_knot(p_turns: int = 2, q_turns: int = 3, radius: float = 0.075) -> Distance:
    t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = 0.27 + 0.13 * np.cos(q_turns * t)
    curve = np.stack(
        [ring * np.cos(p_turns * t), ring * np.sin(p_turns * t), 0.2 * np.sin(q_turns * t)], axis=1
    )

    def distance(points: np.ndarray) -> np.ndarray:
        flat = points.reshape(-1, 3)
        nearest = np.full(len(flat), np.inf)
        for start in range(0, len(curve), 16):
            nearest = np.minimum(
                nearest, ((flat[:, None] - curve[None, start : start + 16]) ** 2).sum(-1).min(1)
            )
        return np.sqrt(nearest).reshape(points.shape[:-1]) - radius

    return distance


def union(*parts: Distance) -> Distance:
    return lambda p: np.min([part(p) for part in parts], axis=0)


def hollow(part: Distance, thickness: float) -> Distance:
    return lambda p: np.maximum(part(p), -(part(p) + thickness))


def rainbow(points: np.ndarray) -> np.ndarray:
    """Base color, metallic, roughness, alpha as smooth functions of position."""
    color = 0.5 + 0.45 * np.sin(9 * points + np.array([0.0, 2.0, 4.0]))
    metallic = 0.5 + 0.4 * np.sin(7 * points[:, :1])
    roughness = 0.5 + 0.4 * np.cos(5 * points[:, 1:2])
    return np.concatenate([color, metallic, roughness, np.ones_like(metallic)], axis=1)


def dual_grid(
    distance: Distance,
    resolution: int,
    *,
    lost_quads: float = 0.0,  # share of quads left out
    stray_quads: float = 0.0,  # extra quads, as a share
    seed: int = 0,
    colors: Callable[[np.ndarray], np.ndarray] = rainbow,
) -> VoxelMesh:
    """Dual contouring of `distance` on a grid over the unit cube."""
    corner = (
        np.stack(np.meshgrid(*[np.arange(resolution + 1)] * 3, indexing="ij"), axis=-1) / resolution - 0.5
    )
    value = distance(corner)
    total = np.zeros((resolution,) * 3 + (3,))
    count = np.zeros((resolution,) * 3)
    for axis in range(3):
        near = np.take(value, range(resolution), axis)
        far = np.take(value, range(1, resolution + 1), axis)
        crosses = (near < 0) != (far < 0)
        where = np.argwhere(crosses)
        fraction = near[crosses] / (near[crosses] - far[crosses])
        point = where + fraction[:, None] * np.eye(3)[axis]
        a, b = (axis + 1) % 3, (axis + 2) % 3
        for da in (0, 1):
            for db in (0, 1):
                cell = where.copy()
                cell[:, a] -= da
                cell[:, b] -= db
                inside = ((cell >= 0) & (cell < resolution)).all(1)
                np.add.at(total, tuple(cell[inside].T), point[inside])
                np.add.at(count, tuple(cell[inside].T), 1)
    coords = np.argwhere(count > 0)
    vertices = total[tuple(coords.T)] / count[tuple(coords.T)][:, None] / resolution - 0.5
    number = np.full((resolution + 1,) * 3, -1)
    number[tuple(coords.T)] = np.arange(len(coords))

    random = np.random.default_rng(seed)
    quads = []
    for axis, offsets in QUADS.items():
        base = coords + 1 - np.eye(3, dtype=int)[axis]
        start, end = value[tuple(base.T)], value[tuple((coords + 1).T)]
        flags = (start < 0) != (end < 0)
        flags ^= random.random(len(flags)) < np.where(flags, lost_quads, stray_quads)
        cells = coords[flags][:, None] + np.array(offsets)[None]
        quads.append(number[tuple(cells.reshape(-1, 3).T)].reshape(-1, 4))
    quad = np.concatenate(quads)
    quad = quad[(quad >= 0).all(1)]
    faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])
    mesh = Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces).to(torch.int32))
    attrs = torch.from_numpy(colors(vertices)).float()
    return VoxelMesh(mesh, PBRVoxels(torch.from_numpy(coords).to(torch.int32), attrs, resolution))
