"""Wavefront OBJ with MTL and PNG textures; y up, texture origin bottom left."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trellis_core.geometry.types import Asset
from trellis_core.io.files import write_file
from trellis_core.io.gltf import encode_image, to_y_up


def write_obj(asset: Asset, path: Path) -> None:
    """Write `NAME.obj`, `NAME.mtl` and `NAME_*.png`; the OBJ comes last, so that what it names exists."""
    path = Path(path)
    material = asset.material
    rough, metal = material.metallic_roughness[..., 1:2], material.metallic_roughness[..., 2:3]
    images = {"base_color": material.base_color[..., :3], "roughness": grey(rough), "metallic": grey(metal)}
    if material.alpha_mode != "OPAQUE":
        images["alpha"] = grey(material.base_color[..., 3:4])
    names = {name: f"{path.stem}_{name}.png".replace(" ", "_") for name in images}
    for name, image in images.items():
        write_file(path.with_name(names[name]), [encode_image(image, "png")])

    library = path.with_suffix(".mtl").name.replace(" ", "_")
    lines = [
        "newmtl material",
        "Kd 1 1 1",
        "Ks 0 0 0",
        f"map_Kd {names['base_color']}",
        f"map_Pr {names['roughness']}",
        f"map_Pm {names['metallic']}",
    ]
    if "alpha" in names:
        lines.append(f"map_d {names['alpha']}")
    write_file(path.with_name(library), ["\n".join(lines).encode() + b"\n"])
    write_file(path, [obj_text(asset, library).encode()])


def grey(channel: Tensor) -> Tensor:
    return channel.expand(-1, -1, 3)


def obj_text(asset: Asset, library: str) -> str:
    mesh = asset.mesh
    lines = ["# trellis", f"mtllib {library}", "o asset", "usemtl material"]
    lines += ["v %.7g %.7g %.7g" % tuple(row) for row in to_y_up(mesh.vertices).tolist()]  # noqa: UP031 (fast)
    if mesh.uvs is not None:
        lines += ["vt %.7g %.7g" % (u, 1 - v) for u, v in mesh.uvs.tolist()]  # noqa: UP031
    if mesh.normals is not None:
        lines += ["vn %.5g %.5g %.5g" % tuple(row) for row in to_y_up(mesh.normals).tolist()]  # noqa: UP031
    corner = {
        (False, False): "{0}",
        (True, False): "{0}/{0}",
        (False, True): "{0}//{0}",
        (True, True): "{0}/{0}/{0}",
    }[mesh.uvs is not None, mesh.normals is not None]
    face = "f " + " ".join(corner.replace("0", str(n)) for n in range(3))
    lines += [face.format(a, b, c) for a, b, c in (mesh.faces.long() + 1).tolist()]
    return "\n".join(lines) + "\n"
