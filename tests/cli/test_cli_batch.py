"""`trellis batch` from end to end, with a tiny model of the real classes.

Properties: one model for all; one bad picture does not end the rest; every asset is in the report; the same
command goes on, after a kill as well, and makes nothing twice; two processes share the work; a lower plan
follows "out of memory". Not tested: GPUs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.cli.test_cli_bad_input import all_transparent, empty, enormous, text, truncated
from tests.tiny_model import write_tiny_model
from trellis_cli import maker, registry
from trellis_cli.console import Console
from trellis_cli.options import RunOptions
from trellis_core.errors import OutOfMemory, UsageError

FAST = ("--steps", 1, "--faces", 2000, "--texture", 64)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two pictures of different sizes and colors."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, side, color in (("a", 48, "red"), ("b", 200, "green")):
        image = Image.new("RGBA", (side, 64))
        image.paste(color, (side // 4, 12, side // 2, 52))
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def batch(run, tiny_model):
    """Runs `trellis batch`; results go to `out`."""

    def call(*arguments: object, model: object = tiny_model) -> Any:
        return run("batch", *arguments, "--out", "out", "--model", model, *FAST)

    return call


def report() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]


def files_in(folder: str = "out") -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The models that were loaded."""
    loaded: list[str] = []
    load = registry.load_engine

    def counted(model: str, *arguments: Any, **options: Any) -> Any:
        loaded.append(model)
        return load(model, *arguments, **options)

    monkeypatch.setattr(registry, "load_engine", counted)
    return loaded


def test_a_folder_becomes_a_folder_of_assets_with_one_model(batch, pictures, loads, run):
    said = batch("pictures", "--seed", 7)
    assert said.code == 0, said.err
    assert said.out.split() == ["out/a.glb", "out/b.glb"]
    assert files_in() == ["a.glb", "b.glb", "report.jsonl"]
    assert len(loads) == 1
    assert "2 made" in said.err
    for line, name in zip(report(), "ab", strict=True):
        assert line["status"] == "made"
        assert line["input"] == {"picture": str(pictures / f"{name}.png")}
        assert line["seed"] == 7
        assert line["seconds"] > 0
        assert line["model"]["version"] == "trellis2"
        assert line["plan"]["fits"] is True
        assert line["plan"]["pipeline_type"] == "64"
        assert line["attempts"] == []
        (output,) = line["outputs"]
        assert (Path("out") / output["path"]).stat().st_size == output["bytes"]
        assert "passed" in output["quality"]
    alone = run("generate", "pictures/b.png", "--model", loads[0], *FAST, "--seed", 7, "-q")
    assert alone.code == 0
    assert Path("b.glb").read_bytes() == Path("out/b.glb").read_bytes()


def test_the_same_command_goes_on_and_what_changed_is_made_again(batch, pictures, loads):
    assert batch("pictures", "--limit", 1).out == "out/a.glb\n"
    pictures.rename(pictures.with_name("moved"))
    assert batch("moved").out == "out/b.glb\n", "the moved picture is known again"
    before = {name: Path("out", name).stat().st_mtime_ns for name in files_in()}
    loads.clear()
    said = batch("moved", "--json")
    assert (said.code, loads) == (0, []), "no model is needed for nothing"
    assert (said.json["made"], said.json["kept"]) == (0, 2)
    assert {name: Path("out", name).stat().st_mtime_ns for name in files_in()} == before
    shutil.copy("moved/a.png", "moved/b.png")
    assert batch("moved").out == "out/b.glb\n"
    assert batch("moved", "--seed", 1, "--limit", 1).out == "out/a.glb\n"
    assert files_in() == ["a.glb", "b.glb", "report.jsonl"]


