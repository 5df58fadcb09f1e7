"""Ambient occlusion: how much of the sky each texel of a mesh sees.

Rays into the hemisphere, more of them near its top (cosine-weighted), so that the share that escapes is the
share of even light that arrives. Neighbouring texels share their rays: each casts an eighth of them, no two
alike, and the texture is smoothed so that every texel counts about as many as were asked for.
Letters: S texture side, Q texels, K rays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trellis_core.geometry.bake import cover_texels
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.normal_map import find_surface, parts_of, search_reach, surface_points
from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime

RAYS = 64
LIFT = 5e-4  # of the object's diagonal: rays start this far above the surface
SHARED = 8  # texels among which rays are divided: as many as the tent averages, by weight
TENT = (0.25, 0.5, 0.25)  # over three texels: narrower than the gaps between charts
KINDS = 4  # the texels of a square send their rays to different heights


def bake_ambient(
    mesh: Mesh,  # with uvs and normals
    texture_size: int,
    rays: int,
    runtime: Runtime,
    *,
    original: Mesh | None = None,  # the detailed surface, wound as `mesh`: it casts the shadows, too
    both_sides: bool = False,  # for meshes drawn from both sides: the brighter side counts
) -> Tensor:  # uint8 [S, S]
    """Share of the sky that each texel sees: 255 all of it, 0 none. The same input gives the same image.

    Runs on the runtime's device; reports the stage `ambient`. Raises `ValueError` for less than one ray.
    """
    if rays < 1:
        raise ValueError(f"rays must be at least 1, got {rays}")
    open_sky: Any = runtime.kernels["open_sky"]
    kernels = runtime.kernels
    mesh = mesh.to(runtime.device)
    original = None if original is None else original.to(runtime.device)
    texels = cover_texels(mesh, texture_size, kernels)
    scene = original if original is not None else mesh
    lift = LIFT * float((scene.vertices.amax(0) - scene.vertices.amin(0)).norm())
    count = max(1, rays // SHARED)
    patterns = [cosine_directions(count, (kind + 0.5) / KINDS).to(runtime.device) for kind in range(KINDS)]
    normals = face_normals(mesh.vertices, mesh.faces)
    reach = 0.0 if original is None else search_reach(texels.position, original, kernels)
    shares, done = [], 0
    for part in parts_of(texels):
        runtime.report("ambient", done, len(texels.index))
        point, normal = part.position, normals[part.face]
        if original is not None:
            found, weight = find_surface(point, normal, original, reach, kernels, either_side=both_sides)
            there, steep = surface_points(original, found, weight)
            steep = torch.where((steep * normal).sum(1, keepdim=True) < 0, -steep, steep)
            point = torch.where((found >= 0)[:, None], there, point)
            normal = torch.where((found >= 0)[:, None], steep, normal)
        turn = scattered_turns(part.index, texture_size)
        kinds = part.index % texture_size % 2 * 2 + part.index // texture_size % 2
        seen = torch.zeros(1 + both_sides, len(point), device=point.device)
        for kind, pattern in enumerate(patterns):
            some = torch.nonzero(kinds == kind).reshape(-1)
            for row, side in zip(seen, (normal[some], -normal[some]), strict=False):
                start = point[some] + lift * side
                row[some] = open_sky(start, side, turn[some], scene.vertices, scene.faces, pattern, math.inf)
        shares.append(seen)
        done += len(point)
    if not shares:
        return torch.full((texture_size,) * 2, 255, dtype=torch.uint8, device=mesh.vertices.device)
    sides = [smooth(side, texels.index, texture_size) for side in torch.cat(shares, 1)]
    share = torch.stack(sides).amax(0)
    values = (share * 255).round().to(torch.uint8)
    runtime.report("ambient", done, done)
    return paint_texture(values[:, None], texels.index, texture_size)[..., 0]


def cosine_directions(count: int, height: float = 0.5) -> Tensor:  # float32 [K, 3]
    """Unit vectors around z with density cos / pi: Hammersley points on the disk, lifted.

    Each has a ring of the disk to itself; `height` in [0, 1] is its place across the ring.
    """
    index = torch.arange(count)
    inverse, digits, scale = torch.zeros(count), index.clone(), 0.5
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


def smooth(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Weighted mean of each texel and its covered neighbours, float32 [Q]."""
    image = torch.zeros(2, 1, size, size, device=values.device)
    image.view(2, -1)[0, index], image.view(2, -1)[1, index] = values, 1.0
    tent = image.new_tensor(TENT)
    image = F.conv2d(image, tent.view(1, 1, 1, 3), padding=(0, 1))
    total, weight = F.conv2d(image, tent.view(1, 1, 3, 1), padding=(1, 0)).view(2, -1)[:, index]
    return (total / weight).clamp(0, 1)
