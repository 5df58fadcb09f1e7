"""Reading USDZ: our own files, and what other programs put into theirs.

Properties: our file says again what it was written from; other axes, units, transforms, polygons, windings
and several materials come out in our frame; hidden things stay out; without the package, or of a damaged
file, there is one error that says what to do.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from tests.bumps import ball
from trellis_core.errors import InputError
from trellis_core.geometry.types import Asset, Material, Mesh, QualityReport
from trellis_core.io import save_asset
from trellis_core.io.facts import file_facts
from trellis_core.io.inspect import read_raw
from trellis_core.io.meshes import read_mesh
from trellis_core.io.package import zip_files
from trellis_core.render.surface import PaintedMesh
from trellis_core.training.ingest.painted import read_painted


def asset(alpha_mode: str = "OPAQUE", *, textured: bool = True) -> Asset:
    generator = torch.Generator().manual_seed(3)
    color = torch.randint(0, 256, (16, 16, 4), generator=generator, dtype=torch.uint8)
    color[..., 3] = 255 if alpha_mode == "OPAQUE" else color[..., 3]
    rough = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    mesh = ball(3) if textured else Mesh(ball(3).vertices, ball(3).faces)
    extras = {"seed": 7, "model": "a model"}
    return Asset(mesh, Material(color, rough, alpha_mode, 0.25), QualityReport({}), extras)


def same_triangles(read: Mesh, made: Mesh) -> None:
    torch.testing.assert_close(
        read.vertices[read.faces.long()], made.vertices[made.faces.long()], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("alpha_mode", ["OPAQUE", "MASK", "BLEND"])
def test_our_file_says_what_it_was_written_from(alpha_mode, tmp_path):
    made = asset(alpha_mode)
    read = read_painted(save_asset(made, tmp_path / "a.usdz"))
    assert isinstance(read, PaintedMesh)
    same_triangles(read.mesh, made.mesh)
    assert read.mesh.uvs is not None
    corners = read.mesh.uvs[read.mesh.faces.long()], made.mesh.uvs[made.mesh.faces.long()]
    torch.testing.assert_close(*corners, atol=1e-6, rtol=0)
    normals = read.mesh.normals[read.mesh.faces.long()], made.mesh.normals[made.mesh.faces.long()]
    torch.testing.assert_close(*normals, atol=1e-5, rtol=0)
    (material,) = read.materials
    assert material.alpha_mode == alpha_mode
    assert torch.equal(material.metallic_roughness[..., 1:], made.material.metallic_roughness[..., 1:])
    if alpha_mode != "OPAQUE":  # PNG keeps every texel; opaque colors are JPEG
        assert torch.equal(material.base_color, made.material.base_color)
    if alpha_mode == "MASK":
        assert material.alpha_cutoff == 0.25


def test_every_reader_of_meshes_reads_it(tmp_path):
    made = asset()
    path = save_asset(made, tmp_path / "a.usdz")
    same_triangles(read_mesh(path).mesh, made.mesh)
    assert read_mesh(path).base_color is not None
    raw = read_raw(path)
    same_triangles(raw.mesh, made.mesh)
    assert raw.mesh.normals is not None


def test_the_facts_of_our_file(tmp_path):
    facts = file_facts(save_asset(asset("MASK"), tmp_path / "a.usdz"))
    assert (facts["format"], facts["unit"], facts["generator"]) == ("USDZ", "m", "trellis")
    assert facts["extras"] == {"seed": 7, "model": "a model"}
    assert facts["materials"] == [{"name": "material", "alpha_mode": "MASK", "double_sided": False}]
    uses = {texture["name"]: sorted(texture["use"]) for texture in facts["textures"]}
    assert uses == {
        "base_color.png": ["base color", "opacity"],
        "metallic_roughness.png": ["metallic", "roughness"],
    }
    assert {texture["width"] for texture in facts["textures"]} == {16}


def test_a_mesh_without_a_texture_keeps_its_colors(tmp_path):
    plain = asset(textured=False)
    colors = torch.tensor([200, 100, 50, 255], dtype=torch.uint8).repeat(len(plain.mesh.vertices), 1)
    colored = Asset(Mesh(plain.mesh.vertices, plain.mesh.faces, colors=colors), plain.material, plain.quality)
    read = read_painted(save_asset(colored, tmp_path / "a.usdz"))
    assert isinstance(read, PaintedMesh)
    same_triangles(read.mesh, plain.mesh)
    shown = read.materials[0].base_color.reshape(-1, 4)[: len(plain.mesh.faces), :3].float()
    assert (shown - torch.tensor([200.0, 100, 50])).abs().max() <= 2


# --- files of other programs ---


def foreign(tmp_path: Path, describe: Any, **settings: Any) -> Path:
    """A USDZ with what `describe(stage)` puts there."""
    from pxr import Usd, UsdGeom

    layer = tmp_path / "scene.usda"
    stage = Usd.Stage.CreateNew(str(layer))
    UsdGeom.SetStageUpAxis(stage, settings.get("up", UsdGeom.Tokens.z))
    UsdGeom.SetStageMetersPerUnit(stage, settings.get("unit", 0.01))
    describe(stage)
    stage.GetRootLayer().Save()
    picture = BytesIO()
    Image.new("RGB", (4, 4), (10, 200, 30)).save(picture, "PNG")
    content = {"scene.usda": layer.read_bytes(), "green.png": picture.getvalue()}
    path = tmp_path / "a.usdz"
    path.write_bytes(zip_files(content, compress=False, align=64))
    return path


def quad(stage: Any, name: str = "/quad", **settings: Any) -> Any:
    """A square of 100 units, seen from above, as one polygon."""
    from pxr import UsdGeom

    mesh = UsdGeom.Mesh.Define(stage, name)
    mesh.CreatePointsAttr([(0, 0, 0), (100, 0, 0), (100, 100, 0), (0, 100, 0)])
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr(settings.get("indices", [0, 1, 2, 3]))
    return mesh


def up_of(mesh: Mesh) -> list[float]:
    a, b, c = mesh.vertices[mesh.faces[0].long()]
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=0).round().tolist()


def test_axes_units_and_transforms_end_in_our_frame(tmp_path):
    from pxr import Gf, UsdGeom

    def describe(stage):
        root = UsdGeom.Xform.Define(stage, "/whole")
        root.AddTranslateOp().Set(Gf.Vec3d(0, 0, 50))
        quad(stage, "/whole/quad")

    mesh = read_mesh(foreign(tmp_path, describe)).mesh
    assert len(mesh.faces) == 2
    torch.testing.assert_close(mesh.vertices.amin(0), torch.tensor([0.0, 0, 0.5]))
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([1.0, 1, 0.5]))
    assert up_of(mesh) == [0, 0, 1]


def test_left_handed_polygons_are_turned(tmp_path):
    from pxr import UsdGeom

    def describe(stage):
        quad(stage, indices=[0, 3, 2, 1]).CreateOrientationAttr(UsdGeom.Tokens.leftHanded)

    assert up_of(read_mesh(foreign(tmp_path, describe)).mesh) == [0, 0, 1]


def test_hidden_meshes_and_stand_ins_stay_out(tmp_path):
    from pxr import UsdGeom

    def describe(stage):
        quad(stage)
        quad(stage, "/hidden").CreateVisibilityAttr(UsdGeom.Tokens.invisible)
        quad(stage, "/proxy").CreatePurposeAttr(UsdGeom.Tokens.proxy)

    assert len(read_mesh(foreign(tmp_path, describe)).mesh.faces) == 2


def preview(
    stage: Any, name: str, *, picture: str = "", color: tuple[float, float, float] = (1, 1, 1)
) -> Any:
    """A preview material: a constant color, or a picture placed by the primvar `map1`."""
    from pxr import Sdf, UsdShade

    kinds = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, name)
    surface = UsdShade.Shader.Define(stage, f"{name}/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", kinds.Float).Set(0.25)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    diffuse = surface.CreateInput("diffuseColor", kinds.Color3f)
    if not picture:
        diffuse.Set(color)
        return material
    reader = UsdShade.Shader.Define(stage, f"{name}/reader")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", kinds.String).Set("map1")
    reader.CreateOutput("result", kinds.Float2)
    texture = UsdShade.Shader.Define(stage, f"{name}/texture")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", kinds.Asset).Set(picture)
    texture.CreateInput("st", kinds.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
    texture.CreateOutput("rgb", kinds.Float3)
    diffuse.ConnectToSource(texture.ConnectableAPI(), "rgb")
    return material


def test_each_part_of_a_mesh_has_the_material_it_is_bound_to(tmp_path):
    from pxr import Sdf, UsdGeom, UsdShade

    def describe(stage):
        mesh = quad(stage)
        mesh.GetFaceVertexCountsAttr().Set([3, 3])
        mesh.GetFaceVertexIndicesAttr().Set([0, 1, 2, 0, 2, 3])
        kind = Sdf.ValueTypeNames.TexCoord2fArray
        place = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("map1", kind, UsdGeom.Tokens.faceVarying)
        place.Set([(0, 0), (1, 0), (1, 1), (0, 0), (1, 1), (0, 1)])
        red = preview(stage, "/red", color=(1, 0, 0))
        green = preview(stage, "/green", picture="green.png")
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(red)
        binding = UsdShade.MaterialBindingAPI(mesh)
        subset = binding.CreateMaterialBindSubset("second", [1], "face")
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(green)

    read = read_painted(foreign(tmp_path, describe))
    assert isinstance(read, PaintedMesh)
    colors = [read.materials[owner].base_color[0, 0, :3].tolist() for owner in read.owner.tolist()]
    assert sorted(colors) == [[10, 200, 30], [255, 0, 0]]
    assert {int(m.metallic_roughness[0, 0, 1]) for m in read.materials} == {64}
    mine = read.mesh.faces[colors.index([10, 200, 30])].long()
    expected = read.mesh.vertices[mine][:, :2] * torch.tensor([1.0, -1]) + torch.tensor([0.0, 1])
    torch.testing.assert_close(read.mesh.uvs[mine], expected, atol=1e-6, rtol=0)


# --- what cannot be read ---


def test_without_the_package_one_error_says_what_to_install(tmp_path, monkeypatch):
    path = save_asset(asset(), tmp_path / "a.usdz")
    for name in [name for name in sys.modules if name == "pxr" or name.startswith("pxr.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pxr", None)
    for read in (read_painted, read_mesh, read_raw, file_facts):
        with pytest.raises(InputError, match="usd-core") as refusal:
            read(path)
        assert 'pip install "trellis-cli[usd]"' in (refusal.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_one_error(content, tmp_path):
    path = tmp_path / "a.usdz"
    path.write_bytes(content)
    for read in (read_painted, read_mesh, read_raw, file_facts):
        with pytest.raises(InputError):
            read(path)


def test_a_file_without_meshes_is_one_error(tmp_path):
    path = foreign(tmp_path, lambda stage: None)
    assert "scene.usda" in ZipFile(path).namelist()
    for read in (read_painted, read_mesh, read_raw):
        with pytest.raises(InputError, match="no triangles"):
            read(path)


def test_faces_that_do_not_fit_their_points_are_one_error(tmp_path):
    path = foreign(tmp_path, lambda stage: quad(stage, indices=[0, 1, 2, 9]))
    for read in (read_painted, read_mesh, read_raw):
        with pytest.raises(InputError, match="do not fit"):
            read(path)
