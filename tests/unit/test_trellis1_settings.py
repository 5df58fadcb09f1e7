"""Released `pipeline.json` files of TRELLIS v1 as settings, and the wrong advice undone.

Properties: strengths become scales once; encoders get names that the hub knows; former owners are the present
one; damaged files say what is wrong; a repaired file is the released one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trellis.repair import repair_pipeline
from trellis.settings import read_settings, sampler_settings
from trellis_core.errors import ModelError, UsageError
from trellis_core.sampling.schedule import override, timesteps

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trellis"
MODELS = ("image-large", "text-base", "text-large", "text-xlarge")


def released(model: str) -> Path:
    return CONFIGS / model / "pipeline.json"


@pytest.mark.parametrize("model", MODELS)
def test_released_files_are_read(model):
    settings = read_settings(released(model))
    picture = model == "image-large"
    assert settings.structure_sampler.guidance_scale == (6.0 if picture else 8.5)
    assert settings.latent_sampler.guidance_interval == ((0.5, 1.0) if picture else (0.5, 0.95))
    assert settings.structure_sampler.steps == 25
    assert settings.structure_sampler.rescale_t == 3.0
    assert (settings.image_encoder is None, settings.text_encoder is None) == (not picture, picture)
    assert settings.formats == ("mesh", "gaussians", "radiance_field")
    assert len(settings.normalization.mean) == len(settings.normalization.std) == 8
    assert not any("JeffreyXiang" in path for path in settings.references.values())
    assert len(settings.references) == 7


def test_encoders_are_looked_for_where_safetensors_are_published():
    assert read_settings(released("image-large")).image_encoder == "facebook/dinov2-with-registers-large"
    assert read_settings(released("text-base")).text_encoder == "openai/clip-vit-large-patch14"


@pytest.mark.parametrize(
    ("name", "params", "scale", "interval"),
    [
        ("FlowEulerSampler", {"cfg_strength": 3.0}, 1.0, (0.0, 1.0)),
        ("FlowEulerCfgSampler", {"cfg_strength": 7.5}, 8.5, (0.0, 1.0)),
        ("FlowEulerCfgSampler", {}, 4.0, (0.0, 1.0)),
        ("FlowEulerGuidanceIntervalSampler", {"cfg_interval": [0.2, 0.8]}, 4.0, (0.2, 0.8)),
        ("FlowEulerGuidanceIntervalSampler", {"cfg_strength": 0.0}, 1.0, (0.0, 1.0)),
    ],
)
def test_released_samplers_are_translated(name, params, scale, interval):
    settings = sampler_settings({"name": name, "args": {"sigma_min": 1e-5}, "params": params})
    assert (settings.guidance_scale, settings.guidance_interval, settings.steps) == (scale, interval, 50)


@pytest.mark.parametrize(
    ("steps", "interval", "guided"), [(25, (0.5, 1), 19), (25, (0.5, 0.95), 15), (12, (0.5, 1), 10)]
)
def test_as_many_steps_are_guided_as_released(steps, interval, guided):
    times = timesteps(steps, 3.0)[:-1]
    assert sum(interval[0] <= t <= interval[1] for t in times) == guided


def test_single_settings_can_be_changed():
    settings = read_settings(released("image-large")).latent_sampler
    assert override(settings, {"steps": 12, "guidance_scale": None}).steps == 12
    assert override(settings, {"steps": 12, "guidance_scale": None}).guidance_scale == 6.0
    with pytest.raises(UsageError, match="cfg_strength"):
        override(settings, {"cfg_strength": 3})


def test_a_missing_file_and_a_damaged_one_say_so(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_settings(tmp_path / "pipeline.json")
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        read_settings(tmp_path / "pipeline.json")
    (tmp_path / "pipeline.json").write_text('{"args": {"models": {}}}')
    with pytest.raises(ModelError, match="slat_normalization"):
        read_settings(tmp_path / "pipeline.json")


@pytest.mark.parametrize("model", MODELS)
def test_the_wrong_advice_is_recognised_and_undone(model, tmp_path):
    path = tmp_path / "pipeline.json"
    content = json.loads(released(model).read_text())
    right = dict(content["args"]["models"])
    content["args"]["models"]["slat_flow_model"] = right["sparse_structure_flow_model"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="structure flow") as caught:
        read_settings(path)
    assert "trellis doctor" in caught.value.hint
    assert repair_pipeline(path) == right["slat_flow_model"]
    assert json.loads(path.read_text())["args"]["models"] == right
    assert repair_pipeline(path) is None


def test_repairing_a_link_leaves_its_target_alone(tmp_path):
    content = json.loads(released("text-base").read_text())
    content["args"]["models"]["slat_flow_model"] = content["args"]["models"]["sparse_structure_flow_model"]
    blob, link = tmp_path / "blob", tmp_path / "pipeline.json"
    blob.write_text(json.dumps(content))
    link.symlink_to(blob)
    repair_pipeline(link)
    assert json.loads(blob.read_text()) == content
    assert not link.is_symlink()
