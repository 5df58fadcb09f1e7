"""What the released trainers are made of: losses, clipping, batches, memory, the float32 master, and
differentiable pictures of surfaces.

Recorded values of the released code are compared in `tests/parity/kinds/training.py`; here stand the
properties: what a loss is zero for, what a gradient is by finite differences, what a resumed order continues
with. Not tested: how good the weights are that these losses train.
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tests.parity.__main__ import check_case
from tests.parity.case import Kind, read_case
from tests.parity.kinds.training import flow_loss
from trellis2.dual_grid import extract_mesh
from trellis2.models.latent_flow import SLatFlowModel
from trellis2.models.sparse_vae import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeEncoder,
    SparseUnetVaeDecoder,
    SparseUnetVaeEncoder,
)
from trellis2.objectives import (
    ShapeVaeWeights,
    TextureVaeWeights,
    materials_against,
    shape_vae_losses,
    surface_losses,
    surfaces_against,
    texture_vae_losses,
    training_meshes,
)
from trellis_core.errors import ModelError, TrellisError
from trellis_core.geometry.camera import Camera, orbit_camera
from trellis_core.geometry.types import Mesh
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.batching import SampleOrder, balanced_groups, micro_batches
from trellis_core.training.clipping import AdaptiveClip
from trellis_core.training.elastic import ElasticMemory, ElasticSettings, checkpointed_blocks
from trellis_core.training.image_losses import ImageWeights, image_loss, psnr, ssim, ssim_per_image
from trellis_core.training.losses import flow_losses
from trellis_core.training.lpips import VGG_BLOCKS, Lpips
from trellis_core.training.master import FlatAverage, MasterCopy, linear_warm_up
from trellis_core.training.objectives import (
    TimeSchedule,
    clean_from,
    dice_loss,
    dropped,
    named_bins,
    noised,
    time_bins,
    velocity_target,
    without_condition,
)
from trellis_core.training.surface import (
    View,
    clip_near,
    draw_surface,
    draw_surfaces,
    random_view,
    turned_to_viewer,
)

FLOW = {
    "resolution": 4,
    "in_channels": 2,
    "out_channels": 2,
    "model_channels": 16,
    "cond_channels": 8,
    "num_blocks": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "pe_mode": "rope",
    "share_mod": True,
}
LEVELS = {"num_blocks": [0, 1], "block_type": ["SparseConvNeXtBlock3d"] * 2, "block_args": [{}] * 2}
DOWN = {
    **LEVELS,
    "model_channels": [8, 8],
    "latent_channels": 4,
    "down_block_type": ["SparseResBlockS2C3d"],
}
UP = {**LEVELS, "model_channels": [8, 8], "latent_channels": 4, "up_block_type": ["SparseResBlockC2S3d"]}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(seed: int = 0, channels: int = 3, size: int = 24) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=seeded(seed))


# Pictures


def test_equal_pictures_have_ssim_one_and_others_less():
    a, b = pictures(0), pictures(1)
    assert ssim(a, a).item() == pytest.approx(1)
    assert ssim(a, b).item() < 0.2
    assert ssim(a, b).item() == pytest.approx(ssim(b, a).item())
    assert ssim_per_image(a, torch.cat([a[:1], b[1:]]))[0].item() == pytest.approx(1)


def test_ssim_falls_as_noise_grows():
    a, noise = pictures(0), pictures(1) - 0.5
    values = [ssim(a, (a + share * noise).clamp(0, 1)).item() for share in (0.1, 0.3, 0.9)]
    assert values == sorted(values, reverse=True)


def test_psnr_of_an_error_of_a_tenth_is_twenty_decibels():
    a = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(a, a + 0.1).item() == pytest.approx(20, abs=1e-4)


def test_without_a_perceptual_network_its_term_is_reported_as_off():
    a, b = pictures(0), pictures(1)
    total, terms = image_loss(a, b, ImageWeights())
    assert math.isnan(terms["lpips"])
    assert total.item() == pytest.approx((terms["l1"] + 0.2 * terms["ssim"]).item())
    with_it, terms = image_loss(a, b, ImageWeights(), lambda x, y: torch.tensor(0.5))
    assert terms["lpips"].item() == 0.5
    assert with_it.item() == pytest.approx(total.item() + 0.1)


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory) -> Path:
    """Random weights under the published names."""
    torch.manual_seed(0)
    model = Lpips()
    stored = {f"features.{name}.weight": conv.weight.half() for name, conv in model.features.items()}
    stored |= {f"features.{name}.bias": conv.bias.half() for name, conv in model.features.items()}
    for number, widths in enumerate(VGG_BLOCKS):
        stored[f"lin{number}.model.1.weight"] = torch.rand(1, widths[-1], 1, 1).half()
    stored["classifier.0.bias"] = torch.zeros(3)  # VGG16 files hold more than its features
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(stored, path)
    return path


def test_lpips_reads_the_published_names_and_tells_pictures_apart(lpips_file):
    model = Lpips.load(lpips_file)
    assert list(model.features) == ["0", "2", "5", "7", "10", "12", "14", "17", "19", "21", "24", "26", "28"]
    a, b = pictures(0, size=32), pictures(1, size=32).requires_grad_()
    assert model(a, a).item() == 0
    distance = model(a, b)
    assert distance.item() > 0
    assert torch.autograd.grad(distance, b)[0].abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_lpips_names_what_a_file_lacks(tmp_path):
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "some.safetensors")
    with pytest.raises(ModelError, match=r"features\.0\.bias"):
        Lpips.load(tmp_path / "some.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        Lpips.load(tmp_path / "none.safetensors")


# Flow matching


@given(t=st.floats(0, 0.95), seed=st.integers(0, 9))
def test_the_clean_sample_comes_back_from_its_noised_one(t, seed):
    x, noise = torch.randn(2, 4, 3, generator=seeded(seed))
    time = torch.tensor(t)
    assert torch.allclose(clean_from(noised(x, noise, time), noise, time), x, atol=2e-4)


def test_a_model_that_knows_the_velocity_has_no_flow_loss():
    x, noise = torch.randn(2, 3, 2, 4, 4, 4, generator=seeded())
    losses = flow_losses(lambda *_: velocity_target(x, noise), x, noise, torch.rand(3), None)
    assert losses["loss"].item() == 0
    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.int32)
    feats, noise = torch.randn(2, 3, 5, generator=seeded())
    sparse = SparseTensor(feats, coords, 2)
    losses = flow_losses(
        lambda x_t, *_: x_t.replace(velocity_target(feats, noise)), sparse, noise, torch.rand(2), None
    )
    assert losses["loss"].item() == 0


def test_a_model_is_told_the_time_in_thousandths_and_sees_noise_at_one():
    seen = {}

    def model(x_t, t, cond, extra):
        seen.update(x_t=x_t, t=t, cond=cond, extra=extra)
        return x_t

    x, noise = torch.randn(2, 2, 2, 4, 4, 4, generator=seeded())
    flow_losses(model, x, noise, torch.tensor([1.0, 0.25]), None, extra=7)
    assert seen["t"].tolist() == [1000, 250]
    assert torch.allclose(seen["x_t"][0], noise[0])
    assert seen["extra"] == 7


def test_large_samples_weigh_more_in_the_sparse_flow_loss_but_not_in_its_bins():
    coords = torch.tensor([[0, i, 0, 0] for i in range(3)] + [[1, 0, 0, 0]], dtype=torch.int32)
    x = SparseTensor(torch.zeros(4, 2), coords, 2)
    error = torch.tensor([1.0, 1, 1, 3])[:, None].expand(4, 2)
    losses = flow_losses(
        lambda x_t, *_: x_t.replace(error), x, torch.zeros(4, 2), torch.tensor([0.05, 0.15]), None
    )
    assert losses["loss"].item() == pytest.approx((3 * 1 + 9) / 4)
    assert named_bins(losses["bins"]) == pytest.approx({"bin_0": 1, "bin_1": 9})


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 5, width=32)), min_size=1, max_size=20))
def test_time_bins_hold_the_mean_error_of_every_tenth(pairs):
    t, error = (torch.tensor(column) for column in zip(*pairs, strict=True))
    place = (t * 10).long().clamp(max=9)
    bins = named_bins(time_bins(error, t))
    assert set(bins) == {f"bin_{i}" for i in place.tolist()}
    for name, value in bins.items():
        assert value == pytest.approx(error[place == int(name[4:])].mean().item(), rel=1e-4, abs=1e-6)


def test_time_schedules_draw_what_their_names_say():
    even = TimeSchedule().draw(4000, seeded())
    assert even.mean().item() == pytest.approx(0.5, abs=0.02)
    late = TimeSchedule(name="logitNormal", mean=1.0, std=1.0).draw(4000, seeded())
    assert late.logit().mean().item() == pytest.approx(1, abs=0.05)
    assert late.logit().std().item() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="unknown time schedule"):
        TimeSchedule(name="cosine")


def test_dropped_conditions_become_zeros_or_the_unconditional_one():
    cond = torch.randn(3, 5, 4, generator=seeded())
    chosen = torch.tensor([True, False, True])
    kept = without_condition(cond, chosen)
    assert not kept[chosen].any()
    assert torch.equal(kept[1], cond[1])
    empty = torch.ones(5, 4)
    assert torch.equal(without_condition(cond, chosen, empty)[0], empty)
    ragged = without_condition([cond[0], cond[1][:2], cond[2][:3]], chosen)
    assert [c.shape[0] for c in ragged] == [5, 2, 3]
    assert [bool(c.any()) for c in ragged] == [False, True, False]


def test_conditions_are_dropped_as_often_as_asked():
    assert dropped(8000, 0.1, seeded()).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not dropped(100, 0.0, seeded()).any()


def test_the_recorded_dense_flow_loss_of_trellis_is_reproduced():
    path = Path(__file__).parents[1] / "golden" / "trellis1" / "train_flow_loss_dense.json"
    checks = check_case(read_case(path), path, Kind(flow_loss))
    assert len(checks) == 6
    assert not [c for c in checks if not c.passed]


def test_dice_of_the_whole_batch_is_that_of_its_union():
    logits, target = torch.randn(4, 1, 3, 3, 3, generator=seeded()), pictures(1, 1, 3)[:1].round()
    whole = dice_loss(logits, target.expand(4, 1, 3, 3).unsqueeze(2).expand(logits.shape), whole_batch=True)
    joined = dice_loss(
        logits.reshape(1, 1, -1), target.expand(4, 1, 3, 3).unsqueeze(2).expand(logits.shape).reshape(1, -1)
    )
    assert whole.item() == pytest.approx(joined.item())


# Checkpointed blocks and memory


def flow_inputs(network) -> tuple:
    cond = torch.randn(2, 3, 8, generator=seeded(1))
    if network is SparseStructureFlowModel:
        return torch.randn(2, 2, 4, 4, 4, generator=seeded()), torch.tensor([10.0, 700.0]), cond
    coords = torch.tensor([[b, i, i, 2] for b in range(2) for i in range(4)], dtype=torch.int32)
    return (
        SparseTensor(torch.randn(8, 2, generator=seeded()), coords, 2),
        torch.tensor([10.0, 700.0]),
        cond,
    )


def flow_gradients(model, inputs) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Gradients of all parameters, and how often every block ran."""
    runs = [0] * len(model.blocks)

    def counted(number):
        def hook(*_):
            runs[number] += 1

        return hook

    hooks = [block.register_forward_pre_hook(counted(i)) for i, block in enumerate(model.blocks)]
    out = model(*inputs)
    (out.feats if isinstance(out, SparseTensor) else out).square().sum().backward()
    for hook in hooks:
        hook.remove()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found, runs


