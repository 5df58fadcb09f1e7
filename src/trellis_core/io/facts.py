"""What a mesh file says about itself: its format, unit, materials, textures and where it comes from.

Reads headers and tables, never geometry. Texture sizes are read off the pictures' own headers. Every reader
returns a dictionary of JSON types with the keys `format` and `unit`, and where the file says so `generator`,
`extensions`, `materials`, `textures`, `extras`, `missing`.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from trellis_core.errors import InputError

Facts = dict[str, Any]

HEADER = 1 << 16  # bytes of a text file that are looked at
LONGEST_TABLE = 1 << 28  # bytes of a glTF document
METRES, MILLIMETRES = "m", "mm"
SLOTS: Mapping[str, str] = {  # of glTF materials
    "baseColorTexture": "base color",
    "metallicRoughnessTexture": "metallic and roughness",
    "normalTexture": "normal",
    "occlusionTexture": "occlusion",
    "emissiveTexture": "emission",
    "diffuseTexture": "base color",
    "specularGlossinessTexture": "specular and glossiness",
}
MTL_SLOTS: Mapping[str, str] = {
    "map_kd": "base color",
    "map_pr": "roughness",
    "map_pm": "metallic",
    "map_d": "alpha",
    "map_ke": "emission",
    "norm": "normal",
    "map_bump": "bump",
    "bump": "bump",
}
USD_SLOTS: Mapping[str, str] = {"diffuseColor": "base color", "emissiveColor": "emission"}
UNITS: Mapping[str, str] = {
    "millimeter": MILLIMETRES,
    "meter": METRES,
    "centimeter": "cm",
    "inch": "in",
    "foot": "ft",
    "micron": "µm",
}


def file_facts(path: Path) -> Facts:
    """Facts by name. Raises `InputError` for a damaged file."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"cannot read `{path.name}`: unknown mesh format `{path.suffix}`",
            hint=f"use one of: {', '.join(READERS)}",
        )
    try:
        return {"bytes": path.stat().st_size, **reader(path)}
    except DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"`{path.name}` is damaged: {said}", hint="export it again, or download it again"
        ) from error


# --- glTF ----------------------------------------------------------------------------------------------


def glb_facts(path: Path) -> Facts:
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            raise ValueError("it does not begin as a GLB does")
        _, version, length, size, kind = struct.unpack("<4sIII4s", head)
        if version != 2:
            raise InputError(f"`{path.name}` is glTF {version}; glTF 2.0 is read", hint="convert it first")
        if path.stat().st_size < length:
            raise ValueError(f"it is cut off, {path.stat().st_size:,} of {length:,} bytes are there")
        if kind != b"JSON" or size > LONGEST_TABLE:
            raise ValueError("it has no JSON chunk")
        document = json.loads(file.read(size))
        file.seek(12 + 8 + size)
        chunk = file.read(8)
        binary = file.tell() if len(chunk) == 8 else None

        def content(view: Mapping[str, Any]) -> bytes:
            if binary is None or view.get("buffer", 0) != 0:
                return b""
            file.seek(binary + view.get("byteOffset", 0))
            return file.read(view["byteLength"])

        return {"format": "GLB (glTF 2.0)", **document_facts(document, path, content)}


def gltf_facts(path: Path) -> Facts:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or "asset" not in document:
        raise ValueError("it is no glTF document")

    def content(view: Mapping[str, Any]) -> bytes:
        uri = document["buffers"][view.get("buffer", 0)].get("uri", "")
        if not uri or uri.startswith("data:") or not beside(path, uri).is_file():
            return b""
        with beside(path, uri).open("rb") as file:
            file.seek(view.get("byteOffset", 0))
            return file.read(view["byteLength"])

    facts = {"format": "glTF 2.0, separate files", **document_facts(document, path, content)}
    uris = [entry.get("uri", "") for kind in ("buffers", "images") for entry in document.get(kind, ())]
    missing = [uri for uri in uris if uri and not uri.startswith("data:") and not beside(path, uri).is_file()]
    return {**facts, **({"missing": missing} if missing else {})}


