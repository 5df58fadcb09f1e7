"""A bumpy ball whose normals are known, and coarse balls with texture coordinates to bake them onto."""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_core.geometry.normals import vertex_normals
from trellis_core.geometry.types import Mesh

RADIUS, HEIGHT, WAVES = 0.4, 0.012, 14.0
INSET = 0.02  # of a chart: the gap to its neighbours


def bumpy_radius(direction: Tensor) -> Tensor:  # float [..., 3] unit -> [...]
    return RADIUS + HEIGHT * (WAVES * direction).sin().prod(-1)


def bumpy_normals(points: Tensor) -> Tensor:  # float32 [P, 3]  anywhere along the ray from the middle
    """Normals of the bumpy ball where it lies under or above the points, by differentiation."""
    direction = torch.nn.functional.normalize(points.double(), dim=1)
    place = (direction * bumpy_radius(direction)[:, None]).requires_grad_()
    distance = place.norm(dim=1) - bumpy_radius(torch.nn.functional.normalize(place, dim=1))
    (gradient,) = torch.autograd.grad(distance.sum(), place)
    return torch.nn.functional.normalize(gradient, dim=1).float()


def ball(steps: int, *, mirrored: bool = False, bumpy: bool = False) -> Mesh:
    """Six sides of a cube, blown up: 12 * steps ** 2 faces, one chart each, every second one mirrored."""
    line = torch.linspace(-1, 1, steps + 1)
    v, u = torch.meshgrid(line, line, indexing="ij")
    flat = torch.stack([u, v, torch.ones_like(u)], 2).reshape(-1, 3)  # seen from above: u right, v up
    number = torch.arange((steps + 1) ** 2).view(steps + 1, steps + 1)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]
    quads = torch.stack([a, b, c, a, c, d], 2).reshape(-1, 3)
    points, faces, uvs = [], [], []
    for side in range(6):
        half_turn = torch.tensor([-1.0, 1.0, -1.0]) if side % 2 else torch.ones(3)
        points.append((flat * half_turn).roll(side // 2, dims=1))
        x, y = flat[:, 0], -flat[:, 1]
        x = -x if mirrored and side % 3 == 1 else x
        chart = torch.stack([x, y], 1) * (0.5 - INSET) + 0.5
        corner = torch.tensor([side % 3, side // 3])
        faces.append(quads + len(flat) * side)
        uvs.append((chart + corner) / torch.tensor([3.0, 2.0]))
    direction = torch.nn.functional.normalize(torch.cat(points), dim=1)
    radius = bumpy_radius(direction) if bumpy else torch.full_like(direction[:, 0], RADIUS)
    vertices = direction * radius[:, None]
    normals = bumpy_normals(vertices) if bumpy else direction
    return Mesh(vertices, torch.cat(faces).to(torch.int32), torch.cat(uvs), normals)


def creased(mesh: Mesh) -> Mesh:
    """The same with the normals of its charts alone: seams show."""
    return Mesh(mesh.vertices, mesh.faces, mesh.uvs, vertex_normals(mesh.vertices, mesh.faces))
