"""Recipes of the released runs, what they cost, the data they read and the loop that follows them.

Properties: every recipe is read, names networks of the published size and a known kind of data; a wrong entry
is an error that says where; the footprint is what autograd keeps; filters drop what they say; a run that is
interrupted and continued equals one that is not, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trellis2.models import MODELS
from trellis2.weights import CHECKPOINTS
from trellis_core.errors import ModelError, UsageError
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.batching import SampleOrder
from trellis_core.training.data import KINDS, ROLES, crop_condition, layout_of, read_catalog
from trellis_core.training.footprint import activations_of, adapter_parameters, estimate
from trellis_core.training.lora import add_lora
from trellis_core.training.recipes import (
    AdamSettings,
    BatchSettings,
    ClipSettings,
    ConditionSettings,
    DataSettings,
    NetworkFacts,
    Recipe,
    find_recipes,
    read_recipe,
)
from trellis_core.training.released import RunSettings, Trainee, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = [CONFIGS / "trellis2" / "recipes", CONFIGS / "trellis" / "recipes"]
NAMES = sorted(find_recipes(FOLDERS))

# batch per GPU, splits, learning rate, limit of tokens or voxels: the tables of the released runs
RUNS = {
    "trellis2-shape-vae-256": (8, 2, 1e-4, 1_000_000),
    "trellis2-shape-vae-512": (4, 2, 1e-5, 1_000_000),
    "trellis2-texture-vae-256": (8, 1, 1e-4, 1_000_000),
    "trellis2-texture-vae-512": (4, 2, 1e-5, 1_000_000),
    "trellis2-structure": (8, 4, 1e-4, None),
    "trellis2-shape-512": (8, 2, 1e-4, 8192),
    "trellis2-shape-1024": (2, 1, 2e-5, 32768),
    "trellis2-texture-512": (8, 2, 1e-4, 8192),
    "trellis2-texture-1024": (2, 1, 2e-5, 32768),
    "trellis-structure-vae": (4, 1, 1e-4, None),
    "trellis-latent-vae-gaussians": (4, 2, 1e-4, 32768),
    "trellis-latent-vae-field": (4, 2, 1e-4, 32768),
    "trellis-latent-vae-mesh": (4, 4, 1e-4, 32768),
    "trellis-structure-image-large": (8, 1, 1e-4, None),
    "trellis-structure-text-base": (16, 1, 1e-4, None),
    "trellis-structure-text-large": (8, 1, 1e-4, None),
    "trellis-structure-text-xlarge": (4, 1, 1e-4, None),
    "trellis-latent-image-large": (8, 4, 1e-4, 32768),
    "trellis-latent-text-base": (16, 4, 1e-4, 32768),
    "trellis-latent-text-large": (8, 4, 1e-4, 32768),
    "trellis-latent-text-xlarge": (4, 4, 1e-4, 32768),
}


def test_there_is_a_recipe_for_every_released_run():
    assert set(NAMES) == set(RUNS)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_read_and_says_what_the_released_run_did(name):
    recipe = read_recipe(name, FOLDERS)
    limit = recipe.data.max_tokens or recipe.data.max_voxels
    assert (recipe.batch.per_gpu, recipe.batch.splits, recipe.optimizer.rate, limit) == RUNS[name]
    assert recipe.name == name and recipe.steps == 1_000_000 and recipe.ema == 0.9999
    assert recipe.is_flow == (recipe.times is not None) == (recipe.condition is not None)
    assert recipe.fine_tunes is None or recipe.fine_tunes in NAMES
    assert set(KINDS[recipe.data.kind].roles) <= set(ROLES)
    assert len(layout_of(recipe.data)) > len(KINDS[recipe.data.kind].roles)
    footprint = estimate(recipe)
    assert 0 < footprint.activations.recomputed < footprint.activations.kept
    assert footprint.trained == recipe.parameters


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("trellis2-")])
def test_the_networks_of_a_recipe_have_the_published_number_of_parameters(name):
    """Stored as 16-bit numbers, with a header of at most 100 kB."""
    recipe = read_recipe(name, FOLDERS)
    raw = json.loads((FOLDERS[0] / f"{name}.json").read_text())
    for network, facts in recipe.trains.items():
        stem = raw["trains"][network]["config"].removeprefix("trellis2-4b/")
        assert 0 < CHECKPOINTS[stem].bytes - 2 * facts.parameters < 100_000
        assert facts.config["name"] in MODELS


CHANGES: list[tuple[Callable[[dict], object], str]] = [
    (lambda r: r.pop("steps"), "lacks `steps`"),
    (lambda r: r.update(stepz=3), "unknown entry `stepz`; did you mean steps"),
    (lambda r: r["batch"].update(splits=3), "`batch`.*cannot be split"),
    (lambda r: r["optimizer"].update(betas=[0.9]), r"`optimizer.betas` must be a list of 2"),
    (lambda r: r["optimizer"].update(rate="fast"), "`optimizer.rate` must be of type float"),
    (lambda r: r.update(precision="float8"), "`precision` is 'float8'; it must be one of"),
    (lambda r: r["data"].update(max_token=3), "`data` has an unknown entry `max_token`"),
    (lambda r: r.update(steps=True), "`steps` must be of type int"),
    (
        lambda r: r["trains"].update(x={"config": "trellis2-4b/ckpts/nothing", "parameters": 1}),
        "cannot be read",
    ),
    (lambda r: r.update(elastic=[]), "`elastic` must be an object"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_a_wrong_entry_is_named(tmp_path, change, said):
    content = json.loads((FOLDERS[0] / "trellis2-shape-512.json").read_text())
    for facts in content["trains"].values():
        facts["config"] = {"name": "SLatFlowModel", "args": {}}
    change(content)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said) as caught:
        read_recipe(tmp_path / "recipes" / "mine.json")
    assert caught.value.hint


def test_an_unknown_recipe_offers_the_nearest_names():
    with pytest.raises(UsageError) as caught:
        read_recipe("trellis2-shape512", FOLDERS)
    assert "trellis2-shape-512" in caught.value.hint


# --- what it costs -----------------------------------------------------------------------------------


def kept_bytes(compute: Callable[[], torch.Tensor], parameters: set[int]) -> int:
    """What autograd keeps for the backward pass, beside parameters."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held = compute()  # alive while we count: freed storages would be used again
    assert held.requires_grad
    return sum(kept.values())


