"""Assets: baking, the GLB writer, mesh connectivity and repair, simplification, remeshing.

The sidecars describe their tolerances in words, so each kind compares in its own way. Where faces are
compared as sets, a face is its three corner positions.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.parity.case import Case, Check, Kind, compare_tensor
from trellis_core.geometry.bake import (
    average_texels,
    cover_texels,
    move_to_surface,
    sample_texels,
    to_bytes,
)
from trellis_core.geometry.cleanup import (
    component_sizes,
    drop_unused_vertices,
    keep_faces,
    not_degenerate,
    not_duplicate,
    split_vertices,
)
from trellis_core.geometry.connectivity import (
    boundary_loops,
    edges_of,
    face_components,
    number_labels,
    partner_sides,
    vertex_flags,
)
from trellis_core.geometry.examine import topology_metrics
from trellis_core.geometry.holes import fill_holes
from trellis_core.geometry.remesh import Lattice, band_cells, remesh_watertight
from trellis_core.geometry.simplify import simplify
from trellis_core.geometry.triangles import face_areas
from trellis_core.geometry.types import Asset, Material, Mesh, PBRVoxels, QualityReport
from trellis_core.geometry.winding import unify_orientations
from trellis_core.io.glb import write_glb
from trellis_core.kernels.table import Kernels

Tensors = dict[str, Tensor]
KERNELS = Kernels({"closest_point": "warp"})  # the torch twin takes half a minute per remesh


def exact(name: str, wrong: int | float | bool, note: str = "") -> Check:
    return Check(name, float(wrong), 0.0, note)


def share(name: str, wrong: Tensor, limit: float) -> Check:
    """Passes when at most `limit` of the values are wrong."""
    return Check(name, float(wrong.double().mean()) if wrong.numel() else 0.0, limit)


# ---------------------------------------------------------------- baking


def run_bake(case: Case) -> Tensors:
    x, size = case.inputs, case.params["texture_size"]
    kernels = KERNELS
    mesh = Mesh(x["vertices"], x["faces"], uvs=x["uvs"])
    original = Mesh(x["original_vertices"], x["original_faces"])
    voxels = PBRVoxels(x["coords"], x["attrs"], case.params["grid_size"])
    texels = cover_texels(mesh, size, kernels)
    corners = mesh.uvs[mesh.faces[texels.face].long()].double() * size  # type: ignore[index]
    center = torch.stack([texels.index % size, texels.index // size], 1) + 0.5
    projected, _ = move_to_surface(texels.position, texels.face, mesh, original, voxels.resolution, kernels)
    attrs, found = sample_texels(texels, mesh, voxels, original, True, kernels)
    texel, attrs = average_texels(texels.index[found], attrs[found], size, 1)

    def image(values: Tensor, at: Tensor = texels.index, empty: float = 0) -> Tensor:
        full = torch.full((size * size, *values.shape[1:]), empty, dtype=values.dtype)
        full[at] = values
        return full.reshape(size, size, *values.shape[1:])

    values = image(to_bytes(attrs), texel)
    return {
        "mask": image(torch.ones_like(texels.index)).to(torch.uint8),
        "face_id": image(texels.face, empty=-1).to(torch.int32),
        "position": image(texels.position),
        "projected": image(projected),
        "attrs": image(attrs, texel),
        "base_color_u8": values[..., :3],
        "metallic_u8": values[..., 3],
        "roughness_u8": values[..., 4],
        "alpha_u8": values[..., 5],
        "edge_margin": image(smallest_weight(corners, center).float()),
    }


def smallest_weight(corners: Tensor, point: Tensor) -> Tensor:
    a, b, c = corners.unbind(1)

    def cross(p: Tensor, q: Tensor) -> Tensor:
        return p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]

    parts = torch.stack(
        [cross(b - point, c - point), cross(c - point, a - point), cross(a - point, b - point)], 1
    )
    return (parts / parts.sum(1, keepdim=True)).amin(1)


def compare_bake(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    mask, margin = want["mask"].bool(), want["edge_margin"]
    clear = (margin > 1e-3) | (~mask & ~got["mask"].bool())
    both = mask & got["mask"].bool()
    inner = both & (margin > 1e-3)
    checks = [
        share("mask", (got["mask"] != want["mask"]), 0.01),
        exact("mask", int(((got["mask"] != want["mask"]) & clear & mask).sum()), "away from edges"),
        exact("face_id", int((got["face_id"] != want["face_id"])[inner].sum()), "away from edges"),
        Check("edge_margin", float((got["edge_margin"] - margin)[inner].abs().max()), 1e-4),
        Check("position", float((got["position"] - want["position"])[inner].abs().max()), 1e-5),
        share("projected", ((got["projected"] - want["projected"]).abs().amax(-1) > 1e-5)[both], 0.01),
        share("attrs", ((got["attrs"] - want["attrs"]).abs().amax(-1) > 1e-3)[both], 0.01),
    ]
    for name in ("base_color_u8", "metallic_u8", "roughness_u8", "alpha_u8"):
        checks.append(share(name, ((got[name].int() - want[name].int()).abs() > 1)[both], 0.01))
    return checks


# ---------------------------------------------------------------- GLB


def run_glb(case: Case) -> Tensors:
    x = case.inputs
    mesh = Mesh(x["vertices"], x["faces"], uvs=x["uvs"], normals=x["normals"])
    surface = torch.cat([torch.zeros_like(x["roughness"]), x["roughness"], x["metallic"]], -1)
    material = Material(torch.cat([x["base_color"], x["alpha"]], -1), surface, double_sided=True)
    asset = Asset(mesh, material, QualityReport({}))
    files = {}
    with TemporaryDirectory() as folder:
        for name, texture_format in (("glb", "png"), ("glb_webp", "webp")):
            path = Path(folder) / f"{name}.glb"
            write_glb(asset, path, texture_format=texture_format, quality=None)
            files[f"file.{name}"] = torch.from_numpy(np.frombuffer(path.read_bytes(), dtype=np.uint8).copy())
    read = read_glb(files["file.glb"])
    return files | {name: read[name] for name in ("POSITION", "NORMAL", "TEXCOORD_0", "indices")}


def read_glb(file: Tensor) -> Tensors:
    """Accessors and decoded images of a GLB with one primitive, by an own small reader."""
    data = file.numpy().tobytes()
    length, _ = struct.unpack_from("<I4s", data, 12)
    document, binary = json.loads(data[20 : 20 + length]), data[20 + length + 8 :]
    types = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
    widths = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}

    def view(index: int) -> bytes:
        found = document["bufferViews"][index]
        return binary[found.get("byteOffset", 0) :][: found["byteLength"]]

    def accessor(index: int) -> Tensor:
        found = document["accessors"][index]
        width = widths[found["type"]]
        values = np.frombuffer(
            view(found["bufferView"])[found.get("byteOffset", 0) :], dtype=types[found["componentType"]]
        )
        values = values[: found["count"] * width].reshape(-1, width)
        return torch.from_numpy(values.astype("i8" if values.dtype.kind == "u" else values.dtype))

    primitive = document["meshes"][0]["primitives"][0]
    result = {name: accessor(index) for name, index in primitive["attributes"].items()}
    result["indices"] = accessor(primitive["indices"])
    material = document["materials"][primitive["material"]]
    surface = material["pbrMetallicRoughness"]
    for name in ("baseColorTexture", "metallicRoughnessTexture"):
        texture = document["textures"][surface[name]["index"]]
        source = texture.get(
            "source", texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source")
        )
        with Image.open(BytesIO(view(document["images"][source]["bufferView"]))) as picture:
            pixels = np.array(picture.convert("RGBA" if name == "baseColorTexture" else "RGB"))
        result[name] = torch.from_numpy(pixels)
    factors = [
        surface.get("metallicFactor", 1.0),
        surface.get("roughnessFactor", 1.0),
        *surface.get("baseColorFactor", [1.0] * 4),
    ]
    opaque = material.get("alphaMode", "OPAQUE") == "OPAQUE"
    result["material"] = torch.tensor([*factors, float(opaque), float(material.get("doubleSided", False))])
    return result


def compare_glb(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    checks = [
        Check(name, float((got[name] - want[name]).abs().max()), 1e-6)
        for name in ("POSITION", "TEXCOORD_0", "NORMAL")
    ]
    checks.append(exact("indices", int((got["indices"].long() != want["indices"].long()).sum())))
    reference = read_glb(want["file.glb"])  # its PNG images are exact; its WebP ones are not
    for name in ("file.glb", "file.glb_webp"):
        ours = read_glb(got[name])
        for part in ("baseColorTexture", "metallicRoughnessTexture", "material", "indices"):
            checks.append(exact(f"{name}.{part}", int((ours[part] != reference[part]).sum())))
        for part in ("POSITION", "TEXCOORD_0"):
            checks.append(Check(f"{name}.{part}", float((ours[part] - reference[part]).abs().max()), 1e-6))
    return checks


# ---------------------------------------------------------------- connectivity and repair


def run_repair(case: Case) -> Tensors:
    mesh = Mesh(case.inputs["vertices"], case.inputs["faces"])
    params = case.params
    edges = edges_of(mesh.faces)
    partner = partner_sides(edges)
    component, _ = number_labels(face_components(partner))
    area, _ = component_sizes(mesh, component)
    flags = vertex_flags(edges, len(mesh.vertices))
    limit = params["degenerate"]
    least = params["min_component_area"]
    repaired = split_vertices(mesh, partner)
    result = {
        "edges": edges.vertices.to(torch.int32),
        "edge_face_count": edges.face_count.to(torch.int32),
        "component_of_face": component.to(torch.int32),
        "vertex_manifold": flags.manifold,
        "vertex_boundary": flags.boundary,
        "face_area": face_areas(mesh.vertices, mesh.faces),
        "keep_not_degenerate": not_degenerate(mesh, limit["abs"], limit["rel"]),
        "keep_not_duplicate": not_duplicate(mesh.faces),
        f"keep_component_area_{least:.0e}".replace("e-0", "e-"): area[component] >= least,
        "loop_perimeters": perimeters(mesh, flags.manifold),
        "repair.vertices": repaired.vertices,
        "repair.faces": repaired.faces,
        "unify.faces": unify_orientations(mesh.faces),
    }
    for perimeter in params["fill_perimeters"]:
        filled = fill_holes(replace(mesh, faces=unify_orientations(mesh.faces)), perimeter)
        result |= {f"fill_{perimeter}.vertices": filled.vertices, f"fill_{perimeter}.faces": filled.faces}
    done = repair_in_sequence(mesh, limit, least, params["fill_perimeters"][0])
    return result | {"sequence.vertices": done.vertices, "sequence.faces": done.faces}


def repair_in_sequence(mesh: Mesh, limit: dict[str, float], least: float, perimeter: float) -> Mesh:
    mesh = keep_faces(mesh, not_degenerate(mesh, limit["abs"], limit["rel"]))
    mesh = keep_faces(mesh, not_duplicate(mesh.faces))
    mesh = split_vertices(mesh, partner_sides(edges_of(mesh.faces)))
    component, _ = number_labels(face_components(partner_sides(edges_of(mesh.faces))))
    mesh = keep_faces(mesh, (component_sizes(mesh, component)[0] >= least)[component])
    return drop_unused_vertices(fill_holes(replace(mesh, faces=unify_orientations(mesh.faces)), perimeter))


def perimeters(mesh: Mesh, manifold: Tensor) -> Tensor:
    """Of the boundary loops that the released code finds, ascending; we find and close others, too.

    It joins edges at manifold vertices, so a loop with one other vertex is a chain whose ends still meet.
    """
    faces = unify_orientations(mesh.faces)
    loops = boundary_loops(faces, partner_sides(edges_of(faces)))
    loops = [loop for loop in loops if int((~manifold[loop]).sum()) <= 1]
    length = [
        float((mesh.vertices[loop] - mesh.vertices[loop].roll(1, 0)).norm(dim=1).sum()) for loop in loops
    ]
    return torch.tensor(sorted(length))


def compare_repair(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    checks = []
    for name, expected in want.items():
        ours = got[name]
        if name == "component_of_face":
            checks.append(exact(name, not same_partition(ours, expected)))
        elif name == "keep_not_duplicate":
            kept = [Counter(vertex_sets(case.inputs["faces"][keep.bool()])) for keep in (ours, expected)]
            checks.append(exact(name, kept[0] != kept[1]))
        elif name == "unify.faces":
            checks.append(exact(name, not same_winding(ours, expected)))
        elif name == "loop_perimeters":
            checks.append(compare_tensor(name, ours, expected.sort().values, {"atol": 1e-5, "rtol": 0}))
        elif name == "face_area":
            checks.append(compare_tensor(name, ours, expected, {"atol": 1e-8, "rtol": 1e-5}))
        elif name.endswith((".vertices", ".faces")):
            continue
        else:
            checks.append(compare_tensor(name, ours.to(expected.dtype), expected, {"kind": "exact"}))
    for stem in sorted({name.rsplit(".", 1)[0] for name in want if name.endswith(".vertices")}):
        mesh, goal = (Mesh(side[f"{stem}.vertices"], side[f"{stem}.faces"]) for side in (got, want))
        checks.append(exact(f"{stem}.vertices", len(mesh.vertices) != len(goal.vertices)))
        checks.append(exact(f"{stem}.faces", abs(len(mesh.faces) - len(goal.faces)), "number of faces"))
        checks.append(exact(f"{stem}.faces", position_sets(mesh) != position_sets(goal), "as positions"))
    return checks


def same_partition(a: Tensor, b: Tensor) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def vertex_sets(faces: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in faces.long().sort(dim=1).values.tolist()]


def position_sets(mesh: Mesh) -> Counter[tuple[tuple[float, ...], ...]]:
    points = [tuple(round(x, 5) for x in row) for row in mesh.vertices.tolist()]
    return Counter(tuple(sorted(points[v] for v in face)) for face in mesh.faces.tolist())


def same_winding(ours: Tensor, expected: Tensor) -> bool:
    """Equal up to a flip of whole components."""

    def forward(faces: Tensor) -> Tensor:
        first = faces.argmin(1, keepdim=True)
        rolled = faces.long().gather(1, (first + torch.arange(3)) % 3)
        return rolled[:, 1] < rolled[:, 2]

    component = face_components(partner_sides(edges_of(expected)))
    turned = forward(ours) != forward(expected)
    return all(len(set(turned[component == c].tolist())) == 1 for c in component.unique().tolist())


# ---------------------------------------------------------------- simplification


def run_simplify(case: Case) -> Tensors:
    mesh = Mesh(case.inputs["vertices"], case.inputs["faces"])
    edges = edges_of(mesh.faces)
    result = {
        "edges": edges.vertices.to(torch.int32),
        "edge_face_count": edges.face_count.to(torch.int32),
        "vertex_is_boundary": vertex_flags(edges, len(mesh.vertices)).boundary.to(torch.uint8),
    }
    if "simplify" in case.info:
        simple = simplify(mesh, case.info["simplify"]["target_faces"])
        result |= {"simplified_vertices": simple.vertices, "simplified_faces": simple.faces}
    return result


# ---------------------------------------------------------------- remeshing


def run_remesh(case: Case) -> Tensors:
    params = case.params
    mesh = Mesh(case.inputs["vertices"], case.inputs["faces"])
    lattice = Lattice(params["resolution"], params["scale"])
    centered = replace(mesh, vertices=mesh.vertices - torch.tensor(params["center"]))
    cells = band_cells(centered, lattice, params["band"] * lattice.step, KERNELS)
    shell = remesh_watertight(mesh, params["resolution"], KERNELS)
    return {"active_voxels": cells.to(torch.int32), "vertices": shell.vertices, "faces": shell.faces}


def compare_remesh(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    ours, theirs = (set(map(tuple, side["active_voxels"].tolist())) for side in (got, want))
    checks = [Check("active_voxels", len(ours ^ theirs) / len(theirs), 0.01)]
    report = topology_metrics(Mesh(got["vertices"], got["faces"]))
    checks.append(exact("topology", not report["watertight"], "closed and manifold"))
    checks.append(exact("topology", report["components"] != 1, "one shell"))
    names = ("vertices", "quads", "quad_dir", "faces")
    return checks + [Check(name, float("inf"), 0.0, "a different surface") for name in names]


def compare_exactly(case: Case, got: Tensors, want: Tensors) -> list[Check]:
    """What we compute must be equal; the rest is named so that the table of exceptions can excuse it."""
    return [
        compare_tensor(name, got[name], expected, {"kind": "exact"})
        if name in got
        else Check(name, float("inf"), 0.0, "not computed")
        for name, expected in want.items()
    ]


KINDS = {
    "geometry.texture_baking_before_inpainting": Kind(run_bake, compare_bake),
    "geometry.glb_conventions": Kind(run_glb, compare_glb),
    "geometry.mesh_connectivity_and_repair_operations": Kind(run_repair, compare_repair),
    "geometry.edge_collapse_costs_and_one_parallel_round": Kind(run_simplify, compare_exactly),
    "geometry.narrow_band_dual_contouring_remesh": Kind(run_remesh, compare_remesh),
}
