"""The report of a batch and its claims, with several processes and damaged files.

Properties: a line is there whole or not at all; what is no line of a report is passed over; one item belongs
to one process at a time, and to nobody when that process is gone.
Not tested: locks between computers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from trellis_cli.journal import Report, locked, open_report
from trellis_core.errors import OutputError


def line(name: str, **more: object) -> dict:
    return {"name": name, "status": "made", "input": {"prompt": name}, "outputs": [], **more}


def names_in(folder: Path) -> list[str]:
    return [json.loads(each)["name"] for each in (folder / "report.jsonl").read_text().splitlines()]


def test_the_last_line_of_an_item_counts(tmp_path):
    report = open_report(tmp_path)
    for status in ("failed", "made"):
        report.append(line("a", status=status))
    report.append(line("b"))
    other = open_report(tmp_path)
    assert [entry["status"] for entry in other.entries.values()] == ["made", "made"]
    assert names_in(tmp_path) == ["a", "a", "b"]


def test_looking_at_a_folder_writes_nothing(tmp_path):
    open_report(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_what_was_added_is_read_again(tmp_path):
    report, other = open_report(tmp_path), open_report(tmp_path)
    report.append(line("a"))
    other.refresh()
    first = other.entries['{"prompt": "a"}']
    report.append(line("b"))
    other.refresh()
    assert other.entries['{"prompt": "a"}'] is first
    assert len(other.entries) == 2


def test_a_piece_of_a_line_is_taken_away_before_the_next_one(tmp_path):
    report = open_report(tmp_path)
    report.append(line("a"))
    with report.path.open("ab") as file:
        file.write(b'{"name": "b", "inp')  # a machine that lost its power
    open_report(tmp_path).append(line("c"))
    assert names_in(tmp_path) == ["a", "c"]


def test_lines_of_others_are_passed_over(tmp_path):
    foreign = (
        "3",
        "not json",
        '{"input": 4}',
        '{"input": {}, "name": 4}',
        '["name"]',
        "\xff",
        "[" * 100_000,
        "",
    )
    (tmp_path / "report.jsonl").write_text("\n".join(foreign), encoding="latin-1")
    report = open_report(tmp_path)
    assert report.entries == {}
    report.append(line("a"))
    assert list(open_report(tmp_path).entries) == ['{"prompt": "a"}']


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_full_disk_leaves_whole_lines(tmp_path):
    script = (
        "import resource, sys; from pathlib import Path; from trellis_cli.journal import open_report;"
        "from tests.unit.test_journal import line; report = open_report(Path(sys.argv[1]));"
        "report.append(line('a')); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "report.append(line('b' * 200))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "OSError" in done.stderr, done.stderr
    assert names_in(tmp_path) == ["a"]


def append_many(folder: Path, who: int) -> None:
    report = open_report(folder)
    for number in range(40):
        report.append(line(f"{who}-{number}", pad="x" * 5000))


def test_lines_of_two_processes_do_not_mix(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(tmp_path, who)) for who in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(names_in(tmp_path)) == sorted(f"{who}-{n}" for who in range(2) for n in range(40))


def test_a_claim_keeps_others_away_and_is_gone_afterwards(tmp_path):
    report, other = Report(tmp_path / "out"), Report(tmp_path / "out")
    with report.claim("chairs/red") as claim:
        assert claim is not None and not claim.inherited
        with other.claim("chairs/red") as second:
            assert second is None
        with other.claim("chairs/blue") as third:
            assert third is not None
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["chairs", "report.jsonl"]


def test_a_claim_is_gone_after_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt), Report(tmp_path).claim("a"):
        raise KeyboardInterrupt
    assert not list(tmp_path.glob(".*claim"))


def dead_process() -> dict:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    facts = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    process.kill()
    process.communicate()
    return facts


@pytest.mark.parametrize(
    "content",
    [
        lambda host: json.dumps({"host": host, **dead_process()}),
        lambda host: json.dumps(
            {"host": host, "pid": os.getpid(), "started": 1.0}
        ),  # the number is used again
        lambda host: "",
        lambda host: "{}",
        lambda host: "\0",
    ],
    ids=["killed", "reused", "empty", "object", "garbage"],
)
def test_a_claim_whose_process_is_gone_is_taken_over_and_its_pieces_removed(tmp_path, content):
    import socket

    (tmp_path / ".a.claim").write_text(content(socket.gethostname()))
    (tmp_path / ".a.glb.x7.part").touch()
    (tmp_path / ".ab.glb.x7.part").touch()
    with Report(tmp_path).claim("a") as claim:
        assert claim is not None and claim.inherited
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ab.glb.x7.part", "report.jsonl"]


def test_a_claim_of_another_computer_is_void_after_a_while_without_a_sign(tmp_path):
    path = tmp_path / ".a.claim"
    path.write_text(json.dumps({"host": "elsewhere.invalid", "pid": 1, "started": 1.0}))
    with Report(tmp_path).claim("a") as claim:
        assert claim is None
    os.utime(path, (1.0, 1.0))
    with Report(tmp_path).claim("a") as claim:
        assert claim is not None


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), locked(tmp_path / "report.jsonl"):
            raise ValueError("x")


def test_results_cannot_go_into_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="not a folder"):
        open_report(tmp_path / "out")
    with pytest.raises(OutputError), Report(tmp_path / "out").claim("a"):
        pass
