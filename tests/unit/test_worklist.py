"""The work list of a batch: what folders and lists hold, and what results are called.

Properties: each picture and each line is one item; names differ on every file system; an item keeps its name
whatever is added; a list that cannot be understood is refused with the number of the line.
Not tested: what pictures contain (see tests/cli/test_cli_batch.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis_cli.worklist import LONGEST_NAME, Item, fold, named, read_items
from trellis_core.errors import InputError, UsageError

OUT = Path("out")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def items_of(*sources: str, recursive: bool = False) -> list[Item]:
    return read_items([Path(source) for source in sources], recursive=recursive, leave_out=OUT)


def a_list(*lines: str) -> str:
    Path("list.txt").write_text("\n".join(lines))
    return "list.txt"


def test_a_folder_gives_its_pictures_in_the_order_of_their_names():
    touch("p/b.png", "p/a.JPG", "p/notes.txt", "p/.hidden.png", "p/deeper/c.png")
    assert [item.name for item in items_of("p")] == ["a", "b"]


def test_recursive_keeps_the_folders_in_the_names_and_does_not_search_the_results():
    touch("p/a.png", "p/x/a.png", "p/y/z/a.webp", "p/.git/a.png", "out/a-preview.png")
    assert [item.name for item in items_of("p", recursive=True)] == ["a", "x/a", "y/z/a"]
    assert {item.name for item in items_of(".", recursive=True)} == {"p/a", "p/x/a", "p/y/z/a"}


def test_a_folder_of_folders_asks_for_recursive():
    touch("p/x/a.png")
    with pytest.raises(InputError, match="no picture") as caught:
        items_of("p")
    assert "--recursive" in caught.value.hint


def test_an_empty_folder_is_bad_input():
    Path("p").mkdir()
    with pytest.raises(InputError, match="no picture"):
        items_of("p", recursive=True)


def test_results_do_not_go_among_the_pictures():
    touch("out/a.png")
    with pytest.raises(UsageError, match="folder with the pictures"):
        items_of("out")


def test_a_list_holds_pictures_prompts_and_json():
    touch("chair.png", "side.png")
    items = items_of(
        a_list(
            "# my things",
            "chair.png",
            "",
            "a tall red chair",
            "missing.png",
            '{"pictures": ["chair.png", "side.png"], "seed": 7, "name": "both/shoe"}',
            '{"prompt": "a mug", "seed": 1}',
        )
    )
    assert [item.name for item in items] == ["chair", "a-tall-red-chair", "missing", "both/shoe", "a-mug"]
    assert [item.prompt for item in items] == [None, "a tall red chair", None, None, "a mug"]
    assert [item.seed for item in items] == [None, None, None, 7, 1]
    assert len(items[3].pictures) == 2


def test_what_an_item_is_made_from_is_a_line_of_a_list_again():
    touch("chair.png", "side.png")
    first = items_of(
        a_list(
            "chair.png",
            '{"pictures": ["chair.png", "side.png"], "seed": 7, "name": "x"}',
            '{"prompt": "a mug"}',
        )
    )
    again = items_of(a_list(*(json.dumps(item.input) for item in first)))
    assert [item.input for item in again] == [item.input for item in first]


def test_pictures_are_looked_for_beside_the_list_and_then_here():
    touch("lists/a.png", "b.png")
    Path("lists/l.txt").write_text("a.png\nb.png\nc.png\n")
    paths = [item.pictures[0] for item in items_of("lists/l.txt")]
    assert paths == [Path("lists/a.png"), Path("b.png"), Path("lists/c.png")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_other_systems_are_read(encoding):
    Path("l.txt").write_bytes("caf\u00e9 chair\r\n\u6905\u5b50\r\n".encode(encoding))
    assert [item.prompt for item in items_of("l.txt")] == ["caf\u00e9 chair", "\u6905\u5b50"]


@pytest.mark.parametrize(
    "line",
    [
        '{"picture": "a.png"',
        '{"prompt": "a", "picture": "a.png"}',
        "{}",
        '{"seed": 3}',
        '{"picture": 3}',
        '{"pictures": "a.png"}',
        '{"pictures": []}',
        '{"pictures": [1]}',
        '{"prompt": "a", "seed": -1}',
        '{"prompt": "a", "seed": true}',
        '{"prompt": "a", "seed": "7"}',
        '{"prompt": "a", "sed": 7}',
        '{"prompt": "a", "name": ""}',
        '{"prompt": "a", "name": "../../a"}',
        '{"prompt": "a", "name": "/a"}',
        '{"prompt": "a", "name": "a:b"}',
        '{"prompt": "a", "name": ".a"}',
        '{"prompt": "a", "name": 3}',
    ],
)
def test_a_line_that_cannot_be_understood_is_named_by_its_number(line):
    with pytest.raises(InputError, match=r"line 2 of `list\.txt`") as caught:
        items_of(a_list("a red chair", line))
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n# nothing\n", b"\x89PNG\r\n\0\0"])
def test_a_file_that_is_no_list_is_bad_input(content):
    Path("l.txt").write_bytes(content)
    with pytest.raises(InputError):
        items_of("l.txt")


def test_a_misspelt_folder_gets_a_suggestion():
    touch("photos/a.png")
    with pytest.raises(InputError, match="does not exist") as caught:
        items_of("photoz")
    assert "photos" in caught.value.hint


def test_what_is_said_twice_is_made_once():
    touch("a.png")
    assert len(items_of("a.png", a_list("a.png", "a mug", "a mug", '{"picture": "./a.png"}'))) == 2


def test_equal_names_are_numbered_and_keep_their_numbers_when_more_is_added():
    touch("a/x.png", "b/x.png", "c/x.png")
    first = named(items_of("b", "c"), {})
    assert [item.name for item in first] == ["x", "x-2"]
    later = named(items_of("a", "b", "c"), {item.key: item.name for item in first})
    assert [item.name for item in later] == ["x-3", "x", "x-2"]


def test_a_number_is_not_given_to_what_another_item_is_called():
    touch("a/x.png", "b/x.png", "c/x-2.png")
    assert [item.name for item in named(items_of("a", "b", "c"), {})] == ["x", "x-3", "x-2"]


def test_a_name_too_long_for_a_file_is_cut_between_characters():
    long = "\u00e9" * 120  # 240 bytes
    touch(f"p/{long}.png")
    (item,) = items_of("p")
    assert len(os.fsencode(item.name)) <= LONGEST_NAME
    assert long.startswith(item.name)


@given(
    st.lists(st.sampled_from(["x", "X", "x-2", "caf\u00e9", "cafe\u0301", "y"]), max_size=8),
    st.lists(st.sampled_from(["x", "X-2", "z"]), max_size=3),
)
def test_names_always_differ_from_each_other_and_from_those_of_others(names, taken):
    items = [Item(prompt=str(number), name=name) for number, name in enumerate(names)]
    owned = {f"other {number}": name for number, name in enumerate(taken)}
    result = [fold(item.name) for item in named(items, owned)]
    assert len(set(result)) == len(items)
    assert not set(result) & set(map(fold, taken))
    again = named(items, owned | {item.key: item.name for item in named(items, owned)})
    assert [fold(item.name) for item in again] == result
