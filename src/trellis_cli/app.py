"""The command `trellis`: find the command's module, run it, turn what happens into text and an exit code.

The only place that knows exit codes. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from trellis_cli.console import Console, console_for, discard_stdout, paint
from trellis_core import errors

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "something is broken (doctor), or an internal error",
    2: "wrong usage",
    3: "bad input",
    4: "model missing or damaged",
    5: "out of memory",
    6: "result failed the quality check under --strict",
    7: "result could not be written",
    8: "some of a batch could not be made",
    130: "interrupted",
}

CODE_OF: Mapping[type[BaseException], int] = {
    errors.UsageError: 2,
    errors.InputError: 3,
    errors.ModelError: 4,
    errors.OutOfMemory: 5,
    MemoryError: 5,
    errors.QualityError: 6,
    errors.OutputError: 7,
    errors.Cancelled: 130,
    KeyboardInterrupt: 130,
}

WRITE_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
COMPLETION = ("install_completion", "show_completion")  # options of `trellis`, not of its commands
REPORT = "run again with `--debug` to see where it happened, and report it with that output"
OUT_OF_MEMORY = "close other programs, or use less: `--resolution 512`, `--vram-tier low`, or `--device cpu`"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives, and its line in `trellis --help`."""

    module: str
    help: str
    panel: str
    hidden: bool = False


MAKE, CHECK, MACHINE = "Make", "Check", "This machine"
COMMANDS: Mapping[str, Entry] = {
    "generate": Entry("generate", "Turn a picture into a 3D asset.", MAKE),
    "image": Entry("generate", "The same as `generate`.", MAKE, hidden=True),
    "multi-image": Entry("multi_image", "Turn several pictures of one object into a 3D asset.", MAKE),
    "text": Entry("text", "Turn a description into a 3D asset.", MAKE),
    "batch": Entry("batch", "Make an asset of each picture in a folder or line of a list.", MAKE),
    "variant": Entry("variant", "Keep a coarse shape, make new detail and colors.", MAKE),
    "edit": Entry("edit", "Change a part of a saved run, keep the rest.", MAKE),
    "texture": Entry("texture", "Paint a mesh after a picture.", MAKE),
    "export": Entry("export", "Make an asset from a saved run, without sampling again.", MAKE),
    "convert": Entry("convert", "Write a mesh in another format, simplified, repaired or printable.", MAKE),
    "render": Entry("render", "Draw an asset or a saved run: pictures, sheets, films, maps.", MAKE),
    "inspect": Entry("inspect", "Say what a file holds and whether it is sound.", CHECK),
    "compare": Entry("compare", "Measure and show how two meshes differ.", CHECK),
    "train": Entry("train", "Train by a recipe, or fine-tune on your own meshes.", MACHINE),
    "models": Entry("models", "List, download and verify models.", MACHINE),
    "doctor": Entry("doctor", "Check this machine and say what to fix.", MACHINE),
}


