"""Cutting a surface into pieces that lie flat: faces of one chart look into one direction.

Labels every face by the best of six directions, smooths the labels as a Potts model, and cuts pieces that
would pack badly. Runs where the mesh is. Letters: V, F, K charts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trellis_core.geometry.connectivity import connected_components, number_labels, sum_by
from trellis_core.geometry.flatten import FlatCharts, Surface, chart_axes, flatten_charts, part_of
from trellis_core.geometry.triangles import unit

NORMAL_ROUNDS = 4
LABEL_ROUNDS = 12
LABEL_LIMIT = math.cos(math.radians(80))  # a face never takes a direction further away than this
MERGE_ROUNDS = 10
MERGE_LIMIT = math.cos(math.radians(80))
FLAT_LIMIT = math.cos(math.radians(85))  # steeper faces would be squeezed or flipped
STEEP_ROUNDS = 4
TINY_AREA = 2e-5  # of the surface
TINY_FACES = 8  # or this many average faces
FOLD_ROUNDS = 3
FOLDED = 1.15  # L2 stretch from which a chart is taken apart
CUT_ROUNDS = 5
CUT_FILL = 0.55  # charts that fill less of their box are cut in two
CUT_AREA = 4e-4  # of the surface; smaller ones are left as they are
SLABS = 32  # parts of a box between which its chart may be cut, along each side
OFF_CENTER = 0.02  # of the box: what a cut at its end costs more than one through its middle


def make_charts(surface: Surface, rim: float) -> Tensor:
    """Chart of each face, int64 [F], numbered from 0. No face is steeper than 85 degrees in its chart."""
    labels = smooth_labels(surface, smooth_normals(surface))
    chart = connected_charts(surface, labels)
    chart = cut_folded(surface, merge_tiny(surface, chart))
    chart = cut_sprawling(surface, chart, rim)
    return split_steep(surface, chart)


def smooth_normals(surface: Surface) -> Tensor:
    """Mean normal of each face and its neighbours, over and over, float32 [F, 3]."""
    near = surface.neighbor.clamp_min(0)
    weight = surface.areas[near] * (surface.neighbor >= 0)
    normals = surface.normals
    for _ in range(NORMAL_ROUNDS):
        total = surface.areas[:, None] * normals
        for side in range(3):
            total = total.addcmul_(weight[:, side, None], normals[near[:, side]])
        normals = unit(total)
    return normals


def smooth_labels(surface: Surface, guide: Tensor) -> Tensor:
    """One of six directions for each face, int64 [F]: close to its normal, and that of most of its border.

    Each round changes a random half of the faces, so that two neighbours do not swap for ever. Only faces
    that have a neighbour of another label, or none, can change.
    """
    fit = along_directions(guide)
    straight = along_directions(surface.normals)
    allowed = (straight > LABEL_LIMIT) | (straight == straight.amax(1, keepdim=True))
    fit = torch.where(allowed, fit, -torch.inf)
    labels = fit.argmax(1)
    near = surface.neighbor.clamp_min(0)
    share = surface.sides / surface.sides.sum(1, keepdim=True) * (surface.neighbor >= 0)
    open_border = (surface.neighbor < 0).any(1)
    kinds = torch.arange(6, device=labels.device)
    generator = torch.Generator().manual_seed(0)
    for _ in range(LABEL_ROUNDS):
        chosen = torch.rand(len(labels), generator=generator, device="cpu") < 0.5
        unlike = (labels[near] != labels[:, None]).any(1) | open_border
        face = torch.nonzero(unlike & chosen.to(labels.device)).squeeze(1)
        score = fit[face]
        for side in range(3):
            score += (labels[near[face, side]][:, None] == kinds) * share[face, side, None]
        labels[face] = score.argmax(1)
    return labels


def along_directions(normals: Tensor) -> Tensor:
    """Cosines to +x, -x, +y, -y, +z, -z; [F, 6]."""
    return torch.stack([normals, -normals], dim=2).reshape(-1, 6)


def connected_charts(surface: Surface, labels: Tensor) -> Tensor:
    """Number the connected pieces of equal label, int64 [F]."""
    same = labels[surface.neighbor.clamp_min(0)] == labels[:, None]
    own = torch.arange(len(labels), device=labels.device)
    face, side = torch.nonzero(same & (surface.neighbor > own[:, None]), as_tuple=True)
    pairs = torch.stack([face, surface.neighbor[face, side]], dim=1)
    return number_labels(connected_components(pairs, len(labels)))[0]


def merge_tiny(surface: Surface, chart: Tensor) -> Tensor:
    """Join charts too small to be worth a border to the neighbour they share most border with."""
    limit = max(TINY_AREA, TINY_FACES / surface.count) * surface.area
    for _ in range(MERGE_ROUNDS):
        axis, area = chart_axes(surface, chart)
        count = len(area)
        number = torch.arange(count, device=chart.device)
        face, side = torch.nonzero((surface.neighbor >= 0) & (area[chart] < limit)[:, None], as_tuple=True)
        here, there = chart[face], chart[surface.neighbor[face, side]]
        border = here != there
        key, inverse = torch.unique(here[border] * count + there[border], return_inverse=True)
        if len(key) == 0:
            break
        length = sum_by(surface.sides[face, side][border], inverse, len(key))
        order = torch.argsort(length, stable=True)
        order = order[torch.argsort(key[order] // count, stable=True)]  # by chart, longest border last
        here, there = key[order] // count, key[order] % count
        last = torch.ones_like(here, dtype=torch.bool)
        last[:-1] = here[1:] != here[:-1]
        target, tiny = number.clone(), torch.zeros_like(number, dtype=torch.bool)
        target[here[last]], tiny[here[last]] = there[last], True
        joint = unit(axis * area[:, None] + (axis * area[:, None])[target])
        fits = (surface.normals * joint[chart]).sum(1) > MERGE_LIMIT
        tiny[chart[~fits]] = False
        # Only into a chart that stays: larger first, then the lower number.
        bigger = (area[target] > area) | ((area[target] == area) & (target < number))
        moves = tiny & bigger
        moves &= ~moves[target]
        if not bool(moves.any()):
            break
        chart = number_labels(torch.where(moves, target, number)[chart])[0]
    return chart


def split_steep(surface: Surface, chart: Tensor) -> Tensor:
    """Cut off faces that are too steep in their chart; the last resort is a chart of one face."""
    for step in range(STEEP_ROUNDS):
        axis, _ = chart_axes(surface, chart)
        steep = (surface.normals * axis[chart]).sum(1) < FLAT_LIMIT
        if not bool(steep.any()):
            break
        if step == STEEP_ROUNDS - 1:
            alone = len(chart) + torch.arange(len(chart), device=chart.device)
            chart = number_labels(torch.where(steep, alone, chart))[0]
        else:
            chart = connected_charts(surface, 2 * chart + steep)
    return chart


def cut_folded(surface: Surface, chart: Tensor, rounds: int = FOLD_ROUNDS) -> Tensor:
    """Take charts apart that projecting them would stretch by too much: two sides of a box, a whole dome.

    They come apart where their normals turn from one side of the mean to the other.
    """
    axis, area = chart_axes(surface, chart)
    cosine = (surface.normals * axis[chart]).sum(1)
    stretch = (1 + 1 / cosine.clamp_min(FLAT_LIMIT).square()) / 2  # squared, of one face
    folded = sum_by(surface.areas * stretch, chart, len(area)) > FOLDED**2 * area
    face = torch.nonzero(folded[chart]).squeeze(1)
    if rounds == 0 or len(face) == 0:
        return chart
    owner, numbers = number_labels(chart[face])
    aside = (surface.normals[face] - cosine[face, None] * axis[chart[face]]).double()
    spread = aside[:, :, None] * aside[:, None] * surface.areas[face, None, None]
    across = torch.linalg.eigh(sum_by(spread, owner, numbers)).eigenvectors[:, :, 2]
    part = part_of(surface, face)
    pieces = connected_charts(part, 2 * owner + ((aside * across[owner]).sum(1) > 0))
    pieces = cut_folded(part, merge_tiny(part, pieces), rounds - 1)
    return number_labels(chart.index_copy(0, face, len(area) + pieces))[0]


def cut_sprawling(surface: Surface, chart: Tensor, rim: float, rounds: int = CUT_ROUNDS) -> Tensor:
    """Cut charts that fill little of their box (combs, spirals) in two, over and over.

    `rim` is how wide a strip along a border stays empty.
    """
    flat = flatten_charts(surface, chart)
    area = sum_by(surface.areas, chart, len(flat.size))
    sprawling = (area < CUT_FILL * flat.size.prod(1)) & (area > CUT_AREA * surface.area)
    face = torch.nonzero(sprawling[chart]).squeeze(1)
    if rounds == 0 or len(face) == 0:
        return chart
    part = part_of(surface, face)
    labels = 2 * chart[face] + beyond_cut(surface, chart, flat, face, rim)
    pieces = merge_tiny(part, connected_charts(part, labels))
    pieces = cut_sprawling(part, pieces, rim, rounds - 1)
    return number_labels(chart.index_copy(0, face, len(area) + pieces))[0]


def beyond_cut(surface: Surface, chart: Tensor, flat: FlatCharts, face: Tensor, rim: float) -> Tensor:
    """Which of some faces lie beyond the best straight cut through their chart, bool."""
    owner, count, device = chart[face], len(flat.size), chart.device
    corners = flat.points[flat.faces[face]]
    slab = (corners.mean(1) / flat.size[owner] * SLABS).long().clamp(0, SLABS - 1)
    slab_of = torch.zeros(len(chart), 2, dtype=torch.int64, device=device)
    slab_of[face] = slab
    step = torch.arange(1, SLABS, device=device)
    costs = []
    for axis in range(2):
        index = owner * SLABS + slab[:, axis]
        across = corners[:, :, 1 - axis]
        full = torch.full((count * SLABS,), torch.inf, device=device)
        low = full.scatter_reduce(0, index, across.amin(1), "amin").reshape(-1, SLABS)
        high = (-full).scatter_reduce(0, index, across.amax(1), "amax").reshape(-1, SLABS)
        boxes = (
            step * spans(low, high)[:, :-1] + (SLABS - step) * spans(low.flip(1), high.flip(1)).flip(1)[:, 1:]
        )
        boxes = boxes * flat.size[:, axis, None] / SLABS
        near = surface.neighbor[face]
        other = torch.where((near >= 0) & (chart[near] == owner[:, None]), slab_of[near, axis], -1)
        length = surface.sides[face]
        split = torch.nonzero(other > slab[:, axis, None])
        mine, theirs = slab[split[:, 0], axis], other[split[:, 0], split[:, 1]]
        long = length[split[:, 0], split[:, 1]]
        base = owner[split[:, 0]] * SLABS
        change = sum_by(torch.cat([long, -long]), torch.cat([base + mine, base + theirs]), count * SLABS)
        cut = change.reshape(-1, SLABS).cumsum(1)[:, :-1]
        costs.append(
            (boxes + rim * cut) / flat.size.prod(1, keepdim=True)
            + 2 * OFF_CENTER * (step / SLABS - 0.5).abs()
        )
    best = torch.cat(costs, 1).argmin(1)
    along, place = best // (SLABS - 1), best % (SLABS - 1)
    return slab.gather(1, along[owner, None]).squeeze(1) > place[owner]


def spans(low: Tensor, high: Tensor) -> Tensor:
    return (high.cummax(1).values - low.cummin(1).values).clamp_min(0)
