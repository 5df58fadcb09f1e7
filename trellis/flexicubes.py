"""Surfaces from cubes with values at their corners: FlexiCubes, on the cubes that matter only.

Shen et al., "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization" (2023): dual marching cubes
whose vertices move by weights of the cubes' edges and corners. The table of cases is derived from its rule.

Corner j of a cube lies at (j & 1, j >> 1 & 1, j >> 2 & 1). Values below 0 are inside.
Letters: K cubes, S cubes with surface, P grid corners, V vertices, Q quads, A attributes, R grid resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trellis.representations import CubeLayout
from trellis_core.sparse.order import find_sorted, inside, key_coords, linear_keys, sort_keys
from trellis_core.sparse.tensor import SparseTensor

# Ends of the twelve edges. Those along x and z run upwards, those along y downwards.
EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))
CORNERS = tuple((j & 1, j >> 1 & 1, j >> 2 & 1) for j in range(8))
MAX_PATCHES = 4


@dataclass(frozen=True, slots=True)
class CaseTable:
    """What the signs of a cube's corners mean; case = sum of 2^j over inside corners j."""

    patch_of_edge: Tensor  # int64 [256, 12]  patch that an edge belongs to, -1 where nothing crosses it
    patches: Tensor  # int64 [256]  patches, each of which gets one vertex
    unclear: Tensor  # bool [256]  cases that may have to be read inside out, see `resolve`
    direction: Tensor  # int64 [256, 3]  where the neighbour is that decides it

    def to(self, device: torch.device) -> CaseTable:
        return CaseTable(*(getattr(self, name).to(device) for name in self.__slots__))


@lru_cache(maxsize=1)
def case_table() -> CaseTable:
    """Derive all cases: crossed edges are joined across the cube's faces, groups of them are patches.

    A face with two crossed edges joins them. A face with four is ambiguous and joins, at each of its inside
    corners, the two edges that meet there.
    """
    patch_of_edge = torch.full((256, 12), -1)
    patches = torch.zeros(256, dtype=torch.int64)
    direction = torch.zeros(256, 3, dtype=torch.int64)
    for case in range(256):
        is_inside = [bool(case >> j & 1) for j in range(8)]
        crossed = {e for e, (a, b) in enumerate(EDGES) if is_inside[a] != is_inside[b]}
        group = {e: e for e in crossed}
        ambiguous = []
        for axis in range(3):
            for side in (0, 1):
                face = [j for j in range(8) if CORNERS[j][axis] == side]
                edges = [e for e in crossed if set(EDGES[e]) <= set(face)]
                if len(edges) == 2:
                    join(group, *edges)
                elif len(edges) == 4:
                    ambiguous.append((axis, 2 * side - 1))
                    for corner in face:
                        if is_inside[corner]:
                            join(group, *(e for e in edges if corner in EDGES[e]))
        names = sorted(set(group.values()))
        patches[case] = len(names)
        for e in crossed:
            patch_of_edge[case, e] = names.index(group[e])
        if len(ambiguous) == 1 and len(names) == 1:
            axis, sign = ambiguous[0]
            direction[case, axis] = sign
    return CaseTable(patch_of_edge, patches, direction.any(1), direction)


def join(group: dict[int, int], a: int, b: int) -> None:
    """Merge the groups of two edges; a group is named by its smallest edge."""
    old, new = max(group[a], group[b]), min(group[a], group[b])
    for e, name in group.items():
        if name == old:
            group[e] = new


@dataclass(frozen=True, slots=True)
class CubeGrid:
    """Cubes of a grid and the values at their corners."""

    cubes: Tensor  # int32 [K, 3]  sorted, x slowest
    corners: Tensor  # int32 [K, 8]  rows of the corner tables
    positions: Tensor  # float32 [P, 3]
    sdf: Tensor  # float32 [P]
    resolution: int  # R
    attributes: Tensor | None = None  # float32 [P, A]  interpolated along with the positions
    beta: Tensor | None = None  # float32 [K, 12]  weights of the edges; None: 1
    alpha: Tensor | None = None  # float32 [K, 8]  weights of the corners; None: 1
    gamma: Tensor | None = None  # float32 [K]  decides how quads are cut; None: 1


