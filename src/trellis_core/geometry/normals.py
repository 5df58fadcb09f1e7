"""Normals for shading: smooth over the surface, hard at creases. Letters: V vertices, F faces, K normals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import corner_classes, edges_of, partner_sides, sum_by
from trellis_core.geometry.triangles import face_areas, face_normals, unit
from trellis_core.geometry.types import Mesh


def crease_normals(
    mesh: Mesh,
    angle: float,  # degrees
) -> tuple[Tensor, Tensor]:  # int64 [F, 3] normal of each corner, float32 [K, 3]
    """Normals of the corners, averaged around each vertex but not across edges sharper than `angle`."""
    partner = partner_sides(edges_of(mesh.faces))
    normals = face_normals(mesh.vertices, mesh.faces)
    bend = (normals[:, None] * normals[partner.clamp_min(0) // 3]).sum(2)
    partner = torch.where(bend >= math.cos(math.radians(angle)), partner, -1)
    group = corner_classes(mesh.faces, partner)
    source = torch.zeros(int(group.max()) + 1, dtype=torch.int64, device=group.device)
    source[group.reshape(-1)] = mesh.faces.long().reshape(-1)
    return group, vertex_normals(mesh.vertices[source], group)


def vertex_normals(
    vertices: Tensor,  # float32 [V, 3]
    faces: Tensor,  # int [F, 3]
) -> Tensor:  # float32 [V, 3]  unit
    """Angle-weighted vertex normals (Thürmer & Wüthrich, 1998): they do not depend on the triangulation.

    A vertex whose faces cancel out takes the normal of its largest face; one without faces points up.
    """
    corners = vertices.double()[faces.long()]
    normals = unit(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    to_next = unit(corners.roll(-1, dims=1) - corners)
    to_previous = unit(corners.roll(1, dims=1) - corners)
    angles = torch.acos((to_next * to_previous).sum(2).clamp(-1, 1))
    weighted = (angles[:, :, None] * normals[:, None]).reshape(-1, 3)
    total = sum_by(weighted, faces.long().reshape(-1), len(vertices))
    lost = total.norm(dim=1) < 1e-6
    if bool(lost.any()):
        order = torch.argsort(face_areas(vertices, faces), stable=True)  # the largest face writes last
        fallback = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=vertices.device).repeat(
            len(vertices), 1
        )
        for face in order[lost[faces[order].long()].any(1)].tolist():
            if bool(normals[face].any()):
                fallback[faces[face].long()] = normals[face]
        total[lost] = fallback[lost]
    return unit(total).float()
