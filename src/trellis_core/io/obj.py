"""Wavefront OBJ with MTL and PNG textures; y up, texture origin bottom left."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trellis_core.geometry.types import Asset
from trellis_core.io.files import File, write_files
from trellis_core.io.frame import in_meters, to_y_up
from trellis_core.io.textures import encode_images


def write_obj(asset: Asset, path: Path) -> None:
    """Write `NAME.obj`, `NAME.mtl` and `NAME_*.png`; the OBJ comes last, so that what it names exists.

    Without texture coordinates there is the OBJ alone, with a color per vertex when the mesh has some.
    """
    path = Path(path)
    if asset.mesh.uvs is None:
        write_files([(path, [obj_text(asset, None).encode()])])
        return
    material = asset.material
    rough, metal = material.metallic_roughness[..., 1:2], material.metallic_roughness[..., 2:3]
    images = {"base_color": material.base_color[..., :3], "roughness": grey(rough), "metallic": grey(metal)}
    if material.alpha_mode != "OPAQUE":
        images["alpha"] = grey(material.base_color[..., 3:4])
    if material.normal is not None:
        images["normal"] = material.normal
    if material.occlusion is not None:
        images["occlusion"] = grey(material.occlusion[..., None])
    names = {name: f"{path.stem}_{name}.png".replace(" ", "_") for name in images}
    encoded = encode_images([(name, image, False) for name, image in images.items()], "png")
    files: list[File] = [(path.with_name(names[image.name]), [image.data]) for image in encoded]

    library = path.with_suffix(".mtl").name.replace(" ", "_")
    lines = [
        "newmtl material",
        "Kd 1 1 1",
        "Ks 0 0 0",
        f"map_Kd {names['base_color']}",
        f"map_Pr {names['roughness']}",
        f"map_Pm {names['metallic']}",
    ]
    for name, statement in {"alpha": "map_d", "normal": "norm", "occlusion": "map_Ka"}.items():
        if name in names:
            lines.append(f"{statement} {names[name]}")
    files.append((path.with_name(library), ["\n".join(lines).encode() + b"\n"]))
    write_files([*files, (path, [obj_text(asset, library).encode()])])


def grey(channel: Tensor) -> Tensor:
    return channel.expand(-1, -1, 3)


def obj_text(asset: Asset, library: str | None) -> str:
    mesh = asset.mesh
    points = to_y_up(in_meters(asset))
    lines = ["# trellis", "o asset"]
    if library is not None:
        lines[1:] = [f"mtllib {library}", "o asset", "usemtl material"]
    if mesh.uvs is None and mesh.colors is not None:
        colors = (mesh.colors[:, :3].cpu().float() / 255).tolist()
        rows = zip(points.tolist(), colors, strict=True)
        lines += ["v %.7g %.7g %.7g %.4g %.4g %.4g" % (*p, *c) for p, c in rows]  # noqa: UP031
    else:
        lines += ["v %.7g %.7g %.7g" % tuple(row) for row in points.tolist()]  # noqa: UP031 (fast)
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
