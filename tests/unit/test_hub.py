"""Finding, fetching and checking models: decided by what exists, and never by catching an error.

The hub is a small server on this machine that answers as the real one does. Not tested here: the real one.
"""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from tests.hub_server import Hub, serve
from trellis_core.errors import ModelError
from trellis_core.weights import hub
from trellis_core.weights.verify import check_file, count_parameters, hash_file, read_header

WEIGHTS = save({"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(5, dtype=torch.float16)})
OWN, OTHER = "maker/model", "other/parts"
FILES = {
    OWN: {
        "pipeline.json": b"{}",
        "ckpts/flow.json": b'{"name": "Flow"}',
        "ckpts/flow.safetensors": WEIGHTS,
        "README.md": b"hi",
    },
    OTHER: {"ckpts/decoder.json": b"{}", "ckpts/decoder.safetensors": WEIGHTS},
}
KNOWN = {"big": OWN}


@pytest.fixture(scope="module")
def server():
    with serve(Hub(FILES)) as running:
        yield running


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def pulled(server, cache) -> Path:
    """A cache that holds both repositories."""
    for repository in FILES:
        hub.pull(hub.list_remote(repository, endpoint=server.endpoint), cache=cache, endpoint=server.endpoint)
    return cache


def model_folder(folder: Path, *stems: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.json").write_text("{}")
    for stem in stems:
        path = folder / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.config_of(path).write_text("{}")
        hub.weights_of(path).write_bytes(WEIGHTS)
    return folder


def find(name: str, tmp_path: Path, cache: Path) -> Path:
    return hub.find_model(name, embedded=tmp_path / "package", repositories=KNOWN, cache=cache)


# Finding a model


def test_the_embedded_model_is_found_in_the_package(tmp_path, cache):
    folder = model_folder(tmp_path / "package")
    assert find("embedded", tmp_path, cache) == folder


def test_a_package_without_its_model_says_so(tmp_path, cache):
    with pytest.raises(ModelError, match=r"no `pipeline\.json`") as caught:
        find("embedded", tmp_path, cache)
    assert "install" in caught.value.hint


def test_a_folder_in_the_released_layout_is_a_model(tmp_path, cache):
    folder = model_folder(tmp_path / "mine")
    assert find(str(folder), tmp_path, cache) == folder


def test_a_folder_without_a_pipeline_file_is_not(tmp_path, cache):
    with pytest.raises(ModelError, match=r"pipeline\.json"):
        find(str(tmp_path), tmp_path, cache)


def test_a_known_model_is_found_in_the_cache_by_name_and_by_repository(tmp_path, pulled):
    folder = find("big", tmp_path, pulled)
    assert folder == find(OWN, tmp_path, pulled)
    assert (folder / "pipeline.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["big", OWN, "nobody/nothing"])
def test_a_model_that_is_not_here_names_the_command_that_gets_it(name, tmp_path, cache):
    with pytest.raises(ModelError, match="not on this machine") as caught:
        find(name, tmp_path, cache)
    assert f"trellis models pull {name}" in caught.value.hint


@pytest.mark.parametrize("name", ["bigg", "a/b/c", "../x/y", "a b/c"])
def test_a_name_that_can_be_no_model_lists_those_that_are_known(name, tmp_path, cache):
    with pytest.raises(ModelError) as caught:
        find(name, tmp_path, cache)
    assert "embedded, big" in caught.value.hint


# Finding a checkpoint


def test_a_checkpoint_is_looked_for_in_the_models_folder_first(tmp_path, pulled):
    root = model_folder(tmp_path / "m", f"{OTHER}/ckpts/decoder")
    assert (
        hub.find_checkpoint(f"{OTHER}/ckpts/decoder", root, cache=pulled)
        == root / OTHER / "ckpts" / "decoder"
    )


def test_a_checkpoint_of_another_repository_is_found_in_the_cache(tmp_path, pulled):
    stem = hub.find_checkpoint(f"{OTHER}/ckpts/decoder", model_folder(tmp_path / "m"), cache=pulled)
    assert hub.weights_of(stem).read_bytes() == WEIGHTS and hub.config_of(stem).exists()


def test_a_checkpoint_may_be_a_path_of_this_machine(tmp_path, cache):
    elsewhere = model_folder(tmp_path / "else", "flow")
    assert (
        hub.find_checkpoint(str(elsewhere / "flow"), model_folder(tmp_path / "m"), cache=cache)
        == elsewhere / "flow"
    )


def test_an_image_encoder_may_be_a_folder_with_its_published_file(tmp_path, cache):
    folder = model_folder(tmp_path / "encoder", "model")
    assert hub.find_checkpoint(str(folder), model_folder(tmp_path / "m"), cache=cache) == folder / "model"


def test_dots_in_a_checkpoints_name_belong_to_the_name(tmp_path, cache):
    root = model_folder(tmp_path / "m", "ckpts/flow_1.3B")
    assert hub.weights_of(hub.find_checkpoint("ckpts/flow_1.3B", root, cache=cache)).exists()


def test_a_configuration_without_weights_is_an_incomplete_download_not_a_reason_to_look_elsewhere(
    tmp_path, pulled
):
    root = model_folder(tmp_path / "m", f"{OTHER}/ckpts/decoder")
    hub.weights_of(root / OTHER / "ckpts/decoder").unlink()
    with pytest.raises(ModelError, match="is missing") as caught:
        hub.find_checkpoint(f"{OTHER}/ckpts/decoder", root, model="big", cache=pulled)
    assert "trellis models pull big" in caught.value.hint


@pytest.mark.parametrize("reference", ["ckpts/flow", "nobody/nothing/ckpts/x", "a", "/no/such/place"])
def test_a_checkpoint_that_is_nowhere_is_named_with_the_places(reference, tmp_path, cache):
    root = model_folder(tmp_path / "m")
    with pytest.raises(ModelError) as caught:
        hub.find_checkpoint(reference, root, cache=cache)
    assert reference in caught.value.message and str(root / reference) in caught.value.message


# Fetching


def test_listing_gives_sizes_and_hashes_of_model_files_only(server):
    files = {file.path: file for file in hub.list_remote(OWN, endpoint=server.endpoint)}
    assert set(files) == {"pipeline.json", "ckpts/flow.json", "ckpts/flow.safetensors"}
    assert files["ckpts/flow.safetensors"].size == len(WEIGHTS)
    assert files["ckpts/flow.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_pulling_downloads_what_is_missing_and_nothing_twice(server, cache):
    files = hub.list_remote(OWN, endpoint=server.endpoint)
    assert hub.missing(files, cache) == files
    server.downloads.clear()
    seen = []
    paths = hub.pull(files, cache=cache, endpoint=server.endpoint, on_file=lambda *given: seen.append(given))
    assert [path.name for path in paths] == ["pipeline.json", "flow.json", "flow.safetensors"]
    assert seen == [(file, number, 3) for number, file in enumerate(files, start=1)]
    hub.pull(files, cache=cache, endpoint=server.endpoint)
    assert len(server.downloads) == 3
    assert hub.missing(files, cache) == []


def test_a_file_that_is_not_what_the_hub_promised_is_an_error(server, cache):
    wrong = hub.RemoteFile(repository=OWN, path="ckpts/flow.safetensors", sha256="0" * 64)
    with pytest.raises(ModelError, match="SHA-256"):
        hub.pull([wrong], cache=cache, endpoint=server.endpoint)


def test_a_download_that_does_not_fit_the_disk_is_not_started(server, cache):
    server.downloads.clear()
    huge = hub.RemoteFile(repository=OWN, path="pipeline.json", size=10**18)
    with pytest.raises(ModelError, match="free") as caught:
        hub.pull([huge], cache=cache, endpoint=server.endpoint)
    assert "HF_HOME" in caught.value.hint and server.downloads == []


def test_a_gated_repository_names_the_page_and_the_login(cache):
    with serve(Hub(FILES, gated={OTHER})) as gated:
        files = hub.list_remote(OTHER, endpoint=gated.endpoint)
        with pytest.raises(ModelError, match="licence") as caught:
            hub.pull(files, cache=cache, endpoint=gated.endpoint)
    assert f"huggingface.co/{OTHER}" in caught.value.hint and "hf auth login" in caught.value.hint


def test_a_repository_that_does_not_exist_is_named(server):
    with pytest.raises(ModelError, match="`nobody/nothing` does not exist"):
        hub.list_remote("nobody/nothing", endpoint=server.endpoint)


def test_a_hub_that_cannot_be_reached_says_what_to_check():
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        hub.list_remote(OWN, endpoint="http://127.0.0.1:9")
    assert "proxy" in caught.value.hint


def test_a_full_disk_during_the_download_is_a_model_error_and_other_errors_are_not_hidden():
    full = hub._explained(OSError(errno.ENOSPC, "No space left on device"), OWN)
    assert isinstance(full, ModelError) and "full" in full.message
    bug = ZeroDivisionError("bug")
    assert hub._explained(bug, OWN) is bug


# Checking files


def test_a_whole_file_passes_and_its_numbers_are_counted(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS)
    check_file(path, size=len(WEIGHTS), sha256=hash_file(path))
    assert set(read_header(path)) == {"a", "b"}
    assert count_parameters(path) == 12 + 5


@given(st.integers(0, len(WEIGHTS) - 1))
def test_a_file_that_was_cut_off_anywhere_is_noticed(tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(WEIGHTS[:length])
    with pytest.raises(ModelError):
        check_file(path)


@given(st.binary(max_size=200))
def test_any_other_file_is_no_weights_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        check_file(path)


def header(entries: object, data: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),  # a gap
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),  # something after the end
        header({"a": {"dtype": "F32", "shape": [1]}}, 4),
        header([1, 2], 0),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_noticed(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_header(path)


def test_a_wrong_size_is_told_with_both_numbers(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match=f"{len(WEIGHTS):,} bytes instead of 9,999"):
        check_file(path, size=9999)


def test_the_fingerprint_tells_trainings_apart_and_ignores_where_files_lie(tmp_path):
    for folder, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.safetensors").write_bytes(save({"a": torch.full((300_000,), value)}))
    prints = {f.name: hub.fingerprint([f / "w.safetensors"]) for f in tmp_path.iterdir()}
    assert prints["one"] == prints["same"] != prints["other"]
    assert len(prints["one"]) == 16
