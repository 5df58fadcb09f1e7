"""What a model learns about the pictures it knows: familiarity facts from procedural objects.

Pictures of training objects say what is usual, pictures of held-out ones where the usual ends
(`trellis_core.models.familiarity`). Letters: n pictures, S their side, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from trellis2.loading import IMAGE_ENCODER, find_checkpoints, load_network
from trellis2.release import add_familiarity
from trellis2.settings import read_settings
from trellis_core.models.familiarity import FamiliarityFacts, fit_familiarity, mean_token
from trellis_core.models.image_encoder import prepare_images
from trellis_core.runtime import Runtime
from trellis_core.training.synthetic.objects import HELD_OUT
from trellis_core.training.synthetic.shards import DatasetSettings, make_shard
from trellis_core.weights import hub

SEEN, UNSEEN = 1500, 500  # pictures to learn from, and of held-out objects: enough for a stable limit
AT_A_TIME = 50  # objects


def fit_folder(
    folder: Path,
    runtime: Runtime,
    *,
    seen: int = SEEN,
    unseen: int = UNSEEN,
    on_pictures: Callable[[int, int], None] = lambda done, count: None,
) -> FamiliarityFacts:
    """Fit the facts for a model folder on pictures made here, one per object, and add them to its
    `pipeline.json`. Raises `ModelError` when the model cannot be read."""
    settings = read_settings(folder / hub.PIPELINE)
    kind = settings.pipeline_type(None)
    stem = find_checkpoints(folder, settings, folder.name)[IMAGE_ENCODER]
    encoder = load_network(stem, runtime).to(runtime.device)
    data = DatasetSettings(resolution=kind.resolution, image_size=kind.structure_image_size)
    made = chain(
        made_pictures(range(seen), data, runtime.device),
        made_pictures(range(HELD_OUT, HELD_OUT + unseen), data, runtime.device),
    )
    means: list[Tensor] = []
    for pictures in made:
        means.append(picture_means(encoder, pictures, data.image_size, runtime.device))
        on_pictures(sum(map(len, means)), seen + unseen)
    facts = fit_familiarity(*torch.cat(means).split([seen, unseen]))
    add_familiarity(folder, facts)
    return facts


def fit_held_out(
    encoder: nn.Module,
    seen: Tensor,  # float32 [n, C]  mean tokens of training pictures
    data: DatasetSettings,
    device: torch.device,
) -> FamiliarityFacts:
    """The facts of an encoder whose training pictures are encoded already."""
    count = min(UNSEEN, max(16, len(seen) // 3))
    held_out = made_pictures(range(HELD_OUT, HELD_OUT + count), data, device)
    unseen = [picture_means(encoder, pictures, data.image_size, device) for pictures in held_out]
    return fit_familiarity(seen.cpu(), torch.cat(unseen))


def made_pictures(
    seeds: Sequence[int], data: DatasetSettings, device: torch.device
) -> Iterator[Tensor]:  # uint8 [n, S, S, 3] on black
    """One view of each object, a few objects at a time."""
    one = replace(data, views=1)
    for start in range(0, len(seeds), AT_A_TIME):
        yield make_shard(seeds[start : start + AT_A_TIME], one, device)["pictures"][:, 0]


@torch.inference_mode()
def picture_means(
    encoder: nn.Module,
    pictures: Tensor,  # uint8 [n, S, S, 3]
    image_size: int,
    device: torch.device,
) -> Tensor:  # float32 [n, C] on the CPU
    prepared = prepare_images(pictures.to(device).permute(0, 3, 1, 2).float() / 255, image_size)
    return mean_token(encoder(prepared)).cpu()
