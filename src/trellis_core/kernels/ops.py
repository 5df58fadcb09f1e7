"""The operations and their backends, best first; the last one is the plain torch reference."""

from __future__ import annotations

from collections.abc import Mapping

from trellis_core.kernels.attention_probes import ATTENTION, PACKED_ATTENTION
from trellis_core.kernels.probes import TRITON_HINT, triton_runs
from trellis_core.kernels.table import Backend, runs_everywhere
from trellis_core.kernels.warp_start import HINT as WARP_HINT
from trellis_core.kernels.warp_start import warp_is_installed, warp_runs

OPS: Mapping[str, tuple[Backend, ...]] = {
    "attention": ATTENTION,
    "packed_attention": PACKED_ATTENTION,
    "neighbor_map": (
        Backend(name="torch", module="neighbor_map", function="neighbor_map", probe=runs_everywhere),
    ),
    "sparse_conv": (
        Backend(
            name="triton",
            module="triton_sparse_conv",
            function="sparse_conv",
            probe=triton_runs,
            hint=TRITON_HINT,
        ),
        Backend(name="torch", module="sparse_conv", function="sparse_conv", probe=runs_everywhere),
    ),
    "rasterize": (
        Backend(
            name="warp", module="rasterize_warp", function="rasterize_warp", probe=warp_runs, hint=WARP_HINT
        ),
        Backend(name="torch", module="rasterize", function="rasterize", probe=runs_everywhere),
    ),
    "place": (
        Backend(
            name="warp",
            module="place_warp",
            function="place_warp",
            probe=warp_is_installed,
            hint=WARP_HINT,
        ),
        Backend(name="torch", module="place", function="place", probe=runs_everywhere),
    ),
    "closest_point": (
        Backend(
            name="warp",
            module="closest_point_warp",
            function="closest_point_warp",
            probe=warp_runs,
            hint=WARP_HINT,
        ),
        Backend(name="torch", module="closest_point", function="closest_point", probe=runs_everywhere),
    ),
    "ray_cast": (
        Backend(
            name="warp", module="ray_cast_warp", function="ray_cast_warp", probe=warp_runs, hint=WARP_HINT
        ),
        Backend(name="torch", module="ray_cast", function="ray_cast", probe=runs_everywhere),
    ),
    "open_sky": (
        Backend(
            name="warp", module="ray_cast_warp", function="open_sky_warp", probe=warp_runs, hint=WARP_HINT
        ),
        Backend(name="torch", module="ray_cast", function="open_sky", probe=runs_everywhere),
    ),
    "voxel_sampler": (
        Backend(
            name="warp",
            module="voxel_sampler_warp",
            function="voxel_sampler_warp",
            probe=warp_runs,
            hint=WARP_HINT,
        ),
        Backend(name="torch", module="voxel_sampler", function="voxel_sampler", probe=runs_everywhere),
    ),
    "splat": (
        Backend(name="warp", module="splat_warp", function="splat_warp", probe=warp_runs, hint=WARP_HINT),
        Backend(name="torch", module="splat", function="splat", probe=runs_everywhere),
    ),
    "march": (
        Backend(name="warp", module="march_warp", function="march_warp", probe=warp_runs, hint=WARP_HINT),
        Backend(name="torch", module="march", function="march", probe=runs_everywhere),
    ),
}