FLOW = {
    "resolution": 8,
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 96,
    "cond_channels": 64,
    "num_blocks": 4,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "pe_mode": "rope",
    "share_mod": True,
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}


def tiny_recipe(config: dict, **changes) -> Recipe:
    recipe = Recipe(
        name="tiny",
        summary="",
        version="trellis2",
        stage="structure_flow",
        trains={"net": NetworkFacts(config=config, parameters=0)},
        data=DataSettings(kind="structure_latents", resolution=32),
        batch=BatchSettings(per_gpu=2, splits=1),
        optimizer=AdamSettings(rate=0.05),
        precision="float32",
        steps=12,
        condition=ConditionSettings(kind="image", tokens=9),
        clip=ClipSettings(window=4),
        ema=0.9,
        log_every=2,
    )
    return replace(recipe, **changes)


def test_the_footprint_of_a_flow_is_what_autograd_keeps():
    torch.manual_seed(0)
    flow = SparseStructureFlowModel(**FLOW)
    mine = {p.untyped_storage().data_ptr() for p in flow.parameters()}
    x, cond = torch.randn(1, 8, 8, 8, 8), torch.randn(1, 9, 64)
    measured = kept_bytes(lambda: flow(x, torch.tensor([500.0]), cond), mine)
    predicted = activations_of({"name": "SparseStructureFlowModel", "args": FLOW}, tiny_recipe({}))
    assert measured == pytest.approx(predicted.kept, rel=0.3)