@pytest.mark.parametrize("network", [SparseStructureFlowModel, SLatFlowModel])
def test_checkpointed_blocks_of_a_flow_run_twice_and_give_the_same_gradients(network):
    torch.manual_seed(0)
    model, inputs = network(**FLOW), flow_inputs(network)
    assert model.checkpointed == 0
    plain, runs = flow_gradients(model, inputs)
    assert runs == [1, 1, 1]
    model.checkpointed = 2
    saved, runs = flow_gradients(model, inputs)
    assert runs == [2, 2, 1]
    assert plain.keys() == saved.keys()
    for name, grad in plain.items():
        assert torch.allclose(grad, saved[name], atol=1e-6), name


def test_use_checkpoint_means_all_blocks_and_none_without_gradients():
    model = SparseStructureFlowModel(**FLOW, use_checkpoint=True)
    assert model.checkpointed == FLOW["num_blocks"]
    inputs = flow_inputs(SparseStructureFlowModel)
    assert flow_gradients(model, inputs)[1] == [2, 2, 2]
    with torch.no_grad():
        assert torch.isfinite(model(*inputs)).all()


@given(st.integers(1, 40), st.floats(0, 1))
def test_the_share_that_is_kept_never_falls_short_by_more_than_a_block_or_two(blocks, ratio):
    count, kept = checkpointed_blocks(blocks, ratio)
    assert 0 <= count <= blocks
    assert kept <= max(ratio, 1 / blocks) + 1e-9
    assert kept >= ratio - 1 / blocks - 1e-9 or count == blocks


