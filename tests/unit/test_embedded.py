"""The model that travels in the package.

Properties: it is made of the classes of the 4B model, and CLIP's for text, and lies in the released layout;
sizes stay small; inference imports nothing of the dataset or of training; a picture, several pictures or a
sentence become a mesh with material, in the color that the sentence names; the same seed gives the same
result. Not tested: how good it looks (`tests/benchmarks/embedded_sheet.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trellis2
from trellis2.models import MODELS
from trellis2.settings import read_settings
from trellis_core.weights.load import load_model

EMBEDDED = Path(trellis2.__file__).parent / "_embedded"
EXAMPLES = Path(__file__).parents[2] / "examples"
STEMS = sorted(path.with_suffix("") for path in (EMBEDDED / "ckpts").glob("*.safetensors"))


@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem.name)
def test_every_checkpoint_loads_strictly_into_a_class_of_the_4b_model(stem):
    network = load_model(stem, MODELS)
    assert type(network) is MODELS[json.loads(stem.with_suffix(".json").read_text())["name"]]
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_the_classes_are_those_that_the_released_files_name():
    names = {json.loads(stem.with_suffix(".json").read_text())["name"] for stem in STEMS}
    assert names == {
        "CLIPTextEncoder",
        "DINOv3ViT",
        "SparseStructureEncoder",
        "SparseStructureDecoder",
        "SparseStructureFlowModel",
        "FlexiDualGridVaeEncoder",
        "FlexiDualGridVaeDecoder",
        "SparseUnetVaeEncoder",
        "SparseUnetVaeDecoder",
        "SLatFlowModel",
    }


def test_the_model_is_at_most_20_mb():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 20_000_000


def test_the_pipeline_files_name_what_is_there():
    for file in ("pipeline.json", "texturing_pipeline.json"):
        settings = read_settings(EMBEDDED / file)
        kind = settings.pipeline_type(None)
        assert kind.resolution == 128
        for path in (*settings.models.values(), settings.image_encoder):
            assert (EMBEDDED / f"{path}.safetensors").exists()


def test_inference_imports_nothing_of_training():
    code = (
        "import sys, trellis2; from PIL import Image;"
        f"p = trellis2.load('embedded'); b = p.sample(Image.open({str(EXAMPLES / 'mug.png')!r}), seed=1,"
        "structure={'steps': 2}, shape={'steps': 1}, texture={'steps': 1}); p.decode(b);"
        "banned = ('train', 'synthetic', 'trellis2.release', 'workshop');"
        "print([m for m in sys.modules if 'trellis' in m and any(b in m for b in banned)])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def pipeline():
    return trellis2.load("embedded")


@pytest.mark.parametrize("name", ["chair", "mug", "rocket"])
def test_a_picture_becomes_a_mesh_with_material(pipeline, name):
    bundle = pipeline.sample(EXAMPLES / f"{name}.png", seed=42)
    shape = pipeline.decode(bundle)[0]
    extent = shape.mesh.vertices.amax(dim=0) - shape.mesh.vertices.amin(dim=0)
    assert len(shape.mesh.faces) > 500
    assert 0.6 < extent.max() <= 1.05
    assert torch.isfinite(shape.voxels.attrs).all()
    assert len(shape.voxels.coords) == len(shape.mesh.vertices)


@pytest.mark.parametrize(
    ("prompt", "color"), [("a red mug", (0.8, 0.12, 0.1)), ("a tall yellow vase", (0.95, 0.8, 0.18))]
)
def test_a_sentence_becomes_a_mesh_in_its_color(pipeline, prompt, color):
    shape = pipeline.decode(pipeline.sample(prompt=prompt, seed=42))[0]
    seen = shape.voxels.attrs[:, :3].median(dim=0).values
    assert len(shape.mesh.faces) > 500
    assert (seen - torch.tensor(color)).abs().max() < 0.15


def test_the_order_of_parts_in_a_sentence_matters(pipeline):
    def top_and_bottom(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        voxels = pipeline.decode(pipeline.sample(prompt=prompt, seed=1))[0].voxels
        height = voxels.coords[:, 2].float()
        low, high = height.quantile(0.15), height.quantile(0.9)
        return voxels.attrs[height >= high, :3].mean(dim=0), voxels.attrs[height <= low, :3].mean(dim=0)

    for prompt, red in (("a red table with blue legs", True), ("a blue table with red legs", False)):
        top, bottom = top_and_bottom(prompt)
        assert (top[0] > top[2]) == red
        assert (bottom[0] > bottom[2]) != red


def test_several_pictures_become_one_object(pipeline):
    pictures = [EXAMPLES / "mug.png", EXAMPLES / "mug.png"]
    shape = pipeline.decode(pipeline.sample(pictures=pictures, mode="multidiffusion", seed=1))[0]
    assert len(shape.mesh.faces) > 500


def test_the_same_seed_gives_the_same_latents(pipeline):
    first, second = (pipeline.sample(EXAMPLES / "mug.png", seed=3).tensors for _ in range(2))
    assert torch.equal(first["shape_latent"], second["shape_latent"])
    assert torch.equal(first["texture_latent"], second["texture_latent"])


def test_a_run_from_picture_to_file_ends_with_a_textured_mesh(pipeline, tmp_path):
    asset = pipeline.run(EXAMPLES / "rocket.png", seed=42)
    path = asset.save(tmp_path / "rocket.glb")
    assert path.stat().st_size > 10_000
    assert path.read_bytes()[:4] == b"glTF"
