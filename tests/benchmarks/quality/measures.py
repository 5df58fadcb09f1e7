"""Distances between surfaces and names of colors.

F-score and Chamfer distance as in Tatarchenko et al., "What Do Single-view 3D Reconstruction Networks Learn?"
(2019): points are spread evenly by area over both surfaces and matched with their nearest neighbors.
Letters: N points, V vertices, F faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 8000
LIMITS = (0.05, 0.02)  # of the unit cube


@dataclass(frozen=True, slots=True)
class Surface:
    """Points spread over a colored surface."""

    points: Tensor  # float32 [N, 3]
    colors: Tensor  # float32 [N, 3]  base color, sRGB-coded, [0, 1]


@dataclass(frozen=True, slots=True)
class Spots:
    """Places on triangles."""

    face: Tensor  # int64 [N]
    barycentric: Tensor  # float32 [N, 3]

    def mix(self, values: Tensor, faces: Tensor) -> Tensor:  # [V, C], int [F, 3] -> [N, C]
        """Interpolate values at vertices."""
        return (values[faces[self.face].long()] * self.barycentric[:, :, None]).sum(dim=1)


def spread(vertices: Tensor, faces: Tensor, count: int = POINTS) -> Spots:
    """`count` places, evenly by area: the same mesh always gives the same places."""
    if len(faces) == 0:
        raise ValueError("a mesh without faces has no surface")
    a, b, c = vertices.double()[faces.long()].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1).cumsum(0)
    at = (torch.arange(count, device=vertices.device, dtype=torch.float64) + 0.5) / count * area[-1]
    face = torch.searchsorted(area, at).clamp(max=len(faces) - 1)
    draws = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)).to(vertices.device)
    root = draws[:, :1].sqrt()
    return Spots(face, torch.cat([1 - root, root * (1 - draws[:, 1:]), root * draws[:, 1:]], dim=1))


def vertex_surface(vertices: Tensor, faces: Tensor, colors: Tensor, count: int = POINTS) -> Surface:
    """The surface of a mesh whose vertices are colored."""
    spots = spread(vertices, faces, count)
    return Surface(spots.mix(vertices.float(), faces), spots.mix(colors.float(), faces).clamp(0, 1))


def compare(found: Surface, truth: Surface) -> dict[str, float]:
    """F-scores, Chamfer distance (mean of both directions) and color error (mean L1 of nearest points, both
    directions)."""
    there, nearest = nearest_points(found.points, truth.points)
    back, nearest_back = nearest_points(truth.points, found.points)
    difference = (found.colors - truth.colors[nearest]).abs().mean()
    difference_back = (truth.colors - found.colors[nearest_back]).abs().mean()
    scores = {f"F@{limit:.2f}": f_score(there, back, limit) for limit in LIMITS}
    return {
        **scores,
        "Chamfer": float(there.mean() + back.mean()) / 2,
        "color": float(difference + difference_back) / 2,
    }


def f_score(there: Tensor, back: Tensor, limit: float) -> float:
    """Harmonic mean of the shares of points that lie within `limit` of the other surface."""
    precision, recall = float((there < limit).float().mean()), float((back < limit).float().mean())
    return 2 * precision * recall / max(precision + recall, 1e-9)


def nearest_points(
    queries: Tensor,  # float32 [N, 3]
    points: Tensor,  # float32 [M, 3]
    chunk: int = 2000,
) -> tuple[Tensor, Tensor]:  # float32 [N], int64 [N]
    """Distance to the nearest point, and which it is."""
    distances, rows = [], []
    for part in queries.split(chunk):
        # differences instead of the dot product form: short distances matter here
        distance, row = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        distances.append(distance)
        rows.append(row)
    return torch.cat(distances), torch.cat(rows)


def overlap(found: Tensor, truth: Tensor) -> float:
    """Intersection over union of two lists of cells, int [N, 3]."""
    a, b = ({tuple(c) for c in cells.tolist()} for cells in (found, truth))
    return len(a & b) / max(len(a | b), 1)


def color_name(color: Tensor | Sequence[float], palette: Mapping[str, Sequence[float]]) -> str:
    """The palette's nearest color by CIE76 (Euclidean distance in CIELAB)."""
    names = list(palette)
    known = lab(torch.tensor([palette[n] for n in names], dtype=torch.float32))
    asked = lab(torch.as_tensor(color, dtype=torch.float32).cpu().clamp(0, 1)[None])
    return names[int((known - asked).norm(dim=1).argmin())]


def lab(srgb: Tensor) -> Tensor:  # float32 [N, 3], sRGB-coded -> CIELAB under D65
    """IEC 61966-2-1 to XYZ, then CIE 1976 L*a*b*."""
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / torch.tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-12) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