def document_facts(
    document: Mapping[str, Any], path: Path, content: Callable[[Mapping[str, Any]], bytes]
) -> Facts:
    asset = document["asset"]
    facts: Facts = {"unit": METRES, "generator": asset.get("generator")}
    facts["extensions"] = list(document.get("extensionsUsed", ()))
    facts["extensions_required"] = list(document.get("extensionsRequired", ()))
    materials = document.get("materials", ())
    facts["materials"] = [
        {
            "name": material.get("name", ""),
            "alpha_mode": material.get("alphaMode", "OPAQUE"),
            "double_sided": material.get("doubleSided", False),
        }
        for material in materials
    ]
    used: dict[int, list[str]] = {}
    for material in materials:
        for slot, entry in texture_slots(material):
            uses = used.setdefault(image_of(document["textures"][entry["index"]]), [])
            if SLOTS[slot] not in uses:
                uses.append(SLOTS[slot])
    facts["textures"] = [
        {"use": used.get(number, []), **image_facts(document, image, path, content)}
        for number, image in enumerate(document.get("images", ()))
    ]
    facts["meshes"] = len(document.get("meshes", ()))
    levels = [level_faces(document, node) for node in level_nodes(document)]
    if levels:
        facts["levels_of_detail"] = levels
    for name in ("animations", "skins", "cameras"):
        if document.get(name):
            facts[name] = len(document[name])
    if asset.get("extras"):
        facts["extras"] = asset["extras"]
    return facts


def level_nodes(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Nodes of MSFT_lod, from fine to coarse; none without."""
    nodes = document.get("nodes", ())
    for node in nodes:
        found = node.get("extensions", {}).get("MSFT_lod")
        if found:
            return [node, *[nodes[number] for number in found["ids"]]]
    return []


def level_faces(document: Mapping[str, Any], node: Mapping[str, Any]) -> int:
    primitives = document["meshes"][node["mesh"]]["primitives"] if "mesh" in node else ()
    accessors = [p.get("indices", p["attributes"]["POSITION"]) for p in primitives]
    return sum(document["accessors"][number]["count"] for number in accessors) // 3


def texture_slots(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Everything in a material, extensions too, that names a texture."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    if not isinstance(value, dict):
        return found
    for name, entry in value.items():
        if name in SLOTS and isinstance(entry, dict) and "index" in entry:
            found.append((name, entry))
        else:
            found += texture_slots(entry)
    return found


def image_of(texture: Mapping[str, Any]) -> int:
    """The image that a viewer with the extensions shows."""
    for extension in texture.get("extensions", {}).values():
        if "source" in extension:
            return int(extension["source"])
    return int(texture.get("source", -1))


def image_facts(
    document: Mapping[str, Any],
    image: Mapping[str, Any],
    path: Path,
    content: Callable[[Mapping[str, Any]], bytes],
) -> Facts:
    data = b""
    uri = image.get("uri", "")
    if "bufferView" in image:
        data = content(document["bufferViews"][image["bufferView"]])
    elif uri and not uri.startswith("data:") and beside(path, uri).is_file():
        data = beside(path, uri).read_bytes()
    elif uri.startswith("data:"):
        from base64 import b64decode

        data = b64decode(uri.partition(",")[2])
    kind = image.get("mimeType", "").removeprefix("image/")
    return {"name": image.get("name", ""), **picture_facts(data, kind)}


def picture_facts(data: bytes, kind: str = "") -> Facts:
    """Size and kind of an encoded picture, from its first bytes."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as picture:
            width, height = picture.size
            return {
                "width": width,
                "height": height,
                "kind": str(picture.format).lower(),
                "bytes": len(data),
            }
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError):  # KTX2, or not there
        return {"width": None, "height": None, "kind": kind, "bytes": len(data)}


def beside(path: Path, uri: str) -> Path:
    return path.parent / unquote(uri)


# --- the others ----------------------------------------------------------------------------------------


def obj_facts(path: Path) -> Facts:
    with path.open("rb") as file:
        head = file.read(HEADER).decode("utf-8", errors="replace").splitlines()
    comments = [line[1:].strip() for line in head if line.startswith("#")]
    libraries = [line.partition(" ")[2].strip() for line in head if line.startswith("mtllib ")]
    facts: Facts = {"format": "Wavefront OBJ", "unit": None, "materials": [], "textures": []}
    if comments:
        facts["generator"] = comments[0][:80]
    missing = [name for name in libraries if not (path.parent / name).is_file()]
    for name in libraries:
        if name not in missing:
            read_mtl(path.parent / name, facts, missing)
    return {**facts, **({"missing": missing} if missing else {})}


def read_mtl(path: Path, facts: Facts, missing: list[str]) -> None:
    uses: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            facts["materials"].append({"name": rest.strip(), "alpha_mode": "OPAQUE", "double_sided": False})
        elif word.lower() in MTL_SLOTS and rest.strip():
            use = MTL_SLOTS[word.lower()]
            if use == "alpha" and facts["materials"]:
                facts["materials"][-1]["alpha_mode"] = "BLEND"
            uses.setdefault(rest.strip().replace("\\", "/"), []).append(use)
    for name, named_uses in uses.items():
        place = path.parent / name
        if not place.is_file():
            place = path.parent / name.split()[-1]  # options may stand before the name
        if place.is_file():
            facts["textures"].append(
                {
                    "use": list(dict.fromkeys(named_uses)),
                    "name": place.name,
                    **picture_facts(place.read_bytes()),
                }
            )
        else:
            missing.append(name)


