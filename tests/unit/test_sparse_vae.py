"""The sparse VAEs at tiny sizes, and the released ones on the meta device.

Properties: keys and shapes are the released ones; two, three and five levels work; the encoder's voxels
come back; both decoders expand alike and share tables; `upsample` agrees with decoding and skips the
last convolutions; training reaches every weight. Not tested here: the released numbers (golden cases).
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trellis2.models import MODELS
from trellis2.models.sparse_blocks import SparseResBlockC2S3d, SparseResBlockS2C3d
from trellis2.models.sparse_vae import read_dual_grid
from trellis_core.errors import InputError
from trellis_core.nn.conv import SparseConv3d
from trellis_core.sparse.tensor import SparseTensor

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
VAES = ("FlexiDualGridVaeEncoder", "FlexiDualGridVaeDecoder", "SparseUnetVaeEncoder", "SparseUnetVaeDecoder")


def config(channels: list[int], blocks: list[int], step: str, step_type: str, **others: object) -> dict:
    return {
        "model_channels": channels,
        "num_blocks": blocks,
        "latent_channels": 4,
        "block_type": ["SparseConvNeXtBlock3d"] * len(channels),
        step: [step_type] * (len(channels) - 1),
        "block_args": [{}] * len(channels),
        "use_fp16": False,
        **others,
    }


def build(name: str, channels: list[int], **others: object):
    torch.manual_seed(0)
    encoder = name.endswith("Encoder")
    widths = channels if encoder else channels[::-1]
    blocks = [0] + [1] * (len(channels) - 1)
    step = ("down_block_type", "SparseResBlockS2C3d") if encoder else ("up_block_type", "SparseResBlockC2S3d")
    defaults = {
        "FlexiDualGridVaeEncoder": {},
        "FlexiDualGridVaeDecoder": {"resolution": 16},
        "SparseUnetVaeEncoder": {"in_channels": 6},
        "SparseUnetVaeDecoder": {"out_channels": 6, "pred_subdiv": False},
    }[name]
    return MODELS[name](**config(widths, blocks if encoder else blocks[::-1], *step, **defaults | others))


CHANNELS = [8, 16, 32]


def voxels(grid: int = 10) -> SparseTensor:
    """A spherical shell in sample 0, a plane in sample 1; features inside [0, 1]."""
    cells = torch.cartesian_prod(*[torch.arange(grid)] * 3)
    shell = cells[((cells - grid / 2 + 0.5).norm(dim=1) - grid / 3).abs() < 0.7]
    plane = cells[cells[:, 2] == 3]
    coords = torch.cat([F.pad(shell, (1, 0), value=0), F.pad(plane, (1, 0), value=1)]).int()
    generator = torch.Generator().manual_seed(1)
    return SparseTensor(torch.rand(len(coords), 3, generator=generator), coords, batch_size=2)


def encoded(channels: list[int] = CHANNELS):
    x = voxels()
    crossings = x.feats > 0.5
    mean, _ = build("FlexiDualGridVaeEncoder", channels)(x, crossings)
    return x, mean


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*_next_dc_*.json")), ids=lambda path: path.stem)
def test_released_networks_have_exactly_the_released_keys_and_shapes(path):
    released = json.loads(path.read_text())
    assert released["config"]["name"] in VAES
    with torch.device("meta"):
        model = MODELS[released["config"]["name"]](**released["config"]["args"])
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert ours == {key: value["shape"] for key, value in released["tensors"].items()}


def test_all_four_released_networks_are_checked():
    assert len(list(MANIFESTS.glob("*_next_dc_*.json"))) == 4


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*_next_dc_*.json")), ids=lambda path: path.stem)
def test_half_precision_converts_the_matrices_of_the_torso_only(path):
    released = json.loads(path.read_text())
    with torch.device("meta"):
        model = MODELS[released["config"]["name"]](**released["config"]["args"])
    model.set_torso_dtype(torch.float16)
    half = {key for key, value in model.state_dict().items() if value.dtype == torch.float16}
    assert half == {key for key, value in released["tensors"].items() if value["runtime_dtype"] == "F16"}


@pytest.mark.parametrize("channels", [[8, 8], CHANNELS, [8, 8, 8, 16, 16]], ids=len)
def test_any_number_of_levels_restores_the_encoded_voxels(channels):
    x, latent = encoded(channels)
    decoder = build("FlexiDualGridVaeDecoder", channels)
    assert decoder.factor == 2 ** (len(channels) - 1)
    assert torch.equal(latent.coords.unique(dim=0), latent.coords)
    raw, subdivisions = decoder(latent)
    assert raw.feats.shape == (len(x), 7)
    assert torch.equal(raw.coords, x.coords)
    assert len(subdivisions) == decoder.levels


def test_training_compares_logits_with_the_recorded_masks():
    x, latent = encoded()
    _, subdivisions = build("FlexiDualGridVaeDecoder", CHANNELS)(latent)
    masks = [logits.plan.expand().mask for logits in subdivisions]
    assert [m.shape for m in masks] == [s.feats.shape for s in subdivisions]
    assert masks[-1].sum() == len(x)
    assert masks[0].sum() == len(masks[1])


def test_the_texture_decoder_follows_the_shape_decoder_and_shares_its_tables():
    _, latent = encoded()
    free = latent.without_topology()
    raw, guides = build("FlexiDualGridVaeDecoder", CHANNELS)(free)
    other = SparseTensor(free.feats, free.coords.clone(), free.batch_size)  # as if read from a file
    searches = []
    texture = build("SparseUnetVaeDecoder", CHANNELS)
    for module in texture.modules():
        if isinstance(module, SparseConv3d):
            module._find_neighbors = lambda *args: searches.append(args)
    attrs, none = texture(other, guides)
    assert attrs.plan is raw.plan
    assert torch.equal(attrs.coords, raw.coords)
    assert none == ()
    assert searches == []


def test_a_latent_does_not_keep_what_was_decoded_from_it():
    _, latent = encoded()
    free = latent.without_topology()
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS).requires_grad_(False)
    raw, subdivisions = decoder(free.replace(free.feats.detach()))
    finest = weakref.ref(raw.plan)
    del raw, subdivisions
    assert finest() is None


def test_autocast_decides_the_dtype_in_training():
    x, latent = encoded()
    encoder = build("FlexiDualGridVaeEncoder", CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = encoder(x, x.feats > 0.5)
    mean.feats.float().square().sum().backward()
    assert (mean.feats.float() - latent.feats).norm() < 0.05 * latent.feats.norm()
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters())


def test_guides_of_other_tokens_are_refused():
    _, latent = encoded()
    _, guides = build("FlexiDualGridVaeDecoder", CHANNELS)(latent.without_topology())
    elsewhere = SparseTensor(latent.feats, latent.coords.flip(1), 16)
    texture = build("SparseUnetVaeDecoder", CHANNELS)
    for tokens, logits in ((elsewhere, guides), (latent.without_topology(), guides[:1])):
        with pytest.raises(ValueError, match="same tokens"):
            texture(tokens, logits)


@pytest.mark.parametrize("steps", [1, 2])
def test_upsample_gives_the_decoder_s_voxels_without_the_last_convolutions(steps):
    _, latent = encoded()
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS)
    _, subdivisions = decoder(latent.without_topology())
    want = subdivisions[steps - 1].plan.expand(subdivisions[steps - 1].feats > 0).fine.coords
    ran = []
    for block in (decoder.step(steps - 1).conv1, decoder.step(steps - 1).conv2):
        block.register_forward_hook(lambda *args: ran.append(args))
    assert torch.equal(decoder.upsample(latent.without_topology(), steps), want)
    assert ran == []


def test_upsample_refuses_more_steps_than_there_are():
    with pytest.raises(ValueError, match="1 to 2 times, not 3"):
        build("FlexiDualGridVaeDecoder", CHANNELS).upsample(encoded()[1], 3)


def test_decoding_in_chunks_changes_nothing(monkeypatch):
    _, latent = encoded()
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS).requires_grad_(False)
    with torch.no_grad():
        whole, _ = decoder(latent)
        monkeypatch.setattr("trellis_core.sparse.ops.CHUNK_ELEMENTS", 4096)
        parts, _ = decoder(latent)
    assert torch.allclose(whole.feats, parts.feats, rtol=1e-5, atol=1e-5)


def test_the_dtype_of_the_torso_does_not_show_outside():
    x, _ = encoded()
    encoder = build("FlexiDualGridVaeEncoder", CHANNELS)
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS)
    mean, _ = encoder(x, x.feats > 0.5)
    raw, _ = decoder(mean)
    for model in (encoder, decoder):
        model.set_torso_dtype(torch.bfloat16)
    half, logvar = encoder(x, x.feats > 0.5)
    half_raw, logits = decoder(half)
    assert half.dtype == logvar.dtype == half_raw.dtype == torch.float32
    assert logits[0].dtype == torch.bfloat16
    assert (half.feats - mean.feats).norm() < 0.05 * mean.feats.norm()
    assert (half_raw.feats - raw.feats).norm() < 0.1 * raw.feats.norm()


def test_training_reaches_every_weight_after_one_step_from_scratch():
    x = voxels()
    encoder = build("FlexiDualGridVaeEncoder", CHANNELS)
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS)
    both = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    weights = dict(both.named_parameters())
    for model in (encoder, decoder):
        model.initialize()
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    for _ in range(2):
        mean, logvar = encoder(x, x.feats > 0.5)
        latent = mean.replace(mean.feats + (0.5 * logvar.feats).exp() * torch.randn_like(mean.feats))
        raw, subdivisions = decoder(latent)
        loss = (raw.feats - 1).square().mean() + sum(
            F.binary_cross_entropy_with_logits(s.feats, s.plan.expand().mask.float()) for s in subdivisions
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    missing = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    assert missing == []


def test_initialised_residual_branches_start_at_zero():
    model = build("SparseUnetVaeDecoder", CHANNELS)
    model.initialize()
    zero = {name for name, value in model.named_parameters() if name.endswith("weight") and not value.any()}
    assert zero == {
        name for name, _ in model.named_parameters() if name.endswith(("conv2.weight", "mlp.2.weight"))
    }


def test_checkpointed_blocks_give_the_same_gradients():
    x = voxels()
    grads = []
    for use in (False, True):
        encoder = build("FlexiDualGridVaeEncoder", CHANNELS, block_args=[{"use_checkpoint": use}] * 3)
        encoder(x, x.feats > 0.5)[0].feats.square().sum().backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_samples_of_a_batch_are_independent():
    x, latent = encoded()
    alone = SparseTensor(x.feats[x.layout.rows(0)], x.coords[x.layout.rows(0)], 1)
    mean, _ = build("FlexiDualGridVaeEncoder", CHANNELS)(alone, alone.feats > 0.5)
    assert torch.allclose(mean.feats, latent.feats[latent.layout.rows(0)], rtol=1e-4, atol=1e-5)


def test_dual_grid_channels_are_read_in_the_released_order():
    raw = torch.tensor([[0.0, 50, -50, 1, -1, 0, 0]])
    grid = read_dual_grid(raw, voxel_margin=0.5)
    assert torch.allclose(grid.dual_vertices, torch.tensor([[0.5, 1.5, -0.5]]))
    assert grid.crossings.tolist() == [[True, False, False]]
    assert grid.split_weight.shape == (1, 1)
    assert grid.split_weight.item() == pytest.approx(0.6931, abs=1e-4)


def test_nothing_to_encode_or_decode_is_a_clear_error():
    empty = SparseTensor(torch.empty(0, 3), torch.empty(0, 4, dtype=torch.int32), 1)
    with pytest.raises(InputError, match="no voxel to encode"):
        build("FlexiDualGridVaeEncoder", CHANNELS)(empty, torch.empty(0, 3, dtype=torch.bool))
    decoder = build("FlexiDualGridVaeDecoder", CHANNELS)
    torch.nn.init.constant_(decoder.step(1).to_subdiv.bias, -1e6)
    with pytest.raises(InputError, match="no voxel"):
        decoder(encoded()[1].without_topology())


def test_widths_that_cannot_be_shuffled_are_refused():
    with pytest.raises(ValueError, match="divisible by 8"):
        SparseResBlockS2C3d(8, 12)
    with pytest.raises(ValueError, match="divisible by 48"):
        SparseResBlockS2C3d(8, 48)
    with pytest.raises(ValueError, match="divisible by 8"):
        SparseResBlockC2S3d(12, 8)
    with pytest.raises(ValueError, match="16 output channels"):
        SparseResBlockC2S3d(24, 16)


def test_a_configuration_with_lists_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="differ in length"):
        build("SparseUnetVaeEncoder", CHANNELS, num_blocks=[0, 1])


def test_pooling_blocks_take_widths_that_shuffling_blocks_cannot():
    widths = [8, 16, 24]
    x = voxels()
    down, up = ["SparseResBlockDownsample3d"] * 2, ["SparseResBlockUpsample3d"] * 2
    mean, _ = build("FlexiDualGridVaeEncoder", widths, down_block_type=down)(x, x.feats > 0.5)
    decoder = build("FlexiDualGridVaeDecoder", widths, up_block_type=up)
    raw, subdivisions = decoder(mean)
    assert torch.equal(raw.coords, x.coords)
    assert len(subdivisions) == 2
    free, _ = decoder(mean.without_topology())
    assert torch.equal(decoder.upsample(mean.without_topology(), 2), free.coords)


def test_old_encoder_configurations_may_name_a_resolution():
    build("SparseUnetVaeEncoder", CHANNELS, resolution=1024)
