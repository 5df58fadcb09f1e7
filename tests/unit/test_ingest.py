"""From users' meshes to training data, with the encoders of the embedded model.

Properties: the layout, columns and types are the released ones; both halves of an asset lie on the same
voxels and both latents on the same tokens; what cannot be used is said and harms nothing else; nothing is
made twice; materials and cameras are those of the file.
Not tested: glTF files of other programs than trimesh.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from tests.crew_tasks import start
from trellis2 import ingest as meshes
from trellis2.dual_grid import extract_mesh
from trellis2.ingest import IngestSettings, find_encoders, ingest
from trellis_core.errors import InputError, UsageError
from trellis_core.training.crew import Lost, run_tasks
from trellis_core.training.data import Entry, read_dual_grid, read_latent, read_materials, read_table
from trellis_core.training.ingest.items import summary
from trellis_core.training.ingest.materials import read_ingested
from trellis_core.training.ingest.surfaces import to_srgb
from trellis_core.training.ingest.views import ViewSettings, condition_views

EMBEDDED = Path(meshes.__file__).parent / "_embedded"
RESOLUTION = 32


def two_materials() -> trimesh.Scene:
    """A red ball on a half transparent blue plate, y up."""
    ball = trimesh.creation.icosphere(radius=0.5)
    red = PBRMaterial(baseColorFactor=[0.5, 0.0, 0.0, 1.0], metallicFactor=0.0, roughnessFactor=0.25)
    ball.visual = trimesh.visual.TextureVisuals(material=red)
    plate = trimesh.creation.box(extents=[2.0, 0.2, 1.0])
    plate.apply_translation([0, -0.6, 0])
    blue = PBRMaterial(baseColorFactor=[0, 0, 1.0, 0.5], metallicFactor=1.0, alphaMode="BLEND")
    plate.visual = trimesh.visual.TextureVisuals(material=blue)
    return trimesh.Scene([ball, plate])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three meshes that can be used, and five files that cannot."""
    root = tmp_path_factory.mktemp("meshes")
    (root / "sub").mkdir()
    two_materials().export(root / "scene.glb")
    trimesh.creation.torus(1.0, 0.3).export(root / "sub" / "ring.ply")
    trimesh.creation.box().export(root / "box.stl")
    (root / "scene.txt").write_text("a red ball on a plate\n\na ball\n")
    (root / "bad.glb").write_bytes(b"nonsense")
    (root / "copy.stl").write_bytes((root / "box.stl").read_bytes())
    (root / "cloud.obj").write_text("v 0 0 0\nv 1 1 1\n")
    (root / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (root / "notes.md").write_text("no mesh")
    return root


def some_settings(**changes) -> IngestSettings:
    encoders = find_encoders(EMBEDDED)
    grid = RESOLUTION // meshes.factor_of(encoders["shape"])
    views = ViewSettings(views=2, size=48, supersampling=1)
    settings = IngestSettings(resolution=RESOLUTION, encoders=encoders, structure_grid=grid, views=views)
    return replace(settings, **changes)


@pytest.fixture(scope="module")
def ingested(folder, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    outcomes = ingest(folder, data, some_settings(), workers=0)
    return data, outcomes


def entry(data: Path, name: str) -> Entry:
    rows = read_table(data / "metadata.csv")
    sha256 = next(sha for sha, row in rows.items() if row["file_identifier"] == name)
    description = json.loads((data / f"data_{RESOLUTION}.json").read_text())["ingested"]
    return Entry(sha256, {role: data / place for role, place in description.items()}, 1)


def test_every_usable_mesh_becomes_every_kind_of_data_and_the_others_are_rejected_with_a_reason(ingested):
    data, outcomes = ingested
    report = summary(outcomes)
    assert (report["meshes"], report["complete"], report["made"]) == (7, 3, 3)
    reasons = {r["file"]: r["reason"] for r in report["rejected"]}
    assert "cannot be read" in reasons["bad.glb"] and "no triangles" in reasons["cloud.obj"]
    assert "the same file as box.stl" in reasons["copy.stl"] and "one point" in reasons["point.obj"]
    names = {row["file_identifier"] for row in read_table(data / "metadata.csv").values()}
    assert names == {"scene.glb", "sub/ring.ply", "box.stl"}
    for step in meshes.steps_of(some_settings()):
        assert len(read_table(data / step / "metadata.csv")) == 3, step
    json.dumps(report)


def test_both_halves_share_their_voxels_and_both_latents_their_tokens(ingested):
    data, _ = ingested
    factor = meshes.factor_of(find_encoders(EMBEDDED)["shape"])
    for name in ("scene.glb", "sub/ring.ply", "box.stl"):
        item = entry(data, name)
        coords, vertices, crossings = read_dual_grid(item)
        others, attrs = read_materials(item)
        assert torch.equal(coords, others) and crossings.any(1).any()
        assert float(vertices.min()) >= 0 and float(vertices.max()) <= 1 and float(attrs.abs().max()) <= 1
        tokens, feats = read_latent(item, "shape_latent")
        assert torch.equal(tokens, read_latent(item, "pbr_latent")[0]) and len(feats) == len(tokens)
        assert {tuple(t) for t in tokens.tolist()} == {tuple(t) for t in (coords // factor).tolist()}
        with np.load(item.places["ss_latent"] / f"{item.sha256}.npz") as file:
            assert file["z"].dtype == np.float32 and np.isfinite(file["z"]).all()


def test_the_stored_surface_is_the_mesh_normalised_with_z_up(ingested):
    data, _ = ingested
    coords, vertices, crossings = read_dual_grid(entry(data, "scene.glb"))
    mesh = extract_mesh(coords, vertices, crossings, None, RESOLUTION)
    extent = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    assert extent.tolist() == pytest.approx(
        [1.0, 0.5, 0.6],  # the file: 2 x 1.2 x 1, y up
        abs=1.5 / RESOLUTION,
    )
    coords, attrs = read_materials(entry(data, "scene.glb"))
    plate = coords[:, 2] <= coords[:, 2].min() + 1
    assert attrs[plate].mean(0)[:4].tolist() == pytest.approx([-1, -1, 1, 1], abs=0.05)
    assert float(attrs[plate][:, 5].mean()) == pytest.approx(0, abs=0.05)


def test_columns_and_captions_are_those_of_the_layout(ingested):
    data, _ = ingested
    item = entry(data, "scene.glb")
    row = read_table(data / "metadata.csv")[item.sha256]
    assert json.loads(row["captions"]) == ["a red ball on a plate", "a ball"] and row["aesthetic_score"] == ""
    grid = read_table(item.places["dual_grid"] / "metadata.csv")[item.sha256]
    assert grid["dual_grid_converted"] == "True" and int(grid["dual_grid_size"]) == len(
        read_dual_grid(item)[0]
    )
    latent = read_table(item.places["shape_latent"] / "metadata.csv")[item.sha256]
    assert int(latent["shape_latent_tokens"]) == len(read_latent(item, "shape_latent")[0])
    stats = read_table(item.places["asset_stats"] / "metadata.csv")[item.sha256]
    assert int(stats["num_faces"]) == 1280 + 12 and stats["num_basecolor_tex"] == "0"


def test_the_stored_cameras_show_the_object_where_its_corners_project(ingested):
    data, _ = ingested
    item = entry(data, "box.stl")
    folder = item.places["render_cond"] / item.sha256
    about = json.loads((folder / "transforms.json").read_text())
    corners = np.array([[x, y, z, 2] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    for frame in about["frames"]:
        alpha = np.array(Image.open(folder / frame["file_path"]).getchannel("A"))
        seen = corners @ np.linalg.inv(np.array(frame["transform_matrix"])).T
        focal = 0.5 / np.tan(frame["camera_angle_x"] / 2)
        column = (0.5 + focal * seen[:, 0] / -seen[:, 2]) * alpha.shape[1]
        row = (0.5 - focal * seen[:, 1] / -seen[:, 2]) * alpha.shape[0]
        rows, columns = np.nonzero(alpha)
        assert [columns.min(), columns.max() + 1] == pytest.approx([column.min(), column.max()], abs=1.1)
        assert [rows.min(), rows.max() + 1] == pytest.approx([row.min(), row.max()], abs=1.1)


def test_the_object_is_inside_every_view():
    for view in condition_views(32, np.random.default_rng(0)):
        distance = float(view.camera.eye.norm())
        assert np.degrees(view.fov) == pytest.approx(np.degrees(2 * np.arcsin(0.75**0.5 / distance)))
        assert 10 <= round(np.degrees(view.fov), 6) <= 70


def test_what_is_finished_is_not_made_again_and_what_is_lost_is(folder, ingested):
    data, _ = ingested
    again = ingest(folder, data, some_settings(), workers=0)
    assert not any(o.made for o in again) and summary(again)["there_before"] == 3
    item = entry(data, "box.stl")
    (item.places["pbr_voxel"] / f"{item.sha256}.vxz").unlink()
    made = {o.name: o.made for o in ingest(folder, data, some_settings(), workers=0)}
    assert made["box.stl"] == (f"pbr_voxels_{RESOLUTION}",) and made["scene.glb"] == ()
    other = some_settings(views=ViewSettings(views=1, size=32))
    made = {o.name: o.made for o in ingest(folder, data, other, workers=0)}
    assert made["box.stl"] == ("renders_cond",)


def test_a_model_without_encoders_gives_voxels_and_pictures_only(folder):
    steps = meshes.steps_of(some_settings(encoders={}))
    assert list(steps) == [
        "asset_stats",
        f"dual_grid_{RESOLUTION}",
        f"pbr_voxels_{RESOLUTION}",
        "renders_cond",
    ]


def test_a_folder_without_meshes_and_a_resolution_between_tokens_are_said(tmp_path, folder):
    with pytest.raises(InputError, match="holds no mesh"):
        ingest(tmp_path, tmp_path / "data", some_settings(), workers=0)
    with pytest.raises(UsageError, match="no multiple"):
        ingest(folder, tmp_path, some_settings(resolution=RESOLUTION + 1), workers=0)


def test_materials_are_read_as_the_file_means_them(tmp_path):
    two_materials().export(tmp_path / "a.glb")
    read = read_ingested(tmp_path / "a.glb")
    looks = {m.alpha_mode: m for m in read.look.materials}
    red = float(to_srgb(torch.tensor(128 / 255)))  # a factor is linear, the voxels are sRGB
    assert looks["OPAQUE"].base_color_factor == pytest.approx((red, 0, 0), abs=1e-4)
    assert looks["OPAQUE"].roughness_factor == 0.25 and looks["BLEND"].metallic_factor == 1.0
    assert looks["BLEND"].alpha_factor == pytest.approx(0.5, abs=0.01)
    box = trimesh.creation.box()
    box.visual.face_colors = np.array([[10 * i, 200, 30, 255] for i in range(12)], np.uint8)
    box.export(tmp_path / "b.ply")
    look = read_ingested(tmp_path / "b.ply").look
    texture = look.materials[0].base_color_texture
    side = texture.shape[0]
    column, row = (look.uvs[:, 0, 0] * side).int(), ((1 - look.uvs[:, 0, 1]) * side).int()
    assert texture[row, column].tolist() == [[10 * i, 200, 30] for i in range(12)]
    (tmp_path / "c.mtl").write_text("newmtl m\nKd 1 0.5 0\nd 0.25\n")
    (tmp_path / "c.obj").write_text("mtllib c.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n")
    material = read_ingested(tmp_path / "c.obj").look.materials[0]
    assert material.base_color_factor == pytest.approx((1, 0.5, 0), abs=0.01)
    assert (material.alpha_mode, material.metallic_factor) == ("BLEND", 0.0)


def test_seams_of_texture_coordinates_are_no_holes(tmp_path):
    box = trimesh.creation.box()
    apart = trimesh.Trimesh(box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    apart.export(tmp_path / "a.stl")
    assert len(read_ingested(tmp_path / "a.stl").shape.vertices) == 8


# --- processes ---------------------------------------------------------------------------------------


def test_a_task_that_kills_its_process_or_never_ends_harms_no_other_one():
    results: dict[str, str | Lost] = {}
    tasks = ["a", "dies", "sleeps", "b", "c"]
    run_tasks(
        tasks, start, workers=2, seconds=2, on_result=lambda task, result: results.update({task: result})
    )
    assert {t: results[t] for t in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert isinstance(results["dies"], Lost) and "code 3" in results["dies"].reason
    assert isinstance(results["sleeps"], Lost) and "longer than" in results["sleeps"].reason
