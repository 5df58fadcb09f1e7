"""Files: what is written is what was built, readers agree, and failures leave nothing behind."""

from __future__ import annotations

import errno
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.gltf_validator import complaints, validate
from tests.shapes import dual_grid, torus
from trellis_core.errors import InputError, OutputError
from trellis_core.geometry.asset import ExportSettings, build_asset
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io import WRITERS, files
from trellis_core.io.glb import write_glb
from trellis_core.io.gltf import from_y_up, index_array, plain, to_y_up
from trellis_core.io.meshes import SUFFIXES, read_mesh
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=Kernels({"rasterize": "warp", "closest_point": "warp"}))


@pytest.fixture(scope="module")
def asset() -> Asset:
    shape = dual_grid(torus(), 24)
    settings = ExportSettings(faces=1500, texture_size=64, texture_format="png")
    return build_asset(shape, settings, runtime=RUNTIME, extras={"seed": 3}, writers=WRITERS)


def document_of(path) -> dict:
    data = path.read_bytes()
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    return json.loads(data[20 : 20 + length])


@pytest.mark.parametrize("texture_format", ["png", "webp"])
@pytest.mark.parametrize("alpha_mode", ["OPAQUE", "MASK", "BLEND"])
def test_the_khronos_validator_finds_nothing(asset, tmp_path, texture_format, alpha_mode):
    path = tmp_path / "a.glb"
    material = replace(asset.material, alpha_mode=alpha_mode)
    write_glb(replace(asset, material=material), path, texture_format=texture_format)
    assert complaints(path) == []
    info = validate(path)["info"]
    assert info["totalTriangleCount"] == len(asset.mesh.faces)
    assert info["maxUVs"] == 1


def test_an_independent_reader_sees_the_same_asset(asset, tmp_path):
    path = asset.save(tmp_path / "a.glb")
    read = next(iter(trimesh.load_scene(path).geometry.values()))
    assert np.allclose(read.vertices, to_y_up(asset.mesh.vertices).numpy(), atol=1e-6)
    assert np.array_equal(read.faces, asset.mesh.faces.numpy())
    assert np.allclose(
        np.stack([read.visual.uv[:, 0], 1 - read.visual.uv[:, 1]], 1), asset.mesh.uvs.numpy(), atol=1e-6
    )
    assert np.allclose(read.vertex_normals, to_y_up(asset.mesh.normals).numpy(), atol=1e-4)
    color = np.array(read.visual.material.baseColorTexture.convert("RGBA"))
    assert np.array_equal(color, asset.material.base_color.numpy())
    surface = np.array(read.visual.material.metallicRoughnessTexture)
    assert np.array_equal(surface, asset.material.metallic_roughness.numpy())


def test_up_in_our_frame_is_up_in_gltf(asset, tmp_path):
    assert to_y_up(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1.0, 3.0, -2.0]]
    points = torch.randn(10, 3)
    assert torch.equal(from_y_up(to_y_up(points)), points)
    accessor = document_of(asset.save(tmp_path / "a.glb"))["accessors"][1]
    assert accessor["max"][1] == pytest.approx(float(asset.mesh.vertices[:, 2].max()))


def test_webp_keeps_numbers_exact_and_colors_close(tmp_path):
    side = 64
    ramp = torch.linspace(0, 255, side).round().to(torch.uint8)
    color = torch.stack(
        [
            ramp[:, None].expand(side, side),
            ramp.expand(side, side),
            torch.full((side, side), 128, dtype=torch.uint8),
        ],
        2,
    )
    color = torch.cat([color, torch.full((side, side, 1), 255, dtype=torch.uint8)], 2)
    noise = torch.randint(
        0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(
        corners,
        torch.tensor([[0, 1, 2]], dtype=torch.int32),
        corners[:, :2].clone(),
        torch.tensor([[0.0, 0, 1]]).expand(3, 3),
    )
    path = tmp_path / "a.glb"
    write_glb(Asset(mesh, Material(color, noise), QualityReport({})), path, texture_format="webp")
    read = read_mesh(path)
    assert torch.equal(read.metallic_roughness, noise)
    error = (read.base_color.float() - color.float())[..., :3].square().mean()
    assert 10 * torch.log10(255**2 / error) > 40


def test_colors_survive_under_zero_alpha(tmp_path):
    color = torch.full((16, 16, 4), 200, dtype=torch.uint8)
    color[:8, :, 3] = 0
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2]], dtype=torch.int32), corners[:, :2].clone())
    material = Material(color, torch.zeros(16, 16, 3, dtype=torch.uint8), "BLEND")
    path = tmp_path / "a.glb"
    write_glb(Asset(mesh, material, QualityReport({})), path, texture_format="webp", quality=None)
    assert torch.equal(read_mesh(path).base_color, color)


def test_the_document_says_what_the_material_is(asset, tmp_path):
    document = document_of(asset.save(tmp_path / "a.glb"))
    material = document["materials"][0]
    assert material["alphaMode"] == "OPAQUE"
    assert material["doubleSided"] is asset.material.double_sided
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 1
    assert "extensionsRequired" not in document
    assert document["asset"]["extras"]["seed"] == 3
    assert document["asset"]["extras"]["export"]["texture_size"] == 64
    assert document["samplers"][0] == {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}


def test_indices_are_as_small_as_possible():
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    assert index_array(faces, 65535)[0].dtype == np.uint16
    assert index_array(faces, 65536)[0].dtype == np.uint32


