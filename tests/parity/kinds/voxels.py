"""Golden kinds of O-Voxel geometry: dual grids, sampling, material voxels, curves and voxel files.

The sidecars give the comparison in prose; each `compare_*` implements the prose of its kind.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.case import Case, Check, Kind, compare_tensor
from trellis2.dual_grid import Grid, extract_mesh, find_quads, gather_quadrics, mesh_to_dual_grid, split_along
from trellis2.voxelize import voxelize_surface
from trellis_core.geometry.sample import sample_voxels
from trellis_core.io import vxz
from trellis_core.io.voxel_files import read_voxels, write_npz, write_voxels
from trellis_core.kernels.voxel_sampler import index_voxels, trilinear_corners
from trellis_core.sparse.order import batch_codes
from trellis_core.training.ingest.surfaces import SurfaceMaterial, TexturedMesh

MAX_ABS = {"kind": "max_abs"}
EXACT = {"kind": "exact"}


# --- dual grid -> mesh ----------------------------------------------------------------------------


def run_dual_grid_to_mesh(case: Case) -> dict[str, Tensor]:
    coords, local, flags = case.inputs["coords"], case.inputs["dual_local"], case.inputs["intersected"].bool()
    size, aabb = case.params["grid_size"], case.params["aabb"]
    weight = case.inputs.get("split_weight")
    training = case.params["mode"].startswith("training")
    mesh = extract_mesh(coords, local, flags, weight, size, aabb=aabb, training=training)
    if weight is not None or training:
        return {"vertices": mesh.vertices, "faces": mesh.faces}
    quads = find_quads(coords, flags, (size,) * 3 if isinstance(size, int) else size)
    return {
        "vertices": mesh.vertices,
        "quads": quads,
        "faces": split_along(quads, first_triangle_is_not_degenerate(mesh.vertices, quads)),
        "faces_best_diagonal": mesh.faces,
    }


def first_triangle_is_not_degenerate(vertices: Tensor, quads: Tensor) -> Tensor:
    """The released choice without weights, which we do not share: 0-2 unless its first triangle is flat."""
    a, b, c, _ = vertices[quads.long()].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1) > 0


def compare_dual_grid_to_mesh(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    voxels = len(case.inputs["coords"])
    rule = MAX_ABS | {"max": 1e-6}
    checks = [compare_tensor("vertices", got["vertices"][:voxels], want["vertices"][:voxels], rule)]
    if len(want["vertices"]) > voxels:
        return checks + compare_center_vertices(voxels, got, want)
    checks.append(compare_rows("faces", canonical(got["faces"]), canonical(want["faces"])))
    if "quads" in want:
        checks.append(compare_rows("quads", canonical(got["quads"]), canonical(want["quads"])))
    if "faces_best_diagonal" in want:
        sure = quads_with_a_clear_diagonal(want["vertices"], want["quads"])
        rows = [canonical(faces_of(side["faces_best_diagonal"], want["quads"][sure])) for side in (got, want)]
        checks.append(compare_rows("faces_best_diagonal", *rows))
        missing = abs(len(got["faces_best_diagonal"]) - 2 * len(want["quads"]))
        checks.append(Check("faces_best_diagonal count", missing, 0))
    return checks


def compare_center_vertices(voxels: int, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Match the centre vertices through their quad: the four voxels that share a centre."""

    def by_quad(side: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        faces = rotated(side["faces"], side["faces"].argmax(1, keepdim=True) + 1)  # (a, b, centre)
        corners = [sorted(faces[faces[:, 2] == m, 0].tolist()) for m in range(voxels, len(side["vertices"]))]
        order = sorted(range(len(corners)), key=lambda i: corners[i])
        quads = torch.tensor([corners[i] for i in order])
        new_name = torch.empty(len(order), dtype=torch.long)
        new_name[torch.tensor(order)] = torch.arange(len(order)) + voxels
        renamed = faces.long().clone()
        renamed[:, 2] = new_name[renamed[:, 2] - voxels]
        return quads, side["vertices"][voxels:][torch.tensor(order)], renamed

    if got["vertices"].shape != want["vertices"].shape or got["faces"].shape != want["faces"].shape:
        return [Check("faces", float("inf"), 0, "another number of quads")]
    (quads, centers, faces), (want_quads, want_centers, want_faces) = by_quad(got), by_quad(want)
    return [
        compare_rows("quads", quads, want_quads),
        compare_tensor("center vertices", centers, want_centers, MAX_ABS | {"max": 1e-6}),
        compare_rows("faces", faces, want_faces),
    ]


def quads_with_a_clear_diagonal(vertices: Tensor, quads: Tensor) -> Tensor:
    """Quads whose two diagonal scores differ by at least 1e-5."""
    a, b, c, d = vertices.double()[quads.long()].unbind(1)

    def normal(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
        return torch.nn.functional.normalize(torch.linalg.cross(q - p, r - p), dim=1)

    along_02 = (normal(a, b, c) * normal(a, c, d)).sum(1)
    along_13 = (normal(a, b, d) * normal(d, b, c)).sum(1)
    return (along_02 - along_13).abs() >= 1e-5


def faces_of(faces: Tensor, quads: Tensor) -> Tensor:
    """The triangles whose corners all belong to one of the quads."""
    owned = {frozenset(q[:i] + q[i + 1 :]) for q in quads.tolist() for i in range(4)}
    keep = [frozenset(f) in owned for f in faces.tolist()]
    return faces[torch.tensor(keep, dtype=torch.bool)]


# --- mesh -> dual grid -----------------------------------------------------------------------------


def run_mesh_to_dual_grid(case: Case) -> dict[str, Tensor]:
    params = case.params
    grid = Grid.of(params["grid_size"], params["aabb"])
    vertices, faces = case.inputs["vertices"], case.inputs["faces"]
    weights = {name: params[name] for name in ("face_weight", "boundary_weight", "regularization_weight")}
    dual = mesh_to_dual_grid(vertices, faces, params["grid_size"], aabb=params["aabb"], **weights)
    frame, quadrics, _ = gather_quadrics(vertices, faces, grid, *list(weights.values())[:2])
    return {
        "coords": dual.coords,
        "dual_vertices": (dual.coords + dual.dual_vertices) * frame.voxel_size,
        "dual_local": dual.dual_vertices,
        "intersected": dual.crossings.byte(),
        "qef": absolute_quadrics(quadrics.terms.double(), frame.centers.double()),
        "crossing_mean": quadrics.mean + frame.centers,
        "crossing_count": quadrics.count.int(),
    }


def absolute_quadrics(terms: Tensor, centers: Tensor) -> Tensor:
    """4 x 4 quadrics around the grid's corner from terms around each voxel's centre: [N, 4, 4]."""
    a = terms[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(-1, 3, 3)
    moved = terms[:, 6:9] + (a @ centers[:, :, None]).squeeze(2)
    constant = terms[:, 9] + ((terms[:, 6:9] + moved) * centers).sum(1)
    top = torch.cat([a, -moved[:, :, None]], 2)
    return torch.cat([top, torch.cat([-moved, constant[:, None]], 1)[:, None]], 1)


def compare_mesh_to_dual_grid(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    checks = [compare_rows("coords", got["coords"], want["coords"])]
    if not checks[0].passed:
        return checks
    got, want = by_coords(got), by_coords(want)
    step = torch.tensor(case.params["voxel_size"], dtype=torch.float64)
    rules = {"intersected": EXACT, "crossing_count": EXACT, "crossing_mean": MAX_ABS | {"max": 2e-6}}
    exact = [
        compare_tensor(name, got[name], want[name], rule) for name, rule in rules.items() if name in want
    ]
    local_error = (got["dual_local"].double() - want["dual_local"].double()).abs().amax(1)
    if "qef" not in want:
        return [*checks, *exact, share_beyond("dual_local", local_error, 2e-3, 0.01)]
    qef_error = (got["qef"].double() - want["qef"].double()).abs().flatten(1).amax(1)
    count = want["crossing_count"].double()
    pull = case.params["regularization_weight"] * count
    here, there = (
        error_at(want["qef"].double(), x["dual_local"].double() * step + want["coords"] * step)
        + pull
        * (x["dual_local"].double() * step + want["coords"] * step - want["crossing_mean"]).square().sum(1)
        for x in (got, want)
    )
    allowed = 1e-3 * step.amin().square() * count.clamp_min(1)
    far = (local_error > 2e-3) & (qef_error <= 1e-4)
    worse = ((here - there) / allowed)[far]
    return [
        *checks,
        *exact,
        share_beyond("qef", qef_error, 1e-4, 0.01),
        share_beyond("dual_local", local_error, 2e-3, 0.01),
        Check(
            "dual_vertices",
            (got["dual_vertices"] / step - got["dual_local"] - got["coords"]).abs().amax().item(),
            1e-4,
            "agree with dual_local",
        ),
        Check("energy", max(0.0, worse.amax().item()) if len(worse) else 0.0, 1.0, f"{len(worse)} voxels"),
    ]


def error_at(quadrics: Tensor, points: Tensor) -> Tensor:
    h = torch.nn.functional.pad(points, (0, 1), value=1.0)
    return torch.einsum("ni,nij,nj->n", h, quadrics, h)


def by_coords(side: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors with their rows in lexicographic order of the coordinates."""
    order = sorted(range(len(side["coords"])), key=side["coords"].tolist().__getitem__)
    return {name: tensor[order] for name, tensor in side.items()}


def share_beyond(name: str, error: Tensor, limit: float, share: float) -> Check:
    """At most `share` of the rows may be off by more than `limit`; errors that are not numbers count."""
    beyond = (~(error <= limit)).double().mean().item() if len(error) else 0.0
    return Check(name, beyond, share, f"of {len(error)} rows beyond {limit:g}")


# --- textured mesh -> material voxels --------------------------------------------------------------


def run_material_voxels(case: Case) -> dict[str, Tensor]:
    params = case.params
    mesh = TexturedMesh(
        triangles=case.inputs["triangles"],
        uvs=case.inputs["uvs"],
        normals=case.inputs["normals"],
        material_ids=case.inputs["material_ids"].long(),
        materials=[read_material(case, description) for description in params["materials"]],
    )
    voxels = voxelize_surface(
        mesh,
        torch.tensor(params["voxel_size"]),
        params["grid_size"],
        mip_level_offset=params["mip_level_offset"],
    )
    out = {name: getattr(voxels, name) for name in ("base_color", "metallic", "roughness", "alpha", "normal")}
    for name, value in list(out.items()):
        shown = value * 0.5 + 0.5 if name == "normal" else value
        out[f"{name}_u8"] = (255 * shown).clamp(0, 255).byte()
    return out | {"coords": voxels.coords}


def read_material(case: Case, description: dict[str, Any]) -> SurfaceMaterial:
    values = {
        name: case.inputs[value.removeprefix("in.")] if name.endswith("_texture") else value
        for name, value in description.items()
    }
    return SurfaceMaterial(**values)


def compare_material_voxels(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    checks = [compare_rows("coords", got["coords"], want["coords"])]
    if not checks[0].passed:
        return checks
    got, want = by_coords(got), by_coords(want)
    for name in want:
        if name != "coords":
            error = (got[name].double() - want[name].double()).abs().reshape(len(want[name]), -1).amax(1)
            checks.append(share_beyond(name, error, 1 if name.endswith("_u8") else 1e-4, 0.005))
    return checks


# --- sparse sampling -------------------------------------------------------------------------------


def run_sparse_sampling(case: Case) -> dict[str, Tensor]:
    coords, feats, query, shape = (
        *(case.inputs[k] for k in ("coords", "feats", "query")),
        case.params["shape"],
    )
    found, weights = trilinear_corners(query, *index_voxels(coords, shape), shape)
    return {
        "trilinear": sample_voxels(query, coords, feats, shape)[0],
        "nearest": sample_voxels(query, coords, feats, shape, "nearest")[0],
        "neighbor": found.int(),
        "weight": weights / weights.sum(1, keepdim=True).clamp_min(1e-12),
    }


def compare_sparse_sampling(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    query = case.inputs["query"].double()

    def far_from_integers(x: Tensor) -> Tensor:
        return ((x - x.round()).abs() > 1e-6).all(1)

    halves, whole = far_from_integers(query - 0.5), far_from_integers(query)
    within = MAX_ABS | {"max": 1e-5}
    return [
        compare_tensor("trilinear", got["trilinear"], want["trilinear"], within),
        compare_tensor("weight", got["weight"], want["weight"], within),
        compare_tensor("neighbor", got["neighbor"][halves], want["neighbor"][halves], EXACT),
        compare_tensor("nearest", got["nearest"][whole], want["nearest"][whole], EXACT),
    ]


# --- curves and files ------------------------------------------------------------------------------


def run_curve_codes(case: Case) -> dict[str, Tensor]:
    """The names tell what to compute: z_order or hilbert, of permuted axes or with a number of bits."""
    out = {}
    for name in case.info["tensors"]:
        if not name.startswith("out."):
            continue
        curve, variant = name.removeprefix("out.").split(".")
        curve = "morton" if curve == "z_order" else curve
        if variant.startswith("perm"):
            coords = case.inputs["coords"][:, [int(digit) for digit in variant.removeprefix("perm")]]
            codes, dtype = batch_codes(torch.nn.functional.pad(coords, (1, 0)), 10, curve), "int32"
        else:
            bits, dtype = int(variant.removeprefix("bits")), case.params[variant]["code_dtype"]
            codes = batch_codes(case.inputs[f"bxyz.{variant}"], bits, curve)
        out[f"{name.removeprefix('out.')}"] = codes.to(getattr(torch, dtype))
    return out


def compare_curve_codes(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    return [compare_tensor(name, got[name], want[name], EXACT) for name in want]


def file_attributes(case: Case) -> dict[str, Tensor]:
    stored = [name.removeprefix("in.") for name in case.info["tensors"] if name.startswith("in.")]
    names = case.params.get("attribute_order") or [name for name in stored if name != "coords"]
    return {name: case.inputs[name] for name in names}


def run_vxz(case: Case) -> dict[str, Tensor]:
    """Every file that the case names, the first chunk in detail, and the order of reading."""
    coords, attributes, chunk_size = case.inputs["coords"], file_attributes(case), case.params["chunk_size"]
    out = {}
    for name, header in case.info["headers"].items():
        compression, filter, interleave = name.removeprefix("file.").split(".")
        if compression == "zstd" and vxz.find_zstd() is None:
            continue
        data = vxz.encode_vxz(
            coords,
            attributes,
            chunk_size=chunk_size,
            filter=filter,
            compression=compression,
            level=header["compression_level"],
            interleave=interleave,
        )
        out[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    cells = coords.numpy().astype("int64")
    index, rows, codes = next(vxz.split_chunks(cells, chunk_size))
    tree = vxz.Octree(codes, chunk_size)
    matrix = vxz.attribute_matrix(len(coords), attributes)[rows]
    chunk = {
        "idx": index,
        "morton": codes,
        "coords": tree.coords,
        "svo": tree.masks,
        "attr": matrix,
        "delta_parent": vxz.difference_of_siblings(matrix, tree),
        "delta_neighbor": vxz.difference_to_neighbor(matrix, tree),
    }
    out |= {f"chunk0.{name}": torch.as_tensor(value) for name, value in chunk.items()}
    plain = vxz.encode_vxz(coords, attributes, chunk_size=chunk_size, compression="none")
    return out | {"read_order_coords": vxz.decode_vxz(plain)[0]}


def compare_vxz(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Every file is read; uncompressed ones are written byte for byte, others survive writing and reading."""
    checks = []
    wanted = voxel_rows(case.inputs["coords"], file_attributes(case))
    for name, expected in want.items():
        if not name.startswith("file."):
            checks.append(compare_tensor(name, got[name].to(expected.dtype), expected, EXACT))
            continue
        if name not in got:
            checks.append(Check(name, float("inf"), 0, "zstd is not installed"))
            continue
        for what, data in (("read", expected), ("write and read", got[name])):
            rows = voxel_rows(*vxz.decode_vxz(data.numpy().tobytes()))
            checks.append(compare_tensor(f"{name} {what}", rows, wanted, EXACT))
        if name.split(".")[1] == "none":
            (header, body), (want_header, want_body) = (
                split_vxz(x.numpy().tobytes()) for x in (got[name], expected)
            )
            checks.append(Check(f"{name} header", float(header != want_header), 0))
            checks.append(Check(f"{name} bytes", float(body != want_body), 0))
    return checks


def split_vxz(data: bytes) -> tuple[Any, bytes]:
    start = int.from_bytes(data[4:8], "big")
    return json.loads(data[8:start]), data[start:]


def voxel_rows(coords: Tensor, attributes: dict[str, Tensor]) -> Tensor:
    """Coordinates and all channels, sorted by coordinates."""
    rows = torch.cat(
        [coords.double(), *(a.reshape(len(coords), -1).double() for a in attributes.values())], 1
    )
    return rows[sorted(range(len(rows)), key=coords.tolist().__getitem__)]


def run_voxel_files(case: Case) -> dict[str, Tensor]:
    coords, attributes = case.inputs["coords"], file_attributes(case)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("npz", "npz_plain", "ply"):
            path = Path(folder) / f"voxels.{name.partition('_')[0]}"
            if name == "npz_plain":
                write_npz(path, coords, attributes, compress=False)
            else:
                write_voxels(path, coords, attributes)
            out[f"file.{name}"] = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            if name == "ply":
                out["ply_coords"] = read_voxels(path)[0].long()
    return out


def compare_voxel_files(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    checks = [compare_tensor("ply_coords", got["ply_coords"], want["ply_coords"], EXACT)]
    expected = {"coords": case.inputs["coords"], **file_attributes(case)}
    with tempfile.TemporaryDirectory() as folder:
        for name in (n for n in want if n.startswith("file.")):
            for what, data in (("read", want[name]), ("write and read", got[name])):
                path = Path(folder) / f"voxels.{name.removeprefix('file.').partition('_')[0]}"
                path.write_bytes(data.numpy().tobytes())
                coords, attributes = read_voxels(path)
                found = {"coords": coords, **attributes}
                checks.append(Check(f"{name} {what}: names", len(found.keys() ^ expected.keys()), 0))
                checks += [
                    compare_tensor(f"{name} {what}: {k}", found[k], v, EXACT) for k, v in expected.items()
                ]
    head = bytes(got["file.ply"].tolist()).partition(b"end_header")[0] + b"end_header"
    checks.append(Check("ply header", float(head.decode() != case.params["ply_header"]), 0))
    return checks


# --- shared comparisons ---------------------------------------------------------------------------


def canonical(polygons: Tensor) -> Tensor:
    """Rotate the smallest index to the front; the winding stays."""
    return rotated(polygons, polygons.argmin(1, keepdim=True))


def rotated(polygons: Tensor, turn: Tensor) -> Tensor:
    width = polygons.shape[1]
    return polygons.gather(1, (torch.arange(width) + turn) % width)


def compare_rows(name: str, got: Tensor, want: Tensor) -> Check:
    """Rows as multisets: the number of rows that only one side has."""
    a, b = (Counter(map(tuple, rows.tolist())) for rows in (got, want))
    wrong = sum((a - b).values()) + sum((b - a).values())
    return Check(name, wrong, 0, f"{wrong} rows differ" if wrong else "")


KINDS = {
    "geometry.flexible_dual_grid_to_mesh": Kind(run_dual_grid_to_mesh, compare_dual_grid_to_mesh),
    "geometry.mesh_to_flexible_dual_grid": Kind(run_mesh_to_dual_grid, compare_mesh_to_dual_grid),
    "geometry.textured_mesh_to_volumetric_attributes": Kind(run_material_voxels, compare_material_voxels),
    "geometry.space_filling_curve_codes": Kind(run_curve_codes, compare_curve_codes),
    "geometry.npz_and_ply_voxel_files": Kind(run_voxel_files, compare_voxel_files),
    "geometry.vxz_container": Kind(run_vxz, compare_vxz),
    "geometry.sparse_grid_sampling": Kind(run_sparse_sampling, compare_sparse_sampling),
}
