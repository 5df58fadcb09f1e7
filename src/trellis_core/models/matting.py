"""BiRefNet (Zheng et al., "Bilateral Reference for High-Resolution Dichotomous Image Segmentation", 2024):
pictures to the alpha of their object. Loads the published safetensors; runs in float32, as TRELLIS.2 does.

Letters: B pictures, C channels, H W picture size, multiples of 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trellis_core.errors import InputError, ModelError
from trellis_core.image.background import Network, choose_background_remover, require_object
from trellis_core.image.preprocess import BackgroundRemover
from trellis_core.memory.residency import memory_errors, on_device
from trellis_core.models.image_encoder import normalize
from trellis_core.models.matting_blocks import DecoderBlock
from trellis_core.models.matting_decoder import Decoder, enlarge
from trellis_core.models.matting_release import RELEASES, MattingRelease
from trellis_core.models.swin import SwinTransformer, relative_positions
from trellis_core.runtime import Runtime
from trellis_core.weights.load import fill_model, stored_shapes

STRIDE = 32  # of the deepest map
EMBEDDING = "bb.patch_embed.proj.weight"
BACKBONES: Mapping[int, dict[str, Any]] = {  # width of the embedding -> Swin-L, Swin-T
    192: {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window": 12},
    96: {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window": 7},
}


class BiRefNet(nn.Module):
    """Normalised pictures float32 [B, 3, H, W] -> logits float32 [B, 1, H, W] of belonging to the object.

    Call in evaluation mode: batch norms use their stored statistics. Raises `InputError` when H or W is no
    multiple of 32.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        patch_order: str,  # of matting_decoder.PATCH_ORDERS; belongs to the checkpoint
    ) -> None:
        super().__init__()
        self.bb = SwinTransformer(embed_dim=embed_dim, depths=depths, num_heads=num_heads, window=window)
        # all maps of both scales at the depth of the last one
        self.squeeze_module = nn.Sequential(DecoderBlock(30 * embed_dim, 16 * embed_dim))
        self.decoder = Decoder(embed_dim, patch_order)

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[2] % STRIDE or pictures.shape[3] % STRIDE:
            raise InputError(f"expected sides that are multiples of {STRIDE}, got {list(pictures.shape)}")
        x1, x2, x3, x4 = self.encode(pictures)
        return self.decoder([self.squeeze_module(x4), x3, x2, x1], pictures)  # type: ignore[no-any-return]

    def encode(self, pictures: Tensor) -> list[Tensor]:
        """The backbone's maps of the picture and of the picture at half its size; the last with context."""
        half = self.bb(enlarge(pictures, [side // 2 for side in pictures.shape[2:]]))
        *upper, deep = [
            torch.cat([a, enlarge(b, a.shape[2:])], dim=1)
            for a, b in zip(self.bb(pictures), half, strict=True)
        ]
        return [*upper, torch.cat([*(enlarge(x, deep.shape[2:]) for x in upper), deep], dim=1)]


def background_remover(
    name: str,  # of image.background.METHODS or matting_release.RELEASES
    runtime: Runtime,
    *,
    cache_folder: Path | None = None,  # of the hub; None: the usual one
) -> tuple[BackgroundRemover | None, str]:
    """The background remover called `name` and a notice of what was chosen, as `choose_background_remover`.

    Weights are read when the first picture needs them and stay in host memory as long as the remover is kept.
    """
    networks = [
        Network(
            name=name,
            remover=None if path is None else network_remover(path, release, runtime),
            automatic=release.automatic,
        )
        for name, release in RELEASES.items()
        for path in [release.find(cache_folder)]
    ]
    return choose_background_remover(name, networks)


def network_remover(path: Path, release: MattingRelease, runtime: Runtime) -> BackgroundRemover:
    """A remover that runs the weights in `path` on the runtime's device, and leaves it empty afterwards."""

    @cache
    def network() -> BiRefNet:
        return load_matting(path, patch_order=release.patch_order)

    def remove(image: Image.Image) -> Image.Image:
        with memory_errors("picture"), on_device(network(), runtime.device) as model:
            return require_object(find_object(model, image, side=release.side))

    return remove


def load_matting(path: Path, *, patch_order: str) -> BiRefNet:
    """A BiRefNet with the weights of a safetensors file; its size follows from their shapes.

    Raises `ModelError` when the file is missing or damaged, is no BiRefNet, or has a tensor too much or
    too little.
    """
    shape = stored_shapes(path).get(EMBEDDING)
    if not shape or shape[0] not in BACKBONES:
        raise ModelError(
            f"`{path}` is no BiRefNet that this version knows",
            hint="run `trellis models pull birefnet`",
        )
    with torch.device("meta"):
        model = BiRefNet(**BACKBONES[shape[0]], patch_order=patch_order)
    fill_model(model, path)
    window = BACKBONES[shape[0]]["window"]
    for name, table in model.named_buffers():
        if name.endswith("relative_position_index") and not torch.equal(table, relative_positions(window)):
            raise ModelError(
                f"`{name}` in `{path}` is not the table of a window of {window}",
                hint="delete the file and run `trellis models pull birefnet` again",
            )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def find_object(model: BiRefNet, image: Image.Image, *, side: int = 1024) -> Image.Image:
    """The alpha of the object in a picture, an "L" mask of its size. The network sees side x side pixels."""
    device = next(model.parameters()).device
    return alpha_of(model(prepare_picture(image, side).to(device)), image.size)


def prepare_picture(image: Image.Image, side: int) -> Tensor:  # float32 [1, 3, s, s]
    """RGB, resized without regard to the aspect ratio (Pillow's bilinear, in 8 bits), normalised."""
    pixels = np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
    return normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)


def mask_of(logits: Tensor) -> np.ndarray:  # [1, 1, h, w] -> uint8 [h, w]
    """Probabilities in 8 bits, truncated."""
    return (logits[0, 0].float().sigmoid() * 255).to(torch.uint8).cpu().numpy()


def alpha_of(logits: Tensor, size: tuple[int, int]) -> Image.Image:
    """The mask at the picture's (width, height), enlarged bicubically."""
    return Image.fromarray(mask_of(logits)).resize(size, Image.Resampling.BICUBIC)
