"""From decoded voxels to a finished asset, end to end at tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.shapes import box, dual_grid, hollow, rainbow, sphere, torus
from trellis_core.errors import Cancelled, InputError, OutputError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_asset, choose_alpha, texture_mesh
from trellis_core.geometry.normals import crease_normals, vertex_normals
from trellis_core.geometry.types import ALPHA, Mesh, PBRVoxels, VoxelMesh
from trellis_core.io import WRITERS
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime, cancellable

PRESETS = Path(__file__).parents[2] / "configs" / "presets"
RUNTIME = Runtime(kernels=Kernels({"rasterize": "warp", "closest_point": "warp"}))
SMALL = ExportSettings(faces=2000, texture_size=128)


def test_a_noisy_shape_becomes_a_closed_textured_asset():
    shape = dual_grid(torus(), 32, lost_quads=0.04, stray_quads=0.01)
    asset = build_asset(shape, SMALL, runtime=RUNTIME, extras={"seed": 7}, writers=WRITERS)
    assert asset.quality.passed, asset.quality.problems
    assert asset.quality.metrics["watertight"]
    assert asset.quality.metrics["degenerate_faces"] == asset.quality.metrics["duplicate_faces"] == 0
    assert 1500 < len(asset.mesh.faces) <= 2000
    assert asset.mesh.uvs is not None
    assert asset.mesh.normals is not None
    assert (asset.mesh.normals.norm(dim=1) - 1).abs().max() < 1e-3
    assert asset.material.base_color.shape == (128, 128, 4)
    assert asset.material.metallic_roughness.shape == (128, 128, 3)
    assert not asset.material.double_sided
    assert asset.extras["seed"] == 7
    assert asset.extras["export"]["faces"] == 2000


def test_the_texture_shows_the_voxels_colors():
    shape = dual_grid(torus(), 32)
    asset = build_asset(shape, ExportSettings(faces=10_000, texture_size=256), runtime=RUNTIME)
    corner = asset.mesh.faces.long()
    middle = asset.mesh.vertices[corner].mean(1)
    column, row = (asset.mesh.uvs[corner].mean(1) * 256).long().unbind(1)
    want = torch.from_numpy(rainbow(middle.numpy())).float()
    color = asset.material.base_color[row, column].float() / 255
    surface = asset.material.metallic_roughness[row, column].float() / 255
    assert (color[:, :3] - want[:, :3]).abs().mean() < 0.02
    assert (surface[:, 2] - want[:, 3]).abs().mean() < 0.02
    assert (surface[:, 1] - want[:, 4]).abs().mean() < 0.02
    assert (color[:, 3] == 1).all()


def test_the_same_shape_gives_the_same_asset():
    shape = dual_grid(box(), 24, lost_quads=0.05)
    one, two = (build_asset(shape, SMALL, runtime=RUNTIME) for _ in range(2))
    for name in ("vertices", "faces", "uvs", "normals"):
        assert torch.equal(getattr(one.mesh, name), getattr(two.mesh, name))
    assert torch.equal(one.material.base_color, two.material.base_color)


def test_the_default_kernels_give_the_same_asset_as_the_fast_ones():
    shape = dual_grid(sphere(), 16)
    settings = ExportSettings(faces=200, texture_size=32)
    fast, plain = (build_asset(shape, settings, runtime=r) for r in (RUNTIME, Runtime()))
    assert torch.equal(fast.mesh.uvs, plain.mesh.uvs)
    difference = (fast.material.base_color.int() - plain.material.base_color.int()).abs()
    assert difference.max() <= 2


def test_an_open_surface_is_drawn_from_both_sides():
    raw = dual_grid(sphere(), 24)
    keep = raw.mesh.vertices[raw.mesh.faces.long()].mean(1)[:, 2] < 0.05
    bowl = VoxelMesh(Mesh(raw.mesh.vertices, raw.mesh.faces[keep]), raw.voxels)
    assert build_asset(bowl, SMALL, runtime=RUNTIME).material.double_sided


def test_watertight_closes_what_is_open():
    raw = dual_grid(sphere(), 24)
    keep = raw.mesh.vertices[raw.mesh.faces.long()].mean(1)[:, 2] < 0.05
    bowl = VoxelMesh(Mesh(raw.mesh.vertices, raw.mesh.faces[keep]), raw.voxels)
    asset = build_asset(bowl, replace(SMALL, watertight=True, faces=20_000), runtime=RUNTIME)
    assert asset.quality.metrics["watertight"]


def test_the_hidden_inner_wall_is_removed_unless_it_is_wanted():
    shape = dual_grid(hollow(sphere(0.4), 0.1), 32)
    assert build_asset(shape, SMALL, runtime=RUNTIME).quality.metrics["components"] == 1
    kept = build_asset(shape, replace(SMALL, keep_interior=True), runtime=RUNTIME)
    assert kept.quality.metrics["components"] == 2


def test_stages_are_reported_in_order_and_a_run_can_be_cancelled():
    steps = []
    shape = dual_grid(sphere(), 16)
    build_asset(shape, replace(SMALL, texture_size=32), runtime=RUNTIME.reporting(steps.append))
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["clean", "simplify", "unwrap", "bake", "check"]
    for stage in stages:
        counted = [step.step for step in steps if step.stage == stage]
        assert counted[0] == 0
        assert counted == sorted(counted)
        assert counted[-1] == next(step.steps for step in steps if step.stage == stage)
    with pytest.raises(Cancelled, match="clean"):
        build_asset(shape, SMALL, runtime=RUNTIME.reporting(cancellable(None, lambda: True)))


def test_empty_geometry_is_an_error_with_a_hint():
    shape = dual_grid(sphere(), 16)
    none = Mesh(shape.mesh.vertices, shape.mesh.faces[:0])
    with pytest.raises(InputError, match="no faces") as error:
        build_asset(VoxelMesh(none, shape.voxels), SMALL, runtime=RUNTIME)
    assert error.value.hint
    nothing = PBRVoxels(shape.voxels.coords[:0], shape.voxels.attrs[:0], 16)
    with pytest.raises(InputError, match="no material"):
        build_asset(VoxelMesh(shape.mesh, nothing), SMALL, runtime=RUNTIME)
    lost = Mesh(torch.full_like(shape.mesh.vertices, float("nan")), shape.mesh.faces)
    with pytest.raises(InputError, match="finite"):
        build_asset(VoxelMesh(lost, shape.voxels), SMALL, runtime=RUNTIME)


def test_a_few_spoiled_vertices_do_not_spoil_the_asset():
    shape = dual_grid(sphere(), 24)
    vertices = shape.mesh.vertices.clone()
    vertices[::200] = float("nan")
    asset = build_asset(VoxelMesh(Mesh(vertices, shape.mesh.faces), shape.voxels), SMALL, runtime=RUNTIME)
    assert asset.quality.passed
    assert asset.quality.metrics["watertight"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("faces", 3),
        ("texture_size", 8),
        ("fill_holes_voxels", -1),
        ("bake", "slow"),
        ("texture_format", "jpg"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UsageError, match=name) as error:
        ExportSettings(**{name: value})
    assert error.value.hint


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_is_a_valid_setting(path):
    ExportSettings(**json.loads(path.read_text()))


def test_presets_are_the_promised_ones():
    assert {path.stem for path in PRESETS.glob("*.json")} == {
        "max",
        "web",
        "game",
        "mobile",
        "lowpoly",
        "print",
    }


def test_alpha_is_opaque_unless_the_object_is_really_see_through():
    mostly = torch.ones(1000, 1)
    mostly[:10] = 0.5
    assert choose_alpha(mostly, "auto") == "OPAQUE"
    glass = torch.ones(1000, 1)
    glass[:300] = 0.4
    assert choose_alpha(glass, "auto") == "BLEND"
    leaves = torch.ones(1000, 1)
    leaves[:300] = 0.0
    assert choose_alpha(leaves, "auto") == "MASK"
    assert choose_alpha(mostly, "blend") == "BLEND"


def test_alpha_reaches_the_texture_only_when_it_counts():
    shape = dual_grid(sphere(), 16)
    attrs = shape.voxels.attrs.clone()
    attrs[:, ALPHA] = 0.6
    glass = VoxelMesh(shape.mesh, PBRVoxels(shape.voxels.coords, attrs, 16))
    for wanted, mode, value in (("opaque", "OPAQUE", 255), ("auto", "BLEND", 153)):
        material = build_asset(glass, replace(SMALL, alpha=wanted), runtime=RUNTIME).material
        assert material.alpha_mode == mode
        assert material.base_color[..., 3].unique().tolist() == [value]


def test_creases_are_hard_and_curves_are_smooth():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]])
    fold = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [3, 2, 5], [3, 5, 4]], dtype=torch.int32))
    group, normals = crease_normals(fold, 60)
    assert len(normals) == 8
    assert torch.allclose(normals[group[0]], torch.tensor([0.0, 0, 1]).expand(3, 3))
    group, normals = crease_normals(fold, 120)
    assert len(normals) == 6


def test_a_vertex_normal_does_not_depend_on_the_triangulation():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    wall = [[0, 3, 5], [0, 5, 4]]
    one = vertex_normals(corners, torch.tensor([[0, 1, 2], [0, 2, 3], *wall]))
    two = vertex_normals(corners, torch.tensor([[0, 1, 3], [1, 2, 3], *wall]))
    assert torch.allclose(one[0], two[0], atol=1e-6)


def test_faces_that_cancel_out_still_have_a_normal():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    normals = vertex_normals(corners, torch.tensor([[0, 1, 2], [0, 2, 1]]))
    assert torch.allclose(normals.norm(dim=1), torch.ones(4))


def test_someone_elses_mesh_is_textured_and_keeps_its_shape():
    shape = dual_grid(torus(), 32)
    asset = texture_mesh(shape.mesh, shape.voxels, SMALL, runtime=RUNTIME, writers=WRITERS)
    assert len(asset.mesh.faces) == len(shape.mesh.faces)
    assert asset.material.double_sided
    assert asset.quality.metrics["unsupported_texels"] == 0
    again = texture_mesh(asset.mesh, shape.voxels, SMALL, runtime=RUNTIME)
    assert torch.equal(again.mesh.uvs, asset.mesh.uvs)
    assert torch.equal(again.material.base_color, asset.material.base_color)


def test_an_unknown_file_suffix_is_an_error_that_names_the_known_ones(tmp_path):
    asset = build_asset(dual_grid(sphere(), 16), SMALL, runtime=RUNTIME, writers=WRITERS)
    with pytest.raises(OutputError) as error:
        asset.save(tmp_path / "thing.xyz")
    assert ".glb" in error.value.hint
