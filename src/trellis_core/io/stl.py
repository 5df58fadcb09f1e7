"""Binary STL: triangles only, z up, for printing; in millimeters when the size is known."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from trellis_core.geometry.triangles import face_normals
from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.frame import in_millimeters

FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def write_stl(asset: Asset, path: Path) -> None:
    """Write an asset's triangles as binary STL."""
    mesh, vertices = asset.mesh, in_millimeters(asset)
    facets = np.zeros(len(mesh.faces), dtype=FACET)
    facets["normal"] = face_normals(vertices, mesh.faces.cpu()).numpy()
    facets["corners"] = vertices[mesh.faces.long().cpu()].numpy()
    header = b"trellis".ljust(80, b"\0") + struct.pack("<I", len(facets))
    write_file(Path(path), [header, facets.tobytes()])
