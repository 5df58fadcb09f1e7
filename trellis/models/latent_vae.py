"""The VAE of structured latents: voxel features to latents, latents to what represents the object.

Encoder and decoders share one torso, a transformer with shifted windows (Swin, Liu et al., 2021). What
the decoders' numbers mean is said in `trellis/representations.py` and `trellis/flexicubes.py`.
TRELLIS (Xiang et al., 2024), section 3.2. Letters: T voxels, C channels, G Gaussians per voxel, R grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trellis.models.modulation import require_absolute_positions
from trellis.models.serial_windows import SerialWindowAttention, SerialWindows, serial_windows
from trellis.models.sparse_blocks import SparseSubdivideBlock3d
from trellis.representations import CubeLayout, FieldLayout, GaussianLayout
from trellis_core.errors import ModelError
from trellis_core.kernels.table import Kernels
from trellis_core.nn.attention import REFERENCE, Packing
from trellis_core.nn.blocks import TransformerBlock, convert_torso
from trellis_core.nn.conv import SparseConv3d
from trellis_core.nn.embed import position_embedding
from trellis_core.nn.windows import sample_packing, window_packing
from trellis_core.sparse.plan import SparsePlan
from trellis_core.sparse.tensor import SparseTensor

AttentionMode = Literal["full", "swin", "shift_window", "shift_sequence"]
MODES = ("full", "swin", "shift_window", "shift_sequence")


class LatentTorso(nn.Module):
    """What encoder and decoders share: the transformer over voxels, `[T, C_in]` -> `[T, C]`.

    Input and output layers run in float32, the blocks in the torso dtype.
    """

    dtype: torch.dtype = torch.float32
    out_layer: nn.Linear

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4.0,
        attn_mode: AttentionMode = "swin",
        window_size: int = 8,
        pe_mode: Literal["ape"] = "ape",
        qk_rms_norm: bool = False,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        require_absolute_positions(pe_mode)
        if attn_mode not in MODES:
            raise ModelError(f"unknown attn_mode `{attn_mode}`", hint=f"choose one of: {', '.join(MODES)}")
        num_heads = num_heads or model_channels // num_head_channels
        self.resolution = resolution
        self.model_channels = model_channels
        self.attn_mode = attn_mode
        self.window_size = window_size
        self.checkpointed = 0  # blocks that are computed again in the backward pass, to save memory
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                model_channels, num_heads, mlp_ratio=mlp_ratio, qk_rms_norm=qk_rms_norm, kernels=kernels
            )
            for _ in range(num_blocks)
        )
        if attn_mode.startswith("shift_"):
            for block in self.blocks:
                block.attn = SerialWindowAttention(
                    model_channels, num_heads, qk_rms_norm=qk_rms_norm, kernels=kernels
                )

    def torso(self, x: SparseTensor) -> SparseTensor:
        """float32 [T, C_in] -> float32 [T, C]"""
        h = self.input_layer(x.feats.float()) + x.plan.remember(
            ("ape", self.model_channels),
            lambda: position_embedding(x.coords[:, 1:], self.model_channels),
        )
        for number, block in enumerate(self.blocks):
            windows = self.windows(x.plan, number)
            if number < self.checkpointed and torch.is_grad_enabled():
                h = checkpoint(block, h, None, None, None, windows, use_reentrant=False)
            else:
                h = block(h, attention_packing=windows)
        return x.replace(h)

    def windows(self, plan: SparsePlan, block: int) -> Packing | SerialWindows:
        """Which voxels attend to each other in a block; every other block shifts the windows by half."""
        odd, size = block % 2, self.window_size
        if self.attn_mode == "swin":
            return window_packing(plan, size, size // 2 * odd)
        if self.attn_mode == "shift_window":
            return serial_windows(plan, size, shift_window=(16 * odd,) * 3)
        if self.attn_mode == "shift_sequence":
            return serial_windows(plan, size, shift_sequence=size // 2 * odd)
        return sample_packing(plan)

    def normed_output(self, h: SparseTensor) -> SparseTensor:
        """The output layer after a norm without parameters."""
        return h.replace(self.out_layer(F.layer_norm(h.feats.float(), h.feats.shape[1:], eps=1e-5)))

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the blocks' matrices; everything else stays float32."""
        convert_torso(self.blocks, dtype)
        self.dtype = dtype

    def initialize(self) -> None:
        """Random weights for training from scratch; the output starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out_layer.weight)


class SLatEncoder(LatentTorso):
    """Voxel features float32 [T, C_in] -> mean and logvar, float32 [T, C] each."""

    def __init__(
        self, *, resolution: int, in_channels: int, model_channels: int, latent_channels: int, **torso: Any
    ) -> None:
        super().__init__(
            resolution=resolution, in_channels=in_channels, model_channels=model_channels, **torso
        )
        self.out_layer = nn.Linear(model_channels, 2 * latent_channels)

    def forward(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        mean, logvar = self.normed_output(self.torso(x)).feats.chunk(2, dim=1)
        return x.replace(mean), x.replace(logvar)


class SLatGaussianDecoder(LatentTorso):
    """Latents float32 [T, C] -> raw parameters float32 [T, 14 G], see `representations.gaussians`."""

    offset_perturbation: Tensor  # float32 [G, 3]

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        representation_config: Mapping[str, Any],
        **torso: Any,
    ) -> None:
        super().__init__(
            resolution=resolution, in_channels=latent_channels, model_channels=model_channels, **torso
        )
        self.layout = GaussianLayout.of(representation_config)
        self.out_layer = nn.Linear(model_channels, self.layout.channels)
        self.register_buffer("offset_perturbation", self.layout.perturbation)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return self.normed_output(self.torso(x))


class SLatRadianceFieldDecoder(LatentTorso):
    """Latents float32 [T, C] -> raw field parameters float32, see `representations.radiance_fields`."""

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        representation_config: Mapping[str, Any],
        **torso: Any,
    ) -> None:
        super().__init__(
            resolution=resolution, in_channels=latent_channels, model_channels=model_channels, **torso
        )
        self.layout = FieldLayout.of(representation_config)
        self.out_layer = nn.Linear(model_channels, self.layout.channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return self.normed_output(self.torso(x))


class SLatMeshDecoder(LatentTorso):
    """Latents float32 [T, C] -> features float32 of the cubes of a grid four times as fine, [64 T, ...].

    See `flexicubes.cube_meshes` for what they mean.
    """

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        representation_config: Mapping[str, Any],
        kernels: Kernels = REFERENCE,
        **torso: Any,
    ) -> None:
        super().__init__(
            resolution=resolution,
            in_channels=latent_channels,
            model_channels=model_channels,
            kernels=kernels,
            **torso,
        )
        self.layout = CubeLayout.of(representation_config)
        self.upsample = nn.ModuleList(
            [
                SparseSubdivideBlock3d(model_channels, model_channels // 4, kernels),
                SparseSubdivideBlock3d(model_channels // 4, model_channels // 8, kernels),
            ]
        )
        self.out_layer = nn.Linear(model_channels // 8, self.layout.channels)

    @property
    def mesh_resolution(self) -> int:
        """The grid of the cubes."""
        return self.resolution * 2 ** len(self.upsample)

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.torso(x).to(self.dtype)
        for block in self.upsample:
            h = block(h)
        return h.replace(self.out_layer(h.feats.float()))  # no norm before it, unlike the other decoders

    def set_torso_dtype(self, dtype: torch.dtype) -> None:
        """Convert the matrices of the blocks and of the way up; everything else stays float32."""
        super().set_torso_dtype(dtype)
        convert_torso(self.upsample, dtype, (SparseConv3d,))

    def initialize(self) -> None:
        """Random weights for training from scratch; residual branches and the output start at zero."""
        super().initialize()
        for module in self.modules():
            if isinstance(module, SparseConv3d):
                module.reset_parameters()
        for block in self.upsample:
            if isinstance(block, SparseSubdivideBlock3d):
                last: Any = block.out_layers[-1]
                nn.init.zeros_(last.conv.weight)
                nn.init.zeros_(last.conv.bias)
