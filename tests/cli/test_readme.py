"""Every `trellis` command in the documentation exists and takes the options it is shown with."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer

from trellis_cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[str]:
    """Lines of code blocks and inline code that start with `trellis` and a command."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
        inline = re.findall(r"`([^`\n]+)`", text)
        for line in (*blocks, *inline):
            words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 else line.split()
            if len(words) > 1 and Path(words[0]).name == "trellis" and not words[1].startswith("-"):
                found[" ".join(words[1:])] = None
    return list(found)


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_in_the_documentation_is_understood(line):
    words = shlex.split(line)
    assert words[0] in COMMANDS, f"there is no command `{words[0]}`"
    module = import_module(f"trellis_cli.commands.{COMMANDS[words[0]].module}")
    command, arguments = typer.main.get_command(module.app), words[1:]
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not arguments or arguments[0].startswith("-"):
            break
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments and arguments != ["--help"]:  # else named, not shown: `trellis models pull`
        command.make_context("trellis", list(arguments), resilient_parsing=False)


def test_the_python_of_the_readme_uses_names_that_exist():
    import trellis2
    from trellis2.pipeline import Pipeline
    from trellis_core.geometry.types import Asset, QualityReport

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    compile(block, "README.md", "exec")
    assert "trellis2.load(" in block and callable(trellis2.load)
    assert "pipeline.run(" in block and callable(Pipeline.run)
    assert "asset.save(" in block and callable(Asset.save)
    assert "asset.quality.problems" in block
    assert "quality" in Asset.__dataclass_fields__ and "problems" in QualityReport.__dataclass_fields__


def test_files_that_the_readme_points_to_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    paths = re.findall(r"`((?:src|trellis2|configs|examples)/[^`\s]+)`", text)
    for path in (*links, *paths):
        assert (ROOT / path).exists(), path
