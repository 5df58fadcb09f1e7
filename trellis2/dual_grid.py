"""The flexible dual grid: a mesh as one surface vertex per voxel and three crossing flags.

Flag a of voxel c tells whether the surface crosses the grid edge that ends in the (max, max, max) corner of
c and runs along axis a; the four voxels around that edge make one quad. Knows nothing about materials or
networks.
O-Voxel: Xiang et al., "Native and Compact Structured Latents for 3D Generation" (2025).
Dual contouring: Ju et al., "Dual Contouring of Hermite Data" (2002).

Letters: V vertices, F faces, N voxels, K quads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis2.crossings import VoxelTable, find_crossings, touched_voxels
from trellis2.quadrics import Frame, Quadrics, add_boundary, add_crossings, add_faces, minimize, unit_normals
from trellis_core.geometry.types import Mesh
from trellis_core.sparse.order import find_sorted, inside, key_coords, linear_keys, sort_keys

Box = Sequence[Sequence[float]] | Tensor  # [[x0, y0, z0], [x1, y1, z1]]
UNIT_CUBE = ((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))
LONGEST_SIDE = 0.99999  # of a normalised mesh: every vertex stays strictly inside the cube

# For flag x, y, z: the four voxels around the edge, in cyclic order, as offsets from the flag's own voxel.
QUAD_OFFSETS = (
    ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
)


@dataclass(frozen=True, slots=True)
class Grid:
    """A box cut into voxels."""

    size: tuple[int, int, int]  # Gx, Gy, Gz
    aabb: Sequence[Sequence[float]] = UNIT_CUBE

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"grid size must be positive, got {self.size}")

    @classmethod
    def of(cls, resolution: int | Sequence[int], aabb: Box = UNIT_CUBE) -> Grid:
        sizes = (resolution,) * 3 if isinstance(resolution, int) else tuple(int(n) for n in resolution)
        if len(sizes) != 3:
            raise ValueError(f"grid size must be one number or three, got {resolution}")
        return cls(sizes, aabb.tolist() if isinstance(aabb, Tensor) else aabb)

    def origin(self, device: torch.device) -> Tensor:
        return torch.tensor(self.aabb[0], dtype=torch.float32, device=device)

    def voxel_size(self, device: torch.device) -> Tensor:
        low, high = torch.tensor(self.aabb, dtype=torch.float32)
        return ((high - low) / torch.tensor(self.size)).to(device)


@dataclass(frozen=True, slots=True)
class DualGrid:
    """The shape half of an O-Voxel asset."""

    coords: Tensor  # int32 [N, 3]     in key order (x slowest)
    dual_vertices: Tensor  # float32 [N, 3]   in [0, 1], in voxels from the voxel's minimum corner
    crossings: Tensor  # bool [N, 3]


def normalize_mesh(
    vertices: Tensor,  # float32 [V, 3]
) -> Tensor:  # float32 [V, 3]
    """Centre the bounding box on the origin and scale its longest side to just under 1."""
    if vertices.numel() == 0:
        return vertices
    low, high = vertices.amin(0), vertices.amax(0)
    extent = (high - low).amax().clamp_min(torch.finfo(vertices.dtype).tiny)
    return (vertices - (low + high) / 2) * (LONGEST_SIDE / extent)


@torch.no_grad()
def mesh_to_dual_grid(
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor,  # int32 [F, 3]
    resolution: int | Sequence[int],
    *,
    aabb: Box = UNIT_CUBE,
    face_weight: float = 1.0,
    boundary_weight: float = 0.2,
    regularization_weight: float = 0.01,
) -> DualGrid:
    """Convert a triangle mesh into a flexible dual grid.

    Voxels exist where the surface crosses a grid edge. Each surface vertex minimises the distances to the
    planes of the crossing triangles, to the planes of all triangles in the voxel (any positive `face_weight`
    switches them on), to the open edges (edges used by one triangle; weld seams first) and to the mean
    crossing point. Needs a device with float64. Raises ValueError when a vertex is not finite.
    """
    grid = Grid.of(resolution, aabb)
    frame, quadrics, flags = gather_quadrics(vertices, faces, grid, face_weight, boundary_weight)
    half = frame.voxel_size / 2
    local = minimize(quadrics, regularization_weight, half) / frame.voxel_size + 0.5
    return DualGrid(key_coords(frame.table.keys, grid.size), local.clamp(0, 1), flags)


def gather_quadrics(
    vertices: Tensor, faces: Tensor, grid: Grid, face_weight: float, boundary_weight: float
) -> tuple[Frame, Quadrics, Tensor]:
    """The voxels, their error functions and their crossing flags bool [N, 3]."""
    if not bool(vertices.isfinite().all()):
        raise ValueError("mesh has vertices that are not finite")
    voxel_size = grid.voxel_size(vertices.device)
    vertices = vertices.float() - grid.origin(vertices.device)
    triangles = vertices[faces.long()]
    normals = unit_normals(triangles)
    crossings = find_crossings(triangles, voxel_size, grid.size)
    table = VoxelTable(touched_voxels(crossings, grid.size), grid.size)
    frame = Frame.of(table, grid.size, voxel_size)
    quadrics = add_crossings(frame, triangles, normals, crossings)
    if face_weight > 0:
        add_faces(quadrics.terms, frame, triangles, normals)
    if boundary_weight > 0:
        add_boundary(quadrics.terms, frame, vertices[boundary_edges(faces)], boundary_weight)
    flags = torch.zeros(len(table), 3, dtype=torch.bool, device=vertices.device)
    flags[table.rows(crossings.key), crossings.axis] = True
    return frame, quadrics, flags


def boundary_edges(
    faces: Tensor,  # int32 [F, 3]
) -> Tensor:  # int64 [S, 2]   edges used by exactly one triangle, lower vertex first
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long().sort(1).values
    _, inverse, counts = (edges[:, 0] * (1 << 32) + edges[:, 1]).unique(
        return_inverse=True, return_counts=True
    )
    return edges[counts[inverse] == 1]


def extract_mesh(
    coords: Tensor,  # int32 [N, 3]     unique voxels
    dual_vertices: Tensor,  # float32 [N, 3]   in voxels, from the voxel's minimum corner
    crossings: Tensor,  # bool [N, 3]
    split_weight: Tensor | None,  # float32 [N] or [N, 1], positive; None takes the flatter diagonal
    resolution: int | Sequence[int],
    *,
    aabb: Box = UNIT_CUBE,
    training: bool = False,
) -> Mesh:
    """Make the dual surface of a flexible dual grid.

    Vertices are the voxels' dual vertices in voxel order, unreferenced ones included. Every quad faces the
    negative axis whatever the surface does: the winding is consistent only after orientation. With
    `training`, each quad gets a centre vertex weighted by `split_weight` (appended after the voxels) and
    four triangles, so that the surface is differentiable in the weights. Raises ValueError when the arrays
    do not fit together.
    """
    grid = Grid.of(resolution, aabb)
    for name, tensor in (("dual_vertices", dual_vertices), ("crossings", crossings)):
        if tuple(tensor.shape) != (len(coords), 3):
            raise ValueError(f"{name} must be [{len(coords)}, 3], got {list(tensor.shape)}")
    device = coords.device
    vertices = (coords + dual_vertices.float()) * grid.voxel_size(device) + grid.origin(device)
    weights = None if split_weight is None else split_weight.float().reshape(len(coords))
    quads = find_quads(coords, crossings, grid.size)
    if training:
        centers, faces = split_at_center(vertices, quads, weights)
        return Mesh(torch.cat([vertices, centers]), faces)
    first = flatter_diagonal(vertices, quads) if weights is None else heavier_diagonal(weights, quads)
    return Mesh(vertices, split_along(quads, first))


@torch.no_grad()
def find_quads(
    coords: Tensor,  # int32 [N, 3]
    crossings: Tensor,  # bool [N, 3]
    size: Sequence[int],  # (Gx, Gy, Gz)
    chunk: int = 1 << 22,
) -> Tensor:  # int32 [K, 4]   rows of coords in cyclic order
    """The quads of all set flags whose four voxels exist, voxel by voxel and x, y, z within."""
    keys, rows = sort_keys(linear_keys(coords, size))
    quads, order = [], []
    for axis, offsets in enumerate(QUAD_OFFSETS):
        shifts = torch.tensor(offsets, device=coords.device)
        reach = shifts.amax(0)
        steps = linear_keys(shifts, size)
        owners = crossings[rows, axis].bool().nonzero().squeeze(1)  # in key order: searches stay local
        for part in owners.split(chunk):
            reaches = part[inside(coords[rows[part]] + reach, size)]
            found = find_sorted(keys, keys[reaches, None] + steps)
            quads.append(rows[found[(found >= 0).all(1)]].int())
            order.append(quads[-1][:, 0].long() * 3 + axis)
    return torch.cat(quads)[torch.cat(order).argsort()]


def heavier_diagonal(
    weights: Tensor,  # float32 [N]
    quads: Tensor,  # int32 [K, 4]
) -> Tensor:  # bool [K]
    """Diagonal 0-2 where the product of its weights is larger; a tie takes 1-3."""
    w0, w1, w2, w3 = weights[quads.long()].unbind(1)
    return w0 * w2 > w1 * w3


def flatter_diagonal(
    vertices: Tensor,  # float32 [V, 3]
    quads: Tensor,  # int32 [K, 4]
    chunk: int = 1 << 20,
) -> Tensor:  # bool [K]
    """Diagonal 0-2 unless the two triangles along 1-3 have closer normals."""
    first = []
    for part in quads.long().split(chunk):
        a, b, c, d = vertices[part].unbind(1)
        along_02 = (unit_normal(a, b, c) * unit_normal(a, c, d)).sum(1)
        along_13 = (unit_normal(a, b, d) * unit_normal(d, b, c)).sum(1)
        first.append(along_02 >= along_13)
    return torch.cat(first) if first else torch.zeros(0, dtype=torch.bool, device=quads.device)


def unit_normal(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-30)


def split_along(
    quads: Tensor,  # int32 [K, 4]
    first: Tensor,  # bool [K]     diagonal 0-2, else 1-3
) -> Tensor:  # int32 [2K, 3]
    """Two triangles per quad."""
    along_02 = quads[:, [0, 1, 2, 0, 2, 3]]
    along_13 = quads[:, [0, 1, 3, 3, 1, 2]]
    return torch.where(first[:, None], along_02, along_13).reshape(-1, 3)


def split_at_center(
    vertices: Tensor,  # float32 [V, 3]
    quads: Tensor,  # int32 [K, 4]
    weights: Tensor | None,  # float32 [V]
) -> tuple[Tensor, Tensor]:
    """Centre vertices [K, 3] and four triangles per quad; differentiable in vertices and weights."""
    index = quads.long()
    v0, v1, v2, v3 = vertices[index].unbind(1)
    w = torch.ones(len(vertices), device=vertices.device) if weights is None else weights
    w0, w1, w2, w3 = w[index].unbind(1)
    share = ((w0 * w2) / (w0 * w2 + w1 * w3))[:, None]
    centers = share * (v0 + v2) / 2 + (1 - share) * (v1 + v3) / 2
    middle = torch.arange(len(quads), device=quads.device, dtype=quads.dtype) + len(vertices)
    ring = torch.stack([quads, quads.roll(-1, 1), middle[:, None].expand(-1, 4)], dim=2)
    return centers, ring.reshape(-1, 3)
