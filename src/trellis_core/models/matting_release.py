"""Published background removal networks of BiRefNet's architecture. Facts only: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trellis_core.weights.hub import find_cached

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingRelease:
    """One checkpoint, and how it wants to be used."""

    repository: str
    summary: str
    licence: str
    bytes: int  # of its weights file
    sha256: str | None = None
    gated: bool = False
    patch_order: str = "channel"  # of matting_decoder.PATCH_ORDERS
    side: int = 1024  # pixels that it was trained at
    automatic: bool = True  # `auto` may take it

    def find(self, cache: Path | None = None) -> Path | None:
        """Its weights on this machine, or None. Never asks the network."""
        return find_cached(self.repository, WEIGHTS, cache)


BIREFNET = MattingRelease(
    repository="ZhengPeng7/BiRefNet",
    summary="finds the object in any picture",
    licence="MIT",
    bytes=444_473_596,
    sha256="9ab37426bf4de0567af6b5d21b16151357149139362e6e8992021b8ce356a154",
    patch_order="column",  # announced before upstream changed the order; the code beside it is newer
)

RELEASES: Mapping[str, MattingRelease] = {  # best first: the order of `--background auto`
    "birefnet": BIREFNET,
    "birefnet-dynamic": MattingRelease(
        repository="ZhengPeng7/BiRefNet_dynamic",
        summary="as birefnet, trained at many sizes",
        licence="MIT",
        bytes=444_473_596,
        sha256="e3d2e4884e51ff30f0cd630edc6b1e41b06b7f23a0a2a5169f7b7cb33a711c2d",
    ),
    "birefnet-hr-matting": MattingRelease(
        repository="ZhengPeng7/BiRefNet_HR-matting",
        summary="soft borders at 2048 pixels: four times the work",
        licence="MIT",
        bytes=444_473_596,
        sha256="a5a4de698739ea5e0e8bbab28e1b293dde95092b87a442d566cbc585c53cef55",
        side=2048,
    ),
    "birefnet-lite": MattingRelease(
        repository="ZhengPeng7/BiRefNet_lite",
        summary="a fifth of the size, faster, less exact",
        licence="MIT",
        bytes=177_634_392,
        patch_order="column",
    ),
    # what TRELLIS.2 itself computes with birefnet's weights: the order of the code published beside them
    "birefnet-channel": replace(
        BIREFNET,
        summary="birefnet's weights as TRELLIS.2 runs them",
        patch_order="channel",
        automatic=False,
    ),
    "rmbg-2": MattingRelease(
        repository="briaai/RMBG-2.0",
        summary="the network that TRELLIS.2 names; not for commercial use",
        licence="CC BY-NC 4.0",
        bytes=884_878_856,
        sha256="566ed80c3d95f87ada6864d4cbe2290a1c5eb1c7bb0b123e984f60f76b02c3a7",
        gated=True,
        patch_order="column",
        automatic=False,
    ),
}
