"""Which attention kernels can run on a device: each is tried once on a few tokens and compared.

Versions and package names lie (wheels without the kernel, kernels without the architecture), so
a probe runs the kernel. Imports torch only when a CUDA device is probed.
"""

from __future__ import annotations

from collections.abc import Callable

from trellis_core.kernels.table import Backend, runs_everywhere
from trellis_core.memory.devices import DeviceInfo


def trial(function: str, capability: tuple[int, int] = (0, 0)) -> Callable[[DeviceInfo], str | None]:
    """A probe that runs `function` of `kernels.attention` in float16 against the reference."""

    def probe(device: DeviceInfo) -> str | None:
        if device.kind != "cuda":
            return "needs a CUDA device"
        if (device.capability or (0, 0)) < capability:
            return f"needs compute capability {capability[0]}.{capability[1]}"
        try:
            return _disagreement(function, device.index)
        except Exception as error:  # a kernel package can fail to import or to run in any way
            return (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )

    return probe


def _disagreement(function: str, index: int) -> str | None:
    import torch

    from trellis_core.kernels import attention

    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 24, 2, 64, generator=generator).to(f"cuda:{index}", torch.float16)
    if function.startswith("packed"):
        cu = torch.tensor([0, 7, 24], dtype=torch.int32, device=qkv.device)
        arguments = (*qkv, cu, cu, 17, 17)
        want = attention.packed_attention_torch(*arguments)
    else:
        arguments = tuple(qkv[:, None])
        want = attention.attention_torch(*arguments)
    error = (getattr(attention, function)(*arguments) - want).abs().max().item()
    return None if error < 0.01 else f"gives wrong results (off by {error:.3g})"


FLASH_HINT = "install it with `pip install flash-attn`"
XFORMERS_HINT = "install it with `pip install xformers`"

ATTENTION = (
    Backend(
        name="flash",
        module="attention",
        function="attention_flash",
        probe=trial("attention_flash", (8, 0)),
        hint=FLASH_HINT,
    ),
    Backend(
        name="xformers",
        module="attention",
        function="attention_xformers",
        probe=trial("attention_xformers", (7, 0)),
        hint=XFORMERS_HINT,
    ),
    Backend(name="torch", module="attention", function="attention_torch", probe=runs_everywhere),
)

PACKED_ATTENTION = (
    Backend(
        name="flash",
        module="attention",
        function="packed_attention_flash",
        probe=trial("packed_attention_flash", (8, 0)),
        hint=FLASH_HINT,
    ),
    Backend(
        name="xformers",
        module="attention",
        function="packed_attention_xformers",
        probe=trial("packed_attention_xformers", (7, 0)),
        hint=XFORMERS_HINT,
    ),
    Backend(
        name="varlen",
        module="attention",
        function="packed_attention_varlen",
        probe=trial("packed_attention_varlen", (8, 0)),
        hint="needs torch 2.10 or later",
    ),
    Backend(
        name="aten_efficient",
        module="attention",
        function="packed_attention_aten_efficient",
        probe=trial("packed_attention_aten_efficient", (5, 0)),
    ),
    Backend(name="torch", module="attention", function="packed_attention_torch", probe=runs_everywhere),
)
