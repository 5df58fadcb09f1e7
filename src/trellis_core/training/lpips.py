"""LPIPS: the distance of two pictures in the features of VGG16, for users who have its weights.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018). No weights are
shipped or downloaded; `Lpips.load` reads one safetensors file with the published names: `features.N.weight`
and `.bias` of VGG16 (Simonyan & Zisserman, 2015), and the linear heads `linK.model.1.weight`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trellis_core.errors import ModelError

# Widths of VGG16's convolutions by block; a block's last activation is compared, then pooled.
VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and deviation of ImageNet in the range [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Pictures float32 [B, 3, H, W] in [0, 1], twice -> mean distance, float32 []. Frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()  # numbered as published, where activations and pools count too
        place, width = 0, 3
        self.ends = []
        for widths in VGG_BLOCKS:
            for out in widths:
                self.features[str(place)] = nn.Conv2d(width, out, 3, padding=1)
                place, width = place + 2, out
            self.ends.append(str(place - 2))
            place += 1
        self.heads = nn.ParameterList(torch.zeros(1, widths[-1], 1, 1) for widths in VGG_BLOCKS)
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Lpips:
        """Read the weights. Raises `ModelError` when the file is missing, damaged or of another network."""
        try:
            stored = load_file(path, device=str(device))
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"LPIPS weights `{path}` cannot be read: {error}",
                hint="store VGG16's `features.N.*` and LPIPS' `linK.model.1.weight` in one safetensors file",
            ) from error
        for number in range(len(VGG_BLOCKS)):
            name = f"lin{number}.model.1.weight"
            if name in stored:
                stored[f"heads.{number}"] = stored[name]
        model = cls()
        wanted = model.state_dict()
        kept = {name: value for name, value in stored.items() if name in wanted}
        missing = [k for k in wanted if k not in kept or kept[k].shape != wanted[k].shape]
        if missing:
            raise ModelError(
                f"LPIPS weights `{path}` lack `{missing[0]}` or it has another shape ({len(missing)} in all)",
                hint="use VGG16 with the linear heads of LPIPS version 0.1",
            )
        model.load_state_dict(kept)
        return model.to(device).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        shift = torch.tensor(SHIFT, device=a.device).view(1, 3, 1, 1)
        scale = torch.tensor(SCALE, device=a.device).view(1, 3, 1, 1)
        x = (2 * torch.cat([a, b]) - 1 - shift) / scale
        total = x.new_zeros(())
        level = 0
        for name, conv in self.features.items():
            x = F.relu(conv(x))
            if name in self.ends:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                first, second = unit.chunk(2)
                total = total + (self.heads[level] * (first - second).square()).sum(1).mean()
                level += 1
                x = F.max_pool2d(x, 2) if level < len(self.ends) else x
        return total
