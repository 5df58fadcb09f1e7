"""How alike two surfaces are: distances, normals, colors, pictures.

Distances are from points of one surface to the other surface; the first mesh's longest side is 1. Chamfer
distance and F-score as in Tatarchenko et al., "What Do Single-view 3D Reconstruction Networks Learn?" (2019);
structural similarity as in Wang et al., "Image Quality Assessment: From Error Visibility to Structural
Similarity" (2004). The same two meshes always give the same numbers.
Letters: P points, F faces, S picture side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trellis_core.errors import InputError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.triangles import face_areas, face_normals
from trellis_core.geometry.types import Mesh
from trellis_core.render.mesh import MeshBuffers, interpolate, render_mesh
from trellis_core.render.sheet import GAP, INK, PAPER, picture_sheet
from trellis_core.render.subject import STUDIO, Look, before_backdrop, draw_subject
from trellis_core.render.surface import PaintedMesh, linear_to_srgb, sample_material
from trellis_core.render.views import around, cameras_around
from trellis_core.runtime import Runtime

THRESHOLDS = (0.005, 0.01, 0.02, 0.05)  # of F-scores
SAMPLES = 100_000
CHUNK = 1 << 16  # points at a time
FARTHEST = 1e6
BINS = 32  # of a color histogram, per channel
JOINT_BINS = 8  # of the histogram over all three channels, per channel
VIEWS = 4
HOTTEST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # distances a heat map may show as its last color
HEAT = ((33, 62, 125), (46, 148, 171), (120, 198, 121), (250, 214, 80), (222, 76, 54), (120, 8, 44))

Thing = PaintedMesh | Mesh


@dataclass(frozen=True, slots=True)
class Comparison:
    """Numbers by name, and for each surface (the first, the second) its color histogram."""

    metrics: Mapping[str, Any]
    histograms: tuple[Tensor, Tensor] | None  # float32 [3, BINS] each, sums 1; None without colors


@dataclass(frozen=True, slots=True)
class Spots:
    """Points spread evenly over the area of a surface."""

    points: Tensor  # float32 [P, 3]
    face: Tensor  # int64 [P]
    weights: Tensor  # float32 [P, 3]  barycentric


def mesh_of(thing: Thing) -> Mesh:
    return thing.mesh if isinstance(thing, PaintedMesh) else thing


def moved(thing: Thing, middle: Tensor, scale: float) -> Thing:
    """(p - middle) * scale."""
    mesh = mesh_of(thing)
    places = ((mesh.vertices.double() - middle) * scale).float()
    mesh = replace(mesh, vertices=places)
    return replace(thing, mesh=mesh) if isinstance(thing, PaintedMesh) else mesh


def bring_together(first: Thing, second: Thing, *, as_is: bool = False) -> tuple[Thing, Thing, float]:
    """Both around the origin, the first one's longest side 1; and how long that was.

    The second one is fitted likewise, or with `as_is` keeps its place and size relative to the first.
    """
    middle, longest = middle_of(first)
    other_middle, other_longest = (middle, longest) if as_is else middle_of(second)
    return moved(first, middle, 1 / longest), moved(second, other_middle, 1 / other_longest), longest


def middle_of(thing: Thing) -> tuple[Tensor, float]:  # float64 [3]
    mesh = mesh_of(thing)
    points = mesh.vertices[mesh.faces.long().unique()].double()
    low, high = points.amin(0), points.amax(0)
    longest = float((high - low).max())
    if longest <= 0:
        raise InputError("all its points lie in one place: it has no surface", hint="repair it first")
    return (low + high) / 2, longest


def compare(
    first: Thing,
    second: Thing,
    runtime: Runtime,
    *,
    samples: int = SAMPLES,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Comparison:
    """Compare two surfaces that lie in one frame (see `bring_together`).

    Precision is the share of the second surface near the first, recall that of the first near the second.
    """
    runtime.report("compare", 0, 2)
    one, other = spread(mesh_of(first), samples), spread(mesh_of(second), samples)
    there = nearest(one, mesh_of(second), runtime)
    runtime.report("compare", 1, 2)
    back = nearest(other, mesh_of(first), runtime)
    runtime.report("compare", 2, 2)
    both = torch.cat([there.distance, back.distance]).double()
    agreement = torch.cat([agreement_of(one, first, there, second), agreement_of(other, second, back, first)])
    metrics: dict[str, Any] = {
        "chamfer": float(there.distance.double().mean() + back.distance.double().mean()) / 2,
        "rms": float(both.square().mean().sqrt()),
        "p99": float(both.kthvalue(max(int(0.99 * len(both)), 1)).values),
        "hausdorff": float(both.max()),
        "f_scores": {f"{t:g}": f_score(there.distance, back.distance, t) for t in thresholds},
        "normal_consistency": float(agreement.abs().mean()),
        "opposed_normals": float((agreement < 0).double().mean()),
        "area_ratio": surface_area(second) / max(surface_area(first), 1e-30),
    }
    if not (isinstance(first, PaintedMesh) and isinstance(second, PaintedMesh)):
        return Comparison(metrics, None)
    here, there_color = material_at(first, one), material_at(second, there.spots(mesh_of(second)))
    home, back_color = material_at(second, other), material_at(first, back.spots(mesh_of(first)))
    metrics["color"] = color_metrics(torch.cat([here, back_color]), torch.cat([there_color, home]))
    histograms = (channel_histogram(here), channel_histogram(home))
    metrics["color"]["histogram_overlap"] = overlap(joint_histogram(here), joint_histogram(home))
    metrics["color"]["histogram_shift"] = float(
        (histograms[0].cumsum(1) - histograms[1].cumsum(1)).abs().sum(1).mean() / BINS
    )
    return Comparison(metrics, histograms)


# --- points --------------------------------------------------------------------------------------------


def spread(mesh: Mesh, count: int, seed: int = 0) -> Spots:
    """`count` random points, even over the area; the same mesh and seed always give the same points."""
    generator = torch.Generator().manual_seed(seed)
    area = face_areas(mesh.vertices.double(), mesh.faces).cumsum(0).cpu()
    if float(area[-1]) <= 0:
        raise InputError("none of its triangles has an area", hint="repair it first")
    pick = torch.rand(count, generator=generator, dtype=torch.float64) * area[-1]
    u, v = torch.rand(2, count, generator=generator)
    face = torch.searchsorted(area, pick).clamp_max(len(area) - 1).to(mesh.faces.device)
    root = u.sqrt()
    weights = torch.stack([1 - root, root * (1 - v), root * v], dim=1).to(mesh.vertices)
    return Spots(interpolate(mesh.vertices[mesh.faces[face].long()], weights), face, weights)


@dataclass(frozen=True, slots=True)
class Nearest:
    """Where points find the other surface."""

    distance: Tensor  # float32 [P]
    face: Tensor  # int64 [P]
    weights: Tensor  # float32 [P, 3]

    def spots(self, mesh: Mesh) -> Spots:
        return Spots(
            interpolate(mesh.vertices[mesh.faces[self.face].long()], self.weights), self.face, self.weights
        )


def nearest(spots: Spots, mesh: Mesh, runtime: Runtime) -> Nearest:
    return nearest_to(spots.points, mesh, runtime)


def nearest_to(points: Tensor, mesh: Mesh, runtime: Runtime) -> Nearest:  # float32 [P, 3]
    closest_point: Any = runtime.kernels["closest_point"]
    distance, face, weights = closest_point(points, mesh.vertices, mesh.faces, FARTHEST)
    return Nearest(distance, face.clamp_min(0).long(), weights)


def f_score(there: Tensor, back: Tensor, threshold: float) -> dict[str, float]:
    recall = float((there <= threshold).double().mean())
    precision = float((back <= threshold).double().mean())
    return {
        "f": 2 * precision * recall / max(precision + recall, 1e-30),
        "precision": precision,
        "recall": recall,
    }


def agreement_of(spots: Spots, thing: Thing, found: Nearest, other: Thing) -> Tensor:  # float64 [P]
    """Cosines between the normals of faces at a point and at what is nearest to it."""
    here = normals_of(mesh_of(thing), spots.face)
    there = normals_of(mesh_of(other), found.face)
    return (here * there).sum(1).double()


def normals_of(mesh: Mesh, face: Tensor) -> Tensor:  # float32 [P, 3]
    return face_normals(mesh.vertices, mesh.faces[face])


def surface_area(thing: Thing) -> float:
    mesh = mesh_of(thing)
    return float(face_areas(mesh.vertices.double(), mesh.faces).sum())


# --- colors --------------------------------------------------------------------------------------------


def material_at(painted: PaintedMesh, spots: Spots) -> Tensor:
    """Base color (sRGB-coded), metallic and roughness at points, float32 [P, 5]."""
    mesh = painted.mesh
    assert mesh.uvs is not None
    uv = interpolate(mesh.uvs[mesh.faces[spots.face].long()], spots.weights)
    owner = painted.owner.to(spots.face.device)[spots.face]
    values = torch.zeros(len(uv), 5, device=uv.device)
    for number in owner.unique().tolist():
        mine = torch.nonzero(owner == number).reshape(-1)
        surface = sample_material(painted.materials[number], uv[mine])
        values[mine] = torch.cat(
            [linear_to_srgb(surface.base_color), surface.metallic, surface.roughness], 1
        ).clamp(0, 1)
    return values


def color_metrics(a: Tensor, b: Tensor) -> dict[str, float]:
    """Differences of materials float32 [P, 5]; colors sRGB-coded in [0, 1], delta E after CIE 1976."""
    difference = (a - b).double()
    square = float(difference[:, :3].square().mean())
    return {
        "error": float(difference[:, :3].abs().mean()),
        "psnr": min(-10 * float(torch.tensor(max(square, 1e-10)).log10()), 100.0),
        "delta_e": float((lab(a[:, :3]) - lab(b[:, :3])).norm(dim=1).mean()),
        "metallic_error": float(difference[:, 3].abs().mean()),
        "roughness_error": float(difference[:, 4].abs().mean()),
    }


def lab(srgb: Tensor) -> Tensor:  # float32 [P, 3] -> [P, 3]
    """IEC 61966-2-1 to XYZ, then CIE 1976 L*a*b* under D65."""
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / linear.new_tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-12) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def channel_histogram(colors: Tensor) -> Tensor:  # float32 [P, 3 or more] -> [3, BINS]
    bins = (colors[:, :3] * BINS).long().clamp(0, BINS - 1)
    counts = [torch.bincount(channel, minlength=BINS) for channel in bins.unbind(1)]
    return torch.stack(counts).float().cpu() / max(len(colors), 1)


def joint_histogram(colors: Tensor) -> Tensor:  # float32 [JOINT_BINS ** 3]
    bins = (colors[:, :3] * JOINT_BINS).long().clamp(0, JOINT_BINS - 1)
    key = (bins[:, 0] * JOINT_BINS + bins[:, 1]) * JOINT_BINS + bins[:, 2]
    return torch.bincount(key, minlength=JOINT_BINS**3).float() / max(len(colors), 1)


def overlap(a: Tensor, b: Tensor) -> float:
    """1 for equal histograms, 0 for those that share no bin."""
    return float(torch.minimum(a, b).sum())


# --- pictures ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pictures:
    """Two surfaces from the same cameras."""

    rows: Mapping[str, Sequence[Tensor]]  # label -> uint8 [S, S, 3] each
    metrics: Mapping[str, float]


def compare_pictures(
    first: Thing,
    second: Thing,
    runtime: Runtime,
    *,
    names: tuple[str, str] = ("A", "B"),
    size: int = 320,
    views: int = VIEWS,
    hottest: float = 0.05,  # distance that the heat maps show as their last color
) -> Pictures:
    """Draw both from `views` sides, with heat maps of the distance to the other; lit by the same studio.

    Metrics: PSNR and structural similarity over the pixels that show either, agreement of the outlines, mean
    angle between normals in degrees.
    """
    cameras = common_cameras(first, second, views)
    things = (first, second)
    modes = {"color": "color"} if all(isinstance(x, PaintedMesh) for x in things) else {"shape": "clay"}
    modes |= {"wireframe": "wireframe"}
    rows: dict[str, list[Tensor]] = {}
    steps, done = len(cameras) * (2 * len(modes) + 2), 0
    drawn: dict[tuple[str, int], list[Tensor]] = {}
    for label, mode in modes.items():
        for number, thing in enumerate(things):
            for camera in cameras:
                runtime.report("draw", done, steps)
                picture = draw_subject(thing, camera, size, runtime, Look(mode=mode)).cpu()
                drawn.setdefault((mode, number), []).append(picture)
                done += 1
            rows[f"{names[number]}: {label}"] = [before_backdrop(p, STUDIO) for p in drawn[mode, number]]
    seen: list[list[MeshBuffers]] = []
    for number, thing in enumerate(things):
        mine, heat = [], []
        for camera in cameras:
            runtime.report("draw", done, steps)
            buffers = render_mesh(mesh_of(thing), camera, size, runtime)
            heat.append(heat_map(buffers, mesh_of(things[1 - number]), runtime, hottest))
            mine.append(buffers)
            done += 1
        seen.append(mine)
        rows[f"{names[number]}: distance to {names[1 - number]}, dark red is {hottest:g} and more"] = heat
    runtime.report("draw", steps, steps)
    shown = next(iter(modes.values()))
    metrics = picture_metrics(drawn[shown, 0], drawn[shown, 1], seen[0], seen[1])
    return Pictures(rows, metrics)


def common_cameras(first: Thing, second: Thing, views: int) -> list[Camera]:
    points = torch.cat([corners_of(mesh_of(first)), corners_of(mesh_of(second))])
    return cameras_around(points, around(views))


def corners_of(mesh: Mesh) -> Tensor:  # float32 [n, 3]
    return mesh.vertices[mesh.faces.long().unique()].cpu()


def hottest_of(distance: float) -> float:
    """The scale of heat maps on which `distance` (usually the 99th percentile) is still shown."""
    return next((scale for scale in HOTTEST if distance <= scale), HOTTEST[-1])


def heat_map(
    buffers: MeshBuffers, other: Mesh, runtime: Runtime, hottest: float
) -> Tensor:  # uint8 [S, S, 3]
    """Each pixel's distance to the other surface as a color; a little shading shows the shape."""
    distance = nearest_to(buffers.position[buffers.mask], other, runtime).distance
    color = heat_colors(distance / hottest) * (0.75 + 0.25 * buffers.normal[buffers.mask, 2:].cpu())
    picture = torch.full((*buffers.mask.shape, 3), 255, dtype=torch.uint8)
    picture[buffers.mask.cpu()] = color.round().clamp(0, 255).to(torch.uint8)
    return picture


