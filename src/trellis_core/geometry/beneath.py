"""Where the original surface lies, seen from the texels of a simpler mesh.

Each texel looks along the smooth normal of the simple mesh, forwards and backwards, for the nearest piece of
the original that faces its way. What is baked from there - normals, shadows - is up to others.
Letters: S texture side, Q texels, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import row_keys
from trellis_core.geometry.normals import vertex_normals
from trellis_core.geometry.tangents import blend
from trellis_core.geometry.triangles import face_normals, unit
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

SAMPLES = 4000  # texels by which the distance between the two surfaces is estimated
AMPLE = 2.0  # times the largest of these distances is searched
FARTHEST = 0.1  # of the object's diagonal
AGREE = 0.1  # cosine between the normals of a texel and of the surface it is given
LAYERS = 4  # of surface that a texel looks through on either side
SKIP = 1e-4  # of the reach: a ray goes on so far behind what it has hit
CHUNK = 1 << 20  # texels at a time


@dataclass(frozen=True, slots=True)
class Spots:
    """The texels that a mesh covers in its texture, and their places on its faces."""

    index: Tensor  # int64 [Q]       row * S + column
    face: Tensor  # int64 [Q]
    weight: Tensor  # float32 [Q, 3]  barycentric

    def parts(self, size: int) -> list[Spots]:
        """The same in pieces of at most `size`."""
        columns = (values.split(size) for values in (self.index, self.face, self.weight))
        return [Spots(*part) for part in zip(*columns, strict=True) if len(part[0])]


@dataclass(frozen=True, slots=True)
class Beneath:
    """What each texel of a mesh found of the original."""

    spots: Spots
    face: Tensor  # int64 [Q]       of the original; -1 where there is none
    weight: Tensor  # float32 [Q, 3]  barycentric


def find_beneath(
    mesh: Mesh,  # with uvs and normals
    original: Mesh,  # wound as `mesh`
    texture_size: int,
    runtime: Runtime,
    *,
    either_side: bool = False,  # for meshes drawn from both sides: how the original is wound does not matter
) -> Beneath:
    """Look for the original under every texel. Runs on the runtime's device."""
    mesh, original = mesh.to(runtime.device), original.to(runtime.device)
    spots = cover_spots(mesh, texture_size, runtime.kernels)
    reach = search_reach(mesh, spots, original, runtime.kernels)
    target = face_normals(original.vertices, original.faces)
    outward, corners = projection(mesh)
    faces, weights = [spots.face[:0]], [spots.weight[:0]]
    for part in spots.parts(CHUNK):
        runtime.report("original", len(faces) - 1, len(spots.index) // CHUNK + 1)
        along = unit(blend(outward[corners[part.face]], part.weight))
        start, normal = places(mesh, part), smooth_normals(mesh, part)
        face, weight = find_surface(
            start, along, normal, original, target, reach, runtime.kernels, either_side
        )
        faces.append(face)
        weights.append(weight)
    return Beneath(spots, torch.cat(faces), torch.cat(weights))


def cover_spots(mesh: Mesh, size: int, kernels: Kernels) -> Spots:
    """Which texel centres lie inside which triangle."""
    assert mesh.uvs is not None
    rasterize: Any = kernels["rasterize"]
    pixel = torch.cat([mesh.uvs * size, torch.zeros_like(mesh.uvs[:, :1])], dim=1)
    face, weight = rasterize(pixel, mesh.faces, size, size)
    index = torch.nonzero(face.reshape(-1) >= 0).reshape(-1)
    return Spots(index, face.reshape(-1)[index].long(), weight.reshape(-1, 3)[index])


def projection(mesh: Mesh) -> tuple[Tensor, Tensor]:  # float32 [V, 3], int64 [F, 3]
    """Directions in which to look, and which of them belong to each corner.

    Smooth also across creases and seams: what is seen on both sides of an edge goes on without a step.
    """
    bits = (mesh.vertices.float() + 0.0).contiguous().view(torch.int32)  # -0 and 0 are one
    places, owner = torch.unique(row_keys(bits), return_inverse=True)
    place = torch.zeros(len(places), 3, device=bits.device)
    place[owner] = mesh.vertices.float() + 0.0  # what is written twice is the same
    corners = owner[mesh.faces.long()]
    return vertex_normals(place, corners), corners


def places(mesh: Mesh, spots: Spots) -> Tensor:  # float32 [Q, 3]
    return blend(mesh.vertices[mesh.faces[spots.face].long()], spots.weight)


def smooth_normals(mesh: Mesh, spots: Spots) -> Tensor:  # float32 [Q, 3]
    assert mesh.normals is not None
    return unit(blend(mesh.normals[mesh.faces[spots.face].long()], spots.weight))


def search_reach(mesh: Mesh, spots: Spots, original: Mesh, kernels: Kernels) -> float:
    """How far from a texel the original surface may be: by the distances of some of them."""
    extent = original.vertices.amax(0) - original.vertices.amin(0)
    diagonal = float(extent.norm())
    step = max(1, len(spots.index) // SAMPLES)
    some = places(mesh, Spots(spots.index[::step], spots.face[::step], spots.weight[::step]))
    closest_point: Any = kernels["closest_point"]
    distance, _, _ = closest_point(some, original.vertices, original.faces, FARTHEST * diagonal)
    distance = distance[torch.isfinite(distance)]
    farthest = float(distance.max()) if len(distance) else 0.0
    return max(AMPLE * farthest, 1e-4 * diagonal)


def find_surface(
    points: Tensor,  # float32 [Q, 3]
    directions: Tensor,  # float32 [Q, 3]  unit, in which to look and back
    normals: Tensor,  # float32 [Q, 3]  unit
    original: Mesh,
    target: Tensor,  # float32 [F, 3]  normals of the original's faces
    reach: float,
    kernels: Kernels,
    either_side: bool,
) -> tuple[Tensor, Tensor]:  # int64 [Q] -1 where none, float32 [Q, 3] barycentric
    """The nearest face of the original in these directions or behind, else the closest one around.

    Only faces that look the same way as the normal count, with `either_side` also the opposite way. The
    others are looked through, as the back of a thin wall may lie before its front.
    """
    ray_cast: Any = kernels["ray_cast"]
    closest_point: Any = kernels["closest_point"]

    def agrees(face: Tensor, normals: Tensor) -> Tensor:
        cosine = (target[face.clamp_min(0)] * normals).sum(1)
        return (face >= 0) & ((cosine.abs() if either_side else cosine) > AGREE)

    best = torch.full_like(points[:, 0], torch.inf)
    found = torch.full_like(best, -1, dtype=torch.int64)
    weights = torch.zeros_like(points)
    step = SKIP * reach
    for direction in (directions, -directions):
        rows, behind = torch.arange(len(points), device=points.device), torch.zeros_like(best)
        for _ in range(LAYERS):
            along = direction[rows].contiguous()
            start = points[rows] + along * behind[:, None]
            distance, face, weight = ray_cast(start, along, original.vertices, original.faces, reach)
            distance = distance + behind
            nearer = distance < best[rows].clamp_max(reach)
            fits = nearer & agrees(face.long(), normals[rows])
            hit = rows[fits]
            best[hit], found[hit], weights[hit] = distance[fits], face.long()[fits], weight[fits]
            on = nearer & ~fits  # what is hit looks the other way: go on behind it
            rows, behind = rows[on], distance[on] + step
            if not len(rows):
                break
    lost = torch.nonzero(found < 0).reshape(-1)
    if len(lost):
        _, face, weight = closest_point(points[lost], original.vertices, original.faces, reach)
        fits = agrees(face.long(), normals[lost])
        found[lost[fits]], weights[lost[fits]] = face.long()[fits], weight[fits]
    return found, weights
