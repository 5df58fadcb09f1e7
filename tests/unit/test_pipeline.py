"""A TRELLIS.2 pipeline from Python, on a tiny model in the released layout.

Properties: seeds reproduce; samples of one run differ; runs can be cancelled between steps; bundles
carry everything decoding needs and refuse other models; a lowered resolution is reported.
Not tested here: numbers (parity) and the quality of meshes (asset tests).
"""

import pytest
import torch
from PIL import Image, ImageDraw

import trellis2
from tests.tiny_model import write_tiny_model
from trellis2 import stages
from trellis2.pipeline import provenance
from trellis_core.errors import Cancelled, InputError, ModelError, UsageError
from trellis_core.geometry.asset import ExportSettings
from trellis_core.geometry.types import Mesh
from trellis_core.runtime import Runtime
from trellis_core.weights.bundle import Bundle

FEW = {"steps": 1}
FAST = {"structure": FEW, "shape": FEW, "texture": FEW}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def pipeline(folder):
    return trellis2.load(folder, Runtime())


@pytest.fixture(scope="module")
def picture():
    image = Image.new("RGBA", (96, 80))
    ImageDraw.Draw(image).ellipse([20, 10, 70, 70], fill=(200, 40, 40, 255))
    return image


@pytest.fixture(scope="module")
def bundle(pipeline, picture):
    return pipeline.sample(picture, seed=1, **FAST)


def test_the_same_seed_gives_the_same_latents(pipeline, picture, bundle):
    again = pipeline.sample(picture, seed=1, **FAST)
    assert all(torch.equal(bundle.tensors[name], again.tensors[name]) for name in bundle.tensors)


def test_another_seed_gives_other_latents(pipeline, picture, bundle):
    other = pipeline.sample(picture, seed=2, **FAST)
    assert not torch.equal(bundle.tensors["shape_latent"], other.tensors["shape_latent"])


def test_the_host_programs_random_numbers_are_left_alone(pipeline, picture):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pipeline.sample(picture, seed=1, **FAST)
    assert torch.equal(torch.rand(3), expected)


def test_several_samples_of_one_run_are_different_objects(pipeline, picture):
    bundle = pipeline.sample(picture, num_samples=2, **FAST)
    first, second = pipeline.decode(bundle)
    assert sorted(set(bundle.tensors["coords"][:, 0].tolist())) == [0, 1]
    assert len(first.mesh.faces) > 0
    assert len(second.mesh.faces) > 0
    assert first.mesh.vertices.shape != second.mesh.vertices.shape


def test_a_run_gives_an_asset_that_can_be_saved(pipeline, picture, tmp_path):
    steps = []
    asset = pipeline.run(
        picture, seed=1, export=ExportSettings(texture_size=64), on_progress=steps.append, **FAST
    )
    path = asset.save(tmp_path / "asset.glb")
    assert path.read_bytes()[:4] == b"glTF"
    assert asset.extras["seed"] == 1
    order = list(dict.fromkeys(step.stage for step in steps))
    assert order[:6] == ["picture", "condition", "structure", "shape", "texture", "decode"]
    assert all(step.step <= step.steps for step in steps)


@pytest.mark.parametrize("stage", ["picture", "condition", "structure", "shape", "texture"])
def test_every_stage_can_be_cancelled(pipeline, picture, stage):
    seen = []
    with pytest.raises(Cancelled, match="stopped"):
        pipeline.sample(
            picture, on_progress=lambda step: seen.append(step.stage), cancel=lambda: stage in seen, **FAST
        )
    assert seen[-1] == stage


def test_a_bundle_decodes_the_same_after_saving(pipeline, bundle, tmp_path):
    path = bundle.save(tmp_path / "run.trellis")
    before = pipeline.decode(bundle)[0]
    after = pipeline.decode(Bundle.load(path))[0]
    assert torch.equal(before.mesh.vertices, after.mesh.vertices)
    assert torch.equal(before.voxels.attrs, after.voxels.attrs)


def test_a_bundle_of_another_model_is_refused(pipeline, bundle):
    foreign = Bundle(bundle.tensors, {**bundle.info, "model": {"name": "other", "fingerprint": "0"}})
    with pytest.raises(InputError, match="other") as error:
        pipeline.decode(foreign)
    assert "--model other" in error.value.hint


def test_the_origin_of_an_asset_is_json(bundle):
    facts = provenance(bundle)
    assert facts["seed"] == 1
    assert facts["samplers"]["shape"]["steps"] == 1


def test_an_unknown_type_is_refused_before_anything_runs(pipeline, picture):
    with pytest.raises(UsageError, match="1536_cascade"):
        pipeline.sample(picture, pipeline_type="1536_cascade")


def test_a_model_with_a_missing_network_is_refused(folder, tmp_path):
    copy = tmp_path / "model"
    (copy / "ckpts").mkdir(parents=True)
    for path in folder.rglob("*.*"):
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy / "ckpts" / "tex_slat_decoder.safetensors").unlink()
    with pytest.raises(ModelError, match="tex_slat_decoder"):
        trellis2.load(copy, Runtime())


def test_an_empty_structure_says_what_to_do():
    with pytest.raises(InputError, match="no object") as error:
        stages.occupied_cells(torch.full((1, 1, 8, 8, 8), -1.0), 4)
    assert "--seed" in error.value.hint


def test_occupied_cells_are_pooled_to_the_token_grid():
    logits = torch.full((2, 1, 8, 8, 8), -1.0)
    logits[0, 0, 7, 0, 3] = 1.0
    logits[1, 0, 0, 0, 0] = 1.0
    assert stages.occupied_cells(logits, 4).tolist() == [[0, 3, 0, 1], [1, 0, 0, 0]]


def test_a_cascade_lowers_its_resolution_in_steps_until_the_tokens_fit():
    grid = torch.arange(512, dtype=torch.int32)[::4]
    line = torch.stack([torch.zeros_like(grid), grid, grid, grid], dim=1)
    whole = stages.cascade_tokens(line, 512, 1536, 10_000)
    assert (whole.resolution, len(whole.coords)) == (1536, 96)
    fewer = stages.cascade_tokens(line, 512, 1536, 90)
    assert (fewer.resolution, len(fewer.coords)) == (1408, 88)
    assert stages.cascade_tokens(line, 512, 1536, 1).resolution == 1024


def test_a_mesh_is_painted_and_keeps_its_shape(pipeline, picture, tmp_path):
    corners = torch.tensor([[x, y, z] for x in (0, 2) for y in (0, 3) for z in (0, 4)], dtype=torch.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], dtype=torch.int32)
    asset = pipeline.texture(
        Mesh(corners, faces), picture, texture=FEW, export=ExportSettings(texture_size=64)
    )
    extent = asset.mesh.vertices.amax(0) - asset.mesh.vertices.amin(0)
    assert torch.allclose(extent, torch.tensor([0.5, 0.75, 1.0]), atol=1e-3)
    assert len(asset.mesh.faces) == 12
    assert asset.save(tmp_path / "box.glb").stat().st_size > 0


def test_a_mesh_without_faces_is_refused(pipeline, picture):
    empty = Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int32))
    with pytest.raises(InputError, match="no faces"):
        pipeline.texture(empty, picture)
