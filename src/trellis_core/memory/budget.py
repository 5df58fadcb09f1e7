"""How a model fits a device: tier, precision, what stays resident, how work is cut, what the peak will be.

    (device, request, networks) -> VRAMManager.plan -> MemoryPlan

Reads nothing and measures nothing: what a network costs is in `cost.py`, what the device has free comes with
the device. The program itself and the CUDA context are covered by the reserve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch

from trellis_core.errors import UsageError
from trellis_core.memory.cost import CHUNK, Network, predict_peaks, weight_bytes
from trellis_core.memory.devices import DeviceInfo, describe_processor

GIB = 1 << 30

# Smallest total memory of each tier, in GiB. Cards report less than their box says: a "24 GB" card 23.5.
TIERS: Mapping[str, float] = {"high": 22.0, "medium": 11.0, "low": 7.5, "minimal": 0.0}
SMALLEST_CARD = 4.0  # GiB, what `--vram-tier minimal` counts with
CHOICES = ("auto", *TIERS, "cpu")
PRECISIONS = ("auto", "full", "half")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """What the user asked for."""

    tier: str = "auto"
    precision: str = "auto"  # full: float32; half: the best 16-bit type of the device
    num_samples: int = 1

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--vram-tier", self.tier, CHOICES),
            ("--precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise UsageError(
                    f"`{option}` cannot be `{value}`", hint=f"choose one of: {', '.join(choices)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How one run uses the device. `peaks` and the budget are bytes on `device`."""

    device: str  # torch device type
    tier: str
    dtype: torch.dtype
    residency: str  # "resident": all networks stay on the device; "staged": each only while it runs
    cache_condition: bool  # keep the conditioning keys and values of a stage, or compute them at every step
    matting_device: str
    budget: int  # free memory less the reserve
    peaks: Mapping[str, int]
    host_bytes: int  # weights that wait in host memory while another network runs
    weight_storage: str = "full"  # weights are stored in `dtype`
    decode_numbers: int = CHUNK  # what row-wise work of the sparse decoders holds at once
    attention_rows: int = 0  # queries per attention call; 0 is the whole sequence
    index_dtype: torch.dtype = torch.int32  # of neighbour maps; linear keys are int64

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    @property
    def fits(self) -> bool:
        return self.peak <= self.budget

    @property
    def keep_resident(self) -> bool:
        return self.residency == "resident"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; kept in bundles and shown by `trellis doctor --json`."""
        facts = asdict(self)
        facts["dtype"] = str(self.dtype).removeprefix("torch.")
        facts["index_dtype"] = str(self.index_dtype).removeprefix("torch.")
        return {**facts, "peaks": dict(self.peaks), "peak": self.peak, "fits": self.fits}

    def describe(self) -> str:
        """One line for people."""
        dtype = str(self.dtype).removeprefix("torch.")
        verdict = "fits" if self.fits else "does NOT fit"
        return (
            f"{self.tier}: {dtype}, {self.residency}, peak {self.peak / GIB:.1f} GiB"
            f" of {self.budget / GIB:.1f} GiB: {verdict}"
        )


class VRAMManager:
    """Turns a device and a request into plans."""

    def __init__(self, device: DeviceInfo, request: MemoryRequest | None = None) -> None:
        self.request = request or MemoryRequest()
        on_cpu = self.request.tier == "cpu" and device.kind != "cpu"
        self.device = describe_processor() if on_cpu else device

    @property
    def tier(self) -> str:
        return tier_of(self.device) if self.request.tier == "auto" else self._asked_tier()

    @property
    def dtype(self) -> torch.dtype:
        return choose_dtype(self.device, self.request.precision)

    @property
    def budget(self) -> int:
        """Bytes a run may use: what is free (at most what the tier asked for has), less a reserve."""
        free, total = self.device.free_memory, self.device.total_memory
        if self.request.tier in TIERS and self.device.kind != "cpu":
            nominal = int((TIERS[self.request.tier] or SMALLEST_CARD) * GIB)
            free, total = min(free, nominal), min(total, nominal)
        reserve = GIB // 2 + total // 50
        return max(0, free - reserve)

    def plan(self, networks: Mapping[str, Network]) -> MemoryPlan:
        """The least frugal plan whose predicted peak fits; the most frugal one when none does."""
        plans = list(self._candidates(networks))
        return next((plan for plan in plans if plan.fits), plans[-1])

    def _asked_tier(self) -> str:
        return "cpu" if self.device.kind == "cpu" else self.request.tier

    def _candidates(self, networks: Mapping[str, Network]) -> Iterator[MemoryPlan]:
        resident = (True, False) if self.tier in ("high", "cpu") else (False,)
        for keep, cache in product(resident, (True, False)):
            peaks = predict_peaks(
                networks,
                self.dtype,
                resident=keep,
                cache_condition=cache,
                num_samples=self.request.num_samples,
            )
            weights = sum(weight_bytes(n, self.dtype) for n in networks.values())
            yield MemoryPlan(
                device=self.device.kind,
                tier=self.tier,
                dtype=self.dtype,
                residency="resident" if keep else "staged",
                cache_condition=cache,
                matting_device=self.device.kind if self.tier in ("high", "medium") else "cpu",
                budget=self.budget,
                peaks=peaks,
                host_bytes=0 if keep or self.device.kind == "cpu" else weights,
            )


def tier_of(device: DeviceInfo) -> str:
    """The tier by total memory; the CPU is its own tier."""
    if device.kind == "cpu":
        return "cpu"
    return next(tier for tier, least in TIERS.items() if device.total_memory >= least * GIB)


def choose_dtype(device: DeviceInfo, precision: str = "auto") -> torch.dtype:
    """bfloat16 from compute capability 8.0, float16 on 7.x, float32 on older GPUs and on a CPU.

    `half` takes the best 16-bit type: never float16 on a CPU, where it is 20 times slower. GPUs that are not
    NVIDIA's (no capability) run bfloat16, the type the released weights are stored in.
    """
    if precision == "full":
        return torch.float32
    if device.kind == "cpu":
        return torch.bfloat16 if precision == "half" else torch.float32
    if device.capability is None or device.capability >= (8, 0):
        return torch.bfloat16
    if device.capability >= (7, 0) or precision == "half":
        return torch.float16
    return torch.float32
