# mypy: ignore-errors
"""Closest point on a triangle mesh with Warp's bounding volume hierarchy, on CPU and CUDA.

The twin of `closest_point.py`; of equally near triangles any may win, and triangles without area are
passed over. Fast when neighbouring queries are close to each other in space and `max_distance` is small.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.closest_point import nothing_found
from trellis_core.kernels.warp_start import start_warp

CHUNK = 1 << 17  # queries per launch on a CPU, where a launch uses one thread
FARTHEST = 1e18  # Warp squares the distance in float32

start_warp()
wp.set_module_options({"enable_backward": False})


@torch.no_grad()
def closest_point_warp(
    points: Tensor, vertices: Tensor, faces: Tensor, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `closest_point.closest_point`."""
    distance, face, bary = nothing_found(points)
    if not len(faces) or not len(points):
        return distance, face, bary
    device = wp.device_from_torch(points.device)
    stream = wp.stream_from_torch(torch.cuda.current_stream(points.device)) if device.is_cuda else None
    points = points.float().contiguous()
    corners = vertices.float().contiguous()
    indices = faces.int().contiguous().reshape(-1)
    with wp.ScopedStream(stream) if stream is not None else wp.ScopedDevice(device):
        mesh = wp.Mesh(points=wp.from_torch(corners, dtype=wp.vec3), indices=wp.from_torch(indices))

        def query(start: int, stop: int) -> None:
            part = slice(start, stop)
            wp.launch(
                find_closest,
                dim=stop - start,
                inputs=[
                    mesh.id,
                    wp.from_torch(points[part], dtype=wp.vec3),
                    min(float(max_distance), FARTHEST),
                ],
                outputs=[
                    wp.from_torch(distance[part]),
                    wp.from_torch(face[part]),
                    wp.from_torch(bary[part], dtype=wp.vec3),
                ],
                device=device,
                stream=stream,
            )

        if device.is_cuda:
            query(0, len(points))
            return distance, face, bary
        starts = range(0, len(points), CHUNK)
        query(0, min(CHUNK, len(points)))  # compiles before the threads start
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(lambda start: query(start, min(start + CHUNK, len(points))), starts[1:]))
    return distance, face, bary


@wp.kernel
def find_closest(
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    max_distance: wp.float32,
    distance: wp.array(dtype=wp.float32),
    face: wp.array(dtype=wp.int32),
    bary: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    hit = wp.mesh_query_point_no_sign(mesh, points[i], max_distance)
    if hit.result:
        nearest = wp.mesh_eval_position(mesh, hit.face, hit.u, hit.v)
        distance[i] = wp.length(nearest - points[i])
        face[i] = hit.face
        bary[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)