def ply_facts(path: Path) -> Facts:
    with path.open("rb") as file:
        head = file.read(HEADER)
    if not head.startswith(b"ply"):
        raise ValueError("it does not begin as a PLY does")
    lines = head.partition(b"end_header")[0].decode("ascii", errors="replace").splitlines()
    columns = [line.split()[-1] for line in lines if line.startswith("property ")]
    form = next((line.split()[1] for line in lines if line.startswith("format ")), "of unknown form")
    facts: Facts = {"format": f"PLY, {form.replace('_', ' ')}", "unit": None}
    comments = [line.partition(" ")[2] for line in lines if line.startswith("comment ")]
    if comments:
        facts["generator"] = comments[0][:80]
    return {**facts, "vertex_colors": "red" in columns}


def stl_facts(path: Path) -> Facts:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(84)
    count = struct.unpack("<I", head[80:84])[0] if len(head) == 84 else -1
    if 84 + 50 * count == size:
        return {"format": "STL, binary", "unit": MILLIMETRES, "unit_is_custom": True}
    if not head.lstrip().lower().startswith(b"solid"):
        raise ValueError(f"its size does not fit {max(count, 0):,} triangles")
    return {"format": "STL, text", "unit": MILLIMETRES, "unit_is_custom": True}


def off_facts(path: Path) -> Facts:
    return {"format": "OFF", "unit": None}


def threemf_facts(path: Path) -> Facts:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.lower().endswith(".model"))
            with archive.open(name) as file:
                _, root = next(ElementTree.iterparse(file, events=("start",)))
                unit = UNITS.get(root.get("unit", "millimeter"), root.get("unit"))
            textures = [
                {"use": ["color"], "name": Path(n).name, **picture_facts(archive.read(n))}
                for n in archive.namelist()
                if n.lower().endswith((".png", ".jpg", ".jpeg"))
            ]
    except (zipfile.BadZipFile, StopIteration, ElementTree.ParseError) as error:
        raise ValueError("it is no 3MF package") from error
    return {"format": "3MF", "unit": unit, "textures": textures}


def usdz_facts(path: Path) -> Facts:
    """Of the stage, read with `usd-core`; geometry is read in meters, whatever the file counts in."""
    from trellis_core.io.usd_scene import open_stage

    stage = open_stage(path)
    from pxr import Usd, UsdShade

    facts: Facts = {"format": "USDZ", "unit": METRES, "materials": []}
    uses: dict[str, list[str]] = {}
    for prim in Usd.PrimRange(stage.GetPseudoRoot(), Usd.TraverseInstanceProxies()):
        bound = UsdShade.Material(prim)
        source = bound.ComputeSurfaceSource() if bound else None
        surface = source[0] if isinstance(source, tuple) else source
        if not surface:
            continue
        alpha = "OPAQUE"
        for given in surface.GetInputs():
            for attribute in UsdShade.Utils.GetValueProducingAttributes(given):
                file = UsdShade.Shader(attribute.GetPrim()).GetInput("file")
                opacity = given.GetBaseName() == "opacity"
                if opacity and (file or float(attribute.Get() or 0) < 1):
                    threshold = surface.GetInput("opacityThreshold")
                    alpha = "MASK" if threshold and float(threshold.Get() or 0) > 0 else "BLEND"
                if file and file.Get():
                    names = uses.setdefault(str(file.Get().path), [])
                    names.append(USD_SLOTS.get(given.GetBaseName(), given.GetBaseName()))
        name = str(prim.GetName())
        facts["materials"].append({"name": name, "alpha_mode": alpha, "double_sided": False})
    with zipfile.ZipFile(path) as archive:
        facts["textures"] = [
            {"use": list(dict.fromkeys(names)), "name": Path(name).name, **picture_facts(archive.read(name))}
            for name, names in uses.items()
            if name in archive.namelist()
        ]
        missing = [name for name in uses if name not in archive.namelist()]
    first = stage.GetDefaultPrim()
    ours = first.GetCustomDataByKey("trellis") if first else None
    if isinstance(ours, str):
        facts |= {"generator": "trellis", "extras": json.loads(ours)}
    return {**facts, **({"missing": missing} if missing else {})}


DAMAGE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError),
    *(RecursionError, struct.error, zlib.error, zipfile.BadZipFile),
)
READERS: Mapping[str, Callable[[Path], Facts]] = {
    ".glb": glb_facts,
    ".gltf": gltf_facts,
    ".obj": obj_facts,
    ".stl": stl_facts,
    ".ply": ply_facts,
    ".off": off_facts,
    ".3mf": threemf_facts,
    ".usdz": usdz_facts,
}
