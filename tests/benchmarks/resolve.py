"""Whether the project can be installed elsewhere: other Pythons, systems and processors, from wheels alone.

    pip install uv && python tests/benchmarks/resolve.py

Asks the package index which versions would be chosen, with `uv pip compile`. Installs nothing.
Macs are taken to run macOS 14; on macOS 13 the newest torch is 2.11.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = (
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_34",
    "x86_64-pc-windows-msvc",
    "aarch64-apple-darwin",
)
# what is installed -> (extras, further requirement)
CASES = {
    "as it is": ((), None),
    "torch 2.13.0": ((), "torch==2.13.0"),
    "torch 2.7": ((), "torch>=2.7,<2.8"),
    "for tests": (("image", "dev"), None),
    "every extra": (
        ("server", "image", "video", "usd", "draco", "onnx", "print", "ray", "postgres", "modal"),
        None,
    ),
}


def main() -> int:
    uv = shutil.which("uv")
    if uv is None:
        print("uv is not installed: `pip install uv`", file=sys.stderr)
        return 2
    failed = 0
    for case, (extras, further) in CASES.items():
        for platform in PLATFORMS:
            for python in PYTHONS:
                started = time.monotonic()
                versions, problem = resolve(uv, python, platform, extras, further)
                failed += problem is not None
                shown = (
                    problem
                    or f"{len(versions)} packages, torch {versions['torch']}, warp {versions['warp-lang']}"
                )
                seconds = time.monotonic() - started
                print(f"{case:<14}{platform:<26}{python:<6}{seconds:5.1f} s  {shown}", flush=True)
    print(f"{failed} of {len(CASES) * len(PLATFORMS) * len(PYTHONS)} cannot be resolved")
    return min(failed, 1)


def resolve(
    uv: str, python: str, platform: str, extras: tuple[str, ...], further: str | None
) -> tuple[dict[str, str], str | None]:
    """Chosen version of every package, or the first line of the reason why there is none."""
    command = [uv, "pip", "compile", str(ROOT / "pyproject.toml"), "--quiet", "--no-annotate", "--no-header"]
    command += ["--python-version", python, "--python-platform", platform, "--only-binary", ":all:"]
    for extra in extras:
        command += ["--extra", extra]
    if further is not None:
        command += ["--constraint", "-"]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    answer = subprocess.run(
        command, input=further, capture_output=True, text=True, check=False, env=environment
    )
    if answer.returncode != 0:
        return {}, " ".join(answer.stderr.split())[:300]
    return dict(re.findall(r"^([\w.-]+)==(\S+)", answer.stdout, re.MULTILINE)), None


if __name__ == "__main__":
    sys.exit(main())
