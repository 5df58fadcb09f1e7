# mypy: ignore-errors
"""Marching rays through tri-vector fields in Warp, on CPU and CUDA. The twin of `march.py`, with a gradient.

One thread follows one ray from voxel to voxel (Amanatides & Woo, "A Fast Voxel Traversal Algorithm for Ray
Tracing", 1987) and looks each voxel up by binary search. Gradients are summed with atomic additions, in no
fixed order on a GPU; they go to the field, not to eye and rays.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.march import DARK, OPAQUE, MarchField, march
from trellis_core.kernels.warp_start import start_warp

start_warp()
wp.set_module_options({"enable_backward": False, "fuse_fp": False})


def march_warp(
    field: MarchField, eye: Tensor, rays: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `march.march`."""
    if len(rays) == 0 or len(field.keys) == 0:
        return march(field, eye, rays, offsets)
    given = [tensor.float().contiguous() for tensor in (field.vectors, field.densities, field.colors)]
    seen = March.apply(*given, field, eye.float(), rays.float().contiguous(), offsets.float().contiguous())
    return seen[:, :3], seen[:, 3], seen[:, 4], seen[:, 5]


class March(torch.autograd.Function):
    """Columns of the result: color, light, distance, median."""

    @staticmethod
    def forward(ctx, vectors, densities, colors, field, eye, rays, offsets):
        seen = rays.new_zeros(len(rays), 6)
        ctx.marched = field, eye, rays, offsets
        launch(follow_ray, (vectors, densities, colors), ctx.marched, (), (seen,))
        ctx.save_for_backward(vectors, densities, colors, seen)
        return seen

    @staticmethod
    def backward(ctx, grad):
        *parameters, seen = ctx.saved_tensors
        grads = tuple(torch.zeros_like(tensor) for tensor in parameters)
        launch(trace_ray, parameters, ctx.marched, (seen, grad.contiguous()), grads)
        return (*grads, None, None, None, None)


