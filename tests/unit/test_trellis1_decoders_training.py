"""From meshes to a trained latent autoencoder of TRELLIS v1, at toy size.

Properties: what is ingested is what the readers and the released layout expect, and is made once; a voxel's
features are those of the pictures where it is seen; every decoder learns from pictures, all of its weights
get gradients, and what is off is said; new networks hold no number that nobody set; a run that continues ends
bit for bit as one that was not interrupted, and a killed one loses no more than the steps since its last
checkpoint; what was trained becomes a part of a model.
Not tested: whether the result is any good.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.tiny_trellis1 import NETWORKS as SAMPLING
from tests.tiny_trellis1 import write_network, write_tiny_trellis1
from tests.tiny_trellis1_training import (
    NETWORKS,
    VIEW,
    VOXELS,
    decoder_recipe,
    ingest_settings,
    write_encoders,
    write_meshes,
)
from trellis import ingest as meshes
from trellis.data import mean_features, open_catalog, read_features, read_latent, read_surface, read_view
from trellis.ingest import ingest, steps_of
from trellis.models import LATENT_NETWORKS, MODELS
from trellis.objectives import LOSSES, Seen
from trellis.representations import GaussianLayout
from trellis.training import PARTS, finish, merge_into_model, open_tuning, recipe_for
from trellis.training_objectives import read_seen
from trellis_core.errors import InputError, ModelError, UsageError
from trellis_core.geometry.camera import orbit_camera
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.elastic import CheckpointedTogether
from trellis_core.training.ingest.items import summary
from trellis_core.training.ingest.views import ViewSettings
from trellis_core.training.lora import LoRASettings
from trellis_core.training.recipes import DataSettings, ElasticSettings, NetworkFacts
from trellis_core.training.released import RunSettings, Trainee, run
from trellis_core.training.transforms import read_transforms
from trellis_core.training.tuning import Source, network, packed
from trellis_core.weights.load import load_model

DECODERS = ("latent_vae", "gaussian_decoder", "field_decoder", "mesh_decoder")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_meshes(tmp_path_factory.mktemp("meshes") / "mine")


@pytest.fixture(scope="module")
def data(folder, encoders, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "mine"
    outcomes = ingest(folder, out, ingest_settings(encoders), workers=0)
    assert summary(outcomes)["complete"] == 2, outcomes
    return out


def entries(data: Path, kind: str):
    return open_catalog(data, DataSettings(kind=kind, resolution=VOXELS)).entries


def trained(part: str, data: Path, folder: Path, steps: int, **options):
    recipe = options.pop("recipe", None) or decoder_recipe(part)
    tuning = open_tuning(recipe, data, **options)
    trainee = Trainee(tuning.learner, recipe, tuning.order, inflated=tuning.inflated)
    losses: list[dict[str, float]] = []
    run(
        trainee,
        tuning.losses_of,
        RunSettings(steps=steps),
        checkpoint=folder / "training.safetensors",
        elastic=tuning.elastic,
        generators=tuning.generators,
        log=lambda entry: losses.append(entry.values),
    )
    assert not tuning.replaced
    return tuning, trainee, losses


# --- data --------------------------------------------------------------------------------------------


def test_ingesting_makes_every_folder_of_the_released_layout(data):
    names = {path.relative_to(data).parts[0] for path in data.iterdir()}
    assert names >= {"voxels", "renders", "features", "latents", "ss_latents", "renders_cond", "metadata.csv"}
    for kind in ("occupancy", "features_views", "latent_views", "latent_meshes", "v1_structure_latents",
                 "v1_latents", "v1_latents_text"):  # fmt: skip
        assert len(entries(data, kind)) == 2, kind
    name = next((data / "latents").iterdir())
    assert name.name == "image_encoder_slat_encoder"
    stats = json.loads((name / "stats.json").read_text())
    feats = [read_latent(entry)[1] for entry in entries(data, "v1_latents")]
    assert stats["mean"] == pytest.approx(torch.stack([f.mean(0) for f in feats]).mean(0).tolist(), abs=1e-5)


def test_voxels_features_and_latents_lie_on_the_same_places(data):
    for entry in entries(data, "features_views"):
        coords, feats = read_features(entry, VOXELS)
        (latent,) = (e for e in entries(data, "v1_latents") if e.sha256 == entry.sha256)
        assert torch.equal(coords, read_latent(latent)[0])
        points = trimesh.load(data / "voxels" / f"{entry.sha256}.ply").vertices
        assert np.allclose(points, (coords.numpy() + 0.5) / VOXELS - 0.5)
        assert len(feats) == entry.load and feats.isfinite().all()


def test_the_rendered_views_show_the_mesh_where_their_cameras_say(data):
    for entry in entries(data, "latent_meshes"):
        surface = read_surface(entry)
        for view in (0.0, 0.5, 0.99):
            picture, alpha, camera = read_view(entry, VIEW, view)
            seen = surface.vertices.double() @ camera.extrinsics[:3, :3].T + camera.extrinsics[:3, 3]
            places = (seen @ camera.intrinsics.T)[:, :2] / seen[:, 2:] * VIEW
            rows, columns = (alpha[0] > 0.5).nonzero(as_tuple=True)
            for axis, pixels in ((0, columns), (1, rows)):
                low, high = places[:, axis].min(), places[:, axis].max()
                assert float(pixels.min()) == pytest.approx(float(low), abs=1.5)
                assert float(pixels.max()) + 1 == pytest.approx(float(high), abs=1.5)
            strongest = picture.flatten(1)[:, alpha.flatten() > 0.9].mean(1).argmax()
            assert int(strongest) == (0 if "ball" in name_of(data, entry) else 2)


def name_of(data: Path, entry) -> str:
    return json.loads((data / "records" / f"{entry.sha256}.json").read_text())["file_identifier"]


def test_what_is_ingested_is_not_made_again_and_depends_on_what_made_it(folder, data, encoders):
    assert not any(o.made for o in ingest(folder, data, ingest_settings(encoders), workers=0))
    other = ingest_settings(encoders, renders=ViewSettings(views=4, size=VIEW, supersampling=1))
    made = ingest(folder, data, other, workers=0)[0].made
    assert set(made) == {"renders", "features/image_encoder", "latents/image_encoder_slat_encoder"}
    assert len(read_transforms(data / "renders" / entries(data, "latent_views")[0].sha256)) == 4
    ingest(folder, data, ingest_settings(encoders), workers=0)


def test_what_has_no_encoder_yet_is_left_out(encoders):
    without = {name: stem for name, stem in encoders.items() if name != "slat_encoder"}
    names = list(steps_of(ingest_settings(without)))
    assert names == ["voxels", "ss_latents/sparse_structure_encoder", "renders", "features/image_encoder",
                     "renders_cond"]  # fmt: skip
    assert list(steps_of(ingest_settings({}))) == ["voxels", "renders", "renders_cond"]
    assert "ss_latents" not in " ".join(steps_of(ingest_settings(encoders, structure_grid=8)))


def test_an_encoder_of_other_latents_is_not_taken_for_the_model_s(model, encoders):
    stems = {name: model / "ckpts" / name for name in SAMPLING}
    assert meshes.fits("sparse_structure_encoder", encoders["sparse_structure_encoder"], stems)
    assert not meshes.fits("slat_encoder", encoders["slat_encoder"], stems)  # of another grid
    assert "slat_encoder" not in meshes.all_encoders(model, stems)


def test_a_mesh_without_captions_is_not_used_for_captions(data, tmp_path):
    table = (data / "metadata.csv").read_text()
    assert len(open_catalog(data, DataSettings(kind="v1_latents_text", resolution=VOXELS)).entries) == 2
    try:
        (data / "metadata.csv").write_text(table.replace('"[""a ball""]"', "[]"))
        catalog = open_catalog(data, DataSettings(kind="v1_latents_text", resolution=VOXELS))
        assert len(catalog.entries) == 1 and catalog.dropped == {"no captions": 1}
    finally:
        (data / "metadata.csv").write_text(table)


def test_a_grid_that_the_files_cannot_hold_is_refused(folder, tmp_path, encoders):
    with pytest.raises(UsageError, match="does not fit the format"):
        ingest(folder, tmp_path, ingest_settings(encoders, resolution=512), workers=0)


def test_features_are_the_mean_of_what_the_views_show(data):
    cameras = [orbit_camera(yaw, 0.3) for yaw in (0.0, 1.0, 2.5)]
    maps = torch.rand(3, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    whole = mean_features(points, [(cameras, maps)])
    parts = mean_features(points, [(cameras[:1], maps[:1]), (cameras[1:], maps[1:])])
    assert torch.allclose(whole, parts, atol=1e-6)
    flat = mean_features(points * 0.1, [(cameras, torch.ones(3, 2, 6, 6))])  # well inside every picture
    assert torch.allclose(flat, torch.ones(20, 2), atol=1e-5)
    behind = mean_features(points[:1] + torch.tensor([50.0, 0, 0]), [(cameras, maps)])
    assert not behind.any()


def test_features_of_a_finer_grid_are_averaged_and_others_refused(data, tmp_path):
    entry = entries(data, "features_views")[0]
    coarse, _ = read_features(entry, VOXELS // 2)
    fine, _ = read_features(entry, VOXELS)
    assert {tuple(c) for c in coarse.tolist()} == {tuple(c) for c in (fine // 2).tolist()}
    with pytest.raises(InputError, match="lies on a grid of 4"):
        read_features(entry, 3)


# --- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(LATENT_NETWORKS))
def test_new_networks_hold_no_number_that_nobody_set(kind):
    config = next(c for c in [*NETWORKS.values(), *SAMPLING.values()] if c["name"] == kind)
    facts = NetworkFacts(config={**config, "args": {**config["args"], "qk_rms_norm": True}}, parameters=1)
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        rest = [torch.full((200,), torch.nan) for _ in range(50)]  # what freed memory is full of
        del rest
        states.append(
            network("one", facts, Source(MODELS, lambda name, stem: {}, {}), Kernels()).state_dict()
        )
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            assert torch.equal(value, torch.ones_like(value)), name
    if kind == "SLatGaussianDecoder":
        wanted = GaussianLayout.of(config["args"]["representation_config"]).perturbation
        assert torch.equal(states[0]["offset_perturbation"], wanted)


def loss_on_fixed_views(tuning) -> float:
    """The mean over four draws of views and backgrounds that are always the same."""
    total = 0.0
    for seed in range(4):
        for generator in tuning.generators.values():
            generator.manual_seed(seed)
        with torch.no_grad():
            total += float(tuning.losses_of([0, 1])["loss"]) / 4
    return total


@pytest.mark.parametrize("part", DECODERS)
def test_every_decoder_learns_from_pictures_and_says_what_is_off(part, data, tmp_path):
    slow = part == "mesh_decoder"  # its distances are hundredths
    recipe = decoder_recipe(part, rate=1e-4 if slow else 2e-3)
    before = loss_on_fixed_views(open_tuning(recipe, data))
    tuning, _, losses = trained(part, data, tmp_path, 8 if slow else 6, recipe=recipe)
    assert all(math.isfinite(entry["loss"]) for entry in losses)
    assert loss_on_fixed_views(tuning) < before
    assert not any("lpips" in name for entry in losses for name in entry)  # nan: off
    expected = {
        "latent_vae": {"l1", "ssim", "kl", "volume", "opacity"},
        "gaussian_decoder": {"l1", "ssim", "volume", "opacity"},
        "field_decoder": {"l1", "ssim"},
        "mesh_decoder": {"regularization", "tsdf", "mask", "depth", "normal_l1", "normal_ssim", "color_l1"},
    }[part]
    assert expected <= losses[-1].keys()


@pytest.mark.parametrize("part", DECODERS)
def test_every_weight_gets_a_gradient(part, data):
    tuning = open_tuning(decoder_recipe(part), data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # outputs that start at zero would hide what lies behind them
        for parameter in tuning.networks.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    losses = tuning.losses_of([0, 1])
    losses["loss"].backward()
    idle = [
        name
        for name, p in tuning.networks.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ]
    assert idle == []
    moved = sum(float(p.grad.abs().sum()) > 0 for p in tuning.networks.parameters())
    assert moved >= 0.9 * len(list(tuning.networks.parameters()))


def test_the_loss_is_the_weighted_sum_of_its_terms(data):
    recipe = decoder_recipe("latent_vae")
    with torch.no_grad():
        losses = open_tuning(recipe, data).losses_of([0, 1])
    weights = {name: weight for name, weight in recipe.losses.items() if name != "lpips"}
    total = sum(weight * float(losses[name]) for name, weight in weights.items())
    assert float(losses["loss"]) == pytest.approx(total, rel=1e-5)


def test_a_perceptual_loss_counts_when_there_is_one(data):
    recipe = decoder_recipe("gaussian_decoder")
    plain = open_tuning(recipe, data, seed=3).losses_of([0])
    judged = open_tuning(recipe, data, seed=3, perceptual=lambda a, b: (a - b).square().mean()).losses_of([0])
    assert plain["lpips"].isnan() and judged["lpips"].isfinite()
    more = (judged["loss"] - plain["loss"]).item()
    assert more == pytest.approx(0.2 * judged["lpips"].item(), rel=1e-3)


def test_pictures_before_a_background_are_composed_as_the_decoded_ones(data):
    tuning = open_tuning(decoder_recipe("gaussian_decoder"), data)
    item = read_seen(tuning, tuning.catalog.entries[0], surface=False)
    seen = Seen(
        pictures=item.picture[None],
        alpha=item.alpha[None],
        cameras=[item.camera],
        backgrounds=torch.ones(1, 3),
        runtime=Runtime(),
    )
    empty = (item.alpha == 0).expand(3, -1, -1)
    assert torch.equal(seen.composed[0][empty], torch.ones(int(empty.sum())))
    whole = (item.alpha == 1).expand(3, -1, -1)
    assert torch.allclose(seen.composed[0][whole], item.picture[whole])


def test_a_mesh_decoder_without_a_surface_still_learns_where_it_should_be(data):
    tuning = open_tuning(decoder_recipe("mesh_decoder"), data)
    decoder = tuning.networks["slat_decoder_mesh"]
    with torch.no_grad():
        decoder.out_layer.bias[:8] = 3.0  # all is outside
    losses = tuning.losses_of([0])
    assert "mask" not in losses and losses["tsdf"].item() > 0
    losses["loss"].backward()
    assert decoder.out_layer.bias.grad[:8].any()


def test_an_encoder_learns_only_when_it_is_trained(data):
    alone = open_tuning(decoder_recipe("gaussian_decoder"), data).losses_of([0])
    assert "kl" not in alone
    assert "kl" in open_tuning(decoder_recipe("latent_vae"), data).losses_of([0])


def test_every_decoder_class_has_losses():
    kinds = {MODELS[NETWORKS[name]["name"]] for name in NETWORKS if "decoder" in name}
    assert kinds == set(LOSSES)


def test_elastic_memory_checkpoints_encoder_and_decoder_alike(data):
    recipe = replace(decoder_recipe("latent_vae"), elastic=ElasticSettings(start=0.5))
    elastic = open_tuning(recipe, data).elastic
    assert isinstance(elastic, CheckpointedTogether)
    elastic.checkpointed = 1
    assert [network.checkpointed for network in elastic.networks] == [1, 1]
    assert open_tuning(decoder_recipe("latent_vae"), data).elastic is None


# --- runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["latent_vae", "field_decoder"])
def test_a_run_that_continues_ends_bit_for_bit_as_one_that_was_not_interrupted(part, data, tmp_path):
    whole = trained(part, data, tmp_path / "whole", 5)[1]
    for steps in (1, 3, 5):
        pieces = trained(part, data, tmp_path / "pieces", steps)[1]
    assert pieces.step == whole.step == 5
    for name, value in whole.weights().items():
        assert torch.equal(value, pieces.weights()[name]), name
        assert torch.equal(whole.average[name], pieces.average[name]), name


def test_a_killed_run_loses_the_steps_since_its_last_checkpoint_only(data, tmp_path):
    class Killed(Exception):
        pass

    recipe = decoder_recipe("latent_vae")  # saved every two steps
    tuning = open_tuning(recipe, data)
    trainee = Trainee(tuning.learner, recipe, tuning.order, inflated=False)

    def die(step: int) -> None:
        if step == 3:
            raise Killed

    settings = RunSettings(steps=5, on_step=die)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        run(trainee, tuning.losses_of, settings, checkpoint=path, generators=tuning.generators)
    again = open_tuning(recipe, data)
    resumed = Trainee(again.learner, recipe, again.order, inflated=False)
    resumed.load(path, again.generators)
    assert resumed.step == 2
    whole = trained("latent_vae", data, tmp_path / "whole", 5)[1]
    pieces = trained("latent_vae", data, tmp_path, 5)[1]
    assert all(torch.equal(v, pieces.weights()[k]) for k, v in whole.weights().items())


def test_a_trained_encoder_makes_the_latents_that_decoders_learn_from(data, folder, encoders, tmp_path):
    tuning, trainee, _ = trained("latent_vae", data, tmp_path / "run", 1)
    names = [path.name for path in finish(tuning, trainee, tmp_path / "run")]
    assert names == ["slat_encoder.safetensors", "slat_decoder_gs.safetensors"]
    found = meshes.find_encoders(tmp_path / "run")
    assert found["slat_encoder"] == tmp_path / "run" / "ckpts" / "slat_encoder"
    ingest(folder, data, ingest_settings({**encoders, "slat_encoder": found["slat_encoder"]}), workers=0)
    entry = entries(data, "latent_views")[0]
    network = load_model(found["slat_encoder"], MODELS)
    coords, feats = read_features(entries(data, "features_views")[0], VOXELS)
    with torch.no_grad():
        mean, _ = network(packed([coords], [feats]))
    assert torch.allclose(mean.feats, read_latent(entry)[1], atol=1e-5)
    assert isinstance(mean, SparseTensor)
    ingest(folder, data, ingest_settings(encoders), workers=0)


# --- models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_part_of_a_model_has_a_recipe_with_the_model_s_sizes(part, model, encoders):
    if any("encoder" in name for name in PARTS[part].trains):
        with pytest.raises(ModelError, match="has no network"):
            recipe_for(model, part)
        return
    recipe = recipe_for(model, part)
    assert recipe.stage == PARTS[part].stage and recipe.data.resolution == 8
    assert all(facts.parameters > 100 for facts in recipe.trains.values())
    assert (recipe.condition is not None) == recipe.is_flow


def test_a_stage_that_the_version_does_not_have_names_those_that_it_has(model):
    with pytest.raises(UsageError, match="no stage `shape_flow`") as caught:
        recipe_for(model, "shape_flow")
    assert "latent_flow" in caught.value.hint


def test_the_text_model_s_flows_learn_from_captions(tmp_path):
    text = write_tiny_trellis1(tmp_path / "prompts", text=True)
    recipe = recipe_for(text, "structure_flow")
    assert recipe.data.kind == "v1_structure_latents_text" and recipe.condition.kind == "text"
    assert recipe.condition.tokens == 8


def test_a_fine_tuned_decoder_becomes_a_part_of_its_model(model, tmp_path, folder):
    data = tmp_path / "data"
    own = {
        "image_encoder": model / "ckpts" / "image_encoder",
        **write_wide_encoder(tmp_path),
    }
    settings = ingest_settings(own, resolution=8, structure_grid=None)
    assert summary(ingest(folder, data, settings, workers=0))["complete"] == 2
    recipe = replace(recipe_for(model, "field_decoder"), steps=1)
    recipe = replace(recipe, data=replace(recipe.data, view_size=VIEW), batch=replace(recipe.batch, splits=1))
    tuning, trainee, _ = trained("", data, tmp_path / "run", 1, recipe=recipe, model=model)
    (path,) = finish(tuning, trainee, tmp_path / "run")
    merged = merge_into_model(path, model, tmp_path / "mine")
    changed = [
        file.name
        for file in sorted((model / "ckpts").glob("*.safetensors"))
        if file.read_bytes() != (merged / "ckpts" / file.name).read_bytes()
    ]
    assert changed == ["slat_decoder_rf.safetensors"]
    with pytest.raises(UsageError, match="exists"):
        merge_into_model(path, model, tmp_path / "mine")


def write_wide_encoder(folder: Path) -> dict[str, Path]:
    (folder / "ckpts").mkdir()
    config = {"name": "SLatEncoder", "args": {**NETWORKS["slat_encoder"]["args"], "resolution": 8}}
    return {"slat_encoder": write_network(folder, "slat_encoder", config, 5)}


def test_an_adapter_of_a_v1_flow_is_merged_into_its_model(model, folder, tmp_path, encoders):
    data = tmp_path / "data"
    own = {"image_encoder": model / "ckpts" / "image_encoder", **write_wide_encoder(tmp_path)}
    ingest(folder, data, ingest_settings(own, resolution=8, structure_grid=None), workers=0)
    recipe = replace(recipe_for(model, "latent_flow"), steps=2)
    tuning, trainee, losses = trained(
        "", data, tmp_path / "run", 2, recipe=recipe, model=model, lora=LoRASettings(rank=2)
    )
    assert all(math.isfinite(entry["loss"]) for entry in losses)
    (path,) = finish(tuning, trainee, tmp_path / "run")
    merged = merge_into_model(path, model, tmp_path / "mine")
    before = load_model(model / "ckpts" / "slat_flow_model", MODELS).state_dict()
    after = load_model(merged / "ckpts" / "slat_flow_model", MODELS).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("blocks.") and name.endswith("weight") for name in changed)
    with pytest.raises(ModelError, match="other weights"):
        merge_into_model(path, merged, tmp_path / "twice")
