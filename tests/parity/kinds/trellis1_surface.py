"""FlexiCubes: the table of cases, dense grids, and the sparse cubes of the mesh decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.case import Case, Check, Kind, compare_by_tolerance, compare_tensor
from tests.parity.kinds.voxels import canonical, compare_rows
from trellis.flexicubes import (
    CubeGrid,
    CubeIndex,
    activated,
    case_table,
    corner_positions,
    cube_meshes,
    extract_surface,
    resolve,
)
from trellis.representations import CubeLayout
from trellis_core.nn.embed import grid_coords
from trellis_core.sparse.order import find_sorted, linear_keys
from trellis_core.sparse.tensor import SparseTensor

MESH_RULE = {"atol": 1e-5, "rtol": 0.0}  # where a sidecar says it in words


def run_case_table(case: Case) -> dict[str, Tensor]:
    table = case_table()
    return {
        "edge_group": table.patch_of_edge.to(torch.int8),
        "num_groups": table.patches.to(torch.int8),
        "ambiguous_dir": table.direction.to(torch.int8),
        "needs_check": table.unclear.to(torch.uint8),
    }


def run_tables(case: Case) -> dict[str, Tensor]:
    """The same table as upstream lists it: edges of each patch, and the cases to be read inside out."""
    table = case_table()
    groups = torch.full((256, 4, 7), -1, dtype=torch.int8)
    for number in range(256):
        for patch in range(int(table.patches[number])):
            edges = (table.patch_of_edge[number] == patch).nonzero()[:, 0]
            groups[number, patch, : len(edges)] = edges.to(torch.int8)
    inverted = torch.where(table.unclear, 255 - torch.arange(256), 0)
    rows = torch.cat([table.unclear[:, None].long(), table.direction, inverted[:, None]], dim=1)
    return {"edge_groups": groups, "num_vertices": table.patches.to(torch.int8), "ambiguity": rows}


def compare_case_table(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    return [compare_tensor(name, got[name], want[name], {"kind": "exact"}) for name in want]


def compare_tables(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """The order of patches, and of edges within one, is free."""

    def patches(groups: Tensor) -> list[set[frozenset[int]]]:
        return [{frozenset(p) - {-1} for p in patch} - {frozenset()} for patch in groups.tolist()]

    ours, theirs = patches(got["edge_groups"]), patches(want["edge_groups"])
    wrong = sum(a != b for a, b in zip(ours, theirs, strict=True))
    exact = [
        compare_tensor(name, got[name], want[name].to(got[name].dtype), {"kind": "exact"})
        for name in ("num_vertices", "ambiguity")
    ]
    return [Check("edge_groups", wrong, 0), *exact]


def dense_grid(resolution: int, sdf: Tensor, positions: Tensor, **rest: Any) -> CubeGrid:
    cubes = grid_coords(resolution).int()
    index = CubeIndex.of(cubes, resolution)
    corners = index.corner_keys(index.keys).int()  # corners are numbered by their keys
    return CubeGrid(cubes, corners, positions, sdf, resolution, **rest)


def run_flexicubes(case: Case) -> dict[str, Tensor]:
    """Dense grids with raw weights; the case ids are those after neighbours have agreed."""
    i, config = case.inputs, case.config
    resolution, scale = config["res"], config["weight_scale"]
    cubes = resolution**3
    given = {}
    if "beta" in i:
        raw = torch.cat([i["beta"], i["alpha"], i["gamma"].view(cubes, 1)], dim=1)
        given = dict(zip(("beta", "alpha", "gamma"), activated(raw, scale), strict=True))
    attributes = i["colors"].sigmoid() if "colors" in i else None
    grid = dense_grid(resolution, i["sdf"], i["grid_vertices"], attributes=attributes, **given)
    out = surface_outputs(grid, config["training"])
    inside = grid.sdf[grid.corners.long()] < 0
    cases = (inside.long() << torch.arange(8)).sum(1)
    surface = (cases > 0) & (cases < 255)
    out["surf_cubes"] = surface
    out["case_ids"] = resolve(grid.cubes[surface], cases[surface], resolution, case_table())
    deviation = out.pop("L_dev")
    return out | {"L_dev_mean": deviation.mean(), "L_dev_sorted": deviation.sort()[0]}


def run_iso_surface(case: Case) -> dict[str, Tensor]:
    i, params = case.inputs, case.params
    resolution = params["resolution"]
    corners = grid_coords(resolution + 1)
    displacement = i.get("deform", torch.zeros(len(corners), 3))
    positions = corner_positions(corners, displacement, resolution)
    given = {}
    if "cube_weights" in i:
        weights = activated(i["cube_weights"], params["weight_scale"])
        given = dict(zip(("beta", "alpha", "gamma"), weights, strict=True))
    attributes = i["colors"].sigmoid() if "colors" in i else None
    grid = dense_grid(resolution, i["scalar_field"], positions, attributes=attributes, **given)
    out = surface_outputs(grid, params["training"])
    return out | {"grid_vertices": positions, "L_dev": out["L_dev"].sort()[0]}


def surface_outputs(grid: CubeGrid, training: bool) -> dict[str, Tensor]:
    surface = extract_surface(grid, training=training)
    out = {"vertices": surface.vertices, "faces": surface.faces, "L_dev": surface.deviation}
    return out if surface.attributes is None else out | {"colors": surface.attributes}


def run_sparse_cubes(case: Case) -> dict[str, Tensor]:
    params = case.params
    coords = torch.nn.functional.pad(case.inputs["coords"], (1, 0))
    layout = CubeLayout(use_color=params["use_color"])
    decoded = SparseTensor(case.inputs["feats"], coords.int(), 1)
    mesh = cube_meshes(decoded, layout, params["resolution"])[0]
    out = {"vertices": mesh.vertices, "faces": mesh.faces}
    return out if mesh.attributes is None else out | {"colors": mesh.attributes}


def run_sparse_features(case: Case) -> dict[str, Tensor]:
    config = case.config
    decoded = SparseTensor(case.inputs["x.feats"], case.inputs["x.coords"], 1)
    layout = CubeLayout(use_color=config["use_color"])
    mesh = cube_meshes(decoded, layout, config["res"], training=config.get("training", False))[0]
    success = bool(len(mesh.vertices)) and bool(len(mesh.faces))
    out = {"vertices": mesh.vertices, "faces": mesh.faces, "success": torch.tensor(int(success))}
    if mesh.attributes is not None:
        out["vertex_attrs"] = mesh.attributes
    if mesh.training is not None:
        extra = mesh.training
        out |= {
            "reg_loss": extra.regularizer,
            "tsdf_v": extra.corner_positions,
            "tsdf_s": extra.corner_sdf,
        }
    return out


def run_cube_utils(case: Case) -> dict[str, Tensor]:
    resolution, feats = case.config["res"], case.inputs["feats"]
    index = CubeIndex.of(case.inputs["coords"].int(), resolution)
    keys = torch.unique(index.corner_keys(index.keys))
    mean, corners = index.corner_means(keys, feats), index.coords(keys)
    cubes = find_sorted(keys, index.corner_keys(index.keys))[index.rows.argsort()]
    dense = torch.zeros((resolution + 1) ** 3, mean.shape[1])
    dense[:, 0] = 1
    plain = torch.zeros(resolution**3, mean.shape[1])
    plain[linear_keys(case.inputs["coords"], (resolution,) * 3)] = feats[:, 0]
    return {
        "verts": corners.long(),
        "cubes": cubes,
        "vert_feats": mean,
        "con_loss": (feats - mean[cubes]).square().mean(),
        "dense_sdf": dense.index_copy(0, keys, mean),
        "dense_plain": plain,
        "deformed": corner_positions(corners, case.inputs["deform"], resolution),
    }


# --- comparison ------------------------------------------------------------------------------------


def compare_meshes(case: Case, got: dict[str, Tensor], want: dict[str, Tensor]) -> list[Check]:
    """Vertices one to one by position, faces as a set of turned triples, the rest by tolerance."""
    rule = case.info.get("tolerance") or MESH_RULE
    checks, rest = [], dict(want)
    for name in [name for name in want if name.endswith("vertices") and name != "grid_vertices"]:
        prefix = name.removesuffix("vertices")
        vertices, faces = rest.pop(name), rest.pop(f"{prefix}faces")
        if got[name].shape != vertices.shape or got[f"{prefix}faces"].shape != faces.shape:
            sizes = (len(got[name]), len(vertices), len(got[f"{prefix}faces"]), len(faces))
            checks.append(Check(name, float("inf"), 0.0, "vertices {} of {}, faces {} of {}".format(*sizes)))
            continue
        if len(vertices) == 0:
            checks.append(Check(name, 0.0, 0.0))
            continue
        partner = match(got[name], vertices)
        checks.append(compare_tensor(name, got[name][partner], vertices, rule))
        checks.append(Check(f"{name} matched", len(vertices) - len(partner.unique()), 0.0))
        renamed = torch.empty_like(partner)
        renamed[partner] = torch.arange(len(partner))
        ours = canonical(renamed[got[f"{prefix}faces"].long()])
        checks.append(compare_rows(f"{prefix}faces", ours, canonical(faces.long())))
        for extra in ("vertex_attrs", "colors"):
            if f"{prefix}{extra}" in rest:
                theirs = rest.pop(f"{prefix}{extra}")
                checks.append(
                    compare_tensor(f"{prefix}{extra}", got[f"{prefix}{extra}"][partner], theirs, rule)
                )
        if f"{prefix}face_normal" in rest:
            theirs = rest.pop(f"{prefix}face_normal")
            checks.append(same_normals(prefix, got, theirs, ours, canonical(faces.long())))
    described = Case(case.name, case.kind, {**case.info, "tolerance": rule}, case.inputs, case.weights)
    rest = {name: value.sort()[0] if name == "L_dev" else value for name, value in rest.items()}
    return checks + compare_by_tolerance(described, got, rest)


def match(ours: Tensor, theirs: Tensor) -> Tensor:  # int64 [V]  which of ours is each of theirs
    """Nearest vertices; where several lie at one place, each is used once."""
    distance = torch.cdist(theirs.double(), ours.double())
    partner = distance.argmin(1)
    taken: set[int] = set()
    for row in range(len(partner)):
        if int(partner[row]) in taken:
            order = distance[row].argsort()
            partner[row] = next(int(i) for i in order if int(i) not in taken)
        taken.add(int(partner[row]))
    return partner


def same_normals(prefix: str, got: dict[str, Tensor], want: Tensor, ours: Tensor, theirs: Tensor) -> Check:
    """Face normals, found by the faces they belong to; slivers point anywhere and do not count."""
    rows = {tuple(face): i for i, face in enumerate(ours.tolist())}
    order = torch.tensor([rows.get(tuple(face), 0) for face in theirs.tolist()])
    recorded = want.view(len(theirs), -1, 3)[:, 0]
    mine = got[f"{prefix}face_normal"].view(len(ours), -1, 3)[:, 0][order]
    error = (mine - recorded).norm(dim=1).quantile(0.99).item()
    return Check(f"{prefix}face_normal", error, 1e-2)


KINDS = {
    "geometry.flexicubes_dual_marching_cubes_case_table": Kind(run_case_table, compare_case_table),
    "geometry.flexicubes_iso_surface_extraction": Kind(run_iso_surface, compare_meshes),
    "geometry.sparse_cube_features_to_mesh_trellis_v1_mesh_decoder_output": Kind(
        run_sparse_cubes, compare_meshes
    ),
    "trellis1.flexicubes_tables": Kind(run_tables, compare_tables),
    "trellis1.flexicubes": Kind(run_flexicubes, compare_meshes),
    "trellis1.sparse_feats2mesh": Kind(run_sparse_features, compare_meshes),
    "trellis1.cube_utils": Kind(run_cube_utils),
}
