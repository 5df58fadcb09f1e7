"""What the project promises as a package: import directions, a light core, a wheel with its data.

The layers themselves are checked by import-linter from `pyproject.toml`, which runs here as well.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "trellis": ROOT / "trellis",
    "trellis2": ROOT / "trellis2",
    "trellis_core": ROOT / "src/trellis_core",
    "trellis_cli": ROOT / "src/trellis_cli",
}
SOURCES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
HEAVY = {"torch", "warp", "numpy", "scipy", "cv2", "trimesh", "pydantic", "triton"}


def python(code: str) -> str:
    """Run code in a fresh interpreter that sees no GPU; returns what it printed."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_the_import_directions_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_core_imports_on_a_machine_without_a_gpu():
    assert python("import trellis_core, trellis_core.runtime; print('fine')") == "fine"


def test_importing_the_core_loads_nothing_heavy_and_prints_nothing():
    loaded = python(
        "import sys, trellis_core, trellis_core.errors, trellis_core.memory.devices; print(*sys.modules)"
    )
    assert not HEAVY & set(loaded.split())


def test_the_quick_examination_imports_no_torch():
    code = (
        "import sys\n"
        "from trellis_cli.commands.doctor import run_doctor\n"
        "run_doctor(quick=True)\n"
        "print(*sys.modules)"
    )
    assert not (HEAVY - {"numpy"}) & set(python(code).split())


def test_the_environment_is_read_by_the_command_line_only():
    """Settings come as arguments; `install.py` is the other place."""
    readers = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if not path.is_relative_to(PACKAGES["trellis_cli"])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "getenv", "putenv")
    ]
    assert readers == []


def test_library_code_prints_nothing():
    """Scripts that train report to their terminal; what others import is silent."""
    printers = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if not path.is_relative_to(PACKAGES["trellis_cli"]) and "training" not in str(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printers == []


def test_the_supported_python_versions_are_said_once_and_the_same():
    project = read_pyproject()["project"]
    install = importlib.import_module("install")
    assert project["requires-python"] == ">=3.10,<3.14"
    assert (install.OLDEST_PYTHON, install.NEWEST_PYTHON) == ((3, 10), (3, 13))
    torch = next(d for d in project["dependencies"] if d.startswith("torch"))
    assert torch == "torch>={}.{},<{}.{}".format(*install.OLDEST_TORCH, *install.FIRST_UNTRIED_TORCH)


def test_no_placeholder_and_no_compiled_package_is_ever_required():
    project = read_pyproject()["project"]
    required = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {
        requirement.partition(">")[0].partition("=")[0].partition(";")[0].lower() for requirement in required
    }
    assert not names & {"kaolin", "cumesh", "drtk", "nvdiffrast", "flash-attn", "xformers", "spconv", "rembg"}
    assert not names & {"torchvision", "transformers", "gradio", "pymeshlab", "pymeshfix", "open3d"}


def test_the_wheel_holds_the_packages_their_configurations_and_the_embedded_model(tmp_path):
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    answer = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    wheel = zipfile.ZipFile(tmp_path / answer.stdout.split()[-1])
    names = set(wheel.namelist())
    for package, folder in PACKAGES.items():
        sources = {path.relative_to(folder) for path in folder.rglob("*.py")}
        assert {f"{package}/{path.as_posix()}" for path in sources} <= names
    data = [
        *((path, "trellis2/_embedded") for path in files_below(ROOT / "trellis2/_embedded")),
        *((path, "trellis/_configs") for path in files_below(ROOT / "configs/trellis")),
        *((path, "trellis2/_configs") for path in files_below(ROOT / "configs/trellis2")),
        *((path, "trellis_cli/_configs") for path in files_below(ROOT / "configs/presets")),
    ]
    assert "trellis2/_configs/trellis2-4b/pipeline.json" in names
    assert "trellis/_configs/text-xlarge/pipeline.json" in names
    assert "trellis2/_embedded/pipeline.json" in names
    for path, prefix in data:
        assert any(name.startswith(prefix) and name.endswith(path.name) for name in names), path
    tops = {name.partition("/")[0] for name in names}
    assert tops == {*PACKAGES, next(top for top in tops if top.endswith(".dist-info"))}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"trellis = trellis_cli.app:main" in wheel.read(entry)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def read_pyproject() -> dict:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
