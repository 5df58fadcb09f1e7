"""USDZ: USD with PNG or JPEG textures in an uncompressed zip, as phones and Apple's programs show; y up.

Needs the package `usd-core`, an extra. Files start at multiples of 64 bytes, so that they can be mapped.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from trellis_core.errors import OutputError
from trellis_core.geometry.types import Asset, Material
from trellis_core.io.files import write_file
from trellis_core.io.frame import in_meters, to_y_up
from trellis_core.io.gltf import linear_colors, plain, textures_of
from trellis_core.io.package import zip_files
from trellis_core.io.ply import vertex_colors
from trellis_core.io.textures import SUFFIX, encode_images

INSTALL_HINT = "install it with `pip install 'trellis-cli[usd]'`, or write a `.glb`"
ALIGNMENT = 64


def write_usdz(asset: Asset, path: Path) -> None:
    """Write an asset as USDZ. Raises `OutputError` without the package."""
    try:
        from pxr import Usd
    except ImportError as error:
        raise OutputError(
            "USDZ needs the package `usd-core`, which is not installed", hint=INSTALL_HINT
        ) from error
    images = [] if asset.mesh.uvs is None else textures_of(asset.material)
    wanted = "jpeg" if asset.material.alpha_mode == "OPAQUE" else "png"
    encoded = encode_images(images, wanted)
    names = {image.name: f"textures/{image.name}{SUFFIX[image.kind]}" for image in encoded}
    with tempfile.TemporaryDirectory(prefix="trellis-") as folder:
        layer = Path(folder) / "asset.usdc"
        stage = Usd.Stage.CreateNew(str(layer))
        describe(stage, asset, names)
        stage.GetRootLayer().Save()
        content = {layer.name: layer.read_bytes()}
    content |= {names[image.name]: image.data for image in encoded}
    write_file(Path(path), [zip_files(content, compress=False, align=ALIGNMENT)])


def describe(stage: Any, asset: Asset, names: dict[str, str]) -> None:
    """The scene: /asset, its mesh and its material."""
    from pxr import Gf, Kind, Sdf, Usd, UsdGeom, UsdShade, Vt

    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/asset")
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root.GetPrim()).SetKind(Kind.Tokens.component)
    if asset.facts:
        root.GetPrim().SetCustomDataByKey("trellis", json.dumps(plain(asset.facts)))

    mesh = UsdGeom.Mesh.Define(stage, "/asset/mesh")
    points = to_y_up(in_meters(asset)).contiguous().numpy()
    faces = asset.mesh.faces.cpu().int().contiguous().numpy()
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces.reshape(-1)))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(faces), 3))
    mesh.CreateExtentAttr([Gf.Vec3f(*points.min(0).tolist()), Gf.Vec3f(*points.max(0).tolist())])
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateDoubleSidedAttr(asset.material.double_sided)
    if asset.mesh.normals is not None:
        mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(to_y_up(asset.mesh.normals).contiguous().numpy()))
        mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    variables = UsdGeom.PrimvarsAPI(mesh)
    if asset.mesh.uvs is not None:
        uvs = asset.mesh.uvs.detach().cpu().float()
        from_below = torch.stack([uvs[:, 0], 1 - uvs[:, 1]], dim=1).numpy()
        kind = Sdf.ValueTypeNames.TexCoord2fArray
        variables.CreatePrimvar("st", kind, UsdGeom.Tokens.vertex).Set(Vt.Vec2fArray.FromNumpy(from_below))
    elif (colors := vertex_colors(asset)) is not None:
        linear = linear_colors(colors)[:, :3].contiguous().numpy()
        shown = mesh.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
        shown.Set(Vt.Vec3fArray.FromNumpy(linear))
        return
    material = add_material(stage, asset.material, names)
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


def add_material(stage: Any, material: Material, names: dict[str, str]) -> Any:
    """UsdPreviewSurface, as phones understand it."""
    from pxr import Sdf, UsdShade

    kinds = Sdf.ValueTypeNames
    result = UsdShade.Material.Define(stage, "/asset/material")
    surface = UsdShade.Shader.Define(stage, "/asset/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    result.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    if not names:
        rough, metal = (material.metallic_roughness.float().mean((0, 1)) / 255)[1:].tolist()
        surface.CreateInput("roughness", kinds.Float).Set(rough)
        surface.CreateInput("metallic", kinds.Float).Set(metal)
        color = linear_colors(material.base_color.reshape(-1, 4))[:, :3].mean(0).tolist()
        surface.CreateInput("diffuseColor", kinds.Color3f).Set(tuple(color))
        return result
    reader = UsdShade.Shader.Define(stage, "/asset/material/st")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", kinds.String).Set("st")
    reader.CreateOutput("result", kinds.Float2)

    def texture(name: str, space: str) -> Any:
        shader = UsdShade.Shader.Define(stage, f"/asset/material/{name}")
        shader.CreateIdAttr("UsdUVTexture")
        shader.CreateInput("file", kinds.Asset).Set(Sdf.AssetPath(names[name]))
        shader.CreateInput("sourceColorSpace", kinds.Token).Set(space)
        shader.CreateInput("st", kinds.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        for axis in ("wrapS", "wrapT"):
            shader.CreateInput(axis, kinds.Token).Set("clamp")
        return shader

    def connect(name: str, kind: Any, shader: Any, channel: str) -> None:
        shader.CreateOutput(channel, kinds.Float3 if channel == "rgb" else kinds.Float)
        surface.CreateInput(name, kind).ConnectToSource(shader.ConnectableAPI(), channel)

    color = texture("base_color", "sRGB")
    connect("diffuseColor", kinds.Color3f, color, "rgb")
    if material.alpha_mode != "OPAQUE":
        connect("opacity", kinds.Float, color, "a")
    if material.alpha_mode == "MASK":
        surface.CreateInput("opacityThreshold", kinds.Float).Set(material.alpha_cutoff)
    numbers = texture("metallic_roughness", "raw")
    connect("roughness", kinds.Float, numbers, "g")
    connect("metallic", kinds.Float, numbers, "b")
    if material.occlusion is not None:
        connect("occlusion", kinds.Float, numbers, "r")
    if material.normal is not None:
        bumps = texture("normal", "raw")
        bumps.CreateInput("scale", kinds.Float4).Set((2, 2, 2, 1))
        bumps.CreateInput("bias", kinds.Float4).Set((-1, -1, -1, 0))
        connect("normal", kinds.Normal3f, bumps, "rgb")
    return result
