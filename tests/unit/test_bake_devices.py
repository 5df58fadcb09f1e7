"""Baking runs where the mesh is, and writes the same bytes every time.

Inside `torch.device("meta")` a tensor made without naming a device has no values, and mixing it with the
mesh's raises. Not tested here: CUDA itself.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trellis_core.geometry.bake import average_texels, bake_texture, cover_texels, to_images
from trellis_core.geometry.infill import paint_texture
from trellis_core.geometry.sample import sample_voxels
from trellis_core.geometry.types import Mesh, PBRVoxels
from trellis_core.io.textures import encode_images
from trellis_core.kernels.table import Kernels

R = 32
OPS = ("rasterize", "closest_point", "ray_cast", "voxel_sampler")
WARP, TORCH = Kernels(dict.fromkeys(OPS, "warp")), Kernels()
every_backend = pytest.mark.parametrize("kernels", [WARP, TORCH], ids=["warp", "torch"])


@pytest.fixture(scope="module")
def square() -> Mesh:
    corners = torch.tensor([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0.4, 0.4, 0], [-0.4, 0.4, 0]])
    uvs = corners[:, :2] + 0.5
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uvs)


@pytest.fixture(scope="module")
def voxels() -> PBRVoxels:
    axis = torch.arange(R)
    coords = torch.cartesian_prod(axis, axis, torch.tensor([R // 2 - 1, R // 2])).int()
    return PBRVoxels(coords, torch.rand(len(coords), 6, generator=torch.Generator().manual_seed(0)), R)


def lifted(mesh: Mesh, by: float) -> Mesh:
    return Mesh(mesh.vertices + torch.tensor([0, 0, by]), mesh.faces, mesh.uvs)


@every_backend
@pytest.mark.parametrize("mode", ["auto", "direct", "projected"])
@pytest.mark.parametrize("height", [0.0, 1.2 / R, 2.5 / R, 12 / R])
def test_baking_makes_nothing_on_a_device_that_nobody_named(square, voxels, kernels, mode, height):
    for op in OPS:
        kernels[op]  # imports happen outside
    mesh = lifted(square, height)
    expected = bake_texture(mesh, voxels, 16, original=square, mode=mode, kernels=kernels)
    with torch.device("meta"):
        baked = bake_texture(mesh, voxels, 16, original=square, mode=mode, kernels=kernels)
        alpha, images = baked.alpha, to_images(baked.image)
    assert torch.equal(baked.image, expected.image) and alpha.device.type == "cpu"
    assert [image.device.type for image in images] == ["cpu", "cpu"]


@every_backend
def test_the_parts_of_baking_name_their_devices_too(square, voxels, kernels):
    values = torch.full((3, 2), 7, dtype=torch.uint8)
    index = torch.tensor([0, 50, 99])
    points = torch.rand(50, 3) * R
    with torch.device("meta"):
        texels = cover_texels(square, 40, kernels)
        image = paint_texture(values, index, 10)
        found = sample_voxels(points, voxels.coords, voxels.attrs, R, "nearest", kernels)
        mean = average_texels(index, values.float(), 5, 2)
    for made in (texels.position, image, *found, *mean):
        assert made.device.type == "cpu"
    assert (image == 7).all()


def noise(channels: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (64, 64, channels), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["webp", "png", "jpeg"])
def test_images_encoded_side_by_side_are_those_encoded_alone_in_their_order(kind):
    images = [(f"image {n}", noise(3 + n % 2, n), n % 3 == 0) for n in range(12)]
    together = encode_images(images, kind)
    assert [image.name for image in together] == [name for name, _, _ in images]
    for image, encoded in zip(images, together, strict=True):
        assert encode_images([image], kind) == [encoded]
