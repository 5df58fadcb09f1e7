"""Opening USDZ files: meshes with normals, texture coordinates and preview materials, as a trimesh scene.

Turned to y up and scaled to meters, as glTF is. Polygons become fans of triangles. Needs the package
`usd-core`, an extra. Letters: V vertices, F faces, C corners.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trellis_core.errors import InputError

INSTALL_HINT = 'install it with `pip install "trellis-cli[usd]"`, or convert the file to `.glb`'
Z_TO_Y_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
SHOWN = ("default", "render")  # purposes of what is not a stand-in
CHANNEL: Mapping[str, int] = {"r": 0, "g": 1, "b": 2, "a": 3, "rgb": 0, "rgba": 0}


def open_usd(path: Path) -> Any:
    """A `trimesh.Scene`. Raises `InputError` without the package, or for a file that it cannot open."""
    import trimesh

    stage = open_stage(path)
    from pxr import Usd, UsdGeom

    turn = Z_TO_Y_UP if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z else np.eye(4)
    frame = turn * np.array([UsdGeom.GetStageMetersPerUnit(stage)] * 3 + [1.0])[:, None]
    cache, materials = UsdGeom.XformCache(), Materials(path)
    scene = trimesh.Scene()
    for prim in Usd.PrimRange(stage.GetPseudoRoot(), Usd.TraverseInstanceProxies()):
        mesh = UsdGeom.Mesh(prim)
        if not mesh or not is_shown(mesh):
            continue
        place = frame @ np.array(cache.GetLocalToWorldTransform(prim)).T
        for number, part in enumerate(parts_of(mesh, materials)):
            name = f"{prim.GetPath()}-{number}"
            scene.add_geometry(part, node_name=name, geom_name=name, transform=place)
    return scene


def open_stage(path: Path) -> Any:
    """The `Usd.Stage` of a file; raises `InputError`."""
    try:
        from pxr import Tf, Usd
    except ImportError as error:
        raise InputError(
            f"`{path.name}` is read with the package `usd-core`, which is not installed", hint=INSTALL_HINT
        ) from error
    try:
        return Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise InputError(
            f"`{path.name}` is damaged or no USDZ", hint="export it again, or download it again"
        ) from error


def is_shown(mesh: Any) -> bool:
    from pxr import UsdGeom

    return mesh.ComputeVisibility() != UsdGeom.Tokens.invisible and mesh.ComputePurpose() in SHOWN


# --- geometry ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Corners:
    """A triangulated mesh, corner by corner; polygons are numbered as in the file."""

    points: NDArray[np.float32]  # [V, 3]
    vertex: NDArray[np.int64]  # [F, 3]
    corner: NDArray[np.int64]  # [F, 3]  position among the file's corners
    polygon: NDArray[np.int64]  # [F]

    def spread(self, primvar: Any) -> NDArray[np.float32] | None:  # [F, 3, columns]
        """Values of a primvar at the corners of all triangles; None where they do not fit."""
        from pxr import UsdGeom

        flat = primvar.ComputeFlattened() if primvar and primvar.HasValue() else None
        if flat is None:
            return None
        values = np.asarray(flat, np.float32)
        values = values.reshape(len(values), -1)
        tokens = UsdGeom.Tokens
        rows = {
            tokens.vertex: self.vertex,
            tokens.varying: self.vertex,
            tokens.faceVarying: self.corner,
            tokens.uniform: np.repeat(self.polygon[:, None], 3, 1),
            tokens.constant: np.zeros_like(self.vertex),
        }[primvar.GetInterpolation()]
        return values[rows] if len(values) > rows.max(initial=-1) else None


def triangulated(mesh: Any) -> Corners | None:
    """None for a mesh without faces. Raises `InputError` when its faces do not fit its points."""
    from pxr import UsdGeom

    points = np.asarray(mesh.GetPointsAttr().Get() or [], np.float32).reshape(-1, 3)
    counts = np.asarray(mesh.GetFaceVertexCountsAttr().Get() or [], np.int64)
    indices = np.asarray(mesh.GetFaceVertexIndicesAttr().Get() or [], np.int64)
    if not len(counts) or not len(points):
        return None
    fits = counts.min() >= 0 and counts.sum() == len(indices)
    if not fits or indices.min(initial=0) < 0 or indices.max(initial=0) >= len(points):
        raise InputError(f"`{mesh.GetPath()}` has faces that do not fit its points", hint="repair it first")
    fans = np.maximum(counts - 2, 0)
    polygon = np.repeat(np.arange(len(counts)), fans)
    first = (np.cumsum(counts) - counts)[polygon]
    number = np.arange(len(polygon)) - (np.cumsum(fans) - fans)[polygon]
    corner = np.stack([first, first + number + 1, first + number + 2], 1)
    if mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded:
        corner = corner[:, ::-1]
    return Corners(points, indices[corner], corner, polygon)


def parts_of(mesh: Any, materials: Materials) -> Iterator[Any]:
    """A `trimesh.Trimesh` for each material of a mesh."""
    from pxr import UsdGeom, UsdShade

    corners = triangulated(mesh)
    if corners is None:
        return
    variables = UsdGeom.PrimvarsAPI(mesh)
    normals = corners.spread(variables.GetPrimvar("normals"))
    if normals is None and mesh.GetNormalsAttr().HasValue():
        normals = corners.spread(Loose(mesh.GetNormalsAttr().Get(), mesh.GetNormalsInterpolation()))
    colors = corners.spread(mesh.GetDisplayColorPrimvar())
    binding = UsdShade.MaterialBindingAPI(mesh)
    left = np.ones(len(corners.polygon), bool)
    groups = []
    for subset in binding.GetMaterialBindSubsets():
        chosen = np.isin(corners.polygon, np.asarray(subset.GetIndicesAttr().Get() or [], np.int64)) & left
        left &= ~chosen
        groups.append((chosen, UsdShade.MaterialBindingAPI(subset).ComputeBoundMaterial()[0]))
    groups.append((left, binding.ComputeBoundMaterial()[0]))
    for chosen, bound in groups:
        if chosen.any():
            look = materials.of(bound)
            uvs = corners.spread(variables.GetPrimvar(look.uv_name)) if look.uv_name else None
            yield part_of(corners, chosen, normals, uvs, colors, look)


@dataclass(frozen=True, slots=True)
class Loose:
    """Values that are no primvar, but are spread like one."""

    values: Any
    interpolation: str

    def HasValue(self) -> bool:
        return self.values is not None

    def ComputeFlattened(self) -> Any:
        return self.values

    def GetInterpolation(self) -> str:
        return self.interpolation


def part_of(
    corners: Corners,
    chosen: NDArray[np.bool_],  # [F]
    normals: NDArray[np.float32] | None,  # [F, 3, 3]
    uvs: NDArray[np.float32] | None,  # [F, 3, 2]
    colors: NDArray[np.float32] | None,  # [F, 3, 3]
    look: Look,
) -> Any:
    """Triangles with one material; corners that are alike in everything share a vertex."""
    import trimesh

    told = (normals, uvs, colors if look.material is None else None)
    columns: list[NDArray[Any]] = [corners.vertex[chosen].reshape(-1, 1)]
    columns += [values[chosen].reshape(-1, values.shape[2]) for values in told if values is not None]
    _, first, owner = np.unique(np.concatenate(columns, 1), axis=0, return_index=True, return_inverse=True)

    def at(values: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if values is None else values[chosen].reshape(-1, values.shape[2])[first]

    part = trimesh.Trimesh(
        corners.points[corners.vertex[chosen].reshape(-1)[first]],
        owner.reshape(-1, 3),
        vertex_normals=at(normals),
        process=False,
    )
    if look.material is not None:
        part.visual = trimesh.visual.TextureVisuals(uv=at(uvs), material=look.material)
    elif colors is not None:
        shown = np.rint(np.clip(colors, 0, 1)[chosen].reshape(-1, 3)[first] * 255).astype(np.uint8)
        part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=shown)
    return part


# --- materials ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """A material of trimesh, and the primvar that places its textures."""

    material: Any = None
    uv_name: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """An input of a preview surface: a constant, or a channel of a picture."""

    constant: Any
    picture: Image.Image | None = None
    channel: int = 0
    uv_name: str = ""


@dataclass(slots=True)
class Materials:
    """Preview materials of a file, each read once."""

    path: Path
    known: dict[str, Look] = field(default_factory=dict)

    def of(self, bound: Any) -> Look:
        if not bound:
            return Look()
        name = str(bound.GetPath())
        if name not in self.known:
            self.known[name] = self.read(bound)
        return self.known[name]

    def read(self, bound: Any) -> Look:
        from trimesh.visual.material import PBRMaterial

        source = bound.ComputeSurfaceSource()
        surface = source[0] if isinstance(source, tuple) else source
        if not surface or surface.GetIdAttr().Get() != "UsdPreviewSurface":
            return Look()
        color = self.value(surface, "diffuseColor", (0.18, 0.18, 0.18))
        opacity, cutoff = self.value(surface, "opacity", 1.0), self.value(surface, "opacityThreshold", 0.0)
        rough, metal = self.value(surface, "roughness", 0.5), self.value(surface, "metallic", 0.0)
        normal, shade = self.value(surface, "normal", None), self.value(surface, "occlusion", 1.0)
        see_through = opacity.picture is not None or float(opacity.constant) < 1
        tint = [1.0] * 3 if color.picture is not None else [float(x) for x in color.constant]
        alpha = 1.0 if opacity.picture is not None else float(opacity.constant)
        picture = with_alpha(color.picture, opacity)
        surface_picture = joined(rough, metal)
        material = PBRMaterial(
            name=str(bound.GetPrim().GetName()),
            baseColorFactor=[*tint, alpha],
            baseColorTexture=picture,
            roughnessFactor=1.0 if surface_picture is not None else float(rough.constant),
            metallicFactor=1.0 if surface_picture is not None else float(metal.constant),
            metallicRoughnessTexture=surface_picture,
            normalTexture=normal.picture,
            occlusionTexture=None if shade.picture is None else channel_of(shade),
            alphaMode="OPAQUE" if not see_through else "MASK" if float(cutoff.constant) > 0 else "BLEND",
            alphaCutoff=float(cutoff.constant) if float(cutoff.constant) > 0 else None,
        )
        names = [value.uv_name for value in (color, rough, metal, normal, shade, opacity) if value.uv_name]
        return Look(material, names[0] if names else "")

    def value(self, surface: Any, name: str, default: Any) -> Value:
        """An input, followed to the picture or the constant that it comes from."""
        from pxr import UsdShade

        given = surface.GetInput(name)
        found = UsdShade.Utils.GetValueProducingAttributes(given) if given else []
        if not found:
            return Value(default)
        shader = UsdShade.Shader(found[0].GetPrim())
        if not shader or shader.GetIdAttr().Get() != "UsdUVTexture":
            constant = found[0].Get()
            return Value(default if constant is None else constant)
        file = shader.GetInput("file").Get() if shader.GetInput("file") else None
        picture = None if file is None else read_picture(file)
        if picture is None:
            return Value(default)
        channel = CHANNEL.get(found[0].GetBaseName(), 0)
        return Value(default, picture, channel, uv_name_of(shader))


def uv_name_of(texture: Any) -> str:
    """Which primvar places a texture: `st`, unless a reader names another."""
    from pxr import UsdShade

    given = texture.GetInput("st")
    for _ in range(4):  # readers may stand behind a 2D transform
        found = UsdShade.Utils.GetValueProducingAttributes(given) if given else []
        reader = UsdShade.Shader(found[0].GetPrim()) if found else None
        if not reader:
            break
        if reader.GetInput("varname"):
            name = UsdShade.Utils.GetValueProducingAttributes(reader.GetInput("varname"))
            return str(name[0].Get() or "st") if name else "st"
        given = reader.GetInput("in")
    return "st"


def read_picture(file: Any) -> Image.Image | None:
    """The picture an asset path leads to, inside a USDZ or beside a USD; None if it is not there."""
    archive, _, member = str(file.resolvedPath).partition("[")
    if not archive:
        return None
    data = ZipFile(archive).read(member[:-1]) if member else Path(archive).read_bytes()
    picture = Image.open(BytesIO(data))
    picture.load()
    return picture


def channel_of(value: Value) -> Image.Image:
    """The channel of a picture, in shades of gray."""
    assert value.picture is not None
    bands = value.picture.convert("RGBA" if value.channel == 3 else "RGB").split()
    return bands[value.channel]


def with_alpha(color: Image.Image | None, opacity: Value) -> Image.Image | None:
    """A base color picture with the opacity in its alpha."""
    if opacity.picture is None:
        return None if color is None else color.convert("RGB")
    alpha = channel_of(opacity)
    result = Image.new("RGB", alpha.size, "white") if color is None else color.convert("RGB")
    result.putalpha(alpha.resize(result.size))
    return result


def joined(rough: Value, metal: Value) -> Image.Image | None:
    """Roughness and metallic in the green and blue channel of one picture, as glTF has them."""
    sizes = [value.picture.size for value in (rough, metal) if value.picture is not None]
    if not sizes:
        return None
    size = max(sizes)

    def band(value: Value) -> Image.Image:
        if value.picture is not None:
            return channel_of(value).resize(size)
        return Image.new("L", size, round(255 * float(value.constant)))

    return Image.merge("RGB", (Image.new("L", size), band(rough), band(metal)))
