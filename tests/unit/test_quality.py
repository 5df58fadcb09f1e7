"""The quality check: good meshes pass, and each kind of damage is named in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trellis_core.geometry.quality import QualityLimits, check_mesh, coverage_metrics, uv_metrics
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.table import Kernels

KERNELS = Kernels({"rasterize": "warp"})


def tube(rings: int = 6, around: int = 12) -> Mesh:
    """A closed tube with a cap at each end: 2 * around * (rings - 1) + 2 * around faces."""
    angle = torch.arange(around) * (2 * torch.pi / around)
    level = torch.linspace(-0.4, 0.4, rings)
    side = [
        torch.stack([0.2 * angle.cos(), 0.2 * angle.sin(), torch.full_like(angle, float(z))], 1)
        for z in level
    ]
    vertices = torch.cat([*side, torch.tensor([[0, 0, -0.4], [0, 0, 0.4]])])
    faces = []
    for ring in range(rings - 1):
        for i in range(around):
            a, b = ring * around + i, ring * around + (i + 1) % around
            faces += [[a, b, b + around], [a, b + around, a + around]]
    last, top = (rings - 1) * around, rings * around + 1
    for i in range(around):
        j = (i + 1) % around
        faces += [[rings * around, j, i], [top, last + i, last + j]]
    return Mesh(vertices, torch.tensor(faces, dtype=torch.int32))


def problem_of(mesh: Mesh, **more) -> str:
    report = check_mesh(mesh, **more)
    assert report.passed == (not report.problems)
    return " ".join(report.problems)


def with_faces(mesh: Mesh, *extra: list[int]) -> Mesh:
    return replace(mesh, faces=torch.cat([mesh.faces, torch.tensor(extra, dtype=torch.int32)]))


def test_a_good_mesh_passes_and_is_measured():
    report = check_mesh(tube())
    assert report.passed
    assert report.problems == ()
    assert report.metrics["watertight"] is True
    assert report.metrics["euler_characteristic"] == 2
    assert report.metrics["components"] == 1
    assert report.metrics["area"] == pytest.approx(2 * torch.pi * 0.2 * 0.8 + 2 * torch.pi * 0.04, rel=0.05)


def test_every_sentence_ends_with_a_period_and_names_a_number_it_is_about():
    broken = with_faces(tube(), [0, 1, 1], [0, 1, 13])
    for sentence in check_mesh(broken).problems:
        assert sentence.endswith(".")
        assert any(letter.isdigit() for letter in sentence)


def test_an_empty_mesh_and_one_with_nan_do_not_pass():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    assert problem_of(empty) == "The mesh has no faces."
    spoiled = replace(
        tube(), vertices=tube().vertices.clone().index_fill_(0, torch.tensor([3]), float("nan"))
    )
    assert problem_of(spoiled) == "Some coordinates are not numbers."


def test_faces_that_name_missing_vertices_are_reported():
    assert "do not exist" in problem_of(with_faces(tube(), [0, 1, 9999]))


def test_geometry_that_left_the_cube_is_reported():
    assert "burst out" in problem_of(replace(tube(), vertices=tube().vertices * 3))
    assert "units across" in problem_of(replace(tube(), vertices=tube().vertices * 0.01))


def test_fragments_are_reported():
    parts = [tube(2, 3) for _ in range(5)]
    vertices = torch.cat([part.vertices * 0.1 + 0.1 * k for k, part in enumerate(parts)])
    faces = torch.cat([part.faces + k * len(parts[0].vertices) for k, part in enumerate(parts)])
    limits = QualityLimits(max_components=4)
    assert "5 pieces" in problem_of(Mesh(vertices, faces), limits=limits)
    assert "largest piece has only 20%" in problem_of(Mesh(vertices, faces))


def test_open_borders_and_crowded_edges_are_reported():
    mesh = tube()
    assert "open borders" in problem_of(replace(mesh, faces=mesh.faces[::2]))
    fin = with_faces(mesh, [0, 12, 40], [2, 14, 42], [4, 16, 44])
    assert "more than two faces" in problem_of(fin)


def test_degenerate_duplicate_and_needle_faces_are_reported():
    mesh = tube()
    assert "no area" in problem_of(with_faces(mesh, [5, 5, 6]))
    assert "repeated" in problem_of(with_faces(mesh, mesh.faces[0].tolist()))
    thin = mesh.vertices.clone()
    thin[:, 0] *= 1e-4
    assert "needles" in problem_of(replace(mesh, vertices=thin))


def test_seams_of_a_texture_are_no_borders():
    mesh = tube()
    corners = mesh.faces.long().reshape(-1)
    torn = Mesh(mesh.vertices[corners], torch.arange(len(corners), dtype=torch.int32).reshape(-1, 3))
    assert check_mesh(torn).metrics["watertight"] is True


def square(uvs: list[list[float]]) -> Mesh:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uvs=torch.tensor(uvs))


def test_texture_coordinates_are_measured():
    good = uv_metrics(square([[0.25, 0.75], [0.75, 0.75], [0.75, 0.25], [0.25, 0.25]]), KERNELS, 64)
    assert good["uv_coverage"] == pytest.approx(0.25)
    assert good["uv_overlap"] == good["uv_flips"] == good["uv_outside"] == 0
    assert good["uv_density_deviation"] == pytest.approx(0, abs=1e-6)
    assert good["uv_charts"] == 1
    assert uv_metrics(square([[0, 1], [2, 1], [1, 0], [0, 0.5]]), None, 64)["uv_outside"] == 1
    folded = uv_metrics(square([[0.2, 0.8], [0.8, 0.8], [0.8, 0.2], [0.7, 0.7]]), KERNELS, 64)
    assert folded["uv_flips"] == 1
    assert folded["uv_overlap"] > 0.1


def test_a_face_that_rounding_turns_over_is_not_mirrored():
    for off, mirrored in ((5e-8, 0), (1e-5, 1)):
        thin = uv_metrics(square([[0.2, 0.8], [0.8, 0.8], [0.8, 0.2], [0.5 + off, 0.5 + off]]), None, 64)
        assert thin["uv_flips"] == mirrored


def test_texels_on_a_shared_edge_are_not_an_overlap():
    mesh = square([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # texel centres lie on the diagonal
    assert coverage_metrics(mesh, KERNELS, 64) == {"uv_coverage": 1.0, "uv_overlap": 0.0}


def test_missing_material_and_bad_normals_are_reported():
    assert "no material" in problem_of(tube(), unsupported_texels=0.5)
    normals = torch.zeros(len(tube().vertices), 3)
    assert "normals" in problem_of(replace(tube(), normals=normals))


def test_faces_wound_against_their_neighbours_are_counted():
    mesh = tube()
    mesh.faces[5] = mesh.faces[5].flip(0)
    assert "3 edges lie between faces that are wound against each other" in problem_of(mesh)


def test_open_sheets_may_meet_in_a_few_edges_that_disagree():
    mesh = tube(rings=200, around=24)
    mesh.faces[5] = mesh.faces[5].flip(0)
    assert "wound against" in problem_of(mesh)
    opened = replace(mesh, faces=mesh.faces[:-24])
    assert check_mesh(opened).metrics["mixed_edges"] == 3
    assert "wound against" not in problem_of(opened)


def test_a_mesh_turned_inside_out_is_named():
    mesh = tube()
    assert "inside out" in problem_of(replace(mesh, faces=mesh.faces.flip(1)))
    assert "inside out" not in problem_of(mesh)


def test_a_second_shell_under_the_surface_is_named_where_it_can_be_seen_that_nobody_sees_it():
    outer = tube()
    inner = Mesh(outer.vertices * 0.97, outer.faces.flip(1))
    double = Mesh(
        torch.cat([outer.vertices, inner.vertices]),
        torch.cat([outer.faces, inner.faces + len(outer.vertices)]),
    )
    assert "Second shells just under the surface: 1." in problem_of(double, kernels=KERNELS)
    kept = check_mesh(double, kernels=KERNELS, limits=QualityLimits(max_double_shells=1))
    assert kept.metrics["double_shells"] == 1
    assert not any("shell" in problem for problem in kept.problems)
