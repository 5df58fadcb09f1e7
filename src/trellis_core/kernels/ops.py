"""The operations and their backends, best first; the last one is the plain torch reference."""

from __future__ import annotations

from collections.abc import Mapping

from trellis_core.kernels.table import Backend

OPS: Mapping[str, tuple[Backend, ...]] = {}
