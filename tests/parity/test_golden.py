"""Golden parity: stored inputs and outputs of the released code, run through ours.

The selection under `tests/golden` covers every released stage; `python -m tests.parity DIR...`
runs any other folder in the same format. Tolerances and their reasons are in each case's sidecar.
"""

from pathlib import Path

import pytest

from tests.parity.__main__ import run_case
from tests.parity.kinds import all_kinds

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(p for folder in ("trellis2", "geometry") for p in (GOLDEN / folder).glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_code_reproduces_the_recorded_outputs(path):
    status, checks, note = run_case(path, all_kinds())
    failed = [f"{c.name}: {c.error:.3g} > {c.limit:.3g} {c.note}" for c in checks if not c.passed]
    assert status in ("passed", "better"), f"{status} {note} {failed}"


def test_a_case_of_an_unknown_kind_is_not_passed(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"case": "odd", "kind": "nobody.knows", "tolerance": {"kind": "exact"}}')
    path.with_suffix(".safetensors").write_bytes((GOLDEN / "trellis2" / "norms.safetensors").read_bytes())
    assert run_case(path, all_kinds())[0] == "unknown"


def test_the_selection_stays_small():
    assert sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) <= 8 * 1024 * 1024
