"""The user's files: checked before the work, never overwritten unasked.

Not tested: what pictures may contain (see test_cli_bad_input.py).
"""

from __future__ import annotations

import os
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


def test_a_file_beside_an_obj_is_not_overwritten_either():
    Path("a.mtl").touch()
    with pytest.raises(OutputError, match=r"a\.mtl"):
        files.check_output(Path("a.obj"), files.ASSETS, force=False)


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


def test_a_result_that_its_place_refuses_is_kept_elsewhere(tmp_path, monkeypatch):
    from trellis_core.io.files import write_file

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "gone").touch()
    with pytest.raises(OutputError) as caught:
        files.write(tmp_path / "gone" / "a.glb", lambda p: write_file(p, [b"precious"]), force=False)
    kept = Path(caught.value.hint.split("`")[1])
    assert kept.name == "a.glb"
    assert kept.read_bytes() == b"precious"


def test_the_known_suffixes_are_those_of_the_readers_and_writers():
    from trellis_core.io import WRITERS, meshes

    assert set(files.ASSETS) == set(WRITERS)
    assert set(files.MESHES) == set(meshes.SUFFIXES)


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