def memory_of(tokens: float, ratio: float) -> float:
    return 0.002 * tokens * ratio + 7


def test_the_memory_line_is_found_and_the_share_makes_a_step_fit():
    elastic = ElasticMemory(ElasticSettings(available=40, fit_every=20, start=0.5, rise=0.3))
    tokens = [1000 * (1 + i % 7) for i in range(20)]
    for count in tokens:
        ratio = elastic.ratio(count)
        assert 0 <= ratio <= 0.5
        elastic.record(count, ratio, memory_of(count, ratio))
    assert elastic.line == pytest.approx((0.002, 7), rel=1e-6)
    assert elastic.cap == pytest.approx(0.8)
    assert elastic.ratio(100) == pytest.approx(0.8)
    assert memory_of(60000, elastic.ratio(60000)) == pytest.approx(0.75 * 40)
    for _ in range(40):
        elastic.record(1000, 0.5, memory_of(1000, 0.5))
    assert elastic.cap == 1


def test_a_step_checkpoints_blocks_and_learns_from_its_peak():
    elastic = ElasticMemory(ElasticSettings(available=10))
    elastic.line = (0.01, 1.0)
    model = SparseStructureFlowModel(**FLOW)
    with elastic.step(model, 1300, lambda: 5.0) as kept:
        assert model.checkpointed == 3
        assert kept == pytest.approx(1 / 3)
    assert model.checkpointed == 0
    assert list(elastic.seen) == [(1300 * kept, 5.0)]
    with pytest.raises(RuntimeError), elastic.step(model, 1300, lambda: 5.0):
        raise RuntimeError("out of memory")
    assert model.checkpointed == 0
    assert len(elastic.seen) == 1
    other = ElasticMemory(ElasticSettings(available=10))
    other.load_state_dict(elastic.state_dict())
    assert other.ratio(1234) == elastic.ratio(1234)


