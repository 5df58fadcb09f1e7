"""What TRELLIS.2 trains: the picture encoder, three autoencoders and three flows, on the procedural dataset.

A stage is a function that takes a `Workshop` (recipe, data, generator, finished networks) and returns the module that
learns and its objective. Losses follow the released trainers, without their rendering terms. `python -m
trellis2.training --help` runs stages.

Letters: B batch, T packed tokens or voxels, C channels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis_core.models.image_encoder import DINOv3ViT, prepare_images
from trellis_core.models.structure_vae import SparseStructureDecoder, SparseStructureEncoder
from trellis_core.training.checkpoints import averaged_weights
from trellis_core.training.loop import LoopSettings, Objective, train
from trellis_core.training.objectives import kl_divergence, posterior_sample
from trellis_core.training.optimizer import OptimizerSettings
from trellis_core.training.regressor import VoxelRegressor, regression_losses
from trellis_core.training.synthetic.grids import color_grids, occupancy_grids
from trellis_core.training.synthetic.objects import CATEGORIES
from trellis_core.training.synthetic.shards import Dataset, load_shards

CLASSES: Mapping[str, type[nn.Module]] = {
    c.__name__: c for c in (DINOv3ViT, SparseStructureEncoder, SparseStructureDecoder)
}


@dataclass(frozen=True, eq=False)
class Workshop:
    """Everything a stage may need."""

    recipe: Mapping[str, Any]
    dataset: Dataset
    run: Path                    # where checkpoints of stages lie
    generator: torch.Generator = field(default_factory=torch.Generator)

    def settings(self, stage: str) -> Mapping[str, Any]:
        return self.recipe["stages"][stage]  # type: ignore[no-any-return]

    def build(self, name: str) -> nn.Module:
        """A network of the recipe with random weights."""
        entry = self.recipe["models"][name]
        network = CLASSES[entry["name"]](**entry["args"])
        network.initialize()  # type: ignore[operator]
        return network

    def finished(self, stage: str, name: str) -> nn.Module:
        """A network of an earlier stage, frozen, with its averaged weights."""
        network = self.build(name)
        network.load_state_dict(averaged_weights(self.run / f"{stage}.safetensors", f"{name}."))
        return network.eval().requires_grad_(False)

    def choose(self, count: int) -> np.ndarray:
        """Random objects of the dataset."""
        return torch.randint(len(self.dataset), (count,), generator=self.generator).numpy()

    @cached_property
    def tokens(self) -> np.ndarray:        # bool [n, R, R, R]  token grid
        return occupancy_grids(self.dataset, self.recipe["resolution"], self.recipe["token_resolution"])


Stage = Callable[[Workshop], tuple[nn.Module, Objective]]


def train_image_encoder(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Pictures to coarse voxels; the regressor's head is thrown away afterwards."""
    settings, grid = shop.settings("image_encoder"), shop.recipe["regressor"]["grid"]
    size = shop.recipe["models"]["image_encoder"]["args"]
    regressor = VoxelRegressor(
        size["hidden_size"], size["num_attention_heads"], shop.recipe["regressor"]["num_blocks"], grid, len(CATEGORIES)
    )
    model = nn.ModuleDict({"image_encoder": shop.build("image_encoder"), "regressor": regressor})
    occupancy = occupancy_grids(shop.dataset, shop.recipe["resolution"], grid)
    colors = color_grids(shop.dataset, shop.recipe["resolution"], grid)

    def objective(step: int) -> Mapping[str, Tensor]:
        chosen = shop.choose(settings["batch_size"])
        predicted = model["regressor"](model["image_encoder"](random_pictures(shop, chosen)))
        return regression_losses(
            predicted,
            torch.from_numpy(occupancy[chosen]).float()[:, None],
            torch.from_numpy(colors[chosen]).float() / 255,
            torch.from_numpy(shop.dataset.category[chosen]).long(),
        )

    return model, objective


def random_pictures(shop: Workshop, chosen: np.ndarray) -> Tensor:    # float32 [B, 3, S, S]
    """One random view of each object, normalised for the encoder."""
    views = torch.randint(shop.dataset.pictures.shape[1], (len(chosen),), generator=shop.generator).numpy()
    pictures = torch.from_numpy(shop.dataset.pictures[chosen, views]).permute(0, 3, 1, 2).float() / 255
    return prepare_images(pictures, shop.recipe["image_size"])


def train_structure_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Binary cross-entropy and Dice of the token grid, and KL; the decoder also learns to bear noisy latents."""
    settings = shop.settings("structure_vae")
    names = ("sparse_structure_encoder", "sparse_structure_decoder")
    model = nn.ModuleDict({name: shop.build(name) for name in names})

    def objective(step: int) -> Mapping[str, Tensor]:
        occupancy = torch.from_numpy(shop.tokens[shop.choose(settings["batch_size"])]).float()[:, None]
        mean, logvar = model["sparse_structure_encoder"](occupancy)
        latent = posterior_sample(mean, logvar, shop.generator)
        latent = latent + settings["latent_noise"] * torch.randn(latent.shape, generator=shop.generator)
        logits = model["sparse_structure_decoder"](latent)
        bce = F.binary_cross_entropy_with_logits(logits, occupancy)
        kl = kl_divergence(mean, logvar)
        wrong = ((logits > 0) != (occupancy > 0)).float().mean()
        return {"loss": 5 * bce + settings["kl"] * kl, "bce": bce.detach(), "kl": kl.detach(), "wrong": wrong,
                "std": mean.detach().std()}

    return model, objective


STAGES: Mapping[str, Stage] = {
    "image_encoder": train_image_encoder,
    "structure_vae": train_structure_vae,
}


def main() -> None:
    """Train one stage for a given time, continuing from its checkpoint."""
    parser = argparse.ArgumentParser(description="Train one stage of the embedded model; run again to continue.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = json.loads(options.recipe.read_text(encoding="utf-8"))
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    shop = Workshop(recipe, load_shards(sorted(options.data.glob("*.safetensors"))), options.run, generator)
    model, objective = STAGES[options.stage](shop)
    size = sum(p.numel() for p in model.parameters())
    sys.stderr.write(f"{options.stage}: {size:,} parameters, {len(shop.dataset)} objects\n")
    train(
        model,
        objective,
        OptimizerSettings(**shop.settings(options.stage).get("optimizer", {})),
        LoopSettings(seconds=options.seconds),
        options.run / f"{options.stage}.safetensors",
        log=lambda line: (sys.stderr.write(line + "\n"), sys.stderr.flush())[0],
    )


if __name__ == "__main__":
    main()
