"""DINOv3, DINOv2 with registers, and the preparation of their pictures.

Properties of DINOv2: tokens follow the published formula (an independent computation, and `transformers`
where it is installed); keys and shapes are the published ones; positions are interpolated to other sizes.
Not tested here: agreement with the release (golden cases).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trellis_core.errors import InputError, ModelError
from trellis_core.models.image_encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DINOv2ViT,
    DINOv3ViT,
    patch_rotations,
    place_positions,
    prepare_images,
    published_arguments,
    rotate_halves,
)
from trellis_core.weights.load import misfits

MANIFEST = (
    Path(__file__).parents[1] / "golden" / "manifests" / "encoders" / "dinov2_with_registers_large.json"
)
REGISTERED = {  # a tiny DINOv2, in the words of its config.json
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 12,
    "patch_size": 4,
    "num_register_tokens": 2,
}
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


# DINOv2 with registers


@pytest.fixture(scope="module")
def registered() -> DINOv2ViT:
    """Weights large enough for every part to matter."""
    torch.manual_seed(0)
    model = DINOv2ViT(**REGISTERED)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False)


def published_formula(weights: dict[str, torch.Tensor], picture: torch.Tensor) -> torch.Tensor:
    """One patch, one token and one head at a time, in float64; the picture has the size that was learned."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, patch = REGISTERED["num_attention_heads"], REGISTERED["patch_size"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    kernel = w["embeddings.patch_embeddings.projection.weight"]
    places = w["embeddings.position_embeddings"][0]
    stream = [w["embeddings.cls_token"][0, 0] + places[0], *w["embeddings.register_tokens"][0]]
    for number in range(len(places) - 1):
        y, x = (patch * i for i in divmod(number, picture.shape[2] // patch))
        value = (kernel * picture[:, y : y + patch, x : x + patch].double()).sum((1, 2, 3))
        bias = w["embeddings.patch_embeddings.projection.bias"]
        stream.append(value + bias + places[1 + number])
    for layer in (f"encoder.layer.{i}" for i in range(REGISTERED["num_hidden_layers"])):
        seen = [norm(f"{layer}.norm1", x) for x in stream]
        q, k, v = (
            [linear(f"{layer}.attention.attention.{name}", x) for x in seen]
            for name in ("query", "key", "value")
        )
        width = len(q[0]) // heads
        for place in range(len(stream)):
            mixed = []
            for span in (slice(h * width, (h + 1) * width) for h in range(heads)):
                scores = [math.exp(q[place][span] @ key[span] / math.sqrt(width)) for key in k]
                mixed.append(sum(s * x[span] for s, x in zip(scores, v, strict=True)) / sum(scores))
            out = linear(f"{layer}.attention.output.dense", torch.cat(mixed))
            stream[place] = stream[place] + w[f"{layer}.layer_scale1.lambda1"] * out
        for place, x in enumerate(stream):
            hidden = linear(f"{layer}.mlp.fc1", norm(f"{layer}.norm2", x))
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            out = linear(f"{layer}.mlp.fc2", hidden)
            stream[place] = x + w[f"{layer}.layer_scale2.lambda1"] * out
    return torch.stack(stream)


def test_registered_tokens_follow_the_published_formula(registered):
    pictures = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    for picture, hidden in zip(pictures, registered.hidden(pictures), strict=True):
        want = published_formula(registered.state_dict(), picture)
        torch.testing.assert_close(hidden.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [12, 20])
def test_transformers_computes_the_same_registered_tokens(registered, side):
    transformers = pytest.importorskip("transformers", reason="parity with the development dependency")
    theirs = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**REGISTERED)
    ).eval()
    theirs.load_state_dict(registered.state_dict())
    pictures = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    want = theirs(pictures, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(registered.hidden(pictures), want, atol=1e-4, rtol=1e-4)


def test_the_published_tensors_are_those_of_the_network():
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        model = DINOv2ViT(**published_arguments(manifest["config"], DINOv2ViT))
    assert misfits(model, {key: tuple(facts["shape"]) for key, facts in manifest["tensors"].items()}) == []
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]


@pytest.mark.parametrize("side", [12, 16, 22])
def test_a_picture_of_another_size_has_a_token_per_whole_patch(registered, side):
    tokens = registered(torch.randn(1, 3, side, side))
    assert tokens.shape == (1, 1 + 2 + (side // 4) ** 2, 12)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros_like(tokens[..., 0]), atol=1e-5, rtol=0)


def test_learned_positions_stay_and_others_lie_between_them():
    table = torch.cat([torch.full((1, 1, 1), 9.0), torch.arange(3.0).repeat(3)[None, :, None]], dim=1)
    assert place_positions(table, 3, 3) is table  # rows of 0 1 2
    finer = place_positions(table, 5, 6)
    assert finer.shape == (1, 31, 1) and finer[0, 0, 0] == 9
    rows = finer[0, 1:, 0].view(5, 6)
    assert (rows - rows[0]).abs().max() < 1e-5
    assert (rows[0].diff() > -1e-6).all() and abs(rows.mean() - 1) < 1e-5


def test_bfloat16_layers_of_the_registered_encoder_stay_close_to_float32():
    torch.manual_seed(0)
    model = DINOv2ViT(**REGISTERED)
    model.initialize()
    x = torch.randn(1, 3, 12, 12)
    want = model(x)
    model.set_torso_dtype(torch.bfloat16)
    got = model(x)
    assert got.dtype == torch.float32 and model.encoder.layer[0].norm1.weight.dtype == torch.float32
    assert (got - want).norm() < 0.05 * want.norm()


def test_a_gated_dinov2_is_refused():
    with pytest.raises(ModelError, match="gated MLP"):
        DINOv2ViT(**REGISTERED, use_swiglu_ffn=True)
