"""What can be drawn, and one picture of it: colors with light, or a map of something else.

    subject + camera + look -> RGBA picture

Letters: N Gaussians or voxels, V vertices, F faces, H height, W width (equal here).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trellis_core.errors import InputError, UsageError
from trellis_core.geometry.camera import Camera
from trellis_core.geometry.fields import Gaussians, RadianceField
from trellis_core.geometry.types import Asset, Mesh, PBRVoxels, VoxelMesh
from trellis_core.render.field_image import FieldImage, depth_normals, smooth_depth
from trellis_core.render.gaussian import render_gaussians
from trellis_core.render.mesh import render_mesh
from trellis_core.render.pbr import SHADERS, RenderSettings, average_blocks, render_pbr
from trellis_core.render.radiance import render_radiance
from trellis_core.render.studio import Light, Studio
from trellis_core.render.surface import PaintedMesh
from trellis_core.render.voxel import pixel_rays, render_voxels
from trellis_core.runtime import Runtime

Subject = PaintedMesh | VoxelMesh | Mesh | Gaussians | RadianceField | PBRVoxels
Color = tuple[int, int, int]  # sRGB
Backdrop = tuple[Color, Color] | None  # at the top and at the bottom; None: transparent

VISIBLE = 0.05  # opacity of Gaussians that count for the framing
SOLID = 0.5  # alpha of pixels that have a normal
KNOWN = 0.25  # alpha of pixels that have a depth
NEAREST, FARTHEST = 1.0, 0.25  # brightness of depth across the object
GREY = 0.72  # of clay
SHADE = 0.75  # brightness of the sides of voxels that are turned away most
LINE = 0.25  # brightness of edges
STUDIO: Backdrop = (237, 237, 240), (199, 201, 207)
TILE = 2048  # samples: larger pictures of surfaces are drawn in parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a picture shows of a subject, and before what."""

    mode: str = "color"  # a key of MODES
    light: Light = field(default_factory=Studio)  # of `color`, for meshes
    supersampling: int = 2  # samples per pixel and axis
    backdrop: Backdrop = STUDIO

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"unknown mode `{self.mode}`", hint=f"choose from: {', '.join(MODES)}")
        if self.supersampling < 1:
            raise ValueError(f"supersampling must be at least 1, got {self.supersampling}")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a camera sees, averaged over the samples of every pixel."""

    alpha: Tensor  # float32 [H, W]
    depth: Tensor  # float32 [H, W]     along the camera's z; 0 where nothing is seen
    normal: Tensor  # float32 [H, W, 3]  unit, world space; 0 where unknown
    edge: Tensor | None = None  # float32 [H, W]  share of the pixel on edges of triangles


def as_subject(thing: Subject | Asset) -> Subject:
    """What is drawn of an asset: its mesh alone when it has no texture."""
    if not isinstance(thing, Asset):
        return thing
    return thing.mesh if thing.mesh.uvs is None else PaintedMesh.of(thing)


def modes_of(subject: Subject) -> tuple[str, ...]:
    """The keys of MODES that a subject can be shown in."""
    material = isinstance(subject, PaintedMesh | VoxelMesh | PBRVoxels)
    mesh = isinstance(subject, PaintedMesh | VoxelMesh | Mesh)
    without = {"base-color", "metallic", "roughness"} if not material else set[str]()
    return tuple(name for name in MODES if name not in without and (mesh or name != "wireframe"))


def draw_subject(
    subject: Subject,
    camera: Camera,
    size: int,
    runtime: Runtime,
    look: Look | None = None,
) -> Tensor:  # uint8 [size, size, 4]  straight alpha
    """One picture on a transparent background.

    Raises `UsageError` for a mode that the subject has not, `InputError` when there is nothing to draw.
    """
    look = look or Look()
    require_mode(subject, look.mode)
    reach = depth_range(subject, camera) if look.mode == "depth" else (0.0, 1.0)
    if isinstance(subject, Gaussians) or size * look.supersampling <= TILE:
        return draw_part(subject, camera, size, runtime, look, reach)
    side = TILE // look.supersampling
    picture = torch.zeros(size, size, 4, dtype=torch.uint8)
    for y in range(0, size, side):
        for x in range(0, size, side):
            part = draw_part(subject, cropped(camera, x, y, side, size), side, runtime, look, reach)
            picture[y : y + side, x : x + side] = part[: size - y, : size - x].cpu()
    return picture


def before_backdrop(
    picture: Tensor,  # uint8 [H, W, 4]  straight alpha
    backdrop: Backdrop = STUDIO,
) -> Tensor:  # uint8 [H, W, 3], or [H, W, 4] without a backdrop
    if backdrop is None:
        return picture
    top, bottom = torch.tensor(backdrop, dtype=torch.float32)
    share = torch.linspace(0, 1, len(picture))[:, None, None]
    alpha = picture[..., 3:] / 255
    return torch.lerp(torch.lerp(top, bottom, share), picture[..., :3].float(), alpha).round().to(torch.uint8)


def require_mode(subject: Subject, mode: str) -> None:
    known = modes_of(subject)
    if mode not in known:
        raise UsageError(f"there is no `{mode}` to show of it", hint=f"choose from: {', '.join(known)}")


def cropped(camera: Camera, x: int, y: int, side: int, size: int) -> Camera:
    """The camera of a square part of a picture; positions and sides in pixels."""
    zoom = torch.diag(torch.tensor([size / side, size / side, 1], dtype=torch.float64))
    zoom[:2, 2] = -torch.tensor([x, y], dtype=torch.float64) / side
    return replace(camera, intrinsics=zoom @ camera.intrinsics)


def draw_part(
    subject: Subject,
    camera: Camera,
    size: int,
    runtime: Runtime,
    look: Look,
    reach: tuple[float, float],  # nearest and farthest depth
) -> Tensor:  # uint8 [size, size, 4]
    if look.mode in SHADERS and isinstance(subject, PaintedMesh | VoxelMesh):
        settings = RenderSettings(light=look.light, supersampling=look.supersampling)
        return render_pbr(subject, camera, size, runtime, settings, look.mode)
    if look.mode == "color" and isinstance(subject, Gaussians | RadianceField | PBRVoxels):
        image = view_colors(subject, camera, size, runtime, look.supersampling)
        color, alpha = image.color / image.alpha.clamp(min=1e-6)[..., None], image.alpha
    elif look.mode in SHADERS and isinstance(subject, PBRVoxels):
        color, alpha = view_attributes(subject, look.mode, camera, size, runtime, look.supersampling)
    else:
        seen = look_at_shape(subject, camera, size, runtime, look)
        color, alpha = MODES[look.mode](seen, camera, reach)
    picture = torch.cat([color, alpha[..., None]], 2) * (alpha > 0)[..., None]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


# --- maps of the shape -------------------------------------------------------------------------------

ShapeMap = Callable[[Seen, Camera, tuple[float, float]], tuple[Tensor, Tensor]]  # [H, W, 3], alpha [H, W]


def as_clay(seen: Seen, camera: Camera, reach: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Lambert's law with a light at the viewer's left shoulder, and some from everywhere."""
    return (GREY * (0.4 + 0.7 * lambert(seen.normal, camera)))[..., None].expand(-1, -1, 3), seen.alpha


