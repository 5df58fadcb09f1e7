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

V1 = "built with TRELLIS v1"

# Kind -> why it has no runner yet. A kind that is neither here nor run fails.
PENDING: dict[str, str] = {
    "geometry.flexicubes_dual_marching_cubes_case_table": V1,
    "geometry.flexicubes_iso_surface_extraction": V1,
    "geometry.sparse_cube_features_to_mesh_trellis_v1_mesh_decoder_output": V1,
    "trellis1.cube_utils": V1,
    "trellis1.data_cond_image": V1,
    "trellis1.data_feat_aggregate": V1,
    "trellis1.data_feat_downsample": V1,
    "trellis1.data_slat_collate": V1,
    "trellis1.flexicubes": V1,
    "trellis1.flexicubes_tables": V1,
    "trellis1.fp16_slat_flow": V1,
    "trellis1.fp16_ss_decoder": V1,
    "trellis1.fp16_ss_flow": V1,
    "trellis1.gs_offset_perturbation": V1,
    "trellis1.mod_ape": V1,
    "trellis1.mod_channel_layernorm32": V1,
    "trellis1.mod_conv3d_down": V1,
    "trellis1.mod_conv3d_res": V1,
    "trellis1.mod_conv3d_up": V1,
    "trellis1.mod_dense_block": V1,
    "trellis1.mod_dense_cross_block": V1,
    "trellis1.mod_dense_mod_block": V1,
    "trellis1.mod_dense_mod_cross_block": V1,
    "trellis1.mod_ffn": V1,
    "trellis1.mod_groupnorm32": V1,
    "trellis1.mod_layernorm32": V1,
    "trellis1.mod_mha": V1,
    "trellis1.mod_rms_norm": V1,
    "trellis1.mod_spatial": V1,
    "trellis1.mod_timestep_embedder": V1,
    "trellis1.model_slat_encoder": V1,
    "trellis1.model_slat_flow": V1,
    "trellis1.model_slat_gs": V1,
    "trellis1.model_slat_mesh": V1,
    "trellis1.model_slat_rf": V1,
    "trellis1.model_ss_decoder": V1,
    "trellis1.model_ss_encoder": V1,
    "trellis1.model_ss_flow": V1,
    "trellis1.pipeline_multi": V1,
    "trellis1.pipeline_run": V1,
    "trellis1.pipeline_text_run_variant": V1,
    "trellis1.preprocess": V1,
    "trellis1.sampler_cfg": V1,
    "trellis1.sampler_conversions": V1,
    "trellis1.sampler_euler": V1,
    "trellis1.sampler_interval": V1,
    "trellis1.sp_attn_cross": V1,
    "trellis1.sp_attn_full": V1,
    "trellis1.sp_attn_ser": V1,
    "trellis1.sp_attn_win": V1,
    "trellis1.sp_attn_win0": V1,
    "trellis1.sp_attn_win4": V1,
    "trellis1.sp_block_affine": V1,
    "trellis1.sp_block_win": V1,
    "trellis1.sp_codes": V1,
    "trellis1.sp_conv1": V1,
    "trellis1.sp_conv3": V1,
    "trellis1.sp_down_up": V1,
    "trellis1.sp_groupnorm": V1,
    "trellis1.sp_mod_block": V1,
    "trellis1.sp_mod_cross_block": V1,
    "trellis1.sp_res_down": V1,
    "trellis1.sp_res_plain": V1,
    "trellis1.sp_res_up": V1,
    "trellis1.sp_rms_norm": V1,
    "trellis1.sp_subdivide_block": V1,
    "trellis1.sp_tensor_ops": V1,
    "trellis1.sparse_feats2mesh": V1,
    "trellis1.train_flow_loss": V1,
    "trellis1.voxelize": V1,
}
