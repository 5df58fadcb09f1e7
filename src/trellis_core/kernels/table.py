"""One table: operation -> backends in order of preference.

Choices are resolved once, at start-up, into a frozen `Kernels` value that is handed to the
modules when they are built. Knows nothing about tensors, models or the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from trellis_core.errors import BackendUnavailable
from trellis_core.memory.devices import DeviceInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One implementation of an operation. Nothing is imported before it is chosen."""

    name: str
    module: str  # module under trellis_core.kernels
    function: str
    probe: Callable[[DeviceInfo], str | None]  # None when it can run, else the reason it cannot
    hint: str = ""  # how to make it available

    def load(self) -> Callable[..., object]:
        return getattr(import_module(f"trellis_core.kernels.{self.module}"), self.function)  # type: ignore[no-any-return]


def runs_everywhere(device: DeviceInfo) -> str | None:
    """Probe of the plain torch reference."""
    return None


@dataclass(frozen=True, slots=True)
class Kernels:
    """The chosen backend of every operation; the default is the torch reference everywhere."""

    choices: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  # op -> why this backend, for `doctor`

    def __getitem__(self, op: str) -> Callable[..., object]:
        from trellis_core.kernels.ops import OPS

        name = self.choices.get(op, "torch")
        return find_backend(OPS, op, name).load()


def find_backend(ops: Mapping[str, tuple[Backend, ...]], op: str, name: str) -> Backend:
    if op not in ops:
        raise BackendUnavailable(f"unknown operation `{op}`", hint=f"choose one of: {', '.join(ops)}")
    for backend in ops[op]:
        if backend.name == name:
            return backend
    names = ", ".join(b.name for b in ops[op])
    raise BackendUnavailable(f"unknown {op} backend `{name}`", hint=f"choose one of: {names}")


def resolve_kernels(device: DeviceInfo, requested: Mapping[str, str] | None = None) -> Kernels:
    """Choose a backend for every operation on `device`.

    `requested` maps operation to backend name (or "auto"). A backend that was asked for and
    cannot run raises `BackendUnavailable`; "auto" takes the first one that can.
    """
    from trellis_core.kernels.ops import OPS

    requested = dict(requested or {})
    choices: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for op in requested:
        if op not in OPS:
            raise BackendUnavailable(f"unknown operation `{op}`", hint=f"choose one of: {', '.join(OPS)}")
    for op, backends in OPS.items():
        name = requested.get(op, "auto")
        if name != "auto":
            backend = find_backend(OPS, op, name)
            problem = backend.probe(device)
            if problem is not None:
                raise BackendUnavailable(
                    f"{op} backend `{name}` cannot run here: {problem}", hint=backend.hint
                )
            choices[op], reasons[op] = name, "asked for"
            continue
        refused: list[str] = []
        for backend in backends:
            problem = backend.probe(device)
            if problem is None:
                choices[op] = backend.name
                reasons[op] = "; ".join(refused) or "first choice"
                break
            refused.append(f"{backend.name}: {problem}")
    return Kernels(choices, reasons)