def test_bad_pictures_do_not_end_the_rest_and_are_made_once_they_are_mended(batch, pictures):
    good = (pictures / "b.png").read_bytes()
    (pictures / "b.png").unlink()
    makers = {"0": text, "1": truncated, "2": empty, "x": enormous, "y": all_transparent}
    for name, make in makers.items():
        make(pictures / f"{name}.png")
    said = batch("pictures", "--json")
    assert said.code == said.json["exit_code"] == 8
    assert [line["name"] for line in report()] == ["0", "1", "2", "a", "x", "y"]
    failed = {line["name"]: line for line in report() if line["status"] == "failed"}
    assert sorted(failed) == sorted(makers)
    assert {line["exit_code"] for line in failed.values()} == {3}
    assert all(line["error"] and line["hint"] for line in failed.values())
    assert [each["name"] for each in said.json["failures"]] == sorted(failed)
    assert files_in() == ["a.glb", "report.jsonl"]
    for name in makers:
        (pictures / f"{name}.png").unlink()
    (pictures / "x.png").write_bytes(good)
    said = batch("pictures")
    assert (said.code, said.out) == (0, "out/x.glb\n")


def test_a_list_of_pictures_and_prompts(batch, pictures):
    pair = {"pictures": ["pictures/a.png", "pictures/b.png"], "name": "pairs/one"}
    lines = (
        "# things",
        "\u6905\u5b50",
        '{"prompt": " "}',
        '{"prompt": "a table", "seed": 3}',
        json.dumps(pair),
    )
    Path("list.txt").write_text("\n".join(lines), encoding="utf-8")
    said = batch("list.txt", "--mode", "multidiffusion")
    assert said.code == 8
    assert said.out.split() == ["out/a-table.glb", "out/pairs/one.glb"]
    assert [line.get("exit_code") for line in report()] == [3, 3, None, None]
    assert [line["seed"] for line in report()] == [42, 42, 3, 42]
    assert report()[3]["settings"]["mode"] == "multidiffusion"


def test_everything_that_one_run_writes_is_written_for_each(batch, pictures):
    more = ("pictures/a.png", "--save-bundles", "--previews", "--format", "obj")
    said = batch(*more)
    assert said.code == 0, said.err
    (line,) = report()
    assert (line["outputs"][0]["path"], line["outputs"][0]["preview"]) == ("a.obj", "a-preview.png")
    assert line["bundle"] == "a.safetensors"
    assert {"a.obj", "a.mtl", "a-preview.png", "a.safetensors"} < set(files_in())
    assert batch(*more).out == ""
    Path("out/a-preview.png").unlink()
    assert batch("pictures/a.png", "--format", "obj").out == "", "previews are not asked for"


