"""The networks of one model: read when first needed, resident or swapped.

Knows nothing about stages. A network is described by a loader, so that a model folder, a hub cache
and a test look the same from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from trellis_core.errors import ModelError
from trellis_core.memory.residency import on_device
from trellis_core.runtime import Runtime

Loader = Callable[[Runtime], nn.Module]  # reads weights into host memory (memory-mapped where dtypes agree)


class Networks:
    """Name -> network.

    Resident networks stay on the device. Swapped ones are copied to it for the length of a `use`
    block; on a CPU, where there is nothing to copy, they are dropped after the block instead.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, nn.Module] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._loaders

    @contextmanager
    def use(self, name: str, runtime: Runtime) -> Iterator[Any]:
        """The network, on the runtime's device, for the length of the block."""
        network = self._loaded.get(name) or self._load(name, runtime)
        if runtime.keep_resident or runtime.device.type != "cpu":
            self._loaded[name] = network
        with on_device(network, runtime.device, keep=runtime.keep_resident) as ready:
            yield ready

    def release(self) -> None:
        """Forget every network that was read."""
        self._loaded.clear()

    def _load(self, name: str, runtime: Runtime) -> nn.Module:
        if name not in self._loaders:
            raise ModelError(
                f"this model has no network `{name}`",
                hint=f"it has: {', '.join(sorted(self._loaders))}",
            )
        return self._loaders[name](runtime)
