"""Ctrl-C, a reader that went away, a full disk: in real processes.

Properties: exit code 130 at any stage, nothing half-written, no traceback; a full standard output is
reported, a closed one is no error. Not tested: Ctrl-C during the interpreter's own start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trellis_cli.console import Console

TRELLIS = (sys.executable, "-m", "trellis_cli")


def interrupt_at(stage: str, number: int, arguments: list[str], folder: Path) -> tuple[int, list[dict], str]:
    """Start `trellis`, send it the signal once it reports `stage`; exit code, events, stderr."""
    process = subprocess.Popen(
        [*TRELLIS, *arguments, "--json-events"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1].get("stage") == stage:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    return process.returncode, events + [json.loads(line) for line in out.splitlines()], err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals")
@pytest.mark.parametrize(
    ("stage", "number"),
    [("start", signal.SIGINT), ("structure", signal.SIGINT), ("shape", signal.SIGTERM)],
    ids=["loading", "sampling", "terminated"],
)
def test_an_interrupted_run_leaves_nothing_behind(tmp_path, picture, tiny_model, stage, number):
    before = sorted(tmp_path.iterdir())
    arguments = [
        "generate",
        str(picture),
        "--model",
        str(tiny_model),
        "--steps",
        "500",
        "--structure-steps",
        "20",
    ]
    code, events, err = interrupt_at(stage, number, arguments, tmp_path)
    assert code == 130, err
    assert events[-1]["event"] == "error"
    assert events[-1]["exit_code"] == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_reader_that_went_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        console = Console(stdout=pipe)
        console.result(["a.glb", "b.glb"])
        console.out("more")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models", "list"]], ids=" ".join)
def test_a_closed_pipe_shows_no_traceback(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*TRELLIS, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""


def test_a_file_name_that_is_no_text_is_reported(tmp_path):
    done = subprocess.run(
        [*TRELLIS, "generate", b"\xff.png", "--json"], capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert "\udcff.png" in json.loads(done.stdout)["error"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_reported():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*TRELLIS, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
@pytest.mark.parametrize("extra", [[], ["--save-bundle", "run.safetensors"]], ids=["asset", "bundle"])
def test_a_disk_that_takes_no_more_is_exit_code_7_and_leaves_no_part(tmp_path, picture, tiny_model, extra):
    """The kernel's limit on file size refuses the bytes, as a full disk does."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from trellis_cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [
        "generate",
        str(picture),
        "--model",
        str(tiny_model),
        "--steps",
        "1",
        "--texture",
        "64",
        *extra,
    ]
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "-q"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before
