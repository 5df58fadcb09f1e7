"""Devices, tiers, memory plans and residency.

Properties: more free memory never gives a more frugal plan; a plan that says it fits stays inside its budget;
what is asked for is obeyed; weights come back untouched after a network was on the device.
Not tested here: a real GPU's numbers (the benchmarks compare a predicted with a measured peak).
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trellis_core.errors import OutOfMemory, UsageError
from trellis_core.memory import cost
from trellis_core.memory.budget import (
    GIB,
    PRECISIONS,
    TIERS,
    MemoryRequest,
    VRAMManager,
    choose_dtype,
    tier_of,
)
from trellis_core.memory.cost import Network, describe_networks, predict_peaks, surface_tokens
from trellis_core.memory.devices import (
    ARCHITECTURES,
    DeviceInfo,
    carries_code_for,
    describe_device,
    detect_devices,
    known_capability,
    select_device,
    try_kernel,
)
from trellis_core.memory.residency import is_out_of_memory, memory_errors, on_device

FLOW = {
    "resolution": 16,
    "in_channels": 8,
    "model_channels": 1536,
    "num_blocks": 30,
    "mlp_ratio": 5.3334,
}
DECODER = {"model_channels": [1024, 512, 256, 128, 64], "num_blocks": [4, 16, 8, 4, 0]}
ENCODER = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "patch_size": 16,
    "num_register_tokens": 4,
}
RELEASED = {
    "sparse_structure_flow_model": ({"args": FLOW}, 1_292_179_976),
    "sparse_structure_decoder": ({"args": {"channels": [512, 128, 32]}}, 73_671_201),
    "shape_slat_flow_model_512": ({"args": {**FLOW, "resolution": 32}}, 1_292_253_728),
    "shape_slat_flow_model_1024": ({"args": {**FLOW, "resolution": 64}}, 1_292_253_728),
    "tex_slat_flow_model_512": ({"args": {**FLOW, "resolution": 32}}, 1_292_302_880),
    "tex_slat_flow_model_1024": ({"args": {**FLOW, "resolution": 64}}, 1_292_302_880),
    "shape_slat_decoder": ({"args": DECODER}, 474_231_463),
    "tex_slat_decoder": ({"args": DECODER}, 474_216_006),
    "image_encoder": (ENCODER, 303_129_600),
}  # fmt: skip


def gpu(gib: float, capability: tuple[int, int] | None = (8, 9), free: float | None = None) -> DeviceInfo:
    available = gib if free is None else free
    return DeviceInfo(
        kind="cuda", capability=capability, total_memory=int(gib * GIB), free_memory=int(available * GIB)
    )


def released(resolution: int) -> dict[str, Network]:
    return describe_networks(RELEASED, resolution=resolution, image_size=512 if resolution == 512 else 1024)


# Devices


def test_the_processor_is_always_there_and_comes_last():
    devices = detect_devices()
    assert devices[-1].kind == "cpu"
    assert 0 < devices[-1].free_memory <= devices[-1].total_memory


def test_torch_devices_are_described_or_refused_with_a_hint():
    assert describe_device("cpu").kind == "cpu"
    with pytest.raises(UsageError) as caught:
        describe_device("cuda:63")
    assert "doctor" in caught.value.hint


def test_a_device_is_chosen_by_running_a_kernel_on_it():
    assert try_kernel(select_device()) is None
    assert select_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="unknown device `potato`"):
        select_device("potato")
    assert try_kernel("cuda" if sys.platform == "darwin" else "mps") is not None


def test_blackwell_at_home_is_not_blackwell_in_a_data_centre():
    assert "consumer" in gpu(32, (12, 0)).architecture
    assert "data centre" in gpu(180, (10, 0)).architecture


@given(st.tuples(st.integers(1, 40), st.integers(0, 9)))
def test_an_unknown_capability_is_treated_as_the_nearest_that_is_not_newer(capability):
    known = known_capability(capability)
    assert known in ARCHITECTURES
    assert known <= capability or known == min(ARCHITECTURES)
    if capability > max(ARCHITECTURES):
        assert known == max(ARCHITECTURES)


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["sm_80", "sm_86", "sm_90"], (8, 6), True),
        (["sm_80"], (8, 9), True),  # machine code runs on later minor versions
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90"], (12, 0), False),
        (["sm_90", "compute_90"], (12, 0), True),  # portable code runs on everything newer
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_120"], (12, 1), True),
        (["gfx942"], (9, 0), False),
        ([], (7, 5), False),
    ],
)
def test_whether_a_torch_build_carries_code_for_a_gpu(archs, capability, runs):
    assert carries_code_for(archs, capability) is runs


# Tiers and precision


@pytest.mark.parametrize(
    ("gib", "tier"),
    [
        (79.1, "high"), (23.5, "high"), (22.5, "high"), (19.6, "medium"), (15.6, "medium"), (11.6, "medium"),
        (10.7, "low"), (7.8, "low"), (5.8, "minimal"), (3.8, "minimal"),
    ],
)  # fmt: skip
def test_cards_get_their_tier_by_what_they_report_not_by_what_the_box_says(gib, tier):
    assert tier_of(gpu(gib)) == tier


@pytest.mark.parametrize(
    ("capability", "auto", "half"),
    [
        ((12, 0), torch.bfloat16, torch.bfloat16),
        ((10, 0), torch.bfloat16, torch.bfloat16),
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((7, 5), torch.float16, torch.float16),
        ((7, 0), torch.float16, torch.float16),
        ((6, 1), torch.float32, torch.float16),
        ((99, 0), torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision_follows_the_compute_capability(capability, auto, half):
    assert choose_dtype(gpu(24, capability)) == auto
    assert choose_dtype(gpu(24, capability), "half") == half
    assert choose_dtype(gpu(24, capability), "full") == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cpu_never_computes_in_float16(precision):
    assert choose_dtype(DeviceInfo(kind="cpu"), precision) != torch.float16


@pytest.mark.parametrize("wrong", [{"tier": "huge"}, {"precision": "fp4"}])
def test_unknown_tiers_and_precisions_are_refused_with_the_choices(wrong):
    with pytest.raises(UsageError) as caught:
        MemoryRequest(**wrong)
    assert "auto" in caught.value.hint


def test_asking_for_the_cpu_tier_plans_for_the_processor():
    plan = VRAMManager(gpu(24), MemoryRequest(tier="cpu")).plan(released(512))
    assert (plan.device, plan.tier, plan.dtype) == ("cpu", "cpu", torch.float32)


def test_asking_for_a_smaller_tier_plans_as_on_such_a_card():
    plan = VRAMManager(gpu(80, (9, 0)), MemoryRequest(tier="low")).plan(released(1024))
    assert plan.tier == "low" and not plan.keep_resident
    assert plan.budget < TIERS["low"] * GIB


# Plans


@pytest.mark.parametrize(
    ("gib", "resolution", "resident"),
    [(80, 1536, True), (23.5, 1024, True), (15.6, 1024, False), (11.6, 512, False)],
)
def test_the_released_model_fits_the_cards_people_own(gib, resolution, resident):
    plan = VRAMManager(gpu(gib)).plan(released(resolution))
    assert plan.fits
    assert plan.keep_resident is resident


def test_an_8_gb_card_runs_512():
    assert VRAMManager(gpu(8, (8, 6), free=7.5)).plan(released(512)).fits


def test_conditioning_keys_are_computed_again_when_memory_is_short():
    networks = {"flow": released(1024)["shape_slat_flow_model_1024"]}
    assert VRAMManager(gpu(12, free=11)).plan(networks).cache_condition
    tight = VRAMManager(gpu(12, free=5.4)).plan(networks)
    assert tight.fits and not tight.cache_condition


def test_what_cannot_fit_is_said_and_planned_as_frugally_as_possible():
    plan = VRAMManager(gpu(6)).plan(released(1536))
    assert not plan.fits and "NOT" in plan.describe()
    assert (plan.residency, plan.cache_condition) == ("staged", False)


MEMORY = st.floats(2, 96)
RESOLUTIONS = st.sampled_from([512, 1024, 1536])


@given(MEMORY, MEMORY, st.sampled_from(["auto", "high", "medium", "low", "minimal"]), RESOLUTIONS)
def test_more_free_memory_never_makes_a_plan_more_frugal(a, b, tier, resolution):
    less, more = sorted((a, b))
    plans = [
        VRAMManager(gpu(96, free=free), MemoryRequest(tier=tier)).plan(released(resolution))
        for free in (less, more)
    ]
    assert plans[0].fits <= plans[1].fits
    assert plans[0].keep_resident <= plans[1].keep_resident
    assert plans[0].peak <= plans[1].peak


@given(MEMORY, MEMORY, RESOLUTIONS, st.sampled_from(PRECISIONS), st.integers(1, 4))
def test_a_plan_that_fits_stays_inside_what_is_free(total, free, resolution, precision, samples):
    device = gpu(total, free=min(free, total))
    request = MemoryRequest(precision=precision, num_samples=samples)
    plan = VRAMManager(device, request).plan(released(resolution))
    assert plan.budget <= device.free_memory
    assert plan.fits == all(peak <= plan.budget for peak in plan.peaks.values())
    assert plan.matting_device in ("cpu", plan.device)
    assert plan.index_dtype == torch.int32
    json.dumps(plan.as_dict(), allow_nan=False)


@given(RESOLUTIONS, st.booleans())
def test_swapping_networks_never_costs_more_than_keeping_them(resolution, cache):
    networks = released(resolution)
    kept = predict_peaks(networks, torch.bfloat16, resident=True, cache_condition=cache)
    swapped = predict_peaks(networks, torch.bfloat16, resident=False, cache_condition=cache)
    assert all(swapped[stage] <= kept[stage] for stage in kept)
    assert set(kept) == {"condition", "structure", "shape", "texture", "decode"}


def test_the_cost_model_gives_the_figures_of_the_released_networks():
    """2.58 GB a flow, 756 MB of conditioning keys and values at 1024, under 6 GB to sample."""
    networks = released(1024)
    flow = networks["shape_slat_flow_model_1024"]
    assert cost.weight_bytes(flow, torch.bfloat16) == 2 * 1_292_253_728
    with_cache, without = (cost.activation_bytes(flow, torch.bfloat16, cache) for cache in (True, False))
    assert with_cache - without == pytest.approx(756e6 * 29 / 30, rel=0.01)
    assert predict_peaks(networks, torch.bfloat16, resident=False, cache_condition=True)["shape"] < 6e9


def test_a_cascade_counts_the_draft_at_its_own_size():
    networks = released(1536)
    assert networks["shape_slat_flow_model_512"].tokens == surface_tokens(32)
    assert networks["shape_slat_flow_model_1024"].tokens == surface_tokens(96)
    assert "tex_slat_flow_model_512" not in networks
    assert networks["sparse_structure_decoder"].tokens == 64**3


def test_sizes_come_from_the_configuration_not_from_the_released_model():
    small = {
        "sparse_structure_flow_model": ({"args": {**FLOW, "resolution": 4, "model_channels": 128}}, 1000),
        "sparse_structure_decoder": ({"args": {"channels": [64, 32]}}, 1000),
        "shape_slat_flow_model": ({"args": {**FLOW, "model_channels": 128}}, 1000),
        "shape_slat_decoder": ({"args": {"model_channels": [128, 64, 32]}}, 1000),
        "image_encoder": ({**ENCODER, "patch_size": 8}, 1000),
    }
    networks = describe_networks(small, resolution=64, image_size=64)
    assert networks["sparse_structure_flow_model"].tokens == 4**3
    assert networks["sparse_structure_decoder"].tokens == 8**3
    assert networks["shape_slat_flow_model"].tokens == surface_tokens(16)  # two levels: a factor of 4
    assert networks["shape_slat_flow_model"].context == 8 * 8 + 1 + 4


# Residency


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("phases", torch.arange(3.0))


def test_a_network_is_on_the_device_inside_the_block_and_home_after_it():
    model = Tied()
    home = dict(model.state_dict(keep_vars=True))
    with on_device(model, "meta") as moved:
        assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
        assert moved.first.weight is moved.second.weight
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in home.items())


def test_a_network_comes_home_when_the_block_fails():
    model = Tied()
    with pytest.raises(ZeroDivisionError), on_device(model, "meta"):
        raise ZeroDivisionError
    assert model.first.weight.device.type == "cpu"


def test_keep_leaves_the_network_on_the_device():
    model = Tied()
    with on_device(model, "meta", keep=True):
        pass
    assert model.first.weight.device.type == "meta"


def test_a_network_that_is_there_already_is_not_copied():
    model = Tied()
    weight = model.first.weight
    with on_device(model, "cpu") as ready:
        assert ready.first.weight is weight


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_every_way_of_running_out_of_memory_becomes_one_error_with_a_hint(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory, match="decode") as caught, memory_errors("decode"):
        raise error
    assert "--resolution" in caught.value.hint


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="shape mismatch"), memory_errors("decode"):
        raise RuntimeError("shape mismatch")
