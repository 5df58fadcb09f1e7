"""Every file format: independent readers find the asset that was written, to the precision of the format.

Readers: trimesh (glTF, OBJ, PLY, STL, 3MF), the Khronos validator, pxr (USDZ), DracoPy, plain XML.
Not tested here: what GLB files say in general (test_glb.py).
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.gltf_validator import complaints
from tests.shapes import dual_grid, torus
from trellis_core.errors import OutputError, UsageError
from trellis_core.geometry.asset import ExportSettings, build_assets
from trellis_core.geometry.tangents import with_tangents
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io import WRITERS, GltfSettings, files, save_asset
from trellis_core.io.frame import to_y_up
from trellis_core.io.meshes import read_mesh
from trellis_core.io.package import zip_files
from trellis_core.kernels.table import Kernels
from trellis_core.runtime import Runtime

RUNTIME = Runtime(kernels=Kernels({"rasterize": "warp", "closest_point": "warp"}))
GLTF_VARIANTS = {
    "plain": GltfSettings(),
    "png": GltfSettings(texture_format="png"),
    "jpeg": GltfSettings(texture_format="jpeg"),
    "quantized": GltfSettings(quantize=True),
    "draco": GltfSettings(draco=True),
}


@pytest.fixture(scope="module")
def levels() -> list[Asset]:
    """One shape in three levels of detail, with all maps a material can have."""
    wanted = [ExportSettings(faces=1500 // 4**n, texture_size=64 // 2**n) for n in range(3)]
    made = dict(build_assets(dual_grid(torus(), 24), wanted, runtime=RUNTIME, extras={"seed": 3}))
    return [with_maps(made[number]) for number in range(3)]


def with_maps(asset: Asset) -> Asset:
    side = len(asset.material.base_color)
    flat = torch.tensor([128, 128, 255], dtype=torch.uint8).expand(side, side, 3).clone()
    light = torch.full((side, side), 200, dtype=torch.uint8)
    return replace(asset, material=replace(asset.material, normal=flat, occlusion=light))


def triangle(**parts) -> Asset:
    corners = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.25, 0.125]])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2]], dtype=torch.int32), **parts)
    return Asset(
        mesh,
        Material(torch.full((4, 4, 4), 255, dtype=torch.uint8), torch.zeros(4, 4, 3).byte()),
        QualityReport({}),
    )


def document_of(path) -> dict:
    data = path.read_bytes()
    length, _ = struct.unpack_from("<I4s", data, 12)
    return json.loads(data[20 : 20 + length])


def parts_of(path) -> trimesh.Trimesh:
    (part,) = trimesh.load_scene(path).dump()
    assert isinstance(part, trimesh.Trimesh)
    return part


# --- glTF ---


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
@pytest.mark.parametrize("name", sorted(GLTF_VARIANTS))
@pytest.mark.parametrize("count", [1, 3])
def test_the_validator_finds_nothing_in_any_variant(levels, tmp_path, suffix, name, count):
    path = save_asset(levels[0], tmp_path / f"my chair{suffix}", GLTF_VARIANTS[name], levels[1:count])
    assert complaints(path) == []


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-6), ("quantized", 1e-5), ("draco", 5e-5)])
def test_vertices_are_the_same_within_the_precision_of_the_variant(levels, tmp_path, suffix, name, tolerance):
    asset = levels[0]
    read = parts_of(save_asset(asset, tmp_path / f"a{suffix}", GLTF_VARIANTS[name]))
    assert len(read.faces) == len(asset.mesh.faces)
    own = to_y_up(asset.mesh.vertices[asset.mesh.faces.long()].mean(1)).numpy()
    found = read.vertices[read.faces].mean(1)
    if name == "draco":  # triangles come in another order
        own, found = np.sort(own, axis=0), np.sort(found, axis=0)
    assert np.allclose(own, found, atol=tolerance)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
@pytest.mark.parametrize("name", ["plain", "quantized"])
def test_our_reader_understands_small_integers(levels, tmp_path, suffix, name):
    asset = levels[0]
    read = read_mesh(save_asset(asset, tmp_path / f"a{suffix}", GLTF_VARIANTS[name])).mesh
    assert torch.allclose(read.uvs, asset.mesh.uvs, atol=1e-5)
    assert torch.allclose(read.vertices, asset.mesh.vertices, atol=1e-5)


def test_compression_makes_files_smaller(levels, tmp_path):
    size = {
        name: save_asset(levels[0], tmp_path / f"{name}.glb", variant).stat().st_size
        for name, variant in GLTF_VARIANTS.items()
    }
    assert size["draco"] < size["quantized"] < size["plain"]


def test_quantisation_and_draco_exclude_each_other():
    with pytest.raises(UsageError) as error:
        GltfSettings(quantize=True, draco=True)
    assert "--draco" in error.value.hint


def test_levels_of_detail_are_alternatives_of_the_first_node(levels, tmp_path):
    document = document_of(save_asset(levels[0], tmp_path / "a.glb", None, levels[1:]))
    assert document["scenes"][0]["nodes"] == [0]
    assert document["nodes"][0]["extensions"]["MSFT_lod"]["ids"] == [1, 2]
    shares = document["nodes"][0]["extras"]["MSFT_screencoverage"]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    counts = []
    for mesh in document["meshes"]:
        indices = mesh["primitives"][0]["indices"]
        counts.append(document["accessors"][indices]["count"] // 3)
    assert counts == [len(level.mesh.faces) for level in levels]
    assert "MSFT_lod" not in document.get("extensionsRequired", [])


def test_other_formats_hold_one_level(levels, tmp_path):
    with pytest.raises(OutputError, match="one level"):
        save_asset(levels[0], tmp_path / "a.obj", None, levels[1:])


def test_a_material_points_at_its_maps(levels, tmp_path):
    document = document_of(save_asset(levels[0], tmp_path / "a.glb"))
    material, images = document["materials"][0], [image["name"] for image in document["images"]]
    assert images == ["base_color", "metallic_roughness", "normal"]
    assert material["normalTexture"] == {"index": 2}
    assert material["occlusionTexture"] == material["pbrMetallicRoughness"]["metallicRoughnessTexture"]
    surface = np.array(parts_of(tmp_path / "a.glb").visual.material.metallicRoughnessTexture)
    assert (surface[..., 0] == 200).all()


def test_jpeg_is_for_colors_only_and_never_for_transparent_ones(levels, tmp_path):
    def kinds(asset):
        document = document_of(save_asset(asset, tmp_path / "a.glb", GLTF_VARIANTS["jpeg"]))
        return [image["mimeType"] for image in document["images"]]

    asset = levels[0]
    assert kinds(asset) == ["image/jpeg", "image/png", "image/png"]
    glass = asset.material.base_color.clone()
    glass[..., 3] = 99
    assert kinds(replace(asset, material=replace(asset.material, base_color=glass)))[0] == "image/png"


def test_a_mesh_without_texture_coordinates_has_a_color_and_no_texture(tmp_path):
    for name, variant in GLTF_VARIANTS.items():
        path = save_asset(triangle(), tmp_path / f"{name}.glb", variant)
        assert complaints(path) == []
        assert "images" not in document_of(path)


@pytest.mark.parametrize("name", ["plain", "quantized", "draco"])
def test_vertex_colors_are_linear_in_gltf(tmp_path, name):
    colors = torch.tensor([[255, 0, 0, 255], [0, 188, 0, 255], [0, 0, 0, 255]], dtype=torch.uint8)
    path = save_asset(triangle(colors=colors), tmp_path / "a.glb", GLTF_VARIANTS[name])
    assert "COLOR_0" in document_of(path)["meshes"][0]["primitives"][0]["attributes"]
    if name == "plain":
        values = np.frombuffer(path.read_bytes()[-48:], dtype="<f4").reshape(3, 4)
        assert values[1] == pytest.approx([0, ((188 / 255 + 0.055) / 1.055) ** 2.4, 0, 1], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40), st.floats(1e-3, 1e3))
def test_quantised_positions_are_off_by_less_than_a_step(tmp_path_factory, seed, count, scale):
    generator = torch.Generator().manual_seed(seed)
    vertices = (torch.rand(count, 3, generator=generator) - 0.3) * scale
    faces = torch.stack([torch.randperm(count, generator=generator)[:3] for _ in range(count)]).int()
    mesh = Mesh(vertices, faces, uvs=torch.rand(count, 2, generator=generator))
    asset = replace(triangle(), mesh=mesh)
    path = save_asset(asset, tmp_path_factory.mktemp("q") / "a.glb", GLTF_VARIANTS["quantized"])
    read = read_mesh(path).mesh
    path.unlink()
    step = float((vertices.amax(0) - vertices.amin(0)).max()) / 65535
    assert torch.equal(read.faces, faces)
    assert float((read.vertices - vertices).abs().max()) <= 0.51 * step + 1e-6 * scale
    assert float((read.uvs - mesh.uvs).abs().max()) < 1e-5


# --- files that belong together ---


def test_no_file_of_several_is_replaced_when_one_cannot_be_written(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")

    def broken():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"b\.gltf"):
        files.write_files([(tmp_path / "a.bin", [b"new"]), (tmp_path / "b.gltf", broken())])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_gltf_names_files_that_exist(levels, tmp_path):
    path = save_asset(levels[0], tmp_path / "my chair.gltf")
    document = json.loads(path.read_text())
    names = [entry["uri"] for entry in (*document["buffers"], *document["images"])]
    assert len(names) == 4
    assert all((tmp_path / name).is_file() for name in names)
    assert not any(" " in name for name in names)


# --- 3MF ---

CORE = "{http://schemas.microsoft.com/3dmanufacturing/core/2015/02}"
MORE = "{http://schemas.microsoft.com/3dmanufacturing/material/2015/02}"


def model_of(path) -> ElementTree.Element:
    with zipfile.ZipFile(path) as archive:
        return ElementTree.fromstring(archive.read("3D/3dmodel.model"))


def test_3mf_is_a_closed_textured_solid_in_millimeters(levels, tmp_path):
    asset = replace(levels[0], unit_mm=80.0)
    path = save_asset(asset, tmp_path / "a.3mf")
    model = model_of(path)
    assert model.get("unit") == "millimeter"
    points = np.array([[float(v.get(axis)) for axis in "xyz"] for v in model.iter(f"{CORE}vertex")])
    corners = np.array([[int(t.get(f"v{n}")) for n in (1, 2, 3)] for t in model.iter(f"{CORE}triangle")])
    coords = [(float(c.get("u")), float(c.get("v"))) for c in model.iter(f"{MORE}tex2coord")]
    texels = np.array([[int(t.get(f"p{n}")) for n in (1, 2, 3)] for t in model.iter(f"{CORE}triangle")])
    solid = trimesh.Trimesh(points, corners, process=False)
    assert solid.is_watertight
    assert len(solid.faces) == len(asset.mesh.faces)
    faces = asset.mesh.faces.long()
    assert np.allclose(points[corners], asset.mesh.vertices[faces].numpy() * 80, atol=1e-4)
    own = asset.mesh.uvs[faces].numpy()
    assert np.allclose(np.array(coords)[texels], np.stack([own[..., 0], 1 - own[..., 1]], -1), atol=1e-6)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        texture = model.find(f".//{MORE}texture2d").get("path")
        with Image.open(archive.open(texture.lstrip("/"))) as image:
            assert np.array_equal(np.array(image), asset.material.base_color[..., :3].numpy())


def test_an_independent_reader_opens_3mf(levels, tmp_path):
    part = parts_of(save_asset(replace(levels[0], unit_mm=80.0), tmp_path / "a.3mf"))
    assert part.is_watertight
    assert len(part.faces) == len(levels[0].mesh.faces)


def test_3mf_has_vertex_colors_without_a_texture(tmp_path):
    colors = torch.tensor([[255, 0, 0, 255], [0, 188, 0, 255], [255, 0, 0, 255]], dtype=torch.uint8)
    model = model_of(save_asset(triangle(colors=colors), tmp_path / "a.3mf"))
    assert [c.get("color") for c in model.iter(f"{MORE}color")] == ["#00BC00FF", "#FF0000FF"]
    (face,) = model.iter(f"{CORE}triangle")
    assert sorted(face.get(f"p{n}") for n in (1, 2, 3)) == ["0", "1", "1"]


# --- USDZ ---


def test_usdz_is_read_by_pixars_library(levels, tmp_path):
    usd = pytest.importorskip("pxr.Usd", reason="usd-core is not installed")
    from pxr import UsdGeom, UsdShade

    asset = levels[0]
    path = save_asset(asset, tmp_path / "my chair.usdz")
    stage = usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/asset/mesh"))
    assert np.allclose(np.array(mesh.GetPointsAttr().Get()), to_y_up(asset.mesh.vertices), atol=1e-6)
    indices = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    assert np.array_equal(indices, asset.mesh.faces.numpy())
    st = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get())
    assert np.allclose(np.stack([st[:, 0], 1 - st[:, 1]], 1), asset.mesh.uvs, atol=1e-6)
    material, _ = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()
    surface = UsdShade.Shader(material.GetPrim().GetChild("surface"))
    names = {each.GetBaseName() for each in surface.GetInputs()}
    assert names == {"diffuseColor", "roughness", "metallic", "occlusion", "normal"}
    assert json.loads(stage.GetDefaultPrim().GetCustomDataByKey("trellis"))["seed"] == 3


def test_usdz_passes_the_checks_of_pixars_validators(levels, tmp_path):
    validation = pytest.importorskip("pxr.UsdValidation", reason="usd-core is not installed")
    from pxr import Usd

    stage = Usd.Stage.Open(str(save_asset(levels[0], tmp_path / "a.usdz")))
    registry = validation.ValidationRegistry()
    validators = registry.GetOrLoadAllValidators()
    assert len(validators) > 10
    found = validation.ValidationContext(validators).Validate(stage)
    assert [error.GetErrorAsString() for error in found] == []


def test_usdz_is_not_compressed_and_every_file_starts_at_a_multiple_of_64(levels, tmp_path):
    path = save_asset(levels[0], tmp_path / "a.usdz")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].filename.endswith(".usdc")
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
            assert entry.compress_type == zipfile.ZIP_STORED


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=6), st.sampled_from([1, 4, 64]), st.booleans())
def test_zip_files_are_aligned_readable_and_always_the_same(contents, align, compress):
    files = {f"name{number}": content for number, content in enumerate(contents)}
    data = zip_files(files, compress=compress, align=align)
    assert data == zip_files(files, compress=compress, align=align)
    from io import BytesIO

    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert archive.read(entry) == files[entry.filename]
            name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % align == 0


# --- all of them ---


@pytest.mark.parametrize(("suffix", "unit"), [(".glb", 0.001), (".obj", 0.001), (".stl", 1), (".ply", 1)])
def test_a_known_size_is_written_in_the_unit_of_the_format(levels, tmp_path, suffix, unit):
    read = parts_of(save_asset(replace(levels[0], unit_mm=80.0), tmp_path / f"a{suffix}"))
    extent = levels[0].mesh.vertices.amax(0) - levels[0].mesh.vertices.amin(0)
    assert max(read.extents) == pytest.approx(float(extent.max()) * 80 * unit, rel=1e-5)


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_the_same_asset_gives_the_same_file(levels, tmp_path, suffix):
    if suffix == ".usdz":
        pytest.importorskip("pxr.Usd", reason="usd-core is not installed")
    one, two = (save_asset(levels[0], tmp_path / name / f"a{suffix}") for name in "xy")
    assert one.read_bytes() == two.read_bytes()


def test_a_reader_sees_the_colors_of_ply_vertices(levels, tmp_path):
    read = trimesh.load_mesh(save_asset(levels[0], tmp_path / "a.ply"), process=False)
    assert read.visual.kind == "vertex"
    column, row = (levels[0].mesh.uvs * 64).long().clamp(0, 63).unbind(1)
    assert np.array_equal(read.visual.vertex_colors, levels[0].material.base_color[row, column].numpy())


def test_obj_has_vertex_colors_without_a_texture(tmp_path):
    colors = torch.tensor([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]], dtype=torch.uint8)
    path = save_asset(triangle(colors=colors), tmp_path / "a.obj")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.obj"]
    assert np.array_equal(parts_of(path).visual.vertex_colors, colors.numpy())


def test_tangents_point_along_u_and_bitangents_up_in_the_picture():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    up = torch.tensor([[0.0, 0, 1]]).expand(4, 3)
    plain = torch.stack([corners[:, 0], 1 - corners[:, 1]], 1)  # v is down
    for uvs, sign in ((plain, 1.0), (plain * torch.tensor([-1.0, 1]), -1.0)):
        _, tangents = with_tangents(Mesh(corners, faces, uvs, up))
        assert torch.allclose(tangents[:, :3], torch.tensor([sign, 0, 0]).expand(4, 3), atol=1e-6)
        bitangent = torch.linalg.cross(up, tangents[:, :3]) * tangents[:, 3:]
        assert torch.allclose(bitangent, torch.tensor([0.0, 1, 0]).expand(4, 3), atol=1e-6)
