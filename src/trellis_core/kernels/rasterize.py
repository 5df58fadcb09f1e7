"""Triangle rasterisation: which face covers each pixel, and where inside it. Plain torch, any device.

Corners are snapped to 1/4096 pixel and edges are evaluated in integers, so coverage is exact: neighbouring
faces leave no gap, and every backend covers the same pixels (Pineda, "A Parallel Algorithm for Polygon
Rasterization", 1988). Knows nothing about cameras, textures or shading.
Letters: V points, F faces, P pairs of a face and a pixel of its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SUBPIXEL_BITS = 12
ONE = 1 << SUBPIXEL_BITS  # one pixel in fixed point
HALF = ONE // 2
REACH = 1 << 16  # pixels; faces with a corner further away are not drawn: int64 edges stay exact
NO_KEY = torch.iinfo(torch.int64).max
PAIRS_AT_ONCE = 1 << 19  # bounds the memory of the torch path, about 200 bytes per pair


def rasterize(
    points: Tensor,  # float32 [V, 3]  x to the right and y down in pixels, depth
    faces: Tensor,  # int32 [F, 3]    either orientation
    height: int,
    width: int,
    behind: Tensor
    | None = None,  # int32 [H, W]  faces of the layer in front, -1 where nothing more is wanted
) -> tuple[Tensor, Tensor]:  # int32 [H, W] face or -1, float32 [H, W, 3] barycentric, 0 where no face
    """Find the face with the smallest depth at every pixel centre (+0.5); ties go to the lowest face.

    Depth and barycentric coordinates are linear in the image: for perspective views pass a depth that is,
    such as -1/z. Pixels on an edge belong to both faces. Faces without area, with a corner that is not
    finite or further than 65,536 pixels away are not drawn. `behind` peels the next layer (Everitt,
    "Interactive Order-Independent Transparency", 2001).
    """
    scene = prepare(points, faces, height, width)
    barrier = None if behind is None else layer_keys(scene, behind)
    keys = torch.full((height * width,), NO_KEY, dtype=torch.int64, device=points.device)
    sizes = (scene.bounds[:, 2] - scene.bounds[:, 0]) * (scene.bounds[:, 3] - scene.bounds[:, 1])
    ends = sizes.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, PAIRS_AT_ONCE):
        pair = torch.arange(start, min(start + PAIRS_AT_ONCE, total), device=points.device)
        face = torch.searchsorted(ends, pair, right=True)
        x0, y0, x1, _ = scene.bounds[face].unbind(1)
        offset = pair - (ends[face] - sizes[face])
        x, y = x0 + offset % (x1 - x0), y0 + offset // (x1 - x0)
        weights, area = edge_weights(scene, face, x, y)
        inside = (weights >= 0).all(1)
        face, pixel = face[inside], (y * width + x)[inside]
        key = fragment_key(scene, face, weights[inside], area[inside])
        if barrier is not None:
            key = torch.where(key > barrier[pixel], key, NO_KEY)
        keys.scatter_reduce_(0, pixel, key, "amin")
    return unpack(scene, keys)


@dataclass(frozen=True, slots=True)
class Scene:
    """Faces ready to be drawn; shared by all backends."""

    corners: Tensor  # int32 [V, 2]    fixed point
    depth: Tensor  # float32 [V]
    faces: Tensor  # int32 [F, 3]
    bounds: Tensor  # int64 [F, 4]    pixels x0, y0, x1, y1, end exclusive; empty for faces not drawn
    height: int
    width: int


def prepare(points: Tensor, faces: Tensor, height: int, width: int) -> Scene:
    """Snap the corners and find the pixels that each face may cover."""
    usable = torch.isfinite(points).all(1) & (points[:, :2].abs() <= REACH).all(1)
    safe = torch.where(usable[:, None], points, 0.0)
    corners = (safe[:, :2].double() * ONE).round().int()
    triangles = faces.long()
    xy = corners.long()[triangles]
    first = ((xy.amin(1) + (HALF - 1)) >> SUBPIXEL_BITS).clamp(min=0)
    limit = torch.tensor([width, height], device=points.device)
    last = torch.minimum(((xy.amax(1) - HALF) >> SUBPIXEL_BITS) + 1, limit)
    (ax, ay), (bx, by) = (xy[:, 1] - xy[:, 0]).unbind(1), (xy[:, 2] - xy[:, 0]).unbind(1)
    drawn = usable[triangles].all(1) & (ax * by != ay * bx) & (last > first).all(1)
    bounds = torch.where(drawn[:, None], torch.cat([first, last], 1), 0)
    depth = safe[:, 2].contiguous() + 0.0  # + 0.0 turns -0.0 into 0.0
    return Scene(corners.contiguous(), depth, faces.int().contiguous(), bounds, height, width)


def edge_weights(
    scene: Scene,
    face: Tensor,  # int64 [P]
    x: Tensor,  # int64 [P]  pixel
    y: Tensor,  # int64 [P]
) -> tuple[Tensor, Tensor]:  # int64 [P, 3], int64 [P] their sum, positive
    """Twice the area between the pixel centre and each edge, positive inside whatever the orientation."""
    corners = scene.corners.long()[scene.faces[face].long()] - torch.stack([x, y], 1)[:, None] * ONE - HALF
    a, b = corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]
    weights = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    area = weights.sum(1)
    return weights * area.sign()[:, None], area.abs()


def fragment_key(scene: Scene, face: Tensor, weights: Tensor, area: Tensor) -> Tensor:  # int64 [P]
    """What the nearest face of a pixel has least of."""
    z = scene.depth[scene.faces[face].long()].double()
    bary = weights.double() / area.double()[:, None]
    depth = z[:, 0] + (bary[:, 1] * (z[:, 1] - z[:, 0]) + bary[:, 2] * (z[:, 2] - z[:, 0]))
    return pack_key(depth.float(), face)


def layer_keys(scene: Scene, layer: Tensor) -> Tensor:  # int32 [H, W] -> int64 [H * W]
    """Keys of a layer that was drawn before; the highest key, behind which nothing lies, where it is -1."""
    keys = torch.full((layer.numel(),), NO_KEY, dtype=torch.int64, device=layer.device)
    for pixel in torch.nonzero(layer.reshape(-1) >= 0)[:, 0].split(PAIRS_AT_ONCE):
        face = layer.reshape(-1)[pixel].long()
        keys[pixel] = fragment_key(
            scene, face, *edge_weights(scene, face, pixel % scene.width, pixel // scene.width)
        )
    return keys


def pack_key(depth: Tensor, face: Tensor) -> Tensor:
    """int64 that sorts by depth, then by face: the float's bits, made monotonic, above the face number."""
    bits = (depth + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.long() << 32) | face


def unpack(scene: Scene, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Faces and barycentric coordinates from the winning keys int64 [H * W]."""
    face = torch.where(keys == NO_KEY, -1, keys & 0xFFFFFFFF).int()
    bary = torch.zeros(len(keys), 3, device=keys.device)
    for pixel in torch.nonzero(face >= 0)[:, 0].split(PAIRS_AT_ONCE):
        weights, area = edge_weights(scene, face[pixel].long(), pixel % scene.width, pixel // scene.width)
        bary[pixel] = (weights.double() / area.double()[:, None]).float()
    shape = (scene.height, scene.width)
    return face.view(shape), bary.view(*shape, 3)
