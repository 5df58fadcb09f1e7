"""DINOv3 and the preparation of its pictures. Not tested here: agreement with the release (golden cases)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trellis_core.errors import InputError, ModelError
from trellis_core.models.image_encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DINOv3ViT,
    patch_rotations,
    prepare_images,
    rotate_halves,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def picture(width: int, height: int, color: tuple[int, ...] = (255, 0, 0), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), color)


@pytest.mark.parametrize(("side", "patch", "registers"), [(32, 16, 4), (32, 8, 0), (40, 16, 2)])
def test_there_is_a_token_per_patch_and_per_register_and_one_more(side, patch, registers):
    model = DINOv3ViT(**SIZES, patch_size=patch, num_register_tokens=registers)
    tokens = model(torch.rand(2, 3, side, side))
    assert tokens.shape == (2, 1 + registers + (side // patch) ** 2, 16)


def test_output_is_normalised_without_parameters():
    model = DINOv3ViT(**SIZES)
    torch.nn.init.constant_(model.norm.weight, 5)
    tokens = model(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 9), atol=1e-5, rtol=0)
    assert tokens.std(-1, correction=0).max() <= 1


def test_pictures_are_resized_and_normalised():
    x = prepare_images([picture(7, 9), picture(30, 20, (0, 0, 255))], 16)
    assert x.shape == (2, 3, 16, 16)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(x[0, :, 3, 3], (torch.tensor([1.0, 0, 0]) - mean) / std)
    torch.testing.assert_close(x[1, :, 3, 3], (torch.tensor([0, 0, 1.0]) - mean) / std)


def test_tensors_are_normalised_but_not_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    from_picture = prepare_images([Image.fromarray(pixels)], 16)
    from_tensor = prepare_images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, 99)
    torch.testing.assert_close(from_tensor, from_picture)
    with pytest.raises(InputError, match=r"\[B, 3, H, W\]"):
        prepare_images(torch.zeros(3, 16, 16), 16)


def test_rotation_is_relative_and_spares_the_first_tokens():
    cos, sin = patch_rotations(4, 4, 8, 100.0)
    x = torch.randn(1, 16 + 3, 1, 8)
    turned = rotate_halves(x, cos, sin)
    assert torch.equal(turned[:, :3], x[:, :3])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    same = rotate_halves(torch.ones(1, 16, 1, 8), cos, sin)[0, :, 0].view(4, 4, 8)
    torch.testing.assert_close(
        (same[0, 0] * same[1, 2]).sum(),
        (same[2, 1] * same[3, 3]).sum(),  # both are (1, 2) apart
    )


def test_bfloat16_layers_stay_close_to_float32():
    model = DINOv3ViT(**SIZES)
    x = torch.randn(1, 3, 32, 32)
    want = model(x)
    model.set_torso_dtype(torch.bfloat16)
    got = model(x)
    assert got.dtype == torch.float32
    assert model.layer[0].norm1.weight.dtype == torch.float32
    assert (got - want).norm() < 0.05 * want.norm()


def test_initialised_encoder_tells_pictures_apart_and_learns():
    torch.manual_seed(0)
    model = DINOv3ViT(**SIZES, patch_size=8)
    model.initialize()
    tokens = model(torch.randn(2, 3, 16, 16))
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    tokens[:, 0].sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {"embeddings.mask_token", "norm.weight", "norm.bias"}


def test_variants_we_cannot_run_are_refused():
    with pytest.raises(ModelError, match="gated MLP"):
        DINOv3ViT(**SIZES, use_gated_mlp=True)