def heat_colors(share: Tensor) -> Tensor:  # float32 [P] -> [P, 3] in [0, 255]
    table = torch.tensor(HEAT, dtype=torch.float32)
    at = share.cpu().clamp(0, 1) * (len(HEAT) - 1)
    low = at.long().clamp_max(len(HEAT) - 2)
    return torch.lerp(table[low], table[low + 1], (at - low)[:, None])


def picture_metrics(
    first: Sequence[Tensor],  # uint8 [S, S, 4]
    second: Sequence[Tensor],
    seen_first: Sequence[MeshBuffers],
    seen_second: Sequence[MeshBuffers],
) -> dict[str, float]:
    a, b = (torch.stack(list(pictures)).float() / 255 for pictures in (first, second))
    either = (a[..., 3] > 0) | (b[..., 3] > 0)
    a, b = (x[..., :3] * x[..., 3:] + (1 - x[..., 3:]) for x in (a, b))
    square = float((a - b)[either].square().mean()) if bool(either.any()) else 0.0
    one, other = (torch.stack([s.mask for s in seen]).cpu() for seen in (seen_first, seen_second))
    n, m = (torch.stack([s.normal for s in seen]).cpu() for seen in (seen_first, seen_second))
    both = one & other
    angle = 2 * ((n - m)[both].double().norm(dim=-1) / 2).clamp(max=1).asin()  # exact for small ones
    return {
        "psnr": min(-10 * float(torch.tensor(max(square, 1e-10)).log10()), 100.0),
        "ssim": float(similarity(a, b)[either].mean()) if bool(either.any()) else 1.0,
        "outline_iou": float(both.sum()) / max(float((one | other).sum()), 1.0),
        "normal_degrees": float(angle.mean().rad2deg()) if len(angle) else 180.0,
    }


