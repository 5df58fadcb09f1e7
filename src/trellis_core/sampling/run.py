"""What the stages of one run share, and the bundle that it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trellis_core import __version__
from trellis_core.image.preprocess import thumbnail
from trellis_core.runtime import Runtime
from trellis_core.sampling.multi_image import STOCHASTIC
from trellis_core.sampling.schedule import SamplerSettings
from trellis_core.weights.bundle import THUMBNAIL, Bundle, ModelIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Settings, condition and random numbers of a run; three mappings are filled as it goes."""

    samplers: Mapping[str, SamplerSettings]  # by the name of the stage
    num_samples: int  # B
    generator: torch.Generator
    runtime: Runtime
    mode: str = STOCHASTIC  # how several pictures are combined
    # picture side -> tokens [1 or B, M, C] of every picture, or of the prompt
    conds: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    unconds: dict[int, Tensor] = field(default_factory=dict)  # [1, M, C] of the empty prompt; absent: zeros
    drift: dict[str, float] = field(default_factory=dict)  # of an edit: stage -> see `Known.drift`

    def draw(self, *shape: int) -> Tensor:
        """The next standard normal numbers of the run, the same on every device."""
        return torch.randn(*shape, generator=self.generator).to(self.runtime.device)

    def bundle(
        self,
        tensors: Mapping[str, Tensor],
        images: Sequence[Image.Image],  # prepared pictures that it started from
        *,
        model: ModelIdentity,
        seed: int,
        condition: Mapping[str, Any],
        **facts: Any,
    ) -> Bundle:
        """The saved run: tensors on the CPU, the first picture as thumbnail, and what made them."""
        return Bundle(
            tensors={
                **{name: tensor.cpu() for name, tensor in tensors.items()},
                **({THUMBNAIL: thumbnail(images[0])} if images else {}),
            },
            info={
                "model": asdict(model),
                "condition": condition,
                **facts,
                "num_samples": self.num_samples,
                "seed": seed,
                "samplers": {name: asdict(sampler) for name, sampler in self.samplers.items()},
                "version": __version__,
            },
        )


def edited(
    bundle: Bundle,
    tensors: Mapping[str, Tensor],  # after the edit
    record: Mapping[str, Any],  # what was done
    images: Sequence[Image.Image],  # prepared pictures that it was done after
) -> Bundle:
    """The bundle after an edit. It keeps what the object was made from, and every edit before this one."""
    earlier = [*bundle.info.get("earlier_edits", ()), *filter(None, [bundle.info.get("edit")])]
    shown = bundle.thumbnail if bundle.thumbnail is not None or not images else thumbnail(images[0])
    info = {**bundle.info, "edit": record, "version": __version__}
    return Bundle(
        tensors={
            **{name: tensor.cpu() for name, tensor in tensors.items()},
            **({} if shown is None else {THUMBNAIL: shown}),
        },
        info={**info, "earlier_edits": earlier} if earlier else info,
    )
