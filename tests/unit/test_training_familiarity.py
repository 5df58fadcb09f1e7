"""Pictures that are unlike all that a model was trained on.

Properties: facts fitted for a model folder are read back as they were; a strange picture brings one warning,
by its number among several, and how strange it is is kept with the result; a familiar one, a prompt and a
model without facts bring none; damaged facts are a damaged model. Not tested: which pictures a real model
finds strange (`tests/benchmarks/quality/strange.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import trellis2
from tests.tiny_model import NOUNS, write_tiny_model
from trellis2.condition import unlike_training
from trellis2.known_pictures import fit_folder
from trellis2.pipeline import provenance
from trellis2.release import add_familiarity
from trellis2.settings import read_settings
from trellis2.stages import encode_picture
from trellis_core.errors import ModelError
from trellis_core.image.preprocess import preprocess_picture
from trellis_core.models.familiarity import FamiliarityFacts
from trellis_core.runtime import Runtime

FEW = {"steps": 1}
FAST = {"structure": FEW, "shape": FEW, "texture": FEW}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a grid small enough to make objects for."""
    folder = write_tiny_model(tmp_path_factory.mktemp("familiar") / "model")
    path = folder / "pipeline.json"
    pipeline = json.loads(path.read_text())
    pipeline["args"]["default_pipeline_type"] = "32"
    pipeline["args"]["pipeline_types"] = {
        "32": {
            "structure_resolution": 2,
            "image_size": 64,
            "resolution": 32,
            "shape_model": "shape_slat_flow_model_512",
            "texture_model": "tex_slat_flow_model_512",
        }
    }
    path.write_text(json.dumps(pipeline))
    return folder


def picture(color: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (80, 80))
    ImageDraw.Draw(image).ellipse([15, 10, 70, 70], fill=(*color, 255))
    return image


RED, BLUE = picture((210, 40, 30)), picture((20, 40, 220))


def sampled(folder: Path, **given):
    """The bundle, and the warnings on the way to it."""
    steps = []
    bundle = trellis2.load(folder, Runtime()).sample(**given, on_progress=steps.append, **FAST)
    return bundle, [step.warning for step in steps if step.warning]


@pytest.fixture(scope="module")
def knows_red(folder, tmp_path_factory) -> Path:
    """The model, and facts by which only the red picture is familiar."""
    folder = shutil.copytree(folder, tmp_path_factory.mktemp("familiar") / "red")
    tokens = {}
    pipeline = trellis2.load(folder, Runtime())
    with torch.inference_mode(), pipeline.networks.use("image_encoder", pipeline.runtime) as encoder:
        for image in (RED, BLUE):
            prepared = preprocess_picture(image, lambda each: each)
            tokens[id(image)] = encode_picture(encoder, [prepared], 64, pipeline.runtime).mean((0, 1))
    red, blue = tokens[id(RED)], tokens[id(BLUE)]
    apart = (red - blue).norm()
    direction = (blue - red)[None] / apart.square()  # the blue picture lies at 1
    add_familiarity(folder, FamiliarityFacts(red, direction, float(apart), 0.3))
    return folder


def test_a_model_without_facts_says_nothing(folder):
    add = json.loads((folder / "pipeline.json").read_text())["args"]
    assert "familiarity" not in add
    bundle, warnings = sampled(folder, picture=BLUE)
    assert warnings == []
    assert bundle.info["condition"] == {"kind": "picture"}


def test_a_strange_picture_brings_a_warning_that_names_what_the_model_knows(knows_red):
    bundle, warnings = sampled(knows_red, picture=BLUE)
    assert len(warnings) == 1
    assert warnings[0].startswith("this picture is unlike")
    assert all(noun in warnings[0] for noun in NOUNS)
    assert "larger model" in warnings[0]
    assert bundle.info["condition"]["familiarity"][0] < 1
    assert provenance(bundle)["condition"] == bundle.info["condition"]


def test_a_familiar_picture_and_a_prompt_bring_none(knows_red):
    bundle, warnings = sampled(knows_red, picture=RED)
    assert warnings == []
    assert bundle.info["condition"]["familiarity"][0] >= 1
    bundle, warnings = sampled(knows_red, prompt="a red chair")
    assert warnings == []
    assert "familiarity" not in bundle.info["condition"]


def test_each_of_several_pictures_is_looked_at(knows_red):
    bundle, warnings = sampled(knows_red, pictures=[RED, BLUE, RED])
    first, second, third = bundle.info["condition"]["familiarity"]
    assert (first >= 1, second >= 1, third >= 1) == (True, False, True)
    assert len(warnings) == 1 and warnings[0].startswith("picture 2 is unlike")


@pytest.mark.parametrize(
    ("familiarity", "start"),
    [
        ([], ""),
        ([1.0], ""),
        ([0.5], "this picture is"),
        ([0.5, 2], "picture 1 is"),
        ([0.1, 0.2], "pictures 1, 2 are"),
    ],
)
def test_the_warning_counts_pictures(familiarity, start):
    said = unlike_training(familiarity, None)
    assert said.startswith(start) and bool(said) == bool(start)


def test_facts_are_fitted_for_a_folder_and_read_back(folder, tmp_path):
    folder, done = shutil.copytree(folder, tmp_path / "model"), []
    facts = fit_folder(
        folder, Runtime(), seen=12, unseen=8, on_pictures=lambda n, count: done.append((n, count))
    )
    again = read_settings(folder / "pipeline.json").familiarity
    assert done[-1] == (20, 20)
    assert torch.allclose(again.directions, facts.directions, rtol=6e-3, atol=1e-6)
    assert again.limit == pytest.approx(facts.limit, rel=6e-3)
    assert len((folder / "pipeline.json").read_text().splitlines()) < 150  # numbers lie side by side


@pytest.mark.parametrize(
    "damage", [{"mean": [0.0]}, {"limit": 0}, {"rest": "much"}, {"directions": []}, {"mean": None}]
)
def test_damaged_facts_are_a_damaged_model(knows_red, tmp_path, damage):
    pipeline = json.loads((knows_red / "pipeline.json").read_text())
    pipeline["args"]["familiarity"].update(damage)
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline))
    with pytest.raises(ModelError):
        read_settings(tmp_path / "pipeline.json")


def test_missing_facts_of_familiarity_are_a_damaged_model(knows_red, tmp_path):
    pipeline = json.loads((knows_red / "pipeline.json").read_text())
    del pipeline["args"]["familiarity"]["limit"]
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline))
    with pytest.raises(ModelError):
        read_settings(tmp_path / "pipeline.json")
