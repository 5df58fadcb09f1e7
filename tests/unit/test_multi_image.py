"""Sampling from several pictures: stochastic and multidiffusion.

Properties: one picture is the plain sampler, to the last bit; a stochastic step sees the next picture;
multidiffusion follows the mean and computes the unconditional velocity once; equal pictures change nothing;
both agree with the structure stage of the release, recorded with a tiny model and three pictures.
Not tested here: the stages around it (pipeline).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.parity.case import read_case, read_expected
from trellis_core.errors import UsageError
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.sampling import euler
from trellis_core.sampling.multi_image import MODES, alternating, averaged, pictures_used, sample_flow
from trellis_core.sampling.schedule import SamplerSettings, timesteps
from trellis_core.sparse.tensor import SparseTensor

GOLDEN = Path(__file__).parents[1] / "golden" / "trellis1"
NOISE = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Recorder:
    """A network whose velocity is its condition, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, object]] = []

    def __call__(self, x, t, cond):
        values = x if isinstance(x, torch.Tensor) else x.feats
        self.asked.append((round(float(t[0]) / 1000, 6), cond))
        v = torch.full_like(values, 0.0 if cond is None else float(cond))
        return v if isinstance(x, torch.Tensor) else x.replace(v)

    def conditions(self) -> list[object]:
        return [cond for _, cond in self.asked]


def unguided(steps: int) -> SamplerSettings:
    return SamplerSettings(steps=steps, guidance_scale=1.0, rescale_t=3.0)


def test_stochastic_steps_take_the_pictures_in_turn():
    model = Recorder()
    sample_flow(model, NOISE, [1, 2, 3], unguided(7), mode="stochastic")
    assert model.conditions() == [1, 2, 3, 1, 2, 3, 1]


def test_a_guided_stochastic_step_moves_on_by_one_picture_only():
    model = Recorder()
    sample_flow(model, NOISE, [1, 2], SamplerSettings(steps=3, guidance_scale=2.0), mode="stochastic")
    assert model.conditions() == [1, None, 2, None, 1, None]


def test_multidiffusion_sees_every_picture_at_every_step_and_nothing_else_once():
    model = Recorder()
    sampler = SamplerSettings(steps=4, guidance_scale=2.0, guidance_interval=(0.6, 1.0))
    sample_flow(model, NOISE, [1, 2, 3], sampler, mode="multidiffusion")
    guided = [1, 2, 3, None]
    assert model.conditions() == [*guided, *guided, 1, 2, 3, 1, 2, 3]  # t = 1, 0.75 and 0.5, 0.25


def test_multidiffusion_follows_the_mean():
    got = sample_flow(Recorder(), NOISE, [1, 2, 6], unguided(5), mode="multidiffusion")
    torch.testing.assert_close(got, NOISE - 3.0)


def test_guidance_applies_to_the_mean():
    """v = (1 + w) * mean(v_c) - w * v_u, as released with w = scale - 1."""
    sampler = SamplerSettings(steps=2, guidance_scale=4.0)
    got = sample_flow(Recorder(), NOISE, [1, 3], sampler, mode="multidiffusion")
    torch.testing.assert_close(got, NOISE - 4.0 * 2.0)


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    steps=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_one_picture_is_the_plain_sampler_to_the_last_bit(mode, steps, scale, seed):
    flow, cond, noise = tiny_flow(seed)
    sampler = SamplerSettings(steps=steps, guidance_scale=scale, guidance_rescale=0.5, rescale_t=2.0)
    with torch.no_grad():
        assert torch.equal(
            sample_flow(flow, noise, [cond], sampler, mode=mode),
            euler.sample_flow(flow, noise, cond, sampler),
        )


