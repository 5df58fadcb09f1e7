# mypy: ignore-errors
"""Pictures of solids: sphere tracing, simple shading, the crop that the pipelines make.

Every number of a view (camera, light, crop) comes from one generator. The picture is cropped to the object as
`trellis_core.image.preprocess` crops a user's picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin, tan

import numpy as np
import warp as wp

from trellis_core.training.synthetic.shapes import Solids, solid_distance


@dataclass(frozen=True, slots=True)
class View:
    """A pinhole camera that looks at the origin, a crop window in its image plane, and the light."""

    origin: np.ndarray  # float32 [3]
    axes: np.ndarray  # float32 [3, 3]  right, up, forward
    window: np.ndarray  # float32 [3]     centre u, v and half side, in units of focal length
    light: np.ndarray  # float32 [3]     unit vector towards the key light
    strength: np.ndarray  # float32 [3]     ambient, key, specular


def look_at(yaw: float, pitch: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Camera position and axes; yaw 0, pitch 0 (degrees) looks at the front from -y."""
    a, b = radians(yaw), radians(pitch)
    back = np.array([sin(a) * cos(b), -cos(a) * cos(b), sin(b)])
    right = np.array([cos(a), sin(a), 0.0])
    return (back * radius).astype(np.float32), np.stack([right, np.cross(back, right), -back]).astype(
        np.float32
    )


def sample_view(
    rng: np.random.Generator,
    surface: np.ndarray,  # float32 [N, 3]  points on the object, for the crop
    margin: tuple[float, float] = (0.99, 1.05),
) -> View:
    """A random view: yaw within 60 degrees, pitch 0 to 35, light from the camera's side, a crop around the
    object."""
    fov = rng.uniform(30, 48)
    radius = 0.73 / tan(radians(fov / 2))
    yaw, pitch = rng.uniform(-60, 60), rng.uniform(0, 35)
    origin, axes = look_at(yaw, pitch, radius)
    light = axes.T @ np.array(
        [rng.uniform(-0.9, 0.9), rng.uniform(0.1, 1.0), -rng.uniform(0.5, 1.0)], np.float32
    )
    strength = np.array([rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.7), rng.uniform(0.1, 0.5)], np.float32)
    return View(
        origin,
        axes,
        crop_window(origin, axes, surface, rng.uniform(*margin)),
        light / np.linalg.norm(light),
        strength,
    )


def crop_window(origin: np.ndarray, axes: np.ndarray, surface: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """The square around the projected surface, `margin` times its longer side."""
    local = (surface - origin) @ axes.T
    uv = local[:, :2] / local[:, 2:]
    low, high = uv.min(axis=0), uv.max(axis=0)
    return np.array([*(low + high) / 2, (high - low).max() / 2 * margin], np.float32)


def render_views(
    solids: Solids,
    owner: np.ndarray,  # int [V]     which solid each view shows
    views: list[View],
    size: int,
    supersample: int = 2,
    device: str = "cpu",
) -> np.ndarray:  # uint8 [V, size, size, 4]  straight alpha
    """Trace and shade the views; `supersample`^2 rays per pixel are averaged premultiplied."""
    side = size * supersample
    part = wp.empty((len(views), side, side), dtype=int, device=device)
    normal = wp.empty((len(views), side, side), dtype=wp.vec3, device=device)
    cameras = np.stack([np.concatenate([v.origin, v.axes.ravel(), v.window]) for v in views])
    inputs = [
        wp.array(solids.rows, dtype=float, device=device),
        wp.array(solids.starts, dtype=int, device=device),
        wp.array(np.ascontiguousarray(owner, np.int32), dtype=int, device=device),
        wp.array(cameras.astype(np.float32), dtype=float, device=device),
        side,
    ]
    wp.launch(
        _trace_kernel, dim=(len(views), side, side), inputs=inputs, outputs=[part, normal], device=device
    )
    return np.stack(
        [
            _shade(solids, v, p, n, supersample)
            for v, p, n in zip(views, part.numpy(), normal.numpy(), strict=True)
        ]
    )


def on_black(picture: np.ndarray) -> np.ndarray:
    """RGBA uint8 [..., 4] to premultiplied RGB uint8 [..., 3], as the pipelines' preprocessing does."""
    rgba = picture.astype(np.float32) / 255
    return (rgba[..., :3] * rgba[..., 3:] * 255).astype(np.uint8)


def _shade(solids: Solids, view: View, part: np.ndarray, normal: np.ndarray, supersample: int) -> np.ndarray:
    """Lambert, Blinn and sky over the base color; metals tint their highlight and their sky."""
    side = len(part)
    hit = part >= 0
    material = solids.materials[part[hit]]
    n = normal[hit]
    color, metallic, roughness = material[:, :3], material[:, 3:4], material[:, 4:5]
    ambient, key, specular = view.strength
    to_eye = -view.axes[2]
    half = (view.light + to_eye) / np.linalg.norm(view.light + to_eye)
    diffuse = np.clip(n @ view.light, 0, 1)[:, None]
    sky = 0.75 + 0.25 * n[:, 2:3]
    shine = np.clip(n @ half, 0, 1)[:, None] ** (2 / np.clip(roughness, 0.15, 1) ** 2)
    tint = metallic * color + (1 - metallic)
    lit = color * (ambient * sky + key * diffuse) * (1 - 0.25 * metallic)
    lit = lit + specular * (1 - 0.8 * roughness) * shine * tint * (0.6 + 0.8 * metallic)
    image = np.zeros((side, side, 4), np.float32)
    image[hit] = np.concatenate([lit.clip(0, 1), np.ones_like(sky)], axis=1)
    small = side // supersample
    image = image.reshape(small, supersample, small, supersample, 4).mean(axis=(1, 3))
    image[..., :3] /= np.maximum(image[..., 3:], 1e-6)
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)


