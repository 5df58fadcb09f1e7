"""What all tests share: how hypothesis searches, and that every GLB they write is a valid one."""

import json
import os

import pytest
from hypothesis import settings

from tests.gltf_validator import complaints, missing_validator

# A loaded machine is no reason to fail. On CI the same examples are tried every time.
settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("suite")


def is_ours(content: bytes) -> bool:
    """Whether this is a GLB that trellis wrote; tests also make files of other programs, and damaged ones."""
    if content[:4] != b"glTF":
        return False
    length = int.from_bytes(content[12:16], "little")
    return json.loads(content[20 : 20 + length])["asset"].get("generator", "").startswith("trellis")


@pytest.fixture(scope="session", autouse=True)
def every_glb_is_valid(tmp_path_factory):
    """After the last test, the Khronos validator reads every GLB below the tests' folders."""
    yield
    if missing_validator():
        return  # test_glb.py is skipped then, and says what is missing
    written = [
        path
        for path in sorted(tmp_path_factory.getbasetemp().rglob("*.glb"))
        if path.is_file() and not path.is_symlink() and is_ours(path.read_bytes())
    ]
    wrong = {str(path): found for path in written if (found := complaints(path))}
    assert not wrong, wrong
