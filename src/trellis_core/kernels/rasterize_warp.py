# mypy: ignore-errors
"""Triangle rasterisation in Warp, on CPU and CUDA. The twin of `rasterize.py`, equal to the last bit.

One thread draws one tile of one face; the winner of a pixel is an atomic minimum over (depth, face).
"""

from __future__ import annotations

import torch
import warp as wp
from torch import Tensor

from trellis_core.kernels.rasterize import HALF, NO_KEY, ONE, layer_keys, prepare, rasterize
from trellis_core.kernels.warp_start import start_warp

TILE = 64  # pixels; splits large faces over several threads

start_warp()
wp.set_module_options({"enable_backward": False, "fuse_fp": False})


def rasterize_warp(
    points: Tensor,
    faces: Tensor,
    height: int,
    width: int,
    behind: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `rasterize.rasterize`."""
    if not len(faces) or not height * width:
        return rasterize(points, faces, height, width, behind)
    scene = prepare(points, faces, height, width)
    device = points.device
    extent = (scene.bounds[:, 2:] - scene.bounds[:, :2] + (TILE - 1)) // TILE
    tiles = extent[:, 0] * extent[:, 1]
    tile_face = torch.repeat_interleave(torch.arange(len(faces), dtype=torch.int32, device=device), tiles)
    first_tile = tiles.cumsum(0) - tiles
    keys = torch.full((height * width,), NO_KEY, dtype=torch.int64, device=device)
    barrier = keys[:0] if behind is None else layer_keys(scene, behind)
    face = torch.empty(height * width, dtype=torch.int32, device=device)
    bary = torch.empty(height * width, 3, device=device)

    corners = wp.from_torch(scene.corners, dtype=wp.vec2i)
    triangles = wp.from_torch(scene.faces, dtype=wp.vec3i)
    stream = wp.stream_from_torch(torch.cuda.current_stream(device)) if device.type == "cuda" else None
    target = wp.device_from_torch(device)
    wp.launch(
        draw_tile,
        dim=len(tile_face),
        inputs=[
            corners,
            wp.from_torch(scene.depth),
            triangles,
            wp.from_torch(scene.bounds.int(), dtype=wp.vec4i),
            wp.from_torch(tile_face),
            wp.from_torch(first_tile.int()),
            wp.from_torch(barrier),
            width,
        ],
        outputs=[wp.from_torch(keys)],
        device=target,
        stream=stream,
    )
    wp.launch(
        read_pixel,
        dim=height * width,
        inputs=[corners, triangles, wp.from_torch(keys), width],
        outputs=[wp.from_torch(face), wp.from_torch(bary, dtype=wp.vec3)],
        device=target,
        stream=stream,
    )
    return face.view(height, width), bary.view(height, width, 3)


@wp.func
def edge(a: wp.vec2i, b: wp.vec2i, x: wp.int64, y: wp.int64) -> wp.int64:
    ax, ay = wp.int64(a[0]) - x, wp.int64(a[1]) - y
    bx, by = wp.int64(b[0]) - x, wp.int64(b[1]) - y
    return ax * by - ay * bx


@wp.func
def pixel_center(i: wp.int32) -> wp.int64:
    return wp.int64(i) * wp.int64(wp.static(ONE)) + wp.int64(wp.static(HALF))


@wp.kernel
def draw_tile(
    corners: wp.array(dtype=wp.vec2i),
    depth: wp.array(dtype=wp.float32),
    faces: wp.array(dtype=wp.vec3i),
    bounds: wp.array(dtype=wp.vec4i),
    tile_face: wp.array(dtype=wp.int32),
    first_tile: wp.array(dtype=wp.int32),
    barrier: wp.array(dtype=wp.int64),
    width: wp.int32,
    keys: wp.array(dtype=wp.int64),
):
    thread = wp.tid()
    f = tile_face[thread]
    tile = thread - first_tile[f]
    box = bounds[f]
    side = wp.static(TILE)
    columns = (box[2] - box[0] + side - 1) // side
    x0 = box[0] + (tile % columns) * side
    y0 = box[1] + (tile // columns) * side
    x1 = wp.min(x0 + side, box[2])
    y1 = wp.min(y0 + side, box[3])

    v = faces[f]
    a, b, c = corners[v[0]], corners[v[1]], corners[v[2]]
    z0 = wp.float64(depth[v[0]])
    dz1 = wp.float64(depth[v[1]]) - z0
    dz2 = wp.float64(depth[v[2]]) - z0
    zero = wp.int64(0)
    area = edge(b, c, zero, zero) + edge(c, a, zero, zero) + edge(a, b, zero, zero)
    sign = wp.where(area < zero, wp.int64(-1), wp.int64(1))
    scale = wp.float64(area * sign)
    # moving one pixel to the right changes an edge's weight by a constant
    step0 = sign * wp.int64(b[1] - c[1]) * wp.int64(wp.static(ONE))
    step1 = sign * wp.int64(c[1] - a[1]) * wp.int64(wp.static(ONE))
    step2 = sign * wp.int64(a[1] - b[1]) * wp.int64(wp.static(ONE))
    for y in range(y0, y1):
        px, py = pixel_center(x0), pixel_center(y)
        w0 = sign * edge(b, c, px, py)
        w1 = sign * edge(c, a, px, py)
        w2 = sign * edge(a, b, px, py)
        for x in range(x0, x1):
            if w0 >= zero and w1 >= zero and w2 >= zero:
                z = z0 + (wp.float64(w1) / scale * dz1 + wp.float64(w2) / scale * dz2)
                bits = wp.cast(wp.float32(z) + wp.float32(0.0), wp.int32)
                ordered = wp.where(bits < 0, bits ^ wp.int32(0x7FFFFFFF), bits)
                key = (wp.int64(ordered) << wp.int64(32)) | wp.int64(f)
                pixel = y * width + x
                if barrier.shape[0] == 0 or key > barrier[pixel]:
                    wp.atomic_min(keys, pixel, key)
            w0 += step0
            w1 += step1
            w2 += step2


@wp.kernel
def read_pixel(
    corners: wp.array(dtype=wp.vec2i),
    faces: wp.array(dtype=wp.vec3i),
    keys: wp.array(dtype=wp.int64),
    width: wp.int32,
    face: wp.array(dtype=wp.int32),
    bary: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    key = keys[i]
    if key == wp.static(wp.int64(NO_KEY)):
        face[i] = -1
        bary[i] = wp.vec3(0.0, 0.0, 0.0)
        return
    f = wp.int32(key & wp.int64(0xFFFFFFFF))
    face[i] = f
    v = faces[f]
    a, b, c = corners[v[0]], corners[v[1]], corners[v[2]]
    px, py = pixel_center(i % width), pixel_center(i // width)
    w0, w1, w2 = edge(b, c, px, py), edge(c, a, px, py), edge(a, b, px, py)
    area = wp.float64(w0 + w1 + w2)
    bary[i] = wp.vec3(
        wp.float32(wp.float64(w0) / area),
        wp.float32(wp.float64(w1) / area),
        wp.float32(wp.float64(w2) / area),
    )
