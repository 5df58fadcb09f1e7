"""3MF: zipped XML for printers, z up, in millimeters, with the texture or a color per vertex.

After the 3MF core specification and its materials extension. Vertices at one place are one vertex, so that a
closed surface is closed in the file; texture coordinates belong to the corners of triangles.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import torch

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.frame import PRINT_MM, in_millimeters
from trellis_core.io.package import zip_files
from trellis_core.io.textures import encode_image

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
MATERIALS = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
MODEL, TEXTURE = "3D/3dmodel.model", "3D/Textures/base_color.png"
HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'

CONTENT_TYPES = (
    f'{HEAD}<Types xmlns="{PACKAGE}/content-types">'
    f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>'
    f'<Default Extension="png" ContentType="image/png"/></Types>'
)


def write_3mf(asset: Asset, path: Path) -> None:
    """Write an asset as 3MF. A thing of unknown size is written as if the unit cube were 100 mm."""
    files = {
        "[Content_Types].xml": CONTENT_TYPES.encode(),
        "_rels/.rels": relation(MODEL, "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"),
        MODEL: model_text(asset, Path(path).stem).encode(),
    }
    if asset.mesh.uvs is not None:
        kind = "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dtexture"
        files["3D/_rels/3dmodel.model.rels"] = relation(TEXTURE, kind)
        files[TEXTURE] = encode_image(asset.material.base_color[..., :3], "png")
    write_file(Path(path), [zip_files(files)])


def relation(target: str, kind: str) -> bytes:
    return (
        f'{HEAD}<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Target="/{target}" Id="rel0" Type="{kind}"/></Relationships>'
    ).encode()


def model_text(asset: Asset, name: str) -> str:
    """The XML of the model: resources, one object, one item to build."""
    points = in_millimeters(asset) * (PRINT_MM if asset.unit_mm is None else 1)
    places, place = np.unique(points.numpy(), axis=0, return_inverse=True)
    faces = asset.mesh.faces.cpu().numpy()
    corners = place.reshape(-1)[faces]
    proper = (corners != np.roll(corners, 1, axis=1)).all(1)
    properties, corner_property = property_group(asset)
    lines = [
        f'{HEAD}<model unit="millimeter" xml:lang="en-US" xmlns="{CORE}" xmlns:m="{MATERIALS}">',
        '<metadata name="Application">trellis</metadata>',
        f"<resources>{properties}",
        f'<object id="1" type="model" name={quoteattr(name)}'
        + (' pid="2" pindex="0"' if properties else "")
        + "><mesh><vertices>",
    ]
    lines += ['<vertex x="%.9g" y="%.9g" z="%.9g"/>' % tuple(row) for row in places.tolist()]  # noqa: UP031
    lines.append("</vertices><triangles>")
    if corner_property is None:
        triangle = '<triangle v1="%d" v2="%d" v3="%d"/>'
        rows = corners[proper].tolist()
    else:
        triangle = '<triangle v1="%d" v2="%d" v3="%d" pid="2" p1="%d" p2="%d" p3="%d"/>'
        rows = np.concatenate([corners, corner_property[faces]], axis=1)[proper].tolist()
    lines += [triangle % tuple(row) for row in rows]
    lines.append("</triangles></mesh></object></resources>")
    lines.append('<build><item objectid="1"/></build></model>')
    return "\n".join(lines)


def property_group(asset: Asset) -> tuple[str, np.ndarray | None]:
    """The XML of the texture or the colors (resource 2), and the entry of each vertex [V]; none without."""
    mesh = asset.mesh
    if mesh.uvs is not None:
        uvs = torch.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], dim=1).cpu()  # counted from below
        rows = "".join('<m:tex2coord u="%.7g" v="%.7g"/>' % (u, v) for u, v in uvs.tolist())  # noqa: UP031
        return (
            f'<m:texture2d id="3" path="/{TEXTURE}" contenttype="image/png" tilestyleu="clamp" '
            f'tilestylev="clamp"/><m:texture2dgroup id="2" texid="3">{rows}</m:texture2dgroup>'
        ), np.arange(len(mesh.vertices))
    if mesh.colors is not None:
        values, entry = np.unique(mesh.colors.cpu().numpy(), axis=0, return_inverse=True)
        rows = "".join('<m:color color="#%02X%02X%02X%02X"/>' % tuple(row) for row in values.tolist())  # noqa: UP031
        return f'<m:colorgroup id="2">{rows}</m:colorgroup>', entry.reshape(-1)
    return "", None
