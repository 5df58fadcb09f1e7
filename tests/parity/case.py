"""One golden case: inputs and weights on one side, expected outputs on the other.

A runner receives a `Case`, which holds `weights.*`, `in.*` and the sidecar's description, and returns
its outputs by name. Expected outputs are read from the file only afterwards, by the comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

WEIGHTS_ELSEWHERE = re.compile(r"weights are those of case (\w+)")  # how a sidecar says whose weights it uses


@dataclass(frozen=True, slots=True)
class Case:
    """What the code under test may see."""

    name: str
    kind: str
    info: dict[str, Any]  # the sidecar without anything that holds expected values
    inputs: dict[str, Tensor]  # `in.` stripped
    weights: dict[str, Tensor]  # `weights.` stripped

    @property
    def config(self) -> Any:
        return self.info.get("config")

    @property
    def params(self) -> dict[str, Any]:
        return self.info.get("params") or {}

    def weights_of(self, module: str) -> dict[str, Tensor]:
        """State dict of one module when a case has several (`weights.<module>.<key>`)."""
        prefix = module + "."
        return {k[len(prefix) :]: v for k, v in self.weights.items() if k.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: passes when `error <= limit`."""

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # NaN never passes


Runner = Callable[[Case], dict[str, Tensor]]
Comparison = Callable[[Case, dict[str, Tensor], dict[str, Tensor]], list[Check]]


@dataclass(frozen=True, slots=True)
class Kind:
    """How to run a kind of case; `compare` replaces the sidecar's tolerances when they are prose."""

    run: Runner
    compare: Comparison | None = None


def read_case(path: Path) -> Case:
    """Read the part of a case that the code under test may see. `path` is the JSON sidecar."""
    info = json.loads(path.read_text())
    inputs, weights = read_tensors(path, "in."), read_tensors(path, "weights.")
    elsewhere = WEIGHTS_ELSEWHERE.search(info.get("notes") or "")
    if elsewhere and not weights:
        weights = read_tensors(path.with_name(elsewhere[1]), "weights.")
    return Case(info.get("case", path.stem), info["kind"], info, inputs, weights)


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a case whose names begin with `prefix`, which is dropped."""
    with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
        return {k[len(prefix) :]: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118


def read_expected(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, "out.")


def compare_by_tolerance(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Compare every expected tensor by the tolerance that the sidecar gives for it."""
    overrides = case.info.get("tolerance_overrides") or {}
    checks = []
    for name, expected in want.items():
        if name not in got:
            checks.append(Check(name, float("inf"), 0.0, "not computed"))
            continue
        rule = overrides.get(f"out.{name}") or overrides.get(name) or case.info["tolerance"]
        checks.append(compare_tensor(name, got[name], expected, rule))
    return checks


def compare_tensor(name: str, got: Tensor, want: Tensor, rule: dict[str, Any]) -> Check:
    if tuple(got.shape) != tuple(want.shape):
        return Check(name, float("inf"), 0.0, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    kind = rule.get("kind", "allclose")
    if kind == "exact":
        wrong = (got.cpu() != want).sum().item() if want.numel() else 0
        return Check(name, float(wrong), 0.0, "" if not wrong else "values differ")
    a, b = got.detach().cpu().double(), want.double()
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return Check(name, float("nan"), 0.0, "not finite where it should be")
    if want.numel() == 0:
        return Check(name, 0.0, 0.0)
    if kind == "allclose":
        # the worst error in units of its allowance atol + rtol * |expected|
        allowance = rule["atol"] + rule["rtol"] * b.abs()
        return Check(name, ((a - b).abs() / allowance).max().item(), 1.0)
    if kind == "rel_l2":
        return Check(name, ((a - b).norm() / b.norm().clamp_min(1e-30)).item(), rule["max"])
    if kind in ("max_abs", "uint8_max_abs"):
        return Check(name, (a - b).abs().max().item(), rule["max"])
    return Check(name, float("inf"), 0.0, f"unknown tolerance `{kind}`")
