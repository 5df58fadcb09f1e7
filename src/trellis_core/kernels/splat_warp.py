# mypy: ignore-errors
"""Compositing splats in Warp, on CPU and CUDA. The twin of `splat.py`, with its own gradient.

One thread draws one pixel; the threads of a block share a tile, so that they read the same splats. Gradients
of a splat are summed over its pixels with atomic additions, in no fixed order on a GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.splat import FAINT, FULL, OPAQUE, bin_splats
from trellis_core.kernels.warp_start import start_warp

TILE = 8  # pixels; smaller than the reference's: fewer splats per pixel that do not reach it

start_warp()
wp.set_module_options({"enable_backward": False, "fuse_fp": False})


def splat_warp(
    centers: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """See `splat.splat`."""
    given = [tensor.float().contiguous() for tensor in (centers, conics, opacities, values)]
    image, light = Blend.apply(*given, height, width)
    return image.view(height, width, values.shape[1]), light.view(height, width)


class Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, centers, conics, opacities, values, height, width):
        starts, order = bin_splats(centers, conics, opacities, height, width, TILE)
        image = values.new_zeros(height * width, values.shape[1])
        light = values.new_ones(height * width)
        last = torch.zeros(height * width, dtype=torch.int32, device=values.device)
        splats = (centers, conics, opacities, values)
        launch(draw_pixel, splats, starts, order, (height, width), (), (image, light, last))
        ctx.save_for_backward(*splats, starts, order, light, last)
        ctx.size = (height, width)
        ctx.set_materialize_grads(True)
        return image, light

    @staticmethod
    def backward(ctx, image_grad, light_grad):
        *splats, starts, order, light, last = ctx.saved_tensors
        grads = tuple(torch.zeros_like(tensor) for tensor in splats)
        given = (light, last, image_grad.contiguous(), light_grad.contiguous())
        launch(trace_pixel, splats, starts, order, ctx.size, given, grads)
        return (*grads, None, None)


def launch(kernel, splats, starts, order, size, given, outputs) -> None:
    """Run a kernel over all pixels; drawing on a CPU is shared among threads, gradients would collide."""
    height, width = size
    centers, conics, opacities, values = (tensor.detach() for tensor in splats)
    device = wp.device_from_torch(values.device)
    stream = wp.stream_from_torch(torch.cuda.current_stream(values.device)) if device.is_cuda else None
    tiles = (-(-width // TILE)) * (-(-height // TILE))
    inputs = [
        wp.from_torch(centers, dtype=wp.vec2),
        wp.from_torch(conics, dtype=wp.vec3),
        wp.from_torch(opacities),
        wp.from_torch(values),
        wp.from_torch(starts),
        wp.from_torch(order),
        height,
        width,
        *(wp.from_torch(tensor.detach()) for tensor in given),
    ]
    shapes = {2: wp.vec2, 3: wp.vec3}
    typed = [wp.from_torch(tensor) for tensor in outputs]
    if kernel is trace_pixel:
        typed = [wp.from_torch(t, dtype=shapes[t.shape[1]]) for t in outputs[:2]] + typed[2:]

    def run(first: int, count: int) -> None:
        wp.launch(
            kernel,
            dim=count * TILE * TILE,
            inputs=[first * TILE * TILE, *inputs],
            outputs=typed,
            device=device,
            stream=stream,
            block_dim=TILE * TILE,
        )

    threads = 1 if device.is_cuda or kernel is trace_pixel else torch.get_num_threads()
    if threads == 1:
        run(0, tiles)
        return
    run(0, 1)  # compiles before the threads start
    step = max(1, tiles // (4 * threads))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: run(first, min(step, tiles - first)), range(1, tiles, step)))


@wp.func
def place_of(thread: wp.int32, width: wp.int32) -> wp.vec3i:
    """Pixel x and y, and tile, of a thread; tiles row by row, pixels row by row in each."""
    side = wp.static(TILE)
    columns = (width + side - 1) // side
    tile = thread // (side * side)
    inner = thread % (side * side)
    return wp.vec3i(tile % columns * side + inner % side, tile // columns * side + inner // side, tile)


@wp.func
def falloff(conic: wp.vec3, d: wp.vec2) -> wp.float32:
    return -0.5 * (conic[0] * d[0] * d[0] + conic[2] * d[1] * d[1]) - conic[1] * d[0] * d[1]


@wp.kernel
def draw_pixel(
    first: wp.int32,
    centers: wp.array(dtype=wp.vec2),
    conics: wp.array(dtype=wp.vec3),
    opacities: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
    starts: wp.array(dtype=wp.int64),
    order: wp.array(dtype=wp.int32),
    height: wp.int32,
    width: wp.int32,
    image: wp.array2d(dtype=wp.float32),
    light: wp.array(dtype=wp.float32),
    last: wp.array(dtype=wp.int32),
):
    place = place_of(first + wp.tid(), width)
    if place[0] >= width or place[1] >= height:
        return
    pixel = place[1] * width + place[0]
    at = wp.vec2(wp.float32(place[0]) + 0.5, wp.float32(place[1]) + 0.5)
    start = wp.int32(starts[place[2]])
    left = wp.float32(1.0)
    drawn = wp.int32(0)
    for i in range(start, wp.int32(starts[place[2] + 1])):
        g = order[i]
        power = falloff(conics[g], at - centers[g])
        opacity = opacities[g]
        if power < -6.0:  # exp(-6) is below FAINT
            continue
        alpha = wp.min(wp.static(OPAQUE), opacity * wp.exp(power))
        if alpha < wp.static(FAINT):
            continue
        after = left * (1.0 - alpha)
        if after < wp.static(FULL):
            break
        for c in range(values.shape[1]):
            image[pixel, c] = image[pixel, c] + alpha * left * values[g, c]
        left = after
        drawn = i - start + 1
    light[pixel] = left
    last[pixel] = drawn


@wp.kernel
def trace_pixel(
    first: wp.int32,
    centers: wp.array(dtype=wp.vec2),
    conics: wp.array(dtype=wp.vec3),
    opacities: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
    starts: wp.array(dtype=wp.int64),
    order: wp.array(dtype=wp.int32),
    height: wp.int32,
    width: wp.int32,
    light: wp.array(dtype=wp.float32),
    last: wp.array(dtype=wp.int32),
    image_grad: wp.array2d(dtype=wp.float32),
    light_grad: wp.array(dtype=wp.float32),
    centers_grad: wp.array(dtype=wp.vec2),
    conics_grad: wp.array(dtype=wp.vec3),
    opacities_grad: wp.array(dtype=wp.float32),
    values_grad: wp.array2d(dtype=wp.float32),
):
    """Go back from the last splat of a pixel to the first, undoing what each took of the light."""
    place = place_of(first + wp.tid(), width)
    if place[0] >= width or place[1] >= height:
        return
    pixel = place[1] * width + place[0]
    at = wp.vec2(wp.float32(place[0]) + 0.5, wp.float32(place[1]) + 0.5)
    start = wp.int32(starts[place[2]])
    left = light[pixel]
    behind = left * light_grad[pixel]  # what everything behind contributes to the loss, to first order
    count = last[pixel]
    for j in range(count):
        g = order[start + count - 1 - j]
        d = at - centers[g]
        conic = conics[g]
        power = falloff(conic, d)
        if power < -6.0:
            continue
        shape = wp.exp(power)
        wanted = opacities[g] * shape
        alpha = wp.min(wp.static(OPAQUE), wanted)
        if alpha < wp.static(FAINT):
            continue
        before = left / (1.0 - alpha)
        seen = wp.float32(0.0)
        for c in range(values.shape[1]):
            grad = image_grad[pixel, c]
            seen += values[g, c] * grad
            wp.atomic_add(values_grad, g, c, alpha * before * grad)
        alpha_grad = before * seen - behind / (1.0 - alpha)
        behind += alpha * before * seen
        left = before
        if wanted <= wp.static(OPAQUE):
            wp.atomic_add(opacities_grad, g, shape * alpha_grad)
            power_grad = alpha * alpha_grad
            xx = -0.5 * d[0] * d[0] * power_grad
            yy = -0.5 * d[1] * d[1] * power_grad
            wp.atomic_add(conics_grad, g, wp.vec3(xx, -d[0] * d[1] * power_grad, yy))
            towards = wp.vec2(conic[0] * d[0] + conic[1] * d[1], conic[1] * d[0] + conic[2] * d[1])
            wp.atomic_add(centers_grad, g, towards * power_grad)
