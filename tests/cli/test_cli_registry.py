"""Which model `--model auto` takes, and what it says about the others.

A tiny model in the hub's cache layout stands in for the released one. Not tested: downloads.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trellis_cli import registry
from trellis_core.errors import ModelError
from trellis_core.memory.budget import MemoryRequest
from trellis_core.memory.devices import DeviceInfo

GIB = 1 << 30
CPU = DeviceInfo(kind="cpu", total_memory=16 * GIB, free_memory=12 * GIB)
LARGE_GPU = DeviceInfo(kind="cuda", capability=(8, 9), total_memory=24 * GIB, free_memory=23 * GIB)
SMALL_GPU = DeviceInfo(kind="cuda", capability=(8, 9), total_memory=6 * GIB, free_memory=0)


@pytest.fixture
def cache(private_folders, tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def large_model(cache, tiny_model) -> Path:
    """The released model's place in the cache, filled."""
    repository = cache / "models--microsoft--TRELLIS.2-4B"
    folder = repository / "snapshots" / "0" / ""
    shutil.copytree(tiny_model, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    return folder


@pytest.fixture
def small_model(tiny_model, monkeypatch) -> Path:
    monkeypatch.setattr(registry, "embedded_folder", lambda: tiny_model)
    return tiny_model


def test_auto_takes_the_large_model_on_a_gpu_that_holds_it(large_model, small_model):
    found = registry.choose_model(LARGE_GPU, MemoryRequest())
    assert (found.name, found.folder.resolve()) == ("trellis2-4b", large_model.resolve())


def test_auto_does_not_take_the_large_model_on_a_cpu_and_says_why(large_model, small_model):
    found = registry.choose_model(CPU, MemoryRequest())
    assert (found.name, found.folder) == ("embedded", small_model)
    assert "trellis2-4b would take hours without a GPU" in found.reason


def test_auto_says_how_to_get_the_model_that_is_not_here(cache, small_model):
    found = registry.choose_model(LARGE_GPU, MemoryRequest())
    assert found.name == "embedded"
    assert "trellis models pull trellis2-4b" in found.reason


def test_auto_passes_over_an_incomplete_model(large_model, small_model):
    next(large_model.glob("ckpts/*decoder.safetensors")).unlink()
    found = registry.choose_model(LARGE_GPU, MemoryRequest())
    assert found.name == "embedded"
    assert "not complete" in found.reason


def test_when_nothing_fits_the_smallest_model_is_tried(large_model, small_model):
    found = registry.choose_model(SMALL_GPU, MemoryRequest())
    assert (found.name, found.folder) == ("embedded", small_model)
    assert "trellis2-4b does not fit" in found.reason


def test_without_any_model_the_error_names_the_command(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "embedded_folder", lambda: tmp_path)
    with pytest.raises(ModelError) as caught:
        registry.choose_model(CPU, MemoryRequest())
    assert "trellis models pull" in caught.value.hint


def test_a_repository_in_the_cache_is_found_by_its_name(large_model):
    assert registry.find_model("microsoft/TRELLIS.2-4B").folder.resolve() == large_model.resolve()


def test_the_names_here_are_those_the_library_loads():
    import trellis2
    from trellis.weights import REPOSITORIES

    hubs = {name: model.repository for name, model in registry.MODELS.items() if model.repository}
    assert hubs == {**REPOSITORIES, **trellis2.REPOSITORIES}
    assert registry.embedded_folder() == trellis2.EMBEDDED_FOLDER
