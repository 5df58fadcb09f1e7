"""The `march` operation.

Properties: every backend collects the reference's light, color and distances, with the same gradients; a
uniform voxel absorbs like Beer's law says; rays beside the voxels see nothing; axis-parallel rays and eyes
inside the grid are no exception.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.kernels.march import DARK, MarchField, march
from trellis_core.kernels.ops import OPS
from trellis_core.memory.devices import DeviceInfo

BACKENDS = [backend for backend in OPS["march"] if backend.probe(DeviceInfo(kind="cpu")) is None]
FAST = [backend for backend in BACKENDS if backend.name != "torch"]
every_backend = pytest.mark.parametrize(
    "follow", [b.load() for b in BACKENDS], ids=[b.name for b in BACKENDS]
)
every_fast_backend = pytest.mark.parametrize("follow", [b.load() for b in FAST], ids=[b.name for b in FAST])


def random_field(
    seed: int, resolution: int = 6, ranks: int = 3, samples: int = 4, share: float = 0.3
) -> MarchField:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.nonzero(torch.rand(resolution**3, generator=generator) < share)[:, 0]
    return MarchField(
        keys,
        torch.randn(len(keys), ranks, 3, samples, generator=generator) * 0.5 + 1,
        torch.randn(len(keys), ranks, generator=generator) * 10,
        torch.randn(len(keys), ranks, 3, generator=generator),
        resolution,
    )


def uniform_field(resolution: int, keys: list[int], density: float) -> MarchField:
    """Gray voxels of one density."""
    count = len(keys)
    return MarchField(
        torch.tensor(keys),
        torch.ones(count, 1, 3, 2),
        torch.full((count, 1), math.log(math.expm1(density))),
        torch.zeros(count, 1, 3),
        resolution,
    )


def random_rays(seed: int, count: int, reach: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    eye = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0) * reach
    targets = torch.rand(count, 3, generator=generator) * 1.4 - 0.7
    rays = torch.nn.functional.normalize(targets - eye, dim=1)
    return eye, rays, torch.rand(count, generator=generator)


@every_fast_backend
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), reach=st.sampled_from([2.0, 0.3]))
def test_every_backend_sees_what_the_reference_sees(follow, seed, reach):
    field, rays = random_field(seed), random_rays(seed, 150, reach)
    seen, wanted = follow(field, *rays), march(field, *rays)
    for ours, expected in zip(seen, wanted, strict=True):
        assert ours.shape == expected.shape
        # rounding decides to which voxel a sample on a border belongs
        wrong = (ours - expected).abs() > 1e-4
        assert wrong.float().mean() < 0.03
    assert (seen[1] - wanted[1]).abs().mean() < 1e-3


@every_fast_backend
def test_every_backend_has_the_references_gradient(follow):
    field, rays = random_field(7), random_rays(7, 100)
    weights = torch.randn(5, 100, generator=torch.Generator().manual_seed(2))

    def gradients(function):
        parts = [x.clone().requires_grad_() for x in (field.vectors, field.densities, field.colors)]
        color, light, distance, _ = function(
            replace(field, vectors=parts[0], densities=parts[1], colors=parts[2]), *rays
        )
        seen = torch.cat([color.T, light[None], distance[None]])
        (seen * weights).sum().backward()
        return [part.grad for part in parts]

    for ours, expected in zip(gradients(follow), gradients(march), strict=True):
        assert expected.norm() > 0
        assert (ours - expected).norm() < 0.02 * expected.norm()


@every_backend
@pytest.mark.parametrize("density", [0.5, 5.0])
def test_a_uniform_voxel_absorbs_exponentially(follow, density):
    field = uniform_field(1, [0], density)
    eye, ray = torch.tensor([0.1, -2.0, 0.2]), torch.tensor([[0.0, 1.0, 0.0]])
    color, light, distance, median = follow(field, eye, ray, torch.tensor([0.5]))
    assert torch.allclose(light, torch.tensor([math.exp(-density)]), atol=1e-4)
    assert torch.allclose(color, (1 - light)[:, None] * 0.5, atol=1e-4)
    middle = distance / (1 - light)
    assert 1.5 < middle < 2.0 + 1e-4
    assert (median > 0) == (light < 0.5)


@every_backend
def test_a_dense_field_ends_the_ray(follow):
    keys = list(range(64))
    eye, ray = torch.tensor([0.13, 0.07, 2.0]), torch.tensor([[0.0, 0.0, -1.0]])
    _, light, distance, median = follow(uniform_field(4, keys, 200.0), eye, ray, torch.tensor([0.5]))
    assert light < DARK
    assert torch.allclose(distance, torch.tensor([1.5]), atol=0.05)
    assert torch.allclose(median, torch.tensor([1.5]), atol=0.1)


@every_backend
def test_rays_that_miss_the_voxels_see_nothing(follow):
    field = uniform_field(4, [0], 50.0)  # the voxel at the lowest corner
    eye = torch.tensor([2.0, 2.0, 2.0])
    towards = torch.tensor([[0.4, 0.4, 0.4], [3.0, 2.0, 2.0], [0.3, -0.4, 0.3]])
    rays = torch.nn.functional.normalize(towards - eye, dim=1)
    color, light, distance, median = follow(field, eye, rays[1:], torch.full((2,), 0.5))
    assert (color == 0).all() and (light == 1).all() and (distance == 0).all() and (median == 0).all()
    assert follow(field, eye, rays[:1], torch.full((1,), 0.5))[1] < DARK


@every_backend
def test_no_voxels_and_no_rays_are_fine(follow):
    eye, rays, offsets = random_rays(1, 5)
    light = follow(uniform_field(4, [], 1.0), eye, rays, offsets)[1]
    assert torch.equal(light, torch.ones(5))
    assert [len(x) for x in follow(random_field(1), eye, rays[:0], offsets[:0])] == [0, 0, 0, 0]
