"""Schedules, guidance and the Euler sampler, with formulas in place of networks.

Not tested here: trajectories of the released sampler (golden cases).
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis_core.errors import Cancelled, UsageError
from trellis_core.sampling.euler import model_velocity, sample_euler, sample_flow
from trellis_core.sampling.guidance import clean_estimate, guided
from trellis_core.sampling.schedule import SamplerSettings, timesteps
from trellis_core.sampling.state import sample_std
from trellis_core.sparse.tensor import SparseTensor

RELEASED = [
    # rescale_t, interval, scale -> evaluations of the network in 12 steps
    (5.0, (0.6, 1.0), 7.5, 22),
    (3.0, (0.6, 1.0), 7.5, 21),  # the interval ends on a time that float32 would miss
    (3.0, (0.6, 0.9), 1.0, 12),
]


def never(x, t):
    raise AssertionError("this network must not run")


def sparse(feats: torch.Tensor, *lengths: int) -> SparseTensor:
    coords = [(b, i, 0, 0) for b, n in enumerate(lengths) for i in range(n)]
    return SparseTensor(feats, torch.tensor(coords, dtype=torch.int32), len(lengths))


@given(st.integers(1, 60), st.floats(0.1, 20))
def test_times_fall_from_one_to_zero(steps, rescale_t):
    times = timesteps(steps, rescale_t)
    assert len(times) == steps + 1
    assert times[0] <= 1 and times[0] == pytest.approx(1) and times[-1] == 0  # never outside of an interval
    assert all(a > b for a, b in pairwise(times))


def test_rescaling_spends_more_steps_near_the_noise():
    assert timesteps(10, 3.0)[5] > timesteps(10)[5] == pytest.approx(0.5)


@pytest.mark.parametrize(("rescale_t", "interval", "scale", "evaluations"), RELEASED)
def test_released_settings_cost_the_published_number_of_evaluations(rescale_t, interval, scale, evaluations):
    count = 0

    def model(x, t, cond):
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    chosen = SamplerSettings(steps=12, rescale_t=rescale_t, guidance_interval=interval, guidance_scale=scale)
    sample_flow(model, torch.randn(1, 2), "picture", chosen)
    assert count == evaluations


def test_guidance_scale_one_never_runs_the_unconditional_model():
    velocity = guided(lambda x, t: x, never, SamplerSettings(guidance_scale=1, guidance_rescale=0.7))
    x = torch.randn(2, 3)
    assert torch.equal(velocity(x, 0.5), x)


def test_guidance_scale_zero_never_runs_the_conditional_model():
    velocity = guided(never, lambda x, t: x, SamplerSettings(guidance_scale=0, guidance_rescale=0.7))
    x = torch.randn(2, 3)
    assert torch.equal(velocity(x, 0.5), x)


def test_outside_of_the_interval_only_the_conditional_model_runs():
    velocity = guided(lambda x, t: x, never, SamplerSettings(guidance_interval=(0.4, 0.6)))
    for t in (0.0, 0.39999, 0.60001, 1.0):
        velocity(torch.zeros(1), t)
    for t in (0.4, 0.5, 0.6):
        with pytest.raises(AssertionError):
            velocity(torch.zeros(1), t)


@given(st.floats(0, 10), st.floats(-2, 2), st.floats(-2, 2))
def test_guidance_extrapolates_from_unconditional_to_conditional(scale, cond, uncond):
    velocity = guided(lambda x, t: x + cond, lambda x, t: x + uncond, SamplerSettings(guidance_scale=scale))
    got = velocity(torch.zeros(1, dtype=torch.float64), 0.5).item()
    assert math.isclose(got, uncond + scale * (cond - uncond), abs_tol=1e-9)


def test_conditional_runs_before_unconditional():
    order = []
    guided(lambda x, t: order.append("c") or x, lambda x, t: order.append("u") or x, SamplerSettings())(
        torch.zeros(1), 0.5
    )
    assert order == ["c", "u"]


@pytest.mark.parametrize("make", [lambda x: x, lambda x: sparse(x.flatten(1), 2, 3)], ids=["dense", "sparse"])
def test_full_rescaling_restores_the_deviation_of_the_conditional_estimate(make):
    torch.manual_seed(0)
    feats = torch.randn(3, 5, 4, 2)
    x, a, b = (make(f) for f in feats.flatten(2))

    def value(v):
        return lambda x, t: v

    chosen = SamplerSettings(guidance_scale=4, guidance_rescale=1)
    v = guided(value(a), value(b), chosen)(x, 0.7)
    torch.testing.assert_close(
        sample_std(clean_estimate(x, 0.7, v, 1e-5)),
        sample_std(clean_estimate(x, 0.7, a, 1e-5)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_deviation_is_taken_per_sample():
    dense = torch.randn(2, 3, 4)
    assert sample_std(dense).shape == (2, 1, 1)
    assert sample_std(dense)[1].item() == pytest.approx(dense[1].std().item())
    feats = torch.randn(5, 4)
    deviation = sample_std(sparse(feats, 2, 3))
    assert deviation.shape == (5, 1)
    assert deviation[0].item() == pytest.approx(feats[:2].std(correction=0).item(), rel=1e-4)
    assert deviation[4].item() == pytest.approx(feats[2:].std(correction=0).item(), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0.2, 6))
def test_a_straight_flow_is_integrated_exactly(steps, rescale_t):
    torch.manual_seed(0)
    noise, data = torch.randn(2, 2, 3, dtype=torch.float64)
    end = sample_euler(lambda x, t: noise - data, noise, timesteps(steps, rescale_t))
    torch.testing.assert_close(end, data)


def test_the_clean_estimate_inverts_the_noising():
    noise, data = torch.randn(2, 2, 3, dtype=torch.float64)
    sigma, t = 1e-5, 0.3
    x = (1 - t) * data + (sigma + (1 - sigma) * t) * noise
    torch.testing.assert_close(clean_estimate(x, t, (1 - sigma) * noise - data, sigma), data)


def test_sparse_states_keep_their_voxels():
    noise = sparse(torch.randn(5, 2), 2, 3)
    end = sample_euler(lambda x, t: x, noise, timesteps(3))
    assert end.plan is noise.plan
    assert not torch.equal(end.feats, noise.feats)


def test_networks_receive_times_as_float32_thousandths_per_sample():
    seen = []

    def model(x, t, cond, extra):
        seen.append((t, cond, extra))
        return x

    velocity = model_velocity(model, "picture", extra="shape")
    velocity(sparse(torch.randn(5, 2), 2, 3), 0.6)
    velocity(torch.randn(4, 2), 0.25)
    (t_sparse, cond, extra), (t_dense, _, _) = seen
    assert (cond, extra) == ("picture", "shape")
    assert torch.equal(t_sparse, torch.tensor([600.0, 600.0]))
    assert torch.equal(t_dense, torch.full((4,), 250.0))


def test_steps_are_reported_and_may_stop_the_run():
    seen = []

    def on_step(step, x):
        seen.append(step)
        if step == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        sample_euler(lambda x, t: x, torch.zeros(1), timesteps(5), on_step)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("rescale_t", 0.0),
        ("rescale_t", float("nan")),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("inf")),
        ("guidance_rescale", 1.1),
        ("guidance_interval", (0.7, 0.6)),
        ("guidance_interval", (0.0, 1.5)),
        ("sigma_min", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=name):
        SamplerSettings(**{name: value})
