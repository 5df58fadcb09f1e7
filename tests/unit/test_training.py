"""Training: losses, optimizer, loop, checkpoints, and every stage of TRELLIS.2 at a tiny size with the real
classes.

Properties: noising and velocity are the two ends of one straight line; Muon's updates are orthogonal; a stage
that is interrupted and continued ends with the very weights of one that is not, and with its learning rate
at zero; what is left of a log interval is logged; every weight of every stage learns, from pictures and from
captions; what a stage trains can be released, loaded strictly and run, and knows its pictures; samples of a
run in training leave its random numbers alone. Not tested here: several processes
(`test_training_distributed.py`), and how good the results are (`tests/benchmarks/embedded_quality.py`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tests.tiny_recipe import ORDER, RECIPE
from trellis2.models import MODELS
from trellis2.settings import read_settings
from trellis2.stage_samples import missing_stages, sample_stage
from trellis2.training import STAGES, release, stage_of, train_and_store
from trellis2.workshop import Workshop
from trellis_core.errors import ModelError, UsageError
from trellis_core.training.checkpoints import (
    Progress,
    averaged_weights,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_weights,
)
from trellis_core.training.loop import LoopSettings, train
from trellis_core.training.objectives import (
    dice_loss,
    kl_divergence,
    logit_normal_times,
    noised,
    posterior_sample,
    velocity_target,
)
from trellis_core.training.optimizer import (
    Average,
    Optimizer,
    OptimizerSettings,
    learning_curve,
    orthogonalized,
)
from trellis_core.training.precision import Float32Attention, mixed_precision
from trellis_core.training.synthetic.shards import DatasetSettings, write_shards
from trellis_core.weights.load import load_model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_shards(
        folder / "data", range(0, 6), DatasetSettings(resolution=16, image_size=16, views=2, shard=6)
    )
    return folder


@pytest.fixture(scope="module")
def shop(run_folder) -> Workshop:
    shards = sorted((run_folder / "data").glob("*.safetensors"))
    numbers = (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    return Workshop(RECIPE, shards, run_folder / "run", torch.device("cpu"), *numbers, Float32Attention())


@pytest.fixture(scope="module")
def trained(shop) -> Workshop:
    torch.manual_seed(0)
    for stage in ORDER:
        train_and_store(shop, stage, LoopSettings(steps=2))
    return shop


@given(t=st.floats(0, 1), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_one_step_along_the_target_velocity_reaches_the_data(t, seed):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    at_t = noised(x, noise, torch.tensor(t))
    assert torch.allclose(
        at_t - t * velocity_target(x, noise), noised(x, noise, torch.tensor(0.0)), atol=1e-5
    )


def test_times_are_logit_normal():
    times = logit_normal_times(4000, 0.5, 1.0, torch.Generator().manual_seed(0))
    assert times.logit().mean().item() == pytest.approx(0.5, abs=0.1)
    assert times.logit().std().item() == pytest.approx(1.0, abs=0.1)


def test_divergence_is_zero_for_the_prior_only():
    zeros = torch.zeros(3, 4)
    assert kl_divergence(zeros, zeros).item() == 0
    assert kl_divergence(zeros + 1, zeros).item() == pytest.approx(0.5)
    assert kl_divergence(zeros, zeros - 2).item() > 0


def test_posterior_samples_have_the_posterior_s_spread():
    samples = posterior_sample(
        torch.full((20000,), 3.0), torch.full((20000,), -2.0), torch.Generator().manual_seed(0)
    )
    assert samples.mean().item() == pytest.approx(3.0, abs=0.02)
    assert samples.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=0.02)


def test_dice_loss_rewards_overlap():
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(target * 40 - 20, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(20 - target * 40, target).item() > 0.7


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 4, 20), (1, 30, 6)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices, 6))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_the_learning_rate_warms_up_stays_and_ends_at_zero():
    assert learning_curve(0.015) == pytest.approx(0.5)
    assert learning_curve(0.5) == 1.0
    assert learning_curve(0.8) == pytest.approx(0.5)
    assert learning_curve(1.0) == 0.0


def test_rim_layers_and_vectors_go_to_adamw():
    model = nn.ModuleDict({"input_layer": nn.Linear(3, 4), "hidden": nn.Linear(4, 4)})
    optimizer = Optimizer(model.named_parameters(), OptimizerSettings())
    assert [p is model["hidden"].weight for p in optimizer.matrices] == [True]


def test_not_finite_gradients_change_nothing():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = Optimizer(model.named_parameters(), OptimizerSettings())
    model(torch.full((1, 2), float("nan"))).sum().backward()
    optimizer.step(1.0)
    assert torch.equal(model.weight, before)


def fit_a_line(folder: Path, steps: int, stop_after: int | None = None) -> tuple[nn.Module, Average]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(1)

    def objective(step: int):
        x = torch.randn(32, 2, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    average = train(
        model,
        objective,
        OptimizerSettings(ema=0.9),
        LoopSettings(steps=steps, stop_after=stop_after, log_every=50),
        folder / "line.safetensors",
        generators={"generator": generator},
    )
    return model, average


def test_the_loop_learns_and_hands_back_the_averaged_weights(tmp_path):
    model, average = fit_a_line(tmp_path, 200)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(2))
    assert (model(x) - x.sum(1, keepdim=True)).square().mean() < 0.2
    stored = averaged_weights(tmp_path / "line.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, average.weights[name])
        assert torch.equal(weight, stored[name])


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    fit_a_line(tmp_path / "whole", 60)
    for piece in (7, 13, None):
        fit_a_line(tmp_path / "pieces", 60, stop_after=piece)
    whole, _ = read_checkpoint(tmp_path / "whole" / "line.safetensors")
    pieces, counts = read_checkpoint(tmp_path / "pieces" / "line.safetensors")
    assert counts["step"] == 60
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_finished_stage_goes_on_only_when_it_is_prolonged(tmp_path):
    fit_a_line(tmp_path, 20)
    before, _ = read_checkpoint(tmp_path / "line.safetensors")
    fit_a_line(tmp_path, 20)
    same, _ = read_checkpoint(tmp_path / "line.safetensors")
    fit_a_line(tmp_path, 25)
    after, counts = read_checkpoint(tmp_path / "line.safetensors")
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert counts["step"] == 25
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_can_be_asked_to_stop(tmp_path):
    model = nn.Linear(1, 1)
    asked = iter([False, False, True])
    settings = LoopSettings(steps=100, stop=lambda: next(asked))

    def objective(step: int):
        return {"loss": model(torch.ones(1, 1)).sum()}

    train(model, objective, OptimizerSettings(), settings, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")[1]["step"] == 2


def test_what_is_left_of_a_log_interval_is_logged_and_every_checkpoint_is_told(tmp_path):
    model, entries, saved = nn.Linear(1, 1), [], []
    settings = LoopSettings(steps=5, log_every=3, on_save=lambda: saved.append((tmp_path / "a").exists()))

    def objective(step: int):
        return {"loss": model(torch.ones(1, 1)).sum(), "step": torch.tensor(float(step))}

    train(model, objective, OptimizerSettings(), settings, tmp_path / "a", entries.append)
    assert [(e.step, e.values["step"]) for e in entries] == [(3, 1.0), (5, 3.5)]
    assert saved == [True]


def test_a_length_must_be_given():
    with pytest.raises(UsageError, match="how long"):
        LoopSettings().progress(0, 0.0)


def test_micro_batches_average_to_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    x = torch.randn(8, 3)

    def weights(count: int) -> torch.Tensor:
        torch.manual_seed(1)
        model = nn.Linear(3, 1)
        parts = iter(x.chunk(count) * 3)

        def objective(step: int):
            return {"loss": model(next(parts)).square().mean()}

        train(model, objective, OptimizerSettings(), LoopSettings(steps=3, micro_batches=count))
        return model.weight.detach()

    assert torch.allclose(weights(1), weights(4), atol=1e-5)


def test_a_checkpoint_restores_weights_average_and_optimizer(tmp_path):
    def fresh(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
        optimizer = Optimizer(model.named_parameters(), OptimizerSettings())
        return model, optimizer, Average(model, 0.5)

    model, optimizer, average = fresh(0)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step(1.0)
        average.update(model)
    save_checkpoint(tmp_path / "a.safetensors", model, optimizer, average, Progress(3, 4.5))
    again, other, mean = fresh(1)
    assert load_checkpoint(tmp_path / "a.safetensors", again, other, mean) == Progress(3, 4.5)
    for net, opt in ((model, optimizer), (again, other)):
        net(torch.ones(1, 2)).sum().backward()
        opt.step(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(average.weights[name], mean.weights[name])


def test_attention_stays_in_float32_under_mixed_precision():
    q, k, v = torch.randn(3, 1, 5, 2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = Float32Attention()["attention"](q, k, v)
    with mixed_precision("cpu", torch.bfloat16):
        got = Float32Attention()["attention"](q, k, v)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("stage", ORDER)
def test_every_weight_of_a_stage_learns(trained, stage, share):
    torch.manual_seed(1)
    recipe = {**RECIPE, "text": {**RECIPE["text"], "share": share}}
    model, objective = STAGES[stage](replace(trained, recipe=recipe))
    with torch.no_grad():  # zero-initialised outputs would hide what lies behind them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    losses = objective(0)
    losses["loss"].backward()
    unused = ("mask_token", "image_encoder.norm.")
    idle = [
        name
        for name, p in model.named_parameters()
        if not any(u in name for u in unused) and (p.grad is None or not p.grad.any())
    ]
    assert torch.isfinite(losses["loss"])
    assert idle == []


def test_latents_are_normalised_and_made_once(trained):
    latents = trained.latents("shape")
    assert latents.feats.mean(dim=0) == pytest.approx(torch.zeros(4), abs=1e-4)
    assert latents.feats.std(dim=0) == pytest.approx(torch.ones(4), abs=1e-4)
    assert len(latents.starts) == len(trained.dataset) + 1
    coords, feats = latents.batch(torch.tensor([2, 0]))
    assert coords[:, 0].unique().tolist() == [0, 1]
    assert len(coords) == len(feats)


def test_cached_latents_are_made_again_when_their_encoder_changes(trained, tmp_path):
    shop = replace(trained, run=tmp_path)
    path = tmp_path / "shape_vae.safetensors"
    copyfile(trained.run / "shape_vae.safetensors", path)
    first = shop.latents("shape").feats
    tensors, counts = read_checkpoint(path)
    tensors = {k: v + 0.1 if k.startswith("average.shape_slat_encoder") else v for k, v in tensors.items()}
    save_file(tensors, path, {"counts": json.dumps(counts)})
    assert not torch.allclose(shop.latents("shape").feats, first)


def test_a_decoder_that_goes_on_leaves_the_latents_as_they_are(trained, tmp_path):
    shop = replace(trained, run=tmp_path)
    copyfile(trained.run / "shape_vae.safetensors", tmp_path / "shape_vae.safetensors")
    before = shop.latents("shape").feats
    train_and_store(shop, "shape_decoder", LoopSettings(steps=2))
    old = shop.finished("shape_vae", "shape_slat_decoder").state_dict()
    new = shop.finished("shape_decoder", "shape_slat_decoder").state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert torch.equal(shop.latents("shape").feats, before)


def test_a_run_starts_from_weights_alone(trained, tmp_path):
    save_weights(tmp_path / "shape_vae.safetensors", trained.run / "shape_vae.safetensors")
    train_and_store(replace(trained, run=tmp_path), "shape_vae", LoopSettings(steps=1))
    start = averaged_weights(trained.run / "shape_vae.safetensors")
    weights, counts = read_checkpoint(tmp_path / "shape_vae.safetensors")
    assert counts["step"] == 1
    assert all((weights[f"model.{name}"] - value).abs().max() < 0.1 for name, value in start.items())


def test_a_stage_that_needs_an_untrained_network_says_so(trained, tmp_path):
    with pytest.raises(ModelError, match="not trained") as caught:
        STAGES["structure_flow"](replace(trained, run=tmp_path))
    assert "structure_vae" in caught.value.hint


def test_a_release_loads_strictly_and_says_how_to_run_it(trained, tmp_path):
    release(trained, tmp_path)
    for name in stage_of(RECIPE):
        network = load_model(tmp_path / "ckpts" / name, MODELS)
        assert type(network).__name__ == RECIPE["models"][name]["name"]
    args = json.loads((tmp_path / "pipeline.json").read_text())["args"]
    assert args["default_pipeline_type"] == "16"
    assert len(args["shape_slat_normalization"]["std"]) == 4
    assert all((tmp_path / f"{path}.safetensors").exists() for path in args["models"].values())
    texturing = json.loads((tmp_path / "texturing_pipeline.json").read_text())["args"]
    assert set(texturing["models"]) >= {"shape_slat_encoder", "tex_slat_decoder"}
    facts = read_settings(tmp_path / "pipeline.json").familiarity
    assert facts.directions.shape[1] == RECIPE["models"]["image_encoder"]["args"]["hidden_size"]


def test_a_run_in_training_shows_what_it_makes(trained):
    flows = {"structure_flow": "cells", "shape_flow": "mesh", "texture_flow": "materials"}
    for flow, result in flows.items():
        before = torch.random.get_rng_state(), trained.generator.get_state()
        samples = sample_stage(trained, flow, 2)
        again = sample_stage(trained, flow, 2)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert torch.equal(trained.generator.get_state(), before[1])
        assert len(samples) == 4  # pictures and captions
        for one, other in zip(samples, again, strict=True):
            assert (one.picture is None) == (one.label.split()[0] != "picture")
            if one.cells is not None:
                assert getattr(one, result) is not None
                assert torch.equal(one.cells, other.cells)
    assert any(sample.cells is not None for sample in samples)


def test_samples_need_the_earlier_stages(trained, tmp_path):
    shop = replace(trained, run=tmp_path)
    copyfile(trained.run / "encoders.safetensors", tmp_path / "encoders.safetensors")
    assert missing_stages(shop, "structure_flow") == ["structure_vae", "structure_flow"]
    assert missing_stages(trained, "texture_flow") == []
    with pytest.raises(ModelError, match="not trained"):
        sample_stage(shop, "structure_flow", 1)


def test_the_embedded_recipe_builds_every_network():
    path = Path(__file__).parents[2] / "configs" / "trellis2" / "embedded" / "recipe.json"
    recipe = json.loads(path.read_text(encoding="utf-8"))
    total = 0
    for name in stage_of(recipe):
        entry = recipe["models"][name]
        text = {"vocab_size": 700, "max_position_embeddings": 24} if name == "text_encoder" else {}
        with torch.device("meta"):
            network = MODELS[entry["name"]](**entry["args"], **text)
        total += sum(p.numel() for p in network.parameters())
    assert 2 * total < 20_000_000  # bytes in float16
    assert set(recipe["stages"]) == set(STAGES)
    for stage in recipe["stages"].values():
        assert replace(OptimizerSettings(), **stage.get("optimizer", {}))
