"""How far two pictures are apart: SSIM, PSNR, and the sum of terms that rendering losses use.

Pictures are float32 [B, C, H, W] in [0, 1]. LPIPS lives in `lpips.py`, because it needs weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2

Perceptual = Callable[[Tensor, Tensor], Tensor]  # pictures in [0, 1] -> scalar


def ssim_per_image(a: Tensor, b: Tensor) -> Tensor:  # float32 [B]
    """Mean structural similarity of each pair, 1 for equal pictures (Wang et al., 2004).

    Window 11x11, Gaussian of deviation 1.5; outside the picture everything is zero.
    """
    channels = a.shape[1]
    ramp = torch.arange(WINDOW, device=a.device, dtype=a.dtype) - WINDOW // 2
    bell = torch.exp(-ramp.square() / (2 * SIGMA**2))
    bell = bell / bell.sum()
    row = bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1)

    def blurred(x: Tensor) -> Tensor:
        x = F.conv2d(x, row, padding=(0, WINDOW // 2), groups=channels)
        return F.conv2d(x, row.mT, padding=(WINDOW // 2, 0), groups=channels)

    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a.square()
    var_b = blurred(b * b) - mean_b.square()
    covariance = blurred(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    likeness = likeness / ((mean_a.square() + mean_b.square() + C1) * (var_a + var_b + C2))
    return likeness.mean(dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:  # float32 []
    """Mean over the batch of `ssim_per_image`."""
    return ssim_per_image(a, b).mean()


def psnr(a: Tensor, b: Tensor) -> Tensor:  # float32 []  in dB
    """Peak signal-to-noise ratio of the batch as one picture, with peak 1."""
    return -10 * (a - b).square().mean().log10()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWeights:
    """Weights of the terms beside L1; the released ones."""

    l1: float = 1.0
    ssim: float = 0.2
    lpips: float = 0.2


def image_loss(
    predicted: Tensor,  # float32 [B, C, H, W]  C is 3 when `perceptual` is given
    target: Tensor,
    weights: ImageWeights,
    perceptual: Perceptual | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and its terms by name, unweighted.

    Without `perceptual` the term `lpips` is reported as nan: it is off, not zero.
    """
    terms = {"l1": (predicted - target).abs().mean(), "ssim": 1 - ssim(predicted, target)}
    total = weights.l1 * terms["l1"] + weights.ssim * terms["ssim"]
    if perceptual is None:
        return total, {**terms, "lpips": torch.full_like(total, torch.nan, requires_grad=False)}
    terms["lpips"] = perceptual(predicted, target)
    return total + weights.lpips * terms["lpips"], terms
