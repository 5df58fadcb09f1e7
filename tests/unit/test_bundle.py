"""A saved run comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from trellis_core.errors import InputError, OutputError
from trellis_core.weights.bundle import FORMAT, Bundle, ModelIdentity

TENSORS = {
    "coords": torch.arange(12, dtype=torch.int32).reshape(3, 4),
    "latent": torch.linspace(-1, 1, 6).reshape(3, 2),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "thumbnail": torch.full((4, 5, 3), 7, dtype=torch.uint8),
}
INFO = {
    "seed": 42,
    "model": {"name": "embedded", "fingerprint": "00ff"},
    "samplers": {"shape": {"steps": 12}},
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture
def saved(tmp_path):
    return Bundle(TENSORS, INFO).save(tmp_path / "run.safetensors")


def test_tensors_and_facts_come_back_bit_for_bit(saved):
    bundle = Bundle.load(saved)
    assert bundle.info == INFO
    assert set(bundle.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert bundle.tensors[name].dtype == tensor.dtype
        assert torch.equal(bundle.tensors[name], tensor)


def test_the_thumbnail_is_a_picture_or_absent(saved):
    assert Bundle.load(saved).thumbnail.shape == (4, 5, 3)
    assert Bundle({}, {}).thumbnail is None


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_facts_that_json_can_say_come_back(tmp_path_factory, info):
    path = tmp_path_factory.getbasetemp() / "facts.safetensors"
    Bundle({"a": torch.zeros(1)}, info).save(path)
    assert Bundle.load(path).info == info


def test_views_and_tensors_that_share_memory_can_be_saved(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    path = Bundle({"all": base, "part": base[1:3], "turned": base.T}).save(tmp_path / "b.safetensors")
    assert torch.equal(Bundle.load(path).tensors["turned"], base.T)


def test_saving_replaces_the_old_file_and_leaves_nothing_beside_it(saved):
    Bundle({"a": torch.zeros(1)}, {"seed": 1}).save(saved)
    assert Bundle.load(saved).info == {"seed": 1}
    assert [path.name for path in saved.parent.iterdir()] == ["run.safetensors"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_beside_it(saved):
    with pytest.raises(TypeError):
        Bundle(TENSORS, {"seed": object()}).save(saved)
    assert Bundle.load(saved).info == INFO
    assert [path.name for path in saved.parent.iterdir()] == ["run.safetensors"]


def test_a_folder_that_does_not_exist_is_an_output_error_with_a_hint(tmp_path):
    with pytest.raises(OutputError) as caught:
        Bundle(TENSORS, INFO).save(tmp_path / "no" / "run.safetensors")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_path_without_a_file_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError) as caught:
        Bundle.load(tmp_path / name)
    assert "--save-bundle" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_file_that_was_cut_off_is_an_input_error(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        Bundle.load(saved)
    assert caught.value.hint


@given(st.binary(max_size=300))
def test_any_other_file_is_an_input_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "not a bundle"),
        ({"format": "pt"}, "not a bundle"),
        ({"format": FORMAT, "version": "2", "info": "{}"}, "version 2"),
        ({"format": FORMAT, "info": "{}"}, "version None"),
        ({"format": FORMAT, "version": "1"}, "damaged"),
        ({"format": FORMAT, "version": "1", "info": "{"}, "damaged"),
    ],
)
def test_a_foreign_or_newer_safetensors_file_is_named_as_such(tmp_path, metadata, said):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(InputError, match=said):
        Bundle.load(path)


def test_the_facts_can_be_read_without_this_program(saved):
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["info"]) == INFO


@pytest.mark.parametrize(
    ("name", "said"), [("other", "not by `tiny`"), ("tiny", "other weights"), (None, "`unknown`")]
)
def test_a_bundle_of_another_model_says_which_it_needs(name, said):
    made_by = {"fingerprint": "0"} | ({"name": name} if name else {})
    with pytest.raises(InputError, match=said) as error:
        Bundle({}, {"model": made_by}).require_model(ModelIdentity("tiny", "1"))
    assert "--model" in error.value.hint
    Bundle({}, {"model": {"name": "renamed", "fingerprint": "1"}}).require_model(ModelIdentity("tiny", "1"))