class LazyGroup(TyperGroup):
    """Lists commands from the table; imports a command's module only when the command is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(name=cmd_name, help=entry.help, rich_help_panel=entry.panel, hidden=entry.hidden)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # what "did you mean" looks at
        if args[0] not in COMMANDS and Path(args[0]).is_file():
            raise errors.UsageError(f"`{args[0]}` is not a command", hint=f"try `trellis generate {args[0]}`")
        name, command, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, command, rest
        module = import_module(f"trellis_cli.commands.{COMMANDS[name].module}")
        command = _light(typer.main.get_command(module.app))
        command.name = name
        command.params = [p for p in command.params if p.name not in COMPLETION]
        return name, command, rest


def _light(command: Any) -> Any:
    """Keep typer from importing pydantic (0.2 s) to look at options that were not given; tidy the help."""

    def light(param: Any) -> Any:
        look = param.process_value

        def process(ctx: Any, value: Any) -> Any:
            if ctx.resilient_parsing:  # completion
                return value
            if value is None and not param.required:
                return () if param.multiple or param.nargs == -1 else None
            return look(ctx, value)

        param.process_value = process
        if getattr(param, "is_flag", False):
            param.metavar = " "  # rather than <bool>
        return param

    for param in command.params:
        light(param)
    find_help = command.get_help_option
    command.get_help_option = lambda ctx: light(find_help(ctx))
    return command


def print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"trellis {version('trellis-cli')}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[bold]Exit codes[/bold]\n" + "\n".join(f"{code:>4}  {text}" for code, text in EXIT_CODES.items()),
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Pictures and words to finished 3D assets, on the hardware you own.

    Start with: [bold]trellis generate chair.png[/bold]
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `trellis` with `arguments` (default: those of the process); returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # torch's threads would spin while they wait; on a machine with other work that is five times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may hold bytes that are no text
    console = console_for(arguments)
    with _interruptible(console):
        try:
            code = _run(arguments, console)
            console.finish(failure_of(code))
        except BaseException as error:
            code = _report(error, console)
    return _flushed(code)


def failure_of(code: int) -> dict[str, Any] | None:
    """What the final JSON object says about a command that ended with `code` by itself."""
    return None if code == 0 else {"exit_code": code, "error": EXIT_CODES.get(code, "failed")}


def _run(arguments: list[str], console: Console) -> int:
    command = _light(typer.main.get_command(app))
    try:
        result = command.main(arguments, prog_name="trellis", standalone_mode=False, obj=console)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    if result == 130:  # typer's word for KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _report(error: BaseException, console: Console) -> int:
    """Say what went wrong and what to do, on stderr, and on stdout for scripts; returns the exit code."""
    if console.debug:
        import traceback

        traceback.print_exception(error)
    code, message, hint = explain(error, console.interrupted)
    if message:
        advice = f"\n\n{paint('hint')}: {hint}" if hint else ""
        print(f"{paint('error')}: {message}{advice}", file=sys.stderr, flush=True)
    try:
        console.finish({"exit_code": code, "error": message, "hint": hint})
    except OSError:  # stdout is what failed; said already
        discard_stdout(sys.stdout)
    return code


def explain(error: BaseException, interrupted: bool = False) -> tuple[int, str, str]:
    """Exit code, what was wrong in one line, what to do in one line."""
    if interrupted or isinstance(error, (KeyboardInterrupt, errors.Cancelled)):
        return 130, "interrupted; nothing was left half done", ""
    if isinstance(error, errors.TrellisError):
        return code_of(error), _one_line(error.message), _one_line(error.hint)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help was printed
        return 2, "", ""
    if hasattr(error, "format_message"):  # typer's and click's usage errors
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "trellis"
        return (
            2,
            _one_line(error.format_message()).replace("Value error, ", "").rstrip("."),
            f"see `{path} --help`",
        )
    if _is_out_of_memory(error):
        return 5, "out of memory", OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in WRITE_FAILED:
        where = f"`{error.filename}`" if error.filename else "the result"
        return 7, f"could not write {where}: {error.strerror}", "free some space, or pass `-o PATH`"
    return code_of(error), _one_line(f"internal error: {type(error).__name__}: {error}"), REPORT


def code_of(error: BaseException) -> int:
    for cls in type(error).__mro__:
        if cls in CODE_OF:
            return CODE_OF[cls]
    return 1


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()  # torch's CPU allocator and CUDA libraries raise plain RuntimeError
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Ctrl-C (and SIGTERM) raises at once and is remembered, should a C library swallow the exception."""

    def stop(number: int, frame: FrameType | None) -> None:
        console.interrupted = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout(sys.stdout)
    except OSError as error:
        discard_stdout(sys.stdout)
        print(f"{paint('error')}: could not write to standard output: {error.strerror}", file=sys.stderr)
        return code or 7
    return code
