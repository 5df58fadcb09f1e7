# mypy: ignore-errors
"""Rays against a triangle mesh with Warp's bounding volume hierarchy, on CPU and CUDA.

The twin of `ray_cast.py`; of triangles at the same distance any may win.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.closest_point import nothing_found
from trellis_core.kernels.warp_start import start_warp

CHUNK = 1 << 15  # rays per launch on a CPU, where a launch uses one thread
FARTHEST = 1e18

start_warp()
wp.set_module_options({"enable_backward": False})


@torch.no_grad()
def ray_cast_warp(
    origins: Tensor, directions: Tensor, vertices: Tensor, faces: Tensor, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ray_cast.ray_cast`."""
    distance, face, bary = nothing_found(origins)
    if not len(faces) or not len(origins):
        return distance, face, bary
    origins, directions = origins.float().contiguous(), directions.float().contiguous()
    with opened(vertices, faces) as (mesh, run):
        run(
            len(origins),
            cast_rays,
            lambda part: [
                mesh.id,
                wp.from_torch(origins[part], dtype=wp.vec3),
                wp.from_torch(directions[part], dtype=wp.vec3),
                min(float(max_distance), FARTHEST),
            ],
            lambda part: [
                wp.from_torch(distance[part]),
                wp.from_torch(face[part]),
                wp.from_torch(bary[part], dtype=wp.vec3),
            ],
        )
    return distance, face, bary


@torch.no_grad()
def open_sky_warp(
    points: Tensor,
    normals: Tensor,
    turns: Tensor,
    vertices: Tensor,
    faces: Tensor,
    directions: Tensor,
    max_distance: float,
) -> Tensor:
    """See `ray_cast.open_sky`."""
    free = torch.ones(len(points), device=points.device)
    if not len(faces) or not len(points) or not len(directions):
        return free
    points, normals, turns = (x.float().contiguous() for x in (points, normals, turns))
    pattern = wp.from_torch(directions.float().to(points.device).contiguous(), dtype=wp.vec3)
    with opened(vertices, faces) as (mesh, run):
        run(
            len(points),
            count_free,
            lambda part: [
                mesh.id,
                wp.from_torch(points[part], dtype=wp.vec3),
                wp.from_torch(normals[part], dtype=wp.vec3),
                wp.from_torch(turns[part]),
                pattern,
                min(float(max_distance), FARTHEST),
            ],
            lambda part: [wp.from_torch(free[part])],
        )
    return free


@contextmanager
def opened(vertices: Tensor, faces: Tensor):
    """A Warp mesh, and a function that launches a kernel over it: in threads on a CPU, at once on CUDA."""
    device = wp.device_from_torch(vertices.device)
    stream = wp.stream_from_torch(torch.cuda.current_stream(vertices.device)) if device.is_cuda else None
    corners = vertices.float().contiguous()
    indices = faces.int().contiguous().reshape(-1)

    def run(
        count: int, kernel: wp.Kernel, inputs: Callable[[slice], list], outputs: Callable[[slice], list]
    ) -> None:
        def launch(start: int, stop: int) -> None:
            part = slice(start, stop)
            size = stop - start
            wp.launch(
                kernel, dim=size, inputs=inputs(part), outputs=outputs(part), device=device, stream=stream
            )

        if device.is_cuda:
            launch(0, count)
            return
        launch(0, min(CHUNK, count))  # compiles before the threads start
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            starts = range(CHUNK, count, CHUNK)
            list(threads.map(lambda start: launch(start, min(start + CHUNK, count)), starts))

    with wp.ScopedStream(stream) if stream is not None else wp.ScopedDevice(device):
        yield wp.Mesh(points=wp.from_torch(corners, dtype=wp.vec3), indices=wp.from_torch(indices)), run


@wp.kernel
def cast_rays(
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    max_distance: wp.float32,
    distance: wp.array(dtype=wp.float32),
    face: wp.array(dtype=wp.int32),
    bary: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[i], directions[i], max_distance)
    if hit.result:
        distance[i] = hit.t
        face[i] = hit.face
        bary[i] = wp.vec3(hit.u, hit.v, 1.0 - hit.u - hit.v)


@wp.kernel
def count_free(
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    normals: wp.array(dtype=wp.vec3),
    turns: wp.array(dtype=wp.float32),
    directions: wp.array(dtype=wp.vec3),
    max_distance: wp.float32,
    free: wp.array(dtype=wp.float32),
):
    i = wp.tid()
    n = normals[i]
    sign = wp.where(n[2] >= 0.0, 1.0, -1.0)
    a = -1.0 / (sign + n[2])
    b = n[0] * n[1] * a
    one = wp.vec3(1.0 + sign * n[0] * n[0] * a, sign * b, -sign * n[0])
    other = wp.vec3(b, sign + n[1] * n[1] * a, -n[1])
    cos, sin = wp.cos(turns[i]), wp.sin(turns[i])
    count = wp.int32(0)
    for k in range(directions.shape[0]):
        d = directions[k]
        u = d[0] * cos - d[1] * sin
        v = d[0] * sin + d[1] * cos
        if not wp.mesh_query_ray_anyhit(mesh, points[i], u * one + v * other + d[2] * n, max_distance):
            count += wp.int32(1)
    free[i] = float(count) / float(directions.shape[0])
