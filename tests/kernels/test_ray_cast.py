"""Rays against a mesh: the `ray_cast` and `open_sky` operations.

Properties: every backend finds the first hit that brute force finds; the point on the triangle lies on the
ray; misses say so; nothing beyond the limit counts; the open sky over a floor is whole, beside a wall half.
"""

import pytest
import torch

from trellis_core.kernels.ops import OPS
from trellis_core.kernels.table import find_backend
from trellis_core.memory.devices import DeviceInfo


def backends_of(op):
    return [b.name for b in OPS[op] if b.probe(DeviceInfo(kind="cpu")) is None]


@pytest.fixture(params=backends_of("ray_cast"))
def ray_cast(request):
    return find_backend(OPS, "ray_cast", request.param).load()


@pytest.fixture(params=backends_of("open_sky"))
def open_sky(request):
    return find_backend(OPS, "open_sky", request.param).load()


def soup(faces, seed=0):
    """Separate random triangles of mixed sizes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(faces, 1, 3, generator=generator) - 0.5
    corners = torch.rand(faces, 3, 3, generator=generator) - 0.5
    vertices = centers + corners * torch.rand(faces, 1, 1, generator=generator) * 0.5
    return vertices.reshape(-1, 3), torch.arange(faces * 3, dtype=torch.int32).reshape(-1, 3)


def rays(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 3, generator=generator) * 2 - 1
    return start, torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)


def brute_force(start, along, vertices, faces):
    """First hit of each ray by the signed volumes that it makes with the sides, float64 [Q]."""
    a, b, c = (vertices[faces.long()].double()[None, :, k] - start.double()[:, None] for k in range(3))
    d = along.double()[:, None]

    def volume(p, q):
        return (d * torch.linalg.cross(p, q)).sum(-1)

    w = torch.stack([volume(b, c), volume(c, a), volume(a, b)])
    inside = (w >= 0).all(0) | (w <= 0).all(0)
    normal = torch.linalg.cross(b - a, c - a)
    far = (a * normal).sum(-1) / (d * normal).sum(-1)
    return torch.where(inside & (far >= 0), far, torch.inf).amin(1)


def test_the_first_hit_is_the_one_brute_force_finds(ray_cast):
    vertices, faces = soup(300)
    start, along = rays(2000)
    distance, face, weight = ray_cast(start, along, vertices, faces, 10.0)
    want = brute_force(start, along, vertices, faces)
    agree = torch.isfinite(want) == (face >= 0)
    assert agree.float().mean() > 0.998  # rays along the very edge of a triangle may miss it
    hit = agree & (face >= 0)
    assert 200 < int(hit.sum()) < 2000
    torch.testing.assert_close(distance[hit].double(), want[hit], rtol=1e-4, atol=1e-5)
    place = (vertices[faces[face[hit].long()].long()] * weight[hit, :, None]).sum(1)
    torch.testing.assert_close(place, start[hit] + distance[hit, None] * along[hit], rtol=0, atol=2e-5)


def test_what_is_missed_or_too_far_is_no_hit(ray_cast):
    vertices = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]])
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    start = torch.tensor([[0.2, 0.2, 0.0], [0.2, 0.2, 0.0], [2.0, 2.0, 0.0], [0.2, 0.2, -1.0]])
    along = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, 1]])
    distance, face, weight = ray_cast(start, along, vertices, faces, 1.5)
    assert face.tolist() == [0, -1, -1, -1]
    assert distance.tolist() == [1.0, torch.inf, torch.inf, torch.inf]
    assert not weight[1:].any()


def test_there_may_be_no_limit(ray_cast):
    vertices = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1]])
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    start = torch.tensor([[0.2, 0.2, -5000.0], [2.0, 2.0, 0.0]])
    along = torch.tensor([[0.0, 0, 1], [0, 0, 1]])
    distance, face, _ = ray_cast(start, along, vertices, faces, float("inf"))
    assert face.tolist() == [0, -1]
    assert distance.tolist() == [5001.0, torch.inf]


def test_rays_and_meshes_may_be_empty(ray_cast, open_sky):
    vertices, faces = soup(3)
    assert len(ray_cast(torch.zeros(0, 3), torch.zeros(0, 3), vertices, faces, 1.0)[0]) == 0
    up = torch.tensor([[0.0, 0, 1]])
    none = torch.zeros(0, 3, dtype=torch.int32)
    assert open_sky(up, up, torch.zeros(1), vertices, none, up, 1.0).tolist() == [1.0]


def test_the_sky_over_a_floor_is_open_and_beside_a_wall_half_of_it(open_sky):
    floor = torch.tensor([[-9.0, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]])
    wall = torch.tensor([[0.0, -9, 0], [0, 9, 0], [0, 9, 9], [0, -9, 9]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], dtype=torch.int32)
    points = torch.tensor([[-0.01, 0.0, 0.001], [-8.0, 0.0, 0.001]])
    up = torch.tensor([[0.0, 0, 1]]).repeat(2, 1)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(512, 3, generator=generator)
    directions[:, 2] = directions[:, 2].abs() + 0.1
    directions = torch.nn.functional.normalize(directions, dim=1)
    turns = torch.tensor([0.0, 1.0])
    beside, away = open_sky(points, up, turns, torch.cat([floor, wall]), faces, directions, 5.0).tolist()
    assert beside == pytest.approx(0.5, abs=0.06)
    assert away == 1.0


def test_backends_agree_on_the_sky():
    vertices, faces = soup(60)
    points, normals = rays(200, seed=2)
    turns = torch.linspace(0, 6, 200)
    _, directions = rays(8, seed=3)
    directions[:, 2] = directions[:, 2].abs()
    answers = [
        find_backend(OPS, "open_sky", name).load()(points, normals, turns, vertices, faces, directions, 0.7)
        for name in backends_of("open_sky")
    ]
    for other in answers[1:]:
        assert float((answers[0] - other).abs().mean()) < 1e-3