def similarity(a: Tensor, b: Tensor) -> Tensor:  # float32 [N, S, S, 3] in [0, 1] -> [N, S, S]
    """SSIM per pixel: 11 x 11 Gaussian window with sigma 1.5."""
    window = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(image: Tensor) -> Tensor:
        channels = image.permute(0, 3, 1, 2)
        across = window.view(1, 1, 1, 11).expand(3, 1, 1, 11)
        channels = torch.nn.functional.conv2d(channels, across, padding=(0, 5), groups=3)
        channels = torch.nn.functional.conv2d(channels, across.transpose(2, 3), padding=(5, 0), groups=3)
        return channels.permute(0, 2, 3, 1)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return score.mean(-1)


def comparison_sheet(
    pictures: Pictures,
    lines: Sequence[tuple[str, str]] = (),  # above: a word, and what is said of it
    histograms: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # uint8 [H, W, 3]
    """All rows below each other with their labels; above them what was measured, and the color histograms."""
    rows, labels = list(pictures.rows.values()), list(pictures.rows)
    sheet = picture_sheet(cast(Any, rows), labels, cell=len(rows[0][0]))
    head = heading(lines, histograms, sheet.shape[1])
    return torch.cat([head, sheet]) if len(head) else sheet


def heading(lines: Sequence[tuple[str, str]], histograms: tuple[Tensor, Tensor] | None, width: int) -> Tensor:
    line = 18
    plots = [] if histograms is None else [histogram_plot(histogram) for histogram in histograms]
    height = max(len(lines) * line + 2 * GAP if lines else 0, plots[0].height + 2 * GAP if plots else 0)
    image = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=13)
    for number, text in enumerate(lines):
        draw.text((GAP, GAP + number * line), text[0], INK, font)
        draw.text((GAP + 90, GAP + number * line), text[1], INK, font)
    for number, (plot, name) in enumerate(zip(reversed(plots), "BA", strict=False)):
        x, y = width - (number + 1) * (plot.width + GAP), height - plot.height - GAP
        image.paste(plot, (x, y))
        draw.text((x, y - line), f"colors of {name}", INK, font)
    return torch.from_numpy(np.array(image))


def histogram_plot(histogram: Tensor, size: tuple[int, int] = (160, 90)) -> Image.Image:
    """Shares of red, green and blue, from dark to bright."""
    width, height = size
    image = Image.new("RGB", size, (246, 246, 248))
    draw = ImageDraw.Draw(image)
    top = max(float(histogram.max()), 1e-9)
    for channel, color in zip(histogram.tolist(), ((214, 58, 50), (44, 150, 66), (52, 92, 214)), strict=True):
        places = [
            (width * (i + 0.5) / len(channel), (height - 3) * (1 - value / top) + 1)
            for i, value in enumerate(channel)
        ]
        draw.line(places, fill=color, width=2)
    return image
