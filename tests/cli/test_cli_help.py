"""Help, version and completion: complete, and without importing anything heavy.

Properties: every command and exit code is listed; `--help` and completion import none of HEAVY.
Not tested: wall-clock time (the imports are what costs it).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trellis_cli.app import COMMANDS, EXIT_CODES

HEAVY = ("torch", "warp", "numpy", "pydantic", "PIL", "huggingface_hub", "trimesh", "scipy")

REPORT_IMPORTS = """
import sys
from trellis_cli.app import main
code = main(sys.argv[1:])
found = [name for name in {heavy!r} if name in sys.modules]
print("IMPORTED", *found, file=sys.stderr)
sys.exit(code)
"""


def imports_of(*arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    marks = [line for line in done.stderr.splitlines() if line.startswith("IMPORTED")]
    assert marks, done.stderr
    return done, marks[0].split()[1:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in COMMANDS),
        ["models", "list", "--help"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_for(arguments):
    _, imported = imports_of(*arguments)
    assert imported == []


def test_a_wrong_path_is_reported_without_waiting_for_torch():
    done, imported = imports_of("generate", "missing.png")
    assert done.returncode == 3
    assert not {"torch", "warp", "numpy"} & set(imported)


def test_completion_offers_commands_without_importing_anything_heavy():
    done, imported = imports_of(
        _TRELLIS_COMPLETE="complete_bash",
        COMP_WORDS="trellis ge",
        COMP_CWORD="1",
    )
    assert done.stdout.split() == ["generate"]
    assert imported == []


def test_completion_offers_the_options_of_a_command():
    done, imported = imports_of(
        _TRELLIS_COMPLETE="complete_bash",
        COMP_WORDS="trellis generate --struct",
        COMP_CWORD="2",
    )
    assert set(done.stdout.split()) == {"--structure-steps", "--structure-guidance"}
    assert imported == []


def test_help_lists_every_command_and_every_exit_code(run):
    said = run("--help")
    assert said.code == 0
    for name, entry in COMMANDS.items():
        assert entry.hidden or f" {name} " in said.out
    for code, text in EXIT_CODES.items():
        assert f"{code}  {text}" in said.out


def test_no_arguments_print_the_help(run):
    assert run().out == run("--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    said = run(command, "-h")
    assert said.code == 0
    assert "Usage" in said.out
    assert "--json" in said.out or command == "models"


@pytest.mark.parametrize(
    "option",
    [
        "-o",
        "--output",
        "--force",
        "--seed",
        "--steps",
        "--guidance",
        "--structure-steps",
        "--structure-guidance",
        "--shape-steps",
        "--shape-guidance",
        "--texture-steps",
        "--texture-guidance",
        "--faces",
        "--texture",
        "--subject",
        "--resolution",
        "--pipeline",
        "--model",
        "--device",
        "--kernel",
        "--precision",
        "--vram-tier",
        "--save-bundle",
        "--background",
        "--preview",
        "--num-samples",
        "--strict",
        "--json",
        "--json-events",
        "--quiet",
        "--debug",
        "--preset",
        "--offline",
    ],
)
def test_generate_has_the_option(run, option):
    assert option in run("generate", "--help").out.split()


def test_image_is_generate(run):
    words = run("image", "--help").out.replace("trellis image", "trellis generate").split()
    assert words == run("generate", "--help").out.split()


def test_version_is_one_line(run):
    said = run("--version")
    assert said.code == 0
    assert said.out.startswith("trellis ")
    assert said.out.count("\n") == 1


def test_the_module_runs_like_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "trellis_cli", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("trellis ")
