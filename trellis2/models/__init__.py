"""Released class names and the classes behind them; constructor arguments are the configuration's `args`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from trellis2.models.latent_flow import SLatFlowModel
from trellis2.models.sparse_vae import (
    FlexiDualGridVaeDecoder,
    FlexiDualGridVaeEncoder,
    SparseUnetVaeDecoder,
    SparseUnetVaeEncoder,
)
from trellis_core.models.image_encoder import DINOv3ViT
from trellis_core.models.structure_flow import SparseStructureFlowModel
from trellis_core.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder
from trellis_core.models.text_encoder import CLIPTextEncoder

MODELS: Mapping[str, type[nn.Module]] = {
    "DINOv3ViT": DINOv3ViT,
    "CLIPTextEncoder": CLIPTextEncoder,
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SLatFlowModel": SLatFlowModel,
    "FlexiDualGridVaeEncoder": FlexiDualGridVaeEncoder,
    "FlexiDualGridVaeDecoder": FlexiDualGridVaeDecoder,
    "SparseUnetVaeEncoder": SparseUnetVaeEncoder,
    "SparseUnetVaeDecoder": SparseUnetVaeDecoder,
}
