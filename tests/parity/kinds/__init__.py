"""How to run each kind of golden case. One module per area, each with a dictionary `KINDS`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tests.parity.case import Kind


def all_kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        for name, kind in module.KINDS.items():
            if name in kinds:
                raise ValueError(f"golden kind `{name}` is defined twice")
            kinds[name] = kind
    return kinds