def test_provenance_is_made_of_json_types():
    value = plain({"a": (1, 2.5, None), 3: {"x": float("nan")}})
    assert json.loads(json.dumps(value, allow_nan=False)) == {"a": [1, 2.5, None], "3": {"x": "nan"}}


@pytest.mark.parametrize("suffix", sorted(set(WRITERS) & set(SUFFIXES)))
def test_every_format_is_read_back_in_our_frame(asset, tmp_path, suffix):
    asset = replace(asset, unit_mm=1.0 if suffix == ".3mf" else None)  # the one that demands a size
    read = read_mesh(asset.save(tmp_path / f"a{suffix}"))
    assert len(read.mesh.faces) == len(asset.mesh.faces)
    ours, theirs = (m.vertices[m.faces.long()].mean(1) for m in (asset.mesh, read.mesh))
    assert torch.allclose(ours, theirs, atol=1e-6)
    if suffix in (".glb", ".obj"):
        assert torch.allclose(
            read.mesh.uvs[read.mesh.faces.long()], asset.mesh.uvs[asset.mesh.faces.long()], atol=1e-5
        )
        assert torch.equal(read.base_color, asset.material.base_color)


def test_ply_has_the_color_of_the_texture_at_each_vertex(asset, tmp_path):
    read = trimesh.load_mesh(asset.save(tmp_path / "a.ply"), process=False)
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    assert "property uchar red" in header
    column, row = (asset.mesh.uvs * 64).long().clamp(0, 63).unbind(1)
    data = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)[1], dtype=np.uint8)
    first = data[: 6 * 4 + 4][-4:]
    assert np.array_equal(first, asset.material.base_color[row[0], column[0]].numpy())
    assert len(read.faces) == len(asset.mesh.faces)


def test_obj_names_files_that_exist(asset, tmp_path):
    path = asset.save(tmp_path / "my chair.obj")
    library = next(
        line.split(" ", 1)[1] for line in path.read_text().splitlines() if line.startswith("mtllib")
    )
    text = (tmp_path / library).read_text()
    images = [line.split()[1] for line in text.splitlines() if line.startswith("map_")]
    assert len(images) == 3
    for image in images:
        with Image.open(tmp_path / image) as picture:
            assert picture.size == (64, 64)


def test_stl_is_z_up_with_unit_normals(asset, tmp_path):
    data = asset.save(tmp_path / "a.stl").read_bytes()
    count = struct.unpack_from("<I", data, 80)[0]
    assert len(data) == 84 + 50 * count == 84 + 50 * len(asset.mesh.faces)
    normal = np.frombuffer(data, dtype="<f4", count=3, offset=84)
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-5)


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(asset, tmp_path, monkeypatch):
    path = tmp_path / "a.glb"
    path.write_bytes(b"the old file")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OutputError, match=r"a\.glb") as error:
        asset.save(path)
    assert "disk is full" in error.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]
    assert path.read_bytes() == b"the old file"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def parts():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_file(tmp_path / "a.bin", parts())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_an_error_with_a_hint(asset, tmp_path):
    (tmp_path / "a.glb").mkdir()
    with pytest.raises(OutputError) as error:
        asset.save(tmp_path / "a.glb")
    assert error.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        asset.save(tmp_path / "file" / "a.glb")


def test_missing_folders_are_made_and_the_file_is_readable(asset, tmp_path):
    path = asset.save(tmp_path / "new" / "folder" / "a.glb")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_meshes_that_cannot_be_used_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="unknown mesh format"):
        read_mesh(tmp_path / "a.blend")
    with pytest.raises(InputError, match="no file"):
        read_mesh(tmp_path / "a.glb")
    (tmp_path / "a.glb").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot read") as error:
        read_mesh(tmp_path / "a.glb")
    assert error.value.hint
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(InputError):
        read_mesh(tmp_path / "points.obj")


def test_parts_of_a_scene_keep_their_texture_coordinates_when_all_have_some(tmp_path):
    def part(height: float, uv: bool) -> trimesh.Trimesh:
        corners = [[0, height, 0], [1, height, 0], [1, height, 1]]
        visual = trimesh.visual.TextureVisuals(uv=[[0.1, 0.9], [0.5, 0.5], [height / 9, 0]]) if uv else None
        return trimesh.Trimesh(corners, [[0, 1, 2]], visual=visual, process=False)

    trimesh.Scene([part(1, True), part(2, True)]).export(tmp_path / "both.glb")
    mesh = read_mesh(tmp_path / "both.glb").mesh
    assert torch.allclose(mesh.uvs[:2], torch.tensor([[0.1, 0.1], [0.5, 0.5]]), atol=1e-6)
    assert torch.allclose(mesh.uvs[2::3, 0], mesh.vertices[2::3, 2] / 9, atol=1e-6)
    trimesh.Scene([part(1, True), part(2, False)]).export(tmp_path / "one.glb")
    assert read_mesh(tmp_path / "one.glb").mesh.uvs is None


def test_parts_of_a_scene_become_one_mesh_with_their_transforms(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box((1, 1, 1)))
    move = np.eye(4)
    move[:3, 3] = [0, 5, 0]
    scene.add_geometry(trimesh.creation.box((1, 1, 1)), transform=move)
    scene.export(tmp_path / "two.glb")
    mesh = read_mesh(tmp_path / "two.glb").mesh
    assert len(mesh.faces) == 24
    assert mesh.vertices[:, 2].max() == pytest.approx(5.5)  # up in the file is z here
    assert mesh.vertices[:, 1].abs().max() == pytest.approx(0.5)
