"""install.py: which torch for which machine, what it reads from the driver, and what it refuses.

Not tested here: an installation from nothing; the report of a change says when that was done last.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import install
from install import Gpu, Machine, SetupError, TorchBuild, choose_torch, parse_nvidia_smi

ROOT = Path(install.__file__).parent


def machine(
    capability: tuple[int, int] | None = None,
    driver: int | None = None,
    *others: tuple[int, int],
    system: str = "Linux",
    arch: str = "x86_64",
    rocm: tuple[int, int] | None = None,
) -> Machine:
    found = () if driver is None else tuple(Gpu("GPU", c) for c in (capability, *others))
    return Machine(system, arch, found, None if driver is None else (driver, 12), rocm)


@pytest.mark.parametrize(
    ("capability", "driver", "tag", "requirement"),
    [
        ((7, 5), 580, "cu130", "torch==2.13.0"),
        ((9, 0), 590, "cu130", "torch==2.13.0"),
        ((12, 0), 581, "cu130", "torch==2.13.0"),
        ((13, 0), 600, "cu130", "torch==2.13.0"),  # a GPU that nobody knows yet
        ((12, 0), 572, "cu128", "torch>=2.8,<2.12"),
        ((10, 0), 570, "cu128", "torch>=2.8,<2.12"),
        ((8, 9), 572, "cu126", "torch==2.13.0"),
        ((7, 5), 525, "cu126", "torch==2.13.0"),
        ((6, 1), 580, "cu126", "torch==2.13.0"),
        ((7, 0), 535, "cu126", "torch==2.13.0"),
        (None, 580, "cu130", "torch==2.13.0"),  # drivers too old to tell the capability are below 510
        (None, 571, "cu128", "torch>=2.8,<2.12"),
    ],
)
def test_the_torch_build_follows_driver_and_compute_capability(capability, driver, tag, requirement):
    build = choose_torch(machine(capability, driver))
    assert (build.tag, build.requirement, build.device) == (tag, requirement, "cuda")
    assert build.index == f"https://download.pytorch.org/whl/{tag}"


@pytest.mark.parametrize(
    ("capability", "driver", "needed"), [((12, 0), 560, "570"), ((8, 6), 510, "525"), ((10, 0), 550, "570")]
)
def test_a_driver_that_is_too_old_gets_the_cpu_build_and_says_which_one_is_needed(capability, driver, needed):
    build = choose_torch(machine(capability, driver))
    assert (build.tag, build.device) == ("cpu", "cpu")
    assert needed in build.reason and "update" in build.reason


def test_two_gpus_get_the_build_that_serves_the_older_one():
    assert choose_torch(machine((8, 6), 580, (6, 1))).tag == "cu126"


def test_a_new_gpu_beside_one_that_no_build_serves_as_well_wins():
    assert choose_torch(machine((12, 0), 580, (6, 1))).tag == "cu130"


@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_a_machine_without_a_gpu_gets_exactly_the_tested_torch_for_the_cpu(system):
    build = choose_torch(machine(system=system))
    assert (build.tag, build.requirement, build.fallback, build.device) == (
        "cpu",
        "torch==2.13.0",
        "torch==2.13.0",
        "cpu",
    )


def test_apple_silicon_gets_the_ordinary_wheel():
    build = choose_torch(machine(system="Darwin", arch="aarch64"))
    assert (build.tag, build.requirement, build.device) == (None, "torch>=2.7,<2.14", "mps")


def test_a_mac_with_an_intel_processor_is_refused_with_a_reason():
    with pytest.raises(SetupError, match="Intel"):
        choose_torch(machine(system="Darwin"))


@pytest.mark.parametrize(
    ("rocm", "tag"), [((7, 3), "rocm7.2"), ((7, 0), "rocm7.0"), ((6, 4), "rocm6.4"), ((0, 0), "rocm6.3")]
)
def test_rocm_takes_the_newest_tag_that_is_not_newer_than_what_is_installed(rocm, tag):
    assert choose_torch(machine(rocm=rocm)).tag == tag


@pytest.mark.parametrize(
    ("capability", "driver", "fallback"),
    [((8, 9), 535, "torch>=2.8,<2.11"), ((6, 1), 580, "torch>=2.7,<2.8"), ((12, 0), 572, "torch>=2.8,<2.11")],
)
def test_the_default_index_gets_a_version_whose_cuda_the_driver_can_run(capability, driver, fallback):
    """From torch 2.11 the default index has CUDA 13, which needs driver 580; 2.7 has 12.6, for old GPUs."""
    assert choose_torch(machine(capability, driver)).fallback == fallback


@given(
    st.lists(st.tuples(st.integers(5, 15), st.integers(0, 9)) | st.none(), max_size=4),
    st.integers(300, 700),
    st.sampled_from(["Linux", "Windows"]),
    st.sampled_from(["x86_64", "aarch64"]),
)
def test_every_machine_gets_some_build_inside_the_supported_range(capabilities, driver, system, arch):
    gpus = tuple(Gpu("GPU", capability) for capability in capabilities)
    build = choose_torch(Machine(system, arch, gpus, (driver, 0) if gpus else None))
    assert build.requirement.startswith("torch") and build.fallback.startswith("torch")
    assert build.tag in ("cpu", "cu126", "cu128", "cu130")
    assert (build.device == "cpu") == (build.tag == "cpu")
    if build.tag == "cu130":
        assert driver >= 580


def test_the_answer_of_nvidia_smi_is_read_line_by_line():
    gpus, driver = parse_nvidia_smi("NVIDIA H100, 80GB HBM3, 9.0, 570.86.15\nTesla P40, 6.1, 570.86.15\n")
    assert gpus == (Gpu("NVIDIA H100, 80GB HBM3", (9, 0)), Gpu("Tesla P40", (6, 1)))
    assert driver == (570, 86, 15)


def test_a_capability_that_the_driver_does_not_know_is_left_open():
    assert parse_nvidia_smi("GeForce, [N/A], 470.10\n") == ((Gpu("GeForce", None),), (470, 10))


@given(st.text())
def test_whatever_nvidia_smi_says_reading_it_never_fails(text):
    found = parse_nvidia_smi(text)
    assert found is None or (found[0] and found[1])


@pytest.mark.parametrize("version", [(3, 9), (3, 14), (2, 7), (4, 0)])
def test_other_pythons_are_refused_with_a_hint(version):
    with pytest.raises(SetupError, match=r"3\.10 to 3\.13") as caught:
        install.check_python(version)
    assert "install" in caught.value.hint


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_pythons_pass(version):
    install.check_python(version)


def test_a_python_of_32_bit_is_refused():
    with pytest.raises(SetupError, match="32 bit"):
        install.check_python((3, 12), bits=32)


def test_a_linux_without_glibc_is_refused():
    with pytest.raises(SetupError, match="glibc"):
        install.check_platform(machine(), "")


@pytest.mark.parametrize(
    ("facts", "stays"),
    [
        ({"version": "2.13.0+cpu", "works": True}, True),
        ({"version": "2.7.1+cu126", "works": True}, True),
        ({"version": "2.14.1", "works": True}, True),
        ({"version": "2.6.0", "works": True}, False),
        ({"version": "2.15.0", "works": True}, False),
        ({"version": "2.13.0", "works": False}, False),
        ({"version": "2.13.0", "error": "no kernel image is available"}, False),
        ({"error": "No module named torch"}, False),
    ],
)
def test_a_torch_that_works_and_is_in_range_is_never_replaced(facts, stays):
    assert install.is_good(facts) is stays


def test_the_torch_of_this_environment_runs_a_real_kernel():
    assert install.is_good(install.probe_torch(Path(sys.prefix), "cpu"))


def test_an_environment_without_a_working_python_fails_the_probe(tmp_path):
    python = install.venv_python(tmp_path)
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    assert install.probe_torch(tmp_path, "cpu") == {"error": "Python ended with 3"}


def test_a_server_that_does_not_answer_counts_as_unreachable():
    assert not install.reachable("http://127.0.0.1:9/whl/cpu/torch/")


def test_a_folder_that_is_no_environment_is_never_emptied(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(SetupError, match="no Python environment"):
        install.make_venv(tmp_path)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_too_little_space_stops_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "free_gigabytes", lambda path: 1.0)
    build = TorchBuild("cpu", "torch==2.13.0", "torch==2.13.0", "test", "cpu")
    monkeypatch.setattr(install, "probe_torch", lambda venv, device: {"error": "No module named torch"})
    with pytest.raises(SetupError, match=r"1\.0 GB free") as caught:
        install.install_torch(tmp_path, build)
    assert "--venv" in caught.value.hint


def test_torch_comes_from_the_default_index_at_once_when_its_own_cannot_be_reached(tmp_path, monkeypatch):
    answers = iter(
        [{"error": "No module named torch"}, {"version": "2.13.0", "works": True, "device": "cpu"}]
    )
    asked = []
    monkeypatch.setattr(install, "probe_torch", lambda venv, device: next(answers))
    monkeypatch.setattr(install, "reachable", lambda url: False)
    monkeypatch.setattr(install, "free_gigabytes", lambda path: 100.0)
    monkeypatch.setattr(install, "pip", lambda venv, *arguments: asked.append(arguments) or True)
    install.install_torch(tmp_path, choose_torch(machine()))
    assert asked == [("torch==2.13.0",)]


def test_an_adapter_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(SetupError, match="needs a GPU"):
        install.install_adapter(tmp_path, "xformers", "2.13.0", "cpu")


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_torch_is_held_at_its_public_version_whatever_the_build_calls_itself(version, tmp_path):
    """The default index's package is `2.13.0`, and the torch in it says `2.13.0+cu130`."""
    held = install.write_constraints(tmp_path, version).read_text().split()
    assert held == ["torch==2.13.0", "triton-windows==3.7.*"]