# Clipping and the master copy


def clipped(clip: AdaptiveClip, norm: float) -> float:
    """The norm that is left of a gradient of this norm."""
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.tensor([norm, 0, 0, 0])
    assert clip([p]) == pytest.approx(norm) or not math.isfinite(norm)
    return p.grad.norm().item()


def test_the_limit_is_the_maximum_until_enough_norms_are_known():
    clip = AdaptiveClip(1.0, percentile=50, window=3)
    assert [clipped(clip, n) for n in (0.5, 4.0, 0.3)] == pytest.approx([0.5, 1.0, 0.3], rel=1e-4)
    assert clip.limit == pytest.approx(0.5)  # the median of 0.5, 4.0, 0.3
    assert clipped(clip, 2.0) == pytest.approx(0.5, rel=1e-4)


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=30))
def test_the_limit_is_a_percentile_of_the_last_norms_and_never_above_the_maximum(norms):
    clip = AdaptiveClip(10.0, percentile=80, window=5)
    for norm in norms:
        clipped(clip, norm)
    recent = torch.tensor(norms[-5:]).quantile(0.8).item()
    assert clip.limit == pytest.approx(min(recent, 10.0), rel=1e-4)


def test_a_norm_that_is_not_finite_is_not_remembered():
    clip = AdaptiveClip(None, percentile=50, window=2)
    clipped(clip, 1.0)
    clipped(clip, math.inf)
    assert clip.limit is None
    clipped(clip, 3.0)
    assert clip.limit == pytest.approx(2.0)
    other = AdaptiveClip(None, percentile=50, window=2)
    other.load_state_dict(clip.state_dict())
    for c in (clip, other):
        clipped(c, 5.0)
    assert other.limit == clip.limit == pytest.approx(4.0)


def half_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).half()


def test_a_half_precision_model_follows_its_float32_master():
    model = half_model()
    master = MasterCopy(model.named_parameters(), log_scale=10.0)
    average = FlatAverage(master, 0.9)
    optimizer, clip = torch.optim.AdamW([master.flat], lr=1e-5), AdaptiveClip()
    x = torch.randn(16, 4, generator=seeded()).half()
    before = master.flat.detach().clone()
    for _ in range(20):
        norm, applied = step(master, model, x, optimizer, clip)
        average.update(master)
        assert applied
        assert math.isfinite(norm)
    moved = (master.flat - before).abs()
    assert 0 < moved.max() < 1e-3  # steps that float16 weights alone would lose
    for name, value in master.views(master.flat).items():
        assert torch.equal(dict(model.named_parameters())[name], value.half())
    assert 0 < (average.flat - before).abs().max() < moved.max()
    assert master.log_scale == pytest.approx(10.02)


def step(master, model, x, optimizer, clip, factor: float = 1.0) -> tuple[float, bool]:
    loss = model(x).float().square().mean() * factor
    master.scaled(loss).backward()
    return master.step(optimizer, clip)