def launch(kernel, parameters, marched, given, outputs) -> None:
    """Run a kernel over all rays; on a CPU they are shared among threads, but gradients would collide."""
    field, eye, rays, offsets = marched
    device = wp.device_from_torch(rays.device)
    stream = wp.stream_from_torch(torch.cuda.current_stream(rays.device)) if device.is_cuda else None
    inputs = [
        *(wp.from_torch(tensor.detach()) for tensor in parameters),
        wp.from_torch(field.keys.contiguous()),
        field.resolution,
        wp.vec3(*eye.tolist()),
        wp.from_torch(rays, dtype=wp.vec3),
        wp.from_torch(offsets),
        field.step,
        field.bias,
        field.gain,
        *(wp.from_torch(tensor.detach()) for tensor in given),
    ]
    typed = [wp.from_torch(tensor) for tensor in outputs]

    def run(first: int, count: int) -> None:
        wp.launch(kernel, dim=count, inputs=[first, *inputs], outputs=typed, device=device, stream=stream)

    threads = 1 if device.is_cuda or kernel is trace_ray else torch.get_num_threads()
    if threads == 1 or not len(rays):
        run(0, len(rays))
        return
    run(0, 1)  # compiles before the threads start
    step = max(1, len(rays) // (8 * threads))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: run(first, min(step, len(rays) - first)), range(1, len(rays), step)))


@wp.func
def slow(component: wp.float32) -> wp.float32:
    return wp.where(wp.abs(component) < 1.0e-9, 1.0e-9, component)


@wp.func
def cube_range(eye: wp.vec3, ray: wp.vec3) -> wp.vec2:
    """Distances at which a ray enters and leaves the cube."""
    near = wp.float32(0.0)
    far = wp.float32(1.0e30)
    for a in range(3):
        low = (-0.5 - eye[a]) / slow(ray[a])
        high = (0.5 - eye[a]) / slow(ray[a])
        near = wp.max(near, wp.min(low, high))
        far = wp.min(far, wp.max(low, high))
    return wp.vec2(near, far)


@wp.func
def cell_at(eye: wp.vec3, ray: wp.vec3, along: wp.float32, side: wp.int32) -> wp.vec3i:
    place = (eye + ray * along + wp.vec3(0.5, 0.5, 0.5)) * wp.float32(side)
    return wp.vec3i(
        wp.clamp(wp.int32(wp.floor(place[0])), 0, side - 1),
        wp.clamp(wp.int32(wp.floor(place[1])), 0, side - 1),
        wp.clamp(wp.int32(wp.floor(place[2])), 0, side - 1),
    )


@wp.func
def crossing(eye: wp.float32, ray: wp.float32, cell: wp.int32, side: wp.int32) -> wp.float32:
    if wp.abs(ray) < 1.0e-9:
        return wp.float32(1.0e30)
    return (wp.float32(cell + wp.where(ray > 0.0, 1, 0)) / wp.float32(side) - 0.5 - eye) / ray


@wp.func
def exits(eye: wp.vec3, ray: wp.vec3, cell: wp.vec3i, side: wp.int32) -> wp.vec3:
    """Distances at which a ray crosses the far sides of a voxel."""
    return wp.vec3(
        crossing(eye[0], ray[0], cell[0], side),
        crossing(eye[1], ray[1], cell[1], side),
        crossing(eye[2], ray[2], cell[2], side),
    )


@wp.func
def next_cell(cell: wp.vec3i, crossings: wp.vec3, ray: wp.vec3) -> wp.vec3i:
    axis = wp.argmin(crossings)
    step = wp.where(ray[axis] > 0.0, 1, -1)
    return cell + wp.vec3i(
        wp.where(axis == wp.uint32(0), step, 0),
        wp.where(axis == wp.uint32(1), step, 0),
        wp.where(axis == wp.uint32(2), step, 0),
    )


@wp.func
def find(keys: wp.array(dtype=wp.int64), cell: wp.vec3i, side: wp.int32) -> wp.int32:
    if wp.min(cell) < 0 or wp.max(cell) >= side:
        return -1
    key = (wp.int64(cell[0]) * wp.int64(side) + wp.int64(cell[1])) * wp.int64(side) + wp.int64(cell[2])
    row = wp.min(wp.lower_bound(keys, key), keys.shape[0] - 1)
    return wp.where(keys[row] == key, row, -1)


@wp.func
def low_sample(place: wp.float32, samples: wp.int32) -> wp.int32:
    return wp.clamp(wp.int32(wp.floor(place)), 0, samples - 2)


@wp.func
def line(
    vectors: wp.array(dtype=wp.float32, ndim=4), n: wp.int32, k: wp.int32, axis: wp.int32, at: wp.float32
):
    i = low_sample(at, vectors.shape[3])
    low = vectors[n, k, axis, i]
    return low + (at - wp.float32(i)) * (vectors[n, k, axis, i + 1] - low)


@wp.func
def softplus(x: wp.float32) -> wp.float32:
    return wp.max(x, 0.0) + wp.log(1.0 + wp.exp(-wp.abs(x)))


@wp.func
def sigmoid(x: wp.float32) -> wp.float32:
    return 1.0 / (1.0 + wp.exp(-x))


@wp.func
def sample_place(point: wp.vec3, cell: wp.vec3i, side: wp.int32, samples: wp.int32) -> wp.vec3:
    """Position in a voxel in units of the vectors' samples."""
    middle = wp.vec3(0.5, 0.5, 0.5)
    corner = wp.vec3(wp.float32(cell[0]), wp.float32(cell[1]), wp.float32(cell[2]))
    return ((point + middle) * wp.float32(side) - corner) * wp.float32(samples) - middle


@wp.func
def raw_sums(
    vectors: wp.array(dtype=wp.float32, ndim=4),
    densities: wp.array2d(dtype=wp.float32),
    colors: wp.array3d(dtype=wp.float32),
    n: wp.int32,
    q: wp.vec3,
) -> wp.vec4:
    """Sums over ranks: red, green, blue, density."""
    total = wp.vec4(0.0, 0.0, 0.0, 0.0)
    for k in range(densities.shape[1]):
        rank = line(vectors, n, k, 0, q[0]) * line(vectors, n, k, 1, q[1]) * line(vectors, n, k, 2, q[2])
        weights = wp.vec4(colors[n, k, 0], colors[n, k, 1], colors[n, k, 2], densities[n, k])
        total += rank * weights
    return total


@wp.kernel
def follow_ray(
    first: wp.int32,
    vectors: wp.array(dtype=wp.float32, ndim=4),
    densities: wp.array2d(dtype=wp.float32),
    colors: wp.array3d(dtype=wp.float32),
    keys: wp.array(dtype=wp.int64),
    side: wp.int32,
    eye: wp.vec3,
    rays: wp.array(dtype=wp.vec3),
    offsets: wp.array(dtype=wp.float32),
    step: wp.float32,
    bias: wp.float32,
    gain: wp.float32,
    seen: wp.array2d(dtype=wp.float32),
):
    p = first + wp.tid()
    ray = rays[p]
    offset = offsets[p]
    light = wp.float32(1.0)
    color = wp.vec3(0.0, 0.0, 0.0)
    distance = wp.float32(0.0)
    median = wp.float32(0.0)
    span = cube_range(eye, ray)
    cell = cell_at(eye, ray, span[0] + 1.0e-6, side)  # just inside
    far = span[0]
    while far < span[1] and light >= wp.static(DARK):
        near = far
        crossings = exits(eye, ray, cell, side)
        far = wp.max(near, wp.min(wp.min(crossings), span[1]))
        n = find(keys, cell, side)
        if n >= 0:
            number = wp.int32(wp.ceil(near / step - offset))
            while number < wp.int32(wp.ceil(far / step - offset)) and light >= wp.static(DARK):
                along = (wp.float32(number) + offset) * step
                number += 1
                q = sample_place(eye + ray * along, cell, side, vectors.shape[3])
                total = raw_sums(vectors, densities, colors, n, q)
                density = gain * softplus(total[3] - bias)
                alpha = wp.min(wp.static(OPAQUE), 1.0 - wp.exp(-density * step))
                weight = alpha * light
                color += weight * wp.vec3(sigmoid(total[0]), sigmoid(total[1]), sigmoid(total[2]))
                distance += weight * along
                after = light * (1.0 - alpha)
                if light >= 0.5 and after < 0.5:
                    median = along
                light = after
        cell = next_cell(cell, crossings, ray)
    for c in range(3):
        seen[p, c] = color[c]
    seen[p, 3] = light
    seen[p, 4] = distance
    seen[p, 5] = median


@wp.kernel
def trace_ray(
    first: wp.int32,
    vectors: wp.array(dtype=wp.float32, ndim=4),
    densities: wp.array2d(dtype=wp.float32),
    colors: wp.array3d(dtype=wp.float32),
    keys: wp.array(dtype=wp.int64),
    side: wp.int32,
    eye: wp.vec3,
    rays: wp.array(dtype=wp.vec3),
    offsets: wp.array(dtype=wp.float32),
    step: wp.float32,
    bias: wp.float32,
    gain: wp.float32,
    seen: wp.array2d(dtype=wp.float32),
    grad: wp.array2d(dtype=wp.float32),
    vectors_grad: wp.array(dtype=wp.float32, ndim=4),
    densities_grad: wp.array2d(dtype=wp.float32),
    colors_grad: wp.array3d(dtype=wp.float32),
):
    """Follow the ray again; what lies behind a sample is the whole less what came before it."""
    p = first + wp.tid()
    ray = rays[p]
    offset = offsets[p]
    color_grad = wp.vec3(grad[p, 0], grad[p, 1], grad[p, 2])
    light = wp.float32(1.0)
    behind = seen[p, 3] * grad[p, 3] + seen[p, 4] * grad[p, 4]
    for c in range(3):
        behind += seen[p, c] * color_grad[c]
    span = cube_range(eye, ray)
    cell = cell_at(eye, ray, span[0] + 1.0e-6, side)  # just inside
    far = span[0]
    while far < span[1] and light >= wp.static(DARK):
        near = far
        crossings = exits(eye, ray, cell, side)
        far = wp.max(near, wp.min(wp.min(crossings), span[1]))
        n = find(keys, cell, side)
        if n >= 0:
            number = wp.int32(wp.ceil(near / step - offset))
            while number < wp.int32(wp.ceil(far / step - offset)) and light >= wp.static(DARK):
                along = (wp.float32(number) + offset) * step
                number += 1
                q = sample_place(eye + ray * along, cell, side, vectors.shape[3])
                total = raw_sums(vectors, densities, colors, n, q)
                density = gain * softplus(total[3] - bias)
                covered = 1.0 - wp.exp(-density * step)
                alpha = wp.min(wp.static(OPAQUE), covered)
                shade = wp.vec3(sigmoid(total[0]), sigmoid(total[1]), sigmoid(total[2]))
                value = wp.dot(shade, color_grad) + along * grad[p, 4]
                weight = alpha * light
                behind -= weight * value
                alpha_grad = light * value - behind / (1.0 - alpha)
                raw_grad = wp.vec4()
                for c in range(3):
                    raw_grad[c] = weight * color_grad[c] * shade[c] * (1.0 - shade[c])
                if covered <= wp.static(OPAQUE):
                    raw_grad[3] = alpha_grad * (1.0 - covered) * step * gain * sigmoid(total[3] - bias)
                spread(vectors, densities, colors, n, q, raw_grad, vectors_grad, densities_grad, colors_grad)
                light = light * (1.0 - alpha)
        cell = next_cell(cell, crossings, ray)


@wp.func
def spread(
    vectors: wp.array(dtype=wp.float32, ndim=4),
    densities: wp.array2d(dtype=wp.float32),
    colors: wp.array3d(dtype=wp.float32),
    n: wp.int32,
    q: wp.vec3,
    grad: wp.vec4,
    vectors_grad: wp.array(dtype=wp.float32, ndim=4),
    densities_grad: wp.array2d(dtype=wp.float32),
    colors_grad: wp.array3d(dtype=wp.float32),
):
    """Add the gradient of the sums over ranks to that of the voxel's numbers."""
    for k in range(densities.shape[1]):
        lines = wp.vec3(
            line(vectors, n, k, 0, q[0]), line(vectors, n, k, 1, q[1]), line(vectors, n, k, 2, q[2])
        )
        rank = lines[0] * lines[1] * lines[2]
        rank_grad = grad[3] * densities[n, k]
        wp.atomic_add(densities_grad, n, k, grad[3] * rank)
        for c in range(3):
            rank_grad += grad[c] * colors[n, k, c]
            wp.atomic_add(colors_grad, n, k, c, grad[c] * rank)
        for a in range(3):
            along = rank_grad * lines[(a + 1) % 3] * lines[(a + 2) % 3]
            i = low_sample(q[a], vectors.shape[3])
            share = q[a] - wp.float32(i)
            wp.atomic_add(vectors_grad, n, k, a, i, along * (1.0 - share))
            wp.atomic_add(vectors_grad, n, k, a, i + 1, along * share)
