"""Training TRELLIS v1 from data in the released layout, at toy size.

Properties: the table decides which items are used and why others are not; items are read as they were
written; every stage learns from its data; what a run writes is a network that loads; a run continues bit for
bit.
Not tested here: losses against the released ones, which `tests/parity` does.
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
from PIL import Image, ImageDraw

from tests.tiny_trellis1 import CONTEXT, GRID, IMAGE_SIZE, NETWORKS, write_tiny_trellis1
from trellis.data import open_catalog, read_captions, read_condition, read_latent, read_occupancy
from trellis.models import MODELS
from trellis.settings import read_settings
from trellis.training import finish, open_tuning
from trellis.training_objectives import normalization_of
from trellis_core.errors import InputError, UsageError
from trellis_core.training.lora import LoRASettings
from trellis_core.training.recipes import (
    AdamSettings,
    BatchSettings,
    ConditionSettings,
    DataSettings,
    NetworkFacts,
    Recipe,
    TimeSettings,
)
from trellis_core.training.released import RunSettings, Trainee, run
from trellis_core.weights.load import load_model

ITEMS = 4
ENCODER = {
    "name": "SparseStructureEncoder",
    "args": {
        "in_channels": 1,
        "latent_channels": 4,
        "num_res_blocks": 1,
        "num_res_blocks_middle": 1,
        "channels": [6, 8],
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four assets with everything, one that scores low and one without voxels."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in ("voxels", "latents/net", "ss_latents/net", "renders_cond"):
        (root / folder).mkdir(parents=True)
    columns = ("sha256", "aesthetic_score", "captions", "num_voxels", "voxelized", "cond_rendered")
    lines = [",".join((*columns, "latent_net", "ss_latent_net"))]
    for number in range(ITEMS + 2):
        sha = f"{number:064x}"
        cells = np.unique(rng.integers(0, GRID, (30, 3)), axis=0)
        captions = '"[""a red chair"", ""a chair""]"'
        score, voxels = (3.0 if number == ITEMS else 5.5), str(number != ITEMS + 1)
        lines.append(f"{sha},{score},{captions},{len(cells)},{voxels},True,True,True")
        trimesh.PointCloud((cells + 0.5) / GRID - 0.5).export(root / "voxels" / f"{sha}.ply")
        latent = {"coords": cells.astype(np.uint8), "feats": rng.normal(2, 3, (len(cells), 4))}
        np.savez(root / "latents" / "net" / f"{sha}.npz", **latent)
        side = GRID // 2
        structure = rng.normal(size=(4, side, side, side)).astype(np.float32)
        np.savez(root / "ss_latents" / "net" / f"{sha}.npz", mean=structure)
        (root / "renders_cond" / sha).mkdir()
        picture = Image.new("RGBA", (60, 60))
        ImageDraw.Draw(picture).rectangle((10, 20, 40, 50), fill=(255, 0, 0, 255))
        picture.save(root / "renders_cond" / sha / "000.png")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "prompts", text=True)


def recipe_of(stage: str, condition: str = "image") -> Recipe:
    trained = {
        "structure_vae": {
            "sparse_structure_encoder": ENCODER,
            "sparse_structure_decoder": NETWORKS["sparse_structure_decoder"],
        },
        "structure_flow": {"sparse_structure_flow_model": NETWORKS["sparse_structure_flow_model"]},
        "latent_flow": {"slat_flow_model": NETWORKS["slat_flow_model"]},
    }[stage]
    kinds = {
        "structure_vae": "occupancy",
        "structure_flow": "v1_structure_latents",
        "latent_flow": "v1_latents",
    }
    suffix = "_text" if condition == "text" else ""
    flow = stage.endswith("flow")
    return Recipe(
        name="tiny",
        summary="Tiny",
        version="trellis",
        stage=stage,
        trains={name: NetworkFacts(config=config, parameters=1) for name, config in trained.items()},
        data=DataSettings(kind=kinds[stage] + suffix, resolution=GRID, min_aesthetic_score=4.5),
        batch=BatchSettings(per_gpu=2, splits=2),
        optimizer=AdamSettings(rate=1e-2),
        precision="inflated_float16",
        steps=4,
        losses={} if flow else {"dice": 1.0, "kl": 1e-3},
        times=TimeSettings(name="logit_normal", mean=1.0) if flow else None,
        condition=ConditionSettings(kind=condition, tokens=14, image_size=IMAGE_SIZE) if flow else None,
        log_every=1,
        save_every=100,
    )


def trained(recipe: Recipe, data: Path, folder: Path, steps: int, **options):
    tuning = open_tuning(recipe, data, **options)
    trainee = Trainee(tuning.learner, recipe, tuning.order, inflated=tuning.inflated)
    losses: list[float] = []
    run(
        trainee,
        tuning.losses_of,
        RunSettings(steps=steps),
        checkpoint=folder / "training.safetensors",
        generators=tuning.generators,
        log=lambda entry: losses.append(entry.values["loss"]),
    )
    return tuning, trainee, losses


# --- data -------------------------------------------------------------------------------------------


def test_the_table_decides_what_is_used(data):
    catalog = open_catalog(data, recipe_of("structure_vae").data)
    assert len(catalog.entries) == ITEMS
    assert catalog.dropped == {"aesthetic score below 4.5": 1, "no voxels": 1}
    assert all(load > 1 for load in catalog.loads)
    few = DataSettings(kind="v1_latents", resolution=GRID, max_voxels=5)
    assert open_catalog(data, few).dropped == {"more than 5 voxels": ITEMS + 2}


def test_items_are_read_as_they_were_written(data):
    entry = open_catalog(data, recipe_of("structure_vae").data).entries[0]
    occupied = read_occupancy(entry, GRID)
    latent = open_catalog(data, recipe_of("latent_flow").data).entries[0]
    coords, feats = read_latent(latent)
    assert torch.equal(occupied[0].nonzero().int(), coords)
    assert feats.shape == (len(coords), 4)
    assert read_captions(data)[entry.sha256] == ["a red chair", "a chair"]


def test_a_training_picture_has_the_margin_of_inference(data):
    entry = open_catalog(data, recipe_of("latent_flow").data).entries[0]
    picture = read_condition(entry, 60, 0.5)
    red = (picture[0] > 0.5).nonzero()
    extent = red.amax(0) - red.amin(0) + 1
    assert extent.tolist() == pytest.approx([60 / 1.2] * 2, abs=3)


def test_two_sets_of_latents_are_refused(data, tmp_path):
    (tmp_path / "metadata.csv").write_text("sha256\n")
    (tmp_path / "renders_cond").mkdir()
    for name in ("a", "b"):
        (tmp_path / "latents" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="holds a, b"):
        open_catalog(tmp_path, recipe_of("latent_flow").data)


def test_a_folder_without_data_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.csv"):
        open_tuning(recipe_of("structure_vae"), tmp_path)


# --- runs -------------------------------------------------------------------------------------------


def test_the_structure_autoencoder_learns_occupancy(data, tmp_path):
    tuning, trainee, losses = trained(recipe_of("structure_vae"), data, tmp_path, 6)
    assert sum(losses[-3:]) < sum(losses[:3])
    paths = finish(tuning, trainee, tmp_path)
    assert [path.name for path in paths] == [
        "sparse_structure_encoder.safetensors",
        "sparse_structure_decoder.safetensors",
    ]
    decoder = load_model(paths[1].with_suffix(""), MODELS)
    assert decoder(torch.zeros(1, 4, 4, 4, 4)).shape == (1, 1, GRID, GRID, GRID)


@pytest.mark.parametrize("stage", ["structure_flow", "latent_flow"])
@pytest.mark.parametrize("condition", ["image", "text"])
def test_flows_learn_from_pictures_and_captions(stage, condition, data, model, text_model, tmp_path):
    folder = model if condition == "image" else text_model
    tuning, trainee, losses = trained(recipe_of(stage, condition), data, tmp_path, 2, model=folder)
    assert all(map(math.isfinite, losses))
    assert not tuning.replaced
    before = load_model(folder / "ckpts" / next(iter(tuning.networks)), MODELS).state_dict()
    (path,) = finish(tuning, trainee, tmp_path)
    after = load_model(path.with_suffix(""), MODELS).state_dict()
    assert not torch.equal(before["out_layer.weight"], after["out_layer.weight"])
    assert json.loads(path.with_suffix(".json").read_text())["args"]["cond_channels"] == CONTEXT


def test_without_a_model_latents_are_normalised_by_their_statistics(data, model):
    recipe = recipe_of("latent_flow")
    catalog = open_catalog(data, recipe.data)
    settings = read_settings(model / "pipeline.json")
    assert normalization_of(recipe, settings, catalog).mean == (0.5, -0.5, 0.0, 1.0)
    own = normalization_of(recipe, None, catalog)
    feats = [read_latent(entry)[1] for entry in catalog.entries]
    assert own.mean == pytest.approx(torch.stack([f.mean(0) for f in feats]).mean(0).tolist(), abs=1e-5)
    assert normalization_of(recipe_of("structure_flow"), settings, catalog) is None


def test_an_interrupted_run_continues_bit_for_bit(data, model, tmp_path):
    recipe = recipe_of("latent_flow")
    whole = trained(recipe, data, tmp_path / "a", 2, model=model)[1]
    trained(recipe, data, tmp_path / "b", 1, model=model)
    pieces = trained(recipe, data, tmp_path / "b", 2, model=model)[1]
    assert pieces.step == whole.step == 2
    for name, value in whole.weights().items():
        assert torch.equal(value, pieces.weights()[name]), name


def test_an_adapter_trains_beside_the_flow(data, model, tmp_path):
    tuning, trainee, _ = trained(
        recipe_of("structure_flow"), data, tmp_path, 2, model=model, lora=LoRASettings(rank=2)
    )
    frozen = load_model(model / "ckpts" / "sparse_structure_flow_model", MODELS).state_dict()
    now = tuning.networks["sparse_structure_flow_model"].state_dict()
    assert torch.equal(frozen["out_layer.weight"], now["out_layer.weight"])
    assert [path.name for path in finish(tuning, trainee, tmp_path)] == ["lora.safetensors"]


def test_what_cannot_be_trained_here_says_so(data, model):
    with pytest.raises(UsageError, match="adapters are for flows"):
        open_tuning(recipe_of("structure_vae"), data, lora=LoRASettings(rank=2))
    other = replace(recipe_of("structure_vae"), stage="texture_vae")
    with pytest.raises(UsageError, match="cannot be trained"):
        open_tuning(other, data)
