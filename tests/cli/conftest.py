"""`run(*arguments)`: the command line in this process, as exit code, stdout and stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.tiny_model import write_tiny_model
from trellis_cli.app import main


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def assert_one_error(self, code: int) -> None:
        """One line saying what is wrong, one saying what to do, the exit code, no traceback."""
        assert self.code == code, self.err
        lines = [line for line in self.err.splitlines() if line and not line.startswith(("note:", "model"))]
        assert [line.split(":")[0] for line in lines] == ["error", "hint"], self.err
        assert all(len(line.split(": ", 1)[1]) > 10 for line in lines)
        assert "Traceback" not in self.err


Trellis = Callable[..., Run]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trellis:
    """Runs `trellis` in an empty folder (`tmp_path`)."""
    monkeypatch.chdir(tmp_path)

    def trellis(*arguments: object) -> Run:
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Run(code, out, err)

    return trellis


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red box with a dark hole on transparent ground."""
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 30, 76, 80), fill=(200, 40, 30, 255))
    draw.ellipse((40, 44, 58, 62), fill=(30, 10, 10, 255))
    path = tmp_path / "box.png"
    image.save(path)
    return path


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees this machine's model cache or terminal."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in the released layout with tiny random weights, and a grid of 64 besides 512."""
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    path = folder / "pipeline.json"
    pipeline = json.loads(path.read_text())
    pipeline["args"]["default_pipeline_type"] = "64"
    pipeline["args"]["pipeline_types"] = {
        name: {
            "structure_resolution": resolution // 16,
            "image_size": 64,
            "resolution": resolution,
            "shape_model": "shape_slat_flow_model_512",
            "texture_model": "tex_slat_flow_model_512",
        }
        for name, resolution in (("64", 64), ("512", 512))
    }
    path.write_text(json.dumps(pipeline))
    return folder
