"""The dense structure VAE at tiny sizes.

Not tested here: agreement with the released networks (golden cases).
"""

from __future__ import annotations

import pytest
import torch

from trellis_core.errors import ModelError
from trellis_core.models.structure_vae import ResBlock3d, SparseStructureDecoder, SparseStructureEncoder


@pytest.mark.parametrize("channels", [[4], [4, 8], [4, 8, 8]])
def test_every_level_halves_the_grid(channels):
    encoder = SparseStructureEncoder(1, 3, 1, channels)
    decoder = SparseStructureDecoder(1, 3, 1, channels[::-1])
    mean, logvar = encoder(torch.zeros(2, 1, 8, 8, 8))
    side = 8 >> (len(channels) - 1)
    assert mean.shape == logvar.shape == (2, 3, side, side, side)
    assert decoder(mean).shape == (2, 1, 8, 8, 8)


def test_grid_size_is_not_part_of_the_network():
    encoder = SparseStructureEncoder(1, 3, 1, [4, 8])
    assert encoder(torch.zeros(1, 1, 16, 8, 4))[0].shape == (1, 3, 8, 4, 2)


def test_half_precision_torso_keeps_float32_at_both_ends():
    decoder = SparseStructureDecoder(1, 3, 1, [8, 4])
    z = torch.randn(1, 3, 4, 4, 4)
    want = decoder(z)
    decoder.set_torso_dtype(torch.bfloat16)
    got = decoder(z)
    assert got.dtype == torch.float32
    assert decoder.input_layer.weight.dtype == decoder.blocks[0].norm1.weight.dtype == torch.float32
    assert decoder.blocks[0].conv1.weight.dtype == torch.bfloat16
    assert (got - want).norm() < 0.05 * want.norm()


def test_residual_blocks_start_as_the_identity():
    encoder = SparseStructureEncoder(1, 3, 1, [4])
    encoder.initialize()
    x = torch.randn(1, 4, 2, 2, 2)
    blocks = [m for m in encoder.modules() if isinstance(m, ResBlock3d)]
    assert len(blocks) == 3
    assert all(torch.equal(block(x), x) for block in blocks)


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    encoder, decoder = SparseStructureEncoder(1, 2, 1, [4, 8]), SparseStructureDecoder(1, 2, 1, [8, 4])
    encoder.initialize()
    decoder.initialize()
    occupied = (torch.rand(4, 1, 4, 4, 4) > 0.5).float()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(25):
        mean, logvar = encoder(occupied)
        logits = decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, occupied)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(p.grad is not None for p in parameters)


@pytest.mark.parametrize("norm_type", ["layer", "group"])
def test_norm_type_reaches_the_output_layer_only(norm_type):
    decoder = SparseStructureDecoder(1, 3, 1, [32], norm_type=norm_type)
    assert (type(decoder.out_layer[0]) is type(decoder.middle_block[0].norm1)) == (norm_type == "layer")
    assert decoder(torch.randn(1, 3, 2, 2, 2)).isfinite().all()
    with pytest.raises(ModelError, match="norm_type"):
        SparseStructureDecoder(1, 3, 1, [32], norm_type="batch")