def test_a_gradient_that_overflows_is_skipped_and_lowers_the_scale():
    model = half_model()
    master = MasterCopy(model.named_parameters(), log_scale=1.0)
    optimizer, clip = torch.optim.AdamW([master.flat], lr=0.1), AdaptiveClip()
    x = torch.ones(2, 4).half()
    before = master.flat.detach().clone()
    _, applied = step(master, model, x, optimizer, clip, factor=math.inf)
    assert not applied
    assert master.log_scale == 0
    assert torch.equal(master.flat, before)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(TrellisError, match="diverged"):
        step(master, model, x, optimizer, clip, factor=math.inf)


def test_an_unscaled_float32_master_is_plain_training():
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    master = MasterCopy(model.named_parameters(), log_scale=None)
    x = torch.randn(5, 3, generator=seeded())
    flat = torch.optim.AdamW([master.flat], lr=0.01)
    plain = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for _ in range(3):
        step(master, model, x, flat, AdaptiveClip(1e9))
        plain.zero_grad()
        twin(x).square().mean().backward()
        plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    other = MasterCopy(nn.Linear(3, 2).named_parameters(), log_scale=None)
    other.load_state_dict(master.state_dict())
    assert torch.equal(other.named["weight"], model.weight)


def test_the_warm_up_ends_at_one():
    assert [linear_warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert linear_warm_up(0, 0) == 1


# Batches


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 6))
def test_groups_share_all_samples_and_no_group_is_ahead_by_more_than_one_sample(loads, count):
    groups = balanced_groups(loads, count)
    assert sorted(i for g in groups for i in g) == list(range(len(loads)))
    totals = [sum(loads[i] for i in g) for g in groups]
    assert max(totals) - min(totals) <= max(loads)
    parts = micro_batches(loads, count)
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(loads)))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_equal_groups_are_equal(count, size, seed):
    loads = torch.randint(1, 100, (count * size,), generator=seeded(seed)).tolist()
    groups = balanced_groups(loads, count, equal_size=True)
    assert [len(g) for g in groups] == [size] * count
    assert sorted(i for g in groups for i in g) == list(range(len(loads)))


def test_groups_of_equal_size_need_a_fitting_number_of_samples():
    with pytest.raises(ValueError, match="7 samples cannot be split into 2"):
        balanced_groups([1] * 7, 2, equal_size=True)


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 4), st.booleans(), st.integers(0, 60))
def test_ranks_see_every_sample_once_an_epoch_and_resume_where_they_stopped(count, ranks, balanced, taken):
    loads = torch.randint(1, 50, (count,), generator=seeded(count)).tolist() if balanced else None

    def order(rank: int) -> SampleOrder:
        return SampleOrder(count, rank=rank, ranks=ranks, seed=3, loads=loads, batch_size=2)

    shares = [order(rank).epoch_share() for rank in range(ranks)]
    assert {i for share in shares for i in share} == set(range(count))
    assert len({len(share) for share in shares}) == 1
    assert sum(map(len, shares)) < count + ranks
    whole, first = order(0), order(0)
    expected = list(islice(whole, taken + 10))
    assert list(islice(first, taken)) == expected[:taken]
    again = order(0)
    again.load_state_dict(first.state_dict())
    assert list(islice(again, 10)) == expected[taken:]


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    order, other = SampleOrder(30, seed=1), SampleOrder(30, seed=5)
    first = order.epoch_share()
    order.load_state_dict({"epoch": 1, "index": 0})
    assert len({tuple(first), tuple(order.epoch_share()), tuple(other.epoch_share())}) == 3
    assert SampleOrder(5, shuffle=False).epoch_share() == [0, 1, 2, 3, 4]


def test_a_balanced_order_deals_similar_loads_to_the_ranks():
    loads = torch.randint(1, 1000, (64,), generator=seeded()).tolist()

    def spread(loads_given) -> float:
        shares = [
            SampleOrder(64, rank=r, ranks=2, loads=loads_given, batch_size=8).epoch_share() for r in range(2)
        ]
        totals = torch.tensor(
            [[sum(loads[i] for i in s[k : k + 8]) for k in range(0, 32, 8)] for s in shares]
        )
        return (totals[0] - totals[1]).abs().float().mean().item()

    assert spread(loads) < 0.3 * spread(None)


# Surfaces


def box(half: float = 0.3, dtype: torch.dtype = torch.float32) -> Mesh:
    """A closed box around the origin."""
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=dtype)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))]
    return Mesh(corners * half, torch.tensor(faces, dtype=torch.int32))


