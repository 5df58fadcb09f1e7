"""Ambient occlusion: how much of the sky each texel of a mesh sees.

Rays into the hemisphere, more of them near its top (cosine-weighted), so that the share that escapes is the
share of even light that arrives. Neighbouring texels share their rays: each casts a few, no two alike, and
the texture is smoothed along the surface so that every texel counts as many as were asked for.
Letters: S texture side, Q texels, K rays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.beneath import Beneath, Spots, cover_spots, find_beneath, places, smooth_normals
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.tangents import blend
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime, silent

RAYS = 256
LIFT = 5e-4  # of the object's diagonal: rays start this far above the surface
SHARED = (1.0, 7.1, 33.9, 140.0, 563.0)  # texels that a texel counts after so many rounds of smoothing
ROUNDS = ((256, 1), (1024, 2), (2048, 3), (math.inf, 4))  # by texture size: what is shared is as wide
APART = 3.0  # times their distance in the texture that texels which share may lie apart on the surface
TURNED = 0.6  # between their normals, as vectors
KINDS = 4  # the texels of a square send their rays to different heights
CHUNK = 1 << 20  # texels at a time


def bake_ambient(
    mesh: Mesh,  # with uvs and normals
    texture_size: int,
    rays: int,
    runtime: Runtime,
    *,
    original: Mesh | None = None,  # the detailed surface, wound as `mesh`: it casts the shadows, too
    both_sides: bool = False,  # for meshes drawn from both sides: the brighter side counts
    beneath: Beneath | None = None,  # of `find_beneath`, when it is known already
) -> Tensor:  # uint8 [S, S]
    """Share of the sky that each texel sees: 255 all of it, 0 none. The same input gives the same image.

    Runs on the runtime's device; reports the stage `ambient`. Raises `ValueError` for less than one ray.
    """
    if rays < 1:
        raise ValueError(f"rays must be at least 1, got {rays}")
    mesh = mesh.to(runtime.device)
    scene = mesh if original is None else original.to(runtime.device)
    runtime.report("ambient", 0, 1)
    if original is not None and beneath is None:
        beneath = find_beneath(mesh, scene, texture_size, runtime, either_side=both_sides)
    spots = cover_spots(mesh, texture_size, runtime.kernels) if beneath is None else beneath.spots
    if not len(spots.index):
        return torch.full((texture_size,) * 2, 255, dtype=torch.uint8, device=mesh.vertices.device)
    rounds = next(rounds for size, rounds in ROUNDS if texture_size <= size)
    point, normal = where_to_look_from(mesh, scene, spots, beneath)
    count = math.ceil(rays / SHARED[rounds])
    seen = look_around(point, normal, scene, spots.index, texture_size, count, both_sides, runtime)
    if beneath is not None:  # from a place that lies below the original, one would see nothing
        lost = torch.nonzero(beneath.face < 0).reshape(-1)
        own = (point[lost], normal[lost], mesh, spots.index[lost])
        quietly = runtime.reporting(silent)
        seen[:, lost] = look_around(*own, texture_size, count, both_sides, quietly)
    share = share_rays(seen, spots, mesh, normal, texture_size, rounds).amax(0)
    values = (share.clamp(0, 1) * 255).round().to(torch.uint8)
    return paint_texture(values[:, None], spots.index, texture_size)[..., 0]


def where_to_look_from(
    mesh: Mesh, scene: Mesh, spots: Spots, beneath: Beneath | None
) -> tuple[Tensor, Tensor]:  # float32 [Q, 3], float32 [Q, 3] unit
    """Points on the original where it is known, else on the mesh, and the normals of the faces there."""
    point, normal = places(mesh, spots), face_normals(mesh.vertices, mesh.faces)[spots.face]
    if beneath is None:
        return point, normal
    face = beneath.face.clamp_min(0)
    there = blend(scene.vertices[scene.faces[face].long()], beneath.weight)
    steep = face_normals(scene.vertices, scene.faces)[face]
    turned = (steep * smooth_normals(mesh, spots)).sum(1, keepdim=True) < 0
    known = (beneath.face >= 0)[:, None]
    return torch.where(known, there, point), torch.where(known, torch.where(turned, -steep, steep), normal)


def look_around(
    point: Tensor,  # float32 [Q, 3]
    normal: Tensor,  # float32 [Q, 3]
    scene: Mesh,
    index: Tensor,  # int64 [Q]  row * S + column
    size: int,
    count: int,
    both_sides: bool,
    runtime: Runtime,
) -> Tensor:  # float32 [1 or 2, Q]
    """Share of `count` rays that get away, above each point and, where wanted, below it."""
    open_sky: Any = runtime.kernels["open_sky"]
    lift = LIFT * float((scene.vertices.amax(0) - scene.vertices.amin(0)).norm())
    turn = scattered_turns(index, size)
    kinds = index % size % 2 * 2 + index // size % 2
    seen = torch.zeros(1 + both_sides, len(point), device=point.device)
    done = 0
    for kind in range(KINDS):
        pattern = cosine_directions(count, (kind + 0.5) / KINDS, point.device)
        for some in torch.nonzero(kinds == kind).reshape(-1).split(CHUNK):
            runtime.report("ambient", done, len(point))
            for row, side in zip(seen, (normal[some], -normal[some]), strict=False):
                start = point[some] + lift * side
                row[some] = open_sky(start, side, turn[some], scene.vertices, scene.faces, pattern, math.inf)
            done += len(some)
    runtime.report("ambient", done, done)
    return seen


def cosine_directions(
    count: int, height: float = 0.5, device: torch.device | str = "cpu"
) -> Tensor:  # float32 [K, 3]
    """Unit vectors around z with density cos / pi: Hammersley points on the disk, lifted.

    Each has a ring of the disk to itself; `height` in [0, 1] is its place across the ring.
    """
    index = torch.arange(count, device=device)
    inverse, digits, scale = torch.zeros(count, device=device), index.clone(), 0.5
    while bool(digits.any()):
        inverse += scale * (digits % 2)
        digits, scale = digits // 2, scale / 2
    square = (index + height) / count
    angle = 2 * math.pi * inverse
    radius = square.sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), (1 - square).sqrt()], 1)


def scattered_turns(index: Tensor, size: int) -> Tensor:  # float32 [Q]  radians
    """An angle per texel, different from its neighbours' (interleaved gradient noise: Jimenez, 2014)."""
    x, y = (index % size).double(), (index // size).double()
    return ((52.9829189 * (0.06711056 * x + 0.00583715 * y).frac()).frac() * 2 * math.pi).float()


def share_rays(
    seen: Tensor,  # float32 [K, Q]
    spots: Spots,
    mesh: Mesh,
    normal: Tensor,  # float32 [Q, 3]  where the rays started
    size: int,
    rounds: int,
) -> Tensor:  # float32 [K, Q]
    """Weighted mean of each texel and those around it on the surface.

    A tent over three texels, then over every second one, every fourth, ...: what was averaged is averaged
    again (Dammertz et al., "Edge-avoiding à-trous wavelet transform", 2010). Texels that lie apart, as those
    of other charts, or look another way, as those behind an edge, do not count.
    """
    side = (float(face_areas(mesh.vertices, mesh.faces).sum()) / max(len(spots.index), 1)) ** 0.5
    image = torch.zeros(len(seen), size * size, device=seen.device)
    image[:, spots.index] = seen
    image = image.view(-1, size, size)
    guide = torch.full((6, size * size), torch.nan, device=seen.device)  # unlike everything
    guide[:3, spots.index] = (places(mesh, spots) / (APART * side)).T
    guide[3:, spots.index] = (normal / TURNED).T
    guide = guide.view(6, size, size)
    for step in (1 << number for number in range(rounds)):
        if step >= size:
            break
        for axis in (1, 2):
            image = tent(image, guide, axis, step)
    return image.view(len(seen), -1)[:, spots.index]


def tent(
    image: Tensor,  # float32 [K, S, S]
    guide: Tensor,  # float32 [6, S, S]  place and normal
    axis: int,
    step: int,
) -> Tensor:
    """Half of each texel and a quarter of those `step` before and behind it, where they are like it."""
    length = image.shape[axis] - step
    first, last = (0, length), (step, length)
    apart = torch.zeros_like(guide[0].narrow(axis - 1, *first))
    for plane, scale in zip(guide, [step**-2] * 3 + [1.0] * 3, strict=True):
        gap = plane.narrow(axis - 1, *first) - plane.narrow(axis - 1, *last)
        apart.addcmul_(gap, gap, value=scale)
    near = (apart < 1).float().mul_(0.25)
    total, weight = image * 0.5, torch.full_like(image[:1], 0.5)
    for here, there in ((first, last), (last, first)):
        total.narrow(axis, *here).addcmul_(image.narrow(axis, *there), near)
        weight.narrow(axis, *here).add_(near)
    return total / weight