def test_the_footprint_of_a_dense_autoencoder_is_what_autograd_keeps():
    torch.manual_seed(0)
    args = {
        "in_channels": 1,
        "latent_channels": 4,
        "num_res_blocks": 2,
        "num_res_blocks_middle": 2,
        "channels": [16, 32],
    }
    encoder = MODELS["SparseStructureEncoder"](**args)
    mine = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    measured = kept_bytes(lambda: encoder(torch.rand(1, 1, 32, 32, 32))[0], mine)
    predicted = activations_of({"name": "SparseStructureEncoder", "args": args}, tiny_recipe({}))
    assert measured == pytest.approx(predicted.kept, rel=0.35)


def test_the_footprint_of_a_sparse_autoencoder_is_what_autograd_keeps():
    torch.manual_seed(0)
    block, down = "SparseConvNeXtBlock3d", "SparseResBlockS2C3d"
    args = {
        "model_channels": [32, 64, 128],
        "latent_channels": 4,
        "num_blocks": [1, 2, 2],
        "block_type": [block] * 3,
        "down_block_type": [down] * 2,
        "block_args": [{}] * 3,
    }
    encoder = MODELS["FlexiDualGridVaeEncoder"](**args)
    mine = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    grid = torch.cartesian_prod(*[torch.arange(48)] * 3)
    shell = grid[((grid - 23.5).norm(dim=1) - 20).abs() < 0.8]
    coords = torch.cat([torch.zeros_like(shell[:, :1]), shell], 1).int()
    position = SparseTensor(torch.rand(len(coords), 3), coords, 1)
    measured = kept_bytes(lambda: encoder(position, torch.ones(len(coords), 3).bool())[0].feats, mine)
    data = DataSettings(kind="dual_grids", resolution=48, max_voxels=len(coords))
    predicted = activations_of(
        {"name": "FlexiDualGridVaeEncoder", "args": args}, tiny_recipe({}, data=data, stage="shape_vae")
    )
    assert measured == pytest.approx(predicted.kept, rel=0.35)


def test_an_adapter_has_the_size_that_is_predicted():
    flow = MODELS["SLatFlowModel"](**FLOW)
    lora = add_lora(flow, rank=5)
    facts = NetworkFacts(config={"name": "SLatFlowModel", "args": FLOW}, parameters=0)
    assert sum(p.numel() for p in lora.parameters()) == adapter_parameters(facts, 5)


# --- data --------------------------------------------------------------------------------------------


def write_tables(folder: Path) -> None:
    (folder / "lat").mkdir(parents=True)
    (folder / "views").mkdir()
    (folder / "data_64.json").write_text(
        json.dumps({"mine": {"base": ".", "shape_latent": "lat", "render_cond": "views"}})
    )
    (folder / "metadata.csv").write_text("sha256,aesthetic_score\na,5.0\nb,\nc,3.0\nd,5.0\ne,5.0\n")
    rows = "".join(f"{sha},True,{tokens}\n" for sha, tokens in zip("abcd", (10, 20, 30, 9000), strict=True))
    (folder / "lat" / "metadata.csv").write_text("sha256,shape_latent_encoded,shape_latent_tokens\n" + rows)
    rows = "".join(f"{sha},True\n" for sha in "abcd")
    (folder / "views" / "metadata.csv").write_text("sha256,cond_rendered\n" + rows)


def test_filters_drop_what_they_say_and_count_it(tmp_path):
    write_tables(tmp_path)
    settings = DataSettings(kind="shape_latents", resolution=64, min_aesthetic_score=4.5, max_tokens=8192)
    catalog = read_catalog(tmp_path, settings)
    assert {e.sha256: e.load for e in catalog.entries} == {"a": 10, "b": 20}  # b has no score
    assert catalog.dropped == {
        "aesthetic score below 4.5": 1,
        "more than 8,192 tokens": 1,
        "no shape latent": 1,
    }
    assert not catalog.missing