def tilted(radius: float = 2.0, near: float = 0.01) -> View:
    return View(orbit_camera(0.7, 0.4, radius=radius), near)


def test_a_square_across_the_view_has_its_depth_and_faces_the_viewer():
    camera = Camera(torch.eye(4, dtype=torch.float64), orbit_camera(0, 0).intrinsics)
    square = Mesh(
        torch.tensor([[-0.2, -0.2, 1.5], [0.2, -0.2, 1.5], [0.2, 0.2, 1.5], [-0.2, 0.2, 1.5]]),
        torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32),
    )
    seen = draw_surface(square, View(camera), 32)
    covered = seen.depth > 0
    assert torch.allclose(seen.depth[covered], torch.tensor(1.5))
    facing = torch.tensor([0.5, 0.5, 0.0])  # away from the camera's z, coded
    assert torch.allclose(seen.normal.permute(0, 2, 3, 1)[covered[:, 0]], facing.expand(covered.sum(), 3))
    assert torch.allclose(seen.position[:, 2][covered[:, 0]], torch.tensor(1.5))
    assert not seen.normal.permute(0, 2, 3, 1)[~covered[:, 0]].any()


def test_positions_lie_on_the_surface_and_normals_look_at_the_camera():
    view = tilted()
    seen = draw_surface(box(), view, 48)
    inside = seen.depth[0, 0] > 0
    position = seen.position[0].permute(1, 2, 0)[inside]
    assert torch.allclose(position.abs().amax(1), torch.tensor(0.3), atol=1e-5)
    normal = 2 * seen.normal[0].permute(1, 2, 0)[inside] - 1
    assert torch.allclose(normal.norm(dim=1), torch.tensor(1.0), atol=1e-5)
    assert ((view.camera.eye.float() - position) * normal).sum(1).min() > 0
    assert torch.equal(turned_to_viewer(seen.normal, view.camera)[0, :, inside], seen.normal[0, :, inside])
    assert torch.allclose(
        turned_to_viewer(1 - seen.normal, view.camera)[0, :, inside], seen.normal[0, :, inside]
    )


@pytest.mark.parametrize("image", ["depth", "normal", "position"])
def test_gradients_of_surface_pictures_are_those_of_finite_differences(image):
    mesh, view = box(dtype=torch.float64), tilted(1.6)
    interior = draw_surface(mesh, view, 20)
    covered = (interior.mask == 1) & (interior.depth > 0)
    weights = torch.randn(3, 20, 20, generator=seeded(), dtype=torch.float64)

    def value(vertices: torch.Tensor) -> torch.Tensor:
        picture = getattr(draw_surface(Mesh(vertices, mesh.faces), view, 20), image)
        return (picture * covered * weights[: picture.shape[1]]).sum()

    vertices = mesh.vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(vertices), vertices)
    direction = torch.randn(vertices.shape, generator=seeded(2), dtype=torch.float64)
    step = 1e-6
    difference = (value(mesh.vertices + step * direction) - value(mesh.vertices - step * direction)) / (
        2 * step
    )
    assert gradient.abs().max() > 0
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4)


