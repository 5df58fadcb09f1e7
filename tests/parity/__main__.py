"""Run golden cases: `python -m tests.parity DIR...`

One line per case with its worst error against its tolerance. Exit code 1 when a case fails or is
of a kind nobody knows how to run; pending kinds are listed and do not fail.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

import torch

from tests.parity.case import Case, Check, Kind, compare_by_tolerance, read_case, read_expected
from tests.parity.exceptions import BETTER_BY_DESIGN, PENDING
from tests.parity.kinds import all_kinds


def run_case(path: Path, kinds: dict[str, Kind]) -> tuple[str, list[Check], str]:
    """Returns (status, checks, note); status is passed, failed, pending, better or unknown."""
    case = read_case(path)
    pending = PENDING.get(case.kind)
    if case.kind not in kinds:
        return ("pending", [], pending) if pending else ("unknown", [], f"no runner for kind `{case.kind}`")
    checks = check_case(case, path, kinds[case.kind])
    failed = [c for c in checks if not c.passed]
    if not checks:
        return "failed", checks, "the case has nothing to compare"
    if failed and case.kind in BETTER_BY_DESIGN:
        excused = BETTER_BY_DESIGN[case.kind]
        if all(any(c.name.startswith(name) for name in excused.outputs) for c in failed):
            return "better", [c for c in checks if c.passed], excused.reason
    return ("failed" if failed else "passed"), checks, ""


def check_case(case: Case, path: Path, kind: Kind) -> list[Check]:
    with torch.no_grad():
        got = kind.run(case)
    compare = kind.compare or compare_by_tolerance
    return compare(case, got, read_expected(path))


def worst(checks: list[Check]) -> Check | None:
    def badness(check: Check) -> float:
        if check.error != check.error:
            return float("inf")
        return check.error / check.limit if check.limit > 0 else (0.0 if check.error == 0 else float("inf"))

    return max(checks, key=badness, default=None)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("usage: python -m tests.parity DIR...", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    kinds = all_kinds()
    counts: dict[str, int] = {}
    for folder in arguments:
        paths = [p for p in sorted(Path(folder).glob("*.json")) if p.with_suffix(".safetensors").exists()]
        if not paths:
            print(f"error: no golden cases in `{folder}`", file=sys.stderr)
            return 2
        for path in paths:
            start = time.perf_counter()
            try:
                status, checks, note = run_case(path, kinds)
            except Exception:
                status, checks, note = "failed", [], traceback.format_exc(limit=-3)
            counts[status] = counts.get(status, 0) + 1
            check = worst(checks)
            measured = f"{check.name} {check.error:.3g} <= {check.limit:.3g} {check.note}" if check else ""
            if check and not check.passed:
                measured = measured.replace(" <= ", " > ", 1)
            print(
                f"{status:8} {path.parent.name}/{path.stem:32} {len(checks):4} checks "
                f"{time.perf_counter() - start:6.2f} s  {measured}  {note}".rstrip(),
                flush=True,
            )
    print(", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return 1 if counts.get("failed") or counts.get("unknown") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
