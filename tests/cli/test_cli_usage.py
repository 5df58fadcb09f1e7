"""What options mean, and what wrong ones get: exit code 2, one line, one hint."""

from __future__ import annotations

import json

import pytest

from trellis_cli.options import (
    PIPELINE_OF,
    Resolution,
    Subject,
    parse_kernels,
    pipeline_name,
    sampler_changes,
)
from trellis_core.errors import UsageError

NOTHING = (None, None, None)


def test_without_options_the_model_keeps_its_own_sampler_settings():
    assert sampler_changes(None, None, None, NOTHING, NOTHING) == {
        "structure": {},
        "shape": {},
        "texture": {},
    }


@pytest.mark.parametrize(
    ("subject", "structure", "shape"),
    [("hard-surface", 8.5, 7.5), ("organic", 7.5, 7.5), ("ambiguous", 6.0, 6.0)],
)
def test_a_subject_sets_the_guidance_of_structure_and_shape(subject, structure, shape):
    changes = sampler_changes(Subject(subject), None, None, NOTHING, NOTHING)
    assert changes == {
        "structure": {"guidance_scale": structure},
        "shape": {"guidance_scale": shape},
        "texture": {},
    }


def test_the_most_particular_option_wins():
    changes = sampler_changes(Subject.organic, 20, 3.0, (5, None, None), (None, 4.0, 2.0))
    assert changes == {
        "structure": {"steps": 5, "guidance_scale": 3.0},
        "shape": {"steps": 20, "guidance_scale": 4.0},
        "texture": {"steps": 20, "guidance_scale": 2.0},
    }


@pytest.mark.parametrize(
    ("resolution", "name"), [("512", "512"), ("1024", "1024_cascade"), ("1536", "1536_cascade")]
)
def test_a_resolution_names_a_released_pipeline(resolution, name):
    assert pipeline_name(Resolution(resolution), None) == name
    assert set(PIPELINE_OF) == set(Resolution)


def test_resolution_and_pipeline_exclude_each_other():
    with pytest.raises(UsageError, match="same thing"):
        pipeline_name(Resolution.r512, "512")


def test_kernels_are_pairs():
    assert parse_kernels(["attention=sdpa", "sparse_conv=torch"]) == {
        "attention": "sdpa",
        "sparse_conv": "torch",
    }
    assert parse_kernels(None) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["gnerate", "box.png"],
        ["box.png"],
        ["--nonsense"],
        ["generate"],
        ["generate", "box.png", "--nonsense"],
        ["generate", "box.png", "--steps", "0"],
        ["generate", "box.png", "--steps", "many"],
        ["generate", "box.png", "--guidance", "nan"],
        ["generate", "box.png", "--guidance", "-1"],
        ["generate", "box.png", "--seed", "-1"],
        ["generate", "box.png", "--faces", "0"],
        ["generate", "box.png", "--resolution", "513"],
        ["generate", "box.png", "--resolution", "512", "--pipeline", "512"],
        ["generate", "box.png", "--subject", "cat"],
        ["generate", "box.png", "--kernel", "sdpa"],
        ["generate", "box.png", "--kernel", "=sdpa"],
        ["generate", "box.png", "--num-samples", "0"],
        ["generate", "box.png", "--preset", "huge"],
        ["generate", "box.png", "-o", "box.xyz"],
        ["generate", "box.png", "-o", "box"],
        ["generate", "box.png", "--preview", "box.txt"],
        ["generate", "box.png", "--save-bundle", "box.pt"],
        ["generate", "box.png", "--vram-tier", "huge"],
        ["generate", "box.png", "--precision", "int3"],
        ["generate", "box.png", "red"],
        ["models", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_one_hint_and_exit_code_2(run, picture, arguments):
    run(*arguments).assert_one_error(2)


def test_a_picture_without_a_command_gets_the_command(run, picture):
    assert "trellis generate box.png" in run("box.png").err


def test_a_misspelt_command_gets_a_suggestion(run):
    assert "generate" in run("generat").err


def test_an_unknown_device_or_kernel_is_wrong_usage(run, picture):
    run("generate", picture, "--device", "abacus").assert_one_error(2)
    run("generate", picture, "--kernel", "attention=abacus").assert_one_error(2)
    run("generate", picture, "--kernel", "telepathy=torch").assert_one_error(2)


def test_json_reports_wrong_usage_on_stdout_too(run, picture):
    said = run("generate", picture, "--steps", "0", "--json")
    assert said.json["ok"] is False
    assert said.json["exit_code"] == said.code == 2
    assert said.json["error"] in said.err
    assert "--help" in said.json["hint"]


def test_json_events_end_with_the_error(run, picture):
    said = run("generate", picture, "--steps", "0", "--json-events")
    assert said.code == 2
    assert [json.loads(line)["event"] for line in said.out.splitlines()] == ["error"]