@wp.kernel(enable_backward=False)
def _trace_kernel(
    rows: wp.array2d(dtype=float),
    starts: wp.array(dtype=int),
    owner: wp.array(dtype=int),
    cameras: wp.array2d(dtype=float),
    side: int,
    part: wp.array3d(dtype=int),
    normal: wp.array3d(dtype=wp.vec3),
) -> None:
    """Sphere tracing (Hart, 1996) through the unit cube; the normal is the distance's gradient (four
    samples)."""
    view, y, x = wp.tid()
    first, last = starts[owner[view]], starts[owner[view] + 1]
    u = cameras[view, 12] + cameras[view, 14] * (2.0 * (float(x) + 0.5) / float(side) - 1.0)
    v = cameras[view, 13] - cameras[view, 14] * (2.0 * (float(y) + 0.5) / float(side) - 1.0)
    origin = wp.vec3(cameras[view, 0], cameras[view, 1], cameras[view, 2])
    ray = wp.normalize(
        wp.vec3(
            u * cameras[view, 3] + v * cameras[view, 6] + cameras[view, 9],
            u * cameras[view, 4] + v * cameras[view, 7] + cameras[view, 10],
            u * cameras[view, 5] + v * cameras[view, 8] + cameras[view, 11],
        )
    )
    near = wp.float32(0.0)
    far = wp.float32(1.0e6)
    for axis in range(3):
        enter = (-0.5 - origin[axis]) / ray[axis]
        leave = (0.5 - origin[axis]) / ray[axis]
        near = wp.max(near, wp.min(enter, leave))
        far = wp.min(far, wp.max(enter, leave))
    t = near
    found = wp.int32(-1)
    for _step in range(80):
        if t > far:
            break
        hit = solid_distance(rows, first, last, origin + ray * t)
        if hit[0] < 6.0e-4:
            found = int(hit[1])
            break
        t = t + hit[0] * 0.9
    part[view, y, x] = found
    if found >= 0:
        p = origin + ray * t
        h = wp.float32(5.0e-4)
        a = wp.vec3(1.0, -1.0, -1.0)
        b = wp.vec3(-1.0, -1.0, 1.0)
        c = wp.vec3(-1.0, 1.0, -1.0)
        d = wp.vec3(1.0, 1.0, 1.0)
        da = solid_distance(rows, first, last, p + a * h)
        db = solid_distance(rows, first, last, p + b * h)
        dc = solid_distance(rows, first, last, p + c * h)
        dd = solid_distance(rows, first, last, p + d * h)
        normal[view, y, x] = wp.normalize(a * da[0] + b * db[0] + c * dc[0] + d * dd[0])
