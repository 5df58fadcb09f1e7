"""Differentiable pictures of triangle meshes, for losses that compare surfaces as a camera sees them.

Which face covers a pixel is decided once, without gradient, by the reference rasteriser; depth, position and
normal of the covered pixels are then exact functions of the three corners. The mask gets its gradient where
a face ends between two pixels: there coverage is blended along the line between their centres, as in
Laine et al., "Modular Primitives for High-Performance Differentiable Rendering" (2020).

Letters: H height, W width (equal here), V vertices, F faces, P pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera, look_at, perspective_intrinsics
from trellis_core.geometry.types import Mesh
from trellis_core.kernels.rasterize import rasterize

NEAREST = 0.01  # smallest near plane
WALK = 8  # faces between a covered pixel's centre and an outline; further away the mask stays hard

Rasterize = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class SurfaceImages:
    """What cameras see; zeros where they see nothing."""

    mask: Tensor  # float32 [B, 1, H, W]  coverage
    depth: Tensor  # float32 [B, 1, H, W]  along the camera's z
    normal: Tensor  # float32 [B, 3, H, W]  (n + 1) / 2 of the unit normal: world space, turned to the viewer
    position: Tensor | None = None  # float32 [B, 3, H, W]  world space
    attributes: Tensor | None = None  # float32 [B, A, H, W]  interpolated between the vertices


@dataclass(frozen=True, slots=True)
class View:
    """A camera that sees nothing in front of its near plane, and so looks into closed objects."""

    camera: Camera
    near: float = NEAREST


def random_view(generator: torch.Generator) -> View:
    """A camera of the released render losses: it sees the unit sphere's inner half from anywhere.

    1/r^2 uniform between 1/100^2 and 1/2^2, opening angle 2 asin(0.5 / r), direction uniform on the sphere,
    near plane uniform in [r - 1, r]: anywhere up to the middle of the object.
    """
    u = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    direction = torch.randn(3, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    low, high = 1 / 100**2, 1 / 2**2
    radius = float(1 / (low + (high - low) * u[0]).sqrt())
    eye = torch.nn.functional.normalize(direction, dim=0) * radius
    fov = 2 * math.asin(0.5 / radius)
    camera = Camera(look_at(eye, torch.zeros(3, dtype=torch.float64)), perspective_intrinsics(fov))
    return View(camera, max(radius - 1 + float(u[1]), NEAREST))


def draw_surfaces(
    meshes: Sequence[Mesh],
    views: Sequence[View],  # one per mesh
    size: int,
    rasterizer: Rasterize = rasterize,
    *,
    attributes: Sequence[Tensor] | None = None,  # float32 [V, A] of each mesh
    two_sided: bool = True,
) -> SurfaceImages:
    """Draw each mesh from its view at `size` x `size` pixels; differentiable in vertices and attributes."""
    values = [None] * len(meshes) if attributes is None else attributes
    drawn = [
        draw_surface(m, v, size, rasterizer, attributes=x, two_sided=two_sided)
        for m, v, x in zip(meshes, views, values, strict=True)
    ]
    batches = ([getattr(one, f.name) for one in drawn] for f in fields(SurfaceImages))
    return SurfaceImages(*(None if batch[0] is None else torch.cat(batch) for batch in batches))  # type: ignore[arg-type]


def draw_surface(
    mesh: Mesh,
    view: View,
    size: int,
    rasterizer: Rasterize = rasterize,
    *,
    attributes: Tensor | None = None,  # float32 [V, A]
    two_sided: bool = True,  # turn normals to the viewer; else they are those of the faces
) -> SurfaceImages:
    """One mesh, as a batch of one."""
    extrinsics = view.camera.extrinsics.to(mesh.vertices)
    intrinsics = view.camera.intrinsics.to(mesh.vertices)
    rotation, shift = extrinsics[:3, :3], extrinsics[:3, 3]
    corners_of = mesh.vertices @ rotation.T + shift
    if attributes is not None:
        corners_of = torch.cat([corners_of, attributes], 1)
    vertices, faces = clip_near(corners_of, mesh.faces, max(view.near, NEAREST))
    vertices, values = vertices[:, :3], vertices[:, 3:]
    seen = vertices @ intrinsics.T
    z = seen[:, 2:].clamp_min(NEAREST)  # of corners that no face has any more, too
    places = seen[:, :2] / z * size  # in pixels
    face, _ = rasterizer(torch.cat([places, -1 / z], 1).detach(), faces, size, size)

    covered = face >= 0
    rows, columns = covered.nonzero(as_tuple=True)
    names = faces[face[rows, columns].long()].long()
    corners = vertices[names]
    rays = pixel_rays(view.camera, size, size).to(vertices)[rows, columns]
    depth, normal = hit(corners, rays, two_sided)

    def picture(values: Tensor) -> Tensor:  # [P, C] -> [1, C, H, W]
        empty = values.new_zeros(size, size, values.shape[1])
        return empty.index_put((rows, columns), values).permute(2, 0, 1)[None]

    worn = None
    if attributes is not None:
        shares = barycentric(corners, rays * depth)
        worn = picture((values[names] * shares[..., None]).sum(1))
    return SurfaceImages(
        coverage(places, faces, face)[None, None],
        picture(depth),
        picture((normal @ rotation + 1) / 2),
        picture((rays * depth - shift) @ rotation),
        worn,
    )


def pixel_rays(camera: Camera, height: int, width: int) -> Tensor:  # float64 [H, W, 3]
    """Where the pixels' centres lie in camera space, at z = 1."""
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=2)
    return places @ torch.linalg.inv(camera.intrinsics.double().cpu()).T


