"""What TRELLIS.2 trains: the picture encoder, three autoencoders and three flows, on the procedural
dataset.

A stage is a function that takes a `Workshop` (recipe, data, generator, finished networks) and returns the
module that learns and its objective. Losses follow the released trainers, without their rendering terms.
`trellis2.train_embedded` runs stages from the command line.

Letters: B batch, T packed tokens or voxels, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis2.models.sparse_blocks import SparseResBlock, SparseResBlockS2C3d
from trellis2.release import ReleaseFacts, TrainedNetwork, write_release
from trellis2.workshop import Latents, Workshop
from trellis_core.models.image_encoder import prepare_images
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.loop import LoopSettings, Objective, train
from trellis_core.training.objectives import (
    kl_divergence,
    noised,
    posterior_sample,
    velocity_target,
)
from trellis_core.training.optimizer import OptimizerSettings
from trellis_core.training.precision import Float32Attention
from trellis_core.training.regressor import VoxelRegressor, regression_losses
from trellis_core.training.synthetic.grids import color_grids, occupancy_grids
from trellis_core.training.synthetic.objects import CATEGORIES

Stage = Callable[[Workshop], tuple[nn.Module, Objective]]


def train_image_encoder(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Pictures to coarse voxels; the regressor's head is thrown away afterwards."""
    settings, grid = shop.settings("image_encoder"), shop.recipe["regressor"]["grid"]
    size = shop.recipe["models"]["image_encoder"]["args"]
    regressor = VoxelRegressor(
        size["hidden_size"],
        size["num_attention_heads"],
        shop.recipe["regressor"]["num_blocks"],
        grid,
        len(CATEGORIES),
        Float32Attention(),
    )
    model = nn.ModuleDict({"image_encoder": shop.build("image_encoder"), "regressor": regressor})
    sharpen_positions(model["image_encoder"])
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


def sharpen_positions(encoder: nn.Module) -> None:
    """Start with queries that tell places apart.

    Only patch queries and keys are rotated, so a patch learns where it is from how its rotated query meets
    the unrotated registers. Query biases and keys of unit size make that signal strong from the first step.
    """
    for name, parameter in encoder.named_parameters():
        if name.endswith("q_proj.bias"):
            nn.init.normal_(parameter, std=1.0)
        elif re.search(r"(q|k|v)_proj\.weight$", name):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def random_pictures(shop: Workshop, chosen: np.ndarray) -> Tensor:  # float32 [B, 3, S, S]
    """One random view of each object, normalised for the encoder."""
    views = torch.randint(shop.dataset.pictures.shape[1], (len(chosen),), generator=shop.generator).numpy()
    pictures = torch.from_numpy(shop.dataset.pictures[chosen, views]).permute(0, 3, 1, 2).float() / 255
    return prepare_images(pictures, shop.recipe["image_size"])


def train_structure_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Binary cross-entropy and Dice of the token grid, and KL; the decoder also learns to bear noisy
    latents."""
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
        return {
            "loss": 5 * bce + settings["kl"] * kl,
            "bce": bce.detach(),
            "kl": kl.detach(),
            "wrong": wrong,
            "std": mean.detach().std(),
        }

    return model, objective


def train_shape_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Dual grids: cross-entropy of crossings and subdivisions, L1 of positions, KL; no rendering terms."""
    settings = shop.settings("shape_vae")
    names = ("shape_slat_encoder", "shape_slat_decoder")
    model = nn.ModuleDict({name: shop.build(name) for name in names})

    def objective(step: int) -> Mapping[str, Tensor]:
        voxels = shop.voxel_batch(shop.choose(settings["batch_size"]))
        mean, logvar = model["shape_slat_encoder"](voxels.position, voxels.flags)
        latent = mean.replace(shop.noisy_latent(mean.feats, logvar.feats, settings))
        output, subdivisions = model["shape_slat_decoder"](latent)
        grid = model["shape_slat_decoder"].dual_grid(output.feats)  # type: ignore[operator]
        crossing = F.binary_cross_entropy_with_logits(grid.crossing_logits, voxels.flags.float())
        position = (grid.dual_vertices - voxels.position.feats).abs().mean()
        masks = [s.plan.expand().mask for s in subdivisions]
        split = torch.stack(
            [
                F.binary_cross_entropy_with_logits(s.feats, m.float())
                for s, m in zip(subdivisions, masks, strict=True)
            ]
        ).sum()
        kl = kl_divergence(mean.feats, logvar.feats)
        wrong = (grid.crossings != voxels.flags).float().mean()
        split_wrong = ((subdivisions[-1].feats > 0) != masks[-1]).float().mean()
        loss = crossing + settings["position"] * position + split + settings["kl"] * kl
        return {
            "loss": loss,
            "crossing": crossing,
            "position": position,
            "split": split,
            "kl": kl,
            "wrong": wrong,
            "split_wrong": split_wrong,
            "std": mean.feats.detach().std(),
        }

    return model, objective


