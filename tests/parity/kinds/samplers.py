"""Time schedules, the order of model calls, and full sampling trajectories."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.parity.case import Case, Kind
from tests.parity.kinds.flows import latents
from trellis2.models.latent_flow import SLatFlowModel
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.sampling.euler import model_velocity, sample_euler
from trellis_core.sampling.guidance import clean_estimate, guided
from trellis_core.sampling.schedule import SamplerSettings, timesteps
from trellis_core.sampling.state import model_times, values

GUIDANCE_OF = {
    "FlowEulerSampler": ("steps", "rescale_t"),
    "FlowEulerCfgSampler": ("steps", "rescale_t", "guidance_strength", "guidance_rescale"),
    "FlowEulerGuidanceIntervalSampler": (
        "steps",
        "rescale_t",
        "guidance_strength",
        "guidance_rescale",
        "guidance_interval",
    ),
}


def settings_of(run: dict[str, Any], sigma_min: float = 1e-5) -> SamplerSettings:
    """The released words, translated; a sampler without guidance is guidance of strength 1."""
    sampler = run.get("sampler", "FlowEulerGuidanceIntervalSampler")
    known = {name: run[name] for name in GUIDANCE_OF[sampler] if name in run}
    scale = known.pop("guidance_strength", 1.0 if sampler == "FlowEulerSampler" else 3.0)
    return SamplerSettings(**{"steps": 50, **known}, guidance_scale=scale, sigma_min=sigma_min)


def sampler_schedule(case: Case) -> dict[str, Tensor]:
    out = {}
    for i, config in enumerate(case.config):
        settings = SamplerSettings(
            steps=config["steps"],
            rescale_t=config["rescale_t"],
            guidance_interval=tuple(config["guidance_interval"]),
            guidance_scale=3.0,
        )
        times = timesteps(settings.steps, settings.rescale_t)
        calls: list[tuple[Tensor, bool]] = []

        def conditional(x: Tensor, t: float, calls: list = calls) -> Tensor:
            calls.append((model_times(x, t), True))
            return torch.zeros_like(x)

        def unconditional(x: Tensor, t: float, calls: list = calls) -> Tensor:
            calls.append((model_times(x, t), False))
            return torch.zeros_like(x)

        sample_euler(guided(conditional, unconditional, settings), torch.zeros(1, 1), times)
        asked = torch.cat([t for t, _ in calls])
        is_cond = torch.tensor([c for _, c in calls])
        guided_times = set(asked[~is_cond].tolist())
        steps = list(pairwise(times))
        out[f"s{i}_t"] = torch.tensor([t for t, _ in steps], dtype=torch.float64)
        out[f"s{i}_t_prev"] = torch.tensor([t for _, t in steps], dtype=torch.float64)
        out[f"s{i}_guided"] = torch.tensor(
            [model_times(torch.zeros(1, 1), t).item() in guided_times for t, _ in steps]
        )
        out[f"s{i}_model_calls_t"] = asked
        out[f"s{i}_model_calls_is_cond"] = is_cond
    return out


def samplers(case: Case) -> dict[str, Tensor]:
    dense = SparseStructureFlowModel(**case.config["dense"])
    sparse = SLatFlowModel(**case.config["sparse"])
    sparse_concat = SLatFlowModel(**case.config["sparse_concat"])
    for name, model in (("dense", dense), ("sparse", sparse), ("sparse_concat", sparse_concat)):
        model.load_state_dict(case.weights_of(name))
    noise, concat = latents(case, "noise_sparse")
    cond, sigma = case.inputs["cond"], case.config["sigma_min"]
    out = {}
    for name, run in case.config["runs"].items():
        settings = settings_of(run, sigma)
        model: Any = (
            dense if name.startswith("dense") else sparse_concat if run.get("concat_cond") else sparse
        )
        inputs = {"concat_cond": concat} if run.get("concat_cond") else {}
        velocity = guided(
            model_velocity(model, model.precompute_context(cond), **inputs),
            model_velocity(model, None, **inputs),
            settings,
        )
        clean: list[Tensor] = []
        states: list[Tensor] = []

        def observed(x: Any, t: float, velocity: Any = velocity, clean: list = clean) -> Any:
            v = velocity(x, t)
            clean.append(values(clean_estimate(x, t, v, sigma)))
            return v

        start = case.inputs["noise_dense"] if name.startswith("dense") else noise
        times = timesteps(settings.steps, settings.rescale_t)
        end = sample_euler(observed, start, times, lambda _, x, states=states: states.append(values(x)))
        out[f"{name}_samples"] = values(end)
        out[f"{name}_x_t"] = torch.stack(states)
        out[f"{name}_x_0"] = torch.stack(clean)
    return out


KINDS = {"trellis2.sampler_schedule": Kind(sampler_schedule), "trellis2.samplers": Kind(samplers)}
