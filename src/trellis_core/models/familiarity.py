"""How much a picture looks like those a model was trained on, from its encoder's tokens.

The distance of a picture's mean token from the training pictures' mean, in the directions in which those
vary, each in units of its own spread, together with what leaves these directions: the Mahalanobis distance of
Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), with probabilistic
principal components (Tipping & Bishop, 1999) as covariance. It tells patterns, pages and scenes from objects;
an object of an unknown kind that looks like a known one stays unnoticed.

Letters: n pictures, M tokens, C channels, K directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DIGITS = 3  # that count, of the numbers in a model's `pipeline.json`


@dataclass(frozen=True, slots=True, eq=False)
class FamiliarityFacts:
    """What a model knows about the pictures it was trained on."""

    mean: Tensor  # float32 [C]
    directions: Tensor  # float32 [K, C]  scaled: a familiar picture lies at about 1 along each
    rest: float  # typical length outside of these directions
    limit: float  # distance that all but a few familiar pictures stay below

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for `pipeline.json`."""
        return {
            "mean": rounded(self.mean.tolist()),
            "directions": [rounded(row) for row in self.directions.tolist()],
            "rest": rounded([self.rest])[0],
            "limit": rounded([self.limit])[0],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> FamiliarityFacts:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError when it is damaged."""
        facts = cls(
            torch.tensor(entry["mean"], dtype=torch.float32),
            torch.tensor(entry["directions"], dtype=torch.float32),
            float(entry["rest"]),
            float(entry["limit"]),
        )
        if facts.mean.ndim != 1 or facts.directions.shape[1:] != facts.mean.shape:
            shapes = tuple(facts.mean.shape), tuple(facts.directions.shape)
            raise ValueError(f"familiarity: mean and directions of shapes {shapes} do not go together")
        if not (facts.rest > 0 and facts.limit > 0):
            raise ValueError(f"familiarity: rest {facts.rest:g} and limit {facts.limit:g} must be above zero")
        return facts


def rounded(numbers: Iterable[float]) -> list[float]:
    return [float(f"{x:.{DIGITS}g}") for x in numbers]


def familiarity(
    tokens: Tensor,  # float32 [1, M, C] or [M, C]  of one picture
    facts: FamiliarityFacts,
) -> float:
    """At least 1 for all but one or two in a hundred pictures of the training kind, below 1 for others."""
    pooled = mean_token(tokens if tokens.ndim == 3 else tokens[None])
    if len(pooled) != 1:
        raise ValueError(f"familiarity is a fact about one picture, got {len(pooled)}")
    return facts.limit / max(float(_distance(pooled, facts)), 1e-6)


def mean_token(tokens: Tensor) -> Tensor:  # [n, M, C] -> float32 [n, C]
    """What familiarity looks at."""
    return tokens.float().mean(dim=1)


def fit_familiarity(
    pooled: Tensor,  # float32 [n, C]  mean tokens of training pictures, n > K
    held_out: Tensor,  # float32 [m, C]  of pictures that were not trained on
    count: int = 64,  # K at most; fewer see less: a cloud, a scribble pass for objects
    share: float = 0.99,  # of the held-out pictures counts as familiar
) -> FamiliarityFacts:
    """Learn what is usual from training pictures, and where the usual ends from held-out ones."""
    if len(pooled) < 2 or len(held_out) < 1:
        raise ValueError(f"too few pictures: {len(pooled)} to learn from, {len(held_out)} held out")
    mean = pooled.double().mean(dim=0)
    _, length, axes = torch.linalg.svd(pooled.double() - mean, full_matrices=False)
    variance = length.square() / (len(pooled) - 1)
    if not variance[0] > 0:
        raise ValueError("the pictures are all alike: nothing can be learned from them")
    count = min(count, int((variance > 1e-6 * variance[0]).sum()))
    # one channel that never varied must not make everything strange
    rest = variance[count:].sum().sqrt().clamp_min(1e-3 * variance.sum().sqrt())
    directions = axes[:count] / variance[:count, None].sqrt()
    facts = FamiliarityFacts(mean.float().cpu(), directions.float().cpu(), float(rest), 1.0)
    limit = torch.quantile(_distance(held_out, facts).double(), share)
    return FamiliarityFacts(facts.mean, facts.directions, facts.rest, float(limit))


def _distance(pooled: Tensor, facts: FamiliarityFacts) -> Tensor:  # [n, C] -> float32 [n]
    offset = pooled.float().cpu() - facts.mean
    within = offset @ facts.directions.T
    norms = facts.directions.norm(dim=1)
    outside = offset - (within / norms) @ (facts.directions / norms[:, None])
    # the rest counts as much as a quarter of the directions: it is where strange pictures show most
    weight = max(len(facts.directions) / 4, 1)
    total = within.square().sum(dim=1) + weight * (outside.norm(dim=1) / facts.rest).square()
    return (total / (len(facts.directions) + weight)).sqrt()
