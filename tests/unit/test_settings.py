"""Released pipeline files become frozen settings, once.

Not tested here: that the samplers do what the settings say (test_sampling).
"""

import json
from pathlib import Path

import pytest

from trellis2.settings import RELEASED_TYPES, read_settings, sampler_settings
from trellis_core.errors import ModelError, UsageError
from trellis_core.sampling.schedule import override

RELEASED = Path(__file__).parents[2] / "configs" / "trellis2" / "trellis2-4b"


def test_the_released_pipeline_file_is_understood():
    settings = read_settings(RELEASED / "pipeline.json")
    assert settings.default_pipeline_type == "1024_cascade"
    assert list(settings.pipeline_types) == ["512", "1024", "1024_cascade", "1536_cascade"]
    assert settings.structure_sampler.guidance_scale == 7.5
    assert settings.structure_sampler.guidance_rescale == 0.7
    assert settings.structure_sampler.rescale_t == 5.0
    assert settings.shape_sampler.guidance_interval == (0.6, 1.0)
    assert settings.texture_sampler.guidance_scale == 1.0
    assert len(settings.shape_normalization.mean) == len(settings.texture_normalization.std) == 32
    assert settings.image_encoder == "facebook/dinov3-vitl16-pretrain-lvd1689m"


def test_the_released_texturing_file_is_understood():
    settings = read_settings(RELEASED / "texturing_pipeline.json")
    assert "shape_slat_encoder" in settings.models
    assert settings.texture_sampler.steps == 12


@pytest.mark.parametrize(
    ("name", "structure", "passes", "resolution"),
    [
        ("512", 32, [("shape_slat_flow_model_512", 512)], 512),
        ("1024", 64, [("shape_slat_flow_model_1024", 1024)], 1024),
        (
            "1024_cascade",
            32,
            [("shape_slat_flow_model_512", 512), ("shape_slat_flow_model_1024", 1024)],
            1024,
        ),
        (
            "1536_cascade",
            32,
            [("shape_slat_flow_model_512", 512), ("shape_slat_flow_model_1024", 1024)],
            1536,
        ),
    ],
)
def test_pipeline_types_combine_the_released_flows(name, structure, passes, resolution):
    kind = RELEASED_TYPES[name]
    assert kind.structure_resolution == structure
    assert [(p.model, p.image_size) for p in kind.shape_passes] == passes
    assert kind.resolution == resolution
    assert kind.texture_model == passes[-1][0].replace("shape", "tex")


def test_samplers_without_guidance_run_the_conditional_network_only():
    entry = {"name": "FlowEulerSampler", "args": {"sigma_min": 1e-5}, "params": {"steps": 7}}
    settings = sampler_settings(entry)
    assert (settings.steps, settings.guidance_scale) == (7, 1.0)


def test_overrides_replace_entries_and_none_keeps_them():
    settings = read_settings(RELEASED / "pipeline.json").shape_sampler
    changed = override(settings, {"steps": 20, "guidance_scale": None})
    assert (changed.steps, changed.guidance_scale) == (20, 7.5)
    with pytest.raises(UsageError, match="strength"):
        override(settings, {"strength": 3})


def test_an_unknown_pipeline_type_names_the_known_ones():
    with pytest.raises(UsageError) as error:
        read_settings(RELEASED / "pipeline.json").pipeline_type("2048")
    assert "1024_cascade" in error.value.hint


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({"args": {}}),
        lambda text: text.replace('"tex_slat_normalization"', '"slat_normalization"'),
    ],
)
def test_damaged_files_are_model_errors(tmp_path, damage):
    path = tmp_path / "pipeline.json"
    path.write_text(damage((RELEASED / "pipeline.json").read_text()))
    with pytest.raises(ModelError, match=r"pipeline\.json"):
        read_settings(path)


def test_a_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_settings(tmp_path / "pipeline.json")