def test_what_a_folder_lacks_is_listed(tmp_path):
    settings = DataSettings(kind="texture_latents", resolution=64)
    assert "data_64.json" in read_catalog(tmp_path, settings).missing[0]
    write_tables(tmp_path)
    missing = read_catalog(tmp_path, settings).missing
    assert any("`pbr_latent`" in sentence for sentence in missing)
    (tmp_path / "lat" / "metadata.csv").unlink()
    missing = read_catalog(tmp_path, replace(settings, kind="shape_latents")).missing
    assert any("lat/metadata.csv" in sentence for sentence in missing)


def test_a_condition_is_cropped_to_what_is_seen_and_lies_on_black():
    from PIL import Image

    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 255, 0, 128), (10, 20, 30, 40))
    image = crop_condition(picture, 32)
    assert image.shape == (3, 32, 32)
    assert image[1, 4:28, 4:28].mean() == pytest.approx(128 / 255, abs=0.01)
    assert float(image[0, 8:24, 8:24].max()) == 0


# --- the loop ----------------------------------------------------------------------------------------


def trained(folder: Path, pieces: tuple[int, ...], *, inflated: bool = False, splits: int = 1, **changes):
    """A small regression in pieces; each piece is a new process as far as the loop can tell."""
    data = torch.randn(10, 3, generator=torch.Generator().manual_seed(5))
    for end in pieces:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        if inflated:
            model.half()
        recipe = tiny_recipe({}, batch=BatchSettings(per_gpu=4, splits=splits), **changes)
        trainee = Trainee(model, recipe, SampleOrder(10, seed=1), inflated=inflated)
        generator = torch.Generator().manual_seed(3)

        def losses_of(indices, model=model, generator=generator):
            noise = 0 if splits > 1 else 0.01 * torch.randn(len(indices), 1, generator=generator)
            x = data[list(indices)]
            out = model(x.half() if inflated else x).float()
            return {"loss": (out - x.sum(1, keepdim=True) + noise).square().mean()}

        run(
            trainee,
            losses_of,
            RunSettings(steps=end),
            checkpoint=folder / "training.safetensors",
            generators={"noise": generator},
        )
    return trainee


@pytest.mark.parametrize("inflated", [False, True])
def test_a_run_in_pieces_equals_one_in_one_piece_bit_for_bit(tmp_path, inflated):
    whole = trained(tmp_path / "a", (12,), inflated=inflated)
    parts = trained(tmp_path / "b", (3, 5, 12), inflated=inflated)
    assert parts.step == whole.step == 12
    for name, value in whole.weights().items():
        assert torch.equal(parts.weights()[name], value)
        assert torch.equal(parts.average[name], whole.average[name])
    assert parts.clip.state_dict() == whole.clip.state_dict()
    assert parts.order.state_dict() == whole.order.state_dict()


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path):
    whole = trained(tmp_path / "a", (5,), splits=2)
    single = trained(tmp_path / "b", (5,), splits=4)
    for name, value in whole.weights().items():
        assert torch.allclose(single.weights()[name], value, rtol=1e-5, atol=1e-6)


def test_the_average_follows_the_weights_and_warm_up_slows_the_start(tmp_path):
    fast = trained(tmp_path / "a", (1,))
    slow = trained(tmp_path / "b", (1,), optimizer=AdamSettings(rate=0.05, warm_up=10))
    torch.manual_seed(0)
    start = nn.Linear(3, 1).weight.detach()
    moved = (fast.weights()["weight"] - start).abs().max(), (slow.weights()["weight"] - start).abs().max()
    assert moved[1].item() == pytest.approx(moved[0].item() / 10, rel=1e-3)
    between = (fast.average["weight"] - start) / (fast.weights()["weight"].detach() - start)
    assert torch.allclose(between, torch.full_like(between, 0.9), atol=1e-4)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trained(tmp_path, (1,))
    trainee = Trainee(nn.Linear(4, 1), tiny_recipe({}), SampleOrder(10), inflated=False)
    with pytest.raises(ModelError, match="another run"):
        trainee.load(tmp_path / "training.safetensors", {})
