"""`trellis train` with TRELLIS v1 models and recipes, at toy size.

Properties: the version of the recipe, or of the model that is fine-tuned, decides who trains it.
Not tested here: what a stage learns (test_trellis1_training).
"""

# ruff: noqa: F401, F811  (a fixture is imported)
from __future__ import annotations

import pytest

from tests.tiny_trellis1 import write_tiny_trellis1
from tests.unit.test_trellis1_training import data


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_trellis1(tmp_path_factory.mktemp("v1") / "pictures")


def test_a_flow_of_a_model_is_fine_tuned_and_continued(run, data, model, tmp_path):
    common = ("train", "--from", model, "--stage", "latent_flow", "--lora-rank", 2, "--data", data)
    common += ("--run", "mine", "--samples", 0, "--json")
    first = run(*common, "--steps", 1)
    assert first.code == 0, first.err
    assert first.json["recipe"] == "pictures-latent-flow"
    assert first.json["step"] == 1
    more = run(*common, "--steps", 2, "--resume")
    assert more.code == 0, more.err
    assert more.json["step"] == 2
    assert (tmp_path / more.json["outputs"][0]).is_file()


def test_a_stage_of_the_other_version_is_wrong_usage_and_the_right_ones_are_named(
    run,
    data,
    model,
    tiny_model,
):
    said = run("train", "--from", model, "--stage", "shape_flow", "--data", data, "--run", "a")
    said.assert_one_error(2)
    assert "latent_flow" in said.err
    said = run("train", "--from", tiny_model, "--stage", "latent_flow", "--data", data, "--run", "a")
    said.assert_one_error(2)
    assert "shape_flow" in said.err
