"""Is a mesh fit to be handed out? Measured facts, and a sentence for each thing that is wrong.

Thresholds after section "Quality metrics" of the project's geometry notes: topology, triangle shape,
texture coordinates. Knows nothing about how the mesh was made. Letters: V vertices, F faces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trellis_core.geometry.cleanup import DEGENERATE_AREA, number_places
from trellis_core.geometry.connectivity import (
    connected_components,
    edges_of,
    number_labels,
    sum_by,
)
from trellis_core.geometry.examine import Watch, examine, join_corners, topology_metrics
from trellis_core.geometry.triangles import aspect_ratios, face_areas
from trellis_core.geometry.types import Mesh, QualityReport
from trellis_core.kernels.table import Kernels

UV_ROUNDING = 4 * 2.0**-24  # of a distance between float32 texture coordinates: thinner faces have no side


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """What still passes. Shares are of all faces, edges or covered texels."""

    min_faces: int = 20
    min_extent: float = 0.02  # longest side of the bounding box, world units
    max_coordinate: float = 0.75  # the object lives in [-0.5, 0.5]
    max_components: int = 200
    min_largest_share: float = 0.3  # of the area, in the largest component
    max_boundary_share: float = 0.1
    max_non_manifold_share: float = 0.01
    max_mixed_share: float = 1e-3  # edges between faces wound against each other; of closed surfaces none
    max_double_shells: int = 0  # hidden pieces just under the surface
    max_sliver_share: float = 0.2  # aspect ratio over 10; flat parts of coarse meshes have some
    max_extreme_sliver_share: float = 0.002  # over 100
    max_flips: int = 0
    max_overlap: float = 1e-3
    max_stretch: float = 1.2  # L2, after Sander et al.
    min_coverage: float = 0.1
    max_unsupported: float = 0.02  # texels without material


def check_mesh(
    mesh: Mesh,
    *,
    kernels: Kernels | None = None,  # needed to measure what is seen, and coverage of the texture
    texture_size: int = 1024,
    unsupported_texels: float = 0.0,
    limits: QualityLimits = QualityLimits(),
    on_view: Watch = lambda done, of: None,
) -> QualityReport:
    """Measure a mesh. Positions that coincide count as one vertex, so texture seams are no borders."""
    metrics: dict[str, float | int | bool] = {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}
    finite = bool(torch.isfinite(mesh.vertices).all())
    metrics["finite"] = finite
    if len(mesh.faces) == 0 or not finite:
        problem = "The mesh has no faces." if finite else "Some coordinates are not numbers."
        return QualityReport(metrics, (problem,), False)
    if int(mesh.faces.min()) < 0 or int(mesh.faces.max()) >= len(mesh.vertices):
        return QualityReport(metrics, ("Some faces name vertices that do not exist.",), False)

    metrics.update(shape_metrics(mesh))
    joined = join_corners(mesh)
    metrics.update(topology_metrics(mesh, joined))
    metrics.update(examine(mesh, kernels, joined=joined, on_view=on_view))
    metrics["unsupported_texels"] = unsupported_texels
    if mesh.uvs is not None:
        metrics.update(uv_metrics(mesh, kernels, texture_size))
    if mesh.normals is not None:
        length = mesh.normals.norm(dim=1)
        metrics["bad_normals"] = int((~((length - 1).abs() < 1e-3)).sum())

    problems = find_problems(metrics, limits)
    return QualityReport(metrics, tuple(problems), not problems)


def find_problems(metrics: Mapping[str, float | int | bool], limits: QualityLimits) -> list[str]:
    """A sentence for each thing that is wrong."""
    problems: list[str] = []

    def complain(name: str, wrong: bool, sentence: str) -> None:
        if name in metrics and wrong:
            problems.append(sentence.format(value=metrics[name]))

    def value(name: str) -> float:
        return float(metrics.get(name, 0))

    complain("faces", value("faces") < limits.min_faces, "The mesh has only {value} faces.")
    complain("extent", value("extent") < limits.min_extent, "The object is only {value:.3f} units across.")
    complain(
        "largest_coordinate",
        value("largest_coordinate") > limits.max_coordinate,
        "The geometry has burst out of its cube, up to {value:.2f}.",
    )
    complain("components", value("components") > limits.max_components, "The mesh is in {value} pieces.")
    complain(
        "largest_component_share",
        value("largest_component_share") < limits.min_largest_share,
        "The largest piece has only {value:.0%} of the surface.",
    )
    complain(
        "boundary_share",
        value("boundary_share") > limits.max_boundary_share,
        "{value:.1%} of the edges are open borders.",
    )
    complain(
        "non_manifold_share",
        value("non_manifold_share") > limits.max_non_manifold_share,
        "{value:.1%} of the edges have more than two faces.",
    )
    complain(
        "mixed_edges",
        value("mixed_edges") > (0 if metrics["closed"] else limits.max_mixed_share * value("edges")),
        "{value:,} edges lie between faces that are wound against each other.",
    )
    complain("volume", value("volume") < 0 and not metrics["mixed_edges"], "The mesh is inside out.")
    complain(
        "double_shells",
        value("double_shells") > limits.max_double_shells,
        "Second shells just under the surface: {value:,}.",
    )
    complain("degenerate_faces", value("degenerate_faces") > 0, "{value} faces have no area.")
    complain("duplicate_faces", value("duplicate_faces") > 0, "{value} faces are repeated.")
    complain(
        "extreme_sliver_share",
        value("extreme_sliver_share") > limits.max_extreme_sliver_share,
        "{value:.1%} of the faces are needles.",
    )
    complain(
        "sliver_share",
        value("sliver_share") > limits.max_sliver_share,
        "{value:.1%} of the faces are slivers.",
    )
    complain("uv_outside", value("uv_outside") > 0, "{value} texture coordinates are outside [0, 1].")
    complain("uv_flips", value("uv_flips") > limits.max_flips, "{value} faces are mirrored in the texture.")
    complain(
        "uv_overlap", value("uv_overlap") > limits.max_overlap, "{value:.2%} of the texels are used twice."
    )
    complain(
        "uv_stretch",
        value("uv_stretch") > limits.max_stretch,
        "The texture is stretched by {value:.2f} on average.",
    )
    complain(
        "uv_coverage", value("uv_coverage") < limits.min_coverage, "Only {value:.0%} of the texture is used."
    )
    complain(
        "unsupported_texels",
        value("unsupported_texels") > limits.max_unsupported,
        "{value:.1%} of the surface has no material.",
    )
    complain("bad_normals", value("bad_normals") > 0, "{value} vertex normals are not of unit length.")
    return problems


def shape_metrics(mesh: Mesh) -> dict[str, float | int]:
    area = face_areas(mesh.vertices.double(), mesh.faces)
    aspect = aspect_ratios(mesh.vertices, mesh.faces)
    corners = mesh.vertices[mesh.faces.long()].reshape(-1, 3)
    return {
        "area": float(area.sum()),
        "extent": float((corners.amax(0) - corners.amin(0)).max()),
        "largest_coordinate": float(corners.abs().max()),
        "degenerate_faces": int((area < DEGENERATE_AREA).sum()),
        "slivers": int((aspect > 10).sum()),
        "sliver_share": float((aspect > 10).double().mean()),
        "extreme_slivers": int((aspect > 100).sum()),
        "extreme_sliver_share": float((aspect > 100).double().mean()),
    }


def uv_metrics(mesh: Mesh, kernels: Kernels | None, size: int) -> dict[str, float | int]:
    """Range, flips, stretch, coverage and overlap of texture coordinates."""
    uvs = mesh.uvs
    assert uvs is not None
    a, b, c = uvs.double()[mesh.faces.long()].unbind(1)
    doubled = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    welded = number_places(uvs)
    corners = welded[mesh.faces.long()]
    chart, charts = number_labels(connected_components(edges_of(corners).vertices, int(welded.max()) + 1))
    chart = chart[corners[:, 0]]
    turned = sum_by(doubled, chart, charts)
    longest = torch.stack([b - a, c - b, a - c]).norm(dim=2).amax(0)
    flips = doubled * turned[chart].sign() < -UV_ROUNDING * longest
    area = face_areas(mesh.vertices.double(), mesh.faces)
    used = (doubled.abs() > 0) & (area > 0)
    density = 0.5 * torch.log2(0.5 * doubled.abs()[used] / area[used])
    weight = area[used] / area[used].sum().clamp_min(1e-30)
    mean = (weight * density).sum()
    found: dict[str, float | int] = {
        "uv_outside": int((~((uvs >= 0) & (uvs <= 1)).all(1)).sum()),
        "uv_flips": int(flips.sum()),
        "uv_density_deviation": float((weight * (density - mean).square()).sum().sqrt()),
        **stretch_metrics(mesh),
        "uv_charts": charts,
    }
    if kernels is not None:
        found.update(coverage_metrics(mesh, kernels, size))
    return found


def stretch_metrics(mesh: Mesh) -> dict[str, float]:
    """L2 stretch of the texture over the surface (Sander et al., 2001), and that of the worst 1% of the area.

    1 is a texture that is laid on without distortion. A face without area in the texture is passed over.
    """
    assert mesh.uvs is not None
    faces = mesh.faces.long()
    a, b, c = mesh.uvs.double()[faces].unbind(1)
    p, q, r = mesh.vertices.double()[faces].unbind(1)
    ab, ac = b - a, c - a
    doubled = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    inverse = torch.where(doubled == 0, 0.0, 1 / doubled)[:, None]
    along_u = (ac[:, 1:] * (q - p) - ab[:, 1:] * (r - p)) * inverse
    along_v = (ab[:, :1] * (r - p) - ac[:, :1] * (q - p)) * inverse
    square = 0.5 * (along_u.square().sum(1) + along_v.square().sum(1))
    area = 0.5 * torch.linalg.cross(q - p, r - p).norm(dim=1)
    used = doubled != 0
    square, area, flat_area = square[used], area[used], 0.5 * doubled[used].abs()
    scale = flat_area.sum() / area.sum().clamp_min(1e-30)
    square, order = torch.sort(square * scale)
    share = area[order].cpu().cumsum(0) / float(area.sum().clamp_min(1e-30))
    worst = int(torch.searchsorted(share, 0.99)) if len(share) else 0
    return {
        "uv_stretch": float(((square * area[order]).sum() / area.sum().clamp_min(1e-30)).sqrt()),
        "uv_stretch_p99": float(square[min(worst, len(square) - 1)].sqrt()) if len(square) else 1.0,
    }


def coverage_metrics(mesh: Mesh, kernels: Kernels, size: int) -> dict[str, float]:
    """Share of texel centres covered, and share of those covered by two faces away from their borders."""
    assert mesh.uvs is not None
    rasterize: Any = kernels["rasterize"]
    order = torch.arange(len(mesh.faces), device=mesh.faces.device)
    corners = mesh.uvs[mesh.faces.long()].reshape(-1, 2) * size
    faces = torch.arange(3 * len(mesh.faces), device=order.device, dtype=torch.int32).reshape(-1, 3)

    def draw(depth: Tensor) -> tuple[Tensor, Tensor]:
        pixel = torch.cat([corners, depth.float().repeat_interleave(3)[:, None]], dim=1)
        face, weight = rasterize(pixel, faces, size, size)
        return face, weight

    (first, weight), (last, last_weight) = draw(order), draw(-order)
    inside = torch.minimum(weight.amin(-1), last_weight.amin(-1)) > 1e-3
    covered = int((first >= 0).sum())
    twice = int(((first != last) & inside).sum())
    return {"uv_coverage": covered / size**2, "uv_overlap": twice / max(covered, 1)}