def turned_to_viewer(
    normals: Tensor,  # float32 [B, 3, H, W]  world space, coded as (n + 1) / 2
    camera: Camera,
) -> Tensor:  # float32 [B, 3, H, W]
    """Flip the normals that point away from the camera: pictures from elsewhere may hold either side."""
    rays = pixel_rays(camera, *normals.shape[2:]) @ camera.extrinsics[:3, :3].double().cpu()
    away = ((2 * normals - 1) * rays.permute(2, 0, 1).to(normals)).sum(1, keepdim=True) > 0
    return torch.where(away, 1 - normals, normals)


def hit(
    corners: Tensor,  # float32 [P, 3, 3]  camera space
    rays: Tensor,  # float32 [P, 3]  with z = 1
    two_sided: bool = True,
) -> tuple[Tensor, Tensor]:  # float32 [P, 1], float32 [P, 3]
    """Depth at which each ray meets its triangle's plane, and the plane's unit normal: on the viewer's side,
    or where the triangle runs counter-clockwise."""
    a, b, c = corners.unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-20)
    slope = (normal * rays).sum(1, keepdim=True)
    steep = slope.abs() > 1e-6
    depth = (normal * a).sum(1, keepdim=True) / torch.where(steep, slope, 1.0)
    # a plane seen edge-on says nothing exact: its corners bound the depth
    z = corners[..., 2]
    low, high = z.amin(1, keepdim=True), z.amax(1, keepdim=True)
    depth = torch.where(steep, torch.minimum(torch.maximum(depth, low), high), (low + high) / 2)
    return depth, torch.where(slope > 0, -normal, normal) if two_sided else normal


def barycentric(
    corners: Tensor,  # float32 [P, 3, 3]
    points: Tensor,  # float32 [P, 3]  in the triangles' planes
) -> Tensor:  # float32 [P, 3]  in [0, 1], sum 1
    """How much each corner counts at a point; a third in a triangle without an area."""
    sides = [corners.roll(-k - 1, 1)[:, 0] - points for k in range(3)]  # to the corners k + 1
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = [(torch.linalg.cross(sides[k], sides[(k + 1) % 3]) * normal).sum(1) for k in range(3)]
    shares = torch.stack(areas, 1).clamp_min(0)
    total = shares.sum(1, keepdim=True)
    flat = total <= 1e-30
    return torch.where(flat, 1 / 3, shares / torch.where(flat, 1.0, total))


def clip_near(
    vertices: Tensor,  # float32 [V, 3]  camera space
    faces: Tensor,  # int32 [F, 3]
    near: float,
) -> tuple[Tensor, Tensor]:  # float32 [V', 3], int32 [F', 3]
    """Cut the mesh at z = near and keep what lies behind; new corners are functions of the old ones."""
    triangles = faces.long()
    inside = vertices[:, 2] > near
    count = inside[triangles].sum(1)
    pieces = [triangles[count == 3]]
    cuts: list[Tensor] = []  # the two cut edges of every such face
    for kept in (1, 2):
        cut = triangles[count == kept]
        alone = (inside[cut] == (kept == 1)).int().argmax(1)  # the corner that is alone on its side
        a, b, c = (cut.gather(1, ((alone + k) % 3)[:, None])[:, 0] for k in range(3))
        ab = torch.arange(len(a), device=faces.device) + sum(map(len, cuts)) + len(vertices)
        ac = ab + len(a)
        cuts += [torch.stack([a, b], 1), torch.stack([a, c], 1)]
        if kept == 1:
            pieces.append(torch.stack([a, ab, ac], 1))
        else:
            pieces += [torch.stack([ab, b, c], 1), torch.stack([ab, c, ac], 1)]
    edges, shared = torch.cat(cuts).sort(1).values.unique(dim=0, return_inverse=True)
    start, end = vertices[edges].unbind(1)
    share = (near - start[:, 2:3]) / (end[:, 2:3] - start[:, 2:3])
    renamed = torch.cat([torch.arange(len(vertices), device=faces.device), shared + len(vertices)])
    return torch.cat([vertices, start + share * (end - start)]), renamed[torch.cat(pieces)].int()