def test_every_supported_torch_has_its_triton_for_windows():
    assert sorted(install.TRITON_OF_TORCH) == list(
        range(install.OLDEST_TORCH[1], install.FIRST_UNTRIED_TORCH[1])
    )


def test_the_stamp_changes_with_the_machine_and_survives_otherwise(tmp_path):
    assert install.signature(machine(), tmp_path) == install.signature(machine(), tmp_path)
    assert install.signature(machine(), tmp_path) != install.signature(machine((8, 6), 580), tmp_path)


@pytest.mark.parametrize("text", ["", "not json", "[1]", "null"])
def test_a_damaged_stamp_counts_as_none(tmp_path, text):
    (tmp_path / install.STAMP).write_text(text)
    assert install.read_stamp(tmp_path) in ({},)


def test_a_finished_installation_is_left_alone(tmp_path, monkeypatch):
    """The second run reads the stamp and starts nothing."""
    bin_folder = install.venv_python(tmp_path).parent
    bin_folder.mkdir()
    install.venv_python(tmp_path).touch()
    stamp = {
        "signature": install.signature(install.detect(), tmp_path),
        "done": ["torch", "project", "image"],
    }
    (tmp_path / install.STAMP).write_text(json.dumps(stamp))
    monkeypatch.setattr(install, "make_venv", lambda venv: pytest.fail("nothing was to be done"))
    assert install.main(["--extras", "image", "--venv", str(tmp_path)]) == 0


def test_the_dry_run_prints_the_plan_and_creates_nothing(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "install.py"),
        "--dry-run",
        "--extras",
        "dev",
        "--venv",
        str(tmp_path / "new"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "dev, project, torch" in answer.stdout and "torch==2.13.0" in answer.stdout
    assert not (tmp_path / "new").exists()


def test_an_unknown_extra_is_named(capsys):
    with pytest.raises(SystemExit):
        install.main(["--extras", "nonsense", "--dry-run"])
    assert "nonsense" in capsys.readouterr().err
