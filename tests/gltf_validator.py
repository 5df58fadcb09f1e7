"""The Khronos glTF validator, run through node. Needs `npm install` in tests/gltf."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "gltf"


def missing_validator() -> str:
    """What keeps the validator from running here; empty when nothing does."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (FOLDER / "node_modules" / "gltf-validator").is_dir():
        return "gltf-validator is not installed: run `npm install` in tests/gltf"
    return ""


def validate(path: Path) -> dict[str, Any]:
    """The validator's report on a .glb or .gltf file; skips the test when node or the package is absent."""
    if problem := missing_validator():
        pytest.skip(problem)
    result = subprocess.run(
        ["node", str(FOLDER / "validate.mjs"), str(path.resolve())],
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(result.stdout)
    return report


UNKNOWN = ("KHR_draco_mesh_compression", "MSFT_lod")  # extensions that the validator cannot look into


def complaints(path: Path) -> list[str]:
    """Errors, warnings, infos and hints of the validator, one line each.

    Left out is what follows from extensions it does not know: that they are there, that it sees no use for
    the parts that only they use, and that what Draco holds has no tangents.
    """
    messages = validate(path)["issues"]["messages"]
    unknown = [name for name in UNKNOWN if any(name in issue["message"] for issue in messages)]
    known = {"UNSUPPORTED_EXTENSION", "UNUSED_OBJECT"} if unknown else set()
    known |= {"MESH_PRIMITIVE_GENERATED_TANGENT_SPACE"} if UNKNOWN[0] in unknown else set()
    return [f"{issue['code']}: {issue['message']}" for issue in messages if issue["code"] not in known]
