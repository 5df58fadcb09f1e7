"""Gates, and tables in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.quality.table import MEASURES


@dataclass(frozen=True, slots=True)
class Gate:
    """A demand on one number of the report."""

    name: str
    path: tuple[str, ...]  # where the number stands
    limit: float | tuple[str, ...]  # a number, or where it stands
    above: bool = True  # or below


PICTURE = ("picture", "rows", "model", "mean")
GATES = (
    Gate("judge of categories on held-out truth", ("judges", "category"), 0.99),
    Gate("category from pictures", (*PICTURE, "category"), 0.95),
    Gate("category from prompts", ("text", "prompts", "category"), 0.98),
    Gate(
        "structure IoU above pixel retrieval",
        (*PICTURE, "IoU"),
        ("picture", "rows", "retrieval", "mean", "IoU"),
    ),
    Gate("F-score at 0.05", (*PICTURE, "F@0.05"), 0.90),
    Gate("F-score at 0.02", (*PICTURE, "F@0.02"), 0.70),
    Gate("color error", (*PICTURE, "color"), 0.10, above=False),
    Gate("main color from prompts", ("text", "main color", "colors"), 0.90),
    Gate("colors of two parts from prompts", ("text", "two parts", "colors"), 0.70),
)


def markdown(report: Mapping[str, Any]) -> str:
    """Everything that was measured, for the model card."""
    sections = []
    if "gates" in report:
        sections.append("### Gates\n\n" + gate_table(report["gates"]))
    titles = {
        "picture": "Held-out objects from pictures",
        "novel": "Objects unlike any training object",
        "renderer": "Pictures by another renderer",
    }
    for part, title in titles.items():
        rows = find(report, (part, "rows"))
        if rows:
            tables = [row_table(rows, "mean"), row_table(rows, "median")]
            sections.append("\n\n".join([f"### {title}", *tables]))
    model = find(report, ("picture", "rows", "model"))
    if model:
        sections.append("### By category, the weakest first\n\n" + category_table(model))
    if "text" in report:
        sections.append("### Prompts\n\n" + rate_table(report["text"]))
    if "strange" in report:
        sections.append("### Pictures of other things\n\n" + strange_table(report["strange"]["pictures"]))
    if "speed" in report:
        spent = ", ".join(f"{k} {v}" for k, v in report["speed"].items() if isinstance(v, float))
        sections.append(f"### Seconds of single runs\n\n{spent}")
    return "\n\n".join(sections)


def check_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every gate with its value, its limit and whether it is met; None where nothing was measured."""
    checked = []
    for gate in GATES:
        value = find(report, gate.path)
        limit = find(report, gate.limit) if isinstance(gate.limit, tuple) else gate.limit
        met = None
        if value is not None and limit is not None:
            met = value >= limit if gate.above else value <= limit
            if isinstance(gate.limit, tuple):
                met = value > limit
        checked.append({"gate": gate.name, "value": value, "limit": limit, "above": gate.above, "met": met})
    return checked


def find(report: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The entry at a path, or None."""
    entry: Any = report
    for name in path:
        if not isinstance(entry, Mapping) or name not in entry:
            return None
        entry = entry[name]
    return entry


def gate_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    words = {True: "met", False: "**not met**", None: "not measured"}
    lines = ["| gate | limit | measured | |", "|---|---|---|---|"]
    for gate in gates:
        sign = "≥" if gate["above"] else "≤"
        limit = "" if gate["limit"] is None else f"{sign} {_number(gate['limit'])}"
        lines.append(f"| {gate['gate']} | {limit} | {_number(gate['value'])} | {words[gate['met']]} |")
    return "\n".join(lines)


def row_table(rows: Mapping[str, Mapping[str, Any]], statistic: str = "mean") -> str:
    """Markdown: one line for each row, means (or medians) of all measures."""
    measures = [m for m in MEASURES if statistic == "mean" or m != "category"]
    lines = [f"| {statistic} | n | {' | '.join(measures)} | failed |", "|---" * (len(measures) + 3) + "|"]
    for name, row in rows.items():
        numbers = " | ".join(_number(row[statistic].get(m)) for m in measures)
        lines.append(f"| {name} | {row['n']} | {numbers} | {row['failed']} |")
    return "\n".join(lines)


def category_table(row: Mapping[str, Any]) -> str:
    """Markdown: means by category, the weakest F-score first."""
    lines = [f"| category | n | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 2) + "|"]
    for name, entry in sorted(row["by category"].items(), key=lambda item: item[1]["F@0.02"]):
        numbers = " | ".join(_number(entry.get(m)) for m in MEASURES)
        lines.append(f"| {name} | {entry['n']} | {numbers} |")
    return "\n".join(lines)


def rate_table(text: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: the text part."""
    columns = ("category", "colors", "both")
    lines = [f"| prompts | n | {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for name, entry in text.items():
        if isinstance(entry, Mapping) and "category" in entry:
            numbers = " | ".join(_number(entry.get(c)) for c in columns)
            lines.append(f"| {name} | {entry['n']} | {numbers} |")
    return "\n".join(lines)


def strange_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what came of pictures of other things."""
    lines = ["| picture | familiarity | said | became | voxels |", "|---|---|---|---|---|"]
    for e in entries:
        known = _number(e["familiarity"])
        lines.append(f"| {e['picture']} | {known} | {e['said']} | {e['became']} | {e['voxels']:,} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
