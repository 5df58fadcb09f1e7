"""What every stage does with a network: encode pictures or a prompt, integrate a flow.

The same for both model versions; their `stages.py` say in which order and with which numbers.
Letters: B samples, M condition tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from trellis_core.models.image_encoder import prepare_images
from trellis_core.nn.transformer import FlowTransformer
from trellis_core.runtime import Runtime
from trellis_core.sampling import multi_image
from trellis_core.sampling.euler import sample_euler
from trellis_core.sampling.repaint import Known, sample_repaint
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.sampling.state import State
from trellis_core.sparse.tensor import SparseTensor


def encode_picture(
    encoder: nn.Module,
    pictures: Sequence[Image.Image],  # square RGB, object on black
    image_size: int,  # pixels
    runtime: Runtime,
) -> Tensor:  # float32 [B, M, C]
    """Picture tokens: class, registers and patches, layer-normed without affine parameters."""
    tokens: Tensor = encoder(prepare_images(pictures, image_size).to(runtime.device))
    return tokens


def encode_prompt(
    encoder: nn.Module,
    ids: Sequence[int],  # M token ids of one prompt
    runtime: Runtime,
) -> Tensor:  # float32 [1, M, C]
    """Text tokens: all of them, the end tokens that fill the prompt among them."""
    tokens: Tensor = encoder(torch.tensor([list(ids)], device=runtime.device))
    return tokens


def sample_flow(
    flow: FlowTransformer,
    noise: State,
    cond: Tensor | Sequence[Tensor],  # [1 or B, M, C]; one for each of several pictures
    settings: SamplerSettings,
    runtime: Runtime,
    stage: str,
    *,
    uncond: Tensor | None = None,  # [1, M, C] of the empty prompt; None is a context of zeros
    mode: str = multi_image.STOCHASTIC,  # how several pictures are combined
    known: Known | None = None,  # sample around this
    **inputs: SparseTensor,  # `concat_cond` of a texture flow
) -> State:
    """Integrate one flow from noise to a (normalised) latent, reporting every step."""
    conds = [cond] if isinstance(cond, Tensor) else list(cond)
    contexts, empty = conds, uncond
    if runtime.cache_condition:
        contexts = [flow.precompute_context(each) for each in conds]  # type: ignore[misc]
        empty = None if uncond is None else flow.precompute_context(uncond)  # type: ignore[assignment]
    runtime.report(stage, 0, settings.steps)
    return multi_image.sample_flow(
        flow,
        noise,
        contexts,
        settings,
        mode=mode,
        uncond=empty,
        on_step=lambda step, _: runtime.report(stage, step + 1, settings.steps),
        integrate=sample_euler if known is None else partial(sample_repaint, known=known),
        **inputs,
    )