def coverage(
    places: Tensor,  # float32 [V, 2]  in pixels
    faces: Tensor,  # int32 [F, 3]
    face: Tensor,  # int32 [H, W]   -1 where nothing is seen
) -> Tensor:  # float32 [H, W]  in [0, 1]
    """The mask, blended where a covered and an empty pixel are neighbours.

    The surface ends at a share s of the way from centre to centre. Up to a half, the covered pixel loses what
    is missing to it; beyond, the empty pixel gains the rest.
    """
    flat, width = face.reshape(-1), face.shape[1]
    covered = flat >= 0
    mask = covered.to(places.dtype)
    number = torch.arange(flat.numel(), device=face.device).view_as(face)
    neighbours = ((number[:, :-1], number[:, 1:], 0), (number[:-1], number[1:], 1))
    beyond = adjacent_faces(faces)
    for first, second, axis in neighbours:
        for inner, outer, sign in ((first, second, 1.0), (second, first, -1.0)):
            ends = covered[inner] & ~covered[outer]
            full, empty = inner[ends], outer[ends]
            center = torch.stack([full % width, full // width], 1).to(places) + 0.5
            reach = silhouette(places, faces, beyond, flat[full].long(), center, axis, sign)
            share = reach.clamp(0, 1) - 0.5
            lost, gained = torch.where(share < 0, share, 0), torch.where(share < 0, 0, share)
            mask = mask.index_add(0, full, lost).index_add(0, empty, gained)
    return mask.clamp(0, 1).view_as(face)


def silhouette(
    places: Tensor,  # float32 [V, 2]
    faces: Tensor,  # int32 [F, 3]
    beyond: Tensor,  # int64 [F, 3]   from `adjacent_faces`
    face: Tensor,  # int64 [P]      where each walk starts
    center: Tensor,  # float32 [P, 2]
    axis: int,  # 0: along x, 1: along y
    sign: float,
) -> Tensor:  # float32 [P]  how far the surface reaches from the centre; a half where that is not found
    """Walk from face to face along a row or column until one ends without another behind its edge.

    Of two faces that meet in an outline both lie on the same side of their edge.
    """
    found = center.new_full((len(face),), 0.5)
    walking = torch.arange(len(face), device=face.device)
    for _ in range(WALK):
        names = faces[face].long()
        reach, edge = exit_of(places[names] - center[walking, None], axis, sign)
        start, end, own = (names.gather(1, ((edge + k) % 3)[:, None])[:, 0] for k in range(3))
        other = beyond[face].gather(1, edge[:, None])[:, 0]
        open_edge = other < 0
        tip = torch.where(open_edge, own, faces[other].long().sum(1) - start - end)
        sides = [side_of(places[start], places[end], places[corner]) for corner in (own, tip)]
        ends = reach.isfinite() & (open_edge | (sides[0] * sides[1] >= 0))
        found = found.index_put((walking[ends],), reach[ends])
        on = reach.isfinite() & ~ends
        walking, face = walking[on], other[on]
    return found


def exit_of(
    corners: Tensor,  # float32 [P, 3, 2]  relative to a point on the line
    axis: int,
    sign: float,
) -> tuple[Tensor, Tensor]:  # float32 [P], int64 [P]
    """How far the triangle reaches along the axis, -inf if nowhere, and by which edge (k to k + 1)."""
    a, b = corners, corners.roll(-1, 1)
    along, across = axis, 1 - axis
    rise = b[..., across] - a[..., across]
    meets = (a[..., across] <= 0) != (b[..., across] <= 0)
    share = -a[..., across] / torch.where(meets, rise, 1.0)
    reach = sign * (a[..., along] + share * (b[..., along] - a[..., along]))
    furthest = torch.where(meets, reach, -torch.inf).max(1)
    return furthest.values, furthest.indices


def side_of(start: Tensor, end: Tensor, point: Tensor) -> Tensor:  # float32 [P, 2] each -> [P]
    """Positive on one side of the line through start and end, negative on the other."""
    edge, away = (end - start).detach(), (point - start).detach()
    return edge[:, 0] * away[:, 1] - edge[:, 1] * away[:, 0]


def adjacent_faces(
    faces: Tensor,  # int32 [F, 3]
) -> Tensor:  # int64 [F, 3]  the face across edge k (corner k to k + 1), -1 unless there is exactly one
    count = len(faces)
    ends = torch.stack([faces, faces.roll(-1, 1)], 2).long().reshape(-1, 2).sort(1).values
    keys = ends[:, 0] * (1 << 32) + ends[:, 1]
    order = keys.argsort()
    _, group, sizes = keys.unique(return_inverse=True, return_counts=True)
    beyond = torch.full((3 * count,), -1, dtype=torch.int64, device=faces.device)
    paired = order[sizes[group[order]] == 2].view(-1, 2)
    beyond[paired[:, 0]], beyond[paired[:, 1]] = paired[:, 1] // 3, paired[:, 0] // 3
    return beyond.view(count, 3)