@pytest.mark.parametrize("triangles", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]]])
def test_the_mask_follows_an_outline_that_moves_between_pixels(triangles):
    camera = Camera(torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    faces = torch.tensor(triangles, dtype=torch.int32)

    def covered(right: torch.Tensor) -> torch.Tensor:
        """Coverage, in pixels of 1/16, of the rows 5 to 11 of the rectangle (4.2, 4.3) to (right, 12.6)."""
        left, top, bottom = (torch.tensor(v) for v in (4.2, 4.3, 12.6))
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        vertices = torch.stack([torch.stack([x / 16, y / 16, torch.ones(())]) for x, y in corners])
        return draw_surface(Mesh(vertices, faces), View(camera), 16).mask[0, 0, 5:12].sum()

    for right in (9.0, 9.3, 9.45, 9.55, 9.9):
        edge = torch.tensor(right, requires_grad=True)
        area = covered(edge)
        assert area.item() == pytest.approx(7 * (right - 4.2), rel=1e-4)
        assert torch.autograd.grad(area, edge)[0].item() == pytest.approx(7, rel=1e-3)


def test_the_mask_of_a_closed_surface_has_the_area_of_its_outline():
    camera = Camera(torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    turn = orbit_camera(0.7, 0.4).extrinsics[:3, :3].float()
    flat = box().vertices @ turn.T * 0.5
    places = torch.cat([flat[:, :2] + 0.5, torch.ones(8, 1)], 1) * (flat[:, 2:] + 2)  # parallel projection
    seen = draw_surface(Mesh(places, box().faces), View(camera), 64).mask.sum().item() / 64**2
    side = 0.3  # of the box; its outline covers the sum of three faces, each seen at an angle
    assert seen == pytest.approx(side**2 * turn[2].abs().sum().item(), rel=0.01)


def test_a_near_plane_inside_an_object_shows_its_inside():
    middle = tilted(2.0, near=2.0)
    seen, outside = draw_surface(box(), middle, 32), draw_surface(box(), tilted(2.0), 32)
    inside = seen.depth[0, 0] > 0
    cut = inside & (outside.depth[0, 0] < 2.0)
    assert cut.any()
    assert seen.depth[0, 0][inside].min() >= 2.0 - 1e-5
    assert torch.allclose(seen.depth[0, 0][inside & ~cut], outside.depth[0, 0][inside & ~cut])
    position, normal = (x[0].permute(1, 2, 0)[cut] for x in (seen.position, 2 * seen.normal - 1))
    assert ((middle.camera.eye.float() - position) * normal).sum(1).min() > 0
    assert ((position * normal).sum(1) < 0).all()  # the inner side of the box


@given(st.integers(0, 200))
def test_what_a_near_plane_cuts_off_and_what_it_keeps_add_up(seed):
    generator = seeded(seed)
    vertices = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [1, 2, 3], [3, 4, 5], [0, 4, 2]], dtype=torch.int32)
    near = float(torch.randn((), generator=generator)) * 0.5
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)

    def area(points: torch.Tensor, triangles: torch.Tensor) -> float:
        a, b, c = points[triangles.long()].unbind(1)
        return torch.linalg.cross(b - a, c - a).norm(dim=1).sum().item() / 2

    behind, before = clip_near(vertices, faces, near), clip_near(vertices * mirror, faces, -near)
    used = behind[0][behind[1].long()]
    assert len(used) == 0 or used[..., 2].min() >= near - 1e-9
    assert area(*behind) + area(*before) == pytest.approx(area(vertices, faces), rel=1e-9)


@given(st.integers(0, 500))
def test_random_views_hold_the_object_and_may_look_inside(seed):
    view = random_view(seeded(seed))
    radius = view.camera.eye.norm().item()
    assert 2 - 1e-9 <= radius <= 100 + 1e-9
    assert max(radius - 1, 0.01) - 1e-9 <= view.near <= radius + 1e-9
    half_angle = math.atan(0.5 / view.camera.intrinsics[0, 0].item())
    assert math.sin(half_angle) * radius == pytest.approx(0.5)  # a sphere of radius 0.5 fills the picture
    axis = view.camera.extrinsics[2, :3] * radius + view.camera.eye
    assert axis.abs().max().item() < 1e-6


def test_a_batch_of_surfaces_is_its_samples():
    views, meshes = [tilted(), tilted(3.0)], [box(), box(0.2)]
    both = draw_surfaces(meshes, views, 16)
    assert both.normal.shape == (2, 3, 16, 16)
    for i in range(2):
        assert torch.equal(both.depth[i : i + 1], draw_surface(meshes[i], views[i], 16).depth)


# Autoencoders with rendering terms


def sphere_voxels(resolution: int = 8) -> tuple[SparseTensor, torch.Tensor]:
    """The dual grid of a ball: positions at the middle of the voxels, and crossed edges."""
    cells = torch.cartesian_prod(*[torch.arange(resolution)] * 3)

    def inside(corner: torch.Tensor) -> torch.Tensor:
        return (corner / resolution - 0.5).norm(dim=1) < 0.36

    offsets = torch.cartesian_prod(*[torch.arange(2)] * 3)
    corners = torch.stack([inside(cells + offset) for offset in offsets], 1)
    surface = corners.any(1) & ~corners.all(1)
    far = inside(cells + 1)
    flags = torch.stack([inside(cells + 1 - step) != far for step in torch.eye(3, dtype=torch.long)], 1)[
        surface
    ]
    coords = torch.cat([torch.zeros(int(surface.sum()), 1), cells[surface]], 1).int()
    position = 0.5 + 0.2 * torch.randn(len(coords), 3, generator=seeded()).clamp(-1, 1)
    return SparseTensor(position, coords, 1), flags


def true_mesh(position: SparseTensor, flags: torch.Tensor, resolution: int = 8) -> Mesh:
    return extract_mesh(position.coords[:, 1:], position.feats, flags, None, resolution)


