"""What is shown where: progress and notes on stderr, results on stdout, JSON for scripts.

Not tested: seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from trellis_cli import app
from trellis_cli.console import Console, console_for
from trellis_core import errors
from trellis_core.runtime import Step


def a_run(console: Console) -> None:
    with console.working() as progress:
        progress.begin("start")
        progress(Step("structure", 0, 2))
        progress(Step("structure", 1, 2))
        progress(Step("structure", 2, 2, "a note"))
        progress(Step("shape", 0, 1))
        progress(Step("shape", 1, 1))
        progress(Step("shape", 0, 1))
        progress(Step("shape", 1, 1))
        print("a library prints this")
    console.facts["outputs"] = ["a.glb"]
    console.result(["a.glb"])
    console.finish()


def test_a_person_gets_stages_on_stderr_and_the_result_alone_on_stdout(capfd):
    a_run(Console())
    out, err = capfd.readouterr()
    assert out == "a.glb\n"
    assert [line.split()[0] for line in err.splitlines()] == [
        "start",
        "note:",
        "structure",
        "shape",
        "a",
        "shape",
    ]
    assert "2/2" in err


def test_quiet_leaves_only_the_result(capfd):
    console = Console(quiet=True)
    a_run(console)
    assert capfd.readouterr() == ("a.glb\n", "a library prints this\n")
    assert console.facts["notes"] == ["a note"]


def test_json_is_one_object_on_stdout(capfd):
    a_run(Console(json=True))
    facts = json.loads(capfd.readouterr().out)
    assert facts["ok"] is True
    assert facts["outputs"] == ["a.glb"]
    assert facts["notes"] == ["a note"]
    assert [stage["stage"] for stage in facts["stages"]] == ["start", "structure", "shape", "shape 2"]
    assert all(stage["seconds"] >= 0 for stage in facts["stages"])


def test_json_events_are_a_line_per_event(capfd):
    a_run(Console(events=True))
    out, err = capfd.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events] == ["progress"] * 4 + ["note"] + ["progress"] * 4 + ["result"]
    assert events[3] | {"seconds": 0} == {
        "event": "progress",
        "stage": "structure",
        "step": 2,
        "steps": 2,
        "seconds": 0,
        "note": "a note",
    }
    assert err == "a library prints this\n"


def test_a_terminal_gets_bars_and_the_result_stays_plain():
    """A pseudo terminal on stderr, a pipe on stdout."""
    pty = pytest.importorskip("pty", reason="no pseudo terminals on this system")
    screen, terminal = pty.openpty()
    script = "from tests.cli.test_cli_console import *; a_run(Console())"
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        env=environment,
        text=True,
    )
    os.close(terminal)
    shown = os.read(screen, 1 << 20).decode()
    os.close(screen)
    assert done.stdout == "a.glb\n"
    for text in ("structure", "2/2", "note\x1b[0m: a note", "a library prints this", "━", "\x1b["):
        assert text in shown


def test_options_after_two_dashes_are_names():
    assert console_for(["generate", "--json", "-q"]).json
    assert console_for(["generate", "--json", "-q"]).quiet
    assert not console_for(["generate", "--", "--json"]).json


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.BackendUnavailable("x"), 2),
        (errors.InputError("x"), 3),
        (errors.ModelError("x"), 4),
        (errors.OutOfMemory("x"), 5),
        (MemoryError(), 5),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), 5),
        (errors.QualityError("x"), 6),
        (errors.OutputError("x"), 7),
        (OSError(28, "No space left on device", "a.glb"), 7),
        (errors.Cancelled("x"), 130),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), 1),
        (errors.TrellisError("x"), 1),
    ],
    ids=lambda value: getattr(type(value), "__name__", value),
)
def test_every_error_has_its_exit_code(error, code):
    assert app.explain(error)[0] == code


def test_torchs_own_out_of_memory_is_out_of_memory():
    import torch

    assert app.explain(torch.OutOfMemoryError("CUDA out of memory"))[0] == 5


def test_every_exit_code_of_an_error_is_documented():
    assert set(app.CODE_OF.values()) < set(app.EXIT_CODES)


def test_an_internal_error_is_one_line_and_asks_for_a_report():
    code, message, hint = app.explain(ValueError("several\nlines"))
    assert (code, "\n" in message) == (1, False)
    assert "--debug" in hint


def test_whatever_breaks_after_ctrl_c_is_an_interruption():
    assert app.explain(RuntimeError("a library lost the exception"), interrupted=True)[0] == 130


def test_seconds_left_are_shown_for_long_stages_in_logs(capfd, monkeypatch):
    monkeypatch.setattr("trellis_cli.console.LINE_EVERY", 0.0)
    with Console().working() as progress:
        progress(Step("shape", 0, 4))
        time.sleep(0.01)
        progress(Step("shape", 1, 4))
    assert "s left" in capfd.readouterr().err
