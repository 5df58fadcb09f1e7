"""What a model has to beat: looking the answer up among training pictures, and knowing the category only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trellis_core.image.preprocess import preprocess_picture

SIDE = 64  # pixels of the compared pictures


@dataclass(frozen=True, slots=True)
class TrainingPictures:
    """One picture of each of the first training objects."""

    seeds: Tensor  # int64 [n]
    category: Tensor  # uint8 [n]
    pictures: Tensor  # float32 [n, 3, SIDE, SIDE]  on black, [0, 1]

    @classmethod
    def of(cls, seeds: Tensor, category: Tensor, pictures: Tensor) -> TrainingPictures:
        """From dataset tensors: the first view of each object, pictures uint8 [n, V, S, S, 3]."""
        small = [
            F.interpolate(part.permute(0, 3, 1, 2).float() / 255, (SIDE, SIDE), mode="area")
            for part in pictures[:, 0].split(500)
        ]
        return cls(seeds, category, torch.cat(small))


def nearest_by_pixels(pictures: Sequence[Image.Image], training: TrainingPictures) -> list[int]:
    """For each picture the seed of the training picture with the smallest squared difference."""
    device = training.pictures.device
    known = training.pictures.flatten(1)
    asked = torch.stack([_prepared(p) for p in pictures]).to(device).flatten(1)
    distance = known.square().sum(dim=1) - 2 * asked @ known.T
    return training.seeds[distance.argmin(dim=1)].tolist()


def _prepared(picture: Image.Image) -> Tensor:
    square = preprocess_picture(picture, None).resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def same_category(categories: Sequence[int], training: TrainingPictures) -> list[int]:
    """For each category number the seed of a random training object of that category."""
    rng = np.random.default_rng(0)
    known = training.category.cpu().numpy()
    seeds = training.seeds.cpu().numpy()
    return [int(rng.choice(seeds[known == c])) for c in categories]
