"""Normal maps: what a detailed surface looks like, baked onto the texture of a simpler mesh.

Each texel looks along the normal of the simple mesh for the original surface, and stores the normal found
there in the tangent space of the simple mesh. Tangent space as glTF expects it (MikkTSpace: Mikkelsen,
"Simulation of wrinkled surfaces revisited", 2008), green is up. Letters: S texture side, Q texels, F faces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.bake import CHUNK, Texels, cover_texels, points_on
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.normals import crease_normals
from trellis_core.geometry.triangles import face_normals, unit
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

SAMPLES = 4000  # texels by which the distance between the two surfaces is estimated
AMPLE = 2.0  # times the largest of these distances is searched
FARTHEST = 0.1  # of the object's diagonal
CREASE = 60.0  # degrees: sharper edges of the original are not smoothed over
AGREE = 0.1  # cosine between the normals of a texel and of the surface it is given


def bake_normal_map(
    mesh: Mesh,  # with uvs and normals
    original: Mesh,  # the detailed surface, wound as `mesh`
    texture_size: int,
    runtime: Runtime,
) -> Tensor:  # uint8 [S, S, 3]
    """Tangent-space normal map of `original` for `mesh`: 128 means 0, green points up in the image.

    A texel without a piece of the original nearby that faces its way stays flat: (128, 128, 255). Runs on
    the runtime's device; reports the stage `normal map`.
    """
    kernels = runtime.kernels
    runtime.report("normal map", 0, 2)
    group, smooth = crease_normals(original.to("cpu"), CREASE)
    mesh, original = mesh.to(runtime.device), original.to(runtime.device)
    corner_normals = smooth[group].to(runtime.device)
    texels = cover_texels(mesh, texture_size, kernels)
    frames = Frames(mesh)
    values = []
    reach = search_reach(texels.position, original, kernels)
    for part in parts_of(texels):
        tangent, bitangent, normal = frames.at(mesh, part)
        found, weight = find_surface(part.position, normal, original, reach, kernels)
        detail = unit((corner_normals[found.clamp_min(0)] * weight[:, :, None]).sum(1))
        detail = torch.where((found >= 0)[:, None], detail, normal)
        values.append(encode(detail, tangent, bitangent, normal))
        runtime.report("normal map", 1, 2)
    flat = torch.tensor([128, 128, 255], dtype=torch.uint8, device=mesh.vertices.device)
    if not values:
        return flat.expand(texture_size, texture_size, 3).contiguous()
    image = paint_texture(torch.cat(values), texels.index, texture_size)
    runtime.report("normal map", 2, 2)
    return image


def parts_of(texels: Texels) -> list[Texels]:
    """The texels in pieces of bounded size."""
    columns = (texels.index.split(CHUNK), texels.face.split(CHUNK), texels.position.split(CHUNK))
    return [Texels(*part) for part in zip(*columns, strict=True) if len(part[0])]


def search_reach(positions: Tensor, original: Mesh, kernels: Kernels) -> float:
    """How far from a texel the original surface may be: by the distances of some of them."""
    extent = original.vertices.amax(0) - original.vertices.amin(0)
    diagonal = float(extent.norm())
    some = positions[:: max(1, len(positions) // SAMPLES)].contiguous()
    closest_point: Any = kernels["closest_point"]
    distance, _, _ = closest_point(some, original.vertices, original.faces, FARTHEST * diagonal)
    distance = distance[torch.isfinite(distance)]
    farthest = float(distance.max()) if len(distance) else 0.0
    return max(AMPLE * farthest, 1e-4 * diagonal)


def find_surface(
    points: Tensor,  # float32 [Q, 3]
    normals: Tensor,  # float32 [Q, 3]  unit
    original: Mesh,
    reach: float,
    kernels: Kernels,
    either_side: bool = False,
) -> tuple[Tensor, Tensor]:  # int64 [Q] -1 where none, float32 [Q, 3] barycentric
    """The nearest face of the original along the normal, in front or behind, else the closest one around.

    Only faces that look the same way as the normal count, with `either_side` also the opposite way.
    """
    ray_cast: Any = kernels["ray_cast"]
    closest_point: Any = kernels["closest_point"]
    target = face_normals(original.vertices, original.faces)

    def agrees(face: Tensor) -> Tensor:
        cosine = (target[face.clamp_min(0)] * normals).sum(1)
        return (face >= 0) & ((cosine.abs() if either_side else cosine) > AGREE)

    best = torch.full((len(points),), torch.inf, device=points.device)
    found = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    weights = torch.zeros_like(points)
    for direction in (normals, -normals):
        distance, face, weight = ray_cast(points, direction, original.vertices, original.faces, reach)
        better = agrees(face.long()) & (distance < best)
        best = torch.where(better, distance, best)
        found = torch.where(better, face.long(), found)
        weights = torch.where(better[:, None], weight, weights)
    lost = torch.nonzero(found < 0).reshape(-1)
    if len(lost):
        _, face, weight = closest_point(points[lost], original.vertices, original.faces, reach)
        near = torch.full_like(found, -1)
        near[lost] = face.long()
        fits = agrees(near)[lost]
        found[lost[fits]], weights[lost[fits]] = near[lost[fits]], weight[fits]
    return found, weights


class Frames:
    """Tangent frames of a mesh, as MikkTSpace builds them, to be looked up on its faces."""

    def __init__(self, mesh: Mesh) -> None:
        assert mesh.uvs is not None
        assert mesh.normals is not None
        self.tangent, self.sign = corner_tangents(mesh)

    def at(self, mesh: Mesh, texels: Texels) -> tuple[Tensor, Tensor, Tensor]:
        """Tangent, bitangent and normal of each texel, float32 [Q, 3] each."""
        weight = barycentric(mesh, texels)
        return self.blend(mesh, texels.face, weight)

    def blend(self, mesh: Mesh, face: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert mesh.normals is not None
        normal = unit((mesh.normals[mesh.faces[face].long()] * weight[:, :, None]).sum(1))
        tangent = unit((self.tangent[face] * weight[:, :, None]).sum(1))
        return tangent, self.sign[face, None] * torch.linalg.cross(normal, tangent), normal


def barycentric(mesh: Mesh, texels: Texels) -> Tensor:  # float32 [Q, 3]
    """Where on its face each texel lies."""
    a, b, c = mesh.vertices[mesh.faces[texels.face].long()].double().unbind(1)
    whole = torch.linalg.cross(b - a, c - a)
    square = whole.square().sum(1).clamp_min(1e-300)
    point = texels.position.double()
    beta = (torch.linalg.cross(point - a, c - a) * whole).sum(1) / square
    gamma = (torch.linalg.cross(b - a, point - a) * whole).sum(1) / square
    return torch.stack([1 - beta - gamma, beta, gamma], 1).float().clamp(0, 1)


def corner_tangents(
    mesh: Mesh,  # with uvs and normals
) -> tuple[Tensor, Tensor]:  # float32 [F, 3, 3] unit, float32 [F]
    """Tangent of every corner, and per face the side of the bitangent: sign * (normal x tangent) is up.

    At a vertex the directions in which u grows are averaged over its faces, weighted by their angles there;
    mirrored faces are averaged apart.
    """
    assert mesh.uvs is not None
    assert mesh.normals is not None
    faces = mesh.faces.long()
    corners, uvs = mesh.vertices.double()[faces], mesh.uvs.double()[faces]
    normals = mesh.normals.double()[faces]
    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    du, dv = (uvs[:, 1:] - uvs[:, :1]).unbind(2)
    # v grows downwards in the image: seen from outside, a face that is not mirrored turns the other way there
    turn = du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0]
    mirrored = turn > 0
    along = (one * dv[:, 1:] - other * dv[:, :1]) * torch.where(mirrored, 1.0, -1.0)[:, None]
    along = unit(along)[:, None].expand(-1, 3, -1)
    flat = unit(along - normals * (along * normals).sum(2, keepdim=True))
    to_next, to_last = unit(corners.roll(-1, 1) - corners), unit(corners.roll(1, 1) - corners)
    angle = torch.acos((to_next * to_last).sum(2).clamp(-1, 1))
    key = faces * 2 + mirrored[:, None]
    total = torch.zeros(2 * len(mesh.vertices), 3, dtype=torch.float64, device=faces.device)
    total.index_add_(0, key.reshape(-1), (flat * angle[:, :, None]).reshape(-1, 3))
    tangent = unit(total)[key]
    lost = tangent.norm(dim=2, keepdim=True) < 0.5
    tangent = torch.where(lost, any_across(normals), tangent)
    return tangent.float(), torch.where(mirrored, -1.0, 1.0)


def any_across(normals: Tensor) -> Tensor:
    """Some unit vector across each normal [..., 3]."""
    axis = torch.nn.functional.one_hot(normals.abs().argmin(-1), 3).to(normals)
    return unit(torch.linalg.cross(normals, axis))


def encode(detail: Tensor, tangent: Tensor, bitangent: Tensor, normal: Tensor) -> Tensor:  # uint8 [Q, 3]
    """Coordinates of unit vectors in their frames, [-1, 1] as bytes. Frames are inverted exactly."""
    across = torch.linalg.cross(tangent, bitangent)
    volume = (across * normal).sum(1, keepdim=True)
    inverse = [torch.linalg.cross(bitangent, normal), torch.linalg.cross(normal, tangent), across]
    local = torch.stack([(detail * row).sum(1) for row in inverse], 1)
    local = unit(torch.where(volume.abs() > 1e-6, local / volume, local.new_tensor([0.0, 0.0, 1.0])))
    return (local * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def decode(texel: Tensor, tangent: Tensor, bitangent: Tensor, normal: Tensor) -> Tensor:  # float32 [Q, 3]
    """The normals that a map says, from its values in [0, 1] and the frames: what a renderer does."""
    x, y, z = (texel * 2 - 1).split(1, dim=1)
    return unit(x * tangent + y * bitangent + z * normal)


def surface_points(original: Mesh, face: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Points on faces of the original, and the normals of these faces, float32 [Q, 3] each."""
    target = face_normals(original.vertices, original.faces)
    return points_on(original, face.clamp_min(0), weight), target[face.clamp_min(0)]
