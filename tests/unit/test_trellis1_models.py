"""The networks of TRELLIS v1.

Properties: every released configuration builds on the meta device, and a file with its tensors in the
configured types has exactly the published size; what upstream cannot run is refused in words; half precision
touches matrices only; freshly initialised networks are the zero function where they should be.
Not tested here: numbers against the released code, which `tests/parity` does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trellis.models import MODELS
from trellis.models.latent_flow import SLatFlowModel
from trellis.models.latent_vae import SLatEncoder
from trellis.models.serial_windows import serial_windows
from trellis.models.sparse_blocks import PointwiseConv, SparseGroupNorm32, halve, subdivide
from trellis.models.structure_flow import SparseStructureFlowModel
from trellis.weights import CHECKPOINTS, REPOSITORIES, canonical
from trellis_core.errors import ModelError
from trellis_core.sparse.spatial import repeat_parents
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.weights.load import build_model, configured_dtype

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trellis"
TYPES = {torch.float32: "F32", torch.float16: "F16"}
FLOW = {"in_channels": 3, "out_channels": 3, "model_channels": 12, "cond_channels": 5, "num_blocks": 1}
FLOW |= {"num_heads": 2, "resolution": 8}


def config_of(checkpoint: str) -> dict:
    owner = CHECKPOINTS[checkpoint].repository
    model = next(name for name, repository in REPOSITORIES.items() if repository == owner)
    return json.loads((CONFIGS / model / f"{checkpoint}.json").read_text())


def file_bytes(model: nn.Module) -> int:
    """Size of a safetensors file with these tensors: 8 bytes, a JSON header padded to 8, the numbers."""
    state = sorted(model.state_dict().items(), key=lambda item: (-item[1].itemsize, item[0]))
    header, offset = {}, 0
    for key, tensor in state:
        end = offset + tensor.numel() * tensor.itemsize
        facts = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        header[key], offset = facts, end
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + offset


@pytest.mark.parametrize("checkpoint", sorted(CHECKPOINTS))
def test_a_released_network_fills_a_file_of_the_published_size(checkpoint):
    config = config_of(checkpoint)
    model = build_model(config, MODELS)
    model.set_torso_dtype(configured_dtype(config))
    if hasattr(model, "pos_emb"):  # stored by upstream, computed by us
        cells = model.resolution**3
        model.pos_emb = torch.empty(cells, model.model_channels, device="meta")
    assert file_bytes(model) == CHECKPOINTS[checkpoint].bytes


def test_former_owners_are_the_present_one():
    assert canonical("JeffreyXiang/TRELLIS-image-large/ckpts/x") == "microsoft/TRELLIS-image-large/ckpts/x"
    assert canonical("JeffreyXiang/TRELLIS-text-base") == "microsoft/TRELLIS-text-base"
    assert canonical("JeffreyXiang/other") == "JeffreyXiang/other"
    assert canonical("ckpts/slat_flow") == "ckpts/slat_flow"


def test_elastic_classes_are_the_same_networks():
    assert all(MODELS[name] is MODELS[name.removeprefix("Elastic")] for name in MODELS if "Elastic" in name)


@pytest.mark.parametrize("network", [SparseStructureFlowModel, SLatFlowModel])
def test_rotary_positions_are_refused(network):
    with pytest.raises(ModelError, match="rope"):
        network(**FLOW, patch_size=1, pe_mode="rope")


def test_a_patch_size_that_does_not_fit_the_levels_is_refused():
    with pytest.raises(ModelError, match="patch_size 2"):
        SLatFlowModel(**FLOW, patch_size=2, io_block_channels=None)
    with pytest.raises(ModelError, match="share_mod"):
        SLatFlowModel(**FLOW, patch_size=2, io_block_channels=[4], share_mod=True)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ModelError, match="shift_order"):
        SLatEncoder(
            resolution=8,
            in_channels=2,
            model_channels=12,
            latent_channels=2,
            num_blocks=1,
            num_heads=2,
            attn_mode="shift_order",
        )


def test_shared_modulation_has_no_parameters_in_the_blocks():
    flow = SparseStructureFlowModel(**FLOW, patch_size=1, share_mod=True)
    assert not [key for key in flow.state_dict() if key.startswith("blocks") and "modulation" in key]
    assert "adaLN_modulation.1.weight" in flow.state_dict()


def test_half_precision_converts_matrices_of_the_blocks_only():
    flow = SLatFlowModel(**FLOW, patch_size=2, io_block_channels=[4])
    flow.set_torso_dtype(torch.float16)
    for name, value in flow.named_parameters():
        inside = name.startswith(("blocks.", "input_blocks.", "out_blocks."))
        half = inside and "norm" not in name
        assert value.dtype == (torch.float16 if half else torch.float32), name


@pytest.mark.parametrize("channels", [[4], None])
def test_a_new_flow_predicts_nothing(channels):
    flow = SLatFlowModel(**FLOW, patch_size=2 if channels else 1, io_block_channels=channels)
    flow.initialize()
    x = voxels_of([(0, 1, 2, 3), (0, 1, 2, 4), (1, 0, 0, 0)], 3)
    v = flow(x, torch.tensor([500.0, 20.0]), torch.randn(2, 4, 5))
    assert v.coords is x.coords
    assert torch.equal(v.feats, torch.zeros(3, 3))


def test_the_tokens_of_a_flow_are_made_once():
    flow = SLatFlowModel(**FLOW, patch_size=2, io_block_channels=[4])
    x = voxels_of([(0, 1, 2, 3), (0, 1, 2, 4), (0, 7, 0, 0)], 3)
    flow(x, torch.tensor([500.0]), None)
    coarse = x.plan.remember("coarse", lambda: None)
    flow(x.replace(x.feats + 1), torch.tensor([400.0]), None)
    assert x.plan.remember("coarse", lambda: None) is coarse


# --- sparse blocks ----------------------------------------------------------------------------------


def voxels_of(rows: list[tuple[int, int, int, int]], channels: int) -> SparseTensor:
    coords = torch.tensor(sorted(rows), dtype=torch.int32)
    feats = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(0))
    return SparseTensor(feats, coords, int(coords[:, 0].max()) + 1)


voxel_sets = st.sets(st.tuples(st.integers(0, 1), *[st.integers(0, 5)] * 3), min_size=1, max_size=30).map(
    lambda rows: voxels_of([(0, 0, 0, 0), *rows] if (0, 0, 0, 0) not in rows else list(rows), 4)
)


@settings(deadline=None, max_examples=8)
@given(voxel_sets)
def test_halving_divides_by_the_number_of_voxels_plus_one(x):
    down = halve(x)
    cells = [tuple(c) for c in down.coords.tolist()]
    assert cells == sorted(cells)
    for row, cell in enumerate(cells):
        mine = [i for i, c in enumerate(x.coords.tolist()) if (c[0], *(v // 2 for v in c[1:])) == cell]
        torch.testing.assert_close(down.feats[row], x.feats[mine].sum(0) / (len(mine) + 1))
    assert torch.equal(repeat_parents(down).coords, x.coords)


@settings(deadline=None, max_examples=8)
@given(voxel_sets)
def test_subdividing_gives_every_voxel_its_eight_children(x):
    fine = subdivide(x)
    assert len(fine) == 8 * len(x)
    assert len(torch.unique(fine.coords, dim=0)) == len(fine)
    back = {tuple(c): f for c, f in zip(x.coords.tolist(), x.feats, strict=True)}
    for coords, feats in zip(fine.coords.tolist(), fine.feats, strict=True):
        assert torch.equal(feats, back[coords[0], coords[1] // 2, coords[2] // 2, coords[3] // 2])


def test_subdividing_does_not_return_to_remembered_voxels():
    x = voxels_of([(0, 0, 0, 0), (0, 4, 4, 4)], 2)
    assert len(subdivide(halve(x))) == 16


def test_group_norm_works_sample_by_sample():
    norm = SparseGroupNorm32(2, 4)
    x = voxels_of([(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0), (1, 3, 0, 0), (1, 3, 0, 2)], 4)
    both = norm(x).feats
    for sample in range(2):
        rows = x.layout.rows(sample)
        alone = norm(SparseTensor(x.feats[rows], x.coords[rows] * torch.tensor([0, 1, 1, 1]).int(), 1))
        torch.testing.assert_close(both[rows], alone.feats)
        dense = nn.functional.group_norm(x.feats[rows].T[None], 2)[0].T
        torch.testing.assert_close(both[rows], dense)


def test_the_pointwise_weight_is_read_row_by_row_not_transposed():
    conv = PointwiseConv(2, 3)
    x = torch.randn(5, 2)
    weight = conv.conv.weight.flatten()
    torch.testing.assert_close(conv(x), x @ weight.view(2, 3) + conv.conv.bias)
    assert not torch.allclose(conv(x), x @ weight.view(3, 2).T + conv.conv.bias)


@settings(deadline=None, max_examples=8)
@given(voxel_sets, st.integers(1, 9), st.integers(0, 4))
def test_every_voxel_finds_its_result_in_one_window(x, size, shift):
    windows = serial_windows(x.plan, size, shift_sequence=shift)
    assert torch.equal(windows.gather[windows.scatter], torch.arange(len(x)))
    lengths = windows.packing.cu_seqlens.diff()
    assert int(lengths.sum()) == len(windows.gather)
    window = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    samples = torch.tensor(windows.sample_of_window)[window]
    assert torch.equal(x.coords[windows.gather, 0].long(), samples)