def test_a_file_of_somebody_else_is_kept_without_force_and_strict_counts_bad_quality(batch, pictures):
    Path("out").mkdir()
    Path("out/a.glb").write_text("precious")
    assert batch("pictures/a.png").code == 8
    assert Path("out/a.glb").read_text() == "precious"
    assert report()[0]["exit_code"] == 7
    assert batch("pictures/a.png", "--force", "--strict").code == 8
    assert Path("out/a.glb").read_bytes()[:4] == b"glTF"
    assert [(line["status"], line["exit_code"]) for line in report()] == [("failed", 7), ("failed", 6)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nothing",), 3),
        (("empty",), 3),
        (("list.txt",), 3),
        (("mesh.glb",), 2),
        (("a.png", "--format", "xyz"), 2),
        (("a.png", "--format", "spz", "--as", "mesh"), 2),
        (("a.png", "--limit", 0), 2),
        (("a.png", "--resolution", "512", "--pipeline", "512"), 2),
        (("a.png", "--preview", "x.png"), 2),
        (("a.png", "--model", "no-such-model"), 4),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_right_for_any_item_ends_it_before_it_begins(run, tmp_path, arguments, code):
    (tmp_path / "empty").mkdir()
    for name in ("mesh.glb", "a.png"):
        Path(name).write_text("something")
    Path("list.txt").touch()
    run("batch", *arguments, "--out", "out").assert_one_error(code)
    assert not Path("out").exists()


def test_results_need_a_folder(run, pictures):
    run("batch", "pictures").assert_one_error(2)
    Path("file").touch()
    run("batch", "pictures", "--out", "file").assert_one_error(7)


def test_prompts_for_a_model_that_takes_none_end_it_before_it_begins(batch, tmp_path):
    mute = write_tiny_model(tmp_path / "mute", text=False)
    Path("list.txt").write_text("a chair\na table\n")
    batch("list.txt", model=mute).assert_one_error(2)
    batch("list.txt", "--as", "gaussians", model=mute).assert_one_error(2)
    assert not Path("out").exists()


def test_damaged_weights_end_it_at_the_first_item(batch, pictures, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = next((tmp_path / "model" / "ckpts").glob("tex_slat_decoder*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    batch("pictures", "-q", model="model").assert_one_error(4)
    assert report() == []


def failing(monkeypatch, method: str, error: Exception, times: tuple[int, ...]) -> list[Any]:
    """The engines' `method` raises at those of its calls; what it was asked for: pipelines, or faces."""
    load, asked = registry.load_engine, []

    def load_failing(*arguments: Any, **options: Any) -> Any:
        engine = load(*arguments, **options)
        right = getattr(engine, method)

        def wrong(*given: Any, **more: Any) -> Any:
            asked.append(given[1][0].faces if method == "export_all" else more.get("pipeline_type"))
            if len(asked) in times:
                raise error
            return right(*given, **more)

        setattr(engine, method, wrong)
        return engine

    monkeypatch.setattr(registry, "load_engine", load_failing)
    return asked


def test_out_of_memory_while_sampling_goes_on_with_a_smaller_grid_for_that_one(batch, pictures, monkeypatch):
    asked = failing(monkeypatch, "sample", OutOfMemory("out of memory in stage `sampling`"), (1, 3))
    said = batch("pictures", "--pipeline", "512")
    assert said.code == 0, said.err
    assert asked == ["512", "64", "512", "64"], "the next one tries the larger grid again"
    for line in report():
        assert line["plan"]["pipeline_type"] == "64"
        assert line["attempts"] == [
            {"error": "out of memory in stage `sampling`", "then": "`--pipeline 64`"},
        ]
    assert "trying again with `--pipeline 64`" in said.err
    assert batch("pictures", "--pipeline", "512").out == "", "it counts as made"


def test_out_of_memory_in_the_export_goes_on_with_fewer_faces_and_does_not_sample_again(
    batch, pictures, monkeypatch
):
    asked = failing(
        monkeypatch, "export_all", RuntimeError("DefaultCPUAllocator: can't allocate memory"), (1,)
    )
    monkeypatch.setattr(maker, "FEWEST_FACES", 100)
    said = batch("pictures/a.png", "--json-events")
    assert said.code == 0, said.err
    assert asked == [2000, 500]
    begun = [event for event in said.events if event.get("stage") == "structure" and event["step"] == 0]
    assert len(begun) == 1
    assert report()[0]["outputs"][0]["faces"] <= 500


def test_when_nothing_can_be_lowered_the_sampled_run_is_kept(batch, pictures, monkeypatch):
    failing(monkeypatch, "decode", OutOfMemory("out of memory in stage `decoding`", hint="use less"), (1,))
    assert batch("pictures", "--limit", 1).code == 8
    (line,) = report()
    assert (line["status"], line["exit_code"], line["bundle"]) == ("failed", 5, "a.safetensors")
    assert "`trellis export out/a.safetensors`" in line["hint"]
    assert files_in() == ["a.safetensors", "report.jsonl"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("a bug"), 1), (UsageError("a texture too small for this one"), 2)],
    ids=str,
)
def test_an_error_after_sampling_is_one_items_own(batch, pictures, monkeypatch, error, code):
    failing(monkeypatch, "decode", error, (1,))
    assert batch("pictures").code == 8
    first, second = report()
    assert (first["exit_code"], first["bundle"]) == (code, "a.safetensors")
    assert second["status"] == "made"


def test_on_a_gpu_the_next_memory_tier_comes_first_and_stays(monkeypatch):
    """Only plans differ here: no GPU is needed to choose one."""
    residency = {"auto": "resident", "medium": "resident", "low": "staged", "minimal": "staged"}

    def load_engine(model: str, machine: registry.Machine, console: Console, **options: Any) -> object:
        tier = "high" if machine.tier == "auto" else machine.tier
        console.facts["plan"] = {"tier": tier, "residency": residency[machine.tier], "budget": len(tier)}
        console.facts["model"] = {"name": model}
        return SimpleNamespace(settings=SimpleNamespace())

    monkeypatch.setattr(registry, "load_engine", load_engine)
    made = maker.Maker(Console(quiet=True), RunOptions(), text=False, pictures=True)
    job: Any = SimpleNamespace(order=None)
    made.open(job.order)
    assert made._lower_tier(job) == "`--vram-tier low`", "`medium` would run just the same"
    assert made._lower_tier(job) is None
    assert made.machine.tier == "minimal"


def command(tiny_model: Path, *more: str) -> list[str]:
    return ["batch", "pictures", "--out", "out", "--model", str(tiny_model), *map(str, FAST), *more]


def environment() -> dict[str, str]:
    """With the kernels that this process has compiled."""
    import warp

    warp.init()
    return {**os.environ, "OMP_NUM_THREADS": "1", "WARP_CACHE_PATH": str(warp.config.kernel_cache_dir)}


def start(tmp_path: Path, tiny_model: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trellis_cli", *command(tiny_model, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_batch_that_was_stopped_goes_on_where_it_was(batch, pictures, tiny_model, tmp_path, number):
    """A bad picture comes first; the signal in the middle of the next one, which takes 1000 steps."""
    empty(pictures / "0.png")
    process = start(tmp_path, tiny_model, "--shape-steps", "1000", "--json-events")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("stage") == "shape":
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert [line["name"] for line in report()] == ["0"]
    left = [".a.claim"] if number == signal.SIGKILL else []
    assert files_in() == [*left, "report.jsonl"]
    if not left:
        return
    (pictures / "0.png").unlink()
    (pictures / "b.png").unlink()
    said = batch("pictures")
    assert (said.code, said.out) == (0, "out/a.glb\n"), said.err
    assert files_in() == ["a.glb", "report.jsonl"]


def test_two_processes_share_the_work(pictures, tiny_model, tmp_path):
    empty(pictures / "c.png")
    workers = [start(tmp_path, tiny_model, "--json") for _ in range(2)]
    said = [json.loads(worker.communicate(timeout=200)[0]) for worker in workers]
    lines = [json.loads(line) for line in (tmp_path / "out/report.jsonl").read_text().splitlines()]
    assert sorted((line["name"], line["status"]) for line in lines) == [
        ("a", "made"),
        ("b", "made"),
        ("c", "failed"),
    ]
    assert sum(facts["made"] for facts in said) == 2
    assert [worker.returncode for worker in workers] == [8, 8]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_disk_that_takes_no_more_ends_it_and_keeps_what_was_made(batch, pictures, tiny_model):
    """The kernel's limit on file size refuses the asset, as a full disk does; the report is smaller."""
    assert batch("pictures", "--limit", 1, "-q").code == 0
    limit = Path("out/report.jsonl").stat().st_size + 12_000
    assert limit < Path("out/a.glb").stat().st_size
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from trellis_cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command(tiny_model)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 7, done.stderr
    assert "cannot write `" in done.stderr and "b.glb" in done.stderr
    assert "Traceback" not in done.stderr
    assert [(line["name"], line["status"]) for line in report()] == [("a", "made"), ("b", "failed")]
    assert files_in() == ["a.glb", "report.jsonl"]


def test_standard_input_is_a_list_too(run, tmp_path, monkeypatch):
    """Nothing can be made of this list, so no model is needed."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one.png\ntwo.png\n")))
    assert run("batch", "-", "--out", "out").code == 8
    assert [line["input"]["picture"] for line in report()] == [
        str(tmp_path / f"{n}.png") for n in ("one", "two")
    ]


@pytest.mark.parametrize("arguments", [(), ("--json-events",)], ids=["text", "events"])
def test_a_person_gets_one_line_for_each_and_a_script_an_event(run, tmp_path, arguments):
    empty(tmp_path / "a.png")
    said = run("batch", "a.png", "--out", "out", *arguments)
    if arguments:
        assert [event["event"] for event in said.events] == ["item", "error"]
        assert said.events[0] == {"event": "item", **report()[0]}
        assert said.events[1]["failed"] == 1
        return
    lines = said.err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/1", "batch", "report"]
    assert "a.png: FAILED: picture `a.png` is empty; copy" in lines[0]
