"""What a training run needs of a GPU's memory, from its recipe and nothing else.

Counted from the computation, per trained parameter P and compute type of s bytes:

    weights      4 P, or 2 P and a flat float32 master of 4 P when inflated; 16-bit copies of autocast 2 P
    gradients    4 P, or 2 P and 4 P when inflated
    optimizer    8 P  (two moments of Adam)
    average      4 P  (on the first GPU)
    frozen       4 bytes per parameter of the networks that only run forward

Activations are what the backward pass keeps, at the limit of voxels or tokens that the recipe sets:

    transformer block, per token     32 C + 13 s C + 2 s H   (residuals and norms float32; H inside the MLP)
                                     of a block that is computed again: 4 C
    cross-attention, per sample      2 s C M per block, for M context tokens
    v1's mesh decoder, per voxel     two levels of 8 and 64 cubes as sparse levels below, never computed again
    sparse level, per voxel          (11 s + 4) C per block, and 120 bytes for coordinates and neighbours once
    dense level, per cell            6 s C per residual block, and 8 C for float32 norms beside 16 bits

Letters: C channels, H hidden channels, M context tokens, N tokens or voxels, r rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trellis_core.training.recipes import NetworkFacts, Recipe

CHILDREN = 4.65  # occupied children per occupied voxel
TABLES = 120  # bytes per voxel: coordinates, keys, 27 neighbours
LATENT_FLOW_GRID = 2  # v1's latent flow halves the grid once
CUBE = 101  # channels of a cube of v1's mesh decoder
REPRESENTED = 12  # bytes per number of what v1's decoders make of a voxel: raw, activated, drawn

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch at the limit."""

    kept: int  # everything kept
    recomputed: int  # every block computed again in the backward pass: inputs, and one block

    def at(self, share: float) -> int:
        """With this share of the blocks kept."""
        return round(self.recomputed + share * (self.kept - self.recomputed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int
    activations: Activations
    trained: int  # parameters

    @property
    def state(self) -> int:
        """Everything but activations."""
        return self.weights + self.gradients + self.optimizer + self.average + self.frozen

    def total(self, share: float) -> int:
        return self.state + self.activations.at(share)


def estimate(recipe: Recipe, adapter: int | None = None) -> Footprint:
    """The footprint of a run; `adapter` is the number of an adapter's parameters, which then alone learn."""
    base, trained = recipe.parameters, recipe.parameters if adapter is None else adapter
    half = recipe.precision != "float32"
    inflated = recipe.precision == "inflated_float16"
    held = 4 if not half else 2 if adapter is not None else 6  # bytes per parameter of the networks
    weights = base * held + 4 * (adapter or 0)
    frozen = sum(network.parameters for network in recipe.frozen.values())
    samples = recipe.batch.per_gpu // recipe.batch.splits
    parts = [activations_of(network.config, recipe) for network in recipe.trains.values()]
    return Footprint(
        weights=weights,
        gradients=trained * (6 if inflated and adapter is None else 4),
        optimizer=8 * trained,
        average=4 * trained,
        frozen=4 * frozen,
        activations=Activations(
            kept=samples * sum(part.kept for part in parts),
            recomputed=samples * sum(part.recomputed for part in parts),
        ),
        trained=trained,
    )


def adapter_parameters(network: NetworkFacts, rank: int) -> int:
    """Of an adapter of this rank on the matrices of every block of a flow: r (in + out) each."""
    a = network.config["args"]
    c, context, hidden = a["model_channels"], a["cond_channels"], int(a["model_channels"] * a["mlp_ratio"])
    sizes = [(c, 3 * c), (c, c), (c, c), (context, 2 * c), (c, c), (c, hidden), (hidden, c)]
    return int(a["num_blocks"] * sum(rank * (i + o) for i, o in sizes))


def activations_of(config: Config, recipe: Recipe) -> Activations:
    """Bytes of one sample at the limit of the recipe."""
    a = config["args"]
    size = 4 if recipe.precision == "float32" else 2
    if isinstance(a.get("model_channels"), int):
        return transformer_activations(a, tokens_of(config, recipe), recipe, size)
    if "model_channels" in a:
        return sparse_activations(a, recipe, size)
    return dense_activations(a, recipe, size)


def tokens_of(config: Config, recipe: Recipe) -> int:
    """Tokens of one sample at most."""
    a = config["args"]
    if config["name"] == "SparseStructureFlowModel":
        return int(a["resolution"] // a.get("patch_size", 1)) ** 3
    limit = recipe.data.max_tokens or recipe.data.max_voxels or a["resolution"] ** 2 * 5
    halved = LATENT_FLOW_GRID if a.get("patch_size", 1) > 1 else 1
    return round(limit / CHILDREN) if halved > 1 else limit


def transformer_activations(a: Config, tokens: int, recipe: Recipe, size: int) -> Activations:
    c, blocks = a["model_channels"], a["num_blocks"]
    hidden = int(c * a.get("mlp_ratio", 4))
    one = tokens * (32 * c + 13 * size * c + 2 * size * hidden)
    context = recipe.condition.tokens if recipe.condition is not None and "cond_channels" in a else 0
    one += 2 * size * c * context
    voxels = tokens * CHILDREN if a.get("io_block_channels") else 0
    rim = sum(
        a.get("num_io_res_blocks", 2) * 2 * voxels * (6 * size + 8) * w
        for w in a.get("io_block_channels") or ()
    )
    rim += represented(a, tokens, size)
    return Activations(kept=round(blocks * one + rim), recomputed=round(blocks * 4 * c * tokens + one + rim))


def represented(a: Config, tokens: int, size: int) -> float:
    """Of what a decoder of v1 makes: cubes, Gaussians or fields; 0 for other networks."""
    config = a.get("representation_config")
    if config is None:
        return 0.0
    if "num_gaussians" in config:
        return float(tokens * 14 * config["num_gaussians"] * REPRESENTED)
    if "rank" in config:
        return float(tokens * (3 * config["rank"] * config["dim"] + 4 * config["rank"]) * REPRESENTED)
    levels = ((8 * tokens, a["model_channels"] // 4), (64 * tokens, a["model_channels"] // 8))
    cubes = sum(voxels * ((11 * size + 4) * width + TABLES) for voxels, width in levels)
    return float(cubes + 64 * tokens * CUBE * REPRESENTED)


def sparse_activations(a: Config, recipe: Recipe, size: int) -> Activations:
    """A sparse U-Net; encoders list their levels from fine to coarse, decoders the other way round."""
    finest_first = sorted(zip(a["model_channels"], a["num_blocks"], strict=True), key=lambda level: level[0])
    voxels = float(recipe.data.max_voxels or 1_000_000)
    kept = recomputed = largest = 0.0
    for channels, blocks in finest_first:
        block = voxels * (11 * size + 4) * channels
        kept += (blocks + 1) * block + voxels * TABLES
        recomputed += (blocks + 1) * voxels * size * channels + voxels * TABLES
        largest = max(largest, block)
        voxels /= CHILDREN
    return Activations(kept=round(kept), recomputed=round(recomputed + largest))


def dense_activations(a: Config, recipe: Recipe, size: int) -> Activations:
    cells = float(recipe.data.resolution**3)
    kept = recomputed = largest = 0.0
    for level, channels in enumerate(sorted(a["channels"])):
        blocks = a["num_res_blocks"] + (a["num_res_blocks_middle"] if level == len(a["channels"]) - 1 else 0)
        block = cells * (6 * size + (0 if size == 4 else 8)) * channels
        kept += (blocks + 1) * block
        recomputed += (blocks + 1) * cells * size * channels
        largest = max(largest, block)
        cells /= 8
    return Activations(kept=round(kept), recomputed=round(recomputed + largest))