def test_rendering_terms_reach_positions_and_split_weights():
    torch.manual_seed(0)
    encoder, decoder = FlexiDualGridVaeEncoder(**DOWN), FlexiDualGridVaeDecoder(resolution=8, **UP)
    position, flags = sphere_voxels()
    with torch.no_grad():
        noise = torch.zeros_like(encoder(position, flags)[0].feats)
    only_pictures = ShapeVaeWeights(crossing=0, position=0, subdivision=0, kl=0)
    render = surfaces_against([true_mesh(position, flags)], seeded(), size=32)
    losses = shape_vae_losses(encoder, decoder, position, flags, noise, weights=only_pictures, render=render)
    assert {"mask", "depth", "normal_l1", "normal_ssim", "normal_lpips"} < losses.keys()
    assert math.isnan(losses["normal_lpips"])
    losses["loss"].backward()
    grad = decoder.output_layer.weight.grad
    assert torch.isfinite(grad).all()
    assert (grad[:3].abs().amax(1) > 0).all()  # positions
    assert not grad[3:6].any()  # crossings are the true ones
    assert grad[6].abs().max() > 0  # split weights
    assert encoder.input_layer.weight.grad.abs().max() > 0


def test_predicted_meshes_have_the_true_crossings_and_the_predicted_positions():
    torch.manual_seed(0)
    decoder = FlexiDualGridVaeDecoder(resolution=8, **UP)
    position, flags = sphere_voxels()
    grid = decoder.dual_grid(torch.randn(len(position), 7, generator=seeded()))
    (mesh,) = training_meshes(position, grid, flags, 8)
    quads = len(true_mesh(position, flags).faces) // 2
    assert len(mesh.faces) == 4 * quads
    assert len(mesh.vertices) == len(position) + quads
    voxel = (mesh.vertices[: len(position)] + 0.5) * 8 - position.coords[:, 1:]
    assert torch.allclose(voxel, grid.dual_vertices, atol=1e-5)


def test_a_perfect_surface_has_no_rendering_loss():
    position, flags = sphere_voxels()
    mesh = true_mesh(position, flags)
    predicted, target = surfaces_against([mesh], seeded(), size=24)([mesh])
    total, terms = surface_losses(predicted, target, ShapeVaeWeights(), None)
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert terms["depth"].item() == 0


def test_without_a_renderer_the_shape_loss_is_its_direct_terms():
    torch.manual_seed(0)
    encoder, decoder = FlexiDualGridVaeEncoder(**DOWN), FlexiDualGridVaeDecoder(resolution=8, **UP)
    position, flags = sphere_voxels()
    noise = torch.zeros_like(encoder(position, flags)[0].feats)
    losses = shape_vae_losses(encoder, decoder, position, flags, noise)
    expected = 0.1 * (losses["crossing"] + losses["subdivision_0"]) + 0.01 * losses["position"]
    assert losses["loss"].item() == pytest.approx((expected + 1e-6 * losses["kl"]).item())
    assert set(losses) == {"loss", "crossing", "position", "subdivision_0", "kl"}


def test_rendered_materials_reach_the_texture_decoder():
    torch.manual_seed(0)
    encoder = SparseUnetVaeEncoder(in_channels=6, **DOWN)
    decoder = SparseUnetVaeDecoder(out_channels=6, pred_subdiv=False, **UP)
    position, flags = sphere_voxels()
    attrs = position.replace(torch.rand(len(position), 6, generator=seeded()) * 2 - 1)
    with torch.no_grad():
        noise = torch.zeros_like(encoder(attrs)[0].feats)
    render = materials_against([true_mesh(position, flags)], attrs, 8, seeded(), size=32)
    losses = texture_vae_losses(encoder, decoder, attrs, noise, render=render)
    extra = 0.2 * (losses["color_ssim"] + losses["material_ssim"])
    assert losses["loss"].item() == pytest.approx(
        (losses["l1"] + 1e-6 * losses["kl"] + extra).item(), rel=1e-5
    )
    (grad,) = torch.autograd.grad(extra, decoder.output_layer.weight)
    assert (grad.abs().amax(1) > 0).all()
    same = render(attrs)
    assert all(torch.equal(seen, truth) for seen, truth in same)
    assert all(seen.min() >= 0 and seen.max() <= 1 for seen, _ in same)
    quiet = TextureVaeWeights(render=0.0)
    alone = texture_vae_losses(encoder, decoder, attrs, noise, weights=quiet, render=render)
    assert alone["loss"].item() == pytest.approx((alone["l1"] + 1e-6 * alone["kl"]).item())
