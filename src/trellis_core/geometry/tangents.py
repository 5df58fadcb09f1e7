"""Tangent frames: the axes in which a normal map counts, as glTF expects them.

Built as MikkTSpace builds them (Mikkelsen, "Simulation of wrinkled surfaces revisited", 2008): the tangent
points where u grows, bitangent = cross(normal, tangent) * sign points up in the picture (where v falls).
Letters: V vertices, W vertices after cutting, F faces, Q points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import row_keys, sum_by
from trellis_core.geometry.triangles import unit
from trellis_core.geometry.types import Mesh


@dataclass(frozen=True, slots=True)
class Frames:
    """Tangent frames of a mesh with uvs and normals, to be looked up on its faces."""

    tangent: Tensor  # float32 [F, 3, 3]  unit, at the corners
    sign: Tensor  # float32 [F]        1, or -1 where the texture is mirrored

    @classmethod
    def of(cls, mesh: Mesh) -> Frames:
        return cls(*corner_tangents(mesh))

    def to(self, device: torch.device | str) -> Frames:
        return Frames(self.tangent.to(device), self.sign.to(device))

    def at(
        self,
        mesh: Mesh,
        face: Tensor,  # int64 [Q]
        weight: Tensor,  # float32 [Q, 3]  barycentric
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tangent, bitangent and normal at points of the mesh, float32 [Q, 3] each."""
        assert mesh.normals is not None
        normal = unit(blend(mesh.normals[mesh.faces[face].long()], weight))
        tangent = unit(blend(self.tangent[face], weight))
        return tangent, self.sign[face, None] * torch.linalg.cross(normal, tangent), normal


def blend(corners: Tensor, weight: Tensor) -> Tensor:  # [Q, 3, C], [Q, 3] -> [Q, C]
    """Weighted sum of the values at the corners."""
    a, b, c = corners.unbind(1)
    return a * weight[:, :1] + b * weight[:, 1:2] + c * weight[:, 2:]


def corner_tangents(
    mesh: Mesh,  # with uvs and normals
) -> tuple[Tensor, Tensor]:  # float32 [F, 3, 3] unit, float32 [F]
    """Tangent of every corner, and per face the side of the bitangent: sign * (normal x tangent) is up.

    At a vertex the directions in which u grows are averaged over its faces, weighted by their angles there;
    mirrored faces are averaged apart. Vertices that are alike in everything count as one.
    """
    assert mesh.uvs is not None
    assert mesh.normals is not None
    faces = mesh.faces.long()
    corners, uvs, normals = (values.double()[faces] for values in (mesh.vertices, mesh.uvs, mesh.normals))
    mirrored = is_mirrored(mesh)

    def across(vectors: Tensor) -> Tensor:  # within the plane of the normal
        return unit(vectors - normals * (vectors * normals).sum(2, keepdim=True))

    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    rise = uvs[:, 1:, 1] - uvs[:, :1, 1]
    along = (one * rise[:, 1:] - other * rise[:, :1]) * torch.where(mirrored, 1.0, -1.0)[:, None]
    flat = across(unit(along)[:, None].expand(-1, 3, -1))
    to_next, to_last = across(corners.roll(-1, 1) - corners), across(corners.roll(1, 1) - corners)
    angle = torch.acos((to_next * to_last).sum(2).clamp(-1, 1))
    owner, count = same_vertices(mesh)
    key = owner[faces] * 2 + mirrored[:, None]
    total = sum_by((flat * angle[:, :, None]).reshape(-1, 3), key.reshape(-1), 2 * count)
    tangent = unit(total)[key]
    lost = tangent.norm(dim=2, keepdim=True) < 0.5
    tangent = torch.where(lost, any_across(normals), tangent)
    return tangent.float(), torch.where(mirrored, -1.0, 1.0)


def is_mirrored(mesh: Mesh) -> Tensor:  # bool [F]
    """Faces whose texture is seen mirrored from outside."""
    assert mesh.uvs is not None
    du, dv = (mesh.uvs.double()[mesh.faces[:, 1:].long()] - mesh.uvs[mesh.faces[:, :1].long()]).unbind(2)
    # v grows downwards in the image: seen from outside, a face that is not mirrored turns the other way there
    return du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0] > 0


def same_vertices(mesh: Mesh) -> tuple[Tensor, int]:  # int64 [V]
    """Vertices by number; those with the same place, normal and texture coordinate share one."""
    assert mesh.uvs is not None
    assert mesh.normals is not None
    rows = torch.cat([mesh.vertices, mesh.uvs, mesh.normals], 1).float() + 0.0  # -0 and 0 are one
    numbers, owner = torch.unique(row_keys(rows.contiguous().view(torch.int32)), return_inverse=True)
    return owner, len(numbers)


def any_across(normals: Tensor) -> Tensor:
    """Some unit vector across each normal [..., 3]."""
    axis = torch.nn.functional.one_hot(normals.abs().argmin(-1), 3).to(normals)
    return unit(torch.linalg.cross(normals, axis))


def with_tangents(
    mesh: Mesh,  # with uvs and normals
) -> tuple[Mesh, Tensor]:  # float32 [W, 4]
    """The mesh with a tangent per vertex, as files store them: xyz unit, and the sign of the bitangent.

    A vertex between mirrored faces and others is cut in two, as each needs a sign of its own.
    """
    tangent, sign = corner_tangents(mesh)
    count = len(mesh.vertices)
    mirrored = torch.zeros(count, dtype=torch.bool, device=sign.device)
    plain = torch.ones_like(mirrored)
    mirrored[mesh.faces[sign < 0].long().reshape(-1)] = True
    plain[mesh.faces[sign < 0].long().reshape(-1)] = False
    plain[mesh.faces[sign > 0].long().reshape(-1)] = True
    both = torch.nonzero(mirrored & plain).reshape(-1)
    copy = torch.arange(count, device=sign.device)
    copy[both] = count + torch.arange(len(both), device=sign.device)
    faces = torch.where(sign[:, None] < 0, copy[mesh.faces.long()], mesh.faces.long())

    def doubled(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.cat([values, values[both]])

    vertices = torch.cat([mesh.vertices, mesh.vertices[both]])
    cut = replace(
        mesh,
        vertices=vertices,
        faces=faces.to(mesh.faces.dtype),
        uvs=doubled(mesh.uvs),
        normals=doubled(mesh.normals),
        colors=doubled(mesh.colors),
    )
    found = torch.tensor([1.0, 0, 0, 1], device=sign.device).repeat(len(vertices), 1)
    values = torch.cat([tangent, sign[:, None, None].expand(-1, 3, 1)], dim=2)
    found[faces.reshape(-1)] = values.reshape(-1, 4)  # what is written twice is the same
    return cut, found
