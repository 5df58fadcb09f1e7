"""What the harness does not demand, from two explicit tables with reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Better:
    """Outputs where our algorithm is better by design than the released one."""

    outputs: tuple[str, ...]  # prefixes of output names that may differ
    reason: str


BETTER_BY_DESIGN: dict[str, Better] = {
    "geometry.mesh_connectivity_and_repair_operations": Better(
        ("fill_", "sequence."),
        "holes are closed with triangles of least area, wound like their neighbours, without a new vertex in "
        "the middle; loops that touch themselves are closed as well",
    ),
    "geometry.edge_collapse_costs_and_one_parallel_round": Better(
        (
            "vertex_qem",
            "edge_cost",
            "edge_target",
            "collapsed_edges",
            "vertices_after",
            "faces_after",
            "simplified_",
        ),
        "the released costs are rounding noise at real voxel sizes and its rounds overshoot the target; "
        "edges are collapsed one at a time in double precision, down to the target",
    ),
    "geometry.narrow_band_dual_contouring_remesh": Better(
        ("vertices", "quads", "quad_dir", "faces"),
        "the released remesher wraps every closed object into an outer and an inner shell and makes "
        "non-manifold edges; ours gives one closed manifold shell that lies on the input",
    ),
}

# Kind -> why it has no runner yet. A kind that is neither here nor run fails.
PENDING: dict[str, str] = {}
