"""What `trellis generate` takes its arguments for.

Properties: what is there is what it is; what looks like a file's name is never made as a prompt; what could
be both is refused, naming both commands.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis_cli.dispatch import Kind, is_file_name, recognise
from trellis_cli.files import BUNDLES, MESHES, PICTURES
from trellis_core.errors import InputError, TrellisError, UsageError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("chair.png", "back.png", "run.safetensors", "mesh.glb", "list.txt", "photo"):
        Path(name).write_text(name)
    Path("photos").mkdir()
    Path("my photos").mkdir()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["chair.png"], Kind.picture),
        (["photo"], Kind.picture),
        (["missing.png"], Kind.picture),
        (["missing.tga"], Kind.picture),
        (["photos/missing"], Kind.picture),
        (["my photos/missing 1"], Kind.picture),
        (["./missing"], Kind.picture),
        (["chair.png", "back.png"], Kind.pictures),
        (["chair.png", "missing.png"], Kind.pictures),
        (["chair.png", "photos/missing"], Kind.pictures),
        (["photos"], Kind.folder),
        (["photos/"], Kind.folder),
        (["."], Kind.folder),
        (["run.safetensors"], Kind.bundle),
        (["missing.safetensors"], Kind.bundle),
        (["a red mug"], Kind.prompt),
        (["a", "red", "mug"], Kind.prompt),
        (["mug"], Kind.prompt),
        (["\u6905\u5b50"], Kind.prompt),
        (["a table/desk, 3.5 feet wide."], Kind.prompt),
        (["a", "v1.0", "mug"], Kind.prompt),
        ([""], Kind.prompt),
        (["x" * 5000], Kind.prompt),
        (["a\0b"], Kind.prompt),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_given_is_recognised(words, kind):
    assert recognise(words).kind is kind


def test_forgotten_quotes_are_put_back():
    assert recognise(["a", "red", "mug"]).prompt == "a red mug"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["mesh.glb"], "trellis texture mesh.glb"),
        (["list.txt"], "trellis batch list.txt"),
        (["chair"], "`trellis generate chair.png` or `trellis text chair`"),
        (["chiar"], "trellis generate chair.png"),
        (["photoz"], "trellis generate photo"),
        (["chair.png", "red"], "in quotes"),
        (["a", "red", "photo"], '`trellis text "a red photo"`'),
        (["chair.png", "photos"], "trellis batch chair.png photos"),
        (["chair.png", "run.safetensors"], "one thing at a time"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_made_or_could_be_two_things_is_wrong_usage(words, advice):
    with pytest.raises(UsageError) as caught:
        recognise(words)
    assert advice in caught.value.hint


@pytest.mark.parametrize("name", ["missing.glb", "missing.txt", "https://example.org/chair.png"])
def test_what_is_not_here_is_bad_input(name):
    with pytest.raises(InputError):
        recognise([name])


def is_stem(text: str) -> bool:
    return bool(text.strip(". ")) and not set("\0/\\") & set(text)


@pytest.mark.parametrize("suffix", [*PICTURES, *BUNDLES, *MESHES])
@given(stem=st.text(min_size=1, max_size=12).filter(is_stem))
def test_a_name_that_ends_as_files_do_is_no_prompt(suffix, stem):
    assert is_file_name(stem + suffix)
    assert is_file_name(stem + suffix.upper())


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_words_are_recognised_or_refused_with_advice(words):
    try:
        recognise(words)
    except TrellisError as error:
        assert error.message and error.hint
