"""Texture coordinates: charts lie flat, do not overlap, and keep their distance from each other."""

from __future__ import annotations

import math

import pytest
import torch

from tests.shapes import box, dual_grid, sphere, torus, union
from trellis_core.geometry.charts import FLAT_LIMIT, make_charts
from trellis_core.geometry.connectivity import edges_of, partner_sides
from trellis_core.geometry.flatten import chart_axes, flatten_charts, surface_of
from trellis_core.geometry.orientation import flood_surroundings, orient_outward
from trellis_core.geometry.quality import stretch_metrics, uv_metrics
from trellis_core.geometry.triangles import face_areas
from trellis_core.geometry.types import Mesh
from trellis_core.geometry.unwrap import overlapping_faces, unwrap
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp", "place": "warp"})
SHAPES = {"sphere": sphere(), "box": box(), "torus": torus(), "both": union(torus(), box((0.1, 0.1, 0.4)))}


def surface(shape, resolution: int = 32) -> Mesh:
    raw = dual_grid(shape, resolution)
    around = flood_surroundings(raw.mesh, raw.voxels.coords, resolution)
    return orient_outward(raw.mesh, around)[0]


def charted(mesh: Mesh):
    built = surface_of(mesh, partner_sides(edges_of(mesh.faces)))
    return built, make_charts(built, 0.01)


def spiral_ramp() -> Mesh:
    """Two turns of a shallow ramp: one connected sheet without a steep face, over itself."""
    turn = torch.linspace(0, 4 * math.pi, 97)
    rows = [torch.stack([r * torch.cos(turn), r * torch.sin(turn), 0.02 * turn], 1) for r in (0.2, 0.3, 0.4)]
    count, faces = len(turn), []
    for row in range(2):
        for i in range(count - 1):
            a, b = row * count + i, (row + 1) * count + i
            faces += [[a, b, b + 1], [a, b + 1, a + 1]]
    return Mesh(torch.cat(rows), torch.tensor(faces, dtype=torch.int32))


def test_a_box_has_six_charts():
    _, chart = charted(surface(box()))
    assert int(chart.max()) + 1 == 6


def test_the_sides_of_a_box_that_stands_askew_do_not_share_a_chart():
    """However it stands: none of the six directions that faces are labelled by is along its sides."""
    generator = torch.Generator().manual_seed(0)
    flat = surface(box())
    for _ in range(5):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
        turn[:, 0] *= torch.det(turn).sign()
        turned = Mesh(flat.vertices @ turn.T, flat.faces)
        assert stretch_metrics(unwrap(turned, 256, layer_gap=1e-3, kernels=KERNELS))["uv_stretch"] < 1.1


@pytest.mark.parametrize("name", SHAPES)
def test_no_face_is_steep_in_its_chart(name):
    built, chart = charted(surface(SHAPES[name]))
    axis, _ = chart_axes(built, chart)
    assert ((built.normals * axis[chart]).sum(1) >= FLAT_LIMIT - 1e-5).all()


def test_noise_does_not_shatter_a_surface_into_charts():
    mesh = surface(sphere())
    noise = torch.randn(mesh.vertices.shape, generator=torch.Generator().manual_seed(0)) * 0.05 / 32
    _, chart = charted(Mesh(mesh.vertices + noise, mesh.faces))
    assert int(chart.max()) + 1 < 12


@pytest.mark.parametrize("name", SHAPES)
def test_unwrapping_is_valid(name):
    mesh = surface(SHAPES[name])
    flat = unwrap(mesh, 512, layer_gap=0.25 / 32, kernels=KERNELS)
    assert flat.uvs is not None
    report = uv_metrics(flat, KERNELS, 512)
    assert report["uv_outside"] == report["uv_flips"] == 0
    assert report["uv_overlap"] == 0
    assert report["uv_coverage"] > 0.6
    assert report["uv_density_deviation"] < 0.2
    assert report["uv_stretch"] < 1.1
    assert torch.equal(flat.vertices[flat.faces.long()], mesh.vertices[mesh.faces.long()])


def test_layers_of_a_spiral_are_taken_apart():
    mesh = spiral_ramp()
    built, chart = charted(mesh)
    assert overlapping_faces(flatten_charts(built, chart), 0.02, KERNELS).any()
    report = uv_metrics(unwrap(mesh, 512, layer_gap=0.02, kernels=KERNELS), KERNELS, 512)
    assert report["uv_overlap"] == 0
    assert report["uv_charts"] > 1


def test_texel_density_is_the_same_everywhere_on_a_box():
    flat = unwrap(surface(box()), 512, layer_gap=0.01, kernels=KERNELS)
    a, b, c = flat.uvs.double()[flat.faces.long()].unbind(1)
    doubled = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs()
    density = doubled / face_areas(flat.vertices.double(), flat.faces)
    assert density.median() == pytest.approx(float(density.quantile(0.9)), rel=0.01)


@pytest.mark.parametrize(("squeezed", "stretch"), [(1.0, 1.0), (0.5, (2.5 * 0.5) ** 0.5)])
def test_stretch_is_one_without_distortion_and_known_where_a_texture_is_squeezed(squeezed, stretch):
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    uvs = corners[:, :2] * torch.tensor([1.0, squeezed])
    square = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uvs=uvs)
    assert stretch_metrics(square)["uv_stretch"] == pytest.approx(stretch)
    assert stretch_metrics(square)["uv_stretch_p99"] == pytest.approx(stretch)


def test_unwrapping_is_repeatable():
    mesh = surface(torus())
    one, two = (unwrap(mesh, 256, layer_gap=0.01, kernels=KERNELS) for _ in range(2))
    assert torch.equal(one.uvs, two.uvs)
    assert torch.equal(one.faces, two.faces)