@dataclass(frozen=True, slots=True)
class Surface:
    """Triangles that look towards positive values."""

    vertices: Tensor  # float32 [V, 3]
    faces: Tensor  # int32 [F, 3]
    attributes: Tensor | None  # float32 [V, A]
    deviation: Tensor  # float32 [crossings]  how unevenly a patch's crossings lie around its vertex


def extract_surface(grid: CubeGrid, *, training: bool = False) -> Surface:
    """Where the values change sign; differentiable in positions, values, attributes and weights.

    In training every quad gets a vertex in its middle and four triangles, so that gamma has a gradient.
    """
    device = grid.sdf.device
    table = case_table().to(device)
    inside_corner = grid.sdf[grid.corners] < 0
    cases = (inside_corner.long() << torch.arange(8, device=device)).sum(1)
    rows = ((cases > 0) & (cases < 255)).nonzero()[:, 0]  # [S]
    cases = resolve(grid.cubes[rows], cases[rows], grid.resolution, table)
    patch = table.patch_of_edge[cases]  # [S, 12]

    corners = grid.corners[rows].long()
    ends = torch.tensor(EDGES, device=device).T
    first, last = corners[:, ends[0]], corners[:, ends[1]]  # [S, 12]
    crossed = patch >= 0
    raw = grid.sdf[first], grid.sdf[last]
    weighted = raw
    if grid.alpha is not None:
        alpha = grid.alpha[rows]
        weighted = raw[0] * alpha[:, ends[0]], raw[1] * alpha[:, ends[1]]
    beta = torch.ones_like(raw[0]) if grid.beta is None else grid.beta[rows]
    start = torch.cumsum(table.patches[cases], 0) - table.patches[cases]  # first vertex of each cube
    total = int(table.patches[cases].sum())
    of_patch = [patch == number for number in range(MAX_PATCHES)]

    def place(values: Tensor) -> Tensor:
        """[P, X] -> [V, X]: weighted mean of a patch's crossings."""
        crossing = interpolate(values[first], values[last], *weighted, crossed)
        placed = values.new_zeros(total, values.shape[1])
        for number, mine in enumerate(of_patch):
            has = mine.any(1)
            weights = (beta * mine)[has]
            mean = (crossing[has] * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
            placed = placed.index_copy(0, start[has] + number, mean)
        return placed

    vertices = place(grid.positions)
    attributes = None if grid.attributes is None else place(grid.attributes)
    vertex = torch.where(crossed, start[:, None] + patch, 0)  # [S, 12]
    plain = interpolate(grid.positions[first], grid.positions[last], *raw, crossed)
    deviation = uneven(plain, vertices, vertex, crossed, of_patch)

    quads, owners = find_quads(grid.cubes[rows], grid.resolution, crossed, vertex, raw[0])
    gamma = torch.ones(len(rows), device=device) if grid.gamma is None else grid.gamma[rows]
    gamma = gamma[owners]  # [Q, 4]
    diagonals = torch.stack([gamma[:, 0] * gamma[:, 2], gamma[:, 1] * gamma[:, 3]], dim=1)
    if not training:
        return Surface(vertices, cut(quads, diagonals[:, 0] > diagonals[:, 1]).int(), attributes, deviation)

    def with_middles(values: Tensor) -> Tensor:
        corner = values[quads]  # [Q, 4, X]
        halves = torch.stack([corner[:, [0, 2]].mean(1), corner[:, [1, 3]].mean(1)], dim=1)
        middle = (halves * diagonals[..., None]).sum(1) / (diagonals.sum(1, keepdim=True) + 1e-8)
        return torch.cat([values, middle])

    faces = fan(quads, total).int()
    attributes = None if attributes is None else with_middles(attributes)
    return Surface(with_middles(vertices), faces, attributes, deviation)


def resolve(
    cubes: Tensor,  # int32 [S, 3]  sorted
    cases: Tensor,  # int64 [S]
    resolution: int,
    table: CaseTable,
) -> Tensor:  # int64 [S]
    """Where two neighbours are unclear about the face between them, read both inside out.

    Otherwise they would make an edge of four faces.
    """
    keys = linear_keys(cubes, (resolution,) * 3)
    asking = table.unclear[cases].nonzero()[:, 0]
    beside = cubes[asking] + table.direction[cases[asking]]
    there = inside(beside, (resolution,) * 3)
    asking, beside = asking[there], beside[there]
    found = find_sorted(keys, linear_keys(beside, (resolution,) * 3))
    mutual = (found >= 0) & table.unclear[cases[found]]
    return cases.index_put((asking[mutual],), 255 - cases[asking[mutual]])


def interpolate(
    a: Tensor,  # [S, 12, X]
    b: Tensor,
    value_a: Tensor,  # [S, 12]
    value_b: Tensor,
    crossed: Tensor,  # bool [S, 12]
) -> Tensor:  # [S, 12, X]
    """Where values of different sign reach zero between a and b; 0 on edges that nothing crosses."""
    difference = torch.where(crossed, value_b - value_a, 1)[..., None]
    zero = (a * value_b[..., None] - b * value_a[..., None]) / difference
    return torch.where(crossed[..., None], zero, 0)


def uneven(
    crossing: Tensor,  # [S, 12, 3]
    vertices: Tensor,  # [V, 3]
    vertex: Tensor,  # int64 [S, 12]
    crossed: Tensor,  # bool [S, 12]
    of_patch: list[Tensor],  # bool [S, 12] for each patch
) -> Tensor:  # [crossings]
    """Per crossing: | distance to its vertex - mean distance in its patch |."""
    gap = torch.where(crossed[..., None], crossing - vertices[vertex] if len(vertices) else crossing, 1)
    distance = gap.norm(dim=2)
    mean = torch.zeros_like(distance)
    for mine in of_patch:
        patch_mean = (distance * mine).sum(1, keepdim=True) / mine.sum(1, keepdim=True).clamp_min(1)
        mean = torch.where(mine, patch_mean, mean)
    return (distance - mean).abs()[crossed]


def find_quads(
    cubes: Tensor,  # int32 [S, 3]  sorted
    resolution: int,
    crossed: Tensor,  # bool [S, 12]
    vertex: Tensor,  # int64 [S, 12]
    value: Tensor,  # float32 [S, 12]  at the first end of each edge
) -> tuple[Tensor, Tensor]:
    """Every crossed grid edge with surface in all four cubes around it.

    Returns the vertices int64 [Q, 4] in order around the edge, and the cubes they belong to, int64 [Q, 4],
    as numbers among those with surface.
    """
    device = value.device
    lower, axis = zip(*(edge_place(*edge) for edge in EDGES), strict=True)
    origin = cubes[:, None] + torch.tensor([CORNERS[j] for j in lower], device=device)
    keys = linear_keys(origin, (resolution + 1,) * 3) * 3 + torch.tensor(axis, device=device)
    cube, edge = crossed.nonzero(as_tuple=True)  # cubes ascend, as the order of the quads' corners wants
    sorted_keys, order = torch.sort(keys[cube, edge], stable=True)
    _, counts = torch.unique_consecutive(sorted_keys, return_counts=True)
    starts = torch.cumsum(counts, 0) - counts
    around = order[starts[counts == 4][:, None] + torch.arange(4, device=device)]  # [Q, 4]
    # a value of 0 counts as outside here, too: upstream turns such quads around
    up = (value[cube, edge][around[:, :1]] >= 0).long()
    turns = torch.tensor([[2, 3, 1, 0], [0, 1, 3, 2]], device=device)
    around = around.gather(1, turns[up[:, 0]])
    return vertex[cube, edge][around], cube[around]


def edge_place(a: int, b: int) -> tuple[int, int]:
    """The lower end of a cube's edge, and its axis."""
    return min(a, b), (a ^ b).bit_length() - 1


def cut(quads: Tensor, first_diagonal: Tensor) -> Tensor:
    """Two triangles per quad, cut from corner 0 to 2 or from 1 to 3."""
    ways = torch.tensor([[[0, 1, 3], [3, 1, 2]], [[0, 1, 2], [0, 2, 3]]], device=quads.device)
    return quads.gather(1, ways[first_diagonal.long()].flatten(1)).reshape(-1, 3)


def fan(quads: Tensor, first: int) -> Tensor:
    """Four triangles per quad around a new vertex; new vertices are numbered from `first`."""
    middle = torch.arange(len(quads), device=quads.device)[:, None] + first
    sides = [torch.cat([quads[:, [i, (i + 1) % 4]], middle], dim=1) for i in range(4)]
    return torch.stack(sides, dim=1).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class CubeMesh:
    """A surface with what the mesh decoder says about it."""

    vertices: Tensor  # float32 [V, 3]  world space
    faces: Tensor  # int32 [F, 3]
    attributes: Tensor | None  # float32 [V, 6]  color (sRGB-coded), normal mapped to [0, 1]
    resolution: int  # R, of the cubes
    training: CubeTraining | None = None


@dataclass(frozen=True, slots=True)
class CubeTraining:
    """What the decoder's training looks at besides pictures of the surface."""

    regularizer: Tensor  # float32 []  consistency of shared corners, evenness and size of weights
    corner_positions: Tensor  # float32 [P, 3]  deformed corners of the decoded cubes, sorted, x slowest
    corner_sdf: Tensor  # float32 [P]


def cube_meshes(
    decoded: SparseTensor,  # float32 [K, channels]  of the mesh decoder
    layout: CubeLayout,
    resolution: int,  # R, of the cubes
    *,
    training: bool = False,
) -> list[CubeMesh]:
    """The decoder's numbers as surfaces, one per sample; a sample without a surface has no faces."""
    return [
        cube_mesh(
            decoded.coords[rows, 1:], decoded.feats[rows].float(), layout, resolution, training=training
        )
        for rows in map(decoded.layout.rows, range(decoded.batch_size))
    ]


def cube_mesh(
    cubes: Tensor,  # int32 [K, 3]
    feats: Tensor,  # float32 [K, channels]
    layout: CubeLayout,
    resolution: int,
    *,
    training: bool = False,
) -> CubeMesh:
    """One sample of `cube_meshes`."""
    sdf, deform, weights, colors = feats.split([8, 24, 21, feats.shape[1] - 53], dim=1)
    index = CubeIndex.of(cubes, resolution)
    corner_keys = torch.unique(index.corner_keys(index.keys))
    values = index.corner_means(corner_keys, (sdf - 1 / resolution)[..., None])[:, 0]
    moves, paints = deform.unflatten(1, (8, 3)), colors.unflatten(1, (8, -1))

    surface_keys = cubes_with_surface(index, corner_keys, values)
    own_corners = index.corner_keys(surface_keys)
    every = torch.unique(own_corners)
    beta, alpha, gamma = activated(index.lookup(surface_keys, weights, 0))
    grid = CubeGrid(
        cubes=index.coords(surface_keys),
        corners=find_sorted(every, own_corners).int(),
        positions=corner_positions(index.coords(every), index.corner_means(every, moves), resolution),
        sdf=value_at(every, corner_keys, values),
        resolution=resolution,
        attributes=index.corner_means(every, paints).sigmoid() if layout.use_color else None,
        beta=beta,
        alpha=alpha,
        gamma=gamma,
    )
    surface = extract_surface(grid, training=training)
    extra = None
    if training:
        parts = [(sdf - 1 / resolution)[..., None], moves, *([paints] if layout.use_color else [])]
        extra = training_terms(index, corner_keys, torch.cat(parts, dim=2), weights, surface.deviation)
    return CubeMesh(surface.vertices, surface.faces, surface.attributes, resolution, extra)


@dataclass(frozen=True, slots=True)
class CubeIndex:
    """Cubes by key. Cubes and corners are numbered in one grid of R + 1, so that neighbours differ by a step.

    A step out of the domain leads to a key that no cube has.
    """

    keys: Tensor  # int64 [K]  sorted
    rows: Tensor  # int64 [K]  where each was given
    steps: Tensor  # int64 [8]  from a cube to its corners
    resolution: int  # R

    @classmethod
    def of(cls, cubes: Tensor, resolution: int) -> CubeIndex:
        size = (resolution + 1,) * 3
        steps = linear_keys(cubes.new_tensor(CORNERS), size)
        return cls(*sort_keys(linear_keys(cubes, size)), steps, resolution)

    def coords(self, keys: Tensor) -> Tensor:  # int32 [..., 3]
        return key_coords(keys, (self.resolution + 1,) * 3)

    def corner_keys(self, keys: Tensor) -> Tensor:  # int64 [K, 8]
        return keys[:, None] + self.steps

    def lookup(self, keys: Tensor, values: Tensor, default: float) -> Tensor:
        """Rows of `values` [K, ...] for these cubes, `default` where there is no such cube."""
        found = find_sorted(self.keys, keys)
        there = (found >= 0).view(-1, *[1] * (values.ndim - 1))
        return torch.where(there, values[self.rows[found]], default)

    def corner_means(
        self,
        corner_keys: Tensor,  # int64 [P]
        copied: Tensor,  # float32 [K, 8, X]  what each cube says about its corners
    ) -> Tensor:  # float32 [P, X]
        """The mean of what is said about each corner, 0 where nothing is.

        Gathers instead of adding up, so that the result does not depend on an order.
        """
        total = copied.new_zeros(len(corner_keys), copied.shape[2])
        count = copied.new_zeros(len(corner_keys), 1)
        for number, step in enumerate(self.steps):
            found = find_sorted(self.keys, corner_keys - step)
            there = (found >= 0)[:, None]
            total = total + torch.where(there, copied[self.rows[found], number], 0)
            count = count + there
        return total / count.clamp_min(1)


def cubes_with_surface(index: CubeIndex, corner_keys: Tensor, values: Tensor) -> Tensor:
    """Keys of all cubes with inside and outside corners, sorted: given ones, and neighbours where the surface
    closes. Every one of them touches an inside corner, so nothing else is looked at."""
    size = (index.resolution,) * 3
    around = torch.unique(corner_keys[values < 0][:, None] - index.steps)
    around = around[(around >= 0) & inside(index.coords(around), size)]
    outside = value_at(index.corner_keys(around), corner_keys, values) >= 0
    return around[outside.any(1)]


def value_at(keys: Tensor, corner_keys: Tensor, values: Tensor) -> Tensor:
    """Values at corners; all is outside beyond the cubes."""
    found = find_sorted(corner_keys, keys)
    return torch.where(found >= 0, values[found], 1)


def training_terms(
    index: CubeIndex,
    corner_keys: Tensor,  # int64 [P]
    copied: Tensor,  # float32 [K, 8, X]  sdf, displacement, colors
    weights: Tensor,  # float32 [K, 21]
    deviation: Tensor,
) -> CubeTraining:
    """Cubes shall agree about a corner, crossings lie evenly around their vertex, weights stay small."""
    mean = index.corner_means(corner_keys, copied)
    rows = find_sorted(corner_keys, index.corner_keys(index.keys))
    terms = [(copied[index.rows] - mean[rows]).square().mean(), 0.2 * weights[:, :20].abs().mean()]
    if len(deviation):
        terms.append(0.5 * deviation.mean())
    placed = corner_positions(index.coords(corner_keys), mean[:, 1:4], index.resolution)
    return CubeTraining(torch.stack(terms).sum(), placed, mean[:, 0])


def activated(
    weights: Tensor,  # float32 [K, 21]  raw
    scale: float = 0.99,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of edges [K, 12], of corners [K, 8] and of cuts [K], all positive."""
    beta, alpha, gamma = weights.split([12, 8, 1], dim=1)
    return (
        scale * beta.tanh() + 1,
        scale * alpha.tanh() + 1,
        (scale * gamma.sigmoid() + (1 - scale) / 2)[:, 0],
    )


def corner_positions(
    corners: Tensor,  # int32 [P, 3]
    displacement: Tensor,  # float32 [P, 3]  raw
    resolution: int,
) -> Tensor:  # float32 [P, 3]  world space
    """Corners move by less than half a cube."""
    reach = (1 - 1e-8) / (2 * resolution)
    return corners / resolution - 0.5 + reach * displacement.tanh()
