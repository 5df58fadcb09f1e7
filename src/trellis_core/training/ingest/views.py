"""Pictures of a user's mesh: cameras all around it, and light.

Two sets of cameras, as in the released data. Those for conditioning have opening angles from 10 to 70 degrees
such that 1 / distance^2 is uniform and the unit cube is always in the picture; those that appearance is
learned from stand on one sphere. Directions come from a Hammersley sequence with a random offset.
Light is ours: for conditioning a studio with one to three random soft boxes, for appearance a sky that looks
the same from everywhere.
Letters: S side of a picture in samples, P shaded samples, F triangles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trellis_core.geometry.camera import Camera, hammersley_view, orbit_camera
from trellis_core.geometry.types import Mesh
from trellis_core.io.images import write_png
from trellis_core.render import pbr
from trellis_core.render.mesh import MeshBuffers, interpolate, render_mesh
from trellis_core.render.studio import SoftBox, Studio
from trellis_core.runtime import Runtime
from trellis_core.training.ingest.surfaces import (
    Lookup,
    TexturedMesh,
    shade,
    tangent_frames,
    texel_scales,
    textures_of,
)
from trellis_core.training.ingest.textures import Pyramid, build_pyramid
from trellis_core.training.transforms import Frame, write_transforms

NARROW, WIDE = math.radians(10), math.radians(70)
REACH = math.sqrt(3) / 2  # of the unit cube's corners from its centre
RADIUS, FOV = 2.0, math.radians(40)  # of the cameras that appearance is learned from
EVEN = Studio(boxes=(), sky=(1.5,) * 3, horizon=(1.25,) * 3, ground=(1.0,) * 3)  # alike from all sides

Textures = Sequence[Mapping[str, Pyramid]]  # of each material


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    views: int = 16
    size: int = 512  # pixels
    supersampling: int = 2
    layers: int = 4  # of transparent surface


@dataclass(frozen=True, slots=True)
class PlannedView:
    camera: Camera
    fov: float  # radians
    studio: Studio


def write_views(
    folder: Path,
    look: TexturedMesh,
    views: Sequence[PlannedView],
    settings: ViewSettings,
    runtime: Runtime,
    *,
    offset: Sequence[float] = (0.0, 0.0, 0.0),  # of the file's frame to the unit cube: scale * (p + offset)
    scale: float = 1.0,
) -> None:
    """Write `000.png`, ... (RGBA, straight alpha) and, when all are there, `transforms.json`."""
    frames, textures = [], pyramids_of(look)
    for number, view in enumerate(views):
        path = folder / f"{number:03d}.png"
        write_png(path, draw_view(look, textures, view, settings, runtime))
        frames.append(Frame(path, view.camera, view.fov))
    write_transforms(folder, frames, offset, scale)


def condition_views(count: int, rng: np.random.Generator) -> list[PlannedView]:
    """Cameras at varied distances, light that varies."""
    offset = (float(rng.random()), float(rng.random()))
    views = []
    for number in range(count):
        yaw, pitch = hammersley_view(number, count, offset)
        near, far = (REACH / math.sin(fov / 2) for fov in (WIDE, NARROW))
        radius = float(rng.uniform(far**-2, near**-2)) ** -0.5
        fov = 2 * math.asin(REACH / radius)
        views.append(PlannedView(orbit_camera(yaw, pitch, radius=radius, fov=fov), fov, random_studio(rng)))
    return views


def appearance_views(count: int, rng: np.random.Generator) -> list[PlannedView]:
    """Cameras on one sphere, in even light."""
    offset = (float(rng.random()), float(rng.random()))
    places = (hammersley_view(number, count, offset) for number in range(count))
    return [PlannedView(orbit_camera(*p, radius=RADIUS, fov=FOV), FOV, EVEN) for p in places]


def random_studio(rng: np.random.Generator) -> Studio:
    """One to three lights, mostly from above and never from right behind the object."""
    count = int(rng.integers(1, 4))
    boxes = []
    for _ in range(count):
        x, away = rng.uniform(-1, 1), rng.uniform(-1, 0.6)
        warmth = rng.uniform(-0.06, 0.06)
        strength = rng.uniform(5, 9) / count
        boxes.append(
            SoftBox(
                direction=(float(x), float(away), float(rng.uniform(-0.2, 1.2))),
                color=(float(strength * (1 + warmth)), float(strength), float(strength * (1 - warmth))),
                sharpness=float(rng.uniform(4, 16)),
            )
        )
    sky = float(rng.uniform(0.5, 0.9))
    return Studio(boxes=tuple(boxes), sky=(sky, sky, sky), horizon=(0.6 * sky,) * 3, ground=(0.35 * sky,) * 3)


def pyramids_of(look: TexturedMesh) -> Textures:
    return [{name: build_pyramid(t) for name, t in textures_of(m).items()} for m in look.materials]


def draw_view(
    look: TexturedMesh, textures: Textures, view: PlannedView, settings: ViewSettings, runtime: Runtime
) -> Tensor:  # uint8 [size, size, 4]  sRGB, straight alpha
    """Draw the mesh with all its materials, front to back where they are transparent."""
    device, side = runtime.device, settings.size * settings.supersampling
    corners = torch.arange(3 * len(look.triangles), dtype=torch.int32).view(-1, 3)
    normals = None if look.normals is None else look.normals.reshape(-1, 3)
    mesh = Mesh(look.triangles.reshape(-1, 3), corners, normals=normals).to(device)
    color = torch.zeros(side, side, 4, device=device)  # premultiplied, linear
    opaque = all(material.alpha_mode == "OPAQUE" for material in look.materials)
    front = None
    for _ in range(1 if opaque else settings.layers):
        buffers = render_mesh(mesh, view.camera, side, runtime, front)
        front = buffers.face
        if not bool(buffers.mask.any()):
            break
        surface, buffers = surface_at(look, textures, buffers, pixel_size(view, side))
        shaded = pbr.tone_map(pbr.shade(surface, buffers, view.camera, view.studio))
        seen = (1 - color[buffers.mask][:, 3:]) * surface.alpha
        color[buffers.mask] += torch.cat([shaded * seen, seen], 1)
    return pbr.to_srgb8(pbr.average_blocks(color, settings.supersampling)).cpu()


def surface_at(
    look: TexturedMesh, textures: Textures, buffers: MeshBuffers, size: float
) -> tuple[pbr.Surface, MeshBuffers]:
    """The materials at every sample that shows the mesh, and the buffers with the normals of normal maps."""
    face = buffers.face[buffers.mask].long().cpu()
    bary, normal = buffers.barycentric[buffers.mask].cpu(), buffers.normal[buffers.mask].cpu()
    used, place = face.unique(return_inverse=True)
    triangles, uvs = look.triangles[used], look.uvs[used]
    scales = texel_scales(triangles, uvs, torch.full((3,), size))[place]
    frames = tangent_frames(triangles, uvs, turn_mirrored=False)[place]
    uv = interpolate(uvs[place], bary)
    material_ids = look.material_ids[face]
    values = torch.zeros(len(face), 9)
    for number in material_ids.unique().tolist():
        mine = (material_ids == number).nonzero().squeeze(1)
        lookup = Lookup(look.materials[number], textures[number], uv[mine], scales[mine], 0.0)
        values[mine] = shade(lookup, frames[mine], normal[mine])
    values = values.to(buffers.depth.device)
    normals = buffers.normal.clone()
    normals[buffers.mask] = torch.nn.functional.normalize(values[:, 6:], dim=1)
    surface = pbr.Surface(pbr.srgb_to_linear(values[:, :3]), values[:, 3:4], values[:, 4:5], values[:, 5:6])
    return surface, replace(buffers, normal=normals)


def pixel_size(view: PlannedView, side: int) -> float:
    """World size of a sample at the centre of the cube."""
    return 2 * float(view.camera.eye.norm()) * math.tan(view.fov / 2) / side