def train_texture_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Materials on known voxels: L1 in [-1, 1] and KL."""
    settings = shop.settings("texture_vae")
    names = ("tex_slat_encoder", "tex_slat_decoder")
    model = nn.ModuleDict({name: shop.build(name) for name in names})
    start_precise(model["tex_slat_encoder"])
    start_pooling(model)

    def objective(step: int) -> Mapping[str, Tensor]:
        attrs = shop.voxel_batch(shop.choose(settings["batch_size"])).attrs
        if torch.rand((), generator=shop.generator) < settings["repaint"]:
            attrs = repainted(attrs, shop.generator)
        mean, logvar = model["tex_slat_encoder"](attrs)
        latent = mean.replace(shop.noisy_latent(mean.feats, logvar.feats, settings))
        error = model["tex_slat_decoder"](latent)[0].feats - attrs.feats
        kl = kl_divergence(mean.feats, logvar.feats)
        # squares beside L1: while colors are far off, their gradient tells far from near; the channels that
        # are worst weigh most, or one after the other would be learned
        each = error.square().mean(dim=0) + settings["l1"] * error.abs().mean(dim=0)
        weights = each.detach() / each.detach().mean()
        losses = {
            "loss": (weights * each).mean() + settings["kl"] * kl,
            "color": error[:, :3].abs().mean(),
            "green": error[:, 1].abs().mean(),
            "rest": error[:, 3:5].abs().mean(),
            "kl": kl,
            "std": mean.feats.detach().std(),
        }
        return losses

    return model, objective


def repainted(attrs: SparseTensor, generator: torch.Generator, planes: int = 3) -> SparseTensor:
    """Give half of the regions between random planes a random opaque material.

    A few objects show a few materials only; an autoencoder of colors learns from many.
    """
    count, regions = attrs.batch_size, 2**planes
    normals = torch.randn(count, planes, 3, generator=generator)
    places = attrs.coords[:, 1:].float()
    middle = places.mean(dim=0) + 8 * torch.randn(count, planes, 3, generator=generator)
    offsets = (normals * middle).sum(dim=-1)
    sides = (attrs.broadcast(normals) @ places[:, :, None]).squeeze(-1) > attrs.broadcast(offsets)
    region = (sides * 2 ** torch.arange(planes)).sum(dim=1) + regions * attrs.coords[:, 0]
    paint = 2 * torch.rand(count * regions, attrs.feats.shape[1], generator=generator) - 1
    paint[:, 5] = 1
    chosen = torch.rand(count * regions, 1, generator=generator) < 0.5
    return attrs.replace(torch.where(chosen[region], paint[region], attrs.feats))


def start_pooling(model: nn.Module, gain: float = 1.6) -> None:
    """Start as an autoencoder of mean colors: encoders average children, decoders copy to them.

    The released start (silent residual branches) leaves one linear function of the color alive, because skips
    average neighbouring channels; each further one is then learned across two silent convolutions.
    """
    with torch.no_grad():
        for block in model.modules():
            if not isinstance(block, SparseResBlock):
                continue
            for conv in (block.conv1, block.conv2):
                nn.init.zeros_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            first, second = block.conv1.weight[:, 1, 1, 1], block.conv2.weight[:, 1, 1, 1]
            if isinstance(block, SparseResBlockS2C3d):
                nn.init.normal_(first, std=gain * first.shape[1] ** -0.5)
                share = second.shape[1] // 8
                second.copy_((torch.randn(len(second), share) * gain * share**-0.5 / 4).repeat(1, 8))
            else:
                share = len(first) // 8
                first.copy_((torch.randn(share, first.shape[1]) * gain * first.shape[1] ** -0.5).repeat(8, 1))
                nn.init.normal_(second, std=gain * second.shape[1] ** -0.5)


def start_precise(encoder: nn.Module, logvar: float = -4.0) -> None:
    """Let the posterior start narrow: under noise of unit size a decoder learns to ignore faint channels."""
    bias = encoder.to_latent.bias  # type: ignore[union-attr]
    with torch.no_grad():
        bias.chunk(2)[1].fill_(logvar)  # type: ignore[operator]


def train_structure_flow(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Noise to structure latents, given picture tokens."""
    settings, features = shop.settings("structure_flow"), shop.features
    encoder = shop.finished("structure_vae", "sparse_structure_encoder")
    occupancy = torch.from_numpy(shop.tokens)[:, None]
    with torch.no_grad():
        latents = torch.cat([encoder(part.float())[0] for part in occupancy.split(256)])
    model = nn.ModuleDict({"sparse_structure_flow_model": shop.build("sparse_structure_flow_model")})

    def objective(step: int) -> Mapping[str, Tensor]:
        chosen = shop.choose(settings["batch_size"])
        x, t = latents[chosen], shop.times(settings, len(chosen))
        noise = torch.randn(x.shape, generator=shop.generator)
        scale = t.view(-1, 1, 1, 1, 1)
        predicted = model["sparse_structure_flow_model"](
            noised(x, noise, scale), 1000 * t, shop.conditions(features, chosen)
        )
        error = (predicted - velocity_target(x, noise)).square().mean(dim=(1, 2, 3, 4))
        return {"loss": error.mean(), **by_time(error, t)}

    return model, objective


