"""Closest point on a mesh: every backend against brute force in float64.

Distances agree; faces need not, because several triangles can be equally near. The barycentric point of the
answer lies at the answered distance.
"""

import pytest
import torch

from trellis_core.kernels.ops import OPS
from trellis_core.kernels.table import find_backend
from trellis_core.memory.devices import DeviceInfo

BACKENDS = [b.name for b in OPS["closest_point"]]


@pytest.fixture(params=BACKENDS)
def closest_point(request):
    backend = find_backend(OPS, "closest_point", request.param)
    problem = backend.probe(DeviceInfo(kind="cpu"))
    if problem is not None:
        pytest.skip(problem)
    return backend.load()


def soup(faces, seed=0):
    """Separate random triangles of mixed sizes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(faces, 1, 3, generator=generator) - 0.5
    corners = torch.rand(faces, 3, 3, generator=generator) - 0.5
    vertices = centers + corners * torch.rand(faces, 1, 1, generator=generator) * 0.5
    return vertices.reshape(-1, 3), torch.arange(faces * 3, dtype=torch.int32).reshape(-1, 3)


def brute_force(points, vertices, faces):
    """Distance in float64 by minimising over a fine set of candidate features: plane foot, edges."""
    a, b, c = (vertices[faces.long()].double()[None, :, k] for k in range(3))
    p = points.double()[:, None]
    squared = torch.full((len(points), len(faces)), float("inf"), dtype=torch.float64)
    for start, end in ((a, b), (b, c), (c, a)):
        edge = end - start
        t = (((p - start) * edge).sum(-1) / (edge * edge).sum(-1).clamp_min(1e-300)).clamp(0, 1)
        squared = squared.minimum((start + t[..., None] * edge - p).square().sum(-1))
    normal = torch.linalg.cross(b - a, c - a)
    unit = torch.nn.functional.normalize(normal, dim=-1)
    height = ((p - a) * unit).sum(-1)
    foot = p - height[..., None] * unit
    inside = torch.ones_like(squared, dtype=torch.bool)
    for start, end in ((a, b), (b, c), (c, a)):
        side = torch.linalg.cross((end - start).expand_as(foot), foot - start)
        inside &= (side * normal).sum(-1) >= 0
    inside &= normal.norm(dim=-1) > 0
    squared = torch.where(inside, squared.minimum(height.square()), squared)
    return squared.amin(1).sqrt()


def check(points, vertices, faces, answer, max_distance):
    distance, face, bary = answer
    want = brute_force(points, vertices, faces)
    hit = face >= 0
    sure = (want - max_distance).abs() > 1e-5
    assert torch.equal(hit[sure], (want <= max_distance)[sure])
    assert torch.allclose(distance[hit].double(), want[hit], atol=2e-6)
    assert torch.isinf(distance[~hit]).all() and (bary[~hit] == 0).all()
    nearest = (vertices[faces[face[hit].long()].long()] * bary[hit][..., None]).sum(1)
    assert torch.allclose((nearest - points[hit]).norm(dim=1), distance[hit], atol=2e-6)
    assert (bary >= -1e-6).all() and torch.allclose(bary[hit].sum(1), torch.ones(int(hit.sum())), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 65, 600])
@pytest.mark.parametrize("max_distance", [0.08, 10.0])
def test_every_backend_finds_the_nearest_triangle(closest_point, count, max_distance):
    vertices, faces = soup(count)
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.7
    check(points, vertices, faces, closest_point(points, vertices, faces, max_distance), max_distance)


def test_any_distance_may_be_asked_for(closest_point):
    vertices, faces = soup(20)
    points = torch.tensor([[100.0, 0.0, 0.0], [0.0, -3000.0, 4.0]])
    distance, face, _ = closest_point(points, vertices, faces, float("inf"))
    assert (face >= 0).all()
    assert torch.allclose(distance.double(), brute_force(points, vertices, faces), rtol=1e-5)


def test_triangles_without_area_disturb_no_answer(closest_point):
    vertices, faces = soup(30)
    flat = torch.tensor([[0, 0, 1], [4, 4, 4]], dtype=torch.int32)
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    check(points, vertices, faces, closest_point(points, vertices, torch.cat([faces, flat]), 10.0), 10.0)


def test_the_reference_counts_triangles_without_area_as_their_edges():
    closest_point = find_backend(OPS, "closest_point", "torch").load()
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.25, 0, 0], [0.5, 0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    points = torch.tensor([[0.5, 0.3, 0.4], [-1.0, 0, 0], [2.0, 1, 0]])
    distance, face, bary = closest_point(points, vertices, faces, 10.0)
    assert torch.allclose(distance, torch.tensor([0.5, 1.0, 2**0.5]), atol=1e-6) and (face == 0).all()
    nearest = (vertices[faces[0].long()] * bary[..., None]).sum(1)
    assert torch.allclose(nearest[:, 0], torch.tensor([0.5, 0.0, 1.0]), atol=1e-6)


def test_a_mesh_without_faces_has_no_closest_point(closest_point):
    distance, face, bary = closest_point(
        torch.rand(3, 3), torch.rand(4, 3), torch.zeros(0, 3, dtype=torch.int32), 1.0
    )
    assert torch.isinf(distance).all() and (face == -1).all() and bary.shape == (3, 3)


def test_no_points_give_no_answers(closest_point):
    vertices, faces = soup(3)
    distance, face, bary = closest_point(torch.zeros(0, 3), vertices, faces, 1.0)
    assert (len(distance), len(face), tuple(bary.shape)) == (0, 0, (0, 3))


def test_the_reference_prefers_the_lowest_of_equally_near_faces():
    closest_point = find_backend(OPS, "closest_point", "torch").load()
    vertices, faces = soup(40)
    twice = torch.cat([faces, faces])
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(2)) - 0.5
    assert (closest_point(points, vertices, twice, 10.0)[1] < 40).all()