@pytest.mark.parametrize("mode", sorted(MODES))
def test_the_same_picture_twice_changes_nothing(mode):
    flow, cond, noise = tiny_flow(0)
    sampler = SamplerSettings(steps=3, guidance_scale=3.0)
    with torch.no_grad():
        once = sample_flow(flow, noise, [cond], sampler, mode=mode)
        twice = sample_flow(flow, noise, [cond, cond.clone()], sampler, mode=mode)
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_sparse_states_keep_their_coordinates(mode):
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3]], dtype=torch.int32)
    noise = SparseTensor(torch.zeros(2, 4), coords, batch_size=1)
    got = sample_flow(Recorder(), noise, [1, 3], unguided(2), mode=mode)
    assert got.plan is noise.plan
    assert got.feats.unique().numel() == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12))
def test_a_run_over_all_steps_is_a_walk_along_both_wrappers(count, steps):
    """The wrappers alone, on velocities that are numbers: what step k adds up to."""
    times = timesteps(steps, 3.0)
    velocities = [lambda x, t, c=c: torch.full_like(x, float(c)) for c in range(count)]
    one_by_one = alternating(velocities, times)
    x = torch.zeros(1)
    seen = [one_by_one(x, t).item() for t, _ in pairwise(times)]
    assert seen == [k % count for k in range(steps)]
    assert [one_by_one(x, t).item() for t, _ in pairwise(times)] == seen  # asking again changes nothing
    assert averaged(velocities)(x, 0.5).item() == pytest.approx((count - 1) / 2)


@pytest.mark.parametrize(
    ("mode", "pictures", "steps", "used"),
    [("stochastic", 5, 3, 3), ("stochastic", 2, 3, 2), ("multidiffusion", 5, 3, 5)],
)
def test_few_steps_leave_pictures_out_in_stochastic_mode_only(mode, pictures, steps, used):
    assert pictures_used(mode, pictures, steps) == used
    model = Recorder()
    sample_flow(model, NOISE, list(range(1, pictures + 1)), unguided(steps), mode=mode)
    assert len(set(model.conditions())) == used


def test_an_unknown_mode_and_no_picture_are_refused():
    with pytest.raises(UsageError, match="round-robin") as error:
        sample_flow(Recorder(), NOISE, [1, 2], unguided(2), mode="round-robin")
    assert "multidiffusion" in error.value.hint
    with pytest.raises(UsageError, match="no condition"):
        sample_flow(Recorder(), NOISE, [], unguided(2))


@pytest.mark.parametrize("mode", sorted(MODES))
def test_both_modes_sample_the_structure_as_the_release_does(mode):
    """Tolerance 1e-4: float32 sums in another order, over 4 guided steps of values up to 7."""
    path = GOLDEN / f"pipeline_multi_{mode}.json"
    case, want = read_case(path), read_expected(path)["z_s"]
    flow = SparseStructureFlowModel(**case.config["models"]["sparse_structure_flow_model"]["args"]).eval()
    prefix = "weights.sparse_structure_flow_model."
    weights = load_file(GOLDEN / "pipeline_run.safetensors")
    flow.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    params = case.config["sparse_structure_sampler"]["params"]
    sampler = SamplerSettings(
        steps=params["steps"],
        rescale_t=params["rescale_t"],
        guidance_scale=1 + params["cfg_strength"],
        guidance_interval=tuple(params["cfg_interval"]),
    )
    noise = case.inputs["ss_noise"]
    pictures = [tokens.expand(len(noise), -1, -1) for tokens in case.inputs["cond"]]
    with torch.no_grad():
        got = sample_flow(flow, noise, pictures, sampler, mode=mode)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    with torch.no_grad():  # the other mode, or one picture alone, is something else
        assert not torch.allclose(sample_flow(flow, noise, pictures[:1], sampler), want, atol=1e-2)


def tiny_flow(seed: int) -> tuple[SparseStructureFlowModel, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    flow = SparseStructureFlowModel(
        resolution=2,
        in_channels=3,
        out_channels=3,
        model_channels=8,
        cond_channels=4,
        num_blocks=1,
        num_heads=2,
    ).eval()
    torch.nn.init.normal_(flow.out_layer.weight)
    return flow, torch.randn(1, 5, 4), torch.randn(1, 3, 2, 2, 2)