def as_wireframe(seen: Seen, camera: Camera, reach: tuple[float, float]) -> tuple[Tensor, Tensor]:
    color, alpha = as_clay(seen, camera, reach)
    assert seen.edge is not None
    return torch.lerp(color, torch.full_like(color, LINE), seen.edge[..., None]), alpha


def as_normal(seen: Seen, camera: Camera, reach: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(n + 1) / 2 in world space."""
    return (seen.normal + 1) / 2, (seen.normal.square().sum(2) > 0).float()


def as_depth(seen: Seen, camera: Camera, reach: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """From `NEAREST` at the nearest depth that the subject can have in this view to `FARTHEST`."""
    near, far = reach
    share = ((seen.depth - near) / max(far - near, 1e-6)).clamp(0, 1)
    shade = NEAREST + (FARTHEST - NEAREST) * share
    return shade[..., None].expand(-1, -1, 3), (seen.alpha >= KNOWN).float()


def as_mask(seen: Seen, camera: Camera, reach: tuple[float, float]) -> tuple[Tensor, Tensor]:
    return torch.ones_like(seen.normal), seen.alpha


MODES: Mapping[str, ShapeMap] = {  # what a picture may show; those of SHADERS need a material
    "color": as_clay,  # of what has no color
    "base-color": as_clay,
    "metallic": as_clay,
    "roughness": as_clay,
    "clay": as_clay,
    "wireframe": as_wireframe,
    "normal": as_normal,
    "depth": as_depth,
    "mask": as_mask,
}


def look_at_shape(subject: Subject, camera: Camera, size: int, runtime: Runtime, look: Look) -> Seen:
    if isinstance(subject, PaintedMesh | VoxelMesh):
        subject = subject.mesh
    if isinstance(subject, Mesh):
        return view_mesh(subject, camera, size, runtime, look.supersampling, look.mode == "wireframe")
    image, normals = view_subject(subject, camera, size, runtime, look.supersampling)
    return Seen(image.alpha, image.depth, normals)


def view_mesh(
    mesh: Mesh, camera: Camera, size: int, runtime: Runtime, supersampling: int, edges: bool
) -> Seen:
    buffers = render_mesh(mesh, camera, size * supersampling, runtime)
    mask = buffers.mask.float()
    layers = [mask[..., None], buffers.depth[..., None], buffers.normal]
    if edges:
        face = buffers.face
        border = torch.zeros_like(buffers.mask)
        border[:, 1:] |= face[:, 1:] != face[:, :-1]
        border[1:] |= face[1:] != face[:-1]
        layers.append((border & buffers.mask).float()[..., None])
    alpha, depth, *normal = average_blocks(torch.cat(layers, 2), supersampling).unbind(2)
    seen = alpha > 0
    depth = torch.where(seen, depth / torch.where(seen, alpha, 1.0), 0.0)
    edge = normal.pop() / alpha.clamp(min=1e-6) if edges else None
    return Seen(alpha, depth, torch.nn.functional.normalize(torch.stack(normal, 2), dim=2), edge)


# --- what is no mesh ---------------------------------------------------------------------------------


def view_subject(
    subject: Gaussians | RadianceField | PBRVoxels,
    camera: Camera,
    size: int,
    runtime: Runtime,
    supersampling: int = 1,
) -> tuple[FieldImage, Tensor]:  # and float32 [H, W, 3] normals in world space, 0 where unknown
    """Color, alpha, depth and normals of what is no mesh."""
    if isinstance(subject, PBRVoxels):
        return view_voxels(subject, subject.attrs[:, :3], camera, size, runtime, supersampling)
    image = view_colors(subject, camera, size, runtime, supersampling)
    solid = image.alpha >= SOLID
    return image, depth_normals(smooth_depth(image.depth, solid), solid, camera)


def view_colors(
    subject: Gaussians | RadianceField | PBRVoxels,
    camera: Camera,
    size: int,
    runtime: Runtime,
    supersampling: int,
) -> FieldImage:
    """Colors as they are; only the sides of voxels differ in brightness, so that one sees them."""
    if isinstance(subject, Gaussians):  # their screen filter does what more samples would do
        return render_gaussians(subject, camera, size, runtime)
    if isinstance(subject, RadianceField):
        return render_radiance(subject, camera, size, runtime, supersampling=supersampling)
    image, normals = view_subject(subject, camera, size, runtime, supersampling)
    shade = SHADE + (1 - SHADE) * lambert(normals, camera)
    return replace(image, color=image.color * shade[..., None])


def lambert(normals: Tensor, camera: Camera) -> Tensor:  # float32 [H, W, 3] -> [H, W]
    """Light from the viewer's left shoulder."""
    right, down, forward = camera.extrinsics[:3, :3].to(normals)
    light = torch.nn.functional.normalize(-forward - 0.5 * right - 0.6 * down, dim=0)
    return (normals @ light).clamp(0, 1)


COLUMNS: Mapping[str, tuple[int, int, int]] = {  # of PBRVoxels.attrs
    "base-color": (0, 1, 2),
    "metallic": (3, 3, 3),
    "roughness": (4, 4, 4),
}


def view_attributes(
    voxels: PBRVoxels, mode: str, camera: Camera, size: int, runtime: Runtime, supersampling: int
) -> tuple[Tensor, Tensor]:  # float32 [H, W, 3], [H, W]
    """Attributes of voxels, without light."""
    image, _ = view_voxels(voxels, voxels.attrs[:, COLUMNS[mode]], camera, size, runtime, supersampling)
    return image.color / image.alpha.clamp(min=1e-6)[..., None], image.alpha


def view_voxels(
    voxels: PBRVoxels,
    colors: Tensor,  # float32 [N, 3]
    camera: Camera,
    size: int,
    runtime: Runtime,
    supersampling: int,
) -> tuple[FieldImage, Tensor]:
    """Voxels as cubes; normals are those of the sides that are seen."""
    edge = 1 / voxels.resolution
    positions = ((voxels.coords.float() + 0.5) * edge - 0.5).to(runtime.device)
    side = size * supersampling
    seen = render_voxels(positions, colors.float(), camera, side, runtime, voxel_size=edge)
    y, x = torch.nonzero(seen.voxel >= 0, as_tuple=True)
    rays = pixel_rays(camera, side, x, y)
    hit = camera.eye.to(rays) + rays * seen.depth[y, x, None] - positions[seen.voxel[y, x].long()]
    axis = hit.abs().argmax(1, keepdim=True)
    normals = torch.zeros(side, side, 3, device=runtime.device)
    normals[y, x] = torch.zeros_like(hit).scatter(1, axis, hit.gather(1, axis).sign())
    depth = torch.zeros_like(seen.depth)
    depth[y, x] = seen.depth[y, x] * (rays @ camera.extrinsics[2, :3].to(rays))
    sums = torch.cat([seen.attrs.clamp(0, 1), depth[..., None], seen.mask[..., None], normals], 2)
    sums = average_blocks(sums, supersampling)
    return FieldImage.of_sums(sums[..., :5]), torch.nn.functional.normalize(sums[..., 5:], dim=2)


# --- how large ---------------------------------------------------------------------------------------


def outline(subject: Subject) -> tuple[Tensor, Tensor]:  # float32 [N, 3] world space, [N]
    """Balls that must be in a picture of the subject. Raises `InputError` when there is nothing to see."""
    if isinstance(subject, PaintedMesh | VoxelMesh):
        subject = subject.mesh
    if isinstance(subject, Mesh):
        points = subject.vertices[subject.faces.long().unique()]
        reach = torch.zeros_like(points[:, 0])
    elif isinstance(subject, Gaussians):
        shown = subject.opacities[:, 0] > VISIBLE
        points, reach = subject.positions[shown], 3 * subject.scales[shown].amax(1)
    else:
        points = (subject.coords.float() + 0.5) / subject.resolution - 0.5
        reach = torch.full_like(points[:, 0], math.sqrt(3) / 2 / subject.resolution)
    known = torch.isfinite(points).all(1) & torch.isfinite(reach)
    if not bool(known.any()):
        raise InputError("there is nothing to draw", hint="try another seed or another picture")
    return points[known].detach(), reach[known].detach()


def bounds_of(subject: Subject) -> tuple[Tensor, Tensor]:  # float64 [3] lowest and highest corner
    points, reach = (x.double().cpu() for x in outline(subject))
    return (points - reach[:, None]).amin(0), (points + reach[:, None]).amax(0)


def depth_range(subject: Subject, camera: Camera) -> tuple[float, float]:
    """Nearest and farthest depth of a ball around the subject, the same from all sides."""
    low, high = bounds_of(subject)
    middle = (camera.extrinsics @ torch.cat([(low + high) / 2, torch.ones(1, dtype=torch.float64)]))[2].item()
    reach = (high - low).norm().item() / 2
    return max(middle - reach, 0.0), middle + reach


def on_device(subject: Subject, device: torch.device) -> Subject:
    if isinstance(subject, PBRVoxels):
        return replace(subject, coords=subject.coords.to(device), attrs=subject.attrs.to(device))
    if isinstance(subject, VoxelMesh):
        voxels = replace(
            subject.voxels, coords=subject.voxels.coords.to(device), attrs=subject.voxels.attrs.to(device)
        )
        return VoxelMesh(subject.mesh.to(device), voxels)
    return subject.to(device)
