"""The `splat` operation.

Properties: every backend gives the reference's picture and gradients; one splat covers what its formula says;
nearer splats hide farther ones; light and coverage add up to one; nothing invisible is drawn.
Not tested here: projection, which is in tests/unit/test_gaussians.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trellis_core.kernels.ops import OPS
from trellis_core.kernels.splat import FAINT, FULL, OPAQUE, splat
from trellis_core.memory.devices import DeviceInfo

BACKENDS = [backend for backend in OPS["splat"] if backend.probe(DeviceInfo(kind="cpu")) is None]
FAST = [backend for backend in BACKENDS if backend.name != "torch"]
every_backend = pytest.mark.parametrize("draw", [b.load() for b in BACKENDS], ids=[b.name for b in BACKENDS])
every_fast_backend = pytest.mark.parametrize("draw", [b.load() for b in FAST], ids=[b.name for b in FAST])


def ellipses(seed: int, count: int, side: float = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centers, conics, opacities and values of splats of mixed sizes and directions."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * side * 1.2 - 0.1 * side
    axes = torch.rand(count, 2, generator=generator) * 5 + 0.4
    angle = torch.rand(count, generator=generator) * torch.pi
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    inverse = turn @ torch.diag_embed(axes**-2) @ turn.mT
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], 1)
    opacities = torch.rand(count, generator=generator)
    return centers, conics, opacities, torch.randn(count, 4, generator=generator)


@every_fast_backend
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 300),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_every_backend_draws_the_reference(draw, seed, count, size):
    scene = ellipses(seed, count)
    image, light = draw(*scene, *size)
    expected_image, expected_light = splat(*scene, *size)
    assert image.shape == (*size, 4) and light.shape == size
    # a coverage at the very limit may be drawn by one backend and not by the other
    assert ((image - expected_image).abs().amax(-1) < 1e-4).float().mean() > 0.99
    assert ((light - expected_light).abs() < 1e-5).float().mean() > 0.99
    assert (image - expected_image).abs().max() < 5 * FAINT


@every_fast_backend
def test_every_backend_has_the_references_gradient(draw):
    weights = torch.randn(33, 27, 4, generator=torch.Generator().manual_seed(1))

    def gradients(function):
        scene = [tensor.requires_grad_() for tensor in ellipses(5, 120, 30)]
        image, light = function(*scene, 33, 27)
        ((image * weights).sum() + (light * weights[..., 0]).sum()).backward()
        return [tensor.grad for tensor in scene]

    for ours, expected in zip(gradients(draw), gradients(splat), strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_the_references_gradient_is_that_of_finite_differences():
    centers, conics, opacities, values = (tensor.double() for tensor in ellipses(3, 3, 10))
    scene = (centers, conics, opacities * 0.5 + 0.2, values)
    inputs = tuple(tensor.requires_grad_() for tensor in scene)
    assert torch.autograd.gradcheck(lambda *x: splat(*x, 5, 5)[0], inputs, eps=1e-7, atol=1e-5)


@every_backend
def test_one_splat_falls_off_like_its_gaussian(draw):
    conic = torch.tensor([[0.05, 0.02, 0.08]])
    image, light = draw(torch.tensor([[10.2, 8.7]]), conic, torch.tensor([0.8]), torch.ones(1, 1), 20, 24)
    y, x = torch.meshgrid(torch.arange(20) + 0.5 - 8.7, torch.arange(24) + 0.5 - 10.2, indexing="ij")
    alpha = 0.8 * torch.exp(-0.5 * (0.05 * x * x + 0.08 * y * y) - 0.02 * x * y)
    alpha = torch.where(alpha >= FAINT, alpha, 0)
    assert torch.allclose(image[..., 0], alpha, atol=1e-6)
    assert torch.allclose(light, 1 - alpha, atol=1e-6)


@every_backend
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_coverage_and_light_add_up_to_one(draw, seed):
    centers, conics, opacities, _ = ellipses(seed, 200)
    image, light = draw(centers, conics, opacities, torch.ones(200, 1), 40, 40)
    assert torch.allclose(image[..., 0] + light, torch.ones(40, 40), atol=1e-5)
    assert (light >= FULL).all()


@every_backend
def test_nearer_splats_hide_farther_ones(draw):
    flat = torch.tensor([[1e-6, 0, 1e-6]]).expand(4, 3)  # as large as the picture
    opacities = torch.tensor([0.6, 0.9, 1.0, 1.0])
    image, light = draw(torch.full((4, 2), 8.0), flat, opacities, torch.eye(4), 16, 16)
    third = 0.4 * 0.1 * OPAQUE  # after the fourth there would be less light than `FULL`
    assert torch.allclose(image[8, 8], torch.tensor([0.6, 0.36, third, 0]), atol=1e-4)
    assert torch.allclose(light[8, 8], torch.tensor(0.04 * (1 - OPAQUE)), atol=1e-6)


@every_backend
def test_splats_that_cannot_be_seen_are_left_out(draw):
    centers, conics, opacities, values = ellipses(1, 6)
    centers[0] = torch.nan
    centers[1] = 1e6
    conics[2] = torch.tensor([1.0, 2.0, 1.0])  # no ellipse
    opacities[3:5] = torch.tensor([0.0, FAINT * 0.99])
    opacities[5] = 0.9
    image, light = draw(centers, conics, opacities, values, 48, 48)
    alone, light_alone = draw(centers[5:], conics[5:], opacities[5:], values[5:], 48, 48)
    assert torch.equal(image, alone) and torch.equal(light, light_alone)