def train_shape_flow(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Noise to normalised shape latents on the occupied tokens, given picture tokens."""
    latents = shop.latents("shape")
    return _train_latent_flow(
        shop, "shape_flow", f"shape_slat_flow_model_{shop.recipe['resolution']}", latents, None
    )


def train_texture_flow(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Noise to normalised texture latents, given picture tokens and the shape latent."""
    return _train_latent_flow(
        shop,
        "texture_flow",
        f"tex_slat_flow_model_{shop.recipe['resolution']}",
        shop.latents("texture"),
        shop.latents("shape"),
    )


def _train_latent_flow(
    shop: Workshop, stage: str, name: str, latents: Latents, concat: Latents | None
) -> tuple[nn.Module, Objective]:
    settings, features = shop.settings(stage), shop.features
    model = nn.ModuleDict({name: shop.build(name)})
    lengths = np.diff(latents.starts)
    same_length = {int(n): np.flatnonzero(lengths == n) for n in np.unique(lengths)}

    def objective(step: int) -> Mapping[str, Tensor]:
        # attention runs samples of one length as one batch, so a batch is a few groups of equal length
        anchors = torch.randint(len(lengths), (settings["groups"],), generator=shop.generator).numpy()
        chosen = np.concatenate(
            [shop.some(same_length[int(lengths[a])], settings["group_size"]) for a in anchors]
        )
        coords, x = latents.batch(chosen)
        t = shop.times(settings, len(chosen))
        noise = torch.randn(x.shape, generator=shop.generator)
        sparse = SparseTensor(x, coords, len(chosen))
        scale = sparse.broadcast(t[:, None])
        extra = () if concat is None else (sparse.replace(concat.batch(chosen)[1]),)
        predicted = model[name](
            sparse.replace(noised(x, noise, scale)), 1000 * t, shop.conditions(features, chosen), *extra
        ).feats
        error = (predicted - velocity_target(x, noise)).square().mean(dim=1)
        return {"loss": error.mean(), **by_time(error, scale[:, 0])}

    return model, objective


def by_time(error: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Mean error near the data, in the middle and near the noise; nan where no sample fell."""
    error = error.detach()
    spans = {"low": t < 0.4, "mid": (t >= 0.4) & (t < 0.8), "high": t >= 0.8}
    return {
        name: error[inside].mean() if bool(inside.any()) else error.mean() for name, inside in spans.items()
    }


STAGES: Mapping[str, Stage] = {
    "image_encoder": train_image_encoder,
    "structure_vae": train_structure_vae,
    "shape_vae": train_shape_vae,
    "texture_vae": train_texture_vae,
    "structure_flow": train_structure_flow,
    "shape_flow": train_shape_flow,
    "texture_flow": train_texture_flow,
}


def stage_of(recipe: Mapping[str, Any]) -> Mapping[str, str]:
    """Network -> the stage that trains it."""
    size = recipe["resolution"]
    return {
        "image_encoder": "image_encoder",
        "sparse_structure_encoder": "structure_vae",
        "sparse_structure_decoder": "structure_vae",
        "sparse_structure_flow_model": "structure_flow",
        "shape_slat_encoder": "shape_vae",
        "shape_slat_decoder": "shape_vae",
        f"shape_slat_flow_model_{size}": "shape_flow",
        "tex_slat_encoder": "texture_vae",
        "tex_slat_decoder": "texture_vae",
        f"tex_slat_flow_model_{size}": "texture_flow",
    }


def release(shop: Workshop, folder: Path) -> None:
    """Write the finished networks as a model folder in the released layout."""
    networks = {
        name: TrainedNetwork(shop.recipe["models"][name], shop.finished(stage, name))
        for name, stage in stage_of(shop.recipe).items()
    }
    shape, texture = shop.latents("shape"), shop.latents("texture")
    facts = ReleaseFacts(
        export=shop.recipe.get("export", {}),
        resolution=shop.recipe["resolution"],
        token_resolution=shop.recipe["token_resolution"],
        image_size=shop.recipe["image_size"],
        samplers=shop.recipe["samplers"],
        shape_normalization=(shape.mean, shape.std),
        texture_normalization=(texture.mean, texture.std),
    )
    write_release(folder, networks, facts)


def train_and_store(
    shop: Workshop, stage: str, settings: LoopSettings, log: Callable[[str], None] = lambda line: None
) -> None:
    """Train one stage for a piece, continuing from its checkpoint in the run folder."""
    model, objective = STAGES[stage](shop)
    log(f"{stage}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(shop.dataset)} objects")
    optimizer = OptimizerSettings(**shop.settings(stage).get("optimizer", {}))
    train(model, objective, optimizer, settings, shop.run / f"{stage}.safetensors", log)
