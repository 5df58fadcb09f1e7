"""Released class names and the classes behind them; constructor arguments are the configuration's `args`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from trellis.models.latent_flow import SLatFlowModel
from trellis.models.latent_vae import (
    SLatEncoder,
    SLatGaussianDecoder,
    SLatMeshDecoder,
    SLatRadianceFieldDecoder,
)
from trellis.models.structure_flow import SparseStructureFlowModel
from trellis_core.models.image_encoder import DINOv2ViT
from trellis_core.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder
from trellis_core.models.text_encoder import CLIPTextEncoder

LATENT_NETWORKS: Mapping[str, type[nn.Module]] = {
    "SLatEncoder": SLatEncoder,
    "SLatGaussianDecoder": SLatGaussianDecoder,
    "SLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "SLatMeshDecoder": SLatMeshDecoder,
    "SLatFlowModel": SLatFlowModel,
}
MODELS: Mapping[str, type[nn.Module]] = {
    "DINOv2ViT": DINOv2ViT,
    "CLIPTextEncoder": CLIPTextEncoder,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SparseStructureFlowModel": SparseStructureFlowModel,
    **LATENT_NETWORKS,
    # the same networks; upstream's second names only change how training saves memory
    **{f"Elastic{name}": network for name, network in LATENT_NETWORKS.items()},
}
