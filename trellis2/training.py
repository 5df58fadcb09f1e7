"""What TRELLIS.2 trains: the picture encoder, three autoencoders and three flows, on the procedural
dataset.

A stage is a function that takes a `Workshop` (recipe, data, generator, finished networks) and returns the
module that learns and its objective. Losses follow the released trainers, without their rendering terms.
`trellis2.train_embedded` runs stages from the command line.

Letters: B batch, T packed tokens or voxels, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trellis2.known_pictures import SEEN, fit_held_out
from trellis2.models import MODELS
from trellis2.models.sparse_blocks import SparseResBlock, SparseResBlockS2C3d
from trellis2.release import ReleasedText, ReleaseFacts, TrainedNetwork, write_release
from trellis2.workshop import Latents, VoxelBatch, Workshop
from trellis_core.models.familiarity import mean_token
from trellis_core.models.tokenizer import Tokenizer
from trellis_core.sparse.tensor import SparseTensor
from trellis_core.training.loop import Log, LoopSettings, Objective, train
from trellis_core.training.objectives import (
    kl_divergence,
    noised,
    velocity_target,
)
from trellis_core.training.optimizer import OptimizerSettings
from trellis_core.training.regressor import VoxelRegressor, regression_losses
from trellis_core.training.synthetic.captions import ALIASES, WORDS
from trellis_core.training.synthetic.grids import color_grids, occupancy_grids
from trellis_core.training.synthetic.objects import CATEGORIES
from trellis_core.training.synthetic.shards import DatasetSettings

Stage = Callable[[Workshop], tuple[nn.Module, Objective]]


def train_encoders(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Pictures, and captions, to coarse voxels by one regressor, whose head is thrown away afterwards."""
    settings, size = shop.settings("encoders"), shop.recipe["models"]["image_encoder"]["args"]
    head = shop.recipe["regressor"]
    regressor = VoxelRegressor(
        size["hidden_size"],
        size["num_attention_heads"],
        head["num_blocks"],
        head["grid"],
        head["queries"],
        len(CATEGORIES),
        shop.kernels,
    ).to(shop.device)
    encoders = {"image_encoder": shop.build("image_encoder")}
    sharpen_positions(encoders["image_encoder"])
    if shop.has_text:
        encoders["text_encoder"] = shop.build("text_encoder")
    model = shop.learning(**encoders, regressor=regressor)
    occupancy = occupancy_grids(shop.dataset, shop.recipe["resolution"], head["grid"])
    colors = color_grids(shop.dataset, shop.recipe["resolution"], head["grid"])

    def losses_of(chosen: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return regression_losses(
            model["regressor"](tokens),
            occupancy[chosen].float()[:, None],
            colors[chosen].float() / 255,
            shop.dataset.category[chosen].long(),
        )

    def objective(step: int) -> Mapping[str, Tensor]:
        chosen = shop.choose(settings["batch_size"])
        losses = losses_of(chosen, model["image_encoder"](shop.pictures(chosen)))
        if not shop.has_text:
            return losses
        chosen = shop.choose(settings["text_batch_size"])
        text = losses_of(chosen, model["text_encoder"](shop.prompts(chosen)))
        return {
            **losses,
            "loss": losses["loss"] + text["loss"],
            **{f"text_{name}": value for name, value in text.items() if name != "loss"},
        }

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


def train_structure_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Binary cross-entropy and Dice of the token grid, and KL; the decoder also learns to bear noisy
    latents."""
    settings = shop.settings("structure_vae")
    names = ("sparse_structure_encoder", "sparse_structure_decoder")
    model = shop.learning(**{name: shop.build(name) for name in names})

    def objective(step: int) -> Mapping[str, Tensor]:
        occupancy = shop.tokens[shop.choose(settings["batch_size"])].float()[:, None]
        mean, logvar = model["sparse_structure_encoder"](occupancy)
        latent = shop.noisy_latent(mean, logvar, settings)
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
    model = shop.learning(**{name: shop.build(name) for name in names})

    def objective(step: int) -> Mapping[str, Tensor]:
        voxels = shop.voxel_batch(shop.choose(settings["batch_size"]))
        mean, logvar = model["shape_slat_encoder"](voxels.position, voxels.flags)
        latent = mean.replace(shop.noisy_latent(mean.feats, logvar.feats, settings))
        losses = shape_losses(model["shape_slat_decoder"], latent, voxels, settings)
        return with_divergence(losses, mean.feats, logvar.feats, settings)

    return model, objective


def train_shape_decoder(shop: Workshop) -> tuple[nn.Module, Objective]:
    """The shape decoder alone goes on, on latents as rough as a flow makes them; the latents stay."""
    settings = shop.settings("shape_decoder")
    encoder = shop.finished("shape_vae", "shape_slat_encoder")
    model = shop.learning(shape_slat_decoder=shop.finished("shape_vae", "shape_slat_decoder"))
    model.requires_grad_(True)

    def objective(step: int) -> Mapping[str, Tensor]:
        voxels = shop.voxel_batch(shop.choose(settings["batch_size"]))
        with torch.no_grad():
            mean, _ = encoder(voxels.position, voxels.flags)
        return shape_losses(model["shape_slat_decoder"], shop.rough_latent(mean, settings), voxels, settings)

    return model, objective


def shape_losses(
    decoder: nn.Module, latent: SparseTensor, voxels: VoxelBatch, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """How far the decoder is from the dual grid that the latent came from."""
    output, subdivisions = decoder(latent)
    grid = decoder.dual_grid(output.feats)  # type: ignore[operator]
    crossing = F.binary_cross_entropy_with_logits(grid.crossing_logits, voxels.flags.float())
    position = (grid.dual_vertices - voxels.position.feats).abs().mean()
    masks = [s.plan.expand().mask for s in subdivisions]
    split = torch.stack(
        [
            F.binary_cross_entropy_with_logits(s.feats, m.float())
            for s, m in zip(subdivisions, masks, strict=True)
        ]
    ).sum()
    return {
        "loss": crossing + settings["position"] * position + split,
        "crossing": crossing,
        "position": position,
        "split": split,
        "wrong": (grid.crossings != voxels.flags).float().mean(),
        "split_wrong": ((subdivisions[-1].feats > 0) != masks[-1]).float().mean(),
    }


def with_divergence(
    losses: dict[str, Tensor], mean: Tensor, logvar: Tensor, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The losses of an autoencoder with the latent's KL."""
    kl = kl_divergence(mean, logvar)
    return {**losses, "loss": losses["loss"] + settings["kl"] * kl, "kl": kl, "std": mean.detach().std()}


def train_texture_vae(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Materials on known voxels: L1 in [-1, 1] and KL."""
    settings = shop.settings("texture_vae")
    names = ("tex_slat_encoder", "tex_slat_decoder")
    model = shop.learning(**{name: shop.build(name) for name in names})
    start_precise(model["tex_slat_encoder"])
    start_pooling(model)

    def objective(step: int) -> Mapping[str, Tensor]:
        attrs = materials(shop, settings)
        mean, logvar = model["tex_slat_encoder"](attrs)
        latent = mean.replace(shop.noisy_latent(mean.feats, logvar.feats, settings))
        losses = texture_losses(model["tex_slat_decoder"], latent, attrs, settings)
        return with_divergence(losses, mean.feats, logvar.feats, settings)

    return model, objective


def train_texture_decoder(shop: Workshop) -> tuple[nn.Module, Objective]:
    """The texture decoder alone goes on, on latents as rough as a flow's."""
    settings = shop.settings("texture_decoder")
    encoder = shop.finished("texture_vae", "tex_slat_encoder")
    model = shop.learning(tex_slat_decoder=shop.finished("texture_vae", "tex_slat_decoder"))
    model.requires_grad_(True)

    def objective(step: int) -> Mapping[str, Tensor]:
        attrs = materials(shop, settings)
        with torch.no_grad():
            mean, _ = encoder(attrs)
        return texture_losses(model["tex_slat_decoder"], shop.rough_latent(mean, settings), attrs, settings)

    return model, objective


def materials(shop: Workshop, settings: Mapping[str, Any]) -> SparseTensor:
    """Materials of random objects, for a share of the batches painted anew."""
    attrs = shop.voxel_batch(shop.choose(settings["batch_size"])).attrs
    return repainted(attrs, shop) if shop.chance(settings["repaint"]) else attrs


def texture_losses(
    decoder: nn.Module, latent: SparseTensor, attrs: SparseTensor, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """How far the decoder is from the materials that the latent came from.

    Squares beside L1: while colors are far off, their gradient tells far from near. The channels that are
    worst weigh most, or one after the other would be learned.
    """
    error = decoder(latent)[0].feats - attrs.feats
    each = error.square().mean(dim=0) + settings["l1"] * error.abs().mean(dim=0)
    weights = each.detach() / each.detach().mean()
    return {
        "loss": (weights * each).mean(),
        "color": error[:, :3].abs().mean(),
        "green": error[:, 1].abs().mean(),
        "rest": error[:, 3:5].abs().mean(),
    }


def repainted(attrs: SparseTensor, shop: Workshop, planes: int = 3) -> SparseTensor:
    """Give half of the regions between random planes a random opaque material.

    Objects show a few materials only; an autoencoder of colors learns from many.
    """
    count, regions = attrs.batch_size, 2**planes
    normals = shop.noise(count, planes, 3)
    places = attrs.coords[:, 1:].float()
    middle = places.mean(dim=0) + 0.15 * places.max() * shop.noise(count, planes, 3)
    offsets = (normals * middle).sum(dim=-1)
    sides = (attrs.broadcast(normals) @ places[:, :, None]).squeeze(-1) > attrs.broadcast(offsets)
    region = (sides * 2 ** torch.arange(planes, device=attrs.device)).sum(dim=1) + regions * attrs.coords[
        :, 0
    ]
    paint = 2 * shop.uniform(count * regions, attrs.feats.shape[1]) - 1
    paint[:, 5] = 1
    chosen = shop.uniform(count * regions, 1) < 0.5
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
    """Noise to structure latents, given picture or text tokens."""
    settings = shop.settings("structure_flow")
    latents = shop.structure_latents
    model = shop.learning(sparse_structure_flow_model=shop.build("sparse_structure_flow_model"))

    def objective(step: int) -> Mapping[str, Tensor]:
        chosen = shop.choose(settings["batch_size"])
        x, t = latents[chosen].float(), shop.times(settings, len(chosen))
        noise = shop.noise(*x.shape)
        scale = t.view(-1, 1, 1, 1, 1)
        predicted = model["sparse_structure_flow_model"](
            noised(x, noise, scale), 1000 * t, shop.conditions(chosen)
        )
        error = (predicted.float() - velocity_target(x, noise)).square().mean(dim=(1, 2, 3, 4))
        return {"loss": error.mean(), **by_time(error, t)}

    return model, objective


def train_shape_flow(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Noise to normalised shape latents on the occupied tokens, given picture or text tokens."""
    name = f"shape_slat_flow_model_{shop.recipe['resolution']}"
    return _train_latent_flow(shop, "shape_flow", name, shop.latents("shape"), None)


def train_texture_flow(shop: Workshop) -> tuple[nn.Module, Objective]:
    """Noise to normalised texture latents, given picture or text tokens and the shape latent."""
    name = f"tex_slat_flow_model_{shop.recipe['resolution']}"
    return _train_latent_flow(shop, "texture_flow", name, shop.latents("texture"), shop.latents("shape"))


def _train_latent_flow(
    shop: Workshop, stage: str, name: str, latents: Latents, concat: Latents | None
) -> tuple[nn.Module, Objective]:
    settings = shop.settings(stage)
    model = shop.learning(**{name: shop.build(name)})

    def objective(step: int) -> Mapping[str, Tensor]:
        chosen = shop.choose(settings["batch_size"])
        coords, x = latents.batch(chosen)
        t = shop.times(settings, len(chosen))
        noise = shop.noise(*x.shape)
        sparse = SparseTensor(x, coords, len(chosen))
        scale = sparse.broadcast(t[:, None])
        extra = () if concat is None else (sparse.replace(concat.batch(chosen)[1]),)
        predicted = model[name](
            sparse.replace(noised(x, noise, scale)), 1000 * t, shop.conditions(chosen), *extra
        ).feats
        error = (predicted.float() - velocity_target(x, noise)).square().mean(dim=1)
        return {"loss": error.mean(), **by_time(error, scale[:, 0])}

    return model, objective


def by_time(error: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Mean error near the data, in the middle and near the noise; of all where no sample fell."""
    error = error.detach()
    spans = {"low": t < 0.4, "mid": (t >= 0.4) & (t < 0.8), "high": t >= 0.8}
    return {
        name: torch.where(inside.any(), (error * inside).sum() / inside.sum().clamp_min(1), error.mean())
        for name, inside in spans.items()
    }


STAGES: Mapping[str, Stage] = {
    "encoders": train_encoders,
    "structure_vae": train_structure_vae,
    "shape_vae": train_shape_vae,
    "texture_vae": train_texture_vae,
    "shape_decoder": train_shape_decoder,
    "texture_decoder": train_texture_decoder,
    "structure_flow": train_structure_flow,
    "shape_flow": train_shape_flow,
    "texture_flow": train_texture_flow,
}


def stage_of(recipe: Mapping[str, Any]) -> Mapping[str, str]:
    """Network -> the stage that trains it."""
    size = recipe["resolution"]
    return {
        "image_encoder": "encoders",
        **({"text_encoder": "encoders"} if "text" in recipe else {}),
        "sparse_structure_encoder": "structure_vae",
        "sparse_structure_decoder": "structure_vae",
        "sparse_structure_flow_model": "structure_flow",
        "shape_slat_encoder": "shape_vae",
        "shape_slat_decoder": "shape_decoder",
        f"shape_slat_flow_model_{size}": "shape_flow",
        "tex_slat_encoder": "texture_vae",
        "tex_slat_decoder": "texture_decoder",
        f"tex_slat_flow_model_{size}": "texture_flow",
    }


def release(shop: Workshop, folder: Path) -> None:
    """Write the finished networks as a model folder in the released layout."""
    networks = {
        name: TrainedNetwork(shop.config(name), shop.finished(stage, name))
        for name, stage in stage_of(shop.recipe).items()
    }
    text = None
    if shop.has_text:
        words = shop.tokenizer.only(WORDS)
        networks["text_encoder"] = with_vocabulary(networks["text_encoder"], shop.tokenizer, words)
        text = ReleasedText(words, shop.recipe["text"]["max_length"], WORDS, nouns(), ALIASES)
    shape, texture = shop.latents("shape"), shop.latents("texture")
    data = DatasetSettings(resolution=shop.recipe["resolution"], image_size=shop.recipe["image_size"])
    seen = mean_token(shop.picture_tokens[:SEEN, 0])
    familiarity = fit_held_out(networks["image_encoder"].network, seen, data, shop.device)
    facts = ReleaseFacts(
        export=shop.recipe.get("export", {}),
        resolution=shop.recipe["resolution"],
        token_resolution=shop.recipe["token_resolution"],
        image_size=shop.recipe["image_size"],
        samplers=shop.recipe["samplers"],
        shape_normalization=(shape.mean, shape.std),
        texture_normalization=(texture.mean, texture.std),
        text=text,
        familiarity=familiarity,
    )
    write_release(folder, networks, facts)


def nouns() -> tuple[str, ...]:
    """What the dataset's objects are called."""
    return tuple(sorted({noun for kind in CATEGORIES.values() for noun in kind.nouns}))


def with_vocabulary(trained: TrainedNetwork, old: Tokenizer, new: Tokenizer) -> TrainedNetwork:
    """A text encoder with the embeddings of a smaller vocabulary only."""
    rows = [old.vocab[piece] for piece, _ in sorted(new.vocab.items(), key=lambda item: item[1])]
    args = {**trained.config["args"], "vocab_size": len(rows)}
    network = MODELS[trained.config["name"]](**args)
    table = "text_model.embeddings.token_embedding.weight"
    state = {k: v.cpu() for k, v in trained.network.state_dict().items()}
    network.load_state_dict({**state, table: state[table][rows]})
    return TrainedNetwork({**trained.config, "args": args}, network)


ENCODINGS: Mapping[str, Callable[[Workshop], object]] = {
    "structure": lambda shop: shop.structure_latents,
    "pictures": lambda shop: shop.picture_tokens,
    "shape": lambda shop: shop.latents("shape"),
    "texture": lambda shop: shop.latents("texture"),
}


def encode_data(shop: Workshop, what: Iterable[str] = tuple(ENCODINGS)) -> None:
    """Store what the flows need of the data, so that they can start without it."""
    for name in what:
        ENCODINGS[name](shop)


def train_and_store(
    shop: Workshop, stage: str, settings: LoopSettings, log: Log = lambda entry: None
) -> None:
    """Train one stage for a piece, continuing from its checkpoint in the run folder."""
    model, objective = STAGES[stage](shop)
    optimizer = OptimizerSettings(**shop.settings(stage).get("optimizer", {}))
    generators = {"generator": shop.generator, "host": shop.host}
    train(model, objective, optimizer, settings, shop.run / f"{stage}.safetensors", log, generators)
