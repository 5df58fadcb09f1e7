"""How the flows of TRELLIS v1 differ from the shared transformer."""

from __future__ import annotations

from trellis_core.errors import ModelError
from trellis_core.nn.transformer import FlowTransformer


def own_offsets_removed(flow: FlowTransformer) -> None:
    """With `share_mod` the blocks take the shared vectors as they are, without an offset of their own."""
    if flow.share_mod:
        for block in flow.blocks:
            del block.modulation
            block.modulation = 0.0  # type: ignore[assignment]  # a number, so that files hold no such key


def require_absolute_positions(pe_mode: str) -> None:
    """Raises `ModelError` for rotary positions: the released code offers them, but cannot run them."""
    if pe_mode != "ape":
        raise ModelError(
            f"TRELLIS v1 has no position embedding `{pe_mode}`", hint="its flows use pe_mode `ape`"
        )
