"""The user's files: checked before the work, written whole or not at all, never overwritten unasked.

Not tested: what pictures may contain (see test_cli_bad_input.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trellis_cli import files
from trellis_core.errors import InputError, OutputError, UsageError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_default_output_is_the_sources_name_in_this_folder():
    assert files.outputs(None, Path("photos/chair.png"), ".glb", 1) == [Path("chair.glb")]


def test_an_output_folder_takes_the_sources_name(tmp_path):
    assert files.outputs(tmp_path, Path("chair.png"), ".glb", 1) == [tmp_path / "chair.glb"]


def test_several_outputs_are_numbered():
    assert files.outputs(Path("a.glb"), Path("chair.png"), ".glb", 2) == [Path("a-1.glb"), Path("a-2.glb")]


def test_an_existing_output_is_refused_without_force():
    Path("a.glb").write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        files.check_output(Path("a.glb"), files.ASSETS, force=False)
    files.check_output(Path("a.glb"), files.ASSETS, force=True)
    assert Path("a.glb").read_text() == "precious"


@pytest.mark.parametrize("name", ["a", "a.xyz", ".glb", "glb"])
def test_an_unknown_suffix_is_wrong_usage(name):
    with pytest.raises(UsageError, match=r"\.glb"):
        files.check_output(Path(name), files.ASSETS, force=False)


@pytest.mark.parametrize("name", ["nowhere/a.glb", "a" * 300 + ".glb", "file.txt/a.glb"])
def test_a_place_that_cannot_be_written_to_is_refused(name):
    Path("file.txt").touch()
    with pytest.raises(OutputError):
        files.check_output(Path(name), files.ASSETS, force=False)


def test_a_device_is_never_an_output_not_even_by_force():
    with pytest.raises((OutputError, UsageError)):
        files.check_output(Path("/dev/null"), ("",), force=True)


def test_checking_an_output_leaves_nothing_behind(tmp_path):
    files.check_output(tmp_path / "a.glb", files.ASSETS, force=False)
    assert list(tmp_path.iterdir()) == []


def test_writing_moves_the_finished_file_into_place(tmp_path):
    assert files.write(tmp_path / "a.glb", lambda p: p.write_bytes(b"new"), force=False) == tmp_path / "a.glb"
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_failure_while_writing_leaves_the_old_file_and_no_part(tmp_path, failure):
    def save(path):
        path.write_bytes(b"half")
        raise failure

    (tmp_path / "a.glb").write_bytes(b"old")
    with pytest.raises(failure):
        files.write(tmp_path / "a.glb", save, force=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.glb": b"old"}


def test_a_file_that_appeared_during_the_run_is_kept(tmp_path):
    (tmp_path / "a.glb").write_bytes(b"theirs")
    written = files.write(tmp_path / "a.glb", lambda p: p.write_bytes(b"ours"), force=False)
    assert written == tmp_path / "a-2.glb"
    assert (tmp_path / "a.glb").read_bytes() == b"theirs"


def test_a_link_stays_a_link_when_its_file_is_overwritten(tmp_path):
    (tmp_path / "real.glb").write_bytes(b"old")
    (tmp_path / "link.glb").symlink_to("real.glb")
    files.write(tmp_path / "link.glb", lambda p: p.write_bytes(b"new"), force=True)
    assert (tmp_path / "link.glb").is_symlink()
    assert (tmp_path / "real.glb").read_bytes() == b"new"


def test_a_file_system_that_refuses_more_bytes_is_an_output_error_and_leaves_no_part(tmp_path):
    """A real refusal: the kernel's limit on file size."""
    script = """
import resource, sys
from pathlib import Path
from trellis_cli import files
from trellis_core.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write(Path("a.glb"), lambda p: p.write_bytes(bytes(5000)), force=False)
except OutputError as error:
    sys.exit(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "could not write `a.glb`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_input_gets_a_suggestion():
    Path("chair.png").touch()
    with pytest.raises(InputError) as caught:
        files.check_input(Path("chiar.png"), "picture", files.PICTURES)
    assert "chair.png" in caught.value.hint


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_bad_input(name):
    with pytest.raises(InputError):
        files.check_input(Path(name), "picture", files.PICTURES)


def test_a_directory_gets_a_picture_in_it_as_example():
    Path("pics").mkdir()
    Path("pics/a.png").touch()
    with pytest.raises(InputError) as caught:
        files.check_input(Path("pics"), "picture", files.PICTURES)
    assert "pics/a.png" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        files.check_output(tmp_path / "locked" / "a.glb", files.ASSETS, force=False)
