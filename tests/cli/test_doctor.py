"""`trellis doctor`: what is wrong with this machine, and the command that fixes it.

Broken machines are described to the checks, not simulated: each check takes what it judges as an argument
or reads it from one function.
"""

from __future__ import annotations

import pytest

from trellis_cli import registry
from trellis_cli.commands import doctor as d
from trellis_core.errors import ModelError
from trellis_core.memory.devices import DeviceInfo

GIB = 1 << 30


def gpu(driver: str = "581.15", capability: tuple[int, int] = (8, 9)) -> DeviceInfo:
    return DeviceInfo(
        kind="cuda",
        name="RTX",
        capability=capability,
        driver=driver,
        total_memory=24 * GIB,
        free_memory=23 * GIB,
    )


def problems(findings) -> list[d.Finding]:
    return [finding for finding in findings if finding.status == d.PROBLEM]


def test_the_report_of_this_machine_answers_every_question(run):
    answer = run("doctor", "--json")
    report = answer.json
    assert answer.code == (1 if any(c["status"] == "problem" for c in report["checks"]) else 0)
    assert {c["check"] for c in report["checks"]} >= {
        "trellis", "python", "gpu", "packages", "torch", "kernel", "plan", "model", "memory", "disk",
    }  # fmt: skip
    assert report["torch"]["version"].startswith("2.")
    assert all({"backend", "why"} == set(choice) for choice in report["kernels"].values())
    assert {"sparse_conv", "attention", "rasterize"} <= set(report["kernels"])
    plans = report["plans"]["trellis2-4b"]
    assert set(plans) == {"512", "1024_cascade", "1536_cascade"}
    assert plans["512"]["peak"] < plans["1024_cascade"]["peak"] < plans["1536_cascade"]["peak"]
    assert {model["name"] for model in report["models"]} == set(registry.MODELS)


def test_every_problem_and_warning_of_this_machine_comes_with_a_fix(run):
    for check in run("doctor", "--json").json["checks"]:
        assert check["status"] in ("ok", "warning", "problem")
        assert check["fix"] or check["status"] == "ok"


def test_the_quick_report_goes_without_torch(run):
    report = run("doctor", "--quick", "--json").json
    assert "torch" not in report and "plans" not in report
    assert {c["check"] for c in report["checks"]} >= {"gpu", "packages", "model", "memory", "disk"}


def test_the_text_goes_to_stdout_and_ends_with_a_verdict(run):
    answer = run("doctor", "--quick")
    assert answer.err == ""
    assert answer.out.splitlines()[0].startswith("trellis")
    assert "problem" in answer.out.splitlines()[-1] or "as it should be" in answer.out.splitlines()[-1]


def test_something_broken_makes_the_exit_code_1(run, monkeypatch):
    broken = d.Finding("torch", d.PROBLEM, "does not run", "python install.py")
    monkeypatch.setattr(d, "check_packages", lambda devices: iter([broken]))
    answer = run("doctor", "--quick")
    assert answer.code == 1
    assert "problem: does not run" in answer.out and "fix: python install.py" in answer.out


def test_a_warning_alone_is_no_failure():
    lines = d.report([d.Finding("disk", d.WARNING, "small", "free some space")])
    assert lines[-1] == "0 problem(s), 1 warning(s)"


def test_a_gpu_without_a_driver_is_a_problem(monkeypatch):
    monkeypatch.setattr(d, "nvidia_hardware", lambda: True)
    (found,) = problems(d.check_gpus((DeviceInfo(kind="cpu"),)))
    assert "driver" in found.text and "580" in found.fix


def test_a_machine_without_any_gpu_is_fine(monkeypatch):
    monkeypatch.setattr(d, "nvidia_hardware", lambda: False)
    assert not problems(d.check_gpus((DeviceInfo(kind="cpu"),)))


def test_a_driver_older_than_any_torch_build_is_a_problem():
    assert not problems(d.check_gpus((gpu("525.60"),)))
    (found,) = problems(d.check_gpus((gpu("470.10"),)))
    assert "470.10" in found.text and "install" in found.fix


def test_a_torch_built_for_the_cpu_beside_a_gpu_is_a_problem(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    found = problems(d.check_torch((gpu(), DeviceInfo(kind="cpu")), {}))
    assert [(f.check, f.fix) for f in found] == [("torch", "python install.py")]
    assert "built for the CPU" in found[0].text


def test_a_torch_without_code_for_the_gpu_is_a_problem(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    texts = [f.text for f in problems(d.check_torch((gpu(capability=(12, 0)),), {}))]
    assert any("no code for RTX" in text and "12.0" in text and "sm_90" in text for text in texts)


def test_a_warp_that_is_too_new_for_the_driver_is_a_problem(monkeypatch):
    monkeypatch.setattr(d, "_version", lambda package: "1.18.0" if package == "warp-lang" else "9.9")
    (found,) = problems(d.check_packages((gpu("570.10"),)))
    assert "warp-lang<1.18" in found.fix
    assert not problems(d.check_packages((gpu("580.10"),)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(d, "_version", lambda package: None if package == "xatlas" else "9.9")
    monkeypatch.setattr(d, "required_packages", lambda: ["torch", "xatlas"])
    (found,) = problems(d.check_packages(()))
    assert "xatlas" in found.text and found.fix == "python install.py"


def test_the_requirements_of_the_project_are_read_from_its_metadata():
    assert {"torch", "warp-lang", "safetensors", "typer"} <= set(d.required_packages())


@pytest.mark.parametrize("name", d.PLACEHOLDERS)
def test_an_empty_package_with_a_famous_name_is_found_and_how_to_remove_it(name, tmp_path, monkeypatch):
    info = tmp_path / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (tmp_path / f"{name}.py").write_text("# placeholder\n")
    (info / "RECORD").write_text(f"{name}.py,,\n{info.name}/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = d.check_placeholders()
    assert found.status == d.WARNING and found.fix == f"pip uninstall -y {name}"


def test_the_real_project_of_that_name_is_left_alone(tmp_path, monkeypatch):
    info = tmp_path / "kaolin-0.18.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kaolin\nVersion: 0.18.0\n")
    (tmp_path / "kaolin.so").write_bytes(bytes(d.PLACEHOLDER_BYTES + 1))
    (info / "RECORD").write_text("kaolin.so,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(d.check_placeholders()) == []


def test_a_damaged_model_is_a_problem_with_the_command_that_fetches_it_again(monkeypatch):
    def damaged(name, *, thorough):
        raise ModelError("`w.safetensors` is cut off", hint="pull")

    monkeypatch.setattr(
        d.models, "status_of", lambda name: d.models.Status(name=name, state="ready", bytes=1, folder=None)
    )
    monkeypatch.setattr(d.models, "verify_model", damaged)
    found = problems(d.check_models({}))
    assert any("cut off" in f.text and f.fix == "trellis models pull trellis2-4b" for f in found)


def test_a_machine_without_a_usable_model_has_a_problem(monkeypatch):
    monkeypatch.setattr(
        d.models, "status_of", lambda name: d.models.Status(name=name, state="absent", bytes=0, folder=None)
    )
    texts = [f.text for f in problems(d.check_models({}))]
    assert "no model can be used" in texts
